//! The whole decoder in f64, forward and backward by hand, out of the kernels' plain references: what
//! the training graph is measured against. Slow; for checks only.

mod rivals;
mod rmt;
mod sinks;

use std::collections::BTreeMap;

use crate::ops::Tokens;
use infini::config::{Activation, Attention, LayerKind, MixName, ModelConfig, NullSlot, RuleName, Write};
use infini_kernels::conv::Shape;
use infini_kernels::naive::attention::{self as naive, Dims, Inputs};
use infini_kernels::naive::pointwise as f;
use infini_kernels::{Features, Mix, Rule, Settings};

/// Parameters or gradients by name.
pub type Named = BTreeMap<String, Vec<f64>>;

/// What the reference computes.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `[B T, V]`.
    pub logits: Vec<f64>,
    /// `Σ_n weight_n · ce_n + penalty · Σ_layers mean(w)`.
    pub loss: f64,
    /// Gradient of `loss` by every parameter.
    pub gradients: Named,
}

/// One layer's intermediate values.
#[derive(Default)]
struct Tape {
    x: Vec<f64>,
    normed: Vec<f64>,
    h: Vec<f64>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// Keys and values before their convolutions.
    raw: [Vec<f64>; 2],
    write_logits: Vec<f64>,
    w: Vec<f64>,
    gate: Vec<f64>,
    decay_logits: Vec<f64>,
    a: Vec<f64>,
    c: Vec<f64>,
    y: Vec<f64>,
    middle: Vec<f64>,
    h2: Vec<f64>,
    mlp_gate: Vec<f64>,
    up: Vec<f64>,
    inner: Vec<f64>,
    /// Write strengths of a layer whose attention has no memory.
    shut: Vec<f64>,
    /// What a memorizing layer's store and window answer.
    stored: Vec<f64>,
    window: Vec<f64>,
    own: Own,
}

/// Intermediate values of a memory with projections of its own.
#[derive(Default)]
struct Own {
    q: Vec<f64>,
    /// Keys and values before their convolutions, and after.
    raw: [Vec<f64>; 2],
    k: Vec<f64>,
    v: Vec<f64>,
    read: Vec<f64>,
    normed: Vec<f64>,
    y: Vec<f64>,
}

struct Run<'a> {
    c: &'a ModelConfig,
    p: &'a Named,
    t: &'a Tokens<'a>,
    reset: Vec<u8>,
    n: usize,
    g: Named,
}

/// The decoder with loss `Σ_n weight_n · ce_n + penalty · Σ_layers mean(w)` and all gradients.
///
/// # Panics
/// If a parameter is missing or misshapen.
pub fn run(c: &ModelConfig, p: &Named, t: &Tokens, targets: &[u32], weights: &[f64], penalty: f64) -> Outcome {
    if c.attention == Attention::Rmt {
        return rmt::run(c, p, t, targets, weights);
    }
    let reset = t.reset.map(<[u8]>::to_vec).unwrap_or_default();
    let g = p.iter().map(|(name, x)| (name.clone(), vec![0.0; x.len()])).collect();
    let mut run = Run { c, p, t, reset, n: t.batch * t.len, g };
    let (d, vocab) = (c.hidden_size, c.vocab_size);
    let table = run.get("model.embed_tokens.weight");
    let x = t.ids.iter().flat_map(|id| &table[*id as usize * d..(*id as usize + 1) * d]).copied().collect();
    let (tapes, x) = run.layers(x);
    let gain = run.get("model.norm.weight");
    let hidden = f::rms(&x, gain, c.rms_norm_eps);
    let head_name = if c.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let logits = f::linear(&hidden, run.get(head_name), [run.n, d, vocab]);
    let loss = f::loss(&hidden, run.get(head_name), targets, weights, d);

    accumulate(&mut run.g, head_name, &loss.dweight);
    let (dx, dgain) = f::rms_backward(&x, gain, c.rms_norm_eps, &loss.dhidden);
    accumulate(&mut run.g, "model.norm.weight", &dgain);
    let mut value = loss.loss;
    for tape in tapes.iter().filter(|tape| !tape.write_logits.is_empty()) {
        value += penalty * tape.w.iter().sum::<f64>() / tape.w.len() as f64;
    }
    let dx = run.layers_back(&tapes, dx, penalty);
    let dtable = f::embedding_backward(t.ids, &dx, d, vocab);
    accumulate(&mut run.g, "model.embed_tokens.weight", &dtable);
    Outcome { logits, loss: value, gradients: run.g }
}

