//! `infini eval copy`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use infini::eval::copy::{Options, run};
use infini::state::Reads;
use serde_json::json;

use super::documents::Data;
use crate::console::{Outcome, Table, commas, say};
use crate::models;
use crate::progress::Progress;
use crate::report::JsonFlag;

/// Copying: a passage of 32 tokens, a gap of other text, the same passage again
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini eval copy --model runs/books --data book.txt --gaps 0,64,512,4096")]
pub struct Copy {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    data: Data,
    /// Tokens between the two passages
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [0, 64, 512, 4096])]
    gaps: Vec<usize>,
    /// Passages per gap
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Memory reads give zero
    #[arg(long)]
    knock_out: bool,
    /// Inputs read side by side
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Draws other passages
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: JsonFlag,
}

impl Copy {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let loaded = models::load(&models::find(&self.model)?)?;
        let documents = self.data.read(&loaded.tokenizer)?;
        let options = Options {
            gaps: self.gaps.clone(),
            samples: self.samples as usize,
            batch: self.batch as usize,
            reads: if self.knock_out { Reads::Nothing } else { Reads::Own },
            seed: self.seed,
        };
        let mut progress = Progress::new("copying", "passages", None);
        let rows = run(&loaded.model, &documents, &options, &mut |done, total| {
            progress.total(total);
            progress.set(done);
        })?;
        drop(progress);
        let mut table = Table::new(&["gap", "n", "first", "second", "saved"]);
        for r in &rows {
            let nats = |x: f64| format!("{x:.3}");
            let gap = commas(r.gap as u64);
            table.row(&[gap, commas(r.n as u64), nats(r.first), nats(r.second), format!("{:+.3}", r.first - r.second)]);
        }
        if !self.json.on_stdout() {
            say(table)?;
        }
        let (seed, out) = (self.seed, self.knock_out);
        self.json.write(json!({ "model": self.model, "seed": seed, "knock_out": out, "rows": rows }))?;
        Ok(Outcome::Done)
    }
}
