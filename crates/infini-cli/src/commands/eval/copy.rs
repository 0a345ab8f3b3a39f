//! `infini eval copy`.

use anyhow::Result;
use clap::Args;
use infini::eval::copy::{Options, run};
use serde_json::json;

use super::documents::Data;
use super::subject::Subject;
use crate::console::{Outcome, Table, commas, say};
use crate::progress::Progress;
use crate::report::JsonFlag;

/// Copying: a passage of 32 tokens, a gap of other text, the same passage again
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini eval copy --model runs/books --data book.txt --gaps 0,64,512,4096")]
pub struct Copy {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    data: Data,
    /// Tokens between the two passages
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [0, 64, 512, 4096])]
    gaps: Vec<usize>,
    /// Passages per gap
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
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
        let loaded = self.subject.load()?;
        let documents = self.data.read(&loaded.tokenizer)?;
        let options = Options {
            gaps: self.gaps.clone(),
            samples: self.samples as usize,
            batch: self.batch as usize,
            reads: self.subject.reads(),
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
        self.json.write(self.subject.describe(json!({ "seed": self.seed, "rows": rows })))?;
        Ok(Outcome::Done)
    }
}
