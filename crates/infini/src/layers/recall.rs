//! The memory of an adapter as it streams: (29)–(32) of `docs/math.md`.
//!
//! A token waits with its place, value and signals until the words that follow it are known; then its gate judges it by what
//! stands on both sides, it is written with an address of both, and every later token may read it. Writes are rare: the tokens between two of them read one and
//! the same memory, in one product.

use infini_kernels::linear;
use infini_kernels::math::{dot, sigmoid};
use infini_kernels::matmul::{Mat, MatMut, Par, axpy, matmul};

use super::attention::Place;
use super::matrix::Matrix;
use crate::adapter::{Adapter, AdapterConfig};
use crate::config::{LayerKind, ModelConfig};
use crate::state::{LayerWrites, Reads, window_start};

/// Added to the mean square of an address before it is sharpened.
const EPS: f32 = 1e-6;
/// Saliences are clamped to ± this.
const SALIENCE: f32 = 15.0;
/// Bars of "nothing" stay within ± this, so that what nobody told never divides by nothing.
const BAR: f32 = 4.0;

/// A linear map with a bias.
#[derive(Debug)]
struct Affine {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Affine {
    fn new(adapter: &Adapter, name: &str) -> Self {
        let get = |s: &str| adapter.get(&format!("{name}.{s}")).to_vec();
        Affine { weight: get("weight"), bias: get("bias") }
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let (out, d) = (self.bias.len(), self.weight.len() / self.bias.len());
        let mut y = vec![0.0; x.len() / d * out];
        linear::forward(x, &self.weight, &mut y, [x.len() / d, d, out], false);
        linear::add_bias(&mut y, &self.bias);
        y
    }
}

/// Weights of the memory.
#[derive(Debug)]
pub(crate) struct Recall {
    pub config: AdapterConfig,
    query: Affine,
    key: Affine,
    word: Affine,
    salience: Affine,
    value: Affine,
    /// Signals' rows `[H·C, d]`, their taps `[before + W + 1, H·C]`, the last tap for the oldest token, and the gates' bias `[H]`.
    write: Vec<f32>,
    kernel: Vec<f32>,
    write_bias: Vec<f32>,
    read: Affine,
    /// `[H, before + after]`.
    offset: Vec<f32>,
    /// Of places and of words, `[2, H]`.
    sharpness: Vec<f32>,
    null: Affine,
    doubt: Vec<f32>,
    nothing: Vec<f32>,
    output: Vec<f32>,
}

/// What the memory keeps, each buffer leading with the batch row; W tokens wait ([`AdapterConfig::delay`]).
#[derive(Clone, Debug, Default)]
pub(crate) struct RecallState {
    /// `[B, H, F, V]`.
    pub m: Vec<f32>,
    /// `[B, H, F]`.
    pub z: Vec<f32>,
    /// Places and values of the tokens that wait: `[B, W, H·P]`, `[B, W, H·V]`.
    pub place: Vec<f32>,
    pub value: Vec<f32>,
    /// Signals of the tokens that wait and of `before` ones in front of them, `[B, before + W, H·C]`.
    pub signal: Vec<f32>,
    /// The place that the last token gives the next one, `[B, H·P]`.
    pub next: Vec<f32>,
    /// Tokens that wait and `before` ones in front of them, `[B, before + W]`: id + 1, 0 for none. Exact, as
    /// vocabularies stay below 2²⁴.
    pub ids: Vec<f32>,
}

impl RecallState {
    /// Of `batch` rows that have read nothing.
    pub fn new(c: &AdapterConfig, batch: usize) -> Self {
        let (w, h, f) = (c.delay(), c.heads, c.cells());
        let zeros = |n: usize| vec![0.0; batch * n];
        RecallState {
            m: zeros(h * f * c.value_width),
            z: zeros(h * f),
            place: zeros(w * h * c.place_width),
            value: zeros(w * h * c.value_width),
            signal: zeros((c.before + w) * h * c.gate_width),
            next: zeros(h * c.place_width),
            ids: zeros(c.before + w),
        }
    }

    /// All buffers.
    pub fn buffers(&self) -> [&Vec<f32>; 7] {
        let RecallState { m, z, place, value, signal, next, ids } = self;
        [m, z, place, value, signal, next, ids]
    }

    /// All buffers.
    pub fn buffers_mut(&mut self) -> [&mut Vec<f32>; 7] {
        let RecallState { m, z, place, value, signal, next, ids } = self;
        [m, z, place, value, signal, next, ids]
    }

