//! `infini adapt`: a memory for a pretrained model.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use infini::folder;
use infini_train::Device;
use infini_train::adapt::{AdaptConfig, AdaptEvent, AdaptOptions, adapt, expected_memory};
use infini_train::tally::{TallyRun, is_tally, learn};
use serde_json::json;

use crate::console::{Outcome, Table, bytes, commas, note, say, seconds};
use crate::models;
use crate::progress::Progress;
use crate::report::JsonFlag;
use crate::signals::Interrupt;

/// Give a pretrained model a memory
#[derive(Args, Debug)]
#[command(
    long_about = "Give a pretrained model a memory

The model stays as it is; what is learned goes into a small file, OUT/adapter.safetensors, that belongs to this model \
alone. OUT/pool keeps what the frozen lower layers make of the training documents. Ctrl-C saves first; the same \
command goes on.",
    after_help = "Examples:
  infini adapt smollm2 --config configs/adapt/keys.toml --data DATA --out runs/keys
  infini adapt smollm2 --config configs/adapt/paper.toml --data DATA --out runs/paper   the paper's own form
  infini adapt smollm2 --config configs/adapt/books.toml --data DATA --out runs/books   counts what followed what
  infini eval passkey --model smollm2 --adapter runs/keys/adapter.safetensors"
)]
pub struct Adapt {
    /// The model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// TOML with the sections [adapter] (or [tally]), [data] and [train]; [paper] for the paper's own form
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Folder of texts: DIR/train/*.txt
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Run folder [default: runs/ and the name of the configuration]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    json: JsonFlag,
}

impl Adapt {
    /// Adapts.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let path = self.config.display();
        let text = std::fs::read_to_string(&self.config).with_context(|| format!("cannot read: {path}"))?;
        let name = self.config.file_stem().unwrap_or(self.config.as_os_str());
        let out = self.out.clone().unwrap_or_else(|| Path::new("runs").join(name));
        if is_tally(&text) {
            return self.count(&TallyRun::parse(&text).with_context(|| path.to_string())?, &out);
        }
        let config = AdaptConfig::parse(&text).with_context(|| path.to_string())?;
        let loaded = folder::parts(&models::find(&self.model)?)?.build()?;
        note(format_args!("expected memory {}", bytes(expected_memory(&config, loaded.model.config()))));
        let stop = Interrupt::install()?.flag();
        let options = AdaptOptions {
            out: &out,
            data_dir: self.data.as_deref(),
            device: Device::flex(),
            stop: &|| stop.load(Ordering::Relaxed),
        };
        let mut pool = Progress::new("documents through the frozen layers", "documents", None);
        let mut steps: Option<Progress> = None;
        let summary = adapt(&config, loaded, &options, &mut |event| match event {
            AdaptEvent::Pool { done, of } => {
                pool.extra(format!("of {of}"));
                pool.set(done as u64);
            }
            AdaptEvent::Start { numbers, step, of } => {
                note(format_args!("{} numbers are learned", commas(numbers as u64)));
                let mut progress = Progress::new("adapting", "steps", Some(of));
                progress.begin_at(step);
                steps = Some(progress);
            }
            AdaptEvent::Step { report, .. } => {
                if let Some(what) = &report.skipped {
                    note(format_args!("warning: step {}: {what} is not finite: skipped", report.step));
                }
                if let Some(steps) = &mut steps {
                    steps.extra(report.describe());
                    steps.set(report.step + 1);
                }
            }
        })?;
        drop(steps);
        if !summary.finished {
            bail!("interrupted: {}: the same command goes on from there", out.display());
        }
        if !self.json.on_stdout() {
            let adapter = out.join("adapter.safetensors");
            let words =
                format!("{}: {} steps in {}", adapter.display(), commas(summary.steps), seconds(summary.seconds));
            let mut table = Table::new(&["held-out answers", "n", "right"]);
            for (what, count) in &summary.held_out {
                table.row(&[what.to_string(), commas(count.n), format!("{:.3}", count.rate())]);
            }
            say(format_args!("{words}\n\n{table}"))?;
        }
        let held_out: serde_json::Map<String, serde_json::Value> = (summary.held_out.iter())
            .map(|(what, count)| (what.to_string(), json!({ "n": count.n, "right": count.rate() })))
            .collect();
        self.json.write(json!({
            "adapter": out.join("adapter.safetensors"), "steps": summary.steps, "seconds": summary.seconds,
            "held_out": held_out,
        }))?;
        Ok(Outcome::Done)
    }

    /// Learns a counting memory.
    fn count(&self, run: &TallyRun, out: &Path) -> Result<Outcome> {
        let data = self.data.as_deref().context("a counting memory learns from books: give them with --data DIR")?;
        let path = out.join("adapter.safetensors");
        std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder: {}", out.display()))?;
        let loaded = folder::parts(&models::find(&self.model)?)?.build()?;
        let stop = Interrupt::install()?.flag();
        let learned = run.data.excerpts - run.data.held_out;
        let mut progress = Progress::new("reading books", "excerpts", Some(run.data.excerpts as u64));
        let (mut gain, mut rows) = (0.0, Vec::new());
        let start = Instant::now();
        let tally = learn(run, loaded, data, &|| stop.load(Ordering::Relaxed), &mut |e| {
            gain = if e.index == 0 { e.gain } else { 0.9 * gain + 0.1 * e.gain };
            let held_out = e.index >= learned;
            progress.extra(format!("window {:.3}, the memory wins {:.4} (lately {gain:.4})", e.loss, e.gain));
            progress.set(e.index as u64 + 1);
            rows.push(json!({
                "excerpt": e.index, "held_out": held_out, "before": format!("{:?}", e.before).to_lowercase(),
                "loss": e.loss, "gain": e.gain, "tokens": e.tokens,
            }));
        })?;
        drop(progress);
        let Some(tally) = tally else {
            bail!("interrupted: {}: nothing was written; the same command starts again", out.display());
        };
        tally.save(&path)?;
        let config = toml::to_string(run).context("cannot write the configuration")?;
        std::fs::write(out.join("config.toml"), config).with_context(|| format!("cannot write: {}", out.display()))?;
        let held_out: Vec<f64> = rows[learned..].iter().filter_map(|r| r["gain"].as_f64()).collect();
        let mean = held_out.iter().sum::<f64>() / held_out.len() as f64;
        let took = start.elapsed().as_secs_f64();
        if !self.json.on_stdout() {
            say(format_args!(
                "{}: {} excerpts in {}, {mean:.4} nats won on {} held out",
                path.display(),
                run.data.excerpts,
                seconds(took),
                held_out.len()
            ))?;
        }
        self.json.write(json!({ "adapter": path, "seconds": took, "held_out_gain": mean, "excerpts": rows }))?;
        Ok(Outcome::Done)
    }
}
