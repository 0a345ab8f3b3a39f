//! The losses of the three stages.

use burn::tensor::{DType, Int, Tensor, TensorData, activation};
use infini::config::Write;
use rand_chacha::ChaCha8Rng;

use super::batch::{Batch, Words};
use super::graph::{Lookup, Memory, write_gates};
use super::leaves::host;
use super::pool::{Answer, Document, Tail};
use super::stages::{Report, Said, Stages};
use super::upper::constant;
use crate::ops::composed::softplus;

/// Weight of a key token in the labels of the write gate,
const KEY_WEIGHT: f32 = 3.0;
/// and of a token of a number that is no key: rarer, and what tells them apart must be learned.
const NUMBER_WEIGHT: f32 = 10.0;
/// Nats that the odds of a key must reach to be written: keys are far rarer in books than in the documents of training.
pub(super) const CAUTION: f64 = 3.0;
/// Tokens around a key where a read gate may be open: its sentence reads like an answer.
const SENTENCE: usize = 32;

impl Stages<'_> {
    /// The loss of a stage over documents, each with one of its tails.
    pub(super) fn loss(&self, stage: usize, docs: &[(usize, usize)], rng: &mut ChaCha8Rng) -> (Tensor<1>, Report) {
        let t = &self.config.train;
        let docs: Vec<_> = docs.iter().map(|(i, t)| (&self.documents[*i], &self.documents[*i].tails[*t])).collect();
        if self.config.paper.is_some() {
            return self.paper_loss(docs, rng);
        }
        let rows = Rows::new(&docs);
        let x: Vec<f32> = docs.iter().flat_map(|(doc, _)| &doc.x).copied().collect();
        let x = constant(x, [rows.tails, self.width], &self.device);
        let residual: Vec<f32> = docs.iter().flat_map(|(_, tail)| &tail.residual).copied().collect();
        let residual = constant(residual, [rows.all - rows.tails, self.width], &self.device);
        let all = Tensor::cat(vec![x.clone(), self.upper.normed(residual.clone())], 0);
        // write gates of every token
        let gates = self.write_gates(&rows, all.clone());
        let opened = host(gates.clone());
        let heads = self.config.adapter.heads;
        let open = |i: usize, j: usize| opened[rows.of(i, j) * heads..][..heads].iter().any(|x| *x > 0.0);
        let batch = Batch::new(t, stage, docs, self.config.adapter.delay(), &open, rng);
        let mut report = Report { stage, together: batch.together, ..Report::default() };
        report.written = [true, false].map(|key| {
            let label = batch.docs.iter().flat_map(|(doc, _)| &doc.key);
            let rows = opened.chunks(heads).zip(label).filter(|(_, l)| **l == key);
            mean(rows.flat_map(|(x, _)| x.iter().map(|x| f64::from(u8::from(*x > 0.0)))))
        });

        let at = batch.queries.iter().map(|(i, j)| i * (1 + self.config.data.tail) + 1 + j);
        let places = self.index(at);
        let xq = all.clone().select(0, self.index(batch.queries.iter().map(|(i, j)| rows.tail(*i) + j)));
        let words = Words::new(&batch, &self.config.adapter);
        let memory = self.memory(&words);
        let null = memory.null(xq.clone());
        let a = self.recalled(&memory, stage, &batch, &words, &rows, all, &gates, (&xq, null.clone()));
        let labels = self.write_labels(&gates, &batch) * t.write_labels + lenient(null, &batch) * t.leniency;
        if stage == 0 {
            let classes: Vec<usize> = batch.answers.iter().map(|q| self.class[batch.target(*q) as usize]).collect();
            let scores = self.body.linear(a, self.leaves.get("digits"));
            return (score(scores, &classes, &batch, &mut report) + labels, report);
        }
        let read = memory.read_gate(xq);
        let is_answer: Vec<bool> = (0..batch.queries.len()).map(|q| batch.answer(q).is_some()).collect();
        let opened = host(activation::sigmoid(read.clone()));
        report.read = [true, false].map(|answer| {
            let rows = opened.chunks(heads).zip(&is_answer).filter(|(_, a)| **a == answer);
            mean(rows.flat_map(|(g, _)| g.iter().map(|g| f64::from(*g))))
        });
        let out = memory.output(a, read.clone());
        let hidden = match stage {
            // as if the upper layers did nothing to what is added
            1 => self.base(&batch, 0..batch.queries.len()) + out * self.upper.gain() / self.scale,
            _ => self.through(residual, out).select(0, places),
        };
        let label = is_answer.iter().map(|a| f32::from(u8::from(*a))).collect();
        let label = constant::<2>(label, [is_answer.len(), 1], &self.device);
        let answering = softplus(read.clone().neg()) + read * (label.neg() + 1.0);
        let quiet = constant::<2>(quiet(&batch), [x.dims()[0], 1], &self.device);
        let noise = softplus(memory.read_gate(x)) * quiet;
        let loss = self.spoken(&batch, hidden, &mut report);
        (loss + answering.mean() * t.read_labels + noise.mean() * t.quiet + labels, report)
    }

    /// Logits of the write gates of all tokens, `[n, H]` in the order of `rows`.
    fn write_gates(&self, rows: &Rows, x: Tensor<2>) -> Tensor<2> {
        let (c, d) = (&self.config.adapter, x.dims()[0]);
        let signals = self.body.linear(x, self.leaves.get("write.weight"));
        let nothing = Tensor::zeros([1, signals.dims()[1]], (&self.device, DType::F32));
        let signals = Tensor::cat(vec![signals, nothing], 0);
        let (len, sequences) = rows.sequences(c.delay());
        let gates = write_gates(c, &self.leaves, self.body, signals.select(0, self.index(sequences)), rows.first.len());
        let mut at = vec![0; d];
        for (i, (_, n)) in rows.first.iter().enumerate() {
            (0..n + rows.each - 1).for_each(|j| at[rows.of(i, j)] = i * len + j + c.delay());
        }
        gates.select(0, self.index(at.into_iter()))
    }

    /// The memory on the words of a step.
    fn memory(&self, words: &Words) -> Memory<'_> {
        let raw: Vec<f32> = words.ids.iter().flat_map(|id| self.embedded(*id)).copied().collect();
        let white = constant(self.white(&raw), [words.ids.len(), self.words.rows.len() / self.width], &self.device);
        let raw = constant(raw, [words.ids.len(), self.width], &self.device);
        Memory::new(&self.config.adapter, &self.leaves, self.body, raw, white)
    }

    /// What every query reads, `[n, H·V]`. `x` are the inputs of all tokens, `gates` their write gates' logits, in the order
    /// of `rows`; `xq` the queries' inputs, with their bars of "nothing".
    fn recalled(
        &self,
        memory: &Memory,
        stage: usize,
        batch: &Batch,
        words: &Words,
        rows: &Rows,
        x: Tensor<2>,
        gates: &Tensor<2>,
        (xq, null): (&Tensor<2>, Tensor<2>),
    ) -> Tensor<2> {
        let c = memory.c;
        let own = self.index(batch.keys.iter().map(|(i, j)| rows.of(*i, *j)));
        let previous = self.index(batch.keys.iter().map(|(i, j)| rows.of(*i, j - 1)));
        let keys = (memory.places("key", x.clone().select(0, previous)), memory.pool(&words.keys, c.before + c.after));
        let value = memory.affine("value", x.select(0, own.clone()));
        let strength = match stage {
            2 => self.body.write_gate(gates.clone().select(0, own), Write::Hard),
            _ => Tensor::ones([batch.keys.len(), c.heads], (&self.device, DType::F32)),
        };
        let queries = (memory.places("query", xq.clone()), memory.pool(&words.queries, c.before));
        memory.read(Lookup { queries, keys, value, strength, null, memories: &batch.memories })
    }

    /// The base's final hidden states at queries.
    fn base(&self, batch: &Batch, queries: impl Iterator<Item = usize> + Clone) -> Tensor<2> {
        let d = self.width;
        let hidden = queries.clone().flat_map(|q| {
            let (i, j) = batch.queries[q];
            batch.docs[i].1.hidden[j * d..(j + 1) * d].iter().copied()
        });
        constant(hidden.collect(), [queries.count(), d], &self.device)
    }

    /// The true layers: final hidden states over first tokens and tails when `out`, of the tails' tokens in order,
    /// joins what the memory's layer adds.
    fn through(&self, residual: Tensor<2>, out: Tensor<2>) -> Tensor<2> {
        let (tail, d) = (self.config.data.tail, self.width);
        let n = residual.dims()[0] / (1 + tail);
        // nothing is added to the first tokens
        let zero = Tensor::<3>::zeros([n, 1, d], (&self.device, DType::F32));
        let added = Tensor::cat(vec![zero, out.reshape([n, tail, d])], 1).reshape([n * (1 + tail), d]);
        self.upper.hidden(self.upper.forward(residual, Some(added)))
    }

    /// Cross-entropy of answers and divergence from the base elsewhere, of the queries' final hidden states.
    pub(super) fn spoken(&self, batch: &Batch, hidden: Tensor<2>, report: &mut Report) -> Tensor<1> {
        let select = |rows: &[usize]| hidden.clone().select(0, self.index(rows.iter().copied()));
        let targets: Vec<usize> = batch.answers.iter().map(|q| batch.target(*q) as usize).collect();
        let loss = score(self.upper.logits(select(&batch.answers)), &targets, batch, report);
        let base = self.base(batch, batch.others.iter().copied());
        let expected = activation::log_softmax(self.upper.logits(base), 1).detach();
        let ours = activation::log_softmax(self.upper.logits(select(&batch.others)), 1);
        let divergence = (expected.clone().exp() * (expected - ours)).sum() / batch.others.len().max(1) as f64;
        report.divergence = f64::from(divergence.clone().detach().into_scalar::<f32>());
        loss + divergence * self.config.train.divergence
    }

    /// Whitened embeddings.
    fn white(&self, raw: &[f32]) -> Vec<f32> {
        let (d, k) = (self.width, self.words.rows.len() / self.width);
        let rows: Vec<f32> = self.words.rows.iter().map(|x| *x as f32).collect();
        let centred: Vec<f32> =
            raw.iter().enumerate().map(|(i, x)| (f64::from(*x) - self.words.mean[i % d]) as f32).collect();
        let mut out = vec![0.0; raw.len() / d * k];
        infini_kernels::linear::forward(&centred, &rows, &mut out, [raw.len() / d, d, k], false);
        out
    }

    /// Binary cross-entropy of the write gates with the keys' tokens as labels. Answers have none: to say a key is to tell it.
    fn write_labels(&self, logits: &Tensor<2>, batch: &Batch) -> Tensor<1> {
        let weights = |id: u32, key: bool, answer: bool| match (key, answer) {
            (true, _) => (KEY_WEIGHT, 0.0),
            (_, true) => (0.0, 0.0),
            _ if self.class[id as usize] < 10 => (0.0, NUMBER_WEIGHT),
            _ => (0.0, 1.0),
        };
        let told = batch
            .docs
            .iter()
            .flat_map(|(doc, _)| doc.ids.iter().zip(&doc.key).map(|(id, key)| weights(*id, *key, false)));
        let tails = batch.docs.iter().flat_map(|(_, tail)| {
            let own = tail.ids.iter().zip(&tail.key).zip(&tail.answer);
            // the document's first token stands before each tail
            std::iter::once((0.0, 0.0)).chain(own.map(|((id, key), a)| weights(*id, *key, a.is_some())))
        });
        let (open, shut): (Vec<f32>, Vec<f32>) = told.chain(tails).unzip();
        let column = |x: Vec<f32>| constant::<2>(x, [logits.dims()[0], 1], &self.device);
        let logits = logits.clone() + CAUTION;
        (softplus(logits.clone().neg()) * column(open) + softplus(logits) * column(shut)).mean()
    }

    fn index(&self, rows: impl Iterator<Item = usize>) -> Tensor<1, Int> {
        let rows: Vec<i64> = rows.map(|r| r as i64).collect();
        let n = rows.len();
        Tensor::from_data(TensorData::new(rows, [n]), (&self.device, DType::I64))
    }
}

