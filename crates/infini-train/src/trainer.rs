//! One optimiser step after another; the run folder around it is [`run`](crate::run).

use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::carry::{self, Carry};
use crate::config::{Config, Penalty, PenaltyTokens};
use crate::decoder::{self, Gate};
use crate::error::{Error, Result};
use crate::ops::{Body, Gradient, Moments, Tokens, composed::softplus};
use crate::parameters::Parameters;
use crate::schedule;
use infini::config::{Group, ModelConfig};
use infini::tasks::{Batch, Task};
use infini::weights::Weights;
use infini_kernels::optim::{AdamW, clip_scale};

/// Steps without a finite loss and gradient, one after the other, that end a run.
pub const MAX_SKIPPED: u32 = 3;

/// Tokens times width of the rows that pass through the graph together, at most: what they leave for the backward
/// pass is most of a step's memory, and larger ones no longer fit the caches.
const PIECE: usize = 1 << 19;

/// A model in training.
pub struct Trainer {
    config: Config,
    task: Box<dyn Task>,
    body: Body,
    device: Device,
    parameters: Parameters,
    moments: Vec<Moments>,
    counts: Counts,
    /// What the rows have read, if they read on.
    carry: Option<Carry>,
    /// [`PIECE`].
    piece: usize,
}

/// Where a run stands. Data needs no state: the batches of step n are drawn from stream n of the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Steps taken, the skipped ones included.
    pub step: u64,
    /// Updates of the weights.
    pub updates: u64,
    /// Skipped steps.
    pub skipped: u64,
    /// Skipped steps directly before this one.
    pub in_a_row: u32,
    /// Tokens trained on.
    pub tokens: u64,
}

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The step's number, from 0.
    pub step: u64,
    /// What was minimised.
    pub loss: f64,
    /// Mean loss over answer tokens; `None` for tasks without answers.
    pub answer_loss: Option<f64>,
    /// Share of the answer tokens that the model would have said.
    pub answer_accuracy: Option<f64>,
    /// Mean loss over all tokens.
    pub token_loss: f64,
    /// The write penalty before its weight; `None` without write gates.
    pub penalty: Option<f64>,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the matrices.
    pub lr: f64,
    /// Tokens of the step.
    pub tokens: u64,
    /// The loss, or the first parameter whose gradient was not finite: the step was skipped.
    pub skipped: Option<String>,
    /// Write gates and mixes of the memory layers, where they were asked for.
    pub layers: Vec<LayerStats>,
}

/// The gates of one memory layer over the last rows of a step that passed through it together, per head.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LayerStats {
    /// Index of the layer.
    pub layer: usize,
    /// Mean write strength of each key/value head; empty if everything is written.
    pub write: Vec<f32>,
    /// Share of tokens that each key/value head writes at all.
    pub open: Vec<f32>,
    /// Mean share of the memory in each query head's output; empty if the memory is added.
    pub gate: Vec<f32>,
}

impl Trainer {
    /// A run from these weights.
    ///
    /// # Errors
    /// A task that does not fit the model or the lengths of the curriculum, by the field to change.
    pub fn new(config: &Config, weights: &Weights, task: Box<dyn Task>, device: &Device) -> Result<Trainer> {
        let bad = |field: &str, why: String| Error::Infini(infini::Error::Config { field: field.into(), why });
        let vocab = config.model.vocab_size;
        if task.vocab_size() > vocab {
            let why = format!("{vocab} is below the {} tokens of the task {}", task.vocab_size(), task.name());
            return Err(bad("model.vocab_size", why));
        }
        if let Some((_, t)) = config.train.shapes().iter().find(|(_, t)| *t < task.min_tokens()) {
            let why = format!("{t} is below the {} that the task {} needs", task.min_tokens(), task.name());
            return Err(bad("train.tokens", why));
        }
        if task.carries() {
            let (segment, window) = (config.model.infini.segment_len, carry::window(&config.model));
            let fits = |t: usize| t.is_multiple_of(segment) && t >= window.max(segment);
            if let Some((_, t)) = config.train.shapes().iter().find(|(_, t)| !fits(*t)) {
                let why = format!("{t} is not a number of whole segments of {segment}, which data.carry needs");
                return Err(bad("train.tokens", why));
            }
            let (conv, memory_conv) = (config.model.infini.conv, config.model.infini.memory_conv);
            if conv.max(memory_conv) > segment {
                let why = format!("{conv} is wider than the segment of {segment}, which data.carry does not do");
                return Err(bad("infini.conv", why));
            }
        }
        let device = device.clone().autodiff();
        let parameters = Parameters::new(&config.model, weights, &device, DType::F32);
        let zeros = |l: &crate::parameters::Leaf| Moments::zeros(l.shape.iter().product(), &device);
        let moments = parameters.leaves().iter().map(zeros).collect();
        let body = Body::of(&device);
        let (config, counts) = (config.clone(), Counts::default());
        Ok(Trainer { config, task, body, device, parameters, moments, counts, carry: None, piece: PIECE })
    }

