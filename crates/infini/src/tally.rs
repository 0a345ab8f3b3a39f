//! A memory that counts: what followed what, in tables of fixed size beside a pretrained decoder.
//!
//! Every token that leaves the window is counted, alone and after its last one, two, … tokens; pairs and triples share a
//! count-min sketch (Cormode and Muthukrishnan 2005), a linear memory whose address is a hash of context and token
//! together. A read raises the logits of tokens that were counted by what a small learned network makes of their
//! counts, of the base's own probability and of how common they are. It is the cache model of Kuhn and De Mori (1990) in constant
//! space with a learned gate: nothing in the decoder changes, and writing costs no arithmetic but hashes.
//! Equations (33)–(36) of `docs/math.md`.
//!
//! A memory that has counted something else can be wrong on every line, and no count tells. So window and memory are two
//! experts whose weight follows what came true (fixed share, Herbster and Warmuth 1998): equation (36). Whatever the memory
//! holds, a long text loses next to nothing by it.
//!
//! While nothing has left the window there is no candidate, and the logits are the base's, bit by bit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use infini_format::io::{self, PUBLIC, RealIo};
use infini_format::tensors::{Tensor, TensorFile, TensorView, serialize};
use infini_kernels::math::{self, sigmoid};
use serde::{Deserialize, Serialize};

use crate::bound;
use crate::config::InfiniConfig;
use crate::error::{Error, Result};

/// `format` of the file's metadata.
pub(crate) const FORMAT: &str = "infini-tally";
const VERSION: &str = "2";
/// A read moves a logit by at most this.
pub const LIMIT: f32 = 8.0;
/// Log-probabilities below this are all alike to the network.
const FLOOR: f32 = -20.0;
/// Rows of the sketch.
const ROWS: usize = 2;
/// (36): how much of the weight is shared out anew at every token.
const SHARE: f32 = 0.01;

/// Sizes of a counting memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TallyConfig {
    /// Tokens of a segment; the window spans two.
    pub segment_len: usize,
    /// First tokens of a document that every window keeps.
    pub sink: usize,
    /// Longest context that is counted, in tokens.
    pub orders: usize,
    /// Cells of each of the sketch's two rows, a power of two.
    pub cells: usize,
    /// Hidden units of the network that reads.
    pub hidden: usize,
}

impl Default for TallyConfig {
    fn default() -> Self {
        TallyConfig { segment_len: 256, sink: 1, orders: 2, cells: 1 << 18, hidden: 16 }
    }
}

impl TallyConfig {
    /// Numbers of its own that a candidate is judged by.
    pub fn own_features(&self) -> usize {
        4 + self.orders
    }

    /// Numbers that a candidate is judged by: its own, then those that all candidates of a read share.
    pub fn features(&self) -> usize {
        self.own_features() + 2 + self.orders
    }

    /// Numbers of the sketch.
    pub fn sketch(&self) -> usize {
        ROWS * self.cells
    }

    /// Names and shapes of the tensors for a vocabulary of `v`.
    pub fn parameters(&self, v: usize) -> [(&'static str, Vec<usize>); 5] {
        let (f, h) = (self.features(), self.hidden);
        [
            ("common", vec![v]),
            ("hidden.weight", vec![f, h]),
            ("hidden.bias", vec![h]),
            ("output.weight", vec![h]),
            ("output.bias", vec![1]),
        ]
    }

    /// The window that the base gets: two segments with attention sinks.
    pub fn window(&self) -> InfiniConfig {
        InfiniConfig { segment_len: self.segment_len, span: 2, lag: 1, sink: self.sink, ..InfiniConfig::default() }
    }

    /// Refuses sizes that cannot be.
    ///
    /// # Errors
    /// The first such value, by name.
    pub fn check(&self) -> Result<()> {
        let bad = |field: &str, why: String| Err(Error::Config { field: format!("tally.{field}"), why });
        let sizes = [
            ("segment_len", self.segment_len, 1 << 16),
            ("orders", self.orders, 4),
            ("cells", self.cells, 1 << 22),
            ("hidden", self.hidden, 256),
        ];
        for (field, n, max) in sizes {
            if n == 0 || n > max {
                return bad(field, format!("{n} is outside 1..={max}"));
            }
        }
        if !self.cells.is_power_of_two() {
            return bad("cells", format!("{} is no power of two", self.cells));
        }
        if self.orders > self.segment_len {
            return bad("orders", format!("{} is above the segment's {}", self.orders, self.segment_len));
        }
        if self.sink > self.segment_len.min(64) {
            return bad("sink", format!("{} is above 64 or the segment's {}", self.sink, self.segment_len));
        }
        Ok(())
    }
}

/// Counts of one document.
#[derive(Clone, Copy, Debug)]
pub struct Counts<'a> {
    /// Of each token, `[V]`.
    pub tokens: &'a [f32],
    /// The sketch, `[2, cells]`.
    pub cells: &'a [f32],
}

