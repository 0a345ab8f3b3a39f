//! (29)–(32) of `docs/math.md` as a differentiable graph.
//!
//! Memories are not built: what each write adds follows from the products of addresses alone, `φ·φ' = (S·S of places) (S·S of
//! words)`, by one triangular system for each document; a read weighs those additions.

use burn::tensor::{DType, Int, Tensor, TensorData, activation};
use infini::adapter::AdapterConfig;
use infini_kernels::matmul::{Mat, MatMut, Par, axpy, matmul};

use super::batch::Held;
use super::leaves::{Leaves, host};
use super::upper::constant;
use crate::ops::{Body, Tokens};

/// Where no token stands, in the softmax of a pool.
const NOWHERE: f32 = -1e4;
/// As in the streaming memory.
const EPS: f64 = 1e-6;
const SALIENCE: f64 = 15.0;
const BAR: f64 = 4.0;
/// Rows of an inverse that are found together.
const ROWS: usize = 32;

/// The learned memory on one step's tokens.
pub struct Memory<'a> {
    pub c: &'a AdapterConfig,
    pub leaves: &'a Leaves,
    pub body: Body,
    /// Words and saliences of the step's vocabulary: `[K, H, U]`, `[K, H]`.
    words: Tensor<3>,
    salience: Tensor<2>,
}

/// Places of tokens around others: indices into the step's vocabulary, `None` where there is no token.
pub type Around = Vec<Option<usize>>;

/// What is asked of which written tokens.
pub struct Lookup<'a> {
    /// Places and pools of the queries: `[n, H, P]`, `[n, H, U]`.
    pub queries: (Tensor<3>, Tensor<3>),
    /// Of the keys: `[m, H, P]`, `[m, H, U]`.
    pub keys: (Tensor<3>, Tensor<3>),
    /// `[m, H·V]`.
    pub value: Tensor<2>,
    /// How much of each key is written, `[m, H]`.
    pub strength: Tensor<2>,
    /// The bar of "nothing" for each query, `[n, H]`.
    pub null: Tensor<2>,
    /// Which queries find which keys.
    pub memories: &'a [Held],
}

impl<'a> Memory<'a> {
    /// `raw [K, d]` are the embeddings of the step's vocabulary, `white [K, k]` the same, whitened.
    pub fn new(c: &'a AdapterConfig, leaves: &'a Leaves, body: Body, raw: Tensor<2>, white: Tensor<2>) -> Self {
        let k = raw.dims()[0];
        let words = affine(body, leaves, "word", raw).reshape([k, c.heads, c.word_width]);
        let salience = body.linear(white, leaves.get("salience")).clamp(-SALIENCE, SALIENCE);
        Memory { c, leaves, body, words, salience }
    }

    pub fn affine(&self, name: &str, x: Tensor<2>) -> Tensor<2> {
        affine(self.body, self.leaves, name, x)
    }

