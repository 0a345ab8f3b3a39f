//! How rows are split into blocks: by the shape alone, never by the number of threads, so that sums
//! over blocks have one order and results do not depend on the number of threads.

use rayon::prelude::*;

/// Elements below which a pass over memory stays on the calling thread: handing over costs about as
/// much as reading this many.
pub(crate) const SMALL: usize = 1 << 15;

/// Most partial sums kept of one reduction.
const MAX_BLOCKS: usize = 32;

/// Rows of a block of `rows` × `width` elements: at least [`SMALL`] elements, at most [`MAX_BLOCKS`] blocks.
pub(crate) fn rows_per_block(rows: usize, width: usize) -> usize {
    rows.div_ceil(MAX_BLOCKS).max(SMALL.div_ceil(width.max(1)))
}

/// The number of blocks of [`rows_per_block`] rows.
pub(crate) fn count(rows: usize, width: usize) -> usize {
    rows.div_ceil(rows_per_block(rows, width))
}

/// Whether a pass over `elements` is worth the pool.
pub(crate) fn worthwhile(elements: usize) -> bool {
    elements >= 2 * SMALL && rayon::current_num_threads() > 1
}

/// Calls `f` with each item, on the pool when `parallel`.
pub(crate) fn each<T: Send>(parallel: bool, items: Vec<T>, f: impl Fn(T) + Sync + Send) {
    if parallel {
        items.into_par_iter().for_each(f);
    } else {
        items.into_iter().for_each(f);
    }
}

crate::simd! {
/// `out += Σ_blocks parts`, `parts` holding blocks of `out`'s length, added in order.
pub(crate) fn sum_into(parts: &[f32], out: &mut [f32]) {
    for part in parts.chunks_exact(out.len()) {
        for (o, p) in out.iter_mut().zip(part) {
            *o += p;
        }
    }
}
}
