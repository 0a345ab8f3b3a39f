//! `infini eval`: how much is recalled, with confidence intervals.

mod mqar;
mod passkey;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::console::Outcome;

/// Measure recall
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini eval passkey --lengths 4096,32768 --depths 0,0.5,1 --samples 20
  infini eval mqar --model runs/mqar")]
pub struct Eval {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    Passkey(passkey::Passkey),
    Mqar(mqar::Mqar),
}

impl Eval {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        match &self.task {
            Task::Passkey(t) => t.run(),
            Task::Mqar(t) => t.run(),
        }
    }
}
