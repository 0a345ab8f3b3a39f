//! `infini eval`: how much is recalled, with confidence intervals, and how well texts are predicted.

mod babi;
mod copy;
mod documents;
mod long;
mod mqar;
mod passkey;
mod perplexity;
mod ruler;
mod subject;
mod summarize;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::console::Outcome;

/// Measure recall and perplexity
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini eval passkey --lengths 4096,32768 --depths 0,0.5,1 --samples 20
  infini eval ruler --model smollm2 --lengths 1024,4096
  infini eval babi --model smollm2 --data babi --lengths 0,1024
  infini eval mqar --model runs/mqar
  infini eval perplexity --model runs/books --data book.txt --by-position
  infini eval copy --model runs/books --data book.txt
  infini eval summarize --model smollm2 --data squality/dev.jsonl --limit 10")]
pub struct Eval {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    Passkey(passkey::Passkey),
    Ruler(ruler::Ruler),
    Babi(babi::Babi),
    Mqar(mqar::Mqar),
    Perplexity(perplexity::Perplexity),
    Copy(copy::Copy),
    Summarize(summarize::Summarize),
}

impl Eval {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        match &self.task {
            Task::Passkey(t) => t.run(),
            Task::Ruler(t) => t.run(),
            Task::Babi(t) => t.run(),
            Task::Mqar(t) => t.run(),
            Task::Perplexity(t) => t.run(),
            Task::Copy(t) => t.run(),
            Task::Summarize(t) => t.run(),
        }
    }
}
