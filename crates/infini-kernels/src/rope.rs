//! Rotary positions (Su et al. 2021, arXiv 2104.09864): pair `i` of a head at position `p` is turned by
//! the angle `p · freq_i`.
//!
//! Angles are computed in f64: in f32 the angle of position 10⁷ would be off by a quarter radian.

use rayon::prelude::*;

use crate::blocks;
use crate::settings::Rope;

/// The `dim / 2` frequencies `theta^(−2i / dim)`, radians per position.
pub fn frequencies(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect()
}

/// Cosines and sines of consecutive positions.
#[derive(Clone, Debug)]
pub struct Table {
    /// `[len, dim / 2]`.
    pub cos: Vec<f32>,
    /// `[len, dim / 2]`.
    pub sin: Vec<f32>,
    half: usize,
}

impl Table {
    /// The table of positions `first .. first + len` for the frequencies of [`frequencies`] (or scaled ones).
    pub fn new(freq: &[f64], first: u64, len: usize) -> Table {
        let half = freq.len();
        let mut table = Table { cos: Vec::with_capacity(len * half), sin: Vec::with_capacity(len * half), half };
        for p in 0..len as u64 {
            for f in freq {
                let (sin, cos) = ((first + p) as f64 * f).sin_cos();
                table.cos.push(cos as f32);
                table.sin.push(sin as f32);
            }
        }
        table
    }

    /// Half the head width.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Positions in the table (0 for a head width of 0).
    pub fn len(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cosines of the `i`-th position of the table.
    pub fn cos(&self, i: usize) -> &[f32] {
        &self.cos[i * self.half..(i + 1) * self.half]
    }

    /// The sines of the `i`-th position of the table.
    pub fn sin(&self, i: usize) -> &[f32] {
        &self.sin[i * self.half..(i + 1) * self.half]
    }
}

/// Turns each head of `x`, a strided `[B, T, H, D]` (`D` contiguous, distances `[B, T, H]` in `strides`), in
/// place: token `t` of every row by position `start + t` of the table. `inverse` turns back, which is also
/// the backward pass, the rotation being orthogonal. [`Rope::None`] leaves `x` as it is.
///
/// # Panics
/// If `D` is not twice the table's half width, the table is too short, or a head lies outside `x`.
pub fn rotate(
    layout: Rope,
    table: &Table,
    start: usize,
    x: &mut [f32],
    shape: [usize; 4],
    strides: [usize; 3],
    inverse: bool,
) {
    let ([b, t, h, d], [sb, st, sh]) = (shape, strides);
    if layout == Rope::None || b * t * h * d == 0 {
        return;
    }
    assert_eq!(d, 2 * table.half, "rotate: head width {d}, table for {}", 2 * table.half);
    assert!(start + t <= table.len(), "rotate: positions {start}..{} of a table of {}", start + t, table.len());
    assert!(h == 1 || sh >= d, "rotate: heads of {d} at a distance of {sh} overlap");
    let token = (h - 1) * sh + d;
    assert!((b - 1) * sb + (t - 1) * st + token <= x.len(), "rotate: [{b}, {t}, {h}, {d}] outside {}", x.len());
    let turn = |i: usize, x: &mut [f32]| {
        let (cos, sin) = (table.cos(start + i), table.sin(start + i));
        rotate_heads(layout == Rope::Half, &mut x[..token], sh, d, cos, sin, inverse);
    };
    // tokens one after the other, no two overlapping: blocks of them are disjoint chunks
    if blocks::worthwhile(b * t * h * d) && st >= token && (b == 1 || sb == t * st) {
        let rows = blocks::rows_per_block(b * t, h * d);
        x.par_chunks_mut(rows * st).enumerate().for_each(|(k, x)| {
            for (j, x) in x.chunks_mut(st).enumerate().take((b * t).saturating_sub(k * rows)) {
                turn((k * rows + j) % t, x);
            }
        });
    } else {
        for i in 0..b {
            for j in 0..t {
                turn(j, &mut x[i * sb + j * st..]);
            }
        }
    }
}

crate::simd! {
fn rotate_heads(half: bool, x: &mut [f32], stride: usize, d: usize, cos: &[f32], sin: &[f32], inverse: bool) {
    for head in x.chunks_mut(stride.max(d)) {
        if half {
            rotate_half(&mut head[..d], cos, sin, inverse);
        } else {
            rotate_interleaved(&mut head[..d], cos, sin, inverse);
        }
    }
}
}

/// Turns one head in [`Rope::Half`] layout, pairs `(x_i, x_{i+D/2})`; to be called in a `simd!` body.
#[inline(always)]
pub fn rotate_half(x: &mut [f32], cos: &[f32], sin: &[f32], inverse: bool) {
    let sign = if inverse { -1.0 } else { 1.0 };
    let (a, b) = x.split_at_mut(cos.len());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (u, v, s) = (*a, *b, sin * sign);
        *a = u.mul_add(*cos, -(v * s));
        *b = v.mul_add(*cos, u * s);
    }
}

/// Turns one head in [`Rope::Interleaved`] layout, pairs `(x_{2i}, x_{2i+1})`; to be called in a `simd!` body.
#[inline(always)]
pub fn rotate_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32], inverse: bool) {
    let sign = if inverse { -1.0 } else { 1.0 };
    for ((pair, cos), sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        let ([u, v], s) = (*pair, sin * sign);
        *pair = [u.mul_add(*cos, -(v * s)), v.mul_add(*cos, u * s)];
    }
}
