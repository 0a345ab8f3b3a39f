//! Exact local attention of a handful of queries, as decoding asks for: every key and value is read once,
//! where it lies. The tiles of [`flash`](crate::flash) would copy them all first.

use crate::flash::{Rotation, Visible};
use crate::lanes;
use crate::math::exp_sum;
use crate::tile::{product, transpose};

/// Keys taken together.
const KEYS: usize = 16;
/// Most queries of a group for which this is the faster way.
pub(crate) const QUERIES: usize = 8;

/// Floats of scratch for `n` queries over `tk` keys.
pub(crate) fn scratch(n: usize, d: usize, tk: usize) -> usize {
    n * (d + tk.next_multiple_of(KEYS)) + KEYS * d + 2 * KEYS * KEYS
}

/// As [`flash::forward`](crate::flash::forward) for the `tq` queries of each head in a group: `q` gives the rows of a
/// head, `k` and `v` are un-turned rows and their distance, `out [group, tq, Dv]` and `lse [group, tq, 2]` are dense.
pub(crate) fn forward<'q>(
    rot: &Rotation,
    mut visible: Visible,
    q: impl Fn(usize) -> (&'q [f32], usize),
    (tq, first): (usize, usize),
    (k, k_stride): (&[f32], usize),
    (v, v_stride): (&[f32], usize),
    (d, dv, tk): (usize, usize, usize),
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let n = out.len() / dv;
    let width = tk.next_multiple_of(KEYS);
    let (queries, rest) = scratch.split_at_mut(n * d);
    let (scores, rest) = rest.split_at_mut(n * width);
    let (turned, rest) = rest.split_at_mut(KEYS * d);
    let (across, rest) = rest.split_at_mut(KEYS * KEYS);
    let down = &mut rest[..KEYS * KEYS];
    let mut lo = [0; QUERIES];
    visible.fill(&mut lo[..tq]);
    for (head, queries) in queries.chunks_exact_mut(tq * d).enumerate() {
        let (q, stride) = q(head);
        rot.rows(q, stride, tq, d, first, false, 1.0 / (d as f32).sqrt(), queries);
    }
    for j in (lo[0]..first + tq).step_by(KEYS) {
        let keys = KEYS.min(tk - j);
        rot.rows(&k[j * k_stride..], k_stride, keys, d, j, false, 1.0, turned);
        for (query, scores) in queries.chunks_exact(d).zip(scores.chunks_exact_mut(width)) {
            dots_by_lane(query, &turned[..keys * d], across);
            transpose(across, KEYS, KEYS, KEYS, down, KEYS);
            columns(down, &mut scores[j - lo[0]..j - lo[0] + KEYS]);
        }
    }
    for (i, scores) in scores.chunks_exact_mut(width).enumerate() {
        let t = i % tq;
        let seen = &mut scores[lo[t] - lo[0]..first + t + 1 - lo[0]];
        let out = &mut out[i * dv..(i + 1) * dv];
        lse[2 * i..2 * i + 2].copy_from_slice(&normalise(seen));
        product([1, seen.len(), dv], out, dv, false, seen, (seen.len(), 1), &v[lo[t] * v_stride..], v_stride);
    }
}

crate::simd! {
/// `out [16 keys, 16 lanes]`: the products of one query with each key, summed lane by lane.
fn dots_by_lane(query: &[f32], keys: &[f32], out: &mut [f32]) {
    let d = query.len();
    let (whole, rest) = query.as_chunks::<KEYS>();
    let out = out.as_chunks_mut::<KEYS>().0;
    for (key, out) in keys.chunks_exact(d).zip(out.iter_mut()) {
        let mut sum = [0.0; KEYS];
        for (q, k) in whole.iter().zip(key.as_chunks::<KEYS>().0) {
            lanes::one_register_at_a_time();
            let (q, k) = (*q, *k);
            for l in 0..KEYS {
                sum[l] = q[l].mul_add(k[l], sum[l]);
            }
        }
        *out = sum;
        for (l, q) in rest.iter().enumerate() {
            out[l] += q * key[whole.len() * KEYS + l];
        }
    }
    // keys past the end: any finite number, nobody sees them
    for out in &mut out[keys.len() / d..] {
        *out = [0.0; KEYS];
    }
}
/// Sums of 16 columns.
fn columns(x: &[f32], out: &mut [f32]) {
    let mut sum = [0.0; KEYS];
    for x in x.as_chunks::<KEYS>().0 {
        lanes::one_register_at_a_time();
        let x = *x;
        for l in 0..KEYS {
            sum[l] += x[l];
        }
    }
    out.copy_from_slice(&sum);
}
/// Scores → probabilities; the largest score and the logarithm of the sum.
fn normalise(scores: &mut [f32]) -> [f32; 2] {
    let top = crate::math::max(scores);
    let sum = exp_sum(scores, 1.0, top);
    let share = 1.0 / sum;
    lanes::each(scores, |x| x * share);
    [top, sum.ln()]
}
}
