//! Matrix products of strided f32 matrices, through the `gemm` crate.
//!
//! A [`Level`](crate::simd::Level) below the machine's best takes a plain loop compiled for that level instead, as `gemm`
//! chooses its own instruction set.

use crate::simd;

/// Whether a product may use the rayon pool it is called in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Par {
    /// On the calling thread.
    No,
    /// Split over the current rayon pool.
    Rayon,
}

impl Par {
    /// `Rayon` when the current pool has more than one thread.
    pub fn auto() -> Par {
        if rayon::current_num_threads() > 1 { Par::Rayon } else { Par::No }
    }
}

/// A read-only matrix: element (i, j) lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

fn last(rows: usize, cols: usize, rs: usize, cs: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * rs + (cols - 1) * cs + 1 }
}

impl<'a> Mat<'a> {
    /// A matrix with any strides.
    ///
    /// # Panics
    /// If its last element lies outside `data`.
    #[inline]
    pub fn new(data: &'a [f32], rows: usize, cols: usize, rs: usize, cs: usize) -> Self {
        assert!(last(rows, cols, rs, cs) <= data.len(), "{rows}x{cols} strides {rs},{cs} outside {}", data.len());
        Mat { data, rows, cols, rs, cs }
    }
    /// A dense row-major matrix.
    #[inline]
    pub fn rows(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Mat::new(data, rows, cols, cols, 1)
    }
    /// The transpose, no copy.
    #[inline]
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs, ..self }
    }
}

/// A matrix that is written.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

impl<'a> MatMut<'a> {
    /// A matrix with any strides (of distinct elements).
    ///
    /// # Panics
    /// If its last element lies outside `data`.
    #[inline]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, rs: usize, cs: usize) -> Self {
        assert!(last(rows, cols, rs, cs) <= data.len(), "{rows}x{cols} strides {rs},{cs} outside {}", data.len());
        MatMut { data, rows, cols, rs, cs }
    }
    /// A dense row-major matrix.
    #[inline]
    pub fn rows(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        MatMut::new(data, rows, cols, cols, 1)
    }
}

/// `c = α a b`, or `c += α a b` when `add`. Without `add`, `c` is never read (it may hold NaN).
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul(c: MatMut, add: bool, alpha: f32, a: Mat, b: Mat, par: Par) {
    assert_eq!((c.rows, c.cols, a.cols), (a.rows, b.cols, b.rows), "matmul: shapes");
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    if simd::level() != simd::best() || a.cols == 0 {
        plain(c, add, alpha, a, b);
        return;
    }
    let par = match par {
        // below about 2 Mflop the hand-over costs more than a second core gives
        Par::Rayon if a.rows * a.cols * b.cols > 1 << 20 => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: the constructors checked that the last element of each matrix lies in its slice, `c` is
    // borrowed mutably (so it does not alias `a` or `b`), and the shapes were compared above.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            c.cs as isize,
            c.rs as isize,
            add,
            a.data.as_ptr(),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr(),
            b.cs as isize,
            b.rs as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            par,
        );
    }
}

/// The same product as loops: what a forced level runs.
fn plain(c: MatMut, add: bool, alpha: f32, a: Mat, b: Mat) {
    let mut row = vec![0.0; c.cols];
    let mut packed = vec![0.0; b.rows * b.cols];
    for i in 0..b.rows {
        for j in 0..b.cols {
            packed[i * b.cols + j] = b.data[i * b.rs + j * b.cs];
        }
    }
    for i in 0..c.rows {
        row.fill(0.0);
        for p in 0..a.cols {
            axpy(alpha * a.data[i * a.rs + p * a.cs], &packed[p * b.cols..(p + 1) * b.cols], &mut row);
        }
        for (j, x) in row.iter().enumerate() {
            let y = &mut c.data[i * c.rs + j * c.cs];
            *y = if add { *y + x } else { *x };
        }
    }
}

crate::simd! {
/// `y += s x`.
pub fn axpy(s: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.mul_add(s, *y);
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_loops() {
        for (m, k, n) in [(0, 3, 2), (1, 1, 1), (3, 0, 4), (5, 7, 3), (64, 65, 63)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.11).cos()).collect();
            let mut x = vec![f32::NAN; m * n];
            let mut y = x.clone();
            matmul(MatMut::rows(&mut x, m, n), false, 0.5, Mat::rows(&a, m, k), Mat::rows(&b, k, n), Par::No);
            plain(MatMut::rows(&mut y, m, n), false, 0.5, Mat::rows(&a, m, k), Mat::rows(&b, k, n));
            for (x, y) in x.iter().zip(&y) {
                assert!((x - y).abs() < 1e-5, "{m}x{k}x{n}: {x} {y}");
            }
        }
    }
}
