//! The decoder of the training graph, readable in one sitting: a function of (config, parameters,
//! tokens). Names and shapes come from [`ModelConfig::parameters`]; the streaming model of crate
//! `infini` computes the same from the same names.

mod rmt;

use burn::tensor::{DType, Tensor, activation};

use crate::carry::{self, Carry};
use crate::ops::sinks::Sinks;
use crate::ops::{self, AttentionInputs, Body, HeadShape, Mlp, Tokens, composed::softplus, knn::Past};
use crate::parameters::Parameters;
use infini::config::{Activation, Attention, LayerKind, MixName, ModelConfig, NullSlot, RuleName, Write};
use infini_kernels::knn::Seen;
use infini_kernels::{Features, Settings};

/// What a forward pass gives.
#[derive(Debug)]
pub struct Forward {
    /// Normalised output of the last layer, `[B T, d]`.
    pub hidden: Tensor<2>,
    /// The gates of every memory layer.
    pub gates: Vec<Gate>,
}

/// The gates of one memory layer.
#[derive(Debug)]
pub struct Gate {
    /// Index of the layer.
    pub layer: usize,
    /// The write gate, if it has one.
    pub write: Option<WriteGate>,
    /// Logits of the mix: `[1, H]` for one scalar a head, `[B T, H]` for one a token; `None` if the memory is added.
    pub mix: Option<Tensor<2>>,
}

/// A write gate.
#[derive(Clone, Debug)]
pub struct WriteGate {
    /// `[B T, Hkv]`.
    pub logits: Tensor<2>,
    /// `[B T, Hkv]`, in [0, 1].
    pub strength: Tensor<2>,
}

/// The decoder without its head, from nothing.
pub fn forward(body: Body, c: &ModelConfig, p: &Parameters, t: &Tokens) -> Forward {
    forward_carried(body, c, p, t, None, false).0
}

/// The decoder without its head for rows that have read before, and, with `keep`, what they leave for the next step: then T
/// is a multiple of the segment length, and the window no longer than T.
pub fn forward_carried(
    body: Body,
    c: &ModelConfig,
    p: &Parameters,
    t: &Tokens,
    before: Option<&Carry>,
    keep: bool,
) -> (Forward, Option<Carry>) {
    if c.attention == Attention::Rmt {
        return rmt::forward(body, c, p, t, before, keep);
    }
    let mut gates = Vec::new();
    let mut after = keep.then(|| Carry::new(c, t));
    let mut x = body.embedding(p.get("model.embed_tokens.weight"), t);
    for l in 0..c.num_hidden_layers {
        let layer = Layer { body, c, p, l, before };
        let h = layer.norm("input_layernorm", x.clone());
        x = x + layer.attention(h, t, &mut gates, &mut after);
        x = layer.mlp(x);
    }
    let hidden = body.rms_norm(x, p.get("model.norm.weight"), c.rms_norm_eps);
    (Forward { hidden, gates }, after)
}

/// The head's weights `[V, d]`: the embedding if they are tied.
pub fn head(c: &ModelConfig, p: &Parameters) -> Tensor<2> {
    p.get(if c.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" })
}

/// Logits `[B T, V]`.
pub fn logits(body: Body, c: &ModelConfig, p: &Parameters, t: &Tokens) -> Tensor<2> {
    body.linear(forward(body, c, p, t).hidden, head(c, p))
}

struct Layer<'a> {
    body: Body,
    c: &'a ModelConfig,
    p: &'a Parameters,
    l: usize,
    before: Option<&'a Carry>,
}

