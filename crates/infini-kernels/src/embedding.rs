//! Rows of a table by index, and the sums of their gradients.

use rayon::prelude::*;

use crate::blocks;
use crate::matmul::axpy;

/// `out [N, d]`: row `ids[n]` of `table [V, d]`.
///
/// # Panics
/// If the lengths do not fit, or an id is not below `V`.
pub fn forward(ids: &[u32], table: &[f32], d: usize, out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * d, "embedding forward: {} rows of {d}", ids.len());
    if d == 0 {
        return;
    }
    check_ids(ids, table.len() / d);
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(d)) {
        let id = *id as usize;
        out.copy_from_slice(&table[id * d..(id + 1) * d]);
    }
}

/// `dtable [V, d]`: row `v` is the sum of the rows `dy [N, d]` of tokens with `ids[n] = v`, in the order of
/// `n`, added to what `dtable` holds when `add`.
///
/// # Panics
/// If the lengths do not fit, or an id is not below `V`.
pub fn backward(ids: &[u32], dy: &[f32], d: usize, dtable: &mut [f32], add: bool) {
    assert_eq!(dy.len(), ids.len() * d, "embedding backward: {} rows of {d}", ids.len());
    if d == 0 {
        return;
    }
    let vocab = dtable.len() / d;
    check_ids(ids, vocab);
    // each part of the table goes through all ids: rows are summed in one order however it is cut
    let part = |first: usize, dtable: &mut [f32]| {
        if !add {
            dtable.fill(0.0);
        }
        let here = first..first + dtable.len() / d;
        for (id, dy) in ids.iter().zip(dy.chunks_exact(d)) {
            let id = *id as usize;
            if here.contains(&id) {
                let at = (id - first) * d;
                axpy(1.0, dy, &mut dtable[at..at + d]);
            }
        }
    };
    if blocks::worthwhile(dy.len() + if add { 0 } else { dtable.len() }) {
        let rows = vocab.div_ceil(rayon::current_num_threads());
        dtable.par_chunks_mut(rows * d).enumerate().for_each(|(i, t)| part(i * rows, t));
    } else {
        part(0, dtable);
    }
}

fn check_ids(ids: &[u32], vocab: usize) {
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        panic!("embedding: id {id} in a vocabulary of {vocab}");
    }
}
