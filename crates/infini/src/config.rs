//! What a model is: Hugging Face's names for the decoder, one `infini` section for its attention.
//!
//! The same structure reads `[model]` and `[infini]` of a training configuration and the
//! `config.json` of a model folder. [`ModelConfig::parameters`] is the one list of its weights.

mod names;
mod parameters;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use infini_kernels::{Features, Mix, Rope};

pub use names::*;
pub use parameters::*;

/// The `infini` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InfiniConfig {
    /// Tokens in a segment.
    pub segment_len: usize,
    /// Segments of exact attention, 1 or 2.
    pub span: usize,
    /// Segments between the closing of a segment and its writing: 0, or 1 with `span` 2.
    pub lag: usize,
    /// First tokens of a document whose keys and values every window keeps (attention sinks); 0 for none.
    pub sink: usize,
    /// Layers with a memory; the others are local.
    pub layers: Layers,
    /// Write rule.
    pub rule: RuleName,
    /// Feature map.
    pub features: FeatureName,
    /// Columns of the softmax pair's projection per head (the feature width is twice that).
    pub feature_width: usize,
    /// Write gate.
    pub write: Write,
    /// Constant in the read's denominator.
    pub null_slot: NullSlot,
    /// Mix of memory and window.
    pub mix: MixName,
    /// First value of the mix's logits (β, or the bias of the gate): below 0 the memory begins nearly shut, as it must where a
    /// trained decoder is given one.
    #[serde(skip_serializing_if = "is_default")]
    pub mix_init: f64,
    /// Width of the causal depthwise convolution before q, k, v and the gates; 0 for none.
    pub conv: usize,
    /// Width of the causal depthwise convolutions on keys and values; 0 for none. They begin at zero. A key that holds the
    /// token before makes copying a matter of one layer: the query finds the token like itself, one place further on.
    #[serde(skip_serializing_if = "is_zero")]
    pub kv_conv: usize,
    /// Whose queries, keys and values the memory works with.
    #[serde(skip_serializing_if = "Projections::is_shared")]
    pub projections: Projections,
    /// Heads of a memory with projections of its own; 0 means as many as query heads.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_heads: usize,
    /// Width of such a head; 0 means that of the other heads.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_dim: usize,
    /// Width of the convolution on keys and values of a memory with projections of its own; 0 for none.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_conv: usize,
    /// Tokens that the store of a memorizing layer holds; 0 means 65,536.
    #[serde(skip_serializing_if = "is_zero")]
    pub store: usize,
    /// How many of them each query attends to; 0 means 32.
    #[serde(skip_serializing_if = "is_zero")]
    pub top: usize,
    /// Vectors that a segment of a recurrent memory transformer leaves for the next one; 0 means 16.
    #[serde(skip_serializing_if = "is_zero")]
    pub summaries: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Default for InfiniConfig {
    /// The paper's form with the linear rule.
    fn default() -> Self {
        InfiniConfig {
            segment_len: 2048,
            span: 1,
            lag: 0,
            sink: 0,
            layers: Layers::Named(LayersName::All),
            rule: RuleName::Linear,
            features: FeatureName::Elu1,
            feature_width: 64,
            write: Write::All,
            null_slot: NullSlot::Fixed(0.0),
            mix: MixName::Head,
            mix_init: 0.0,
            conv: 0,
            kv_conv: 0,
            projections: Projections::Shared,
            memory_heads: 0,
            memory_dim: 0,
            memory_conv: 0,
            store: 0,
            top: 0,
            summaries: 0,
        }
    }
}

/// The names that [`InfiniConfig::preset`] knows.
pub const PRESETS: [&str; 5] = ["paper-linear", "paper-delta", "selective-linear", "selective-delta", "added-linear"];