    /// Where the run stands.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// AdamW's moments, in the order of the parameters.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Puts the run where it stood.
    ///
    /// # Panics
    /// If `moments` are not one for each parameter.
    pub fn restore(&mut self, weights: &Weights, moments: Vec<[Vec<f32>; 2]>, counts: Counts, carry: Option<Carry>) {
        assert_eq!(moments.len(), self.moments.len(), "moments of every parameter");
        self.parameters = Parameters::new(&self.config.model, weights, &self.device, DType::F32);
        self.moments = moments.into_iter().map(|[m, v]| Moments::from_values(m, v, &self.device)).collect();
        self.counts = counts;
        self.carry = carry;
    }

    /// What the rows carry to the next step, if they read on.
    pub fn carry(&self) -> Option<&Carry> {
        self.carry.as_ref()
    }

    /// Takes one step; `statistics` also reads the gates, which costs a little.
    ///
    /// # Errors
    /// [`Error::NotFinite`] at the last of [`MAX_SKIPPED`] skipped steps in a row.
    pub fn step(&mut self, statistics: bool) -> Result<Step> {
        let c = &self.config.train;
        let step = self.counts.step;
        let (batch, tokens) = c.stage(step);
        let mut rng = ChaCha8Rng::seed_from_u64(c.seed);
        rng.set_stream(step);
        let mut report = Step { step, tokens: (c.accumulate * batch * tokens) as u64, ..Step::default() };
        let mut gradients: Vec<Option<Gradient>> = vec![None; self.moments.len()];
        let read = self.config.train.columns(step);
        let parts = self.config.train.accumulate;
        for part in 0..parts {
            let rows = self.task.draw(&mut rng, batch, tokens, read + (part * tokens) as u64)?;
            let last = part + 1 == parts;
            self.accumulate(&rows, batch, tokens, &mut gradients, &mut report, statistics && last);
        }
        self.counts.step += 1;
        self.counts.tokens += report.tokens;

        let squares: Vec<f64> =
            gradients.iter().map(|g| g.as_ref().map_or(0.0, |g| g.sum_squares(self.body))).collect();
        report.gradient_norm = squares.iter().sum::<f64>().sqrt();
        let names = self.parameters.leaves().iter().map(|l| l.name.as_str());
        report.skipped = not_finite(report.loss, names.zip(squares));
        if let Some(what) = &report.skipped {
            self.counts.skipped += 1;
            // what was carried may hold the numbers that are none
            self.carry = None;
            self.counts.in_a_row += 1;
            if self.counts.in_a_row >= MAX_SKIPPED {
                return Err(Error::NotFinite { step, what: what.clone(), count: MAX_SKIPPED });
            }
            return Ok(report);
        }
        self.counts.in_a_row = 0;
        self.counts.updates += 1;
        report.lr = self.update(step, gradients, report.gradient_norm);
        Ok(report)
    }

