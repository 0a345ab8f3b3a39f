//! Whole models: training steps, forward passes, decoding.

use std::time::Duration;

use anyhow::Result;
use infini::Weights;
use infini::config::ModelConfig;
use infini::generate::argmax;
use infini::model::{Model, Want};
use infini::tasks::{Batch, DataConfig, Task};
use infini_train::config::TrainConfig;
use infini_train::{Config, Device, Trainer};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::cases::{Case, Work, forward_flops, parameters};
use super::clock::{Limits, Times};
use super::verify;
use crate::console::Table;

const BUDGET: Duration = Duration::from_secs(5);

/// A model that has learned nothing: speed does not depend on what it knows.
pub fn fresh(config: &ModelConfig) -> Model {
    Model::new(config.clone(), Weights::init(config, 1)).expect("a configuration that was checked")
}

/// The model of a case.
fn model(case: &Case) -> Model {
    let mut weights = Weights::init(&case.model, 1);
    if case.bytes == 2 {
        weights.round_to_bf16();
    }
    Model::new(case.model.clone(), weights).expect("a configuration that was checked")
}

/// Scattered tokens, the same every time: those of positions `first..first + n`.
pub fn tokens(vocab: usize, first: u64, n: usize) -> Vec<u32> {
    // multiplicative hashing
    let token = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % vocab as u64;
    (first..first + n as u64).map(|i| token(i) as u32).collect()
}

/// The same batch at every step: nothing but the step itself takes time.
struct Scattered {
    vocab: usize,
}

impl Task for Scattered {
    fn name(&self) -> &'static str {
        "bench"
    }

    fn min_tokens(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn batch(&self, _: &mut ChaCha8Rng, batch: usize, len: usize) -> Batch {
        let n = batch * (len + 1);
        Batch { tokens: tokens(self.vocab, 0, n), answer: vec![false; n], filler: vec![true; n], reset: None }
    }
}

/// The trainer that `infini train` runs, with the mean loss over all tokens.
pub fn trainer(model: &ModelConfig, weights: &Weights, batch: usize, tokens: usize) -> Trainer {
    let train = TrainConfig {
        steps: 1 << 20,
        batch,
        tokens,
        lr: 1e-3,
        gate_lr: 1e-3,
        weight_decay: 0.1,
        answer_loss: 0.0,
        token_loss: 1.0,
        ..TrainConfig::default()
    };
    let task = Scattered { vocab: model.vocab_size };
    let config = Config { model: model.clone(), data: DataConfig::default(), train };
    Trainer::new(&config, weights, Box::new(task), &Device::flex()).expect("a task that fits")
}

/// One repetition of a case, ready to be run.
pub fn start(case: &Case) -> Box<dyn FnMut()> {
    match case.work {
        Work::Train => {
            let (b, t) = (case.batch, case.tokens);
            let mut trainer = trainer(&case.model, &Weights::init(&case.model, 1), b, t);
            Box::new(move || {
                let step = trainer.step(false).expect("numbers that are finite");
                std::hint::black_box(step);
            })
        }
        _ => start_on(case, model(case)),
    }
}

/// One repetition of a case that reads or decodes, on this model.
///
/// # Panics
/// If the case trains.
pub fn start_on(case: &Case, model: Model) -> Box<dyn FnMut()> {
    let (b, t, vocab) = (case.batch, case.tokens, model.config().vocab_size);
    match case.work {
        Work::Train => panic!("a model that streams does not train"),
        Work::Forward | Work::Read => {
            let ids = tokens(vocab, 0, b * t);
            let want = if case.work == Work::Forward { Want::All } else { Want::Last };
            Box::new(move || {
                let mut state = model.state(b);
                std::hint::black_box(model.forward(&mut state, &ids, want));
            })
        }
        Work::Decode => Box::new(move || {
            let mut state = model.state(b);
            let mut next = vec![0; b];
            for _ in 0..t {
                let logits = model.forward(&mut state, &next, Want::Last);
                next = logits.chunks(vocab).map(argmax).collect();
            }
        }),
    }
}

/// Training steps and forward passes, with their share of the gemm peak.
pub fn run(cases: &[Case], limits: &Limits) -> Result<(Table, Vec<Value>)> {
    let mut table = Table::new(&["case", "parameters", "tokens", "ms", "best", "tok/s", "GFLOP/s", "of gemm peak"]);
    let mut rows = Vec::new();
    for case in cases {
        verify::model(&case.model)?;
        let times = Times::measure(BUDGET, start(case));
        let tokens = (case.batch * case.tokens) as f64;
        let (speed, flops) = (tokens / times.median, case.flops());
        let share = limits.of_gemm(flops, times.median);
        table.row(&[
            case.name.into(),
            format!("{:.2} M", parameters(&case.model) as f64 / 1e6),
            format!("{} × {}", case.batch, case.tokens),
            format!("{:.1}", times.median * 1e3),
            format!("{:.1}", times.best * 1e3),
            format!("{speed:.0}"),
            format!("{:.0}", flops / times.median / 1e9),
            format!("{:.0} %", share * 100.0),
        ]);
        rows.push(json!({
            "case": case.name, "parameters": parameters(&case.model), "batch": case.batch, "tokens": case.tokens,
            "seconds": times.median, "seconds_best": times.best, "tokens_per_second": speed, "flops": flops,
            "of_gemm_peak": share,
        }));
    }
    Ok((table, rows))
}

/// Decoding, with the share of the memory bandwidth that reading every weight once a token takes.
pub fn decode(cases: &[Case], limits: &Limits) -> Result<(Table, Vec<Value>)> {
    let mut table = Table::new(&["case", "weights", "µs/token", "best", "tok/s", "weights GB/s", "of memory read"]);
    let mut rows = Vec::new();
    for case in cases {
        verify::model(&case.model)?;
        let times = Times::measure(BUDGET, start(case));
        // half the operations of a token are one for each weight that it meets
        let bytes = case.bytes as f64 * forward_flops(&case.model, 1) / 2.0 * case.tokens as f64;
        let micros = |s: f64| format!("{:.1}", s / case.tokens as f64 * 1e6);
        let (speed, share) = (case.tokens as f64 / times.median, limits.of_memory(bytes, times.median, true));
        table.row(&[
            case.name.into(),
            format!("{:.1} MB", bytes / case.tokens as f64 / 1e6),
            micros(times.median),
            micros(times.best),
            format!("{speed:.0}"),
            format!("{:.1}", bytes / times.median / 1e9),
            format!("{:.0} %", share * 100.0),
        ]);
        rows.push(json!({
            "case": case.name, "seconds_per_token": times.median / case.tokens as f64, "tokens_per_second": speed,
            "weight_bytes": bytes / case.tokens as f64, "of_memory_read": share,
        }));
    }
    Ok((table, rows))
}
