//! Linear layers `y = x Wᵀ` with `W [out, in]`, the layout of PyTorch and of Hugging Face's files.
//!
//! `[n, inp, out]` are the sizes: `x [n, inp]`, `y [n, out]`. `add` adds to the output instead of
//! overwriting it; without it the output is never read.

use rayon::prelude::*;

use crate::blocks;
use crate::math::{LANES, fold};
use crate::matmul::{Mat, MatMut, Par, matmul};

/// Rows up to which [`forward`] streams the weights once, which is what bounds it there.
const FEW_ROWS: usize = 4;

/// Weights below which a product of few rows stays on the calling thread: 512 KiB, 10 µs of memory traffic.
const FEW_WEIGHTS: usize = 1 << 17;

fn check(what: &str, x: usize, w: usize, y: usize, [n, inp, out]: [usize; 3]) {
    assert_eq!((x, w, y), (n * inp, out * inp, n * out), "linear {what}: lengths for {n} rows, {inp} -> {out}");
}

/// `y = x Wᵀ`.
///
/// # Panics
/// If the lengths do not fit the sizes.
pub fn forward(x: &[f32], w: &[f32], y: &mut [f32], sizes: [usize; 3], add: bool) {
    let [n, inp, out] = sizes;
    check("forward", x.len(), w.len(), y.len(), sizes);
    if n == 0 || out == 0 {
    } else if n <= FEW_ROWS && inp > 0 {
        few_rows(x, w, y, sizes, add);
    } else {
        matmul(MatMut::rows(y, n, out), add, 1.0, Mat::rows(x, n, inp), Mat::rows(w, out, inp).t(), Par::auto());
    }
}

/// `dx = dy W`.
///
/// # Panics
/// If the lengths do not fit the sizes.
pub fn backward_input(dy: &[f32], w: &[f32], dx: &mut [f32], sizes: [usize; 3], add: bool) {
    let [n, inp, out] = sizes;
    check("backward_input", dx.len(), w.len(), dy.len(), sizes);
    matmul(MatMut::rows(dx, n, inp), add, 1.0, Mat::rows(dy, n, out), Mat::rows(w, out, inp), Par::auto());
}

/// `dW = dyᵀ x`.
///
/// # Panics
/// If the lengths do not fit the sizes.
pub fn backward_weight(dy: &[f32], x: &[f32], dw: &mut [f32], sizes: [usize; 3], add: bool) {
    let [n, inp, out] = sizes;
    check("backward_weight", x.len(), dw.len(), dy.len(), sizes);
    matmul(MatMut::rows(dw, out, inp), add, 1.0, Mat::rows(dy, n, out).t(), Mat::rows(x, n, inp), Par::auto());
}

/// `y += bias`, for each row of `y [N, out]`.
///
/// # Panics
/// If `y` is not whole rows.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    assert_eq!(y.len() % bias.len(), 0, "add_bias: rows of {}", bias.len());
    for y in y.chunks_exact_mut(bias.len()) {
        crate::matmul::axpy(1.0, bias, y);
    }
}

/// `db = Σ_rows dy`, `dy [N, out]`.
///
/// # Panics
/// If `dy` is not whole rows.
pub fn backward_bias(dy: &[f32], db: &mut [f32], add: bool) {
    if !add {
        db.fill(0.0);
    }
    if !db.is_empty() {
        assert_eq!(dy.len() % db.len(), 0, "backward_bias: rows of {}", db.len());
        blocks::sum_into(dy, db);
    }
}

