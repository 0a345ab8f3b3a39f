//! f64 references of everything but attention, one formula each. Shapes as in the fast modules; outputs
//! are returned, gradients in the order of the inputs.

use crate::conv::Shape;
use crate::loss::IGNORE;
use crate::optim::AdamW;
use crate::settings::Rope;

/// `σ(x) = 1 / (1 + e^−x)`.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `σ' = σ (1 − σ)`.
pub fn sigmoid_slope(x: f64) -> f64 {
    sigmoid(x) * (1.0 - sigmoid(x))
}

/// `ln(1 + e^x)`, whose slope is [`sigmoid`].
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `clip(1.2 σ(x) − 0.1, 0, 1)`.
pub fn clip_gate(x: f64) -> f64 {
    (1.2 * sigmoid(x) - 0.1).clamp(0.0, 1.0)
}

/// `1.2 σ'`: the slope of [`clip_gate`] without the clip.
pub fn clip_gate_slope(x: f64) -> f64 {
    1.2 * sigmoid_slope(x)
}

const GELU: f64 = 0.044715;

fn gelu_tanh(x: f64) -> f64 {
    ((2.0 / std::f64::consts::PI).sqrt() * (x + GELU * x.powi(3))).tanh()
}

/// `x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2`.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + gelu_tanh(x))
}

/// The slope of [`gelu`]: `(1 + t) / 2 + x (1 − t²) sqrt(2/π) (1 + 3 · 0.044715 x²) / 2` with `t` its tanh.
pub fn gelu_slope(x: f64) -> f64 {
    let (t, k) = (gelu_tanh(x), (2.0 / std::f64::consts::PI).sqrt());
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * k * (1.0 + 3.0 * GELU * x * x)
}

/// `silu(gate) up`.
pub fn swiglu(gate: f64, up: f64) -> f64 {
    gate * sigmoid(gate) * up
}

/// The slopes of [`swiglu`] in `gate` and `up`.
pub fn swiglu_slopes(gate: f64, up: f64) -> (f64, f64) {
    (up * (sigmoid(gate) + gate * sigmoid_slope(gate)), gate * sigmoid(gate))
}

/// `y = gain x / sqrt(mean(x²) + eps)`, each row of `x [N, d]`.
pub fn rms(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let d = gain.len().max(1);
    let row = |x: &[f64]| {
        let root = (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + eps).sqrt();
        x.iter().zip(gain).map(|(x, g)| g * x / root).collect::<Vec<_>>()
    };
    x.chunks(d).flat_map(row).collect()
}

/// `dx_i = gain_i dy_i / r − x_i Σ_j(x_j gain_j dy_j) / (d r³)` with `r` the root, and `dgain = Σ dy x / r`.
pub fn rms_backward(x: &[f64], gain: &[f64], eps: f64, dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let d = gain.len().max(1);
    let (mut dx, mut dgain) = (vec![], vec![0.0; gain.len()]);
    for (x, dy) in x.chunks(d).zip(dy.chunks(d)) {
        let root = (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + eps).sqrt();
        let c: f64 = (0..d).map(|i| x[i] * gain[i] * dy[i]).sum();
        for i in 0..d {
            dx.push(gain[i] * dy[i] / root - x[i] * c / (d as f64 * root.powi(3)));
            dgain[i] += dy[i] * x[i] / root;
        }
    }
    (dx, dgain)
}

/// The pairs of dense `x [B, T, H, D]` at positions `first + t` turned by `position · theta^(−2i/D)`:
/// `(u, v) → (u cos − v sin, v cos + u sin)`. The backward pass is `inverse`.
pub fn rotate(layout: Rope, theta: f64, first: u64, x: &[f64], [b, t, h, d]: [usize; 4], inverse: bool) -> Vec<f64> {
    let mut y = x.to_vec();
    for row in 0..b * t * h {
        let position = (first + (row / h % t) as u64) as f64;
        for i in 0..d / 2 {
            let angle = position * theta.powf(-2.0 * i as f64 / d as f64);
            let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
            let (p, q) = match layout {
                Rope::None => continue,
                Rope::Half => (row * d + i, row * d + i + d / 2),
                Rope::Interleaved => (row * d + 2 * i, row * d + 2 * i + 1),
            };
            (y[p], y[q]) = (x[p] * cos - x[q] * sin, x[q] * cos + x[p] * sin);
        }
    }
    y
}

/// `c [m, n] = a b` of elements `a(i, p)`, `b(p, j)`.
fn product(m: usize, k: usize, n: usize, a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut c = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            c.push((0..k).map(|p| a(i, p) * b(p, j)).sum());
        }
    }
    c
}

/// `y = x Wᵀ`, `x [n, inp]`, `W [out, inp]`.
pub fn linear(x: &[f64], w: &[f64], [n, inp, out]: [usize; 3]) -> Vec<f64> {
    product(n, inp, out, |i, p| x[i * inp + p], |p, j| w[j * inp + p])
}

