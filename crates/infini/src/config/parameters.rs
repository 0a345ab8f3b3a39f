//! The one list of the names, shapes and initial values of the weights: the streaming model and the training graph both read it.

use super::{
    Activation, Attention, FeatureName, LayerKind, MixName, ModelConfig, NullSlot, Projections, RuleName, Write,
};

/// Name of what a recurrent memory transformer begins a document with, `[summaries, hidden_size]`.
pub const SUMMARIES: &str = "model.rmt.summaries";

/// Which optimiser group a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Matrices: decayed.
    Matrix,
    /// Embedding, norms, convolutions, biases: not decayed.
    Plain,
    /// Gates (`write`, `gate`, `beta`, `c_raw`, `decay`): their own rate, not decayed.
    Gate,
}

/// Initial values of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// All the same.
    Constant(f32),
    /// Normal around 0.
    Normal(f32),
    /// These.
    Values(Vec<f32>),
}

/// One parameter: its name (Hugging Face's where it has one), shape and beginnings.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name in `model.safetensors`.
    pub name: String,
    /// Shape; matrices are `[out, in]`.
    pub shape: Vec<usize>,
    /// Optimiser group.
    pub group: Group,
    /// Initial values.
    pub init: Init,
}

/// Takes one parameter: name, shape, group, initial values.
type Add<'a> = &'a mut dyn FnMut(String, &[usize], Group, Init);

impl ModelConfig {
    /// Every parameter in the order of the forward pass.
    pub fn parameters(&self) -> Vec<Parameter> {
        let (d, f, v) = (self.hidden_size, self.intermediate_size, self.vocab_size);
        let (h, n, w) = (self.num_attention_heads, self.kv_heads(), self.head_width());
        let deep = (2.0 * self.num_hidden_layers as f32).sqrt();
        let std = |fan_in: usize| (fan_in as f32).powf(-0.5);
        let mut out = Vec::new();
        let mut add = |name: String, shape: &[usize], group: Group, init: Init| {
            out.push(Parameter { name, shape: shape.to_vec(), group, init });
        };
        let embed = if self.tie_word_embeddings { std(d) } else { 1.0 };
        add("model.embed_tokens.weight".into(), &[v, d], Group::Plain, Init::Normal(embed));
        if self.attention == Attention::Rmt {
            add(SUMMARIES.into(), &[self.summaries(), d], Group::Plain, Init::Normal(embed));
        }
        for l in 0..self.num_hidden_layers {
            let at = |s: &str| format!("model.layers.{l}.{s}");
            add(at("input_layernorm.weight"), &[d], Group::Plain, Init::Constant(1.0));
            if self.infini.conv > 0 {
                add(at("self_attn.infini.conv.weight"), &[self.infini.conv, d], Group::Plain, Init::Normal(0.1));
            }
            add(at("self_attn.q_proj.weight"), &[h * w, d], Group::Matrix, Init::Normal(std(d)));
            add(at("self_attn.k_proj.weight"), &[n * w, d], Group::Matrix, Init::Normal(std(d)));
            add(at("self_attn.v_proj.weight"), &[n * w, d], Group::Matrix, Init::Normal(std(d)));
            if self.qkv_bias {
                for (name, heads) in [("q", h), ("k", n), ("v", n)] {
                    let name = format!("self_attn.{name}_proj.bias");
                    add(at(&name), &[heads * w], Group::Plain, Init::Constant(0.0));
                }
            }
            for name in ["k", "v"].into_iter().filter(|_| self.infini.kv_conv > 0) {
                let name = at(&format!("self_attn.infini.{name}_conv.weight"));
                add(name, &[self.infini.kv_conv, n * w], Group::Plain, Init::Constant(0.0));
            }
            match self.layer_kind(l) {
                LayerKind::Infini => self.memory_parameters(&at, &mut add),
                LayerKind::Memorizing => {
                    let init = Init::Constant(self.infini.mix_init as f32);
                    add(at("self_attn.infini.beta"), &[h], Group::Gate, init);
                }
                LayerKind::Full | LayerKind::Local => {}
            }
            add(at("self_attn.o_proj.weight"), &[d, h * w], Group::Matrix, Init::Normal(std(h * w) / deep));
            add(at("post_attention_layernorm.weight"), &[d], Group::Plain, Init::Constant(1.0));
            if self.hidden_act == Activation::Silu {
                add(at("mlp.gate_proj.weight"), &[f, d], Group::Matrix, Init::Normal(std(d)));
            }
            add(at("mlp.up_proj.weight"), &[f, d], Group::Matrix, Init::Normal(std(d)));
            add(at("mlp.down_proj.weight"), &[d, f], Group::Matrix, Init::Normal(std(f) / deep));
        }
        add("model.norm.weight".into(), &[d], Group::Plain, Init::Constant(1.0));
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), &[v, d], Group::Matrix, Init::Normal(0.5 * std(d)));
        }
        out
    }

    fn memory_parameters(&self, at: &dyn Fn(&str) -> String, add: Add) {
        let (d, i) = (self.hidden_size, &self.infini);
        let (h, n, w) = self.memory_shape();
        let at = |s: &str| at(&format!("self_attn.infini.{s}"));
        if i.projections == Projections::Own {
            let std = (d as f32).powf(-0.5);
            for name in ["q", "k", "v"] {
                add(at(&format!("memory.{name}_proj.weight")), &[n * w, d], Group::Matrix, Init::Normal(std));
            }
            for name in ["k", "v"].into_iter().filter(|_| i.memory_conv > 0) {
                let name = at(&format!("memory.{name}_conv.weight"));
                add(name, &[i.memory_conv, n * w], Group::Plain, Init::Normal(0.1));
            }
            add(at("memory.norm.weight"), &[n * w], Group::Plain, Init::Constant(1.0));
            add(at("memory.o_proj.weight"), &[d, n * w], Group::Matrix, Init::Constant(0.0));
        }
        match i.mix {
            MixName::Head => add(at("beta"), &[h], Group::Gate, Init::Constant(i.mix_init as f32)),
            MixName::Token => {
                add(at("gate.weight"), &[h, d], Group::Gate, Init::Constant(0.0));
                add(at("gate.bias"), &[h], Group::Gate, Init::Constant(i.mix_init as f32));
            }
            MixName::Add => {}
        }
        if i.write != Write::All {
            add(at("write.weight"), &[n, d], Group::Gate, Init::Constant(0.0));
            add(at("write.bias"), &[n], Group::Gate, Init::Constant(1.0));
        }
        if i.rule == RuleName::GatedDelta {
            // 1 − a between 1/256 and 1/16384, spread over the heads
            let rate = |j: usize| 2f32.powf(-8.0 - 6.0 * j as f32 / (n.max(2) - 1) as f32);
            add(at("decay.weight"), &[n, d], Group::Gate, Init::Constant(0.0));
            add(at("decay.bias"), &[n], Group::Gate, Init::Values((0..n).map(|j| rate(j).exp_m1().ln()).collect()));
            add(at("a_log"), &[n], Group::Gate, Init::Constant(0.0));
            return;
        }
        if let NullSlot::Learned(_) = i.null_slot {
            // softplus⁻¹(1)
            add(at("c_raw"), &[n], Group::Gate, Init::Constant(0.541_324_85));
        }
        if i.features == FeatureName::SoftmaxPair {
            add(at("fmap.weight"), &[n, w, i.feature_width], Group::Gate, Init::Normal((w as f32).powf(-0.5)));
        }
    }
}