    /// Forgets row `row` of `batch`: what waits is never written.
    pub fn forget(&mut self, row: usize, batch: usize) {
        for buffer in [&mut self.m, &mut self.z, &mut self.signal, &mut self.next, &mut self.ids] {
            let len = buffer.len() / batch;
            buffer[row * len..(row + 1) * len].fill(0.0);
        }
    }
}

/// The tokens of a row that wait and the new ones behind them: `W + n`.
struct Stretch {
    /// `[W + n, H·P]`.
    place: Vec<f32>,
    /// `[W + n, H·V]`.
    value: Vec<f32>,
    /// Of the first n, which are due: 1 where they are written, `[n, H]`.
    gate: Vec<f32>,
    /// With `before` more in front, `[before + W + n]`: id + 1, 0 for none.
    ids: Vec<f32>,
    /// Of these, when they are needed.
    words: Option<Words>,
}

impl Stretch {
    /// Whether token `i` is written by some head.
    fn opens(&self, i: usize, heads: usize) -> bool {
        self.gate[i * heads..(i + 1) * heads].iter().any(|g| *g > 0.0)
    }
}

/// A stretch of tokens with their words and saliences, for pools.
struct Words {
    /// `[n, H·U]`.
    word: Vec<f32>,
    /// `[n, H]`.
    salience: Vec<f32>,
    known: Vec<bool>,
}

impl Recall {
    pub fn new(adapter: &Adapter) -> Self {
        let affine = |name: &str| Affine::new(adapter, name);
        let exp = |name: &str| adapter.get(name).iter().map(|x| x.exp()).collect();
        Recall {
            config: adapter.config().clone(),
            query: affine("query"),
            key: affine("key"),
            word: affine("word"),
            salience: affine("salience"),
            value: affine("value"),
            write: adapter.get("write.weight").to_vec(),
            kernel: adapter.get("write.kernel").to_vec(),
            write_bias: adapter.get("write.bias").to_vec(),
            read: affine("read"),
            offset: adapter.get("offset").to_vec(),
            sharpness: exp("sharpness"),
            null: affine("null"),
            doubt: adapter.get("doubt").to_vec(),
            nothing: adapter.get("nothing").to_vec(),
            output: adapter.get("output.weight").to_vec(),
        }
    }

    /// Reads and writes: `x += output · (gate ∘ a)`. `h` is the layer's normalised input `[B, T, d]`, `ids` its
    /// tokens `[B, T]`, `embed` the base's embedding. With `skim` nothing is read.
    pub fn forward(
        &self,
        p: &Place,
        embed: &Matrix,
        state: &mut RecallState,
        writes: &mut LayerWrites,
        ids: &[u32],
        h: &[f32],
        x: &mut [f32],
        skim: bool,
    ) {
        let (b, t, s) = (p.batch, p.tokens, self.config.segment_len);
        let (d, width) = (p.config.hidden_size, self.config.heads * self.config.value_width);
        let (key, value) = (self.key.forward(h), self.value.forward(h));
        let signals = self.write_bias.len() * self.config.gate_width;
        let mut signal = vec![0.0; b * t * signals];
        linear::forward(h, &self.write, &mut signal, [b * t, d, signals], false);
        let mut y = vec![0.0; b * t * width];
        let mut any = false;
        let mut done = 0;
        while done < t {
            let position = p.position + done as u64;
            let n = (t - done).min(s - (position % s as u64) as usize);
            let start = window_start(p.config, LayerKind::Local, position);
            let reads = |row: usize| !skim && p.reads != Reads::Nothing && p.doc_start[row] < start;
            let rows: Vec<Stretch> = (0..b)
                .map(|row| {
                    let from = row * t + done;
                    let mut new = self.append(state, (row, b), n, &ids[from..], [&key, &value, &signal], from);
                    for (gate, id) in new.gate.chunks(self.config.heads).zip(&new.ids[self.config.before..]) {
                        if *id > 0.0 {
                            writes.count(gate);
                        }
                    }
                    let written = (0..n).any(|i| new.opens(i, self.config.heads));
                    new.words = (written || reads(row)).then(|| self.words(p.config, embed, &new.ids));
                    new
                })
                .collect();
            // between two writes all tokens read the same
            let due = (0..n).filter(|i| rows.iter().any(|r| r.opens(*i, self.config.heads)));
            let mut from = 0;
            for to in due.chain([n]) {
                for row in (0..b).filter(|row| to > from && reads(*row)) {
                    any = true;
                    let whose = if p.reads == Reads::Swapped { (row + 1) % b } else { row };
                    let at = row * t + done + from;
                    let (h, y) = (&h[at * d..][..(to - from) * d], &mut y[at * width..][..(to - from) * width]);
                    self.read(state, whose, &rows[row], from, h, y);
                }
                for row in (0..b).filter(|row| to < n && rows[*row].opens(to, self.config.heads)) {
                    self.write(state, row, &rows[row], to);
                }
                from = to;
            }
            done += n;
        }
        if any {
            linear::forward(&y, &self.output, x, [b * t, width, d], true);
        }
    }

