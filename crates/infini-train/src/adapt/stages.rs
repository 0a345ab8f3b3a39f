//! The three stages, one step at a time.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use infini::adapter::Adapter;
use infini::eval::Count;
use infini::model::Model;
use infini_format::tensors::Dtype;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::AdaptConfig;
use super::leaves::{Leaves, host};
use super::objective::CAUTION;
use super::paper::GATES;
use super::pool::{Answer, Document};
use super::upper::{Upper, constant};
use super::whiten::Whitening;
use crate::error::Result;
use crate::ops::Body;

/// Directions of a whitened input.
const WHITE: usize = 256;

/// One token of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The document, by its place in the step.
    pub document: usize,
    /// The token before it, by its place in the tail.
    pub place: usize,
    /// What is answered.
    pub kind: Answer,
    /// Whether it would be said.
    pub right: bool,
}

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The step, from 0, over all stages.
    pub step: u64,
    /// Its stage, from 0.
    pub stage: usize,
    /// Mean loss over answer tokens.
    pub answer_loss: f64,
    /// They one by one.
    pub said: Vec<Said>,
    /// Mean divergence from the base on other tokens, nats; 0 in the first stage.
    pub divergence: f64,
    /// Share of the keys' tokens, and of the others, that an own gate opens for (mean over heads).
    pub written: [f64; 2],
    /// Mean read gate on answers and on other tokens; 0 in the first stage.
    pub read: [f64; 2],
    /// Documents in a memory.
    pub together: f64,
    /// What was not finite: the step was skipped.
    pub skipped: Option<String>,
}

impl Report {
    /// Share of the answers' tokens that were said.
    pub fn answer_accuracy(&self) -> f64 {
        self.said.iter().filter(|s| s.right).count() as f64 / self.said.len().max(1) as f64
    }

    /// In a line.
    pub fn describe(&self) -> String {
        format!(
            "stage {}, answers {:.3} nats {:.1} %, divergence {:.4}, writes {:.3} of keys {:.5} of others, reads {:.3} and {:.4}",
            self.stage + 1,
            self.answer_loss,
            100.0 * self.answer_accuracy(),
            self.divergence,
            self.written[0],
            self.written[1],
            self.read[0],
            self.read[1]
        )
    }
}

/// A memory in training.
pub struct Stages<'a> {
    pub(super) config: &'a AdaptConfig,
    pub(super) model: &'a Model,
    pub(super) documents: Vec<Document>,
    /// The last ones are held out.
    pub(super) held_out: usize,
    /// Class of every token in the first stage.
    pub(super) class: Vec<usize>,
    pub(super) body: Body,
    pub(super) device: Device,
    pub(super) upper: Upper,
    pub(super) leaves: Leaves,
    pub(super) words: Whitening,
    /// RMS of the base's final hidden states before the norm.
    pub(super) scale: f64,
    /// Hidden size of the base.
    pub(super) width: usize,
    /// The base's embedding.
    pub(super) embedding: Vec<f32>,
}

