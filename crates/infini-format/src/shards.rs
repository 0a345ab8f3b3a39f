//! Token shards: the encoded documents of a training corpus, many gigabytes of them, read at any place.
//!
//! A corpus is a folder: `manifest.json` (sealed), `tokenizer.json`, and files `shard-NNNNN.tokens` that are never
//! changed once the manifest names them. Tokens are numbered through all shards, so a document is a range of numbers,
//! also where it is too long for one shard. A shard is laid out for reading in place:
//!
//! | part | bytes |
//! |---|---|
//! | header | magic, version, width of a token (2 or 4), vocabulary, tokens, documents, bytes of names, SHA-256 of the tokenizer, of the index, and of the header itself |
//! | tokens | `tokens × width`, little-endian |
//! | index | for each document: end, bytes and words of its text, end of its name, whether it goes on in the next shard; the names; SHA-256 of each block of [`BLOCK`] token bytes |
//!
//! Header and index are checked when a shard is opened, a block of tokens when it is first read, so every byte is
//! covered without hashing the corpus at the start. Shards are read with positioned reads, not mapped: a mapped file that
//! another process truncates ends the program with a signal, a read says what happened. Each read also makes sure
//! that the file behind the name is still the one that was opened.

mod corpus;
mod error;
mod shard;
mod write;

pub use corpus::{Corpus, Document};
pub use error::ShardError;
pub use shard::{ReadAt, Shard};
pub use write::{Resumed, Writer};

use serde::{Deserialize, Serialize};

/// The name of the file that makes a folder a corpus.
pub const MANIFEST: &str = "manifest.json";
/// The name of the tokenizer's file.
pub const TOKENIZER: &str = "tokenizer.json";
/// Token bytes under one checksum.
pub const BLOCK: usize = 1 << 20;

const FORMAT: &str = "infini-shards";
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"infshard";
/// Bytes of the header.
const HEADER: usize = 8 + 4 + 4 + 4 * 8 + 3 * 32;
/// Bytes of a document's entry in the index.
const ENTRY: usize = 4 * 8 + 1;

/// What all shards of a corpus have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// SHA-256 of the `tokenizer.json`.
    pub tokenizer: String,
    /// Ids are below this.
    pub vocab_size: u64,
    /// Whether hard line ends were joined before encoding.
    pub unwrapped: bool,
}

/// What stands in `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    #[serde(flatten)]
    about: About,
    /// SHA-256 of the list of inputs that the corpus is made from.
    inputs: String,
    /// Whether all of them are in it.
    complete: bool,
    /// Inputs that are in it wholly, those passed over among them.
    done: u64,
    /// Tokens of the next input that are in it.
    partial: u64,
    shards: Vec<Part>,
    seal: String,
}

/// One shard in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    file: String,
    tokens: u64,
    /// SHA-256 of the shard's header, which covers its index, which covers its tokens.
    header: String,
}

/// The name of shard `i`.
fn file_name(i: usize) -> String {
    format!("shard-{i:05}.tokens")
}

/// Bytes of a token.
fn width(vocab_size: u64) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if !crate::hash::is_hash(text) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}