impl Layer<'_> {
    fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.p.get(&format!("model.layers.{}.{name}", self.l))
    }

    fn linear(&self, name: &str, x: &Tensor<2>) -> Tensor<2> {
        self.body.linear(x.clone(), self.get(&format!("{name}.weight")))
    }

    /// A projection with a bias.
    fn affine(&self, name: &str, x: &Tensor<2>) -> Tensor<2> {
        self.linear(name, x) + self.get::<1>(&format!("{name}.bias")).unsqueeze()
    }

    fn norm(&self, name: &str, x: Tensor<2>) -> Tensor<2> {
        self.body.rms_norm(x, self.get(&format!("{name}.weight")), self.c.rms_norm_eps)
    }

    /// Attention of the normalised input `h`, projected back to the residual stream.
    fn attention(&self, mut h: Tensor<2>, t: &Tokens, gates: &mut Vec<Gate>, after: &mut Option<Carry>) -> Tensor<2> {
        let c = self.c;
        if c.infini.conv > 0 {
            h = h.clone() + self.conv("self_attn.infini.conv.weight", "conv", h, t, after);
        }
        let [q, k, v] = ["q", "k", "v"].map(|n| {
            let name = format!("self_attn.{n}_proj");
            if c.qkv_bias { self.affine(&name, &h) } else { self.linear(&name, &h) }
        });
        let [k, v] = [("k_conv", k), ("v_conv", v)].map(|(name, x)| match c.infini.kv_conv {
            0 => x,
            _ => x.clone() + self.conv(&format!("self_attn.infini.{name}.weight"), name, x, t, after),
        });
        let mut x = AttentionInputs::new(q, k, v);
        let shape = HeadShape { heads: c.num_attention_heads, kv_heads: c.kv_heads(), width: c.head_width() };
        let settings = c.kernel_settings(self.l);
        if c.layer_kind(self.l) == LayerKind::Full {
            return self.linear("self_attn.o_proj", &self.body.window(&settings, shape, &x, t));
        }
        let memory = c.layer_kind(self.l) == LayerKind::Infini;
        let own = c.own_memory(self.l);
        let queries = x.q.clone();
        let mut kept = Kept { layer: self, t, after };
        let mut read = None;
        if memory {
            let gate = self.memory_inputs(&h, &mut x);
            gates.push(gate);
        }
        if own {
            let y = self.own(&h, &x, &mut kept);
            read = Some(self.linear("self_attn.infini.memory.o_proj", &y));
            (x.w, x.a, x.c, x.fmap) = (None, None, None, None);
        }
        kept.window(&mut x, ["k", "v"]);
        let y = if memory && !own {
            kept.attention(&settings, shape, &x)
        } else if c.infini.sink > 0 {
            kept.with_sinks(&settings, shape, &x)
        } else {
            kept.seen(&x, |x, t| match c.attention {
                Attention::TransformerXl => self.body.recent(&settings, shape, x, t),
                _ => self.body.window(&settings, shape, x, t),
            })
        };
        let y = match c.layer_kind(self.l) {
            LayerKind::Memorizing => {
                let y_mem = kept.store(shape, queries, &x);
                let beta = self.get::<1>("self_attn.infini.beta");
                gates.push(Gate { layer: self.l, write: None, mix: Some(beta.clone().unsqueeze()) });
                let rows = y.dims()[0];
                let gate = activation::sigmoid(beta).reshape([1, shape.heads, 1]);
                let split = |y: Tensor<2>| y.reshape([rows, shape.heads, shape.width]);
                let (y, y_mem) = (split(y), split(y_mem));
                (y.clone() + (y_mem - y) * gate).reshape([rows, shape.heads * shape.width])
            }
            _ => y,
        };
        let y = self.linear("self_attn.o_proj", &y);
        match read {
            Some(read) => y + read,
            None => y,
        }
    }

    /// What a memory with projections of its own gives, normalised: `[B T, heads · width]`.
    fn own(&self, h: &Tensor<2>, gates: &AttentionInputs, kept: &mut Kept) -> Tensor<2> {
        let c = self.c;
        let (heads, kv_heads, width) = c.memory_shape();
        let [q, mut k, mut v] = ["q", "k", "v"].map(|n| self.linear(&format!("self_attn.infini.memory.{n}_proj"), h));
        if c.infini.memory_conv > 0 {
            for (x, name) in [(&mut k, "k_conv"), (&mut v, "v_conv")] {
                let weight = format!("self_attn.infini.memory.{name}.weight");
                *x = x.clone() + self.conv(&weight, &format!("memory.{name}"), x.clone(), kept.t, kept.after);
            }
        }
        let AttentionInputs { w, a, c: null, fmap, .. } = gates.clone();
        let mut x = AttentionInputs { q, k, v, w, a, c: null, beta: None, gate: None, fmap };
        kept.window(&mut x, ["memory.k", "memory.v"]);
        let y = kept.attention(&c.own_settings(self.l), HeadShape { heads, kv_heads, width }, &x);
        let n = y.dims()[0];
        let ones = Tensor::ones([width], (&y.device(), y.dtype()));
        let y = self.body.rms_norm(y.reshape([n * heads, width]), ones, c.rms_norm_eps).reshape([n, heads * width]);
        y * self.get::<1>("self_attn.infini.memory.norm.weight").unsqueeze()
    }

    /// A convolution of `x` that goes on where the step before ended.
    fn conv(&self, weight: &str, name: &str, x: Tensor<2>, t: &Tokens, after: &mut Option<Carry>) -> Tensor<2> {
        let kernel = self.get::<2>(weight);
        let tail = (kernel.dims()[0] - 1).min(t.len);
        if let Some(after) = after {
            after.put(self.l, name, carry::last(&x, tail, t));
        }
        let before = self.before.and_then(|b| b.get(self.l, name));
        let n = before.map_or(0, |_| tail);
        let reset = carry::resets(self.before, n, t);
        let longer = Tokens { reset: reset.as_deref(), len: n + t.len, ..*t };
        carry::drop_first(self.body.conv(carry::prepend(before, n, x, t), kernel, &longer), n, t)
    }

    /// The gates of a memory layer, all from the same `h` as q, k and v.
    fn memory_inputs(&self, h: &Tensor<2>, x: &mut AttentionInputs) -> Gate {
        let i = &self.c.infini;
        let mut gate = Gate { layer: self.l, write: None, mix: None };
        if i.write != Write::All {
            let logits = self.affine("self_attn.infini.write", h);
            let strength = self.body.write_gate(logits.clone(), i.write);
            x.w = Some(strength.clone());
            gate.write = Some(WriteGate { logits, strength });
        }
        match i.mix {
            MixName::Head => {
                let beta = self.get::<1>("self_attn.infini.beta");
                gate.mix = Some(beta.clone().unsqueeze());
                x.beta = Some(beta);
            }
            MixName::Token => {
                x.gate = Some(self.affine("self_attn.infini.gate", h));
                gate.mix = x.gate.clone();
            }
            MixName::Add => {}
        }
        if i.rule == RuleName::GatedDelta {
            let rate = softplus(self.affine("self_attn.infini.decay", h));
            let speed = self.get::<1>("self_attn.infini.a_log").exp();
            x.a = Some((rate * speed.unsqueeze()).neg().exp());
            return gate;
        }
        x.c = match i.null_slot {
            NullSlot::Fixed(0.0) => None,
            NullSlot::Fixed(value) => {
                Some(Tensor::full([self.c.memory_shape().1], value, (&x.q.device(), x.q.dtype())))
            }
            NullSlot::Learned(_) => Some(softplus(self.get::<1>("self_attn.infini.c_raw"))),
        };
        if self.c.features() == Features::SoftmaxPair {
            x.fmap = Some(self.get("self_attn.infini.fmap.weight"));
        }
        gate
    }

    fn mlp(&self, x: Tensor<2>) -> Tensor<2> {
        let gated = self.c.hidden_act == Activation::Silu;
        let w = Mlp {
            norm: self.get("post_attention_layernorm.weight"),
            eps: self.c.rms_norm_eps,
            gate: gated.then(|| self.get("mlp.gate_proj.weight")),
            up: self.get("mlp.up_proj.weight"),
            down: self.get("mlp.down_proj.weight"),
        };
        self.body.mlp(x, w)
    }
}

