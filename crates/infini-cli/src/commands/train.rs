//! `infini train`: a configuration into a model.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use infini_train::{Config, Device, Event, Options, Progress as Step, Resume, Summary, train};
use serde_json::json;

use crate::console::{Outcome, bytes, commas, note, say, seconds};
use crate::progress::Progress;
use crate::report::JsonFlag;
use crate::signals::Interrupt;

/// Train a configuration
#[derive(Args, Debug)]
#[command(
    long_about = "Train a configuration

The run folder holds config.toml (resolved), model.safetensors with config.json and tokenizer.json (a model folder), \
metrics.csv, metrics.jsonl, TensorBoard events and checkpoint/. Ctrl-C and SIGTERM save first; the same command goes on \
bit-identically, also after a crash.",
    after_help = "Examples:
  infini train --config configs/passkey/selective-linear.toml --data DATA
  infini train --config my.toml --set train.lr=1e-3 --set infini.rule=delta --out runs/delta
  infini train --config my.toml --set 'data.filler={ paper = 2, prose = 1 }'      no books needed
  infini train --config my.toml --resume never                                  begin again"
)]
pub struct Train {
    /// TOML with the sections [model], [infini], [data] and [train]
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key, e.g. train.steps=100 (may be given several times)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Run folder [default: runs/ and the name of the configuration]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of texts: DIR/train/*.txt
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Whether to go on from a checkpoint in the run folder
    #[arg(long, value_enum, default_value_t = ResumeFlag::Auto)]
    resume: ResumeFlag,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceFlag::Cpu)]
    device: DeviceFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum ResumeFlag {
    /// If there is one
    Auto,
    /// Begin again
    Never,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum DeviceFlag {
    /// This machine's processor
    Cpu,
}

impl DeviceFlag {
    fn device(self) -> Device {
        match self {
            DeviceFlag::Cpu => Device::flex(),
        }
    }
}

impl Train {
    /// Trains.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let path = self.config.display();
        let text = std::fs::read_to_string(&self.config).with_context(|| format!("cannot read: {path}"))?;
        let config = Config::parse(&text, &self.set).with_context(|| path.to_string())?;
        let name = self.config.file_stem().unwrap_or(self.config.as_os_str());
        let out = self.out.clone().unwrap_or_else(|| Path::new("runs").join(name));
        let stop = Interrupt::install()?.flag();
        let resume = match self.resume {
            ResumeFlag::Auto => Resume::Auto,
            ResumeFlag::Never => Resume::Never,
        };
        let options =
            Options { out: &out, data_dir: self.data.as_deref(), resume, device: self.device.device(), stop: &stop };
        let summary = watch(&config, &options)?;
        if !self.json.on_stdout() {
            say(describe(&summary, &out))?;
        }
        let last = summary.last.as_ref();
        self.json.write(json!({
            "model": out, "step": summary.step, "finished": summary.finished, "skipped": summary.skipped,
            "tokens": summary.tokens, "seconds": summary.seconds, "loss": last.map(|s| s.loss),
            "answer_accuracy": last.and_then(|s| s.answer_accuracy),
        }))?;
        if !summary.finished {
            bail!(
                "interrupted: {}: saved at step {}; the same command goes on from there",
                out.display(),
                summary.step
            );
        }
        Ok(Outcome::Done)
    }
}

/// The recipe on the paper's filler and generated prose, for `infini demo --train`.
const DEMO: &str = include_str!("../../../../configs/passkey/selective-linear.toml");

/// Trains the recipe's model in `runs/demo-SEED` and returns the folder; a finished one is taken as it is.
pub fn for_demo(seed: u64) -> Result<PathBuf> {
    let set = ["data.filler={ paper = 2, prose = 1 }".to_string(), format!("train.seed={seed}")];
    let config = Config::parse(DEMO, &set)?;
    let out = PathBuf::from(format!("runs/demo-{seed}"));
    let stop: std::sync::Arc<AtomicBool> = Interrupt::install()?.flag();
    let options = Options { out: &out, data_dir: None, resume: Resume::Auto, device: Device::flex(), stop: &stop };
    let summary = watch(&config, &options)?;
    note(describe(&summary, &out));
    if !summary.finished {
        bail!("interrupted: {}: the same command goes on with the training", out.display());
    }
    Ok(out)
}

/// Trains and shows how it goes.
fn watch(config: &Config, options: &Options) -> Result<Summary> {
    let mut progress = Progress::new("training", "steps", Some(config.train.steps));
    let mut gates = String::new();
    let summary = train(config, options, &mut |event| match event {
        Event::Start { parameters, memory, resumed, warning } => {
            if let Some(words) = warning {
                note(format_args!("warning: {words}"));
            }
            note(format_args!(
                "{} parameters; expected memory {}: weights {}, gradients {}, optimiser {}, activations {}",
                commas(parameters as u64),
                bytes(memory.total()),
                bytes(memory.weights),
                bytes(memory.gradients),
                bytes(memory.optimizer),
                bytes(memory.activations),
            ));
            if let Some(step) = resumed {
                note(format_args!("going on from step {step} in {}", options.out.display()));
                progress.begin_at(step);
            }
        }
        Event::Step(step) => {
            if let Some(what) = &step.step.skipped {
                note(format_args!("warning: step {}: {what} is not finite: skipped", step.step.step));
            }
            if !step.step.layers.is_empty() {
                gates = describe_gates(&step);
            }
            progress.extra(format!("{}{gates}", describe_step(&step)));
            progress.set(step.step.step + 1);
        }
        Event::Saved { .. } => {}
    })?;
    Ok(summary)
}

fn describe_step(p: &Step) -> String {
    let mut text = format!("loss {:.3}", p.step.loss);
    if let Some(accuracy) = p.step.answer_accuracy {
        text += &format!(", answers {:.1} %", 100.0 * accuracy);
    }
    text + &format!(", {} tokens/s", commas(p.tokens_per_second as u64))
}

/// Shares of tokens written and of the memory in the mix, per layer.
fn describe_gates(p: &Step) -> String {
    let list = |x: &[f32]| x.iter().map(|x| format!("{x:.3}")).collect::<Vec<_>>().join(" ");
    let mut text = String::new();
    for l in &p.step.layers {
        if !l.open.is_empty() {
            text += &format!(", layer {} writes {}", l.layer, list(&l.open));
        }
        if !l.gate.is_empty() {
            text += &format!(", reads {}", list(&l.gate));
        }
    }
    text
}

fn describe(s: &Summary, out: &Path) -> String {
    let mut text =
        format!("{}: {} steps, {} tokens, {}", out.display(), commas(s.step), commas(s.tokens), seconds(s.seconds));
    if let Some(last) = &s.last {
        text += &format!(", loss {:.4}", last.loss);
        if let Some(accuracy) = last.answer_accuracy {
            text += &format!(", answers {:.1} %", 100.0 * accuracy);
        }
    }
    if s.skipped > 0 {
        text += &format!(", {} steps skipped", s.skipped);
    }
    text
}