    /// One batch's loss and gradients, some rows at a time.
    fn accumulate(
        &mut self,
        rows: &Batch,
        batch: usize,
        tokens: usize,
        gradients: &mut [Option<Gradient>],
        report: &mut Step,
        statistics: bool,
    ) {
        let share = 1.0 / self.config.train.accumulate as f64;
        let x = Rows::new(rows, batch, tokens);
        let before = self.carry.take().filter(|c| c.batch() == batch);
        let keep = self.task.carries();
        let weights = x.weights(self.config.train.answer_loss * share, self.config.train.token_loss * share);
        let (mut losses, mut hits) = (Vec::with_capacity(x.targets.len()), Vec::with_capacity(x.targets.len()));
        // rows that read on stay together: what is carried is one for all of them
        let together = if keep { batch } else { rows_of(self.piece, &self.config.model, batch, tokens) };
        for first in (0..batch).step_by(together) {
            let count = together.min(batch - first);
            let at = first * tokens..(first + count) * tokens;
            let reset = rows.reset.as_ref().map(|r| &r[at.clone()]);
            let t = Tokens { ids: &x.inputs[at.clone()], reset, batch: count, len: tokens };
            let model = &self.config.model;
            let (forward, after) =
                decoder::forward_carried(self.body, model, &self.parameters, &t, before.as_ref(), keep);
            let head = decoder::head(model, &self.parameters);
            let loss = self.body.cross_entropy(forward.hidden, head, &x.targets[at.clone()], &weights[at.clone()]);
            if statistics && first + count == batch {
                report.layers = self.statistics(&forward.gates);
            }
            let mut value = loss.value;
            if let Some(penalty) = self.penalty(&forward.gates, &x.filler, at) {
                let size = f64::from(penalty.clone().detach().into_scalar::<f32>());
                report.penalty = Some(report.penalty.unwrap_or(0.0) + size * share);
                let weight = schedule::sparsity(&self.config.train.write_sparsity, report.step);
                if weight > 0.0 {
                    value = value + penalty * (weight * share);
                }
            }
            drop(forward.gates);
            report.loss += f64::from(value.clone().detach().into_scalar::<f32>());
            losses.extend(loss.losses);
            hits.extend(loss.hits);
            let mut grads = value.backward();
            drop(value);
            self.carry = after;
            for (leaf, sum) in self.parameters.leaves().iter().zip(gradients.iter_mut()) {
                match (Gradient::take(&leaf.value, &mut grads), sum.as_mut()) {
                    (Some(new), Some(sum)) => sum.add(self.body, new),
                    (Some(new), None) => *sum = Some(new),
                    (None, _) => {}
                }
            }
        }
        let mean = |f: &dyn Fn(usize) -> Option<f64>| {
            let picked: Vec<f64> = (0..x.targets.len()).filter_map(f).collect();
            (!picked.is_empty()).then(|| picked.iter().sum::<f64>() / picked.len() as f64)
        };
        let add = |old: Option<f64>, new: Option<f64>| new.map(|n| old.unwrap_or(0.0) + n * share).or(old);
        let ce = |i: usize| f64::from(losses[i]);
        report.answer_loss = add(report.answer_loss, mean(&|i| x.answer[i].then(|| ce(i))));
        let hit = |i: usize| f64::from(u8::from(hits[i]));
        report.answer_accuracy = add(report.answer_accuracy, mean(&|i| x.answer[i].then(|| hit(i))));
        report.token_loss += mean(&|i| x.counted[i].then(|| ce(i))).unwrap_or(0.0) * share;
    }

    /// Mean of the penalised quantity over the batch's tokens, heads and the layers with a write gate: the part of it
    /// that the tokens `at` contribute.
    fn penalty(&self, gates: &[Gate], filler: &[bool], at: Range<usize>) -> Option<Tensor<1>> {
        let w = &self.config.train.write_sparsity;
        let gated: Vec<&Gate> = gates.iter().filter(|g| g.write.is_some()).collect();
        let tokens = match w.on {
            PenaltyTokens::All => filler.len(),
            PenaltyTokens::Filler => filler.iter().filter(|f| **f).count(),
        };
        if gated.is_empty() || tokens == 0 {
            return None;
        }
        let of = |gate: &Gate| {
            let write = gate.write.as_ref().expect("only gated layers are left");
            let x = match w.kind {
                Penalty::Mean => write.strength.clone(),
                Penalty::Softplus => softplus(write.logits.clone() + w.shift),
            };
            let [n, heads] = x.dims();
            let x = match w.on {
                PenaltyTokens::All => x,
                PenaltyTokens::Filler => {
                    let mask: Vec<f32> = filler[at.clone()].iter().map(|f| f32::from(u8::from(*f))).collect();
                    x * Tensor::from_data(TensorData::new(mask, [n, 1]), (&self.device, DType::F32))
                }
            };
            x.sum() / (tokens * heads * gated.len()) as f64
        };
        gated.iter().map(|g| of(g)).reduce(|a, b| a + b)
    }