    /// (30): pools `[n, H, U]` over windows of `width` tokens, whose first offset is the first.
    pub fn pool(&self, around: &Around, width: usize) -> Tensor<3> {
        let (h, u, n) = (self.c.heads, self.c.word_width, around.len() / width);
        let device = self.words.device();
        let index: Vec<i64> = around.iter().map(|i| i.unwrap_or(0) as i64).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [n * width]), (&device, DType::I64));
        let mask = around.iter().map(|i| if i.is_some() { 0.0 } else { NOWHERE }).collect();
        let mask = constant::<3>(mask, [n, width, 1], &device);
        let offset = self.leaves.get::<2>("offset").narrow(1, 0, width).swap_dims(0, 1).reshape([1, width, h]);
        let score = self.salience.clone().select(0, index.clone()).reshape([n, width, h]) + offset + mask;
        let alpha = activation::softmax(score, 1).reshape([n, width, h, 1]);
        let words = self.words.clone().select(0, index).reshape([n, width, h, u]);
        (words * alpha).sum_dim(1).reshape([n, h, u])
    }

    /// `[H, n, 2W]`: S of `y [n, H, W]` with the sharpnesses of row `which`.
    fn pair(&self, y: Tensor<3>, which: usize) -> Tensor<3> {
        let h = self.c.heads;
        let s = self.leaves.get::<2>("sharpness").narrow(0, which, 1).exp().reshape([1, h, 1]);
        let rms = (y.clone().square().mean_dim(2) + EPS).sqrt();
        let z = y / rms * s;
        Tensor::cat(vec![activation::softmax(z.clone(), 2), activation::softmax(z.neg(), 2)], 2).swap_dims(0, 1)
    }

    /// Places `[n, H, P]` of projected inputs.
    pub fn places(&self, name: &str, x: Tensor<2>) -> Tensor<3> {
        let n = x.dims()[0];
        self.affine(name, x).reshape([n, self.c.heads, self.c.place_width])
    }

    /// (32): the bar of "nothing" for queries of inputs `x`, `[n, H]`.
    pub fn null(&self, x: Tensor<2>) -> Tensor<2> {
        (self.affine("null", x) / BAR).tanh() * BAR
    }

    /// (32): reads `[n, H·V]`, not gated.
    pub fn read(&self, lookup: Lookup) -> Tensor<2> {
        let Lookup { queries, keys, value, strength, null, memories } = lookup;
        let (h, v, device) = (self.c.heads, self.c.value_width, self.words.device());
        let m = value.dims()[0];
        let null = null.swap_dims(0, 1).unsqueeze_dim::<3>(2);
        let doubt = self.leaves.get::<1>("doubt").reshape([h, 1, 1]);
        let nothing = self.leaves.get::<1>("nothing").reshape([h, 1, v]);
        let queries = [self.pair(queries.0, 0), self.pair(queries.1, 1)];
        let keys = [self.pair(keys.0, 0), self.pair(keys.1, 1)];
        let one = Tensor::<3>::ones([h, m, 1], (&device, DType::F32));
        let value = Tensor::cat(vec![value.reshape([m, h, v]).swap_dims(0, 1), one], 2);
        let strength = strength.swap_dims(0, 1).reshape([h, m, 1]);
        let mut reads = Vec::with_capacity(memories.len());
        for held in memories.iter().filter(|held| !held.queries.is_empty()) {
            let (n, s) = (held.queries.len(), held.keys.len());
            let phi = queries.clone().map(|q| q.narrow(1, held.queries.start, n));
            let told = if s == 0 {
                Tensor::zeros([h, n, v + 1], (&device, DType::F32))
            } else {
                let rows: Vec<i64> = held.keys.iter().map(|k| *k as i64).collect();
                let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [s]), (&device, DType::I64));
                let select = |x: &Tensor<3>| x.clone().select(1, rows.clone());
                let key = [select(&keys[0]), select(&keys[1])];
                let strength = select(&strength);
                let earlier = (0..s * s).map(|i| f32::from(u8::from(i % s < i / s))).collect();
                let overlap = products(&key, &key) * constant::<3>(earlier, [1, s, s], &device);
                let added = solve(overlap / squares(&key) * strength.clone(), select(&value) * strength);
                let visible = constant::<3>(held.visible.clone(), [1, n, s], &device);
                (products(&phi, &key) * visible).matmul(added)
            };
            let known = activation::relu(told.clone().narrow(2, v, 1));
            let null = null.clone().narrow(1, held.queries.start, n);
            let c = (null - doubt.clone() * known.clone() / squares(&phi)).exp();
            let a = (told.narrow(2, 0, v) + nothing.clone() * c.clone()) / (known + c);
            reads.push(a.swap_dims(0, 1).reshape([n, h * v]));
        }
        Tensor::cat(reads, 0)
    }

    /// Read gates' logits `[n, H]`.
    pub fn read_gate(&self, x: Tensor<2>) -> Tensor<2> {
        self.affine("read", x)
    }

    /// What joins the residual stream, `[n, d]`.
    pub fn output(&self, a: Tensor<2>, gate: Tensor<2>) -> Tensor<2> {
        let (n, h, v) = (a.dims()[0], self.c.heads, self.c.value_width);
        let a = a.reshape([n, h, v]) * activation::sigmoid(gate).reshape([n, h, 1]);
        self.body.linear(a.reshape([n, h * v]), self.leaves.get("output.weight"))
    }
}

/// (32): logits of the write gates `[B T, H]` from `batch` sequences of signals `x [B T, H·C]`, which end with a row of zeros for
/// each of the `delay` tokens that their last token waits for. The gate of token `t` is row `t + delay`.
pub fn write_gates(c: &AdapterConfig, leaves: &Leaves, body: Body, x: Tensor<2>, batch: usize) -> Tensor<2> {
    let n = x.dims()[0];
    let tokens = Tokens { ids: &[], reset: None, batch, len: n / batch };
    let signals = body.conv(x, leaves.get("write.kernel"), &tokens);
    signals.reshape([n, c.heads, c.gate_width]).sum_dim(2).reshape([n, c.heads])
        + leaves.get::<1>("write.bias").unsqueeze()
}