/// `dx = dy W` and `dW = dyᵀ x`.
pub fn linear_backward(x: &[f64], w: &[f64], dy: &[f64], [n, inp, out]: [usize; 3]) -> (Vec<f64>, Vec<f64>) {
    (
        product(n, out, inp, |i, p| dy[i * out + p], |p, j| w[p * inp + j]),
        product(out, n, inp, |i, p| dy[p * out + i], |p, j| x[p * inp + j]),
    )
}

/// A loss and its gradients.
#[derive(Clone, Debug)]
pub struct Loss {
    /// `Σ_n weights_n ce_n`.
    pub loss: f64,
    /// `ce_n`, 0 where ignored.
    pub losses: Vec<f64>,
    /// `[N, d]`.
    pub dhidden: Vec<f64>,
    /// `[V, d]`.
    pub dweight: Vec<f64>,
}

/// `ce_n = ln Σ_v e^{l_nv} − l_{n,target}`, `l = hidden weightᵀ`, and with `g = weights (softmax(l) − onehot)`:
/// `dhidden = g weight`, `dweight = gᵀ hidden`.
pub fn loss(hidden: &[f64], weight: &[f64], targets: &[u32], weights: &[f64], d: usize) -> Loss {
    let (n, v) = (targets.len(), weight.len().checked_div(d).unwrap_or(0));
    let mut g = linear(hidden, weight, [n, d, v]);
    let mut losses = vec![0.0; n];
    for i in 0..n {
        let row = &mut g[i * v..(i + 1) * v];
        if targets[i] == IGNORE {
            row.fill(0.0);
            continue;
        }
        let target = targets[i] as usize;
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|l| (l - top).exp()).sum();
        losses[i] = sum.ln() + top - row[target];
        row.iter_mut().for_each(|l| *l = weights[i] * (*l - top).exp() / sum);
        row[target] -= weights[i];
    }
    let (dhidden, dweight) = linear_backward(hidden, weight, &g, [n, d, v]);
    Loss { loss: losses.iter().zip(weights).map(|(l, w)| l * w).sum(), losses, dhidden, dweight }
}

/// `dtable_v = Σ_{n: ids_n = v} dy_n`, `dtable [V, d]`.
pub fn embedding_backward(ids: &[u32], dy: &[f64], d: usize, vocab: usize) -> Vec<f64> {
    let mut dtable = vec![0.0; vocab * d];
    for (n, id) in ids.iter().enumerate() {
        for i in 0..d {
            dtable[*id as usize * d + i] += dy[n * d + i];
        }
    }
    dtable
}

/// Whether token `t − j` exists and is of the document of token `t`.
fn sees(reset: Option<&[u8]>, b: usize, t: usize, j: usize, len: usize) -> bool {
    j <= t && reset.is_none_or(|r| (t - j + 1..=t).all(|s| r[b * len + s] == 0))
}

/// `y_t = Σ_j kernel_j ∘ x_{t−j}` over the tokens of one document.
pub fn conv(shape: Shape, x: &[f64], kernel: &[f64], reset: Option<&[u8]>) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    each_lag(shape, reset, |at, past, k| y[at] += kernel[k] * x[past]);
    y
}

/// `dx_{t−j} += kernel_j ∘ dy_t`, `dkernel_j += dy_t ∘ x_{t−j}`.
pub fn conv_backward(
    shape: Shape,
    x: &[f64],
    kernel: &[f64],
    reset: Option<&[u8]>,
    dy: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut dkernel) = (vec![0.0; x.len()], vec![0.0; kernel.len()]);
    each_lag(shape, reset, |at, past, k| {
        dx[past] += kernel[k] * dy[at];
        dkernel[k] += dy[at] * x[past];
    });
    (dx, dkernel)
}

/// Calls `f(index of (b, t, i), index of (b, t − j, i), index of (j, i))` for all terms of the convolution.
fn each_lag(shape: Shape, reset: Option<&[u8]>, mut f: impl FnMut(usize, usize, usize)) {
    let Shape { b, t: len, d, width } = shape;
    for b in 0..b {
        for t in 0..len {
            for j in (0..width).filter(|j| sees(reset, b, t, *j, len)) {
                for i in 0..d {
                    f((b * len + t) * d + i, (b * len + t - j) * d + i, j * d + i);
                }
            }
        }
    }
}

/// One step of AdamW, in place: see [`adamw`](crate::optim::adamw).
pub fn adamw(set: &AdamW, step: u64, scale: f64, p: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64]) {
    let [lr, beta1, beta2, eps, decay] = [set.lr, set.beta1, set.beta2, set.eps, set.weight_decay].map(f64::from);
    for i in 0..p.len() {
        let g = scale * g[i];
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        let mean = m[i] / (1.0 - beta1.powf(step as f64));
        let square = v[i] / (1.0 - beta2.powf(step as f64));
        p[i] -= lr * (decay * p[i] + mean / (square.sqrt() + eps));
    }
}
