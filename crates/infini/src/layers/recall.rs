//! The memory of an adapter as it streams: (29)–(32) of `docs/math.md`.
//!
//! A token waits in the window with its place, value and gate until the window leaves it behind; by then the words
//! that follow it are known too, and it is written with an address of both sides. Sums over a head's cells are plain
//! products: writes are rare, reads are one product per segment.

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
    write: Affine,
    read: Affine,
    /// `[H, before + after]`.
    offset: Vec<f32>,
    /// Of places and of words, `[2, H]`.
    sharpness: Vec<f32>,
    null: Vec<f32>,
    nothing: Vec<f32>,
    output: Vec<f32>,
}

/// What the memory keeps, each buffer leading with the batch row.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecallState {
    /// `[B, H, F, V]`.
    pub m: Vec<f32>,
    /// `[B, H, F]`.
    pub z: Vec<f32>,
    /// Places, values and gates of the window's tokens: `[B, 2S, H·P]`, `[B, 2S, H·V]`, `[B, 2S, H]`.
    pub place: Vec<f32>,
    pub value: Vec<f32>,
    pub gate: Vec<f32>,
    /// The place that the last token gives the next one, `[B, H·P]`.
    pub next: Vec<f32>,
    /// Tokens of the window and `before` ones in front of it, `[B, before + 2S]`: id + 1, 0 for none. Exact, as
    /// vocabularies stay below 2²⁴.
    pub ids: Vec<f32>,
}

impl RecallState {
    /// Of `batch` rows that have read nothing.
    pub fn new(c: &AdapterConfig, batch: usize) -> Self {
        let (s, h, f) = (2 * c.segment_len, c.heads, c.cells());
        let zeros = |n: usize| vec![0.0; batch * n];
        RecallState {
            m: zeros(h * f * c.value_width),
            z: zeros(h * f),
            place: zeros(s * h * c.place_width),
            value: zeros(s * h * c.value_width),
            gate: zeros(s * h),
            next: zeros(h * c.place_width),
            ids: zeros(c.before + s),
        }
    }

    /// All buffers.
    pub fn buffers(&self) -> [&Vec<f32>; 7] {
        let RecallState { m, z, place, value, gate, next, ids } = self;
        [m, z, place, value, gate, next, ids]
    }

    /// All buffers.
    pub fn buffers_mut(&mut self) -> [&mut Vec<f32>; 7] {
        let RecallState { m, z, place, value, gate, next, ids } = self;
        [m, z, place, value, gate, next, ids]
    }

    /// Forgets row `row` of `batch`: what waits is never written.
    pub fn forget(&mut self, row: usize, batch: usize) {
        for buffer in [&mut self.m, &mut self.z, &mut self.gate, &mut self.next, &mut self.ids] {
            let len = buffer.len() / batch;
            buffer[row * len..(row + 1) * len].fill(0.0);
        }
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
            write: affine("write"),
            read: affine("read"),
            offset: adapter.get("offset").to_vec(),
            sharpness: exp("sharpness"),
            null: exp("null"),
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
        let width = self.config.heads * self.config.value_width;
        let (key, value, gate) = (self.key.forward(h), self.value.forward(h), self.write.forward(h));
        let gate: Vec<f32> = gate.iter().map(|g| f32::from(u8::from(*g > 0.0))).collect();
        let mut y = vec![0.0; b * t * width];
        let mut any = false;
        let mut done = 0;
        while done < t {
            let position = p.position + done as u64;
            let n = (t - done).min(s - (position % s as u64) as usize);
            let start = window_start(p.config, LayerKind::Local, position);
            let at = (position - start) as usize;
            for row in 0..b {
                let from = row * t + done;
                self.append(state, (row, b), at, n, &ids[from..], [&key, &value, &gate], from);
                if !skim && p.reads != Reads::Nothing && p.doc_start[row] < start {
                    any = true;
                    let h = &h[from * p.config.hidden_size..][..n * p.config.hidden_size];
                    let whose = if p.reads == Reads::Swapped { (row + 1) % b } else { row };
                    self.read(p.config, embed, state, (row, whose, b), at, h, &mut y[from * width..][..n * width]);
                }
            }
            for row in 0..b {
                writes.count(&gate[(row * t + done) * self.config.heads..][..n * self.config.heads]);
            }
            if (position + n as u64).is_multiple_of(s as u64) && at + n == 2 * s {
                for row in 0..b {
                    self.write_segment(p.config, embed, state, (row, b));
                }
            }
            done += n;
        }
        if any {
            linear::forward(&y, &self.output, x, [b * t, width, p.config.hidden_size], true);
        }
    }