/// One layer's attention between what was carried to it and what it leaves.
struct Kept<'a, 'b> {
    layer: &'a Layer<'a>,
    t: &'a Tokens<'a>,
    after: &'b mut Option<Carry>,
}

impl Kept<'_, '_> {
    /// Carried tokens.
    fn n(&self) -> usize {
        self.layer.before.map_or(0, |_| carry::window(self.layer.c))
    }

    /// Keeps the window's end of keys, values, write strengths and decays, and puts what was carried before them; queries
    /// and gates of carried tokens are zeros.
    fn window(&mut self, x: &mut AttentionInputs, [k, v]: [&str; 2]) {
        let (n, r, l, t) = (self.n(), carry::window(self.layer.c), self.layer.l, self.t);
        let before = |name: &str| self.layer.before.and_then(|b| b.get(l, name));
        let mut put = |name: &str, x: &mut Tensor<2>| {
            if let Some(after) = self.after.as_mut().filter(|_| r > 0) {
                after.put(l, name, carry::last(x, r, t));
            }
            *x = carry::prepend(before(name), n, x.clone(), t);
        };
        put(k, &mut x.k);
        put(v, &mut x.v);
        for (name, x) in [("w", &mut x.w), ("a", &mut x.a)] {
            if let Some(x) = x {
                put(name, x);
            }
        }
        x.q = carry::prepend(None, n, x.q.clone(), t);
        x.gate = x.gate.clone().map(|g| carry::prepend(None, n, g, t));
    }

    /// Runs an operation on carried and new tokens and returns what belongs to the new ones.
    fn seen(&self, x: &AttentionInputs, f: impl FnOnce(&AttentionInputs, &Tokens) -> Tensor<2>) -> Tensor<2> {
        let n = self.n();
        let reset = carry::resets(self.layer.before, n, self.t);
        let longer = Tokens { reset: reset.as_deref(), len: n + self.t.len, ..*self.t };
        carry::drop_first(f(x, &longer), n, self.t)
    }

