//! `infini eval mqar`.

use anyhow::Result;
use clap::Args;
use infini::eval::mqar::{Options, run};
use infini::tasks::MqarConfig;
use serde_json::json;

use super::subject::Subject;
use crate::console::{Outcome, Table, commas, say};
use crate::progress::Progress;
use crate::report::JsonFlag;

/// Multi-query associative recall: pairs of tokens first, then each key once more (of models trained on it)
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini eval mqar --model runs/mqar --lengths 512,4096 --pairs 16,64
  infini eval mqar --model runs/mqar --knock-out")]
pub struct Mqar {
    #[command(flatten)]
    subject: Subject,
    /// Tokens of the inputs
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [256, 1024])]
    lengths: Vec<usize>,
    /// Pairs in an input, each asked for once
    #[arg(long, value_name = "K,K", value_delimiter = ',', default_values_t = [16])]
    pairs: Vec<usize>,
    /// Inputs per length and number of pairs
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Tokens that are used [default: the model's vocabulary]
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Where keys are asked: from near 0, soon after the pairs, to 1, at any place alike
    #[arg(long, value_name = "A", default_value_t = 1.0)]
    power: f64,
    /// Inputs read side by side
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Draws other pairs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: JsonFlag,
}

impl Mqar {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let loaded = self.subject.load()?;
        let vocab_size = self.vocab_size.unwrap_or(loaded.model.config().vocab_size);
        let options = Options {
            task: MqarConfig { vocab_size, power: self.power, ..MqarConfig::default() },
            lengths: self.lengths.clone(),
            pairs: self.pairs.clone(),
            samples: self.samples as usize,
            batch: self.batch as usize,
            knock_out: self.subject.knock_out,
            seed: self.seed,
        };
        let mut progress = Progress::new("asking", "inputs", None);
        let rows = run(&loaded.model, &options, &mut |done, total| {
            progress.total(total);
            progress.set(done);
        })?;
        drop(progress);
        let state = loaded.model.state(1).size_bytes();
        let mut table =
            Table::new(&["length", "pairs", "n", "exact", "95 % interval", "beyond the window", "95 % interval", "n"]);
        for r in &rows {
            let interval = |[low, high]: [f64; 2]| format!("{low:.3} – {high:.3}");
            let n = |n: usize| commas(n as u64);
            let far = match r.beyond_n {
                0 => ["–".into(), "–".into(), "0".into()],
                n => [format!("{:.3}", r.beyond), interval(r.beyond_interval), commas(n)],
            };
            let near = [n(r.length), n(r.pairs), commas(r.n), format!("{:.3}", r.exact), interval(r.interval)];
            table.row(&[near.as_slice(), &far].concat());
        }
        if !self.json.on_stdout() {
            say(table)?;
        }
        let report = json!({ "seed": self.seed, "power": self.power, "state_bytes": state, "rows": rows });
        self.json.write(self.subject.describe(report))?;
        Ok(Outcome::Done)
    }
}