impl<'a> Run<'a> {
    /// Every layer on `x`.
    fn layers(&self, mut x: Vec<f64>) -> (Vec<Tape>, Vec<f64>) {
        let mut tapes = Vec::new();
        for l in 0..self.c.num_hidden_layers {
            let tape = self.forward(l, x);
            x = add(&tape.middle, &self.linear(l, "mlp.down_proj", &tape.inner));
            tapes.push(tape);
        }
        (tapes, x)
    }

    /// Gradient of what entered the layers from that of what left them.
    fn layers_back(&mut self, tapes: &[Tape], dx: Vec<f64>, penalty: f64) -> Vec<f64> {
        tapes.iter().enumerate().rev().fold(dx, |dx, (l, tape)| self.backward(l, tape, &dx, penalty))
    }

    fn get(&self, name: &str) -> &'a [f64] {
        self.p.get(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    fn at(&self, l: usize, name: &str) -> &'a [f64] {
        self.get(&format!("model.layers.{l}.{name}"))
    }

    /// `x Wᵀ` with the weight of `name`, which ends in `.weight`.
    fn linear(&self, l: usize, name: &str, x: &[f64]) -> Vec<f64> {
        let w = self.at(l, &format!("{name}.weight"));
        let inp = x.len() / self.n;
        f::linear(x, w, [self.n, inp, w.len() / inp])
    }

    fn affine(&self, l: usize, name: &str, x: &[f64]) -> Vec<f64> {
        let bias = self.at(l, &format!("{name}.bias"));
        let y = self.linear(l, name, x);
        y.iter().enumerate().map(|(i, y)| y + bias[i % bias.len()]).collect()
    }

    /// Adds the weight's gradient and returns that of `x`.
    fn linear_back(&mut self, l: usize, name: &str, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let name = format!("model.layers.{l}.{name}.weight");
        let (w, inp) = (self.get(&name), x.len() / self.n);
        let (dx, dw) = f::linear_backward(x, w, dy, [self.n, inp, w.len() / inp]);
        accumulate(&mut self.g, &name, &dw);
        dx
    }

    fn affine_back(&mut self, l: usize, name: &str, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let n = dy.len() / self.n;
        let mut db = vec![0.0; n];
        dy.iter().enumerate().for_each(|(i, dy)| db[i % n] += dy);
        accumulate(&mut self.g, &format!("model.layers.{l}.{name}.bias"), &db);
        self.linear_back(l, name, x, dy)
    }

    fn norm_back(&mut self, l: usize, name: &str, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let name = format!("model.layers.{l}.{name}.weight");
        let (dx, dg) = f::rms_backward(x, self.get(&name), self.c.rms_norm_eps, dy);
        accumulate(&mut self.g, &name, &dg);
        dx
    }

    fn conv_shape(&self) -> Option<Shape> {
        let width = self.c.infini.conv;
        (width > 0).then_some(Shape { b: self.t.batch, t: self.t.len, d: self.c.hidden_size, width })
    }

    fn kv_conv(&self) -> Option<Shape> {
        let (width, d) = (self.c.infini.kv_conv, self.c.kv_heads() * self.c.head_width());
        (width > 0).then_some(Shape { b: self.t.batch, t: self.t.len, d, width })
    }

    /// The kernel's settings; a layer without a memory is one that writes nothing and adds.
    fn settings(&self, l: usize) -> Settings {
        let mut s = self.c.kernel_settings(l);
        s.segment_len = s.segment_len.min(self.t.len);
        if !self.shared(l) {
            (s.rule, s.features, s.mix) = (Rule::Linear, Features::Elu1, Mix::Add);
        }
        s
    }

