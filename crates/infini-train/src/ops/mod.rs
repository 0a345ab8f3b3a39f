//! The seam between the kernels and the tensor framework: block-level differentiable operations.
//!
//! Each has two bodies: [`Body::Kernel`] runs `infini-kernels` on the CPU backend's own buffers, with
//! hand-derived gradients; [`Body::Composed`] is ordinary tensor ops for every other backend. The tests
//! hold each against the other. Activations are `[B T, width]`, row-major: batch row, then token.

pub mod composed;
pub mod composed_attention;
mod kernel;
mod kernel_attention;
mod kernel_knn;
mod kernel_mlp;
pub mod knn;
mod optimizer;
mod segments;
pub mod sinks;

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};

use infini::config::Write;
use infini_kernels::Settings;

pub use composed_attention::HeadShape;
pub use optimizer::{Gradient, Moments};

/// A loss and what it is made of.
#[derive(Debug)]
pub struct Loss {
    /// `Σ_n weight_n · ce_n`, one element.
    pub value: Tensor<1>,
    /// `ce_n` of every token, unweighted.
    pub losses: Vec<f32>,
    /// Whether the largest logit is the target's.
    pub hits: Vec<bool>,
}

/// One batch of input tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// `[B, T]`, below the vocabulary's size.
    pub ids: &'a [u32],
    /// `[B, T]`: 1 where a token begins a new document.
    pub reset: Option<&'a [u8]>,
    /// B.
    pub batch: usize,
    /// T.
    pub len: usize,
}

impl Tokens<'_> {
    /// Document number of every token within its row, `None` when there are no resets.
    fn documents(&self) -> Option<Vec<u32>> {
        let reset = self.reset?;
        let mut out = Vec::with_capacity(reset.len());
        for row in reset.chunks(self.len) {
            let mut n = 0;
            out.extend(row.iter().map(|r| {
                n += u32::from(*r != 0);
                n
            }));
        }
        Some(out)
    }
}

/// What an Infini-attention takes; math.md's letters.
#[derive(Clone, Debug)]
pub struct AttentionInputs {
    /// Queries `[B T, H D]`, not rotated.
    pub q: Tensor<2>,
    /// Keys `[B T, Hkv D]`, not rotated.
    pub k: Tensor<2>,
    /// Values `[B T, Hkv Dv]`.
    pub v: Tensor<2>,
    /// Write strengths `[B T, Hkv]`; `None`: 1.
    pub w: Option<Tensor<2>>,
    /// Decays `[B T, Hkv]` of the sequential delta rule; `None`: 1.
    pub a: Option<Tensor<2>>,
    /// Constant in the read's denominator `[Hkv]`; `None`: 0.
    pub c: Option<Tensor<1>>,
    /// Gate logits `[H]` of the head mix.
    pub beta: Option<Tensor<1>>,
    /// Gate logits `[B T, H]` of the token mix.
    pub gate: Option<Tensor<2>>,
    /// Projection `[Hkv, D, F]` of the softmax pair.
    pub fmap: Option<Tensor<3>>,
}

impl AttentionInputs {
    /// q, k and v alone.
    pub fn new(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>) -> Self {
        AttentionInputs { q, k, v, w: None, a: None, c: None, beta: None, gate: None, fmap: None }
    }
}

/// The MLP half of a layer: `x + down · inner` of `h = norm(x)`, where `inner` is `silu(gate h) · (up h)`, or `gelu(up h)`
/// without a gate.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// Gains `[d]` of the norm.
    pub norm: Tensor<1>,
    /// Under the norm's root.
    pub eps: f64,
    /// `[f, d]`.
    pub gate: Option<Tensor<2>>,
    /// `[f, d]`.
    pub up: Tensor<2>,
    /// `[d, f]`.
    pub down: Tensor<2>,
}

/// What stands for an input that is not there: an operation has a fixed number of parents.
fn absent(device: &Device) -> Tensor<1> {
    Tensor::zeros([1], device)
}

/// Which implementation of the operations runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Hand-written kernels on the CPU backend, f32.
    Kernel,
    /// Ordinary tensor ops.
    Composed,
}

impl Body {
    /// Kernels where the device has them. The device is asked without its autodiff wrapper: a tracked
    /// device is a kind of its own and would silently take the slow body.
    pub fn of(device: &Device) -> Body {
        match device.clone().without_autodiff().as_dispatch() {
            DispatchDevice::Flex(_) => Body::Kernel,
            #[allow(unreachable_patterns)]
            _ => Body::Composed,
        }
    }

    /// `x / sqrt(mean(x²) + eps) · g`, `x [n, d]`, `g [d]`.
    pub fn rms_norm(self, x: Tensor<2>, g: Tensor<1>, eps: f64) -> Tensor<2> {
        match self {
            Body::Kernel => kernel::rms_norm(x, g, eps),
            Body::Composed => composed::rms_norm(x, g, eps),
        }
    }

