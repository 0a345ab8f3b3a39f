//! The default bodies: the same operations in ordinary tensor ops, for every backend and float type.
//!
//! Autodiff gives their gradients, so they are also what the kernels' gradients are tested against.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData, activation};

use super::{Loss, Mlp, Tokens};
use infini::config::Write;

/// `x / sqrt(mean(x²) + eps) · g` over the last dimension of `x [n, d]`.
pub fn rms_norm(x: Tensor<2>, g: Tensor<1>, eps: f64) -> Tensor<2> {
    let r = (x.clone().square().mean_dim(1) + eps).sqrt();
    (x / r) * g.unsqueeze()
}

/// `x Wᵀ`, `x [n, in]`, `w [out, in]`.
pub fn linear(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    x.matmul(w.transpose())
}

/// `silu(gate) · up`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    gate.clone() * activation::sigmoid(gate) * up
}

/// GELU, tanh form.
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    let cubic = x.clone() * x.clone() * x.clone() * 0.044715;
    let inner = (x.clone() + cubic) * (2.0 / std::f64::consts::PI).sqrt();
    x * (inner.tanh() + 1.0) * 0.5
}

/// `x + down · inner`, see [`Mlp`].
pub fn mlp(x: Tensor<2>, w: Mlp) -> Tensor<2> {
    let h = rms_norm(x.clone(), w.norm, w.eps);
    let up = linear(h.clone(), w.up);
    let inner = match w.gate {
        Some(gate) => swiglu(linear(h, gate), up),
        None => gelu(up),
    };
    x + linear(inner, w.down)
}

/// Strength of a write from its logits; see [`Write`].
pub fn write_gate(logits: Tensor<2>, write: Write) -> Tensor<2> {
    let s = activation::sigmoid(logits);
    // value of `hard`, gradient of `soft`: the difference soft − soft is exactly 0
    let straight = |hard: Tensor<2>, soft: Tensor<2>| hard.detach() + (soft.clone() - soft.detach());
    match write {
        Write::All => s.ones_like(),
        Write::Soft => s,
        Write::Clip => {
            let r = s * 1.2 - 0.1;
            straight(r.clone().clamp(0.0, 1.0), r)
        }
        Write::Hard => {
            let open = s.clone().greater_scalar(0.5);
            straight(s.zeros_like().mask_fill(open, 1.0), s)
        }
    }
}

/// `log(1 + e^x)`, exact for large |x|.
pub fn softplus<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let tail = (x.clone().abs().neg()).exp().log1p();
    tail + x.clamp_min(0.0)
}

/// `y_t = Σ_j C[j] · x_{t−j}` within each row of the batch and within each document; `x [B T, d]`, `c [width, d]`.
pub fn conv(x: Tensor<2>, c: Tensor<2>, t: &Tokens) -> Tensor<2> {
    let ([n, d], [width, _]) = (x.dims(), c.dims());
    let x3 = x.clone().reshape([t.batch, t.len, d]);
    let mut y = x * c.clone().narrow(0, 0, 1).reshape([1, d]);
    for j in 1..width.min(t.len) {
        let head = Tensor::zeros([t.batch, j, d], (&x3.device(), x3.dtype()));
        let shifted = Tensor::cat(vec![head, x3.clone().slice([0..t.batch, 0..t.len - j])], 1).reshape([n, d]);
        let shifted = match t.documents() {
            None => shifted,
            Some(doc) => {
                let other: Vec<bool> = (0..n).map(|i| i % t.len >= j && doc[i] != doc[i - j]).collect();
                shifted.mask_fill(mask([n, 1], other, &y).expand([n, d]), 0.0)
            }
        };
        y = y + shifted * c.clone().narrow(0, j, 1).reshape([1, d]);
    }
    y
}

/// Rows of `table [V, d]`.
pub fn embedding(table: Tensor<2>, t: &Tokens) -> Tensor<2> {
    let ids: Vec<i64> = t.ids.iter().map(|i| i64::from(*i)).collect();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [t.ids.len()]), (&table.device(), DType::I64));
    table.select(0, ids)
}

/// `Σ_n weight_n · ce_n`, the cross-entropy of `hidden · headᵀ [n, V]` at `targets`.
pub fn cross_entropy(hidden: Tensor<2>, head: Tensor<2>, targets: &[u32], weights: &[f32]) -> Loss {
    let n = targets.len();
    let ids: Vec<i64> = targets.iter().map(|i| i64::from(*i)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), (&hidden.device(), DType::I64));
    let weights: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
    let w = Tensor::<2>::from_data(TensorData::new(weights, [n, 1]), (&hidden.device(), hidden.dtype()));
    let logits = linear(hidden, head);
    let best =
        logits.clone().detach().argmax(1).into_data_dtype(DType::I64).try_into_vec::<i64>().expect("i64 was asked for");
    let hits = best.iter().zip(targets).map(|(a, b)| *a == i64::from(*b)).collect();
    let ce = activation::log_softmax(logits, 1).gather(1, ids).neg();
    let losses = ce.clone().detach().into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for");
    Loss { value: (ce * w).sum(), losses, hits }
}

/// A mask on the device of `like`.
pub(super) fn mask<const D: usize, const E: usize>(
    shape: [usize; D],
    values: Vec<bool>,
    like: &Tensor<E>,
) -> Tensor<D, Bool> {
    Tensor::from_data(TensorData::new(values, shape), &like.device())
}
