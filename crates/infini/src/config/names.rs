//! The words that a configuration is written in, and what the kernels call them.

use infini_kernels::{Mix, Rule};
use serde::{Deserialize, Serialize};

/// Activation of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `down(silu(gate(x)) * up(x))`: SwiGLU, three matrices.
    Silu,
    /// `down(gelu(up(x)))`, tanh form: two matrices.
    GeluMlp,
}

/// Which attention the decoder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Every token sees every earlier one; the state grows.
    Full,
    /// A window of `span` segments and nothing else.
    Local,
    /// The window, whose earlier segments pass no gradient on: Transformer-XL (Dai et al. 2019, arXiv 1901.02860), with
    /// rotary positions relative to the window in place of its own. As a stream it is [`Attention::Local`].
    TransformerXl,
    /// The window, and in the layers that `infini.layers` names the best of a bounded store of past keys and values:
    /// Memorizing Transformer (Wu et al. 2022, arXiv 2203.08913).
    Memorizing,
    /// Segments that see themselves and the `infini.summaries` vectors that the segment before left: Recurrent Memory
    /// Transformer (Bulatov et al. 2022, arXiv 2207.06881).
    Rmt,
    /// The window, and a memory in the layers that `infini.layers` names.
    Infini,
}

/// Write rule of the memory, by its public name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleName {
    /// [`Rule::Linear`].
    Linear,
    /// [`Rule::Delta`].
    Delta,
    /// [`Rule::SeqDelta`]: sequential, normalised keys, learned decay (Gated DeltaNet).
    GatedDelta,
}

impl RuleName {
    /// The kernel's name for it.
    pub fn rule(self) -> Rule {
        match self {
            RuleName::Linear => Rule::Linear,
            RuleName::Delta => Rule::Delta,
            RuleName::GatedDelta => Rule::SeqDelta,
        }
    }
}

/// Feature map of the linear and delta rules; the gated delta rule always takes L2-normalised keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureName {
    /// ELU + 1.
    Elu1,
    /// Softmax of a learned projection and of its negative.
    SoftmaxPair,
}

/// How strongly a token is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// Every token with strength 1 (the paper).
    All,
    /// `σ(x·w + b)`.
    Soft,
    /// `clip(1.2 σ − 0.1, 0, 1)`, gradient straight through the clip: closes exactly.
    Clip,
    /// 1 where σ > ½, else 0; gradient of σ.
    Hard,
}

/// Mix of memory and window, by its public name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixName {
    /// One learned scalar a head (the paper).
    Head,
    /// A learned gate per token and head.
    Token,
    /// Added.
    Add,
}

impl MixName {
    /// The kernel's name for it.
    pub fn mix(self) -> Mix {
        match self {
            MixName::Head => Mix::Head,
            MixName::Token => Mix::Token,
            MixName::Add => Mix::Add,
        }
    }
}

/// Whose queries, keys and values the memory works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projections {
    /// The layer's own, as in the paper.
    Shared,
    /// The memory has heads of its own: projections, a short convolution on keys and values, RMSNorm of the read in each
    /// head, and an output matrix that begins at zero and adds to the layer's; needs `mix = "add"`.
    Own,
}

impl Projections {
    pub(super) fn is_shared(&self) -> bool {
        *self == Projections::Shared
    }
}

/// Which layers carry a memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// `"all"` or `"last"`.
    Named(LayersName),
    /// Indices from 0.
    List(Vec<usize>),
}

/// The named choices of [`Layers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayersName {
    /// Every layer.
    All,
    /// The last layer.
    Last,
}

/// The constant in the read's denominator.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NullSlot {
    /// A fixed `c ≥ 0`; 0 is the paper.
    Fixed(f64),
    /// `c = softplus(c_raw)` per key/value head.
    Learned(Learned),
}

/// The word `"learned"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Learned {
    /// `"learned"`.
    Learned,
}
