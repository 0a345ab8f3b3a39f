//! A run and its folder: configuration, model, metrics, checkpoints; stopping and resuming.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::carry::Carry;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory::{Estimate, estimate};
use crate::metrics::{Metrics, Row};
use crate::trainer::{Counts, Step, Trainer};
use infini::config::{ModelConfig, SUMMARIES};
use infini::folder;
use infini::tasks::{self, DataConfig};
use infini::text::Tokenizer;
use infini::weights::Weights;
use infini_format::checkpoint;
use infini_format::io::{PUBLIC, RealIo, atomic_write, read};
use infini_format::limits;
use infini_format::tensors::{Dtype, Tensor, TensorFile, serialize};

/// Whether a checkpoint in the run folder is gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// If there is one.
    Auto,
    /// No: what the folder holds of an earlier run is replaced.
    Never,
}

/// Where and how to run.
#[derive(Debug)]
pub struct Options<'a> {
    /// The run folder.
    pub out: &'a Path,
    /// Folder of books, `--data`.
    pub data_dir: Option<&'a Path>,
    /// Whether to go on from a checkpoint.
    pub resume: Resume,
    /// The device, without autodiff.
    pub device: Device,
    /// Set from outside (a signal handler) to save and stop after the current step.
    pub stop: &'a AtomicBool,
}

/// What a run tells while it goes.
#[derive(Debug)]
pub enum Event<'a> {
    /// Before the first step.
    Start {
        /// Numbers in the model.
        parameters: usize,
        /// Expected memory.
        memory: Estimate,
        /// Step that the run goes on from.
        resumed: Option<u64>,
        /// A damaged checkpoint that was passed over.
        warning: Option<String>,
    },
    /// After every step.
    Step(Progress<'a>),
    /// After a checkpoint; the model folder is then of that step too.
    Saved {
        /// Steps taken.
        step: u64,
    },
}

/// After a step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// What it did; gate statistics only at every `train.log_every` steps.
    pub step: &'a Step,
    /// Steps of the run.
    pub steps: u64,
    /// Speed over the last steps.
    pub tokens_per_second: f64,
    /// Expected seconds to the end.
    pub eta: f64,
    /// Skipped steps so far.
    pub skipped: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps taken.
    pub step: u64,
    /// Whether that is all of them; if not, the run was stopped and can be gone on with.
    pub finished: bool,
    /// The last step's report; `None` if no step was left to take.
    pub last: Option<Step>,
    /// Skipped steps.
    pub skipped: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, those before a resume included.
    pub seconds: f64,
}

/// The part of a checkpoint that is no tensor.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    counts: Counts,
    seconds: f64,
    metrics: [u64; 3],
    config: String,
    tokenizer: String,
    /// What stands for the data, if they are more than the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