    /// The window with attention sinks, and what it leaves of those.
    fn with_sinks(&mut self, s: &Settings, shape: HeadShape, x: &AttentionInputs) -> Tensor<2> {
        let (c, l, n) = (self.layer.c, self.layer.l, self.n());
        let get = |name: &str| self.layer.before?.get(l, name);
        let all = || Some([get("sink.k")?, get("sink.v")?, get("sink.age")?]);
        let sinks = Sinks { count: c.infini.sink, before: all() };
        let reset = carry::resets(self.layer.before, n, self.t);
        let t = Tokens { reset: reset.as_deref(), len: n + self.t.len, ..*self.t };
        if let Some(after) = self.after {
            // the next step's first token, if it has the window in front
            let first = t.len - carry::window(c);
            let documents: Vec<i64> =
                (0..t.batch).map(|row| if first == 0 { 0 } else { sinks.document(&t, row, first - 1) }).collect();
            // sinks that are still to come are found in the next step
            let index = |row: usize, i: usize| match sinks.index(&t, row, documents[row], i) {
                at if documents[row] + (i as i64) < t.len as i64 => at,
                _ => t.batch * (t.len + sinks.count),
            };
            let indices: Vec<usize> = (0..t.batch)
                .flat_map(|row| (0..sinks.count).map(move |i| (row, i)))
                .map(|(row, i)| index(row, i))
                .collect();
            for (which, (name, x)) in [("sink.k", &x.k), ("sink.v", &x.v)].into_iter().enumerate() {
                let kept = ops::sinks::pick(sinks.with_before(x, which, &t).detach(), &indices);
                after.put(l, name, kept.into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for"));
            }
            // an f32 counts so far exactly, and nothing asks how far beyond
            let age = |document: &i64| (first as i64 - document).min(1 << 20) as f32;
            after.put(l, "sink.age", documents.iter().map(age).collect());
        }
        carry::drop_first(ops::sinks::window(self.layer.body, s, shape, x, &t, &sinks), n, self.t)
    }

    /// What the store of a memorizing layer answers, and what it holds afterwards. `x` has the carried window in front.
    fn store(&mut self, shape: HeadShape, q: Tensor<2>, x: &AttentionInputs) -> Tensor<2> {
        let (c, l, t, n) = (self.layer.c, self.layer.l, self.t, self.n());
        let (places, top) = c.store();
        let width = shape.kv_heads * shape.width;
        let before = |name: &str| self.layer.before.and_then(|b| b.get(l, name)).unwrap_or(&[]);
        let own = before("store.own");
        let p = before("store.k").len() / (t.batch * width);
        let len = p + n + t.len;
        let join = |name: &str, x: &Tensor<2>| -> Vec<f32> {
            let x = x.clone().detach().into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for");
            let rows = x.chunks((n + t.len) * width).enumerate();
            rows.flat_map(|(b, new)| [&before(name)[b * p * width..(b + 1) * p * width], new].concat()).collect()
        };
        let past = [join("store.k", &x.k), join("store.v", &x.v)];
        let reset = carry::resets(self.layer.before, n, t);
        let (seg, window) = (c.infini.segment_len, carry::window(c));
        let mut seen: Vec<Seen> = Vec::with_capacity(t.batch * t.len);
        let (leaves, mut kept) = (len.saturating_sub(window), Vec::new());
        for row in 0..t.batch {
            let mut document = p - own.get(row).map_or(0, |x| *x as usize);
            let mut last = document;
            for i in 0..n + t.len {
                if reset.as_ref().is_some_and(|r| r[row * (n + t.len) + i] != 0) {
                    document = p + i;
                }
                if p + i < leaves {
                    last = document;
                }
                if i >= n {
                    let start = (p + n + (i - n) / seg * seg).saturating_sub(window);
                    let from = start.saturating_sub(places).max(document).min(start);
                    seen.push([from as u32..start as u32, 0..0]);
                }
            }
            kept.push((leaves - last).min(places) as f32);
        }
        if let Some(after) = self.after {
            let keep = leaves.min(places);
            for (name, values) in ["store.k", "store.v"].into_iter().zip(&past) {
                let rows = values.chunks(len * width);
                let newest = rows.flat_map(|row| row[(leaves - keep) * width..leaves * width].to_vec());
                after.put(l, name, newest.collect());
            }
            after.put(l, "store.own", kept);
        }
        let [k, v] = past;
        self.layer.body.knn(shape, q, Past { k, v, len, seen }, top, t)
    }

    /// Infini-attention from the carried memory to the one that is left.
    fn attention(&mut self, s: &Settings, shape: HeadShape, x: &AttentionInputs) -> Tensor<2> {
        let (l, body) = (self.layer.l, self.layer.body);
        let before = |name: &str| self.layer.before.and_then(|b| b.get(l, name));
        let start = before("m").map(|m| [m, before("z").unwrap_or(&[])]);
        let mut end = Default::default();
        let y = self.seen(x, |x, t| {
            let (y, state) = body.attention_from(s, shape, x, t, start);
            end = state;
            y
        });
        if let Some(after) = self.after {
            let [m, z] = end;
            after.put(l, "m", m);
            after.put(l, "z", z);
        }
        y
    }
}
