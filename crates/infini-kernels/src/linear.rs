//! Linear layers `y = x Wᵀ` with `W [out, in]`, the layout of PyTorch and of Hugging Face's files.
//!
//! `[n, inp, out]` are the sizes: `x [n, inp]`, `y [n, out]`. `add` adds to the output instead of
//! overwriting it; without it the output is never read.

use rayon::prelude::*;

use crate::blocks;
use crate::math::dot;
use crate::matmul::{Mat, MatMut, Par, matmul};

/// Rows up to which [`forward`] streams the weights once, which is what bounds it there.
const FEW_ROWS: usize = 4;

/// Weights below which a product of few rows stays on the calling thread: 2 MiB, 45 µs of memory traffic, about what
/// waking a second thread takes.
const FEW_WEIGHTS: usize = 1 << 19;

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
    let mut rows = y.chunks_exact_mut(out);
    let mut rows: [&mut [f32]; FEW_ROWS] = std::array::from_fn(|_| rows.next().unwrap_or_default());
    let rows = &mut rows[..n];
    if out * inp < FEW_WEIGHTS || rayon::current_num_threads() == 1 {
        dot_rows(x, w, rows, add);
        return;
    }
    let block = (FEW_WEIGHTS / 4).div_ceil(inp);
    let mut columns: Vec<_> = rows.iter_mut().map(|r| r.chunks_mut(block)).collect();
    let items: Vec<(&[f32], Vec<&mut [f32]>)> =
        w.chunks(block * inp).map(|w| (w, columns.iter_mut().filter_map(Iterator::next).collect())).collect();
    items.into_par_iter().for_each(|(w, mut rows)| dot_rows(x, w, &mut rows, add));
}

crate::simd! {
/// `y[r][o] = x_r · w_o`.
fn dot_rows(x: &[f32], w: &[f32], y: &mut [&mut [f32]], add: bool) {
    let inp = x.len() / y.len();
    for (o, w) in w.chunks_exact(inp).enumerate() {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(inp)) {
            let sum = dot(x, w);
            y[o] = if add { y[o] + sum } else { sum };
        }
    }
}
}