impl InfiniConfig {
    /// A named setting (segment length 64 for the selective ones, the paper's 2,048 for its own).
    pub fn preset(name: &str) -> Result<Self> {
        let paper = InfiniConfig::default();
        let selective = InfiniConfig {
            segment_len: 64,
            span: 2,
            lag: 1,
            layers: Layers::Named(LayersName::Last),
            write: Write::Clip,
            null_slot: NullSlot::Fixed(1.0),
            conv: 8,
            ..paper.clone()
        };
        match name {
            "paper-linear" => Ok(paper),
            "paper-delta" => Ok(InfiniConfig { rule: RuleName::Delta, ..paper }),
            "selective-linear" => Ok(selective),
            "selective-delta" => Ok(InfiniConfig { rule: RuleName::Delta, ..selective }),
            // a memory with heads of its own beside a window that stays what it was
            "added-linear" => Ok(InfiniConfig {
                segment_len: 128,
                layers: Layers::Named(LayersName::All),
                write: Write::All,
                null_slot: NullSlot::Fixed(0.0),
                mix: MixName::Add,
                conv: 4,
                projections: Projections::Own,
                memory_conv: 4,
                ..selective
            }),
            _ => Err(Error::unknown("preset", name, PRESETS)),
        }
    }
}

/// A decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; 0 means as many as query heads.
    #[serde(default)]
    pub num_key_value_heads: usize,
    /// Width of a head; 0 means `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Activation of the feed-forward block.
    #[serde(default = "silu")]
    pub hidden_act: Activation,
    /// Base of the rotary angles.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// Added inside the root of RMSNorm.
    #[serde(default = "eps")]
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases (Qwen2).
    #[serde(default, skip_serializing_if = "is_default")]
    pub qkv_bias: bool,
    /// Positions the model was made for, which full attention keeps to; 0 for no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_position_embeddings: usize,
    /// Which attention.
    #[serde(default = "infini_attention")]
    pub attention: Attention,
    /// Settings of the window and the memory.
    #[serde(default)]
    pub infini: InfiniConfig,
}

fn silu() -> Activation {
    Activation::Silu
}
fn theta() -> f64 {
    10_000.0
}
fn eps() -> f64 {
    1e-6
}
fn infini_attention() -> Attention {
    Attention::Infini
}
/// Fields that few models have are not written where they say nothing, so that configurations keep their hashes.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What one layer's attention is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Everything so far, exactly.
    Full,
    /// The window.
    Local,
    /// The window and a memory.
    Infini,
    /// The window and the best few of a store of keys and values.
    Memorizing,
}

/// Hard limits: a configuration outside them is refused before anything is allocated.
const MAX_WIDTH: usize = 1 << 16;
const MAX_VOCAB: usize = 1 << 20;
const MAX_LAYERS: usize = 256;
const MAX_SEGMENT: usize = 1 << 20;

impl ModelConfig {
    /// Key/value heads, the default resolved.
    pub fn kv_heads(&self) -> usize {
        if self.num_key_value_heads == 0 { self.num_attention_heads } else { self.num_key_value_heads }
    }

    /// Head width, the default resolved.
    pub fn head_width(&self) -> usize {
        if self.head_dim == 0 { self.hidden_size / self.num_attention_heads.max(1) } else { self.head_dim }
    }

    /// What layer `l` is.
    pub fn layer_kind(&self, l: usize) -> LayerKind {
        match self.attention {
            Attention::Full => LayerKind::Full,
            Attention::Local | Attention::TransformerXl | Attention::Rmt => LayerKind::Local,
            Attention::Infini | Attention::Memorizing => {
                let memory = match &self.infini.layers {
                    Layers::Named(LayersName::All) => true,
                    Layers::Named(LayersName::Last) => l + 1 == self.num_hidden_layers,
                    Layers::List(list) => list.contains(&l),
                };
                match (memory, self.attention) {
                    (false, _) => LayerKind::Local,
                    (_, Attention::Memorizing) => LayerKind::Memorizing,
                    _ => LayerKind::Infini,
                }
            }
        }
    }

    /// Whether some layer attends to everything, so that a state grows.
    pub fn grows(&self) -> bool {
        (0..self.num_hidden_layers).any(|l| self.layer_kind(l) == LayerKind::Full)
    }

    /// Query heads, key/value heads and their width of the memories.
    pub fn memory_shape(&self) -> (usize, usize, usize) {
        let i = &self.infini;
        match i.projections {
            Projections::Shared => (self.num_attention_heads, self.kv_heads(), self.head_width()),
            Projections::Own => {
                let heads = if i.memory_heads == 0 { self.num_attention_heads } else { i.memory_heads };
                let width = if i.memory_dim == 0 { self.head_width() } else { i.memory_dim };
                (heads, heads, width)
            }
        }
    }