/// Where the tokens of a step stand among those of all: first the remembered ones of every document, then for every
/// document its first token once more and its tail.
struct Rows {
    /// First row of each document, and its tokens.
    first: Vec<(usize, usize)>,
    /// First row of the tails, and rows of each.
    tails: usize,
    each: usize,
    all: usize,
}

impl Rows {
    fn new(docs: &[(&Document, &Tail)]) -> Self {
        let mut at = 0;
        let mut first = Vec::with_capacity(docs.len());
        for (doc, _) in docs {
            first.push((at, doc.ids.len()));
            at += doc.ids.len();
        }
        let each = docs.first().map_or(0, |(_, tail)| 1 + tail.ids.len());
        Rows { first, tails: at, each, all: at + docs.len() * each }
    }

    /// The tokens of every document and its tail, and as many rows of nothing (`all`) as make them equally long with at least
    /// `delay` behind the last; the length of each.
    fn sequences(&self, delay: usize) -> (usize, impl Iterator<Item = usize>) {
        let tokens = |n: usize| n + self.each - 1;
        let len = self.first.iter().map(|(_, n)| tokens(*n)).max().unwrap_or(0) + delay;
        let rows =
            self.first.iter().enumerate().flat_map(move |(i, (_, n))| {
                (0..len).map(move |j| if j < tokens(*n) { self.of(i, j) } else { self.all })
            });
        (len, rows)
    }

