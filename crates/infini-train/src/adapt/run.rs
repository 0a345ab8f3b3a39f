//! A run and its folder: the pool, the steps, checkpoints, metrics and the adapter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use infini::config::ModelConfig;
use infini::eval::Count;
use infini::folder::Loaded;
use infini::tasks::wording::answer;
use infini_format::checkpoint;
use infini_format::io::{PUBLIC, RealIo, atomic_write};
use serde::{Deserialize, Serialize};

use super::config::AdaptConfig;
use super::stages::{Report, Stages};
use super::{facts, pool};
use crate::error::{Error, Result};
use crate::trainer::MAX_SKIPPED;

/// Where and how to run.
pub struct AdaptOptions<'a> {
    /// The run folder.
    pub out: &'a Path,
    /// Folder of books, `--data`.
    pub data_dir: Option<&'a Path>,
    /// The device, without autodiff.
    pub device: Device,
    /// Asked between steps: whether to save and stop.
    pub stop: &'a dyn Fn() -> bool,
}

/// What a run tells while it goes.
#[derive(Debug)]
pub enum AdaptEvent<'a> {
    /// Documents whose frozen layers are computed.
    Pool {
        /// So many are there.
        done: usize,
        /// So many there will be.
        of: usize,
    },
    /// Before the first step.
    Start {
        /// Numbers that are learned.
        numbers: usize,
        /// The step that the run goes on from.
        step: u64,
        /// Steps of all stages.
        of: u64,
    },
    /// After a step.
    Step {
        /// What it did.
        report: &'a Report,
    },
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct AdaptSummary {
    /// Whether the adapter is finished; if not, the run was stopped and can be gone on with.
    pub finished: bool,
    /// Steps taken.
    pub steps: u64,
    /// Seconds of steps, those before a resume included, the pool's not.
    pub seconds: f64,
    /// Answers of held-out documents by what makes them hard, and their tokens; see [`Stages::held_out`].
    pub held_out: BTreeMap<&'static str, Count>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    step: u64,
    seconds: f64,
    in_a_row: u32,
    config: AdaptConfig,
    metrics: String,
}

/// Bytes that an adaptation needs: the model, its upper layers and the pool once more, the activations of a step.
pub fn expected_memory(config: &AdaptConfig, base: &ModelConfig) -> u64 {
    let numbers: usize = base.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let (d, s, u) = (base.hidden_size, config.adapter.segment_len, config.data.tail + 1);
    let document = (config.data.segments + 1) * s * d + 2 * config.data.tails * u * d;
    let rows = config.train.batch[2] * u;
    let layers = base.num_hidden_layers.saturating_sub(config.adapter.layer);
    let step = rows * layers * (8 * d + 4 * base.intermediate_size) + 12 * 64 * 3 * base.vocab_size;
    4 * (2 * numbers + config.data.documents * document + step) as u64
}

