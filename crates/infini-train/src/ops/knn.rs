//! The best few of a store of past keys and values, in ordinary tensor ops: (27) of `docs/math.md`.

use burn::tensor::{Tensor, TensorData, activation};
use infini_kernels::knn::Seen;

use super::composed::mask;
use super::{HeadShape, Tokens};

/// Past keys and values as plain numbers: no gradient reaches them.
#[derive(Clone, Debug)]
pub struct Past {
    /// Keys `[B, N, Hkv, D]`.
    pub k: Vec<f32>,
    /// Values `[B, N, Hkv, D]`.
    pub v: Vec<f32>,
    /// N.
    pub len: usize,
    /// What each token sees, `[B, T]`.
    pub seen: Vec<Seen>,
}

/// Σ p_i v_i over the `top` best of what each token sees: `[B T, H D]`; 0 where it sees nothing.
pub fn knn(shape: HeadShape, q: Tensor<2>, past: &Past, top: usize, t: &Tokens) -> Tensor<2> {
    let HeadShape { heads: h, kv_heads: n, width: d } = shape;
    let (b, len, g) = (t.batch, t.len, h / n);
    if past.len == 0 {
        return q.zeros_like();
    }
    let store = |x: &[f32]| {
        let x = TensorData::new(x.to_vec(), [b, past.len, n, d]);
        let x = Tensor::<4>::from_data(x, (&q.device(), q.dtype())).swap_dims(1, 2);
        x.reshape([b, n, 1, past.len, d]).expand([b, n, g, past.len, d]).reshape([b, h, past.len, d])
    };
    let unit = |x: Tensor<4>| x.clone() / (x.square().sum_dim(3) + 1e-6).sqrt();
    let query = unit(q.clone().reshape([b, len, h, d]).swap_dims(1, 2));
    let scores = query.matmul(unit(store(&past.k)).swap_dims(2, 3)) * (d as f64).sqrt();
    let hidden =
        past.seen.iter().flat_map(|seen| (0..past.len as u32).map(move |i| !seen.iter().any(|r| r.contains(&i))));
    let hidden = mask([b, 1, len, past.len], hidden.collect(), &scores).expand([b, h, len, past.len]);
    let scores = scores.mask_fill(hidden.clone(), -1e30);
    let top = top.min(past.len);
    let least = scores.clone().detach().topk(top, 3).narrow(3, top - 1, 1);
    let below = scores.clone().detach().lower(least.expand([b, h, len, past.len])).bool_or(hidden.clone());
    let weights = activation::softmax(scores.mask_fill(below, -1e30), 3);
    // a token that sees nothing has weights all the same: they are put out
    let y = weights.mask_fill(hidden, 0.0).matmul(store(&past.v));
    y.swap_dims(1, 2).reshape([b * len, h * d])
}