    fn statistics(&self, gates: &[Gate]) -> Vec<LayerStats> {
        let columns = |x: &Tensor<2>, f: fn(f32) -> f32| {
            let [n, heads] = x.dims();
            let data = x.clone().detach().into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for");
            let mut sums = vec![0.0; heads];
            data.iter().enumerate().for_each(|(i, x)| sums[i % heads] += f64::from(f(*x)));
            sums.into_iter().map(|s| (s / n as f64) as f32).collect::<Vec<f32>>()
        };
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let of = |g: &Gate| {
            let write = g.write.as_ref();
            LayerStats {
                layer: g.layer,
                write: write.map_or(Vec::new(), |w| columns(&w.strength, |x| x)),
                open: write.map_or(Vec::new(), |w| columns(&w.strength, |x| f32::from(u8::from(x > 0.0)))),
                gate: g.mix.as_ref().map_or(Vec::new(), |m| columns(m, sigmoid)),
            }
        };
        gates.iter().map(of).collect()
    }

    /// AdamW on every parameter that has a gradient; returns the matrices' learning rate.
    fn update(&mut self, step: u64, gradients: Vec<Option<Gradient>>, norm: f64) -> f64 {
        let c = &self.config.train;
        let scale = clip_scale(norm, c.clip);
        let rate = schedule::rate(c, step);
        for ((leaf, moments), gradient) in self.parameters.leaves_mut().iter_mut().zip(&mut self.moments).zip(gradients)
        {
            let Some(gradient) = gradient else { continue };
            let (lr, decay) = match leaf.group {
                Group::Matrix => (c.lr, c.weight_decay),
                Group::Plain => (c.lr, 0.0),
                Group::Gate => (c.gate_lr, 0.0),
            };
            let set = AdamW {
                lr: (lr * rate) as f32,
                beta1: c.betas[0] as f32,
                beta2: c.betas[1] as f32,
                eps: c.eps as f32,
                weight_decay: decay as f32,
            };
            moments.update(self.body, &set, self.counts.updates, scale, &mut leaf.value, gradient);
        }
        c.lr * rate
    }
}

/// Rows of a batch that pass through the graph together: by the shape alone, so that sums have one order.
pub(crate) fn rows_together(model: &ModelConfig, batch: usize, tokens: usize) -> usize {
    rows_of(PIECE, model, batch, tokens)
}

fn rows_of(piece: usize, model: &ModelConfig, batch: usize, tokens: usize) -> usize {
    (piece / (tokens * model.hidden_size)).clamp(1, batch)
}

/// The loss, or the first parameter with a gradient that is not finite.
fn not_finite<'a>(loss: f64, squares: impl IntoIterator<Item = (&'a str, f64)>) -> Option<String> {
    if !loss.is_finite() {
        return Some("the loss".into());
    }
    let bad = squares.into_iter().find(|(_, s)| !s.is_finite());
    bad.map(|(name, _)| format!("the gradient of {name}"))
}

/// A batch as inputs and targets of `[B, T]`.
struct Rows {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    /// The target is an answer.
    answer: Vec<bool>,
    /// The target is of the same document as its input.
    counted: Vec<bool>,
    /// The input is filler.
    filler: Vec<bool>,
}

