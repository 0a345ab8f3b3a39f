//! Feature maps φ of the memory (math.md §2) and their gradients (§9 f), many rows at a time.

use crate::math::{dot, exp, exp_sum, max};
use crate::{Features, lanes, tile};

/// Under the root of [`Features::L2`].
const L2_EPS: f32 = 1e-6;

/// The feature width F: `d`, for the softmax pair `2 fw`.
pub fn width(features: Features, d: usize, fw: usize) -> usize {
    match features {
        Features::Elu1 | Features::L2 => d,
        Features::SoftmaxPair => 2 * fw,
    }
}

/// φ of `n` rows of width `d`, `stride` apart, into the dense `phi [n, F]`. `w [D, Fw]` is the head's
/// projection for the softmax pair.
///
/// # Panics
/// If a slice is too short, or if the softmax pair has no `w`.
pub fn forward(features: Features, x: &[f32], stride: usize, n: usize, d: usize, w: Option<&[f32]>, phi: &mut [f32]) {
    if n == 0 || d == 0 {
        return;
    }
    match features {
        Features::Elu1 => elu1(x, stride, d, &mut phi[..n * d]),
        Features::L2 => l2(x, stride, d, &mut phi[..n * d]),
        Features::SoftmaxPair => {
            let w = w.expect("features: the softmax pair needs w");
            let fw = w.len() / d;
            tile::product([n, d, fw], phi, 2 * fw, false, x, (stride, 1), w, fw);
            softmax_pair(fw, &mut phi[..n * 2 * fw]);
        }
    }
}

/// The gradient of [`forward`]: adds that of x to the dense `dx [n, d]`, and that of W to `dw [D, Fw]`.
/// `phi` is what the forward pass gave, `dphi` its gradient, which is overwritten. `scratch` holds
/// `Fw · D` floats for the softmax pair.
///
/// # Panics
/// If a slice is too short, or if the softmax pair has no `w`.
pub fn backward(
    features: Features,
    x: &[f32],
    stride: usize,
    n: usize,
    d: usize,
    w: Option<&[f32]>,
    phi: &[f32],
    dphi: &mut [f32],
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    if n == 0 || d == 0 {
        return;
    }
    match features {
        Features::Elu1 => elu1_backward(&phi[..n * d], dphi, dx),
        Features::L2 => l2_backward(x, stride, d, &phi[..n * d], dphi, dx),
        Features::SoftmaxPair => {
            let w = w.expect("features: the softmax pair needs w");
            let fw = w.len() / d;
            softmax_pair_backward(fw, &phi[..n * 2 * fw], dphi);
            // du is now the left half of dphi
            tile::transpose(w, fw, d, fw, scratch, d);
            tile::product([n, fw, d], dx, d, true, dphi, (2 * fw, 1), scratch, d);
            if let Some(dw) = dw {
                tile::product([d, n, fw], dw, fw, true, x, (1, stride), dphi, 2 * fw);
            }
        }
    }
}

crate::simd! {
fn elu1(x: &[f32], stride: usize, d: usize, phi: &mut [f32]) {
    for (i, phi) in phi.chunks_exact_mut(d).enumerate() {
        // exp itself, not (exp − 1) + 1, which is 0 for x < −17
        lanes::map(phi, &x[i * stride..i * stride + d], |x| {
            let e = exp(x);
            if x > 0.0 { x + 1.0 } else { e }
        });
    }
}
/// φ' = min(φ, 1).
fn elu1_backward(phi: &[f32], dphi: &[f32], dx: &mut [f32]) {
    lanes::update2(dx, dphi, phi, |dx, df, phi| df.mul_add(if phi < 1.0 { phi } else { 1.0 }, dx));
}
fn l2(x: &[f32], stride: usize, d: usize, phi: &mut [f32]) {
    for (i, phi) in phi.chunks_exact_mut(d).enumerate() {
        let x = &x[i * stride..i * stride + d];
        let s = 1.0 / (dot(x, x) + L2_EPS).sqrt();
        lanes::map(phi, x, |x| x * s);
    }
}
fn l2_backward(x: &[f32], stride: usize, d: usize, phi: &[f32], dphi: &[f32], dx: &mut [f32]) {
    for (i, ((phi, df), dx)) in phi.chunks_exact(d).zip(dphi.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).enumerate() {
        let x = &x[i * stride..i * stride + d];
        let (s, e) = (1.0 / (dot(x, x) + L2_EPS).sqrt(), dot(phi, df));
        lanes::update2(dx, df, phi, |dx, df, phi| dx + (df - phi * e) * s);
    }
}
/// Rows [u | anything] become [softmax(u) | softmax(−u)].
fn softmax_pair(fw: usize, phi: &mut [f32]) {
    for row in phi.chunks_exact_mut(2 * fw) {
        let (a, b) = row.split_at_mut(fw);
        for (b, a) in b.iter_mut().zip(a.iter()) {
            *b = -a;
        }
        for x in [a, b] {
            let m = max(x);
            let s = 1.0 / exp_sum(x, 1.0, m);
            for x in x {
                *x *= s;
            }
        }
    }
}
/// The left half of each row of dphi becomes du.
fn softmax_pair_backward(fw: usize, phi: &[f32], dphi: &mut [f32]) {
    for (phi, df) in phi.chunks_exact(2 * fw).zip(dphi.chunks_exact_mut(2 * fw)) {
        let ((fa, fb), (da, db)) = (phi.split_at(fw), df.split_at_mut(fw));
        let (ea, eb) = (dot(fa, da), dot(fb, db));
        for j in 0..fw {
            da[j] = fa[j] * (da[j] - ea) - fb[j] * (db[j] - eb);
        }
    }
}
}