impl<'a> Stages<'a> {
    /// A start from the data: whitened projections, an output of zero. `class` tells for every token of the vocabulary what
    /// the first stage has to name it.
    pub fn new(
        config: &'a AdaptConfig,
        model: &'a Model,
        documents: Vec<Document>,
        class: Vec<usize>,
        device: &Device,
    ) -> Self {
        let device = device.clone().autodiff();
        let (c, d) = (&config.adapter, model.config().hidden_size);
        let mut rng = ChaCha8Rng::seed_from_u64(config.train.seed);
        let white = WHITE.min(d / 2);
        let every = |n: usize| n.div_ceil(24_000).max(1);
        let total: usize = documents.iter().map(|doc| doc.key.len()).sum();
        let (step, embedding) = (every(total), model.embedding());
        let x: Vec<f32> = documents.iter().flat_map(|doc| doc.x.chunks(d)).step_by(step).flatten().copied().collect();
        let e: Vec<f32> = (documents.iter().flat_map(|doc| &doc.ids))
            .step_by(step)
            .flat_map(|id| &embedding[*id as usize * d..][..d])
            .copied()
            .collect();
        let inputs = Whitening::new(&x, d, white, &mut rng);
        let words = Whitening::new(&e, d, white, &mut rng);
        let mut stacked = |w: &Whitening, each: usize, n: usize, scale: f64| {
            let parts: Vec<_> = (0..n).map(|_| w.project(each, scale, &mut rng)).collect();
            let (weight, bias): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            (weight.concat(), bias.concat())
        };
        let place = stacked(&inputs, c.place_width, c.heads, 1.0);
        let value = stacked(&inputs, c.value_width.min(white), c.heads, 1.0);
        let word = stacked(&words, c.word_width, c.heads, 2.0);
        let mut start = BTreeMap::from([
            ("query.weight", place.0.clone()),
            ("query.bias", place.1.clone()),
            ("key.weight", place.0),
            ("key.bias", place.1),
            ("value.weight", value.0),
            ("value.bias", value.1),
            ("word.weight", word.0),
            ("word.bias", word.1),
            ("sharpness", vec![4.5f32.ln(); 2 * c.heads]),
            ("write.bias", vec![-2.0 - CAUTION as f32; c.heads]),
            ("read.bias", vec![-1.5; c.heads]),
            ("null.bias", vec![-1.0; c.heads]),
            ("doubt", vec![3.0; c.heads]),
            // words that follow count for less at first: queries have none
            ("offset", [vec![0.0; c.before], vec![-1.0; c.after]].concat().repeat(c.heads)),
        ]);
        let mut values = Vec::new();
        // a write gate begins with its token's own signals
        let own = c.delay() * c.heads * c.gate_width;
        let taps = (0..c.taps() * c.heads * c.gate_width).map(|i| {
            let own = f32::from(u8::from((own..own + c.heads * c.gate_width).contains(&i)));
            own + rng.random_range(-0.2..0.2)
        });
        start.insert("write.kernel", taps.collect());
        for (name, shape) in c.parameters(d) {
            match name {
                "salience.weight" => values.push(("salience", vec![c.heads, white], vec![0.0; c.heads * white])),
                // a softmax knows no constant
                "salience.bias" => {}
                _ => {
                    let n = shape.iter().product();
                    values.push((name, shape, start.remove(name).unwrap_or_else(|| vec![0.0; n])));
                }
            }
        }
        let width = c.heads * c.value_width;
        let classes = 1 + class.iter().max().copied().unwrap_or(0);
        values.push(("digits", vec![classes, width], vec![0.0; classes * width]));
        Stages {
            config,
            model,
            held_out: held_out(documents.len()),
            class,
            body: Body::of(&device),
            upper: upper(config, model, &device),
            leaves: Leaves::new(values, &device),
            documents,
            words,
            scale: 0.0,
            width: d,
            embedding,
            device,
        }
    }

    /// What is learned.
    pub fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    /// Puts everything where a checkpoint found it.
    ///
    /// # Errors
    /// Bytes of something else.
    pub fn restore(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.leaves.restore(bytes)
    }

    /// Writes the adapter as it is, bound to the base of hash `base`.
    ///
    /// # Errors
    /// Numbers that are not finite, the disk's.
    pub fn save(&self, base: &str, path: &Path) -> Result<()> {
        match self.config.paper {
            Some(_) => Ok(self.paper(base)?.save(path)?),
            None => Ok(self.adapter(base)?.save(path, Dtype::BF16)?),
        }
    }

    fn adapter(&self, base: &str) -> Result<Adapter> {
        let d = self.model.config().hidden_size;
        let (weight, bias) = self.words.merge(&self.leaves.values("salience"));
        let values = self.config.adapter.parameters(d).into_iter().map(|(name, _)| {
            let x = match name {
                "salience.weight" => weight.clone(),
                "salience.bias" => bias.clone(),
                _ => self.leaves.values(name),
            };
            (name.to_string(), x)
        });
        Ok(Adapter::new(self.config.adapter.clone(), base.to_string(), d, values.collect())?)
    }

    /// The stage of step `step` and the step within it.
    fn stage(&self, step: u64) -> (usize, u64) {
        let [a, b, _] = self.config.train.steps;
        match step {
            _ if step < a => (0, step),
            _ if step < a + b => (1, step - a),
            _ => (2, step - a - b),
        }
    }

    /// Takes step `step`. The same step on the same tensors gives the same result.
    pub fn step(&mut self, step: u64) -> Report {
        let (stage, within) = self.stage(step);
        if within == 0 {
            self.leaves.restart();
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.train.seed);
        rng.set_stream(1 + step);
        let mut order: Vec<usize> = (0..self.documents.len() - self.held_out).collect();
        order.shuffle(&mut rng);
        order.truncate(self.config.train.batch[stage]);
        let docs: Vec<(usize, usize)> =
            order.into_iter().map(|i| (i, rng.random_range(0..self.config.data.tails))).collect();
        self.remember_hidden(&docs, stage);
        let (loss, mut report) = self.loss(stage, &docs, &mut rng);
        report.step = step;
        let value = f64::from(loss.clone().detach().into_scalar::<f32>());
        if !value.is_finite() {
            report.skipped = Some("the loss".into());
            return report;
        }
        let mut grads = loss.backward();
        drop(loss);
        let t = &self.config.train;
        let steps = t.steps[stage] as f64;
        let fall = (2.0 * (1.0 - within as f64 / steps)).clamp(0.05, 1.0);
        let rise = ((within + 1) as f64 / t.warmup.max(1) as f64).min(1.0);
        let paper = &self.config.paper;
        let rate = |name: &str| match paper {
            Some(p) if name == GATES => p.gate_lr * rise * fall,
            _ => t.lr[stage] * rise * fall * share(name, stage),
        };
        report.skipped = self.leaves.update(self.body, &mut grads, &rate, t.clip);
        report
    }

