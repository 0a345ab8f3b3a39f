//! Learns to read a counting memory ([`infini::tally`]): a window-only decoder reads books, the memory counts what has
//! left the window, and a network of a few hundred numbers learns by how much to raise a logit.
//!
//! Only token identities are counted, so an excerpt can begin with a memory of any length at no cost: of
//! what stands before it in its book, or of another book. Nothing of the decoder is in the gradient: with candidates `w`,
//! their probability `p_w` and raise `b_w`, the memory's ratio to the window is `r_y = e^{b_y} / (1 + Σ p_w (e^{b_w} − 1))`,
//! and the mixture's loss `L_window − ln(1 − ω + ω r_y)`: each token counts by the share ω r_y / (1 − ω + ω r_y) that
//! the memory has in it, so that it learns where it is believed ((36) of `docs/math.md`).

use std::path::{Path, PathBuf};

use infini::folder::Loaded;
use infini::model::Want;
use infini::tally::{Candidates, Counts, LIMIT, Query, Tally, TallyConfig, trust, write};
use infini::tasks::filler::book_files;
use infini::text::Tokenizer;
use infini::text::unwrap::unwrap;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Everything that is needed to repeat such an adaptation: TOML with the sections `[tally]`, `[data]` and `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TallyRun {
    /// Sizes of the memory; its presence tells this kind of configuration from that of the other adapter.
    pub tally: TallyConfig,
    /// What is read.
    #[serde(default)]
    pub data: Excerpts,
    /// How it is learned from.
    #[serde(default)]
    pub train: Learning,
}

/// Excerpts of the books of `--data DIR`, `DIR/train/*.txt`, the books in turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Excerpts {
    /// How many.
    pub excerpts: usize,
    /// Of these the last so many are not learned from: they measure.
    pub held_out: usize,
    /// Tokens of each, whole segments.
    pub tokens: usize,
    /// Most tokens that the memory has counted before an excerpt; drawn evenly in its logarithm, from its length on.
    pub before: usize,
    /// Share of excerpts whose memory counted another book before.
    pub foreign: f64,
    /// Share of excerpts whose memory is empty at first.
    pub empty: f64,
    /// Seed of the choice.
    pub seed: u64,
}

impl Default for Excerpts {
    fn default() -> Self {
        Excerpts { excerpts: 48, held_out: 8, tokens: 2048, before: 65_536, foreign: 0.2, empty: 0.3, seed: 0 }
    }
}

/// The optimiser: Adam, one step a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Learning {
    /// Peak learning rate; it falls linearly to a fiftieth over the second half.
    pub lr: f64,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for Learning {
    fn default() -> Self {
        Learning { lr: 1e-2, seed: 0 }
    }
}

/// Whether a configuration is one of these: it has a section `[tally]`.
pub fn is_tally(text: &str) -> bool {
    text.parse::<toml::Table>().is_ok_and(|t| t.contains_key("tally"))
}

impl TallyRun {
    /// Reads a configuration.
    ///
    /// # Errors
    /// TOML that does not parse, an unknown key, a value that cannot be.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |field: &str, why: String| infini::Error::Config { field: field.into(), why };
        let run: TallyRun = toml::from_str(text).map_err(|e| bad("the file", e.to_string()))?;
        run.tally.check()?;
        let (d, s) = (&run.data, run.tally.segment_len);
        let counts = [("data.excerpts", d.excerpts), ("data.before", d.before)];
        if let Some((field, n)) = counts.into_iter().find(|(_, n)| *n == 0 || *n > 1 << 24) {
            return Err(bad(field, format!("{n} is outside 1..={}", 1 << 24)).into());
        }
        if d.tokens < 3 * s || !d.tokens.is_multiple_of(s) || d.tokens > 1 << 24 {
            return Err(bad("data.tokens", format!("{} are not three segments of {s} or more", d.tokens)).into());
        }
        if d.held_out == 0 || d.held_out >= d.excerpts {
            return Err(bad("data.held_out", format!("{} of {} excerpts", d.held_out, d.excerpts)).into());
        }
        if !(d.foreign >= 0.0 && d.empty >= 0.0 && d.foreign + d.empty <= 1.0) {
            return Err(bad("data.foreign", format!("{} and empty = {} are no shares", d.foreign, d.empty)).into());
        }
        if !(run.train.lr > 0.0 && run.train.lr <= 1.0) {
            return Err(bad("train.lr", format!("{} is outside 0..=1", run.train.lr)).into());
        }
        Ok(run)
    }
}

/// What the memory had counted when an excerpt began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Empty,
    /// The tokens before it.
    Own,
    /// Tokens of another book.
    Foreign,
}

/// One excerpt, read.
#[derive(Clone, Copy, Debug)]
pub struct Excerpt {
    /// Its number.
    pub index: usize,
    /// Of so many.
    pub of: usize,
    /// What was counted before.
    pub before: Before,
    /// Mean loss of the window alone, in nats.
    pub loss: f64,
    /// By how much the memory lowers it.
    pub gain: f64,
    /// Tokens that both are a mean over.
    pub tokens: usize,
}

/// Adam on a few numbers.
struct Adam {
    mean: Vec<f64>,
    square: Vec<f64>,
    steps: i32,
}

impl Adam {
    fn new(n: usize) -> Self {
        Adam { mean: vec![0.0; n], square: vec![0.0; n], steps: 0 }
    }

    fn step<'a>(&mut self, numbers: impl Iterator<Item = &'a mut f32>, gradient: &[f64], lr: f64) {
        const B1: f64 = 0.9;
        const B2: f64 = 0.98;
        self.steps += 1;
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt().max(1.0);
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((x, g), (m, v)) in numbers.zip(gradient).zip(moments) {
            let g = g / norm;
            *m = B1 * *m + (1.0 - B1) * g;
            *v = B2 * *v + (1.0 - B2) * g * g;
            let (m, v) = (*m / (1.0 - B1.powi(self.steps)), *v / (1.0 - B2.powi(self.steps)));
            *x -= (lr * m / (v.sqrt() + 1e-8)) as f32;
        }
    }
}

/// ln of the memory's ratio to the window at `target` and, into `gradient`, that of its loss (network's tensors one after
/// another), the mixture's where the odds of memory against window are `odds`.
fn token(tally: &Tally, c: &Candidates, target: u32, odds: f32, gradient: &mut [f64]) -> f64 {
    let raises = tally.raises(c);
    let grown: f64 = raises.iter().zip(&c.probability).map(|(b, p)| f64::from(*p) * f64::from(*b).exp_m1()).sum();
    let at = c.ids.binary_search(&target).ok();
    let evidence = at.map_or(0.0, |i| f64::from(raises[i])) - grown.ln_1p();
    let share = sigmoid(f64::from(odds) + evidence);
    let [weight, bias, output, _] = tally.network();
    let (n, count) = (output.len(), c.ids.len());
    for (i, raise) in raises.iter().enumerate() {
        let mut slope = f64::from(c.probability[i]) * f64::from(*raise).exp() / (1.0 + grown);
        if at == Some(i) {
            slope -= 1.0;
        }
        slope *= share;
        // most candidates have no part in it
        if raise.abs() >= LIMIT || slope.abs() < 1e-6 {
            continue;
        }
        let features = c.features[i..].iter().step_by(count).chain(&c.shared);
        let mut units = bias.clone();
        for (x, row) in features.clone().zip(weight.chunks_exact(n)) {
            units.iter_mut().zip(row).for_each(|(u, w)| *u += x * w);
        }
        let slopes: Vec<f64> =
            units.iter().zip(output).map(|(u, o)| if *u > 0.0 { slope * f64::from(*o) } else { 0.0 }).collect();
        let (of_weight, rest) = gradient.split_at_mut(weight.len());
        for (x, row) in features.zip(of_weight.chunks_exact_mut(n)) {
            row.iter_mut().zip(&slopes).for_each(|(g, s)| *g += s * f64::from(*x));
        }
        for (j, u) in units.iter().enumerate() {
            rest[j] += slopes[j];
            rest[n + j] += slope * f64::from(u.max(0.0));
        }
        rest[2 * n] += slope;
    }
    evidence
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The books of a folder, as tokens.
fn books(dir: &Path, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let folder = dir.join("train");
    let read = |f: &PathBuf| match std::fs::read(f) {
        Ok(bytes) => Ok(tokenizer.encode(&unwrap(&String::from_utf8_lossy(&bytes)))),
        Err(e) => Err(Error::file(format!("cannot read: {}: {e}", f.display()))),
    };
    book_files(&folder)?.iter().map(read).collect()
}

/// The network at its start: hidden units drawn, output zero, so that nothing is raised.
fn start(c: &TallyConfig, seed: u64) -> [Vec<f32>; 4] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let bound = (c.features() as f32).sqrt().recip();
    let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-bound..bound)).collect();
    [draw(c.hidden * c.features()), draw(c.hidden), vec![0.0; c.hidden], vec![0.0]]
}

/// Learns a counting memory for `base`. `None` if `stop` said so before the end.
///
/// # Errors
/// A folder without books that are long enough, a base that cannot have a window, files that cannot be read.
pub fn learn(
    run: &TallyRun,
    mut base: Loaded,
    data_dir: &Path,
    stop: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(Excerpt),
) -> Result<Option<Tally>> {
    let (c, d) = (&run.tally, &run.data);
    base.model.fit_window(c.window())?;
    let mut books = books(data_dir, &base.tokenizer)?;
    let v = base.model.config().vocab_size;
    let mut shares = vec![0.5; v];
    books.iter().flatten().for_each(|t| shares[*t as usize] += 1.0);
    let all: f64 = shares.iter().sum();
    let common = shares.iter().map(|n| (n / all).ln() as f32).collect();
    books.retain(|b| b.len() > d.tokens);
    if books.len() < 2 {
        let dir = data_dir.join("train");
        return Err(Error::file(format!("{}: fewer than two books of more than {} tokens", dir.display(), d.tokens)));
    }
    let mut tally = Tally::new(c.clone(), base.identity.weights.clone(), common, start(c, run.train.seed))?;
    let mut rng = ChaCha8Rng::seed_from_u64(d.seed);
    let mut adam = Adam::new(c.hidden * (c.features() + 2) + 1);
    let learned = d.excerpts - d.held_out;
    let shift = rng.random_range(0..books.len());
    for index in 0..d.excerpts {
        if stop() {
            return Ok(None);
        }
        let own = (index + shift) % books.len();
        let at = rng.random_range(0..books[own].len() - d.tokens);
        let x = rng.random::<f64>();
        let before = if x < d.empty {
            Before::Empty
        } else if x < d.empty + d.foreign {
            Before::Foreign
        } else {
            Before::Own
        };
        let least = d.tokens.min(d.before) as f64;
        let n = (least * (d.before as f64 / least).powf(rng.random::<f64>())) as usize;
        let counted = match before {
            Before::Empty => &[][..],
            Before::Own => &books[own][at - n.min(at)..at],
            Before::Foreign => {
                let other = &books[(own + rng.random_range(1..books.len())) % books.len()];
                let n = n.min(other.len());
                let from = rng.random_range(0..=other.len() - n);
                &other[from..from + n]
            }
        };
        let rate = |done: usize| run.train.lr * (2.0 * (1.0 - done as f64 / learned as f64)).clamp(0.02, 1.0);
        let lr = (index < learned).then(|| rate(index));
        let (loss, gain, tokens) = excerpt(&base, &mut tally, counted, &books[own][at..at + d.tokens], lr, &mut adam);
        progress(Excerpt { index, of: d.excerpts, before, loss, gain, tokens });
    }
    Ok(Some(tally))
}

/// Reads an excerpt, its memory having counted `counted`; learns if there is a rate. Mean loss and gain, tokens.
fn excerpt(
    base: &Loaded,
    tally: &mut Tally,
    counted: &[u32],
    text: &[u32],
    lr: Option<f64>,
    adam: &mut Adam,
) -> (f64, f64, usize) {
    let (s, orders, v) = (tally.config().segment_len, tally.config().orders, tally.vocab());
    let (mut tokens, mut cells) = (vec![0.0; v], vec![0.0; tally.config().sketch()]);
    let count = |all: &[u32], from: usize, to: usize, cells: &mut [f32], tokens: &mut [f32]| {
        (from..to).for_each(|i| write(tokens, cells, &all[i.saturating_sub(orders)..i], all[i]));
    };
    count(counted, 0, counted.len(), &mut cells, &mut tokens);
    let mut state = base.model.state(1);
    let mut candidates = Candidates::default();
    let (mut loss, mut gain, mut scored) = (0.0, 0.0, 0);
    let mut odds = 0.0;
    for begin in (0..text.len()).step_by(s) {
        let end = begin + s;
        let logits = base.model.forward(&mut state, &text[begin..end], Want::All);
        if begin >= 2 * s {
            count(text, begin - 2 * s, begin - s, &mut cells, &mut tokens);
        }
        if begin == 0 {
            continue;
        }
        let mut window = vec![0.0; v];
        text[begin - s..begin].iter().for_each(|t| window[*t as usize] += 1.0);
        let written = tokens.iter().sum();
        let mut gradient = vec![0.0; adam.mean.len()];
        let mut n = 0;
        for (i, logits) in logits.chunks_exact(v).enumerate().take((text.len() - 1 - begin).min(s)) {
            let at = begin + i;
            window[text[at] as usize] += 1.0;
            let target = text[at + 1];
            let q = Query { context: &text[at + 1 - orders..=at], window: &window, written };
            tally.candidates(Counts { tokens: &tokens, cells: &cells }, q, logits, &mut candidates);
            let largest = logits.iter().fold(f32::NEG_INFINITY, |m, l| m.max(*l));
            let sum: f64 = logits.iter().map(|l| f64::from((l - largest).exp())).sum();
            loss += sum.ln() - f64::from(logits[target as usize] - largest);
            let evidence = token(tally, &candidates, target, odds, &mut gradient);
            let weight = sigmoid(f64::from(odds));
            gain += (1.0 - weight + weight * evidence.exp()).ln();
            odds = trust(odds, evidence as f32);
            n += 1;
        }
        scored += n;
        if let Some(lr) = lr.filter(|_| n > 0) {
            gradient.iter_mut().for_each(|g| *g /= n as f64);
            adam.step(tally.network_mut().iter_mut().flatten(), &gradient, lr);
        }
    }
    let n = scored.max(1) as f64;
    (loss / n, gain / n, scored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let c = TallyConfig { orders: 1, hidden: 3, cells: 64, ..TallyConfig::default() };
        let numbers = |n: usize, k: f32| (0..n).map(|i| (1.0 + i as f32 * k).sin()).collect::<Vec<f32>>();
        let network = [numbers(24, 0.7), numbers(3, 0.3), numbers(3, 1.1), vec![0.2]];
        let tally = Tally::new(c, "0".repeat(64), vec![-3.0; 9], network).unwrap();
        let c = Candidates {
            ids: vec![1, 4, 7],
            features: numbers(15, 1.7),
            shared: numbers(3, 0.9),
            probability: vec![0.2, 0.05, 0.4],
        };
        let weight = sigmoid(0.7);
        for target in [4, 5] {
            let mut gradient = vec![0.0; 31];
            token(&tally, &c, target, 0.7, &mut gradient);
            assert_eq!(tally.network().iter().flatten().count(), 31);
            for (i, g) in gradient.iter().enumerate() {
                let at = |step: f32| {
                    let mut t = tally.clone();
                    *t.network_mut().iter_mut().flatten().nth(i).unwrap() += step;
                    -(1.0 - weight + weight * token(&t, &c, target, 0.7, &mut [0.0; 31]).exp()).ln()
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((slope - g).abs() < 2e-3, "{target}, number {i}: {slope} against {g}");
            }
        }
    }
}