/// Trains as `config` says, in a folder that holds `config.toml`, `metrics.csv`, `metrics.jsonl`,
/// TensorBoard events, `checkpoint/`, and, from the first checkpoint on, a model folder.
///
/// # Errors
/// A configuration, task or tokenizer that is refused; the disk's errors; a checkpoint of another run;
/// [`Error::NotFinite`].
pub fn train(config: &Config, options: &Options, progress: &mut dyn FnMut(Event)) -> Result<Summary> {
    config.check()?;
    let out = options.out;
    std::fs::create_dir_all(out)
        .map_err(|e| Error::File(format!("cannot make the run folder: {}: {e}", out.display())))?;
    let dir = out.join("checkpoint");
    if options.resume == Resume::Never && dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(|e| Error::File(format!("cannot replace: {}: {e}", dir.display())))?;
    }
    let loaded = checkpoint::load(&RealIo, &dir).map_err(Error::file)?;
    let saved = loaded.as_ref().map(|l| read_state(config, out, l)).transpose()?;

    let model = &config.model;
    let init = config
        .train
        .init
        .as_deref()
        .filter(|_| saved.is_none())
        .map(|dir| read_init(model, dir, config.train.seed))
        .transpose()?;
    // a resumed run keeps the tokenizer it began with, whatever has become of the texts it was made from
    let tokenizer = match (&saved, &init) {
        (Some((saved, ..)), _) => Tokenizer::from_bytes(saved.tokenizer.as_bytes())?,
        (None, Some((_, json))) if !names_tokenizer(&config.data) => Tokenizer::from_bytes(json)?,
        _ => config.data.tokenizer(options.data_dir, model.vocab_size)?,
    };
    if tokenizer.vocab_size() > model.vocab_size {
        let why = format!("{} is below the {} entries of the tokenizer", model.vocab_size, tokenizer.vocab_size());
        return Err(infini::Error::Config { field: "model.vocab_size".into(), why }.into());
    }
    let task = tasks::build(&config.data, options.data_dir, &tokenizer, model.infini.segment_len, model.infini.span)?;
    let data = task.identity();
    if saved.as_ref().is_some_and(|(s, ..)| s.data != data) {
        let why = "the data are other ones than those it began with: put them back, or choose another folder".into();
        return Err(Error::Resume { path: out.display().to_string(), why });
    }
    let fresh = || Weights::init(model, config.train.seed);
    let mut trainer = Trainer::new(config, &init.map_or_else(fresh, |(w, _)| w), task, &options.device)?;
    let mut before = 0.0;
    let lengths = saved.as_ref().map(|(s, ..)| s.metrics);
    let resumed = saved.as_ref().map(|(s, ..)| s.counts.step);
    if let Some((saved, weights, moments, carry)) = saved {
        // the last run may have died between the checkpoint and the model folder
        folder::save(out, model, &weights, saved.tokenizer.as_bytes(), Dtype::F32)?;
        before = saved.seconds;
        trainer.restore(&weights, moments, saved.counts, carry);
    }
    write(&out.join("config.toml"), config.to_toml().as_bytes())?;
    let mut run = Run {
        config,
        data,
        tokenizer: String::from_utf8_lossy(&tokenizer.to_json()).into_owned(),
        metrics: Metrics::open(out, lengths)?,
        dir,
        out,
        trainer,
        start: Instant::now(),
        before,
    };
    progress(Event::Start {
        parameters: run.trainer.parameters().leaves().iter().map(|l| l.shape.iter().product::<usize>()).sum(),
        memory: estimate(config),
        resumed,
        warning: loaded.and_then(|l| l.warning),
    });
    run.steps(options.stop, progress)
}

struct Run<'a> {
    config: &'a Config,
    data: Option<String>,
    tokenizer: String,
    metrics: Metrics,
    dir: PathBuf,
    out: &'a Path,
    trainer: Trainer,
    start: Instant,
    before: f64,
}