/// `φ·φ'` of addresses given by their parts, `[H, n, s]`.
fn products(a: &[Tensor<3>; 2], b: &[Tensor<3>; 2]) -> Tensor<3> {
    let dot = |i: usize| a[i].clone().matmul(b[i].clone().swap_dims(1, 2));
    dot(0) * dot(1)
}

/// `|φ|²`, `[H, n, 1]`.
fn squares(a: &[Tensor<3>; 2]) -> Tensor<3> {
    let square = |i: usize| a[i].clone().square().sum_dim(2);
    square(0) * square(1)
}

/// `u` with `u + l u = b`: `l [H, s, s]` has nothing on and above its diagonal, `b` is `[H, s, w]`.
///
/// The inverse is a constant of the graph. With the solution `u₀`, itself a constant, `(1 + l₀)⁻¹ (b − (l − l₀) u₀)` has the
/// value of `u` and its derivatives.
fn solve(l: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    let [h, s, _] = l.dims();
    let given = l.clone().detach();
    let inverse = constant::<3>(inverse(&host(given.clone()), s), [h, s, s], &l.device());
    let u = inverse.clone().matmul(b.clone().detach());
    inverse.matmul(b - (l - given).matmul(u))
}

/// `(1 + l)⁻¹` of every `s × s` matrix in `l`, some rows after the other.
fn inverse(l: &[f32], s: usize) -> Vec<f32> {
    let mut out = vec![0.0; l.len()];
    for (l, out) in l.chunks_exact(s * s).zip(out.chunks_exact_mut(s * s)) {
        for from in (0..s).step_by(ROWS) {
            let n = ROWS.min(s - from);
            let (before, rows) = out.split_at_mut(from * s);
            if from > 0 {
                let (l, before) = (Mat::new(&l[from * s..], n, from, s, 1), Mat::new(before, from, from, s, 1));
                matmul(MatMut::new(rows, n, from, s, 1), false, -1.0, l, before, Par::No);
            }
            for i in 0..n {
                let (before, row) = rows.split_at_mut(i * s);
                for (l, before) in l[(from + i) * s + from..][..i].iter().zip(before.chunks_exact(s)) {
                    axpy(-l, &before[..from + i], &mut row[..from + i]);
                }
                row[from + i] = 1.0;
            }
        }
    }
    out
}