    /// The tokens of `row` that wait with `n` new ones behind them; the last ones wait from now on.
    fn append(
        &self,
        state: &mut RecallState,
        (row, b): (usize, usize),
        n: usize,
        ids: &[u32],
        [key, value, signal]: [&Vec<f32>; 3],
        from: usize,
    ) -> Stretch {
        let c = &self.config;
        // what waits, and what is new, of which as much waits next
        let join = |old: &mut Vec<f32>, new: &[f32]| -> Vec<f32> {
            let len = old.len() / b;
            let old = &mut old[row * len..(row + 1) * len];
            let all = [old, new].concat();
            old.copy_from_slice(&all[all.len() - len..]);
            all
        };
        let new = |x: &'_ [f32], width: usize| x[from * width..(from + n) * width].to_vec();
        // a token's place comes from the token before it
        let width = c.heads * c.place_width;
        let key = new(key, width);
        let next = &mut state.next[row * width..][..width];
        let place = [&*next, &key[..(n - 1) * width]].concat();
        next.copy_from_slice(&key[(n - 1) * width..]);
        let ids: Vec<f32> = ids[..n].iter().map(|id| (id + 1) as f32).collect();
        let ids = join(&mut state.ids, &ids);
        let signal = join(&mut state.signal, &new(signal, c.heads * c.gate_width));
        Stretch {
            place: join(&mut state.place, &place),
            value: join(&mut state.value, &new(value, c.heads * c.value_width)),
            gate: self.gates(&signal, &ids[c.before..][..n]),
            ids,
            words: None,
        }
    }

    /// (32): write gates of the tokens that are due, `ids` (id + 1, 0 for none), from the signals of all tokens from `before`
    /// ones in front of them on.
    fn gates(&self, signal: &[f32], ids: &[f32]) -> Vec<f32> {
        let (taps, width) = (self.config.taps(), self.config.gate_width);
        let row = self.write_bias.len() * width;
        let mut gates = vec![0.0; ids.len() * self.write_bias.len()];
        for (i, gates) in gates.chunks_mut(self.write_bias.len()).enumerate().filter(|(i, _)| ids[*i] > 0.0) {
            let mut sum = vec![0.0; row];
            for (tap, signal) in self.kernel.chunks(row).rev().zip(signal[i * row..][..taps * row].chunks(row)) {
                sum.iter_mut().zip(tap).zip(signal).for_each(|((sum, tap), s)| *sum += tap * s);
            }
            for ((gate, sum), bias) in gates.iter_mut().zip(sum.chunks(width)).zip(&self.write_bias) {
                *gate = f32::from(u8::from(sum.iter().sum::<f32>() + bias > 0.0));
            }
        }
        gates
    }

    /// Words of the `ids` (id + 1, 0 for none).
    fn words(&self, config: &ModelConfig, embed: &Matrix, ids: &[f32]) -> Words {
        let d = config.hidden_size;
        let known: Vec<bool> = ids.iter().map(|i| *i > 0.0).collect();
        let ids: Vec<u32> = ids.iter().map(|i| (*i as u32).saturating_sub(1)).collect();
        let mut e = vec![0.0; ids.len() * d];
        embed.rows(&ids, &mut e);
        let mut salience = self.salience.forward(&e);
        salience.iter_mut().for_each(|s| *s = s.clamp(-SALIENCE, SALIENCE));
        Words { word: self.word.forward(&e), salience, known }
    }

    /// (30): the pool of the tokens `from..from + n` of `words` for head `head`, their offsets from `offset` on.
    fn pool(&self, words: &Words, head: usize, from: usize, n: usize, out: &mut [f32]) {
        let (heads, u) = (self.config.heads, self.config.word_width);
        let offset = &self.offset[head * (self.config.before + self.config.after)..][..n];
        out.fill(0.0);
        let (mut top, mut sum) = (f32::NEG_INFINITY, 0.0);
        let score = |i: usize| words.salience[(from + i) * heads + head] + offset[i];
        for i in (0..n).filter(|i| words.known[from + i]) {
            top = top.max(score(i));
        }
        for i in (0..n).filter(|i| words.known[from + i]) {
            let e = (score(i) - top).exp();
            sum += e;
            axpy(e, &words.word[((from + i) * heads + head) * u..][..u], out);
        }
        if sum > 0.0 {
            out.iter_mut().for_each(|x| *x /= sum);
        }
    }

