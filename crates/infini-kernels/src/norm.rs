//! RMSNorm: `y_i = gain_i x_i / sqrt(mean(x²) + eps)`, row by row (Zhang and Sennrich 2019,
//! arXiv 1910.07467; eps inside the root as in Llama).

use crate::blocks;
use crate::math::{LANES, dot, fold};

/// Normalises the rows of `x [N, d]` into `y [N, d]`; `inv [N]` receives `1 / sqrt(mean(x²) + eps)`, which
/// [`rms_backward`] needs. `d` is the length of `gain`.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_forward(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) {
    let (n, d) = (inv.len(), gain.len());
    assert_eq!((x.len(), y.len()), (n * d, n * d), "rms_forward: {n} rows of {d}");
    let rows = blocks::rows_per_block(n, d);
    if d == 0 {
        inv.fill(1.0 / eps.sqrt());
    } else if blocks::worthwhile(n * d) {
        let items = x.chunks(rows * d).zip(y.chunks_mut(rows * d)).zip(inv.chunks_mut(rows)).collect();
        blocks::each(true, items, |((x, y), inv)| forward_rows(x, gain, eps, y, inv));
    } else {
        forward_rows(x, gain, eps, y, inv);
    }
}

/// Elements of scratch for [`rms_backward`] of `n` rows of width `d`.
pub fn rms_backward_scratch(n: usize, d: usize) -> usize {
    blocks::count(n, d) * d
}

/// The gradients `dx [N, d]` and `dgain [d]` (both overwritten) of [`rms_forward`] from `dy [N, d]`:
/// with `s = inv`, `dx = s (gain dy − x s² mean(x gain dy))` and `dgain = Σ_rows dy x s`.
///
/// # Panics
/// If the lengths do not fit or `scratch` is shorter than [`rms_backward_scratch`].
pub fn rms_backward(
    x: &[f32],
    gain: &[f32],
    inv: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dgain: &mut [f32],
    scratch: &mut [f32],
) {
    let (n, d) = (inv.len(), gain.len());
    assert_eq!((x.len(), dy.len(), dx.len()), (n * d, n * d, n * d), "rms_backward: {n} rows of {d}");
    assert_eq!(dgain.len(), d, "rms_backward: dgain");
    dgain.fill(0.0);
    if n * d == 0 {
        return;
    }
    let rows = blocks::rows_per_block(n, d);
    let parts = &mut scratch[..rms_backward_scratch(n, d)];
    parts.fill(0.0);
    let items = x
        .chunks(rows * d)
        .zip(dy.chunks(rows * d))
        .zip(inv.chunks(rows))
        .zip(dx.chunks_mut(rows * d))
        .zip(parts.chunks_mut(d))
        .collect();
    blocks::each(blocks::worthwhile(n * d), items, |((((x, dy), inv), dx), part)| {
        backward_rows(x, gain, inv, dy, dx, part);
    });
    blocks::sum_into(parts, dgain);
}

crate::simd! {
fn forward_rows(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) {
    let d = gain.len();
    for ((x, y), inv) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(inv) {
        *inv = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
        for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
            *y = x * *inv * g;
        }
    }
}

/// `dgain` is added to.
fn backward_rows(x: &[f32], gain: &[f32], inv: &[f32], dy: &[f32], dx: &mut [f32], dgain: &mut [f32]) {
    let d = gain.len();
    for (((x, dy), dx), s) in x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(inv) {
        let mean = dot3(x, dy, gain) / d as f32;
        let back = -mean * s * s * s;
        for i in 0..d {
            dgain[i] = (dy[i] * x[i]).mul_add(*s, dgain[i]);
            dx[i] = x[i].mul_add(back, dy[i] * gain[i] * s);
        }
    }
}
}

/// `Σ x_i y_i z_i` of slices of one length.
#[inline(always)]
fn dot3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let ((xc, xr), (yc, yr), (zc, zr)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    let mut s = [0f32; LANES];
    for ((x, y), z) in xc.iter().zip(yc).zip(zc) {
        for i in 0..LANES {
            s[i] = (x[i] * y[i]).mul_add(z[i], s[i]);
        }
    }
    let mut t = fold(s);
    for ((x, y), z) in xr.iter().zip(yr).zip(zr) {
        t = (x * y).mul_add(*z, t);
    }
    t
}