fn affine(body: Body, leaves: &Leaves, name: &str, x: Tensor<2>) -> Tensor<2> {
    let bias = leaves.get::<1>(&format!("{name}.bias"));
    body.linear(x, leaves.get(&format!("{name}.weight"))) + bias.unsqueeze()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use infini::adapter::Adapter;
    use infini::config::{Init, ModelConfig};
    use infini::model::{Model, Want};
    use infini::weights::Weights;

    use super::*;
    use crate::Device;

    const D: usize = 16;
    const V: usize = 29;
    const T: usize = 24;

    fn numbers(n: usize, seed: f64) -> Vec<f32> {
        (0..n).map(|i| ((i as f64 + 1.0) * seed).sin() as f32).collect()
    }

    /// The graph over all tokens of a document gives what the streaming model adds: a base of one layer that does
    /// nothing by itself shows it.
    #[test]
    fn the_streaming_memory_computes_the_same() {
        let c = AdapterConfig {
            layer: 0,
            segment_len: 6,
            sink: 1,
            heads: 2,
            value_width: 5,
            place_width: 3,
            word_width: 4,
            gate_width: 2,
            before: 4,
            after: 3,
        };
        let base: ModelConfig = toml::from_str(&format!(
            "vocab_size = {V}\nhidden_size = {D}\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
             intermediate_size = 8\ntie_word_embeddings = true\nattention = \"full\""
        ))
        .unwrap();
        let silent = |name: &str| name.contains("o_proj") || name.contains("down_proj");
        let weights: BTreeMap<_, _> = (base.parameters().into_iter())
            .map(|p| {
                let n = p.shape.iter().product();
                let x = match p.init {
                    Init::Constant(x) => vec![x; n],
                    _ if silent(&p.name) => vec![0.0; n],
                    _ => numbers(n, 0.83),
                };
                (p.name, (p.shape, x))
            })
            .collect();
        let embed = weights["model.embed_tokens.weight"].1.clone();
        let mut model = Model::new(base.clone(), Weights::new(&base, weights).unwrap()).unwrap();
        let mut tensors: Vec<(&'static str, Vec<usize>, Vec<f32>)> = (c.parameters(D).into_iter().enumerate())
            .map(|(i, (name, shape))| {
                let x = numbers(shape.iter().product(), 0.31 + 0.67 * i as f64);
                (name, shape, x)
            })
            .collect();
        // a document's first token has no place to come from: its gates are shut
        let ids: Vec<u32> = (0..T as u32).map(|i| i * 11 % V as u32).collect();
        let rows = |ids: &[u32]| ids.iter().flat_map(|i| embed[*i as usize * D..][..D].to_vec()).collect::<Vec<f32>>();
        let x: Vec<f32> = (rows(&ids).chunks(D))
            .flat_map(|x| {
                let r = (x.iter().map(|x| x * x).sum::<f32>() / D as f32 + base.rms_norm_eps as f32).sqrt();
                x.iter().map(|x| x / r).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!([12, 13, 14].map(|i| tensors[i].0), ["write.weight", "write.kernel", "write.bias"]);
        let dot = |w: &[f32], t: usize| w.iter().zip(&x[t * D..]).map(|(w, x)| w * x).sum::<f32>();
        for head in 0..c.heads {
            let signal = |s: usize, t: usize| {
                tensors[13].2[(c.delay() - t) * c.heads * c.gate_width + s] * dot(&tensors[12].2[s * D..][..D], t)
            };
            let signals = head * c.gate_width..(head + 1) * c.gate_width;
            let sum: f32 = signals.flat_map(|s| (0..=c.delay()).map(move |t| (s, t))).map(|(s, t)| signal(s, t)).sum();
            tensors[14].2[head] = -0.01 - sum;
        }
        let named = tensors.iter().map(|(n, _, x)| (n.to_string(), x.clone())).collect();
        model.attach(Adapter::new(c.clone(), "0".repeat(64), D, named).unwrap()).unwrap();
        let streamed = model.forward(&mut model.state(1), &ids, Want::All);

        // the graph takes saliences of whitened embeddings without a bias: here they are the embeddings and a one
        let device = Device::flex().autodiff();
        let mut values = tensors.clone();
        let salience: Vec<f32> =
            tensors[6].2.chunks(D).zip(&tensors[7].2).flat_map(|(w, b)| [w, &[*b]].concat()).collect();
        values.push(("salience", vec![c.heads, D + 1], salience));
        let leaves = Leaves::new(values, &device);
        let raw = rows(&(0..V as u32).collect::<Vec<_>>());
        let white: Vec<f32> = raw.chunks(D).flat_map(|e| [e, &[1.0]].concat()).collect();
        let raw = constant(raw, [V, D], &device);
        let memory = Memory::new(&c, &leaves, Body::Kernel, raw, constant(white, [V, D + 1], &device));
        let around = |from: usize, n: usize| -> Around {
            (from..from + n).map(|j| j.checked_sub(c.before).and_then(|j| ids.get(j)).map(|i| *i as usize)).collect()
        };
        // the last segment reads what is written by then; the first token has no place to come from
        let first = 18;
        let cut = |from: usize, to: usize| constant(x[from * D..to * D].to_vec(), [to - from, D], &device);
        let keys = (
            memory.places("key", cut(0, T - 1)),
            memory.pool(&(1..T).flat_map(|t| around(t, c.before + c.after)).collect(), c.before + c.after),
        );
        let queries = (
            memory.places("query", cut(first, T)),
            memory.pool(&(first..T).flat_map(|t| around(t + 1, c.before)).collect(), c.before),
        );
        let waiting = Tensor::<2>::zeros([c.delay(), c.heads * c.gate_width], (&device, DType::F32));
        let signals = Body::Kernel.linear(cut(0, T), leaves.get("write.weight"));
        let gates = write_gates(&c, &leaves, Body::Kernel, Tensor::cat(vec![signals, waiting], 0), 1);
        let gates = gates.narrow(0, c.delay(), T);
        let open = host(gates.clone().narrow(0, 0, 1));
        let strength = Body::Kernel.write_gate(gates.narrow(0, 1, T - 1), infini::config::Write::Hard);
        assert!(open.iter().all(|o| *o <= 0.0), "the first token is written: choose other numbers");
        assert!(host(strength.clone()).contains(&1.0) && host(strength.clone()).contains(&0.0));
        let written = |t: usize, j: usize| f32::from(u8::from(j + c.delay() <= t));
        let visible: Vec<f32> = (first..T).flat_map(|t| (1..T).map(move |j| written(t, j))).collect();
        let held = Held { queries: 0..T - first, keys: (0..T - 1).collect(), visible };
        let value = memory.affine("value", cut(1, T));
        let null = memory.null(cut(first, T));
        let a = memory.read(Lookup { queries, keys, value, strength, null, memories: &[held] });
        let out = host(memory.output(a, memory.read_gate(cut(first, T))));
        for (i, out) in out.chunks(D).enumerate() {
            let h: Vec<f32> = out.iter().zip(&embed[ids[first + i] as usize * D..]).map(|(o, e)| o + e).collect();
            let r = (h.iter().map(|x| x * x).sum::<f32>() / D as f32 + base.rms_norm_eps as f32).sqrt();
            for (v, e) in embed.chunks(D).enumerate() {
                let logit: f32 = h.iter().zip(e).map(|(h, e)| h / r * e).sum();
                let got = streamed[(first + i) * V + v];
                assert!((logit - got).abs() < 1e-4, "token {}, logit {v}: {got}, not {logit}", first + i);
            }
        }
    }

    /// The derivatives of a sum of a solution's weighted squares against differences.
    #[test]
    fn solutions_and_their_derivatives() {
        let (h, s, w) = (2, ROWS + 3, 2);
        let device = Device::flex().autodiff();
        let below = |i: usize| i % s < (i / s) % s;
        let l = numbers(h * s * s, 0.7).into_iter().enumerate();
        let l: Vec<f32> = l.map(|(i, x)| if below(i) { 0.2 * x } else { 0.0 }).collect();
        let b = numbers(h * s * w, 1.3);
        let weights = numbers(h * s * w, 0.4);
        // forward substitution, row by row
        let value = |l: &[f32], b: &[f32]| -> f64 {
            let mut sum = 0.0;
            for head in 0..h {
                let mut u = vec![vec![0.0f64; w]; s];
                for i in 0..s {
                    for j in 0..w {
                        let before: f64 = (0..i).map(|k| f64::from(l[(head * s + i) * s + k]) * u[k][j]).sum();
                        u[i][j] = f64::from(b[(head * s + i) * w + j]) - before;
                        sum += f64::from(weights[(head * s + i) * w + j]) * u[i][j] * u[i][j];
                    }
                }
            }
            sum
        };
        let (lt, bt) = (constant::<3>(l.clone(), [h, s, s], &device), constant::<3>(b.clone(), [h, s, w], &device));
        let (lt, bt) = (lt.require_grad(), bt.require_grad());
        let u = solve(lt.clone(), bt.clone());
        let sum = (u.square() * constant::<3>(weights.clone(), [h, s, w], &device)).sum();
        assert!((f64::from(sum.clone().into_scalar::<f32>()) - value(&l, &b)).abs() < 1e-4);
        let grads = sum.backward();
        let (dl, db) = (host(lt.grad(&grads).unwrap()), host(bt.grad(&grads).unwrap()));
        let step = 1e-3f32;
        let slope = |x: &[f32], i: usize, f: &dyn Fn(&[f32]) -> f64| {
            let at = |d: f32| {
                let mut x = x.to_vec();
                x[i] += d;
                f(&x)
            };
            (at(step) - at(-step)) / (2.0 * f64::from(step))
        };
        for i in (0..l.len()).filter(|i| below(*i)).step_by(7) {
            let expected = slope(&l, i, &|l| value(l, &b));
            assert!((f64::from(dl[i]) - expected).abs() < 1e-2 * (1.0 + expected.abs()), "{i}: {} {expected}", dl[i]);
        }
        for i in 0..b.len() {
            let expected = slope(&b, i, &|b| value(&l, b));
            assert!((f64::from(db[i]) - expected).abs() < 1e-2 * (1.0 + expected.abs()), "{i}: {} {expected}", db[i]);
        }
    }
}