    /// (31): φ of a place and a pool.
    fn address(&self, head: usize, place: &[f32], pool: &[f32], out: &mut [f32]) {
        let (np, nu) = (2 * place.len(), 2 * pool.len());
        let mut parts = vec![0.0; np + nu];
        let (a, b) = parts.split_at_mut(np);
        softmax_pair(place, self.sharpness[head], a);
        softmax_pair(pool, self.sharpness[self.config.heads + head], b);
        for (out, a) in out.chunks_exact_mut(nu).zip(a) {
            out.iter_mut().zip(b.iter()).for_each(|(o, b)| *o = *a * b);
        }
    }

    /// (32): gated reads of the new tokens `from..` of `row` from the memory of row `whose` into `y [n, H·V]`; `h` are
    /// their inputs.
    fn read(&self, state: &RecallState, whose: usize, row: &Stretch, from: usize, h: &[f32], y: &mut [f32]) {
        let c = &self.config;
        let (heads, f, v, pw) = (c.heads, c.cells(), c.value_width, c.place_width);
        let n = y.len() / (heads * v);
        let words = row.words.as_ref().expect("rows that read have words");
        let (place, gate, null) = (self.query.forward(h), self.read.forward(h), self.null.forward(h));
        let (mut phi, mut a, mut pool) = (vec![0.0; n * f], vec![0.0; n * v], vec![0.0; c.word_width]);
        for head in 0..heads {
            for (i, phi) in phi.chunks_exact_mut(f).enumerate() {
                // the pool of a query ends with its own token
                self.pool(words, head, c.delay() + from + i + 1, c.before, &mut pool);
                self.address(head, &place[(i * heads + head) * pw..][..pw], &pool, phi);
            }
            let m = &state.m[(whose * heads + head) * f * v..][..f * v];
            let z = &state.z[(whose * heads + head) * f..][..f];
            matmul(MatMut::rows(&mut a, n, v), false, 1.0, Mat::rows(&phi, n, f), Mat::rows(m, f, v), Par::No);
            let nothing = &self.nothing[head * v..][..v];
            for (i, (a, phi)) in a.chunks_exact(v).zip(phi.chunks_exact(f)).enumerate() {
                let known = dot(phi, z).max(0.0);
                let null = BAR * (null[i * heads + head] / BAR).tanh();
                let c = (null - self.doubt[head] * known / dot(phi, phi)).exp();
                let open = sigmoid(gate[i * heads + head]) / (known + c);
                let y = &mut y[(i * heads + head) * v..][..v];
                y.iter_mut().zip(a).zip(nothing).for_each(|((y, a), n)| *y = open * (a + c * n));
            }
        }
    }

    /// (32): writes token `i` of `row`, those that wait counted first.
    fn write(&self, state: &mut RecallState, at: usize, row: &Stretch, i: usize) {
        let c = &self.config;
        let (heads, f, v, pw) = (c.heads, c.cells(), c.value_width, c.place_width);
        let words = row.words.as_ref().expect("rows that write have words");
        let (mut pool, mut phi, mut new) = (vec![0.0; c.word_width], vec![0.0; f], vec![0.0; v]);
        for head in (0..heads).filter(|head| row.gate[i * heads + head] > 0.0) {
            self.pool(words, head, i, c.before + c.after, &mut pool);
            self.address(head, &row.place[(i * heads + head) * pw..][..pw], &pool, &mut phi);
            let z = &mut state.z[(at * heads + head) * f..][..f];
            let m = &mut state.m[(at * heads + head) * f * v..][..f * v];
            // only what the memory does not say of this address already is added
            let norm = dot(&phi, &phi);
            new.copy_from_slice(&row.value[(i * heads + head) * v..][..v]);
            for (phi, m) in phi.iter().zip(m.chunks_exact(v)) {
                axpy(-phi / norm, m, &mut new);
            }
            axpy(1.0 - dot(&phi, z) / norm, &phi, z);
            for (phi, m) in phi.iter().zip(m.chunks_exact_mut(v)) {
                axpy(*phi, &new, m);
            }
        }
    }
}

/// `[softmax(s ŷ), softmax(−s ŷ)]`, ŷ = y / rms(y).
fn softmax_pair(y: &[f32], sharpness: f32, out: &mut [f32]) {
    let n = y.len();
    let s = sharpness / (dot(y, y) / n as f32 + EPS).sqrt();
    for (sign, out) in [1.0, -1.0].into_iter().zip(out.chunks_exact_mut(n)) {
        let top = y.iter().fold(f32::NEG_INFINITY, |m, y| m.max(sign * s * y));
        out.iter_mut().zip(y).for_each(|(o, y)| *o = (sign * s * y - top).exp());
        let sum: f32 = out.iter().sum();
        out.iter_mut().for_each(|o| *o /= sum);
    }
}

#[cfg(test)]
mod tests;
