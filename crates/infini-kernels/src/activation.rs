//! Activations and gates, element by element: forward from `x`, backward from `x` and `dy`.
//!
//! Every function asserts that its slices have one length (rows for the packed forms), overwrites its
//! outputs, and runs on the current rayon pool when long.

use rayon::prelude::*;

use crate::blocks::{SMALL, worthwhile};
use crate::math::{exp, ln_1p_unit, sigmoid, sigmoid_slope};

/// Defines the public function `$name` over whole slices from `$body` over chunks of them.
macro_rules! elementwise {
    ($(#[$meta:meta])* $name:ident = $body:ident($first:ident $(, $in:ident)* => $out:ident $(, $more:ident)?)) => {
        $(#[$meta])*
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $name($first: &[f32] $(, $in: &[f32])*, $out: &mut [f32] $(, $more: &mut [f32])?) {
            let n = $first.len();
            $(assert_eq!($in.len(), n, concat!(stringify!($name), ": ", stringify!($in)));)*
            assert_eq!($out.len(), n, concat!(stringify!($name), ": ", stringify!($out)));
            $(assert_eq!($more.len(), n, concat!(stringify!($name), ": ", stringify!($more)));)?
            if worthwhile(n) {
                // every slice is cut at the same places
                $first.par_chunks(SMALL)
                    $(.zip($in.par_chunks(SMALL)))*
                    .zip($out.par_chunks_mut(SMALL))
                    $(.zip($more.par_chunks_mut(SMALL)))?
                    .for_each(elementwise!(@call $body $first [$($in)*] $out [$($more)?]));
            } else {
                $body($first $(, $in)*, $out $(, $more)?);
            }
        }
    };
    (@call $body:ident $a:ident [] $o:ident []) => { |($a, $o)| $body($a, $o) };
    (@call $body:ident $a:ident [$b:ident] $o:ident []) => { |(($a, $b), $o)| $body($a, $b, $o) };
    (@call $body:ident $a:ident [$b:ident $c:ident] $o:ident [$p:ident]) => {
        |(((($a, $b), $c), $o), $p)| $body($a, $b, $c, $o, $p)
    };
}

elementwise! {
/// SwiGLU (Shazeer 2020, arXiv 2002.05202): `y = silu(gate) up`, `silu(x) = x σ(x)`.
swiglu_forward = swiglu(gate, up => y)
}
elementwise! {
/// The gradients of [`swiglu_forward`]: `dup = dy silu(gate)`, `dgate = dy up σ (1 + gate (1 − σ))`.
swiglu_backward = swiglu_back(gate, up, dy => dgate, dup)
}
elementwise! {
/// GELU in its tanh form: `y = x σ(2u)`, `u = sqrt(2/π) (x + 0.044715 x³)`, which is
/// `x (1 + tanh u) / 2` (Hendrycks and Gimpel 2016, arXiv 1606.08415).
gelu_forward = gelu(x => y)
}
elementwise! {
/// The gradient of [`gelu_forward`].
gelu_backward = gelu_back(x, dy => dx)
}
elementwise! {
/// The logistic function.
sigmoid_forward = sigmoids(x => y)
}
elementwise! {
/// The gradient of [`sigmoid_forward`], `dy σ(x) (1 − σ(x))`.
sigmoid_backward = sigmoid_back(x, dy => dx)
}
elementwise! {
/// `ln(1 + e^x)`.
softplus_forward = softplus(x => y)
}
elementwise! {
/// The gradient of [`softplus_forward`], `dy σ(x)`.
softplus_backward = softplus_back(x, dy => dx)
}
elementwise! {
/// The hard write gate \[ext\]: `clip(1.2 σ(x) − 0.1, 0, 1)`, which reaches 0 and 1.
clip_gate_forward = clip_gate(x => y)
}
elementwise! {
/// The gradient of [`clip_gate_forward`] straight through the clip, `1.2 dy σ(x) (1 − σ(x))`, so that a
/// closed gate can open again.
clip_gate_backward = clip_gate_back(x, dy => dx)
}

/// [`swiglu_forward`] of packed rows `h [N, 2f]` = `[gate | up]` into `y [N, f]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn swiglu_packed_forward(h: &[f32], f: usize, y: &mut [f32]) {
    assert_eq!(h.len(), 2 * y.len(), "swiglu_packed_forward: h");
    if f == 0 {
        return;
    }
    assert_eq!(y.len() % f, 0, "swiglu_packed_forward: rows of {f}");
    let rows = SMALL.div_ceil(f);
    if worthwhile(y.len()) {
        h.par_chunks(2 * f * rows).zip(y.par_chunks_mut(f * rows)).for_each(|(h, y)| swiglu_rows(h, f, y));
    } else {
        swiglu_rows(h, f, y);
    }
}

/// The gradient `dh [N, 2f]` of [`swiglu_packed_forward`] from `dy [N, f]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn swiglu_packed_backward(h: &[f32], f: usize, dy: &[f32], dh: &mut [f32]) {
    assert_eq!((h.len(), dh.len()), (2 * dy.len(), 2 * dy.len()), "swiglu_packed_backward: h, dh");
    if f == 0 {
        return;
    }
    assert_eq!(dy.len() % f, 0, "swiglu_packed_backward: rows of {f}");
    let rows = SMALL.div_ceil(f);
    if worthwhile(dy.len()) {
        h.par_chunks(2 * f * rows)
            .zip(dy.par_chunks(f * rows))
            .zip(dh.par_chunks_mut(2 * f * rows))
            .for_each(|((h, dy), dh)| swiglu_rows_back(h, f, dy, dh));
    } else {
        swiglu_rows_back(h, f, dy, dh);
    }
}