/// [`forward`] for `n` ≤ [`FEW_ROWS`]: every weight is read once.
fn few_rows(x: &[f32], w: &[f32], y: &mut [f32], [n, inp, out]: [usize; 3], add: bool) {
    let run = |w: &[f32], y: &mut [&mut [f32]]| match y {
        [y] => one_row(x, w, y, inp, add),
        [y0, y1] => two_rows(x, w, y0, y1, inp, add),
        [y0, y1, y2] => three_rows(x, w, y0, y1, y2, inp, add),
        [y0, y1, y2, y3] => four_rows(x, w, y0, y1, y2, y3, inp, add),
        _ => unreachable!("at most FEW_ROWS rows"),
    };
    let mut rows = y.chunks_exact_mut(out);
    let mut rows: [&mut [f32]; FEW_ROWS] = std::array::from_fn(|_| rows.next().unwrap_or_default());
    if out * inp < FEW_WEIGHTS || rayon::current_num_threads() == 1 {
        run(w, &mut rows[..n]);
        return;
    }
    let block = (FEW_WEIGHTS / 4).div_ceil(inp).next_multiple_of(OUTPUTS);
    let mut columns: Vec<_> = rows.into_iter().take(n).map(|r| r.chunks_mut(block)).collect();
    let items: Vec<(&[f32], Vec<&mut [f32]>)> =
        w.chunks(block * inp).map(|w| (w, columns.iter_mut().flat_map(Iterator::next).collect())).collect();
    items.into_par_iter().for_each(|(w, mut y)| run(w, &mut y));
}

/// Outputs computed together, so that their sums hide each other's latency and share the loads of `x`.
const OUTPUTS: usize = 4;

/// `N` rows of `x` times all rows of `w`.
#[inline(always)]
fn rows<const N: usize>(x: &[f32], w: &[f32], y: [&mut [f32]; N], inp: usize, add: bool) {
    let x: [&[f32]; N] = std::array::from_fn(|r| &x[r * inp..(r + 1) * inp]);
    let out = y[0].len();
    let mut o = 0;
    while o + OUTPUTS <= out {
        let w: [&[f32]; OUTPUTS] = std::array::from_fn(|j| &w[(o + j) * inp..(o + j + 1) * inp]);
        let sums = dots::<N, OUTPUTS>(&x, &w);
        for r in 0..N {
            for j in 0..OUTPUTS {
                let y = &mut y[r][o + j];
                *y = if add { *y + sums[r][j] } else { sums[r][j] };
            }
        }
        o += OUTPUTS;
    }
    while o < out {
        let sums = dots::<N, 1>(&x, &[&w[o * inp..(o + 1) * inp]]);
        for r in 0..N {
            let y = &mut y[r][o];
            *y = if add { *y + sums[r][0] } else { sums[r][0] };
        }
        o += 1;
    }
}

/// All products of `N` with `K` rows.
#[inline(always)]
fn dots<const N: usize, const K: usize>(x: &[&[f32]; N], w: &[&[f32]; K]) -> [[f32; K]; N] {
    let n = x[0].len();
    let whole = n / LANES * LANES;
    let mut s = [[[0f32; LANES]; K]; N];
    let mut p = 0;
    while p < whole {
        for r in 0..N {
            for j in 0..K {
                let (x, w) = (&x[r][p..p + LANES], &w[j][p..p + LANES]);
                for i in 0..LANES {
                    s[r][j][i] = x[i].mul_add(w[i], s[r][j][i]);
                }
            }
        }
        p += LANES;
    }
    let mut out = [[0.0; K]; N];
    for r in 0..N {
        for j in 0..K {
            out[r][j] = fold(s[r][j]);
            for p in whole..n {
                out[r][j] = x[r][p].mul_add(w[j][p], out[r][j]);
            }
        }
    }
    out
}

crate::simd! {
fn one_row(x: &[f32], w: &[f32], y: &mut [f32], inp: usize, add: bool) {
    rows::<1>(x, w, [y], inp, add);
}
fn two_rows(x: &[f32], w: &[f32], y0: &mut [f32], y1: &mut [f32], inp: usize, add: bool) {
    rows::<2>(x, w, [y0, y1], inp, add);
}
fn three_rows(x: &[f32], w: &[f32], y0: &mut [f32], y1: &mut [f32], y2: &mut [f32], inp: usize, add: bool) {
    rows::<3>(x, w, [y0, y1, y2], inp, add);
}
fn four_rows(x: &[f32], w: &[f32], y0: &mut [f32], y1: &mut [f32], y2: &mut [f32], y3: &mut [f32], inp: usize, add: bool) {
    rows::<4>(x, w, [y0, y1, y2, y3], inp, add);
}
}
