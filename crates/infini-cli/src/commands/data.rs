//! `infini data`: texts into what training reads.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use infini::corpus::{self, Event, Options, SHARD_TOKENS, sources};
use serde_json::json;

use crate::commands::tokenizer;
use crate::console::{Outcome, commas, note, say, seconds};
use crate::progress::Progress;
use crate::report::JsonFlag;
use crate::signals::Interrupt;

/// Prepare texts for training
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini tokenizer train books/ --vocab-size 4096 --unwrap --out tokenizer.json
  infini data prepare books/ --tokenizer tokenizer.json --unwrap --out shards")]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Prepare(Prepare),
}

/// Encode documents into token shards
#[derive(Args, Debug)]
#[command(
    long_about = "Encode documents into token shards

Every file is a document and stays whole. Texts are read in pieces, so that corpora of any size take constant memory. Files \
that are empty or no text are named and passed over, bytes that are no characters are named and become U+FFFD. Ctrl-C \
stops; the same command goes on after the last whole shard.",
    after_help = "Examples:
  infini data prepare books/ --tokenizer tokenizer.json --out shards
  infini data prepare a.txt b.epub --tokenizer tokenizer.json --unwrap --out shards
  zcat corpus.gz | infini data prepare - --tokenizer tokenizer.json --out shards"
)]
struct Prepare {
    /// Files, folders, or - for stdin as one document
    #[arg(required = true, value_name = "FILE|DIR|-")]
    inputs: Vec<PathBuf>,
    /// A tokenizer.json or a model folder
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: PathBuf,
    /// Folder of the shards
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Join hard-wrapped lines: single line ends become blanks
    #[arg(long)]
    unwrap: bool,
    /// Tokens of a shard
    #[arg(long, value_name = "N", default_value_t = SHARD_TOKENS, value_parser = clap::value_parser!(u64).range(1..))]
    shard_tokens: u64,
    #[command(flatten)]
    json: JsonFlag,
}

impl Data {
    /// Does it.
    pub fn run(&self) -> Result<Outcome> {
        match &self.command {
            Command::Prepare(p) => p.run(),
        }
    }
}

impl Prepare {
    fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        crate::report::writable(&self.out)?;
        let tokenizer = tokenizer::load(&self.tokenizer)?;
        let inputs = sources(&self.inputs)?;
        let stop = Interrupt::install()?.flag();
        let options =
            Options { tokenizer: &tokenizer, unwrap: self.unwrap, shard_tokens: self.shard_tokens, stop: &stop };
        let total = inputs.iter().map(|s| s.size).try_fold(0u64, |n, size| n.checked_add(size?));
        let mut progress = Progress::new("preparing", "bytes", total);
        let start = Instant::now();
        let sum = corpus::prepare(&inputs, &self.out, &options, &mut |event| match event {
            Event::Resumed { documents, tokens } => note(format_args!(
                "going on in {} after {} documents and {} tokens",
                self.out.display(),
                commas(documents),
                commas(tokens)
            )),
            Event::Note(words) => note(words),
            Event::Progress { bytes, tokens } => {
                progress.extra(format!("{} tokens", commas(tokens)));
                progress.set(bytes);
            }
        })?;
        drop(progress);
        if !sum.finished {
            bail!("interrupted: {}: the same command goes on after the last whole shard", self.out.display());
        }
        self.report(&sum, start.elapsed().as_secs_f64())?;
        Ok(Outcome::Done)
    }

    fn report(&self, sum: &corpus::Summary, secs: f64) -> Result<()> {
        if !self.json.on_stdout() {
            let out: &Path = &self.out;
            say(format_args!(
                "{}: {} documents, {} tokens from {} bytes in {}; {} inputs passed over",
                out.display(),
                commas(sum.documents),
                commas(sum.tokens),
                commas(sum.bytes),
                seconds(secs),
                commas(sum.passed_over),
            ))?;
        }
        self.json.write(json!({
            "shards": self.out, "documents": sum.documents, "passed_over": sum.passed_over, "tokens": sum.tokens,
            "bytes": sum.bytes, "seconds": secs,
        }))
    }
}