/// Index of `token` after `context` in row `row` of a sketch of `cells` cells a row.
fn cell(cells: usize, row: usize, context: &[u32], token: u32) -> usize {
    let mut h = (1 + row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for x in context.iter().chain([&token]) {
        h = (h ^ u64::from(*x)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 32;
        h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^= h >> 29;
    }
    row * cells + (h as usize & (cells - 1))
}

/// (33): counts `token` after `context`, its last tokens (oldest first; fewer than the orders at a document's start).
pub fn write(tokens: &mut [f32], cells: &mut [f32], context: &[u32], token: u32) {
    let n = cells.len() / ROWS;
    tokens[token as usize] += 1.0;
    for from in 0..context.len() {
        for row in 0..ROWS {
            cells[cell(n, row, &context[from..], token)] += 1.0;
        }
    }
}

impl Counts<'_> {
    /// How often `token` stood after `context`: never too small, too large where hashes meet.
    fn after(&self, context: &[u32], token: u32) -> f32 {
        let n = self.cells.len() / ROWS;
        let sketched = || (0..ROWS).map(|row| self.cells[cell(n, row, context, token)]).fold(f32::INFINITY, f32::min);
        if context.is_empty() { self.tokens[token as usize] } else { sketched() }
    }

    /// How often the tokens of `context` stood one after the other.
    fn seen(&self, context: &[u32]) -> f32 {
        context.split_last().map_or(0.0, |(last, before)| self.after(before, *last))
    }
}

/// Where a read stands.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The last tokens, oldest first, at most as many as the orders.
    pub context: &'a [u32],
    /// How often each token stands in the window, `[V]`.
    pub window: &'a [f32],
    /// Tokens that were counted.
    pub written: f32,
}

/// The candidates of one read and what each is judged by.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// Tokens that were counted, in order.
    pub ids: Vec<u32>,
    /// Their own features, `[n, own_features]`.
    pub features: Vec<f32>,
    /// The features that they share.
    pub shared: Vec<f32>,
    /// Their probabilities under the base.
    pub probability: Vec<f32>,
}

/// What a memory says of the next token, beside the window: `p_memory / p_window`.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The candidates, in order.
    pub ids: Vec<u32>,
    /// Their ratios.
    pub ratios: Vec<f32>,
    /// The ratio of every other token.
    pub other: f32,
}

impl Reading {
    /// ln of the ratio of `token`.
    pub fn evidence(&self, token: u32) -> f32 {
        self.ids.binary_search(&token).map_or(self.other, |i| self.ratios[i]).ln()
    }

    /// (36): adds to `logits` what the mixture makes of the window's; those of tokens that were never counted stay.
    pub fn mix(&self, odds: f32, logits: &mut [f32]) {
        let trust = sigmoid(odds);
        let mixed = |ratio: f32| 1.0 - trust + trust * ratio;
        let other = mixed(self.other);
        for (id, ratio) in self.ids.iter().zip(&self.ratios) {
            logits[*id as usize] += (mixed(*ratio) / other).ln();
        }
    }
}

/// (36): ln of the odds of memory against window after a token came of which ln(p_memory / p_window) was `evidence`.
/// Odds of 1 (0 here) are where a document begins.
pub fn trust(odds: f32, evidence: f32) -> f32 {
    let weight = SHARE + (1.0 - 2.0 * SHARE) * sigmoid(odds + evidence);
    (weight / (1.0 - weight)).ln()
}