    /// `x Wᵀ`, `x [n, in]`, `w [out, in]`.
    pub fn linear(self, x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
        match self {
            Body::Kernel => kernel::linear(x, w),
            Body::Composed => composed::linear(x, w),
        }
    }

    /// `silu(gate) · up`.
    pub fn swiglu(self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        match self {
            Body::Kernel => kernel::swiglu(gate, up),
            Body::Composed => composed::swiglu(gate, up),
        }
    }

    /// A layer's MLP with its norm and its residual: `x [n, d]` to `[n, d]`.
    pub fn mlp(self, x: Tensor<2>, w: Mlp) -> Tensor<2> {
        match self {
            Body::Kernel => kernel_mlp::mlp(x, w),
            Body::Composed => composed::mlp(x, w),
        }
    }

    /// GELU, tanh form.
    pub fn gelu(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Body::Kernel => kernel::gelu(x),
            Body::Composed => composed::gelu(x),
        }
    }

    /// Write strengths in [0, 1] from logits `[n, Hkv]`; the gradients of `clip` and `hard` are straight-through.
    pub fn write_gate(self, logits: Tensor<2>, write: Write) -> Tensor<2> {
        match self {
            Body::Kernel => kernel::write_gate(logits, write),
            Body::Composed => composed::write_gate(logits, write),
        }
    }

    /// Causal depthwise convolution `y_t = Σ_j C[j] · x_{t−j}` within documents; `x [B T, d]`, `c [width, d]`.
    pub fn conv(self, x: Tensor<2>, c: Tensor<2>, t: &Tokens) -> Tensor<2> {
        match self {
            Body::Kernel => kernel::conv(x, c, t),
            Body::Composed => composed::conv(x, c, t),
        }
    }

    /// Rows of `table [V, d]` at the tokens: `[B T, d]`.
    pub fn embedding(self, table: Tensor<2>, t: &Tokens) -> Tensor<2> {
        match self {
            Body::Kernel => kernel::embedding(table, t),
            Body::Composed => composed::embedding(table, t),
        }
    }

    /// The head and its loss: `hidden [n, d]`, `head [V, d]`, `targets [n]`, `weights [n]`; a token of weight 0 counts
    /// nothing, whatever its target.
    pub fn cross_entropy(self, hidden: Tensor<2>, head: Tensor<2>, targets: &[u32], weights: &[f32]) -> Loss {
        match self {
            Body::Kernel => kernel::cross_entropy(hidden, head, targets, weights),
            Body::Composed => composed::cross_entropy(hidden, head, targets, weights),
        }
    }

    /// Infini-attention over all segments from an empty memory: `[B T, H Dv]`.
    pub fn attention(self, s: &Settings, shape: HeadShape, x: &AttentionInputs, t: &Tokens) -> Tensor<2> {
        self.attention_from(s, shape, x, t, None).0
    }

    /// The same from a memory that is a constant (M `[B, Hkv, F, Dv]` and z `[B, Hkv, F]`), and the memory at the end,
    /// through which no gradient comes. `None`: empty.
    pub fn attention_from(
        self,
        s: &Settings,
        shape: HeadShape,
        x: &AttentionInputs,
        t: &Tokens,
        start: Option<[&[f32]; 2]>,
    ) -> (Tensor<2>, [Vec<f32>; 2]) {
        match self {
            Body::Kernel => kernel_attention::attention(s, shape, x, t, start),
            Body::Composed => composed_attention::attention_from(s, shape, x, t, start),
        }
    }

    /// The window whose earlier segments pass no gradient on: `[B T, H Dv]`.
    pub fn recent(self, s: &Settings, shape: HeadShape, x: &AttentionInputs, t: &Tokens) -> Tensor<2> {
        segments::recent(self, s, shape, x, t)
    }

    /// Attention of `q [B T, H D]` to the `top` best of a store: `[B T, H D]`.
    pub fn knn(self, shape: HeadShape, q: Tensor<2>, past: knn::Past, top: usize, t: &Tokens) -> Tensor<2> {
        match self {
            Body::Kernel => kernel_knn::knn(shape, q, past, top, t),
            Body::Composed => knn::knn(shape, q, &past, top, t),
        }
    }

    /// Exact attention over the window alone: `[B T, H Dv]`.
    pub fn window(self, s: &Settings, shape: HeadShape, x: &AttentionInputs, t: &Tokens) -> Tensor<2> {
        match self {
            Body::Kernel => kernel_attention::window(s, shape, x, t),
            Body::Composed => composed_attention::window(s, shape, x, t),
        }
    }
}