impl Run<'_> {
    fn steps(&mut self, stop: &AtomicBool, progress: &mut dyn FnMut(Event)) -> Result<Summary> {
        let c = &self.config.train;
        let mut last = None;
        let mut speed = Speed::new();
        let mut row = (Instant::now(), self.trainer.counts().tokens);
        let mut unsaved = false;
        while self.trainer.counts().step < c.steps && !stop.load(Ordering::Relaxed) {
            let number = self.trainer.counts().step + 1;
            let logged = number.is_multiple_of(c.log_every) || number == c.steps;
            let step = self.trainer.step(logged)?;
            unsaved = true;
            let counts = self.trainer.counts();
            if logged || step.skipped.is_some() {
                let tokens_per_second = (counts.tokens - row.1) as f64 / row.0.elapsed().as_secs_f64().max(1e-9);
                row = (Instant::now(), counts.tokens);
                let (seconds, skipped) = (self.seconds(), counts.skipped);
                self.metrics.write(&Row { step: &step, tokens: counts.tokens, tokens_per_second, seconds, skipped })?;
            }
            let tokens_per_second = speed.update(step.tokens);
            let left: u64 = remaining(self.config, counts.step);
            let eta = left as f64 / tokens_per_second;
            progress(Event::Step(Progress {
                step: &step,
                steps: c.steps,
                tokens_per_second,
                eta,
                skipped: counts.skipped,
            }));
            last = Some(step);
            if counts.step.is_multiple_of(c.checkpoint_every) && counts.step < c.steps {
                self.save(progress)?;
                unsaved = false;
            }
        }
        if unsaved {
            self.save(progress)?;
        }
        let counts = self.trainer.counts();
        Ok(Summary {
            step: counts.step,
            finished: counts.step >= c.steps,
            last,
            skipped: counts.skipped,
            tokens: counts.tokens,
            seconds: self.seconds(),
        })
    }

    fn seconds(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    /// The checkpoint, then the model folder of the same step.
    fn save(&mut self, progress: &mut dyn FnMut(Event)) -> Result<()> {
        let counts = self.trainer.counts();
        let model = &self.config.model;
        let saved = Saved {
            counts,
            seconds: self.seconds(),
            metrics: self.metrics.sync()?,
            config: self.config.to_toml(),
            tokenizer: self.tokenizer.clone(),
            data: self.data.clone(),
        };
        let weights = Weights::new(model, self.trainer.parameters().weights())?;
        let weight_bytes = folder::weight_bytes(model, &weights, Dtype::F32)?;
        let moment_bytes = moments_to_bytes(&self.trainer)?;
        let state = serde_json::to_vec_pretty(&saved).expect("a state is plain data");
        let mut parts: Vec<(&str, &[u8])> = vec![
            ("weights.safetensors", &weight_bytes),
            ("moments.safetensors", &moment_bytes),
            ("state.json", &state),
        ];
        let carry = self.trainer.carry().map(|c| c.to_bytes().map_err(Error::file)).transpose()?;
        if let Some(carry) = &carry {
            parts.push((CARRY, carry));
        }
        checkpoint::save(&RealIo, &self.dir, counts.step, &parts).map_err(Error::file)?;
        folder::save(self.out, model, &weights, self.tokenizer.as_bytes(), Dtype::F32)?;
        progress(Event::Saved { step: counts.step });
        Ok(())
    }
}

/// Weights and tokenizer of the model folder that a run begins with.
///
/// A memory that the folder's model has not begins with its first values, so that it can be added to a trained decoder.
fn read_init(model: &ModelConfig, dir: &Path, seed: u64) -> Result<(Weights, Vec<u8>)> {
    let read = |name: &str| read(&RealIo, &dir.join(name), limits::TENSORS.file_bytes).map_err(Error::file);
    let fresh = Weights::init(model, seed);
    let mut memory = |name: &str| {
        let added = name.contains(".self_attn.infini.") && !name.ends_with(".conv.weight");
        (added || name == SUMMARIES).then(|| fresh.get(name).to_vec())
    };
    let weights = folder::parse_weights_with(model, read("model.safetensors")?, &mut memory);
    let weights = weights.map_err(|e| {
        let why = format!("{}: {e}: [model] and [infini] must be those of the folder", dir.display());
        infini::Error::Config { field: "train.init".into(), why }
    })?;
    Ok((weights, read("tokenizer.json")?))
}

fn names_tokenizer(data: &DataConfig) -> bool {
    match data {
        DataConfig::Passkey(c) => c.tokenizer.is_some(),
        DataConfig::Text(c) => c.tokenizer.is_some(),
        DataConfig::Documents(_) => true,
        DataConfig::Mqar(_) => false,
    }
}

/// Tokens of the steps after `step`.
fn remaining(config: &Config, step: u64) -> u64 {
    let c = &config.train;
    let (mut from, mut tokens) = (step, 0u64);
    let mut end = 0;
    for s in &c.curriculum {
        end += s.steps;
        let steps = end.min(c.steps).saturating_sub(from);
        tokens += steps * (s.batch * s.tokens) as u64;
        from += steps;
    }
    let (batch, len) = c.stage(c.steps);
    (tokens + (c.steps - from) * (batch * len) as u64) * c.accumulate as u64
}