/// ln(1 + n) of a count.
fn ln_count(n: f32) -> f32 {
    static TABLE: LazyLock<Vec<f32>> = LazyLock::new(|| (0..4096).map(|n| (n as f32).ln_1p()).collect());
    TABLE.get(n as usize).filter(|_| n.fract() == 0.0).copied().unwrap_or_else(|| n.ln_1p())
}

/// Largest logit, ln Σ e^l and the entropy of a distribution.
fn measure(logits: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let largest = math::max(logits);
    let (mut sum, mut mean) = ([0f32; LANES], [0f32; LANES]);
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (l, (s, m)) in chunk.iter().zip(sum.iter_mut().zip(&mut mean)) {
            let e = math::exp(l - largest);
            *s += e;
            *m += e * (l - largest);
        }
    }
    for (l, (s, m)) in rest.iter().zip(sum.iter_mut().zip(&mut mean)) {
        let e = math::exp(l - largest);
        *s += e;
        *m += e * (l - largest);
    }
    let [sum, mean] = [sum, mean].map(|x| x.iter().map(|x| f64::from(*x)).sum::<f64>());
    (largest + sum.ln() as f32, (sum.ln() - mean / sum) as f32)
}

/// A counting memory's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    config: TallyConfig,
    base: String,
    /// ln of each token's share of ordinary text.
    common: Vec<f32>,
    /// The network, in the order of [`TallyConfig::parameters`] from `hidden.weight` on.
    network: [Vec<f32>; 4],
}

impl Tally {
    /// `base` is the SHA-256 of the base's weights, `common` ln of each token's share of ordinary text, `[V]`.
    ///
    /// # Errors
    /// Sizes that cannot be; a tensor of another length or not finite, by name.
    pub fn new(config: TallyConfig, base: String, common: Vec<f32>, network: [Vec<f32>; 4]) -> Result<Self> {
        config.check()?;
        let v = common.len();
        for ((name, shape), data) in config.parameters(v).iter().zip([&common].into_iter().chain(&network)) {
            let n: usize = shape.iter().product();
            if data.len() != n {
                return Err(Error::Model(format!("{name} has {} values, the sizes say {n}", data.len())));
            }
            if let Some(i) = data.iter().position(|x| !x.is_finite()) {
                return Err(Error::Model(format!("{name} holds {} at element {i}", data[i])));
            }
        }
        Ok(Tally { config, base, common, network })
    }

    /// Its sizes.
    pub fn config(&self) -> &TallyConfig {
        &self.config
    }