    /// Whether the memory is part of the layer's attention.
    fn shared(&self, l: usize) -> bool {
        self.c.layer_kind(l) == LayerKind::Infini && !self.c.own_memory(l)
    }

    fn inputs<'b>(&'b self, l: usize, t: &'b Tape) -> Inputs<'b> {
        let c = self.c;
        let memory = self.shared(l);
        let (d, i) = (c.head_width(), &c.infini);
        let optional = |there: bool, name: &str| if there { self.at(l, name) } else { &[] };
        Inputs {
            dims: Dims {
                b: self.t.batch,
                t: self.t.len,
                h: c.num_attention_heads,
                hkv: c.kv_heads(),
                d,
                dv: d,
                f: if memory { c.feature_dim() } else { d },
            },
            q: &t.q,
            k: &t.k,
            v: &t.v,
            w: if memory { &t.w } else { &t.shut },
            a: if memory { &t.a } else { &[] },
            c: if memory { &t.c } else { &[] },
            beta: optional(memory && i.mix == MixName::Head, "self_attn.infini.beta"),
            gate: &t.gate,
            fmap_w: optional(memory && c.features() == Features::SoftmaxPair, "self_attn.infini.fmap.weight"),
            reset: &self.reset,
            m0: &[],
            z0: &[],
        }
    }

    fn forward(&self, l: usize, x: Vec<f64>) -> Tape {
        let c = self.c;
        let mut t =
            Tape { normed: f::rms(&x, self.at(l, "input_layernorm.weight"), c.rms_norm_eps), x, ..Tape::default() };
        t.h = match self.conv_shape() {
            None => t.normed.clone(),
            Some(shape) => {
                add(&t.normed, &f::conv(shape, &t.normed, self.at(l, "self_attn.infini.conv.weight"), self.t.reset))
            }
        };
        [t.q, t.k, t.v] = ["q", "k", "v"].map(|n| {
            let name = format!("self_attn.{n}_proj");
            if c.qkv_bias { self.affine(l, &name, &t.h) } else { self.linear(l, &name, &t.h) }
        });
        if let Some(shape) = self.kv_conv() {
            t.raw = [t.k, t.v];
            [t.k, t.v] = ["k", "v"].map(|n| {
                let x = &t.raw[usize::from(n == "v")];
                add(x, &f::conv(shape, x, self.at(l, &format!("self_attn.infini.{n}_conv.weight")), self.t.reset))
            });
        }
        if c.layer_kind(l) == LayerKind::Infini {
            self.gates(l, &mut t);
        }
        t.shut = vec![0.0; self.n * c.kv_heads()];
        t.y = match self.sinks() {
            true => self.with_sinks(l, &t),
            false => naive::forward(&self.settings(l), &self.inputs(l, &t)).y,
        };
        if c.layer_kind(l) == LayerKind::Memorizing {
            t.stored = self.stored(&t);
            t.window = std::mem::take(&mut t.y);
            let gates = self.shares(l);
            t.y = (0..t.window.len()).map(|i| gates(i) * t.stored[i] + (1.0 - gates(i)) * t.window[i]).collect();
        }
        t.middle = add(&t.x, &self.linear(l, "self_attn.o_proj", &t.y));
        if c.own_memory(l) {
            self.own(l, &mut t);
            t.middle = add(&t.middle, &self.linear(l, &memory("o_proj"), &t.own.y));
        }
        t.h2 = f::rms(&t.middle, self.at(l, "post_attention_layernorm.weight"), c.rms_norm_eps);
        t.up = self.linear(l, "mlp.up_proj", &t.h2);
        t.inner = match c.hidden_act {
            Activation::GeluMlp => t.up.iter().map(|x| f::gelu(*x)).collect(),
            Activation::Silu => {
                t.mlp_gate = self.linear(l, "mlp.gate_proj", &t.h2);
                t.mlp_gate.iter().zip(&t.up).map(|(g, u)| f::swiglu(*g, *u)).collect()
            }
        };
        t
    }

