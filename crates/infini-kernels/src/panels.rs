//! Weights kept in panels of 64 outputs, smaller than f32: few rows stream every panel once, which is what bounds
//! decoding; many rows are worth widening some panels to f32 for a product.

use std::ops::Range;

use crate::matmul::{Mat, MatMut, Par, matmul};

/// Outputs of a panel: four AVX-512 registers.
pub(crate) const PANEL: usize = 64;
/// Lanes of a register.
pub(crate) const L: usize = 16;
/// The 64 sums of a panel.
pub(crate) type Sums = [[f32; L]; PANEL / L];
/// Rows up to which the panels are streamed once.
const FEW_ROWS: usize = 4;
/// Weights widened for one product: as f32 about as much as the second-level cache holds.
const WIDENED: usize = 1 << 18;
/// Weights below which few rows stay on the calling thread, see [`linear`](crate::linear).
const FEW_WEIGHTS: usize = 1 << 19;

/// A matrix `W [out, inp]` in panels.
pub(crate) trait Panels: Sync {
    /// Outputs and inputs.
    fn sizes(&self) -> [usize; 2];
    /// Panel `p` as f32 into `wide [inp, 64]`, rows `width` apart; `wide` has room for `inp` rounded up to even rows.
    fn widen(&self, p: usize, wide: &mut [f32], width: usize);
    /// `y_r = x_r Wᵀ` over the panels of a range, added to `y` when `add`.
    fn stream(&self, panels: Range<usize>, x: &[f32], y: &mut [&mut [f32]], add: bool);
}

/// `y = x Wᵀ`, `x [n, inp]`, `y [n, out]`; added to `y` when `add`, which is never read without.
///
/// # Panics
/// If the lengths do not fit.
pub(crate) fn forward(w: &impl Panels, x: &[f32], y: &mut [f32], n: usize, add: bool) {
    let [out, inp] = w.sizes();
    assert_eq!((x.len(), y.len()), (n * inp, n * out), "panels: {n} rows, {inp} -> {out}");
    if n <= FEW_ROWS {
        few_rows(w, x, y, n, add);
        return;
    }
    let rows = inp.next_multiple_of(2);
    let group = (WIDENED / (rows * PANEL)).max(1);
    let width = (group * PANEL).min(out.next_multiple_of(PANEL));
    let mut wide = vec![0.0; rows * width];
    for first in (0..out).step_by(group * PANEL) {
        let columns = (group * PANEL).min(out - first);
        for i in 0..columns.div_ceil(PANEL) {
            w.widen(first / PANEL + i, &mut wide[i * PANEL..], width);
        }
        let y = MatMut::new(&mut y[first..], n, columns, out, 1);
        matmul(y, add, 1.0, Mat::rows(x, n, inp), Mat::new(&wide, inp, columns, width, 1), Par::auto());
    }
}

/// Every weight is read once.
fn few_rows(w: &impl Panels, x: &[f32], y: &mut [f32], n: usize, add: bool) {
    let [out, inp] = w.sizes();
    if n == 0 || out == 0 {
        return;
    }
    let parallel = out * inp >= FEW_WEIGHTS && rayon::current_num_threads() > 1;
    // whole panels a task
    let tasks = if parallel { 4 * rayon::current_num_threads() } else { 1 };
    let (panels, total) = (out.div_ceil(PANEL).div_ceil(tasks), out.div_ceil(PANEL));
    let mut columns: Vec<_> = y.chunks_exact_mut(out).map(|y| y.chunks_mut(panels * PANEL)).collect();
    let items: Vec<(Range<usize>, Vec<&mut [f32]>)> = (0..total)
        .step_by(panels)
        .map(|p| (p..(p + panels).min(total), columns.iter_mut().filter_map(Iterator::next).collect()))
        .collect();
    let run = |(p, mut y): (Range<usize>, Vec<&mut [f32]>)| w.stream(p, x, &mut y, add);
    crate::blocks::each(parallel, items, run);
}

/// Puts the sums of one panel where it stands in `y`, whose end may cut it off.
#[inline(always)]
pub(crate) fn put(sums: &Sums, y: &mut [f32], add: bool) {
    let n = y.len().min(PANEL);
    for (y, sum) in y[..n].iter_mut().zip(sums.as_flattened()) {
        *y = if add { *y + sum } else { *sum };
    }
}
