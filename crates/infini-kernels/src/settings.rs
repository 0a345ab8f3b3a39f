//! The vocabulary of an Infini-attention: which rule, which features, which mix.

/// How a segment is written into the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// (4), the paper's (8): `M += Σ w φ(k)ᵀ v`, `z += Σ w φ(k)`.
    Linear,
    /// (5), the paper's (9): what the memory already answers is subtracted from `v`; every token of
    /// a segment uses the state before the segment.
    Delta,
    /// (6), an extension: token by token with decay `a` and normalised keys; no normaliser `z`, no `c`.
    SeqDelta,
}

/// The feature map φ of keys and queries in the memory (math.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Features {
    /// `x + 1` above zero, `exp(x)` below: the paper's ELU + 1. Width `D`.
    Elu1,
    /// `[softmax(x W), softmax(−x W)]`, `W [D, F]` per key/value head. Width `2 F`.
    SoftmaxPair,
    /// `x / sqrt(Σ x² + 1e-6)`: for [`Rule::SeqDelta`] only. Width `D`.
    L2,
}

/// How the memory's answer and the local one become one (10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mix {
    /// `g = σ(β_h)`, one scalar a head: the paper's.
    Head,
    /// `g = σ(gate_th)`, a logit per token and head.
    Token,
    /// `A_dot + A_mem`.
    Add,
    /// `A_mem` alone: for a memory with heads of its own, whose window is another operation.
    Memory,
}

/// Rotary positions in the local attention; the memory always sees un-rotated q and k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rope {
    /// No rotation.
    None,
    /// Pairs `(x_i, x_{i+D/2})`: Llama in Hugging Face's layout.
    Half,
    /// Pairs `(x_{2i}, x_{2i+1})`: GPT-J, Meta's Llama layout.
    Interleaved,
}

/// Which state a call returns (math.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinalState {
    /// Closed segments that have left the lag are written, the open one is not.
    Closed,
    /// Everything pending is written in order, the open segment too.
    Flush,
}

/// The shape-independent settings of one Infini-attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Write rule.
    pub rule: Rule,
    /// Feature map.
    pub features: Features,
    /// Mix of memory and window.
    pub mix: Mix,
    /// Rotary layout of the local attention.
    pub rope: Rope,
    /// Rotary base, 10,000 as a rule.
    pub theta: f64,
    /// Tokens in a segment.
    pub segment_len: usize,
    /// Segments of exact attention: 1 (the paper) or 2.
    pub span: usize,
    /// 0: a segment is written when it closes (the paper). 1: when the next one closes, so that with
    /// `span` 2 memory and window never overlap.
    pub lag: usize,
    /// State returned at the end.
    pub final_state: FinalState,
}