    /// First token of the tail of document `i`.
    fn tail(&self, i: usize) -> usize {
        self.tails + i * self.each + 1
    }

    /// Token `j` of document `i`, its tail behind it.
    fn of(&self, i: usize, j: usize) -> usize {
        let (first, n) = self.first[i];
        if j < n { first + j } else { self.tail(i) + j - n }
    }
}

/// 1 for the remembered tokens with no key near them.
fn quiet(batch: &Batch) -> Vec<f32> {
    batch.docs.iter().flat_map(|(doc, _)| far(&doc.key)).map(|far| f32::from(u8::from(far))).collect()
}

/// Which tokens have no key within [`SENTENCE`] tokens.
fn far(key: &[bool]) -> impl Iterator<Item = bool> {
    let near = |j: usize| j.saturating_sub(SENTENCE)..key.len().min(j + SENTENCE + 1);
    (0..key.len()).map(move |j| !key[near(j)].contains(&true))
}

/// The mean bar of "nothing" where a key that was told is asked for.
fn lenient(null: Tensor<2>, batch: &Batch) -> Tensor<1> {
    let told = |q: &usize| batch.answer(*q).is_some_and(|a| a != Answer::Absent);
    let rows: Vec<i64> = batch.answers.iter().copied().filter(told).map(|q| q as i64).collect();
    let n = (rows.len() * null.dims()[1]).max(1) as f64;
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), &null.device());
    null.select(0, rows).sum() / n
}

