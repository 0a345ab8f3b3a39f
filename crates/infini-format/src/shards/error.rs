//! What can be wrong with a corpus.

use crate::Explain;
use crate::error::explained;
use crate::io::IoError;

/// What can be wrong with a corpus of token shards.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named in the message of their variant")]
pub enum ShardError {
    /// The disk failed, or another process is writing.
    Io(IoError),
    /// The file does not begin as a shard.
    NotAShard,
    /// Written by a newer Infini.
    NewerVersion { found: u32, known: u32 },
    /// The file ends before its contents do.
    Truncated { len: u64, expected: u64 },
    /// The file goes on after its contents.
    TrailingBytes { len: u64, expected: u64 },
    /// The header's checksum does not hold.
    HeaderDamaged,
    /// A number of the header cannot be.
    BadHeader { what: &'static str, value: u64 },
    /// The index's checksum does not hold.
    IndexDamaged,
    /// The index contradicts itself.
    BadIndex { document: u64, why: &'static str },
    /// A block of tokens is not what was written.
    BlockDamaged { offset: u64 },
    /// A token is outside the vocabulary.
    BadToken { at: u64, token: u32, vocab_size: u64 },
    /// The file was replaced, truncated or written to after it was opened.
    Changed,
    /// There is no manifest.
    NoCorpus,
    /// The manifest is not what was written.
    ManifestDamaged,
    /// A shard is not the one that the manifest names.
    OtherShard,
    /// The corpus is not finished.
    Incomplete { done: u64 },
    /// The corpus was begun with another tokenizer, other inputs or other settings.
    OtherCorpus { what: &'static str },
    /// The corpus is finished.
    Finished,
    /// The corpus holds no token.
    Empty,
    /// Something larger than is kept.
    TooLarge { what: &'static str, max: u64 },
}

impl Explain for ShardError {
    fn what(&self) -> String {
        use ShardError::*;
        match self {
            Io(error) => error.what(),
            NotAShard => "not a file of token shards".into(),
            NewerVersion { found, known } => format!("token shards of version {found}, newest known is {known}"),
            Truncated { len, expected } => format!("truncated at byte {len} of {expected}"),
            TrailingBytes { len, expected } => format!("{} bytes after its end at byte {expected}", len - expected),
            HeaderDamaged => "header of the shard is damaged".into(),
            BadHeader { what, value } => format!("header of the shard: {what} cannot be {value}"),
            IndexDamaged => "index of the shard is damaged".into(),
            BadIndex { document, why } => format!("index of the shard: document {document} {why}"),
            BlockDamaged { offset } => format!("tokens are damaged in the block at byte {offset}"),
            BadToken { at, token, vocab_size } => {
                format!("token {at} is {token}, the vocabulary has {vocab_size} entries")
            }
            Changed => "the shard was replaced, truncated or written to while it was in use".into(),
            NoCorpus => "no token shards in the folder".into(),
            ManifestDamaged => "manifest of the token shards is damaged".into(),
            OtherShard => "the shard is not the one that the manifest names".into(),
            Incomplete { done } => format!("the token shards are not finished: {done} inputs are in them"),
            OtherCorpus { what } => format!("the folder holds token shards of {what}"),
            Finished => "the folder holds finished token shards".into(),
            Empty => "the token shards hold no token".into(),
            TooLarge { what, max } => format!("{what} of more than {max} bytes"),
        }
    }

    fn mend(&self) -> String {
        use ShardError::*;
        match self {
            Io(error) => return error.mend(),
            NotAShard | NoCorpus => "name a folder that `infini data prepare` made",
            NewerVersion { .. } => "use a newer infini, or prepare the texts again",
            Changed => "leave the shards alone while they are in use, and run the same command again",
            Incomplete { .. } => "run the same `infini data prepare` again: it goes on where it stopped",
            OtherCorpus { .. } | Finished => "choose another folder, or remove this one",
            Empty => "prepare texts that are not empty",
            TooLarge { .. } => "split the input",
            Truncated { .. }
            | TrailingBytes { .. }
            | HeaderDamaged
            | BadHeader { .. }
            | IndexDamaged
            | BadIndex { .. }
            | BlockDamaged { .. }
            | BadToken { .. }
            | ManifestDamaged
            | OtherShard => "copy the shards again, or prepare the texts again",
        }
        .into()
    }
}

explained!(ShardError);
