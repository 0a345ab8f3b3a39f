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

use std::path::Path;
use std::sync::LazyLock;

use infini_format::io::{self, PUBLIC, RealIo};
use infini_format::tensors::{Tensor, TensorFile, TensorView, serialize};
use infini_kernels::math::sigmoid;
use infini_kernels::tally::{Network, exps, raise, spread};
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

/// A hash of tokens one after the other, of which `h` is that of those before.
fn hash(h: u64, token: u32) -> u64 {
    let mut h = (h ^ u64::from(token)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 32;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 29)
}

/// The hash of a context.
fn address(context: &[u32]) -> u64 {
    context.iter().fold(0x9e37_79b9_7f4a_7c15, |h, x| hash(h, *x))
}

/// Indices of `token` behind the context with hash `h` in the rows of a sketch of `cells` cells a row.
fn places(cells: usize, h: u64, token: u32) -> [usize; ROWS] {
    let h = hash(h, token);
    let mask = cells - 1;
    [h as usize & mask, cells + ((h >> 32) as usize & mask)]
}

/// (33): counts `token` after `context`, its last tokens (oldest first; fewer than the orders at a document's start).
pub fn write(tokens: &mut [f32], cells: &mut [f32], context: &[u32], token: u32) {
    let n = cells.len() / ROWS;
    tokens[token as usize] += 1.0;
    for from in 0..context.len() {
        for place in places(n, address(&context[from..]), token) {
            cells[place] += 1.0;
        }
    }
}

impl Counts<'_> {
    /// How often `token` stood after the context with hash `h`: never too small, too large where hashes meet.
    fn after(&self, h: u64, token: u32) -> f32 {
        let [a, b] = places(self.cells.len() / ROWS, h, token);
        self.cells[a].min(self.cells[b])
    }

    /// How often the tokens of `context` stood one after the other.
    fn seen(&self, context: &[u32]) -> f32 {
        match context {
            [] => 0.0,
            [token] => self.tokens[*token as usize],
            [before @ .., last] => self.after(address(before), *last),
        }
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
    /// Their own features, `[own_features, n]`.
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
        let (log_sum, entropy) = spread(logits);
        let contexts: Vec<(u64, f32)> = (1..=self.config.orders)
            .map(|n| q.context.len().checked_sub(n).map_or(&[][..], |from| &q.context[from..]))
            .map(|context| (address(context), counts.seen(context)))
            .collect();
        out.shared.extend([entropy / 5.0, (q.written / 1024.0).ln_1p()]);
        out.shared.extend(contexts.iter().map(|(_, seen)| ln_count(*seen)));
        let n = out.ids.len();
        out.features.resize(n * self.config.own_features(), 0.0);
        out.probability.extend(out.ids.iter().map(|w| logits[*w as usize] - log_sum));
        let (known, after) = out.features.split_at_mut(4 * n);
        for (i, w) in out.ids.iter().map(|w| *w as usize).enumerate() {
            known[i] = out.probability[i].clamp(FLOOR, 0.0) / 5.0;
            known[n + i] = ln_count(counts.tokens[w]);
            known[2 * n + i] = self.common[w] / 5.0 + 2.0;
            known[3 * n + i] = ln_count(q.window[w]);
        }
        exps(&mut out.probability);
        for ((h, seen), column) in contexts.iter().zip(after.chunks_exact_mut(n)).filter(|((_, seen), _)| *seen > 0.0) {
            for (x, w) in column.iter_mut().zip(&out.ids) {
                *x = ln_count(counts.after(*h, *w).min(counts.tokens[*w as usize]).min(*seen));
            }
        }
    }

    /// What the shared features of a read's candidates make of the hidden units.
    fn shared(&self, c: &Candidates) -> Vec<f32> {
        let [weight, bias, ..] = &self.network;
        let mut units = bias.clone();
        for (x, row) in
            c.shared.iter().zip(weight[self.config.own_features() * units.len()..].chunks_exact(units.len()))
        {
            units.iter_mut().zip(row).for_each(|(u, w)| *u += x * w);
        }
        units
    }

    /// (35): how much the logit of each candidate rises.
    pub fn raises(&self, c: &Candidates) -> Vec<f32> {
        let [weight, bias, output, shift] = &self.network;
        let weight = &weight[..self.config.own_features() * bias.len()];
        let net = Network { weight, bias: &self.shared(c), output, shift: shift[0], limit: LIMIT };
        let mut raises = vec![0.0; c.ids.len()];
        raise(&c.features, net, &mut raises);
        raises
    }

    /// What the counts say of the next token; `logits` are the base's, `[V]`.
    pub fn read(&self, counts: Counts, q: Query, logits: &[f32], scratch: &mut Candidates) -> Reading {
        self.candidates(counts, q, logits, scratch);
        let mut ratios = self.raises(scratch);
        exps(&mut ratios);
        let grown: f64 = ratios.iter().zip(&scratch.probability).map(|(r, p)| f64::from(p * (r - 1.0))).sum();
        let other = 1.0 / (1.0 + grown) as f32;
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
        let metadata = bound::metadata(FORMAT, VERSION, &self.base, &self.config);
        serialize(&views, &metadata).map_err(fail)
    }

    /// Takes a file of [`Tally::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn from_file(file: &TensorFile) -> Result<Self> {
        let (base, config) = bound::header::<TallyConfig>(file, FORMAT, VERSION)?;
        config.check()?;
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
