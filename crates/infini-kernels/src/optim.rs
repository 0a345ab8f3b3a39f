//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in one pass over memory, and clipping by the
//! global norm.

use rayon::prelude::*;

use crate::blocks::{self, SMALL, worthwhile};
use crate::matmul::axpy;

/// The settings of one step for one group of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the mean gradient.
    pub beta1: f32,
    /// Decay of the mean squared gradient.
    pub beta2: f32,
    /// Added to the root of the mean squared gradient.
    pub eps: f32,
    /// Decoupled weight decay: `p` loses `lr · weight_decay · p` a step.
    pub weight_decay: f32,
}

/// Step number `step` (the first is 1) for parameters `p`, with gradients `scale · g` (`scale` from
/// [`clip_scale`]) and the running means `m`, `v` (zero before the first step):
///
/// `m ← β₁ m + (1−β₁) g`, `v ← β₂ v + (1−β₂) g²`,
/// `p ← p − lr (wd p + m̂ / (sqrt(v̂) + eps))`, `m̂ = m / (1 − β₁^step)`, `v̂ = v / (1 − β₂^step)`.
///
/// # Panics
/// If the lengths differ or `step` is 0.
pub fn adamw(set: &AdamW, step: u64, scale: f32, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let n = p.len();
    assert_eq!((g.len(), m.len(), v.len()), (n, n, n), "adamw: lengths");
    assert!(step > 0, "adamw: steps count from 1");
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(step as f64))) as f32;
    let c = Constants {
        scale,
        beta1: set.beta1,
        beta2: set.beta2,
        keep: 1.0 - set.lr * set.weight_decay,
        rate: set.lr * correction(set.beta1),
        root: correction(set.beta2),
        eps: set.eps,
    };
    if worthwhile(n) {
        p.par_chunks_mut(SMALL)
            .zip(g.par_chunks(SMALL))
            .zip(m.par_chunks_mut(SMALL))
            .zip(v.par_chunks_mut(SMALL))
            .for_each(|(((p, g), m), v)| update(c, p, g, m, v));
    } else {
        update(c, p, g, m, v);
    }
}

#[derive(Clone, Copy)]
struct Constants {
    scale: f32,
    beta1: f32,
    beta2: f32,
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

/// Adds a gradient to the sum of earlier ones.
///
/// # Panics
/// If the lengths differ.
pub fn accumulate(sum: &mut [f32], g: &[f32]) {
    assert_eq!(sum.len(), g.len(), "accumulate: lengths");
    let parts = sum.chunks_mut(SMALL).zip(g.chunks(SMALL)).collect();
    blocks::each(worthwhile(g.len()), parts, |(sum, g)| axpy(1.0, g, sum));
}

/// The sum of squares in f64, over blocks of fixed length in order. It is finite exactly when every
/// element is.
pub fn sum_squares(x: &[f32]) -> f64 {
    if worthwhile(x.len()) {
        let parts: Vec<f64> = x.par_chunks(SMALL).map(squares).collect();
        parts.iter().sum()
    } else {
        x.chunks(SMALL).map(squares).sum()
    }
}

/// What gradients of global norm `norm` are multiplied by so that the norm is at most `max_norm`: 1 when it
/// already is.
pub fn clip_scale(norm: f64, max_norm: f64) -> f32 {
    if norm > max_norm { (max_norm / norm) as f32 } else { 1.0 }
}

/// Whether every element is finite.
pub fn finite(x: &[f32]) -> bool {
    if worthwhile(x.len()) { x.par_chunks(SMALL).all(all_finite) } else { x.chunks(SMALL).all(all_finite) }
}

crate::simd! {
fn update(c: Constants, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let n = p.len();
    let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
    for i in 0..n {
        let g = g[i] * c.scale;
        m[i] = m[i].mul_add(c.beta1, g * (1.0 - c.beta1));
        v[i] = v[i].mul_add(c.beta2, g * g * (1.0 - c.beta2));
        let step = c.rate * m[i] / ((v[i] * c.root).sqrt() + c.eps);
        p[i] = p[i].mul_add(c.keep, -step);
    }
}

fn squares(x: &[f32]) -> f64 {
    let mut s = [0f64; 32];
    let (c, r) = x.as_chunks::<32>();
    for v in c {
        for i in 0..32 {
            let v = f64::from(v[i]);
            s[i] = v.mul_add(v, s[i]);
        }
    }
    let mut t = 0.0;
    for v in s {
        t += v;
    }
    for v in r {
        let v = f64::from(*v);
        t = v.mul_add(v, t);
    }
    t
}

fn all_finite(x: &[f32]) -> bool {
    // an exponent of all ones is infinity or NaN
    let mut bad = 0u32;
    for v in x {
        bad |= u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000);
    }
    bad == 0
}
}
