//! Exact attention to the best few of many past keys (Memorizing Transformers, Wu, Rabe, Hutchins and Szegedy 2022,
//! arXiv 2203.08913): (27) of `docs/math.md`. Keys and queries are normalised and carry no positions; no gradient reaches
//! the store.

use std::ops::Range;

use crate::heads::{Heads, HeadsMut};
use crate::linear;
use crate::math::dot;

/// Added inside the root of the normalisation, as in the gated delta rule.
const EPS: f32 = 1e-6;
/// Queries whose scores are computed at once.
const TILE: usize = 64;

/// What queries look in.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// Keys `[B, N, Hkv, D]`.
    pub k: Heads<'a>,
    /// Values `[B, N, Hkv, Dv]`.
    pub v: Heads<'a>,
}

/// Which places of the store a token sees: two ranges, so that a ring can be looked at.
pub type Seen = [Range<u32>; 2];

/// The choice of [`forward`], for [`backward`]: places and weights `[B, T, H, top]`; weight 0 where there are fewer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Places in the store.
    pub place: Vec<u32>,
    /// Softmax of their scores.
    pub weight: Vec<f32>,
}

fn check(q: &Heads, store: &Store, seen: usize, top: usize) -> [usize; 6] {
    let ([b, t, h, d], [kb, n, hkv, kd], [vb, vn, vh, dv]) = (q.shape(), store.k.shape(), store.v.shape());
    assert!(kb == b && vb == b && vn == n && vh == hkv && kd == d, "knn: shapes of q, k, v differ");
    assert!(hkv > 0 && h % hkv == 0 && top > 0, "knn: {h} query heads over {hkv} key heads, {top} chosen");
    assert_eq!(seen, b * t, "knn: ranges of [B, T]");
    [b, t, h, d, hkv, dv]
}

fn inverse_norm(x: &[f32]) -> f32 {
    (dot(x, x) + EPS).sqrt().recip()
}

/// `out [B, T, H, Dv]` = Σ p_i v_i over the `top` places of the highest `√D <q̂, k̂_i>` among those that a token sees
/// (`seen [B, T]`), 0 where it sees none. Of equal scores the lower place wins.
///
/// # Panics
/// If shapes do not fit together.
pub fn forward(q: Heads, store: Store, seen: &[Seen], top: usize, out: &mut HeadsMut, mut choice: Option<&mut Choice>) {
    let [b, t, h, d, hkv, dv] = check(&q, &store, seen.len(), top);
    assert_eq!(out.shape(), [b, t, h, dv], "knn: shape of out");
    let n = store.k.shape()[1];
    if let Some(c) = &mut choice {
        c.place = vec![0; b * t * h * top];
        c.weight = vec![0.0; b * t * h * top];
    }
    let (mut keys, mut queries) = (vec![0.0; n * d], vec![0.0; TILE * d]);
    let (mut scores, mut best) = (vec![0.0; TILE * n], Vec::with_capacity(top));
    for (row, head) in (0..b).flat_map(|row| (0..hkv).map(move |n| (row, n))) {
        let used = seen[row * t..(row + 1) * t].iter().flatten().map(|r| r.end as usize).max().unwrap_or(0);
        for (i, k) in keys.chunks_exact_mut(d).enumerate().take(used) {
            let x = store.k.row(row, i, head);
            let s = inverse_norm(x);
            k.iter_mut().zip(x).for_each(|(k, x)| *k = x * s);
        }
        for query in head * (h / hkv)..(head + 1) * (h / hkv) {
            for t0 in (0..t).step_by(TILE) {
                let m = TILE.min(t - t0);
                for (i, y) in queries.chunks_exact_mut(d).enumerate().take(m) {
                    let x = q.row(row, t0 + i, query);
                    let s = inverse_norm(x) * (d as f32).sqrt();
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = x * s);
                }
                let scores = &mut scores[..m * used];
                linear::forward(&queries[..m * d], &keys[..used * d], scores, [m, d, used], false);
                for i in 0..m {
                    let scores = &scores[i * used..(i + 1) * used];
                    choose(scores, &seen[row * t + t0 + i], top, &mut best);
                    let y = out.row_mut(row, t0 + i, query);
                    y.fill(0.0);
                    let largest = best.first().map_or(0.0, |b: &(f32, u32)| b.0);
                    let sum: f32 = best.iter().map(|(s, _)| (s - largest).exp()).sum();
                    for (j, (score, place)) in best.iter().enumerate() {
                        let p = (score - largest).exp() / sum;
                        let v = store.v.row(row, *place as usize, head);
                        y.iter_mut().zip(v).for_each(|(y, v)| *y = v.mul_add(p, *y));
                        if let Some(c) = &mut choice {
                            let at = ((row * t + t0 + i) * h + query) * top + j;
                            (c.place[at], c.weight[at]) = (*place, p);
                        }
                    }
                }
            }
        }
    }
}

/// The `top` highest of the scores that are seen, highest first.
fn choose(scores: &[f32], seen: &Seen, top: usize, best: &mut Vec<(f32, u32)>) {
    best.clear();
    for place in seen.iter().flat_map(Range::clone) {
        let score = scores[place as usize];
        let better = |b: &(f32, u32)| b.0 > score || (b.0 == score && b.1 < place);
        if best.len() == top && best.last().is_some_and(better) {
            continue;
        }
        let at = best.partition_point(better);
        best.truncate(top - 1);
        best.insert(at, (score, place));
    }
}

/// The gradient of `q` from that of the result; the choice is a constant, and so is the store.
///
/// # Panics
/// If shapes do not fit together or `choice` is of another call.
pub fn backward(q: Heads, store: Store, choice: &Choice, top: usize, dout: Heads, dq: &mut HeadsMut) {
    let [b, t, h, d, hkv, dv] = check(&q, &store, q.shape()[0] * q.shape()[1], top);
    assert_eq!(dout.shape(), [b, t, h, dv], "knn: shape of dout");
    assert_eq!(dq.shape(), q.shape(), "knn: shape of dq");
    assert_eq!(choice.weight.len(), b * t * h * top, "knn: choice is of another call");
    let mut slopes = vec![0.0; top];
    for ((row, i), query) in (0..b).flat_map(|r| (0..t).map(move |i| (r, i))).flat_map(|x| (0..h).map(move |h| (x, h)))
    {
        let head = query / (h / hkv);
        let at = ((row * t + i) * h + query) * top;
        let (place, weight) = (&choice.place[at..at + top], &choice.weight[at..at + top]);
        let dy = dout.row(row, i, query);
        for ((s, place), weight) in slopes.iter_mut().zip(place).zip(weight) {
            *s = if *weight > 0.0 { dot(dy, store.v.row(row, *place as usize, head)) } else { 0.0 };
        }
        let mean = dot(&slopes, weight);
        let x = q.row(row, i, query);
        let inv = inverse_norm(x);
        let y = dq.row_mut(row, i, query);
        y.fill(0.0);
        for ((s, p), place) in slopes.iter().zip(weight).zip(place).filter(|((_, p), _)| **p > 0.0) {
            let k = store.k.row(row, *place as usize, head);
            let g = p * (s - mean) * (d as f32).sqrt() * inverse_norm(k);
            y.iter_mut().zip(k).for_each(|(y, k)| *y = k.mul_add(g, *y));
        }
        // through q̂ = q / |q|
        let along = dot(x, y) * inv * inv;
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (*y - along * x) * inv);
    }
}