    fn own_inputs<'b>(&'b self, l: usize, t: &'b Tape) -> Inputs<'b> {
        let c = self.c;
        let (h, hkv, d) = c.memory_shape();
        let pair = c.features() == Features::SoftmaxPair;
        Inputs {
            dims: Dims { b: self.t.batch, t: self.t.len, h, hkv, d, dv: d, f: c.feature_dim() },
            q: &t.own.q,
            k: &t.own.k,
            v: &t.own.v,
            w: &t.w,
            a: &t.a,
            c: &t.c,
            beta: &[],
            gate: &[],
            fmap_w: if pair { self.at(l, "self_attn.infini.fmap.weight") } else { &[] },
            reset: &self.reset,
            m0: &[],
            z0: &[],
        }
    }

    fn own_conv(&self) -> Option<Shape> {
        let (heads, _, width) = self.c.memory_shape();
        let shape = Shape { b: self.t.batch, t: self.t.len, d: heads * width, width: self.c.infini.memory_conv };
        (shape.width > 0).then_some(shape)
    }

    fn own(&self, l: usize, t: &mut Tape) {
        let width = self.c.memory_shape().2;
        t.own.q = self.linear(l, &memory("q_proj"), &t.h);
        t.own.raw = ["k_proj", "v_proj"].map(|n| self.linear(l, &memory(n), &t.h));
        let convolved = |x: &[f64], name: &str| match self.own_conv() {
            None => x.to_vec(),
            Some(shape) => add(x, &f::conv(shape, x, self.at(l, &format!("{}.weight", memory(name))), self.t.reset)),
        };
        t.own.k = convolved(&t.own.raw[0], "k_conv");
        t.own.v = convolved(&t.own.raw[1], "v_conv");
        t.own.read = naive::forward(&self.own_settings(l), &self.own_inputs(l, t)).y;
        t.own.normed = f::rms(&t.own.read, &vec![1.0; width], self.c.rms_norm_eps);
        let gain = self.at(l, &format!("{}.weight", memory("norm")));
        t.own.y = t.own.normed.iter().enumerate().map(|(i, x)| x * gain[i % gain.len()]).collect();
    }

    fn own_settings(&self, l: usize) -> Settings {
        let mut s = self.c.own_settings(l);
        s.segment_len = s.segment_len.min(self.t.len);
        s
    }

    fn own_back(&mut self, l: usize, t: &Tape, dmiddle: &[f64], penalty: f64) -> Vec<f64> {
        let width = self.c.memory_shape().2;
        let dy = self.linear_back(l, &memory("o_proj"), &t.own.y, dmiddle);
        let name = |s: &str| format!("model.layers.{l}.{}.weight", memory(s));
        let gain = self.get(&name("norm"));
        let mut dgain = vec![0.0; gain.len()];
        dy.iter().zip(&t.own.normed).enumerate().for_each(|(i, (d, x))| dgain[i % gain.len()] += d * x);
        accumulate(&mut self.g, &name("norm"), &dgain);
        let dnormed: Vec<f64> = dy.iter().enumerate().map(|(i, d)| d * gain[i % gain.len()]).collect();
        let (dread, _) = f::rms_backward(&t.own.read, &vec![1.0; width], self.c.rms_norm_eps, &dnormed);
        let x = self.own_inputs(l, t);
        let states = x.dims.b * x.dims.hkv * x.dims.f;
        let zeros = (vec![0.0; states * x.dims.dv], vec![0.0; states]);
        let g = naive::backward(&self.own_settings(l), &x, &dread, &zeros.0, &zeros.1);
        let mut dh = self.linear_back(l, &memory("q_proj"), &t.h, &g.q);
        for (i, (letter, d)) in [("k", &g.k), ("v", &g.v)].into_iter().enumerate() {
            let mut dx = d.clone();
            if let Some(shape) = self.own_conv() {
                let name = name(&format!("{letter}_conv"));
                let (d, dc) = f::conv_backward(shape, &t.own.raw[i], self.get(&name), self.t.reset, d);
                accumulate(&mut self.g, &name, &dc);
                dx = add(&dx, &d);
            }
            dh = add(&dh, &self.linear_back(l, &memory(&format!("{letter}_proj")), &t.h, &dx));
        }
        add(&dh, &self.gates_back(l, t, &g, penalty))
    }

