//! (29)–(32) of `docs/math.md` as a differentiable graph.
//!
//! Memories are not built where writes add up: a query's read is the weighted mean over the written tokens that it may see,
//! which is the same number, and needs only products of small addresses: `φ^q·φ^k = (S·S of places) (S·S of words)`. Where
//! they overwrite, a document's memory is built in closed form and grows key by key while its tail tells more.

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, activation};
use infini::adapter::AdapterConfig;

use super::leaves::Leaves;
use super::upper::constant;
use crate::ops::Body;

/// Where no token stands, in the softmax of a pool.
const NOWHERE: f32 = -1e4;
/// As in the streaming memory.
const EPS: f64 = 1e-6;
const SALIENCE: f64 = 15.0;

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
    /// How often a query's memory holds a key, `[n, m]`.
    pub visible: &'a [f32],
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

    /// (32): reads `[n, H·V]`, not gated. `alike` are the queries that see the same, in their order; without them nothing
    /// overwrites.
    pub fn read(&self, lookup: Lookup, alike: Option<&[Range<usize>]>) -> Tensor<2> {
        if let Some(alike) = alike.filter(|_| self.c.overwrite) {
            return self.read_overwritten(lookup, alike);
        }
        let Lookup { queries, keys, value, strength, visible } = lookup;
        let (h, v) = (self.c.heads, self.c.value_width);
        let (n, m) = (queries.0.dims()[0], value.dims()[0]);
        let visible = constant::<2>(visible.to_vec(), [n, m], &self.words.device());
        let place = self.pair(queries.0, 0).matmul(self.pair(keys.0, 0).swap_dims(1, 2));
        let word = self.pair(queries.1, 1).matmul(self.pair(keys.1, 1).swap_dims(1, 2));
        let w = place * word * strength.swap_dims(0, 1).reshape([h, 1, m]) * visible.reshape([1, n, m]);
        let null = self.leaves.get::<1>("null").exp().reshape([h, 1, 1]);
        let nothing = self.leaves.get::<1>("nothing").reshape([h, 1, v]);
        let value = value.reshape([m, h, v]).swap_dims(0, 1);
        let den = w.clone().sum_dim(2) + null.clone();
        let num = w.matmul(value) + nothing * null;
        (num / den).swap_dims(0, 1).reshape([n, h * v])
    }

    /// `φ [H, n, F]` of places and pools.
    fn address(&self, (places, pools): (Tensor<3>, Tensor<3>)) -> Tensor<3> {
        let (places, pools) = (self.pair(places, 0), self.pair(pools, 1));
        let ([h, n, p], u) = (places.dims(), pools.dims()[2]);
        (places.reshape([h, n, p, 1]) * pools.reshape([h, n, 1, u])).reshape([h, n, p * u])
    }

    /// [`read`](Memory::read) where each write clears its cells: of key `i` is left `φ_i Π_{j>i} (1 − g_j φ_j)`. What is
    /// visible is written once, however often it is to weigh.
    fn read_overwritten(&self, lookup: Lookup, alike: &[Range<usize>]) -> Tensor<2> {
        let Lookup { queries, keys, value, strength, visible } = lookup;
        let (h, v, device) = (self.c.heads, self.c.value_width, self.words.device());
        let m = value.dims()[0];
        let queries = self.address(queries);
        let written = self.address(keys) * strength.swap_dims(0, 1).reshape([h, m, 1]);
        // never the logarithm of nothing
        let left = (written.clone() * -(1.0 - EPS) + 1.0).log();
        let value = value.reshape([m, h, v]).swap_dims(0, 1);
        let null = self.leaves.get::<1>("null").exp().reshape([h, 1, 1]);
        let nothing = self.leaves.get::<1>("nothing").reshape([h, 1, v]) * null.clone();
        let nowhere = |v: usize| Tensor::<3>::zeros([h, v, queries.dims()[2]], (&device, DType::F32));
        // what is written when the queries before these read: keys, M transposed and z
        let (mut held, mut memory): (Vec<usize>, [Tensor<3>; 2]) = (Vec::new(), [nowhere(v), nowhere(1)]);
        let mut reads = Vec::with_capacity(alike.len());
        for d in alike.iter().filter(|d| !d.is_empty()) {
            let phi = queries.clone().narrow(1, d.start, d.len());
            let seen: Vec<usize> = (0..m).filter(|i| visible[d.start * m + i] > 0.0).collect();
            if held.iter().all(|i| seen.binary_search(i).is_ok()) && !held.is_empty() {
                // a little more than before: one after the other
                for i in seen.iter().filter(|i| held.binary_search(i).is_err()) {
                    let phi = written.clone().narrow(1, *i, 1);
                    let v = value.clone().narrow(1, *i, 1).swap_dims(1, 2);
                    let [mt, z] = memory;
                    let rest = -phi.clone() + 1.0;
                    memory = [mt * rest.clone() + v.matmul(phi.clone()), z * rest + phi];
                }
            } else if seen.is_empty() {
                memory = [nowhere(v), nowhere(1)];
            } else {
                let rows: Vec<i64> = seen.iter().map(|i| *i as i64).collect();
                let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [seen.len()]), (&device, DType::I64));
                let left = left.clone().select(1, rows.clone());
                // the sum over those that were written later
                let later = left.clone().sum_dim(1) - left.cumsum(1);
                let kept = written.clone().select(1, rows.clone()) * later.exp();
                let value = value.clone().select(1, rows);
                memory = [value.swap_dims(1, 2).matmul(kept.clone()), kept.sum_dim(1)];
            }
            held = seen;
            let [num, den] = memory.clone().map(|m| phi.clone().matmul(m.swap_dims(1, 2)));
            reads.push(((num + nothing.clone()) / (den + null.clone())).swap_dims(0, 1).reshape([d.len(), h * v]));
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
    use crate::adapt::leaves::host;

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
        compare(false);
        compare(true);
    }

    fn compare(overwrite: bool) {
        let c = AdapterConfig {
            layer: 0,
            segment_len: 6,
            sink: 1,
            heads: 2,
            value_width: 5,
            place_width: 3,
            word_width: 4,
            before: 4,
            after: 3,
            overwrite,
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
        let e = &embed[..D];
        let r = (e.iter().map(|x| x * x).sum::<f32>() / D as f32 + base.rms_norm_eps as f32).sqrt();
        let dot = |w: &[f32]| w.iter().zip(e).map(|(w, e)| w * e / r).sum::<f32>();
        tensors[13].2 = tensors[12].2.chunks(D).map(|w| -0.01 - dot(w)).collect();
        assert_eq!((tensors[12].0, tensors[13].0), ("write.weight", "write.bias"));
        let named = tensors.iter().map(|(n, _, x)| (n.to_string(), x.clone())).collect();
        model.attach(Adapter::new(c.clone(), "0".repeat(64), D, named).unwrap()).unwrap();
        let ids: Vec<u32> = (0..T as u32).map(|i| i * 11 % V as u32).collect();
        let streamed = model.forward(&mut model.state(1), &ids, Want::All);

        // the graph takes saliences of whitened embeddings without a bias: here they are the embeddings and a one
        let device = Device::flex().autodiff();
        let mut values = tensors.clone();
        let salience: Vec<f32> =
            tensors[6].2.chunks(D).zip(&tensors[7].2).flat_map(|(w, b)| [w, &[*b]].concat()).collect();
        values.push(("salience", vec![c.heads, D + 1], salience));
        let leaves = Leaves::new(values, &device);
        let rows = |ids: &[u32]| ids.iter().flat_map(|i| embed[*i as usize * D..][..D].to_vec()).collect::<Vec<f32>>();
        let raw = rows(&(0..V as u32).collect::<Vec<_>>());
        let white: Vec<f32> = raw.chunks(D).flat_map(|e| [e, &[1.0]].concat()).collect();
        let raw = constant(raw, [V, D], &device);
        let memory = Memory::new(&c, &leaves, Body::Kernel, raw, constant(white, [V, D + 1], &device));
        let around = |from: usize, n: usize| -> Around {
            (from..from + n).map(|j| j.checked_sub(c.before).and_then(|j| ids.get(j)).map(|i| *i as usize)).collect()
        };
        let x = rows(&ids);
        let x: Vec<f32> = x
            .chunks(D)
            .flat_map(|x| {
                let r = (x.iter().map(|x| x * x).sum::<f32>() / D as f32 + base.rms_norm_eps as f32).sqrt();
                x.iter().map(|x| x / r).collect::<Vec<_>>()
            })
            .collect();
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
        let strength = Body::Kernel.write_gate(memory.affine("write", cut(1, T)), infini::config::Write::Hard);
        let open = host(memory.affine("write", cut(0, 1)));
        assert!(open.iter().all(|o| *o <= 0.0), "the first token is written: choose other numbers");
        assert!(host(strength.clone()).contains(&1.0) && host(strength.clone()).contains(&0.0));
        let written = |t: usize, j: usize| f32::from(u8::from(j + c.delay() <= t));
        let visible: Vec<f32> = (first..T).flat_map(|t| (1..T).map(move |j| written(t, j))).collect();
        let alike: Vec<_> = (0..T - first).map(|i| i..i + 1).collect();
        let value = memory.affine("value", cut(1, T));
        let a = memory.read(Lookup { queries, keys, value, strength, visible: &visible }, Some(&alike));
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
}
