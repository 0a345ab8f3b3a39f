//! The decoder of the training graph, readable in one sitting: a function of (config, parameters,
//! tokens). Names and shapes come from [`ModelConfig::parameters`]; the streaming model of crate
//! `infini` computes the same from the same names.

use burn::tensor::Tensor;

use crate::ops::{AttentionInputs, Body, HeadShape, Tokens, composed::softplus};
use crate::parameters::Parameters;
use infini::config::{Activation, Attention, LayerKind, MixName, ModelConfig, NullSlot, RuleName, Write};
use infini_kernels::Features;

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

/// The decoder without its head.
pub fn forward(body: Body, c: &ModelConfig, p: &Parameters, t: &Tokens) -> Forward {
    let mut gates = Vec::new();
    let mut x = body.embedding(p.get("model.embed_tokens.weight"), t);
    for l in 0..c.num_hidden_layers {
        let layer = Layer { body, c, p, l };
        let h = layer.norm("input_layernorm", x.clone());
        x = x + layer.attention(h, t, &mut gates);
        let h = layer.norm("post_attention_layernorm", x.clone());
        x = x + layer.mlp(h);
    }
    let hidden = body.rms_norm(x, p.get("model.norm.weight"), c.rms_norm_eps);
    Forward { hidden, gates }
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
    fn attention(&self, mut h: Tensor<2>, t: &Tokens, gates: &mut Vec<Gate>) -> Tensor<2> {
        let c = self.c;
        if c.attention != Attention::Full && c.infini.conv > 0 {
            h = h.clone() + self.body.conv(h, self.get("self_attn.infini.conv.weight"), t);
        }
        let [q, k, v] = ["q", "k", "v"].map(|n| {
            let name = format!("self_attn.{n}_proj");
            if c.qkv_bias { self.affine(&name, &h) } else { self.linear(&name, &h) }
        });
        let mut x = AttentionInputs::new(q, k, v);
        let shape = HeadShape { heads: c.num_attention_heads, kv_heads: c.kv_heads(), width: c.head_width() };
        let settings = c.kernel_settings(self.l);
        let y = if c.layer_kind(self.l) == LayerKind::Infini {
            gates.push(self.memory_inputs(&h, &mut x));
            self.body.attention(&settings, shape, &x, t)
        } else {
            self.body.window(&settings, shape, &x, t)
        };
        self.linear("self_attn.o_proj", &y)
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
            NullSlot::Fixed(value) => Some(Tensor::full([self.c.kv_heads()], value, (&x.q.device(), x.q.dtype()))),
            NullSlot::Learned(_) => Some(softplus(self.get::<1>("self_attn.infini.c_raw"))),
        };
        if self.c.features() == Features::SoftmaxPair {
            x.fmap = Some(self.get("self_attn.infini.fmap.weight"));
        }
        gate
    }

    fn mlp(&self, h: Tensor<2>) -> Tensor<2> {
        let up = self.linear("mlp.up_proj", &h);
        let inner = match self.c.hidden_act {
            Activation::Silu => self.body.swiglu(self.linear("mlp.gate_proj", &h), up),
            Activation::GeluMlp => self.body.gelu(up),
        };
        self.linear("mlp.down_proj", &inner)
    }
}