    /// Tokens in the store of a memorizing layer, and how many of them a query attends to.
    pub fn store(&self) -> (usize, usize) {
        let or = |n: usize, default| if n == 0 { default } else { n };
        (or(self.infini.store, 1 << 16), or(self.infini.top, 32))
    }

    /// Vectors between two segments of a recurrent memory transformer.
    pub fn summaries(&self) -> usize {
        if self.infini.summaries == 0 { 16 } else { self.infini.summaries }
    }

    /// The decoder that the layers belong to. A recurrent memory transformer's is a local one, whose segments have the
    /// summaries in front and behind.
    pub fn layout(&self) -> ModelConfig {
        let mut layout = self.clone();
        if self.attention == Attention::Rmt {
            layout.attention = Attention::Local;
            layout.infini.segment_len += 2 * self.summaries();
        }
        layout
    }

    /// Whether layer `l` has a memory with projections of its own.
    pub fn own_memory(&self, l: usize) -> bool {
        self.layer_kind(l) == LayerKind::Infini && self.infini.projections == Projections::Own
    }

    /// The kernel settings of the memory of layer `l`, if it has projections of its own: those of the layer without
    /// positions and without the window.
    pub fn own_settings(&self, l: usize) -> infini_kernels::Settings {
        infini_kernels::Settings { mix: Mix::Memory, rope: Rope::None, ..self.kernel_settings(l) }
    }

    /// The kernel settings of layer `l`.
    pub fn kernel_settings(&self, l: usize) -> infini_kernels::Settings {
        let i = &self.infini;
        let full = self.layer_kind(l) == LayerKind::Full;
        infini_kernels::Settings {
            rule: i.rule.rule(),
            features: self.features(),
            mix: i.mix.mix(),
            rope: Rope::Half,
            theta: self.rope_theta,
            segment_len: if full { 1 << 40 } else { i.segment_len },
            span: if full { 1 } else { i.span },
            lag: if full { 0 } else { i.lag },
            final_state: infini_kernels::FinalState::Closed,
        }
    }

    /// The kernel's feature map.
    pub fn features(&self) -> Features {
        match (self.infini.rule, self.infini.features) {
            (RuleName::GatedDelta, _) => Features::L2,
            (_, FeatureName::Elu1) => Features::Elu1,
            (_, FeatureName::SoftmaxPair) => Features::SoftmaxPair,
        }
    }

    /// Width of φ(k).
    pub fn feature_dim(&self) -> usize {
        match self.features() {
            Features::SoftmaxPair => 2 * self.infini.feature_width,
            _ => self.memory_shape().2,
        }
    }

