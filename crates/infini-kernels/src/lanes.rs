//! Element-wise loops over short rows, in steps of 16.
//!
//! A plain loop over a row of 32 is compiled for long rows: unrolled four times behind a test for
//! overlap, so that a head's width runs in the remainder, one element at a time. These run whole
//! registers from the first element on. To be used inside [`simd!`](crate::simd!) bodies.

use crate::math::LANES;

/// Stands in a loop over registers and keeps LLVM from vectorising *that* loop, which it would do by gathering one
/// lane of many registers; the lanes of each register are then combined into one instruction. No code.
#[inline(always)]
pub(crate) fn one_register_at_a_time() {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: no instruction, no memory, no flags.
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags));
    }
}

/// `y_i = f(y_i, x_i)`.
#[inline(always)]
pub(crate) fn update(y: &mut [f32], x: &[f32], f: impl Fn(f32, f32) -> f32) {
    let n = y.len().min(x.len());
    let ((yc, yr), (xc, xr)) = (y[..n].as_chunks_mut::<LANES>(), x[..n].as_chunks::<LANES>());
    for (y, x) in yc.iter_mut().zip(xc) {
        one_register_at_a_time();
        let (mut v, x) = (*y, *x);
        for l in 0..LANES {
            v[l] = f(v[l], x[l]);
        }
        *y = v;
    }
    for (y, x) in yr.iter_mut().zip(xr) {
        *y = f(*y, *x);
    }
}

/// `y_i = f(x_i)`; y is never read.
#[inline(always)]
pub(crate) fn map(y: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    update(y, x, |_, x| f(x));
}

/// `y_i = f(y_i)`.
#[inline(always)]
pub(crate) fn each(y: &mut [f32], f: impl Fn(f32) -> f32) {
    let (c, r) = y.as_chunks_mut::<LANES>();
    for y in c {
        one_register_at_a_time();
        let mut v = *y;
        for l in 0..LANES {
            v[l] = f(v[l]);
        }
        *y = v;
    }
    for y in r {
        *y = f(*y);
    }
}

/// `y_i = f(y_i, a_i, b_i)`.
#[inline(always)]
pub(crate) fn update2(y: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) {
    let n = y.len().min(a.len()).min(b.len());
    let (yc, yr) = y[..n].as_chunks_mut::<LANES>();
    let ((ac, ar), (bc, br)) = (a[..n].as_chunks::<LANES>(), b[..n].as_chunks::<LANES>());
    for ((y, a), b) in yc.iter_mut().zip(ac).zip(bc) {
        one_register_at_a_time();
        let (mut v, a, b) = (*y, *a, *b);
        for l in 0..LANES {
            v[l] = f(v[l], a[l], b[l]);
        }
        *y = v;
    }
    for ((y, a), b) in yr.iter_mut().zip(ar).zip(br) {
        *y = f(*y, *a, *b);
    }
}

/// Pairs `(y0_i, y1_i) = f(x0_i, x1_i, a_i, b_i)`; y is never read.
#[inline(always)]
pub(crate) fn pairs(
    (y0, y1): (&mut [f32], &mut [f32]),
    (x0, x1): (&[f32], &[f32]),
    (a, b): (&[f32], &[f32]),
    f: impl Fn(f32, f32, f32, f32) -> (f32, f32),
) {
    let n = y0.len();
    let ((y0c, y0r), (y1c, y1r)) = (y0.as_chunks_mut::<LANES>(), y1[..n].as_chunks_mut::<LANES>());
    let ((x0c, x0r), (x1c, x1r)) = (x0[..n].as_chunks::<LANES>(), x1[..n].as_chunks::<LANES>());
    let ((ac, ar), (bc, br)) = (a[..n].as_chunks::<LANES>(), b[..n].as_chunks::<LANES>());
    for i in 0..y0c.len() {
        one_register_at_a_time();
        let (x0, x1, a, b) = (x0c[i], x1c[i], ac[i], bc[i]);
        let (mut y0, mut y1) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            (y0[l], y1[l]) = f(x0[l], x1[l], a[l], b[l]);
        }
        (y0c[i], y1c[i]) = (y0, y1);
    }
    for i in 0..y0r.len() {
        (y0r[i], y1r[i]) = f(x0r[i], x1r[i], ar[i], br[i]);
    }
}

/// `(y_i, z_i) = f(y_i, z_i)`.
#[inline(always)]
pub(crate) fn both(y: &mut [f32], z: &mut [f32], f: impl Fn(f32, f32) -> (f32, f32)) {
    let n = y.len().min(z.len());
    let ((yc, yr), (zc, zr)) = (y[..n].as_chunks_mut::<LANES>(), z[..n].as_chunks_mut::<LANES>());
    for (y, z) in yc.iter_mut().zip(zc) {
        one_register_at_a_time();
        let (mut v, mut w) = (*y, *z);
        for l in 0..LANES {
            (v[l], w[l]) = f(v[l], w[l]);
        }
        (*y, *z) = (v, w);
    }
    for (y, z) in yr.iter_mut().zip(zr) {
        (*y, *z) = f(*y, *z);
    }
}

/// `y_i = f(y_i)`, folded lane by lane: element i goes into lane i mod 16 by `g`. For a length that is a multiple
/// of 16.
#[inline(always)]
pub(crate) fn each_folded(
    y: &mut [f32],
    start: f32,
    f: impl Fn(f32) -> f32,
    g: impl Fn(f32, f32) -> f32,
) -> [f32; LANES] {
    let mut acc = [start; LANES];
    for y in y.as_chunks_mut::<LANES>().0 {
        one_register_at_a_time();
        let mut v = *y;
        for l in 0..LANES {
            v[l] = f(v[l]);
        }
        for l in 0..LANES {
            acc[l] = g(acc[l], v[l]);
        }
        *y = v;
    }
    acc
}