/// Adapts `base` as `config` says, in a folder that then holds `adapter.safetensors`, `config.toml` with every default,
/// `metrics.jsonl`, `checkpoint/` and `pool/`.
///
/// # Errors
/// A configuration that does not fit the base, the disk's errors, a checkpoint or pool of another run, and
/// [`Error::NotFinite`].
pub fn adapt(
    config: &AdaptConfig,
    mut base: Loaded,
    options: &AdaptOptions,
    progress: &mut dyn FnMut(AdaptEvent),
) -> Result<AdaptSummary> {
    config.check()?;
    config.adapter.check(base.model.config())?;
    base.model.narrow(config.adapter.window())?;
    let out = options.out;
    let dir = out.join("pool");
    let unfinished =
        |steps: u64, seconds: f64| AdaptSummary { finished: false, steps, seconds, held_out: BTreeMap::new() };
    let built = pool::build(config, &base, options.data_dir, &dir, options.stop, &mut |done, of| {
        progress(AdaptEvent::Pool { done, of });
    })?;
    if !built {
        return Ok(unfinished(0, 0.0));
    }
    let resolved = toml::to_string(config).expect("a configuration is plain data");
    atomic_write(&RealIo, &out.join("config.toml"), PUBLIC, resolved.as_bytes()).map_err(Error::file)?;
    let documents = pool::read(config, &base, &dir)?;
    // digits, a lone blank, a number nobody told, what else begins or ends a number
    let unknown = base.tokenizer.encode(&answer(None)).first().copied();
    let class = |id: u32| match base.tokenizer.decode(&[id]).as_str() {
        " " => 10,
        _ if Some(id) == unknown => 12,
        text => text.parse::<usize>().ok().filter(|d| *d < 10 && text.len() == 1).unwrap_or(11),
    };
    let vocabulary = base.model.config().vocab_size;
    let classes = match &config.data.facts {
        Some(_) => facts::classes(&documents, vocabulary),
        None => (0..vocabulary as u32).map(class).collect(),
    };
    let mut stages = match config.paper {
        Some(_) => Stages::paper_form(config, &base.model, documents, &options.device),
        None => Stages::new(config, &base.model, documents, classes, &options.device),
    };
    let checkpoints = out.join("checkpoint");
    let mut saved = Saved { step: 0, seconds: 0.0, in_a_row: 0, config: config.clone(), metrics: String::new() };
    if let Some(loaded) = checkpoint::load(&RealIo, &checkpoints).map_err(Error::file)? {
        let refuse = |why: &str| Error::Resume { path: out.display().to_string(), why: why.into() };
        let part = |name: &str| loaded.parts.get(name).ok_or_else(|| refuse(&format!("the checkpoint has no {name}")));
        saved = serde_json::from_slice(part("state.json")?).map_err(|e| refuse(&format!("state.json: {e}")))?;
        if saved.config != *config {
            return Err(refuse("its checkpoint was made with another configuration: choose another folder"));
        }
        stages.restore(part("learned.safetensors")?.clone())?;
    }
    let steps: u64 = config.train.steps.iter().sum();
    progress(AdaptEvent::Start { numbers: stages.leaves().numbers(), step: saved.step, of: steps });
    let (start, before) = (Instant::now(), saved.seconds);
    let save = |stages: &Stages, saved: &Saved| -> Result<()> {
        let state = serde_json::to_vec_pretty(saved).expect("a state is plain data");
        let learned = stages.leaves().to_bytes()?;
        let parts: [(&str, &[u8]); 2] = [("learned.safetensors", &learned), ("state.json", &state)];
        checkpoint::save(&RealIo, &checkpoints, saved.step, &parts).map_err(Error::file)?;
        atomic_write(&RealIo, &out.join("metrics.jsonl"), PUBLIC, saved.metrics.as_bytes()).map_err(Error::file)
    };
    while saved.step < steps {
        let report = stages.step(saved.step);
        saved.in_a_row = if report.skipped.is_some() { saved.in_a_row + 1 } else { 0 };
        if saved.in_a_row >= MAX_SKIPPED {
            let what = report.skipped.unwrap_or_default();
            return Err(Error::NotFinite { step: saved.step, what, count: MAX_SKIPPED });
        }
        saved.step += 1;
        saved.seconds = before + start.elapsed().as_secs_f64();
        if saved.step.is_multiple_of(config.train.log_every) || saved.step == steps || report.skipped.is_some() {
            let line = serde_json::json!({
                "step": report.step, "stage": report.stage + 1, "answer_loss": report.answer_loss,
                "answer_accuracy": report.answer_accuracy(), "divergence": report.divergence,
                "written_keys": report.written[0], "written_others": report.written[1],
                "read_answers": report.read[0], "read_others": report.read[1], "together": report.together,
                "skipped": report.skipped, "seconds": saved.seconds,
            });
            writeln!(saved.metrics, "{line}").expect("a text grows");
        }
        progress(AdaptEvent::Step { report: &report });
        let stop = (options.stop)();
        if stop || saved.step.is_multiple_of(config.train.checkpoint_every) || saved.step == steps {
            save(&stages, &saved)?;
            stages.save(&base.identity.weights, &out.join("adapter.safetensors"))?;
        }
        if stop && saved.step < steps {
            return Ok(unfinished(saved.step, saved.seconds));
        }
    }
    let held_out = stages.held_out(2);
    Ok(AdaptSummary { finished: true, steps, seconds: saved.seconds, held_out })
}