/// Tokens per second, the last steps weighing most.
struct Speed {
    last: Instant,
    rate: Option<f64>,
}

impl Speed {
    fn new() -> Self {
        Speed { last: Instant::now(), rate: None }
    }

    fn update(&mut self, tokens: u64) -> f64 {
        let now = tokens as f64 / self.last.elapsed().as_secs_f64().max(1e-9);
        self.last = Instant::now();
        let rate = self.rate.map_or(now, |r| 0.9 * r + 0.1 * now);
        self.rate = Some(rate);
        rate
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic_write(&RealIo, path, PUBLIC, bytes).map_err(Error::file)
}

type Restored = (Saved, Weights, Vec<[Vec<f32>; 2]>, Option<Carry>);

/// The checkpoint's part that holds what rows carry from step to step.
const CARRY: &str = "carry.safetensors";

/// What a checkpoint holds, if it is of this configuration; the length of the run and the intervals of
/// saving and logging may differ.
fn read_state(config: &Config, out: &Path, loaded: &checkpoint::Loaded) -> Result<Restored> {
    let refuse = |why: String| Error::Resume { path: out.display().to_string(), why };
    let part = |name: &str| loaded.parts.get(name).ok_or_else(|| refuse(format!("the checkpoint has no {name}")));
    let saved: Saved = serde_json::from_slice(part("state.json")?).map_err(|e| refuse(format!("state.json: {e}")))?;
    let mut old = Config::parse(&saved.config, &[])?;
    (old.train.steps, old.train.checkpoint_every, old.train.log_every) =
        (config.train.steps, config.train.checkpoint_every, config.train.log_every);
    if old != *config {
        let (old, new) = (old.to_toml(), config.to_toml());
        let line = old.lines().find(|l| !new.lines().any(|n| n == *l)).unwrap_or_default();
        let why = format!(
            "its checkpoint was made with another configuration ({line}): choose another folder or resume never"
        );
        return Err(refuse(why));
    }
    let weights = folder::parse_weights(&config.model, part("weights.safetensors")?.clone())?;
    let moments = moments_from_bytes(&config.model, part("moments.safetensors")?.clone()).map_err(refuse)?;
    let carry = loaded.parts.get(CARRY).map(|bytes| Carry::from_bytes(&config.model, bytes.clone()));
    let carry = carry.transpose().map_err(|e| refuse(format!("{CARRY}: {e}")))?;
    Ok((saved, weights, moments, carry))
}

const MOMENTS: [&str; 2] = ["mean", "square"];

fn moments_to_bytes(trainer: &Trainer) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for (leaf, moments) in trainer.parameters().leaves().iter().zip(trainer.moments()) {
        for (kind, values) in MOMENTS.iter().zip(moments.to_vecs()) {
            let tensor = Tensor::f32(&leaf.shape, &values).map_err(Error::file)?;
            tensors.push((format!("{}.{kind}", leaf.name), tensor));
        }
    }
    let views: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    serialize(&views, &Default::default()).map_err(Error::file)
}

fn moments_from_bytes(model: &ModelConfig, bytes: Vec<u8>) -> Result<Vec<[Vec<f32>; 2]>, String> {
    let file = TensorFile::parse(bytes).map_err(|e| e.to_string())?;
    let one = |name: String, shape: &[usize]| {
        let view = file.get(&name).map_err(|e| e.to_string())?;
        if view.shape != shape {
            return Err(format!("moment {name} has shape {:?}, the model says {shape:?}", view.shape));
        }
        view.to_f32().map_err(|e| e.to_string())
    };
    let both = |p: infini::config::Parameter| {
        let [mean, square] = MOMENTS.map(|kind| one(format!("{}.{kind}", p.name), &p.shape));
        Ok([mean?, square?])
    };
    model.parameters().into_iter().map(both).collect()
}