    /// Answers of the held-out documents in the form of stage `stage`, each with its own memory and those of the
    /// others that it is put together with: tokens, and whole answers by what makes them hard.
    pub fn held_out(&mut self, stage: usize) -> BTreeMap<&'static str, Count> {
        let mut counts: BTreeMap<&'static str, Count> = BTreeMap::new();
        let first = self.documents.len() - self.held_out;
        let all: Vec<(usize, usize)> =
            (0..self.config.data.tails).flat_map(|t| (first..self.documents.len()).map(move |i| (i, t))).collect();
        for (i, docs) in all.chunks(self.config.train.batch[2]).enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(self.config.train.seed);
            rng.set_stream(u64::MAX - i as u64);
            self.remember_hidden(docs, stage);
            let (_, report) = self.loss(stage, docs, &mut rng);
            for answer in report.said.chunk_by(|a, b| (a.document, a.place + 1) == (b.document, b.place)) {
                let mut count = |what, right| counts.entry(what).or_default().add(right);
                answer.iter().for_each(|s| count("tokens", s.right));
                let doc = &self.documents[docs[answer[0].document].0];
                let right = answer.iter().all(|s| s.right);
                count("answers", right);
                count("first tokens", answer[0].right);
                count("ends", answer[answer.len() - 1].right);
                match answer[0].kind {
                    Answer::Near => count("of the window", right),
                    Answer::Absent => count("never told", right),
                    Answer::Told => {
                        count(if doc.names.is_empty() { "without names" } else { "named" }, right);
                        count(if doc.paper { "the paper's words" } else { "other words" }, right);
                        let long = answer.len() > 8;
                        count(if long { "longer than six digits" } else { "up to six digits" }, right);
                    }
                }
            }
        }
        counts
    }

    /// Runs the base's upper layers over the tails that were not asked for yet. One by one, so that the order in
    /// which they come changes nothing.
    fn remember_hidden(&mut self, docs: &[(usize, usize)], stage: usize) {
        let (d, len) = (self.width, 1 + self.config.data.tail);
        if stage == 0 {
            return;
        }
        // the first document stands for all
        for (i, t) in [(0, 0)].iter().chain(docs) {
            let tail = &mut self.documents[*i].tails[*t];
            if !tail.hidden.is_empty() {
                continue;
            }
            let x = constant(tail.residual.clone(), [len, d], &self.device);
            let last = self.upper.forward(x, None);
            if (*i, *t) == (0, 0) {
                let mean = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>() / d as f64;
                let rows = host(last.clone());
                self.scale = rows.chunks(d).skip(1).map(|r| mean(r).sqrt()).sum::<f64>() / (len - 1) as f64;
            }
            tail.hidden = host(self.upper.hidden(last))[d..].to_vec();
        }
    }

    /// The base's embedding of a token.
    pub(super) fn embedded(&self, id: u32) -> &[f32] {
        &self.embedding[id as usize * self.width..][..self.width]
    }
}

/// How many of `n` documents are held out.
pub(super) fn held_out(n: usize) -> usize {
    (n / 16).max(1).min(n - 1)
}

/// The layers from the memory's on; a tail stands near the end of its window.
pub(super) fn upper(config: &AdaptConfig, model: &Model, device: &Device) -> Upper {
    let c = &config.adapter;
    let end = c.sink + 2 * c.segment_len - c.segment_len / 8;
    Upper::new(model, c.layer, config.data.tail, end, device)
}

/// Share of the stage's learning rate that a tensor gets.
fn share(name: &str, stage: usize) -> f64 {
    match (name, stage) {
        ("salience" | "offset", _) => 5.0,
        ("digits", 0) => 5.0,
        ("digits", _) => 0.0,
        ("output.weight", 1) => 5.0,
        ("output.weight", 2) => 6.0,
        ("read.weight", _) => 3.0,
        ("read.bias" | "null.bias" | "doubt", _) => 10.0,
        ("nothing", _) => 3.0,
        ("write.weight" | "write.bias", _) => 4.0,
        _ => 1.0,
    }
}