    /// Refuses what cannot be a model, naming the field, before anything is allocated.
    pub fn check(&self) -> Result<()> {
        let bad = |field: &str, why: String| Err(Error::Config { field: field.into(), why });
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, 1024),
            ("num_key_value_heads", self.kv_heads(), 1024),
            ("head_dim", self.head_width(), 1024),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH * 4),
            ("infini.segment_len", self.infini.segment_len, MAX_SEGMENT),
            ("infini.memory_heads", self.memory_shape().0, 1024),
            ("infini.memory_dim", self.memory_shape().2, 1024),
        ];
        for (field, n, max) in sizes {
            if n == 0 || n > max {
                return bad(field, format!("{n} is outside 1..={max}"));
            }
        }
        if self.head_dim == 0 && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return bad("num_attention_heads", format!("does not divide hidden_size = {}", self.hidden_size));
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            return bad(
                "num_key_value_heads",
                format!("{} does not divide num_attention_heads = {}", self.kv_heads(), self.num_attention_heads),
            );
        }
        if !self.head_width().is_multiple_of(2) {
            return bad("head_dim", format!("{} is odd: rotary positions need pairs", self.head_width()));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return bad("rope_theta", format!("{} is not a number above 1", self.rope_theta));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return bad("rms_norm_eps", format!("{} is outside (0, 1)", self.rms_norm_eps));
        }
        let i = &self.infini;
        if !(1..=2).contains(&i.span) {
            return bad("infini.span", format!("{} is neither 1 nor 2", i.span));
        }
        if i.lag >= i.span {
            return bad("infini.lag", format!("{} needs a span of more segments than {}", i.lag, i.span));
        }
        if i.sink > i.segment_len.min(64) {
            return bad("infini.sink", format!("{} is above 64 or the segment's {} tokens", i.sink, i.segment_len));
        }
        if i.conv > 64 {
            return bad("infini.conv", format!("{} is above 64", i.conv));
        }
        if i.kv_conv > 64 {
            return bad("infini.kv_conv", format!("{} is above 64", i.kv_conv));
        }
        let (store, top) = self.store();
        if self.attention == Attention::Memorizing && (store > 1 << 24 || !store.is_multiple_of(i.segment_len)) {
            let why = format!("{store} is above 2^24 or no number of whole segments of {}", i.segment_len);
            return bad("infini.store", why);
        }
        if top > 1024 {
            return bad("infini.top", format!("{top} is above 1024"));
        }
        if self.summaries() > 1024 {
            return bad("infini.summaries", format!("{} is above 1024", i.summaries));
        }
        if self.attention == Attention::Rmt && (i.span, i.sink) != (1, 0) {
            return bad(
                "infini.span",
                "segments of a recurrent memory transformer see themselves: span 1, sink 0".into(),
            );
        }
        if i.memory_conv > 64 {
            return bad("infini.memory_conv", format!("{} is above 64", i.memory_conv));
        }
        let own = i.projections == Projections::Own;
        if !own && (i.memory_heads, i.memory_dim, i.memory_conv) != (0, 0, 0) {
            return bad("infini.projections", "memory_heads, memory_dim and memory_conv need \"own\"".into());
        }
        if i.mix_init.is_nan() || i.mix_init.abs() > 30.0 {
            return bad("infini.mix_init", format!("{} is no number from -30 to 30", i.mix_init));
        }
        if own && i.mix != MixName::Add {
            return bad("infini.mix", "a memory with projections of its own is added: write mix = \"add\"".into());
        }
        if i.feature_width == 0 || i.feature_width > 1024 {
            return bad("infini.feature_width", format!("{} is outside 1..=1024", i.feature_width));
        }
        if let NullSlot::Fixed(c) = i.null_slot
            && !(c.is_finite() && c >= 0.0)
        {
            return bad("infini.null_slot", format!("{c} is not a number of at least 0"));
        }
        if let Layers::List(list) = &i.layers
            && let Some(l) = list.iter().find(|l| **l >= self.num_hidden_layers)
        {
            return bad("infini.layers", format!("layer {l} of {}", self.num_hidden_layers));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> ModelConfig {
        ModelConfig {
            vocab_size: 512,
            hidden_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 0,
            head_dim: 0,
            intermediate_size: 512,
            hidden_act: Activation::GeluMlp,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            qkv_bias: false,
            max_position_embeddings: 0,
            attention: Attention::Infini,
            infini: InfiniConfig::preset("selective-linear").unwrap(),
        }
    }

    #[test]
    fn the_recipe_has_its_published_size() {
        let c = recipe();
        c.check().unwrap();
        let n: usize = c.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum();
        assert!((527_000..529_000).contains(&n), "{n}");
    }

    #[test]
    fn hostile_numbers_are_refused_by_name() {
        for n in [0, usize::MAX, 1 << 63] {
            for field in ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
            {
                let mut j = serde_json::to_value(recipe()).unwrap();
                j[field] = n.into();
                let c: ModelConfig = serde_json::from_value(j).unwrap();
                let e = c.check().unwrap_err().to_string();
                assert!(e.contains(field), "{field} = {n}: {e}");
            }
        }
        let mut c = recipe();
        c.num_attention_heads = 3;
        assert!(c.check().is_err());
        let j = serde_json::json!({ "segment_len": 64, "spam": 2 });
        assert!(serde_json::from_value::<InfiniConfig>(j).is_err());
    }
}