    /// Puts `n` tokens at index `at` of the window of `row`.
    fn append(
        &self,
        state: &mut RecallState,
        (row, b): (usize, usize),
        at: usize,
        n: usize,
        ids: &[u32],
        [key, value, gate]: [&Vec<f32>; 3],
        from: usize,
    ) {
        let c = &self.config;
        let put = |buffer: &mut Vec<f32>, new: &[f32], width: usize| {
            let row = &mut buffer[row * 2 * c.segment_len * width..][..2 * c.segment_len * width];
            row[at * width..(at + n) * width].copy_from_slice(&new[from * width..][..n * width]);
        };
        put(&mut state.value, value, c.heads * c.value_width);
        put(&mut state.gate, gate, c.heads);
        // a token's place comes from the token before it
        let width = c.heads * c.place_width;
        let place = &mut state.place[(row * 2 * c.segment_len + at) * width..][..n * width];
        place[..width].copy_from_slice(&state.next[row * width..][..width]);
        place[width..].copy_from_slice(&key[from * width..][..(n - 1) * width]);
        state.next[row * width..][..width].copy_from_slice(&key[(from + n - 1) * width..][..width]);
        let len = state.ids.len() / b;
        for (slot, id) in state.ids[row * len + c.before + at..].iter_mut().zip(&ids[..n]) {
            *slot = (*id + 1) as f32;
        }
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

    /// (32): gated reads of the tokens at `at..` of the window of `row` from the memory of row `whose` into `y [n, H·V]`.
    fn read(
        &self,
        config: &ModelConfig,
        embed: &Matrix,
        state: &RecallState,
        (row, whose, b): (usize, usize, usize),
        at: usize,
        h: &[f32],
        y: &mut [f32],
    ) {
        let c = &self.config;
        let (heads, f, v, pw, u) = (c.heads, c.cells(), c.value_width, c.place_width, c.word_width);
        let n = y.len() / (heads * v);
        let len = state.ids.len() / b;
        // the pool of a query ends with its own token
        let words = self.words(config, embed, &state.ids[row * len + at + 1..][..c.before - 1 + n]);
        let (place, gate) = (self.query.forward(h), self.read.forward(h));
        let (mut phi, mut a, mut pool) = (vec![0.0; n * f], vec![0.0; n * v], vec![0.0; u]);
        for head in 0..heads {
            for (i, phi) in phi.chunks_exact_mut(f).enumerate() {
                self.pool(&words, head, i, c.before, &mut pool);
                self.address(head, &place[(i * heads + head) * pw..][..pw], &pool, phi);
            }
            let m = &state.m[(whose * heads + head) * f * v..][..f * v];
            let z = &state.z[(whose * heads + head) * f..][..f];
            matmul(MatMut::rows(&mut a, n, v), false, 1.0, Mat::rows(&phi, n, f), Mat::rows(m, f, v), Par::No);
            let (c, nothing) = (self.null[head], &self.nothing[head * v..][..v]);
            for (i, (a, phi)) in a.chunks_exact(v).zip(phi.chunks_exact(f)).enumerate() {
                let open = sigmoid(gate[i * heads + head]) / (dot(phi, z) + c);
                let y = &mut y[(i * heads + head) * v..][..v];
                y.iter_mut().zip(a).zip(nothing).for_each(|((y, a), n)| *y = open * (a + c * n));
            }
        }
    }

    /// Writes the first segment of the full window of `row` and drops it.
    fn write_segment(&self, config: &ModelConfig, embed: &Matrix, state: &mut RecallState, (row, b): (usize, usize)) {
        let c = &self.config;
        let (s, heads, f, v, pw) = (c.segment_len, c.heads, c.cells(), c.value_width, c.place_width);
        let len = state.ids.len() / b;
        let gates = row * 2 * s * heads;
        if state.gate[gates..gates + s * heads].iter().any(|g| *g > 0.0) {
            let words = self.words(config, embed, &state.ids[row * len..][..c.before + s + c.after]);
            let (mut pool, mut phi) = (vec![0.0; c.word_width], vec![0.0; f]);
            for i in 0..s {
                for head in (0..heads).filter(|head| state.gate[gates + i * heads + head] > 0.0) {
                    let at = (row * 2 * s + i) * heads + head;
                    self.pool(&words, head, i, c.before + c.after, &mut pool);
                    self.address(head, &state.place[at * pw..][..pw], &pool, &mut phi);
                    let z = &mut state.z[(row * heads + head) * f..][..f];
                    let m = &mut state.m[(row * heads + head) * f * v..][..f * v];
                    if c.overwrite {
                        for ((phi, z), m) in phi.iter().zip(z.iter_mut()).zip(m.chunks_exact_mut(v)) {
                            *z *= 1.0 - phi;
                            m.iter_mut().for_each(|m| *m *= 1.0 - phi);
                        }
                    }
                    axpy(1.0, &phi, z);
                    for (phi, m) in phi.iter().zip(m.chunks_exact_mut(v)) {
                        axpy(*phi, &state.value[at * v..][..v], m);
                    }
                }
            }
        }
        for (buffer, width) in [(&mut state.place, heads * pw), (&mut state.value, heads * v), (&mut state.gate, heads)]
        {
            buffer[row * 2 * s * width..][..2 * s * width].copy_within(s * width.., 0);
        }
        state.ids[row * len..][..len].copy_within(s.., 0);
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
