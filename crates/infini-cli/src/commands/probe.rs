//! `infini probe`: which heads of a model with full attention fetch by content.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use infini::eval::probe::{Options, run};
use infini::folder;
use infini::tasks::filler::Source;
use serde_json::json;

use crate::console::{Outcome, Table, say};
use crate::models;
use crate::progress::Progress;
use crate::report::JsonFlag;

/// Find the heads that fetch by content, and the layer for a memory
#[derive(Args, Debug)]
#[command(
    long_about = "Find the heads that fetch by content, and the layer for a memory

A key is told in filler and asked for at the end, under full attention. The table has the mean weight that each head \
gives, from the token before each digit of the answer, to the same digit of the key sentence. The lowest layer whose \
best head gives a quarter or more is proposed for `layer` of an adaptation.",
    after_help = "Examples:
  infini probe smollm2
  infini probe MODEL --length 1024 --samples 16 --json probe.json"
)]
pub struct Probe {
    /// The model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Tokens of a text, question and answer included
    #[arg(long, value_name = "N", default_value_t = 512)]
    length: usize,
    /// Texts
    #[arg(long, value_name = "N", default_value_t = 8)]
    samples: usize,
    /// What the key is hidden in: paper, prose or a text file
    #[arg(long, value_name = "paper|prose|FILE", default_value = "paper")]
    filler: Source,
    /// Draws other keys and places
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: JsonFlag,
}

impl Probe {
    /// Probes.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let loaded = folder::parts(&models::find(&self.model)?)?.build()?;
        let options =
            Options { length: self.length, samples: self.samples, filler: self.filler.clone(), seed: self.seed };
        let mut progress = Progress::new("probing", "texts", None);
        let report = run(&loaded.model, &loaded.tokenizer, &options, &mut |done, total| {
            progress.total(total);
            progress.set(done);
        })?;
        drop(progress);
        if !self.json.on_stdout() {
            let mut table = Table::new(&["layer", "best head", "its weight", "weights of all heads"]);
            for (l, heads) in report.weights.iter().enumerate() {
                let best = (0..heads.len()).max_by(|a, b| heads[*a].total_cmp(&heads[*b])).unwrap_or(0);
                let all: Vec<String> = heads.iter().map(|w| format!("{w:.2}")).collect();
                table.row(&[l.to_string(), best.to_string(), format!("{:.3}", heads[best]), all.join(" ")]);
            }
            say(table)?;
            say(match report.layer {
                Some(l) => format!("{} digits; a memory belongs into layer {l}: layer = {l}", report.digits),
                None => {
                    format!("{} digits; no head fetches them: this model does not copy from its context", report.digits)
                }
            })?;
        }
        self.json.write(json!({
            "model": self.model, "length": self.length, "samples": self.samples, "seed": self.seed,
            "digits": report.digits, "layer": report.layer, "weights": report.weights,
        }))?;
        Ok(Outcome::Done)
    }
}