    fn gates(&self, l: usize, t: &mut Tape) {
        let i = &self.c.infini;
        if i.write != Write::All {
            t.write_logits = self.affine(l, "self_attn.infini.write", &t.h);
            let strength = |x: &f64| match i.write {
                Write::All => 1.0,
                Write::Soft => f::sigmoid(*x),
                Write::Clip => f::clip_gate(*x),
                Write::Hard => f64::from(u8::from(*x > 0.0)),
            };
            t.w = t.write_logits.iter().map(strength).collect();
        }
        if i.mix == MixName::Token {
            t.gate = self.affine(l, "self_attn.infini.gate", &t.h);
        }
        if i.rule == RuleName::GatedDelta {
            t.decay_logits = self.affine(l, "self_attn.infini.decay", &t.h);
            let a_log = self.at(l, "self_attn.infini.a_log");
            let decay = |(i, x): (usize, &f64)| (-a_log[i % a_log.len()].exp() * f::softplus(*x)).exp();
            t.a = t.decay_logits.iter().enumerate().map(decay).collect();
        } else {
            t.c = match i.null_slot {
                NullSlot::Fixed(c) => vec![c; self.c.memory_shape().1],
                NullSlot::Learned(_) => self.at(l, "self_attn.infini.c_raw").iter().map(|x| f::softplus(*x)).collect(),
            };
        }
    }

    /// Gradient of the layer's input from that of its output.
    fn backward(&mut self, l: usize, t: &Tape, dy: &[f64], penalty: f64) -> Vec<f64> {
        let c = self.c;
        let dinner = self.linear_back(l, "mlp.down_proj", &t.inner, dy);
        let dh2 = match c.hidden_act {
            Activation::GeluMlp => {
                let dup: Vec<f64> = dinner.iter().zip(&t.up).map(|(d, x)| d * f::gelu_slope(*x)).collect();
                self.linear_back(l, "mlp.up_proj", &t.h2, &dup)
            }
            Activation::Silu => {
                let slopes = t.mlp_gate.iter().zip(&t.up).map(|(g, u)| f::swiglu_slopes(*g, *u));
                let (dgate, dup): (Vec<f64>, Vec<f64>) = slopes.zip(&dinner).map(|((g, u), d)| (g * d, u * d)).unzip();
                let dh = self.linear_back(l, "mlp.gate_proj", &t.h2, &dgate);
                add(&dh, &self.linear_back(l, "mlp.up_proj", &t.h2, &dup))
            }
        };
        let dmiddle = add(dy, &self.norm_back(l, "post_attention_layernorm", &t.middle, &dh2));

        let da = self.linear_back(l, "self_attn.o_proj", &t.y, &dmiddle);
        let x = self.inputs(l, t);
        let states = x.dims.b * x.dims.hkv * x.dims.f;
        let of_window = match c.layer_kind(l) {
            LayerKind::Memorizing => {
                let gates = self.shares(l);
                da.iter().enumerate().map(|(i, d)| (1.0 - gates(i)) * d).collect()
            }
            _ => da.clone(),
        };
        let zeros = (vec![0.0; states * x.dims.dv], vec![0.0; states]);
        let mut g = naive::backward(&self.settings(l), &x, &of_window, &zeros.0, &zeros.1);
        if self.sinks() {
            [g.q, g.k, g.v] = self.with_sinks_back(l, t, &da);
        }
        if c.attention == Attention::TransformerXl {
            (g.k, g.v) = self.own_segments(l, t, &da);
        }
        if c.layer_kind(l) == LayerKind::Memorizing {
            g.q = add(&g.q, &self.stored_back(l, t, &da));
        }
        if let Some(shape) = self.kv_conv() {
            for (name, raw, d) in [("k", &t.raw[0], &mut g.k), ("v", &t.raw[1], &mut g.v)] {
                let name = format!("model.layers.{l}.self_attn.infini.{name}_conv.weight");
                let (dx, dc) = f::conv_backward(shape, raw, self.get(&name), self.t.reset, d);
                accumulate(&mut self.g, &name, &dc);
                *d = add(d, &dx);
            }
        }
        let mut dh = vec![0.0; t.h.len()];
        for (name, d) in [("q", &g.q), ("k", &g.k), ("v", &g.v)] {
            let name = format!("self_attn.{name}_proj");
            let back =
                if c.qkv_bias { self.affine_back(l, &name, &t.h, d) } else { self.linear_back(l, &name, &t.h, d) };
            dh = add(&dh, &back);
        }
        if self.shared(l) {
            dh = add(&dh, &self.gates_back(l, t, &g, penalty));
        } else if c.own_memory(l) {
            dh = add(&dh, &self.own_back(l, t, &dmiddle, penalty));
        }
        let dnormed = match self.conv_shape() {
            None => dh,
            Some(shape) => {
                let name = format!("model.layers.{l}.self_attn.infini.conv.weight");
                let (dx, dc) = f::conv_backward(shape, &t.normed, self.get(&name), self.t.reset, &dh);
                accumulate(&mut self.g, &name, &dc);
                add(&dh, &dx)
            }
        };
        add(&dmiddle, &self.norm_back(l, "input_layernorm", &t.x, &dnormed))
    }

