//! `infini tokenizer`: makes a vocabulary, and looks at what it does.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use infini::text::{self, reader::Reader, unwrap::Unwrap};
use infini_format::io::{PUBLIC, RealIo, atomic_write};

use crate::console::{Outcome, commas, note, say};
use crate::models;
use crate::report::writable;

/// Train a byte-level vocabulary, encode and decode
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini tokenizer train docs/ README.md --vocab-size 1024 --out tokenizer.json
  infini tokenizer encode --tokenizer tokenizer.json \"The pass key is 48213.\"
  infini tokenizer encode - < book.txt > ids.txt
  infini tokenizer decode 52 71 9")]
pub struct Tokenizer {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Learn a byte-level BPE from texts: every digit is a token of its own, any UTF-8 text can be encoded
    Train {
        /// Text files and folders of them
        #[arg(required = true, value_name = "FILE|DIR")]
        inputs: Vec<PathBuf>,
        /// Entries, the 256 bytes among them
        #[arg(long, value_name = "N", default_value_t = 1024)]
        vocab_size: usize,
        /// Join hard-wrapped lines first, as `infini data prepare --unwrap` does
        #[arg(long)]
        unwrap: bool,
        /// Where to write it
        #[arg(long, value_name = "FILE", default_value = "tokenizer.json")]
        out: PathBuf,
    },
    /// Print the ids of a text, on one line
    Encode {
        /// A tokenizer.json, or a model: folder, GGUF file or name
        #[arg(long, value_name = "FILE|DIR", default_value = models::DEFAULT)]
        tokenizer: PathBuf,
        /// The text (- for stdin)
        text: String,
    },
    /// Print the text of ids
    Decode {
        /// A tokenizer.json, or a model: folder, GGUF file or name
        #[arg(long, value_name = "FILE|DIR", default_value = models::DEFAULT)]
        tokenizer: PathBuf,
        /// The ids
        #[arg(required = true)]
        ids: Vec<u32>,
    },
}

impl Tokenizer {
    /// Does it.
    pub fn run(&self) -> Result<Outcome> {
        match &self.command {
            Command::Train { inputs, vocab_size, unwrap, out } => train(inputs, *vocab_size, *unwrap, out),
            Command::Encode { tokenizer, text } => {
                let tokenizer = load(tokenizer)?;
                let text = if text == "-" { stdin()? } else { text.clone() };
                let ids: Vec<String> = tokenizer.encode(&text).iter().map(u32::to_string).collect();
                say(ids.join(" "))?;
                Ok(Outcome::Done)
            }
            Command::Decode { tokenizer, ids } => {
                let tokenizer = load(tokenizer)?;
                if let Some(id) = ids.iter().find(|i| **i as usize >= tokenizer.vocab_size()) {
                    bail!("no such id: {id}: the vocabulary has {} entries", tokenizer.vocab_size());
                }
                say(tokenizer.decode(ids))?;
                Ok(Outcome::Done)
            }
        }
    }
}

fn train(inputs: &[PathBuf], vocab_size: usize, unwrap: bool, out: &Path) -> Result<Outcome> {
    writable(out)?;
    let mut texts = Vec::new();
    let mut joiner = Unwrap::default();
    for piece in Reader::open(inputs)? {
        let text = piece?.text;
        let mut joined = String::new();
        if unwrap {
            joiner.push(&text, &mut joined);
        }
        texts.push(if unwrap { joined } else { text });
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    let tokenizer = text::Tokenizer::train(texts.into_iter(), vocab_size)?;
    atomic_write(&RealIo, out, PUBLIC, &tokenizer.to_json())?;
    note(format_args!("{}: {} entries from {} bytes", out.display(), tokenizer.vocab_size(), commas(bytes as u64)));
    Ok(Outcome::Done)
}

/// The tokenizer of a file or of a model folder.
pub fn load(path: &Path) -> Result<text::Tokenizer> {
    let found = || models::find(path).with_context(|| format!("no such tokenizer: {}", path.display()));
    let mut path = if path.is_file() { path.to_path_buf() } else { found()? };
    if path.extension().is_some_and(|e| e == "gguf") {
        return Ok(infini::pretrained::gguf_tokenizer(&path)?);
    }
    if path.is_dir() {
        path.push("tokenizer.json");
    }
    let json = std::fs::read(&path).with_context(|| format!("cannot read: {}", path.display()))?;
    text::Tokenizer::from_bytes(&json).with_context(|| path.display().to_string())
}

fn stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read: stdin")?;
    Ok(text)
}