fn mean(x: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = x.fold((0.0, 0.0f64), |(s, n), x| (s + x, n + 1.0));
    sum / n.max(1.0)
}

/// Mean cross-entropy of the answers' scores; the loss and what was said go into the report.
fn score(scores: Tensor<2>, targets: &[usize], batch: &Batch, report: &mut Report) -> Tensor<1> {
    let [n, k] = scores.dims();
    let rows = host(scores.clone());
    report.said = (rows.chunks(k).zip(targets).zip(&batch.answers))
        .filter_map(|((row, t), q)| {
            let (i, j) = batch.queries[*q];
            Some(Said { document: i, place: j, kind: batch.answer(*q)?, right: row.iter().all(|x| *x <= row[*t]) })
        })
        .collect();
    let ids: Vec<i64> = targets.iter().map(|t| *t as i64).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), (&scores.device(), DType::I64));
    let loss = activation::log_softmax(scores, 1).gather(1, ids).neg().sum() / n.max(1) as f64;
    report.answer_loss = f64::from(loss.clone().detach().into_scalar::<f32>());
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_follows_its_document_and_what_is_not_there_is_nothing() {
        // documents of 5 and 3 tokens, tails of 2 behind a first token each
        let rows = Rows { first: vec![(0, 5), (5, 3)], tails: 8, each: 3, all: 14 };
        let (len, sequences) = rows.sequences(2);
        let one = [0, 1, 2, 3, 4, 9, 10, 14, 14];
        let two = [5, 6, 7, 12, 13, 14, 14, 14, 14];
        assert_eq!((len, sequences.collect::<Vec<_>>()), (9, [one, two].concat()));
    }

    #[test]
    fn far_is_more_than_a_sentence_away() {
        let mut key = vec![false; 200];
        key[100..103].fill(true);
        let near: Vec<usize> = far(&key).enumerate().filter(|(_, far)| !far).map(|(j, _)| j).collect();
        assert_eq!(near, (100 - SENTENCE..=102 + SENTENCE).collect::<Vec<_>>());
    }
}