const GELU_SCALE: f32 = 0.797_884_6; // sqrt(2 / π)
const GELU_CUBE: f32 = 0.044_715;

#[inline(always)]
fn swiglu_one(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g * sigmoid(*g) * u;
    }
}

#[inline(always)]
fn swiglu_one_back(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let n = dy.len();
    let (gate, up, dgate, dup) = (&gate[..n], &up[..n], &mut dgate[..n], &mut dup[..n]);
    for i in 0..n {
        let s = sigmoid(gate[i]);
        dup[i] = dy[i] * gate[i] * s;
        dgate[i] = dy[i] * up[i] * s * gate[i].mul_add(1.0 - s, 1.0);
    }
}

crate::simd! {
fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    swiglu_one(gate, up, y);
}
fn swiglu_back(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    swiglu_one_back(gate, up, dy, dgate, dup);
}
fn swiglu_rows(h: &[f32], f: usize, y: &mut [f32]) {
    for (h, y) in h.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
        let (gate, up) = h.split_at(f);
        swiglu_one(gate, up, y);
    }
}
fn swiglu_rows_back(h: &[f32], f: usize, dy: &[f32], dh: &mut [f32]) {
    for ((h, dy), dh) in h.chunks_exact(2 * f).zip(dy.chunks_exact(f)).zip(dh.chunks_exact_mut(2 * f)) {
        let (gate, up) = h.split_at(f);
        let (dgate, dup) = dh.split_at_mut(f);
        swiglu_one_back(gate, up, dy, dgate, dup);
    }
}
fn gelu(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        let u = GELU_SCALE * x * (x * x).mul_add(GELU_CUBE, 1.0);
        *y = x * sigmoid(2.0 * u);
    }
}
fn gelu_back(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        let u = GELU_SCALE * x * (x * x).mul_add(GELU_CUBE, 1.0);
        let slope = GELU_SCALE * (x * x).mul_add(3.0 * GELU_CUBE, 1.0);
        let s = sigmoid(2.0 * u);
        *dx = dy * (2.0 * x * slope * (1.0 - s)).mul_add(s, s);
    }
}
fn sigmoids(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = sigmoid(*x);
    }
}
fn sigmoid_back(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * sigmoid_slope(*x);
    }
}
fn softplus(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.max(0.0) + ln_1p_unit(exp(-x.abs()));
    }
}
fn softplus_back(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * sigmoid(*x);
    }
}
fn clip_gate(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = sigmoid(*x).mul_add(1.2, -0.1).clamp(0.0, 1.0);
    }
}
fn clip_gate_back(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = 1.2 * dy * sigmoid_slope(*x);
    }
}
}