impl Rows {
    fn new(rows: &Batch, batch: usize, len: usize) -> Self {
        let cut = |from: usize| move |x: usize| x % (len + 1) >= from && x % (len + 1) < len + from;
        fn pick<T: Copy>(x: &[T], keep: impl Fn(usize) -> bool) -> Vec<T> {
            x.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, x)| *x).collect()
        }
        let begins = |i: usize| i % len + 1 < len && rows.reset.as_ref().is_some_and(|r| r[i + 1] != 0);
        let counted: Vec<bool> = (0..batch * len).map(|i| !begins(i)).collect();
        let answer = pick(&rows.answer, cut(1)).iter().zip(&counted).map(|(a, c)| *a && *c).collect();
        Rows {
            inputs: pick(&rows.tokens, cut(0)),
            targets: pick(&rows.tokens, cut(1)),
            answer,
            counted,
            filler: pick(&rows.filler, cut(0)),
        }
    }

    /// Weight of every target so that the weighted sum is `answer · mean over answers + all · mean over all`.
    fn weights(&self, answer: f64, all: f64) -> Vec<f32> {
        let count = |x: &[bool]| x.iter().filter(|x| **x).count().max(1) as f64;
        let (answer, all) = (answer / count(&self.answer), all / count(&self.counted));
        let weight = |(a, c): (&bool, &bool)| (if *a { answer } else { 0.0 } + if *c { all } else { 0.0 }) as f32;
        self.answer.iter().zip(&self.counted).map(weight).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens, answers, filler and documents by the row's number, so that rows differ.
    struct Rules;

    impl Task for Rules {
        fn name(&self) -> &'static str {
            "rules"
        }

        fn min_tokens(&self) -> usize {
            1
        }

        fn vocab_size(&self) -> usize {
            29
        }

        fn batch(&self, _: &mut ChaCha8Rng, batch: usize, tokens: usize) -> Batch {
            let n = batch * (tokens + 1);
            let every = |k: usize| move |i: usize| (i * i + i / (tokens + 1)).is_multiple_of(k);
            Batch {
                tokens: (0..n).map(|i| (i * i % 29) as u32).collect(),
                answer: (0..n).map(every(5)).collect(),
                filler: (0..n).map(every(3)).collect(),
                reset: Some((0..batch * tokens).map(|i| u8::from(every(11)(i))).collect()),
            }
        }
    }

    #[test]
    fn rows_that_pass_through_the_graph_in_turn_are_one_batch() {
        let text = "[model]\nvocab_size = 29\nhidden_size = 16\nnum_hidden_layers = 2\nnum_attention_heads = 2\n\
                    intermediate_size = 24\n[infini]\npreset = \"selective-linear\"\nsegment_len = 8\n[train]\nsteps = 9\n\
                    tokens = 32\nbatch = 5\n[train.write_sparsity]\nweight = 0.1";
        let config = Config::parse(text, &[]).unwrap();
        let weights = Weights::init(&config.model, 3);
        let run = |piece: usize| {
            let mut t = Trainer::new(&config, &weights, Box::new(Rules), &Device::flex()).unwrap();
            t.piece = piece;
            let steps: Vec<Step> = (0..3).map(|_| t.step(false).unwrap()).collect();
            steps
        };
        // 5 rows together, 2 + 2 + 1, one by one
        assert_eq!([PIECE, 1100, 1].map(|p| rows_of(p, &config.model, 5, 32)), [5, 2, 1]);
        let whole = run(PIECE);
        for piece in [1100, 1] {
            for (a, b) in run(piece).iter().zip(&whole) {
                let of = |s: &Step| [s.loss, s.answer_loss.unwrap(), s.token_loss, s.penalty.unwrap(), s.gradient_norm];
                for (x, y) in of(a).into_iter().zip(of(b)) {
                    assert!((x - y).abs() <= 1e-5 * y.abs().max(0.1), "piece {piece}: {a:?} {b:?}");
                }
                assert_eq!(a.answer_accuracy, b.answer_accuracy);
            }
        }
    }

    #[test]
    fn the_guard_names_what_is_not_finite() {
        assert_eq!(not_finite(1.0, [("a", 1.0), ("b", 2.0)]), None);
        assert_eq!(not_finite(f64::NAN, [("a", 1.0)]).unwrap(), "the loss");
        assert_eq!(not_finite(1.0, [("a", 1.0), ("b", f64::INFINITY)]).unwrap(), "the gradient of b");
    }

    #[test]
    fn targets_follow_inputs_and_stop_at_documents() {
        let batch = Batch {
            tokens: vec![1, 2, 3, 4, 5, 6, 7, 8],
            answer: vec![true, false, true, true, true, true, false, false],
            filler: vec![true, false, false, true, false, true, true, true],
            reset: Some(vec![1, 0, 1, 0, 0, 0]),
        };
        let r = Rows::new(&batch, 2, 3);
        assert_eq!((r.inputs.clone(), r.targets.clone()), (vec![1, 2, 3, 5, 6, 7], vec![2, 3, 4, 6, 7, 8]));
        assert_eq!(r.counted, [true, false, true, true, true, true]);
        assert_eq!(r.answer, [false, false, true, true, false, false]);
        assert_eq!(r.filler, [true, false, false, false, true, true]);
        let w = r.weights(1.0, 0.2);
        assert!((w.iter().map(|w| f64::from(*w)).sum::<f64>() - 1.2).abs() < 1e-6);
        assert_eq!(w[1], 0.0);
    }
}