    /// SHA-256 of the weights it belongs to.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.common.len()
    }

    /// The network's tensors, in the order of [`TallyConfig::parameters`] from `hidden.weight` on.
    pub fn network(&self) -> &[Vec<f32>; 4] {
        &self.network
    }

    /// The network's tensors, in the order of [`TallyConfig::parameters`] from `hidden.weight` on.
    pub fn network_mut(&mut self) -> &mut [Vec<f32>; 4] {
        &mut self.network
    }

    /// (34): the candidates of a read and their features; `logits` are the base's, `[V]`.
    pub fn candidates(&self, counts: Counts, q: Query, logits: &[f32], out: &mut Candidates) {
        out.ids.clear();
        out.features.clear();
        out.shared.clear();
        out.probability.clear();
        out.ids.extend((0..self.vocab() as u32).filter(|w| counts.tokens[*w as usize] > 0.0));
        if out.ids.is_empty() {
            return;
        }
        let (log_sum, entropy) = measure(logits);
        out.shared.extend([entropy / 5.0, (q.written / 1024.0).ln_1p()]);
        let contexts: Vec<(&[u32], f32)> = (1..=self.config.orders)
            .map(|n| q.context.len().checked_sub(n).map_or(&[][..], |from| &q.context[from..]))
            .map(|c| (c, counts.seen(c)))
            .collect();
        out.shared.extend(contexts.iter().map(|(_, seen)| ln_count(*seen)));
        for w in &out.ids {
            let i = *w as usize;
            let (count, lp) = (counts.tokens[i], logits[i] - log_sum);
            out.probability.push(math::exp(lp));
            let common = self.common[i] / 5.0 + 2.0;
            out.features.extend([lp.clamp(FLOOR, 0.0) / 5.0, ln_count(count), common, ln_count(q.window[i])]);
            for (context, seen) in &contexts {
                let n = if *seen > 0.0 { counts.after(context, *w).min(count).min(*seen) } else { 0.0 };
                out.features.push(ln_count(n));
            }
        }
    }

    /// Adds to `units` (`[hidden]`) what `features` give, the first of which is number `from`.
    fn add(&self, from: usize, features: &[f32], units: &mut [f32]) {
        for (x, column) in features.iter().zip(self.network[0][from * units.len()..].chunks_exact(units.len())) {
            units.iter_mut().zip(column).for_each(|(u, w)| *u += x * w);
        }
    }

    /// (35): how much the logit of each candidate rises; `each` sees its index, its hidden units and the raise.
    pub fn raises(&self, c: &Candidates, mut each: impl FnMut(usize, &[f32], f32)) {
        let [_, bias, output, shift] = &self.network;
        let own = self.config.own_features();
        let mut shared = bias.clone();
        self.add(own, &c.shared, &mut shared);
        let mut units = shared.clone();
        for (i, features) in c.features.chunks_exact(own).enumerate() {
            units.copy_from_slice(&shared);
            self.add(0, features, &mut units);
            units.iter_mut().for_each(|u| *u = u.max(0.0));
            let raise: f32 = units.iter().zip(output).map(|(u, o)| u * o).sum();
            each(i, &units, (raise + shift[0]).clamp(-LIMIT, LIMIT));
        }
    }

    /// What the counts say of the next token; `logits` are the base's, `[V]`.
    pub fn read(&self, counts: Counts, q: Query, logits: &[f32], scratch: &mut Candidates) -> Reading {
        self.candidates(counts, q, logits, scratch);
        let (mut ratios, mut sum) = (Vec::with_capacity(scratch.ids.len()), 1.0);
        self.raises(scratch, |i, _, raise| {
            let factor = raise.exp();
            sum += f64::from(scratch.probability[i] * (factor - 1.0));
            ratios.push(factor);
        });
        let other = 1.0 / sum as f32;
        ratios.iter_mut().for_each(|r| *r *= other);
        Reading { ids: scratch.ids.clone(), ratios, other }
    }

    /// The bytes of its file.
    ///
    /// # Errors
    /// Values that the format refuses.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let fail = |e: infini_format::tensors::TensorError| Error::Model(e.to_string());
        let mut tensors = Vec::new();
        let data = [&self.common].into_iter().chain(&self.network);
        for ((name, shape), data) in self.config.parameters(self.vocab()).into_iter().zip(data) {
            tensors.push((name, Tensor::f32(&shape, data).map_err(fail)?));
        }
        let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (*n, t.view())).collect();
        let text = |s: &str| s.to_string();
        let metadata = BTreeMap::from([
            (text("format"), text(FORMAT)),
            (text("version"), text(VERSION)),
            (text("base"), self.base.clone()),
            (text("config"), serde_json::to_string(&self.config).expect("sizes are plain data")),
        ]);
        serialize(&views, &metadata).map_err(fail)
    }

    /// Takes a file of [`Tally::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn from_file(file: &TensorFile) -> Result<Self> {
        let (base, config) = bound::header::<TallyConfig>(file, FORMAT, VERSION)?;
        let names = config.parameters(0).map(|(name, _)| name);
        if file.len() != names.len() {
            return Err(Error::Model(format!("{} tensors, {} expected", file.len(), names.len())));
        }
        let mut tensors = Vec::new();
        for name in names {
            let t = file.get(name).and_then(|t| t.to_f32()).map_err(|e| Error::Model(format!("{name}: {e}")))?;
            tensors.push(t);
        }
        let [common, network @ ..] = <[Vec<f32>; 5]>::try_from(tensors).expect("five names");
        Tally::new(config, base, common, network)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        Tally::from_file(&TensorFile::parse(bytes).map_err(|e| Error::Model(e.to_string()))?)
    }

    /// Writes its file atomically.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, path: &Path) -> Result<()> {
        io::atomic_write(&RealIo, path, PUBLIC, &self.to_bytes()?).map_err(|e| Error::Model(e.to_string()))
    }
}
