//! The three stages, one step at a time.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};
use infini::adapter::Adapter;
use infini::config::Write;
use infini::eval::Count;
use infini::model::Model;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::AdaptConfig;
use super::graph::{Around, Memory};
use super::leaves::{Leaves, host};
use super::pool::Document;
use super::upper::{Upper, constant};
use super::whiten::Whitening;
use crate::error::Result;
use crate::ops::{Body, composed::softplus};

/// Directions of a whitened input.
const WHITE: usize = 256;
/// Weight of a key token in the labels of the write gate.
const KEY_WEIGHT: f64 = 3.0;
/// Share of closed tokens that take part in the third stage, so that their gates have a gradient.
const CLOSED: f64 = 0.03;
/// Classes of tokens in the first stage.
const CLASSES: usize = 12;
/// Tokens of a document that answer nothing and are held to the base.
const OTHERS: usize = 8;

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The step, from 0, over all stages.
    pub step: u64,
    /// Its stage, from 0.
    pub stage: usize,
    /// Mean loss over answer tokens.
    pub answer_loss: f64,
    /// Share of them that were said.
    pub answer_accuracy: f64,
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
    /// In a line.
    pub fn describe(&self) -> String {
        format!(
            "stage {}, answers {:.3} nats {:.1} %, divergence {:.4}, writes {:.3} of keys {:.5} of others, reads {:.3} and {:.4}",
            self.stage + 1,
            self.answer_loss,
            100.0 * self.answer_accuracy,
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
    config: &'a AdaptConfig,
    model: &'a Model,
    documents: Vec<Document>,
    /// The last ones are held out.
    held_out: usize,
    /// Class in the first stage of every token: its digit, 10 for a lone blank, 11 for what else begins or ends a number.
    class: Vec<usize>,
    body: Body,
    device: Device,
    upper: Upper,
    leaves: Leaves,
    words: Whitening,
    /// Final hidden states of the base over each document's tail, as they are needed, and their RMS before the norm.
    hidden: BTreeMap<usize, Vec<f32>>,
    scale: f64,
    /// The base's embedding.
    embedding: Vec<f32>,
}

/// Which tokens of which documents a step is about.
struct Rows {
    /// Documents.
    docs: Vec<usize>,
    /// (document of the step, token) of each written one.
    keys: Vec<(usize, usize)>,
    /// (document of the step, token of the tail) of each query.
    queries: Vec<(usize, usize)>,
    /// `[n, m]`.
    visible: Vec<f32>,
    together: f64,
}

impl<'a> Stages<'a> {
    /// A start from the data: whitened projections, an output of zero.
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
            ("write.bias", vec![-2.0; c.heads]),
            ("read.bias", vec![-1.5; c.heads]),
            ("null", vec![0.1f32.ln(); c.heads]),
            // words that follow count for less at first: queries have none
            ("offset", [vec![0.0; c.before], vec![-1.0; c.after]].concat().repeat(c.heads)),
        ]);
        let mut values = Vec::new();
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
        values.push(("digits", vec![CLASSES, width], vec![0.0; CLASSES * width]));
        let end = c.sink + 2 * c.segment_len - c.segment_len / 8;
        let held_out = (documents.len() / 16).max(1).min(documents.len() - 1);
        Stages {
            config,
            model,
            held_out,
            class,
            body: Body::of(&device),
            upper: Upper::new(model, c.layer, config.data.tail, end, &device),
            leaves: Leaves::new(values, &device),
            documents,
            words,
            hidden: BTreeMap::new(),
            scale: 0.0,
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

    /// The adapter as it is, bound to the base of hash `base`.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub fn adapter(&self, base: &str) -> Result<Adapter> {
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
        self.remember_hidden(&order, stage);
        let (loss, mut report) = self.loss(stage, order, &mut rng);
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
        let rate = t.lr[stage] * ((within + 1) as f64 / t.warmup.max(1) as f64).min(1.0) * fall;
        report.skipped = self.leaves.update(self.body, &mut grads, &|name| rate * share(name, stage), t.clip);
        report
    }

    /// Answers of the held-out documents in the last stage's form, each with its own memory and those of the others
    /// that it is put together with.
    pub fn held_out(&mut self) -> Count {
        let mut count = Count::default();
        let first = self.documents.len() - self.held_out;
        let all: Vec<usize> = (first..self.documents.len()).collect();
        for (i, docs) in all.chunks(self.config.train.batch[2]).enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(self.config.train.seed);
            rng.set_stream(u64::MAX - i as u64);
            self.remember_hidden(docs, 2);
            let (_, report) = self.loss(2, docs.to_vec(), &mut rng);
            let n: usize = docs.iter().map(|d| self.documents[*d].answer.iter().filter(|a| **a).count()).sum();
            count.join(Count { hits: (report.answer_accuracy * n as f64).round() as u64, n: n as u64 });
        }
        count
    }

    /// Runs the base's upper layers over the tails that were not asked for yet. One by one, so that the order in
    /// which they come changes nothing.
    fn remember_hidden(&mut self, docs: &[usize], stage: usize) {
        let (d, len) = (self.model.config().hidden_size, 1 + self.config.data.tail);
        if stage == 0 {
            return;
        }
        // the first document stands for all
        for i in [0].iter().chain(docs) {
            if self.hidden.contains_key(i) {
                continue;
            }
            let x = constant(self.documents[*i].residual.clone(), [len, d], &self.device);
            let last = self.upper.forward(x, None);
            if *i == 0 {
                let mean = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>() / d as f64;
                let rows = host(last.clone());
                self.scale = rows.chunks(d).skip(1).map(|r| mean(r).sqrt()).sum::<f64>() / (len - 1) as f64;
            }
            self.hidden.insert(*i, host(self.upper.hidden(last))[d..].to_vec());
        }
    }

    /// Whose memories are put together, what is written and what is asked.
    fn rows(&self, stage: usize, docs: Vec<usize>, open: &[Vec<bool>], rng: &mut ChaCha8Rng) -> Rows {
        let t = &self.config.train;
        let n = docs.len();
        let doc = |i: usize| &self.documents[docs[i]];
        let mut keys = Vec::new();
        for i in 0..n {
            for (j, key) in doc(i).key.iter().enumerate().skip(1) {
                let noise = if stage == 2 { CLOSED } else { t.noise };
                if *key || (stage == 2 && open[i][j]) || (stage > 0 && rng.random_bool(noise)) {
                    keys.push((i, j));
                }
            }
        }
        // memories of documents with other names
        let p = t.together * rng.random::<f64>();
        let mut joined = vec![vec![false; n]; n];
        let mut filler = vec![vec![false; n]; n];
        for i in 0..n {
            joined[i][i] = true;
            let mut names: Vec<&String> = doc(i).names.iter().collect();
            let mut others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
            others.shuffle(rng);
            for j in others {
                filler[i][j] = rng.random_bool(0.5);
                let apart = !doc(j).names.is_empty() && !doc(j).names.iter().any(|x| names.contains(&x));
                if !names.is_empty() && apart && rng.random_bool(p) {
                    joined[i][j] = true;
                    names.extend(&doc(j).names);
                }
            }
        }
        let together = joined.iter().flatten().filter(|j| **j).count() as f64 / n as f64;
        let mut queries = Vec::new();
        for i in 0..n {
            let answer = &doc(i).answer;
            if stage == 2 {
                queries.extend((0..answer.len()).map(|j| (i, j)));
                continue;
            }
            queries.extend((1..answer.len()).filter(|j| answer[*j]).map(|j| (i, j - 1)));
            if stage == 1 {
                queries.extend(others(answer, rng).into_iter().map(|j| (i, j - 1)));
            }
        }
        let visible = queries.iter().flat_map(|(q, _)| {
            let (joined, filler) = (&joined[*q], &filler[*q]);
            keys.iter().map(|(k, j)| {
                let seen = joined[*k] || (filler[*k] && !doc(*k).key[*j]);
                f32::from(u8::from(seen))
            })
        });
        let visible = visible.collect();
        Rows { visible, docs, keys, queries, together }
    }

    /// The loss of a stage over documents.
    fn loss(&self, stage: usize, docs: Vec<usize>, rng: &mut ChaCha8Rng) -> (Tensor<1>, Report) {
        let (c, t, d) = (&self.config.adapter, &self.config.train, self.model.config().hidden_size);
        let device = &self.device;
        let n_docs = docs.len();
        // write gates of every remembered token
        let x: Vec<f32> = docs.iter().flat_map(|i| &self.documents[*i].x).copied().collect();
        let tokens = x.len() / d;
        let x = constant(x, [tokens, d], device);
        let first: Vec<usize> = docs
            .iter()
            .scan(0, |at, i| {
                let first = *at;
                *at += self.documents[*i].key.len();
                Some(first)
            })
            .collect();
        let bias = self.leaves.get::<1>("write.bias").unsqueeze();
        let logits = self.body.linear(x.clone(), self.leaves.get("write.weight")) + bias;
        let opened = host(logits.clone());
        let label: Vec<bool> = docs.iter().flat_map(|i| self.documents[*i].key.iter().copied()).collect();
        let written = [true, false].map(|key| {
            let rows = opened.chunks(c.heads).zip(&label).filter(|(_, l)| **l == key);
            let (open, n) =
                rows.fold((0, 0), |(open, n), (x, _)| (open + x.iter().filter(|x| **x > 0.0).count(), n + c.heads));
            open as f64 / n.max(1) as f64
        });
        let open: Vec<Vec<bool>> = docs
            .iter()
            .zip(&first)
            .map(|(i, at)| {
                let n = self.documents[*i].key.len();
                opened[at * c.heads..(at + n) * c.heads].chunks(c.heads).map(|x| x.iter().any(|x| *x > 0.0)).collect()
            })
            .collect();
        let rows = self.rows(stage, docs, &open, rng);
        let doc = |i: usize| &self.documents[rows.docs[i]];

        // the step's vocabulary
        let mut vocabulary: BTreeMap<u32, usize> = BTreeMap::new();
        let mut around = |i: usize, from: isize, n: usize| -> Around {
            let ids = &doc(i).ids;
            let token = |j: isize| usize::try_from(j).ok().and_then(|j| ids.get(j));
            let mut at = |id: &u32| {
                let next = vocabulary.len();
                *vocabulary.entry(*id).or_insert(next)
            };
            (from..from + n as isize).map(|j| token(j).map(&mut at)).collect()
        };
        let before = c.before as isize;
        let key_words: Around =
            rows.keys.iter().flat_map(|(i, j)| around(*i, *j as isize - before, c.before + c.after)).collect();
        let tail = self.config.data.tail;
        let query_words: Around = (rows.queries.iter())
            .flat_map(|(i, j)| around(*i, (doc(*i).ids.len() - tail + j + 1) as isize - before, c.before))
            .collect();
        let mut ids = vec![0u32; vocabulary.len()];
        vocabulary.iter().for_each(|(id, at)| ids[*at] = *id);
        let raw: Vec<f32> = ids.iter().flat_map(|id| &self.embedding[*id as usize * d..][..d]).copied().collect();
        let white = self.white(&raw);
        let white = constant(white, [ids.len(), self.words.rows.len() / d], device);
        let memory = Memory::new(c, &self.leaves, self.body, constant(raw, [ids.len(), d], device), white);

        // keys and values
        let index = |f: &dyn Fn(&(usize, usize)) -> usize| {
            let index: Vec<i64> = rows.keys.iter().map(|k| f(k) as i64).collect();
            Tensor::<1, Int>::from_data(TensorData::new(index, [rows.keys.len()]), (device, DType::I64))
        };
        let (own, previous) = (index(&|(i, j)| first[*i] + j), index(&|(i, j)| first[*i] + j - 1));
        let keys = (memory.places("key", x.clone().select(0, previous)), memory.pool(&key_words, c.before + c.after));
        let value = memory.affine("value", x.clone().select(0, own.clone()));
        let strength = match stage {
            2 => self.body.write_gate(logits.clone().select(0, own), Write::Hard),
            _ => Tensor::ones([rows.keys.len(), c.heads], (device, DType::F32)),
        };
        // queries
        let residual: Vec<f32> = (0..n_docs).flat_map(|i| &doc(i).residual).copied().collect();
        let residual = constant(residual, [n_docs * (1 + tail), d], device);
        let at: Vec<i64> = rows.queries.iter().map(|(i, j)| (i * (1 + tail) + 1 + j) as i64).collect();
        let at = Tensor::<1, Int>::from_data(TensorData::new(at, [rows.queries.len()]), (device, DType::I64));
        let xq = self.upper.normed(residual.clone()).select(0, at);
        let queries = (memory.places("query", xq.clone()), memory.pool(&query_words, c.before));
        let visible = constant(rows.visible.clone(), [rows.queries.len(), rows.keys.len()], device);
        let a = memory.read(queries, keys, value, strength, visible);

        let mut report = Report { stage, written, together: rows.together, ..Report::default() };
        let labels = self.write_labels(&logits, &label) * t.write_labels;
        let target = |(i, j): &(usize, usize)| doc(*i).ids[doc(*i).ids.len() - tail + j + 1];
        if stage == 0 {
            let classes: Vec<usize> = rows.queries.iter().map(|q| self.class[target(q) as usize]).collect();
            let scores = self.body.linear(a, self.leaves.get("digits"));
            let loss = score(scores, &classes, &mut report);
            return (loss + labels, report);
        }
        let gate = memory.read_gate(xq);
        let out = memory.output(a, gate.clone());
        let answers = |j: usize, i: usize| doc(i).answer.get(j + 1).copied().unwrap_or(false);
        let is_answer: Vec<bool> = rows.queries.iter().map(|(i, j)| answers(*j, *i)).collect();
        let gates = host(activation::sigmoid(gate.clone()));
        report.read = [true, false].map(|answer| {
            let g = gates.chunks(c.heads).zip(&is_answer).filter(|(_, a)| **a == answer);
            let (sum, n) =
                g.fold((0.0, 0), |(s, n), (g, _)| (s + g.iter().map(|g| f64::from(*g)).sum::<f64>(), n + c.heads));
            sum / n.max(1) as f64
        });
        // rows of the queries that answer, and some that do not
        let picked = |answer: bool, rng: &mut ChaCha8Rng| -> Vec<usize> {
            let all = (0..rows.queries.len()).filter(|q| is_answer[*q] == answer);
            if answer || stage == 1 {
                return all.collect();
            }
            let mut of = vec![Vec::new(); n_docs];
            all.filter(|q| rows.queries[*q].1 >= 24 && rows.queries[*q].1 + 1 < tail)
                .for_each(|q| of[rows.queries[q].0].push(q));
            of.iter_mut().for_each(|of| of.shuffle(rng));
            of.into_iter().flat_map(|of| of.into_iter().take(OTHERS)).collect()
        };
        let (yes, no) = (picked(true, rng), picked(false, rng));
        let select = |x: &Tensor<2>, rows: &[usize]| {
            let index: Vec<i64> = rows.iter().map(|r| *r as i64).collect();
            let index = Tensor::<1, Int>::from_data(TensorData::new(index, [rows.len()]), (device, DType::I64));
            x.clone().select(0, index)
        };
        // the base's hidden states
        let base = |picked: &[usize]| -> Tensor<2> {
            let hidden = picked.iter().flat_map(|q| {
                let (i, j) = rows.queries[*q];
                self.hidden[&rows.docs[i]][j * d..(j + 1) * d].iter().copied()
            });
            constant(hidden.collect(), [picked.len(), d], device)
        };
        let hidden = if stage == 1 {
            // as if the upper layers did nothing to what is added
            let all: Vec<usize> = (0..rows.queries.len()).collect();
            base(&all) + out * self.upper.gain() / self.scale
        } else {
            // the queries are the whole tails, in order: a row of zeros stands for each first token
            let zero = Tensor::<3>::zeros([n_docs, 1, d], (device, DType::F32));
            let added = Tensor::cat(vec![zero, out.reshape([n_docs, tail, d])], 1).reshape([n_docs * (1 + tail), d]);
            let last = self.upper.hidden(self.upper.forward(residual, Some(added)));
            let places: Vec<usize> = rows.queries.iter().map(|(i, j)| i * (1 + tail) + 1 + j).collect();
            select(&last, &places)
        };
        let targets: Vec<usize> = yes.iter().map(|q| target(&rows.queries[*q]) as usize).collect();
        let mut loss = score(self.upper.logits(select(&hidden, &yes)), &targets, &mut report);
        let expected = activation::log_softmax(self.upper.logits(base(&no)), 1).detach();
        let ours = activation::log_softmax(self.upper.logits(select(&hidden, &no)), 1);
        let divergence = (expected.clone().exp() * (expected - ours)).sum() / no.len().max(1) as f64;
        report.divergence = f64::from(divergence.clone().detach().into_scalar::<f32>());
        loss = loss + divergence * t.divergence;
        if stage == 1 {
            let label: Vec<f32> = is_answer.iter().map(|a| f32::from(u8::from(*a))).collect();
            let label = constant::<2>(label, [is_answer.len(), 1], device);
            let bce = softplus(gate.clone().neg()) + gate * (label.neg() + 1.0);
            return (loss + bce.mean() * t.read_labels + labels, report);
        }
        (loss + activation::sigmoid(logits).mean() * t.sparsity, report)
    }

    /// Whitened embeddings.
    fn white(&self, raw: &[f32]) -> Vec<f32> {
        let (d, k) = (self.words.mean.len(), self.words.rows.len() / self.words.mean.len());
        let rows: Vec<f32> = self.words.rows.iter().map(|x| *x as f32).collect();
        let centred: Vec<f32> =
            raw.iter().enumerate().map(|(i, x)| (f64::from(*x) - self.words.mean[i % d]) as f32).collect();
        let mut out = vec![0.0; raw.len() / d * k];
        infini_kernels::linear::forward(&centred, &rows, &mut out, [raw.len() / d, d, k], false);
        out
    }

    /// Binary cross-entropy of the write gates with the keys' tokens as labels.
    fn write_labels(&self, logits: &Tensor<2>, label: &[bool]) -> Tensor<1> {
        let y: Vec<f32> = label.iter().map(|l| f32::from(u8::from(*l))).collect();
        let y = constant::<2>(y, [label.len(), 1], &self.device);
        let open = softplus(logits.clone().neg()) * (y.clone() * KEY_WEIGHT);
        let shut = softplus(logits.clone()) * (y.neg() + 1.0);
        (open + shut).mean()
    }
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
        ("read.bias" | "null", _) => 10.0,
        ("nothing", _) => 3.0,
        ("write.weight" | "write.bias", _) => 4.0,
        _ => 1.0,
    }
}

/// Tokens of a tail that answer nothing, some at random: their places, from 1 on.
fn others(answer: &[bool], rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut all: Vec<usize> = (5..answer.len()).filter(|j| !answer[*j]).collect();
    all.shuffle(rng);
    all.truncate(OTHERS);
    all
}

/// Mean cross-entropy of rows of scores; loss and accuracy go into the report.
fn score(scores: Tensor<2>, targets: &[usize], report: &mut Report) -> Tensor<1> {
    let [n, k] = scores.dims();
    let rows = host(scores.clone());
    let hits = rows.chunks(k).zip(targets).filter(|(row, t)| row.iter().all(|x| *x <= row[**t])).count();
    report.answer_accuracy = hits as f64 / n.max(1) as f64;
    let ids: Vec<i64> = targets.iter().map(|t| *t as i64).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), (&scores.device(), DType::I64));
    let loss = activation::log_softmax(scores, 1).gather(1, ids).neg().sum() / n.max(1) as f64;
    report.answer_loss = f64::from(loss.clone().detach().into_scalar::<f32>());
    loss
}