    fn gates_back(&mut self, l: usize, t: &Tape, g: &naive::Grads, penalty: f64) -> Vec<f64> {
        let i = &self.c.infini;
        let name = |s: &str| format!("model.layers.{l}.self_attn.infini.{s}");
        let mut dh = vec![0.0; t.h.len()];
        if i.write != Write::All {
            let slope = |x: f64| match i.write {
                Write::All => 0.0,
                Write::Soft | Write::Hard => f::sigmoid_slope(x),
                Write::Clip => f::clip_gate_slope(x),
            };
            let share = penalty / t.w.len() as f64;
            let d: Vec<f64> = t.write_logits.iter().zip(&g.w).map(|(x, d)| (d + share) * slope(*x)).collect();
            dh = add(&dh, &self.affine_back(l, "self_attn.infini.write", &t.h, &d));
        }
        match i.mix {
            MixName::Head => accumulate(&mut self.g, &name("beta"), &g.beta),
            MixName::Token => dh = add(&dh, &self.affine_back(l, "self_attn.infini.gate", &t.h, &g.gate)),
            MixName::Add => {}
        }
        if i.rule == RuleName::GatedDelta {
            // a = exp(−e s), e = exp(a_log), s = softplus(x): da/dx = −a e σ(x), da/da_log = −a e s
            let a_log = self.at(l, "self_attn.infini.a_log");
            let mut dlog = vec![0.0; a_log.len()];
            let mut d = Vec::with_capacity(t.a.len());
            for (j, x) in t.decay_logits.iter().enumerate() {
                let head = j % a_log.len();
                let up = -g.a[j] * t.a[j] * a_log[head].exp();
                d.push(up * f::sigmoid(*x));
                dlog[head] += up * f::softplus(*x);
            }
            accumulate(&mut self.g, &name("a_log"), &dlog);
            return add(&dh, &self.affine_back(l, "self_attn.infini.decay", &t.h, &d));
        }
        if let NullSlot::Learned(_) = i.null_slot {
            let raw = self.at(l, "self_attn.infini.c_raw");
            let d: Vec<f64> = raw.iter().zip(&g.c).map(|(x, d)| d * f::sigmoid(*x)).collect();
            accumulate(&mut self.g, &name("c_raw"), &d);
        }
        if self.c.features() == Features::SoftmaxPair {
            accumulate(&mut self.g, &name("fmap.weight"), &g.fmap_w);
        }
        dh
    }
}

/// The name of a part of a memory with projections of its own.
fn memory(part: &str) -> String {
    format!("self_attn.infini.memory.{part}")
}

fn add(x: &[f64], y: &[f64]) -> Vec<f64> {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

fn accumulate(g: &mut Named, name: &str, d: &[f64]) {
    let g = g.get_mut(name).unwrap_or_else(|| panic!("no parameter {name}"));
    assert_eq!(g.len(), d.len(), "gradient of {name}");
    g.iter_mut().zip(d).for_each(|(g, d)| *g += d);
}
