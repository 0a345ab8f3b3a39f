//! Exact local attention of one query head, in tiles of 64 queries and 64 keys with a running softmax:
//! never more than one tile of scores (Dao et al. 2022, arXiv 2205.14135). (1), (2) and §9 b.
//!
//! Every query sees one contiguous range of keys, from [`Visible`] to itself. Work is skipped in steps of
//! 16 queries and 16 keys outside those ranges, so a causal tile costs 5/8 of a full one.

use crate::lanes;
use crate::local::Angles;
use crate::math::exp;
use crate::settings::{Rope, Settings};
use crate::tile::{product, transpose};

/// Queries and keys of a tile.
pub(crate) const TILE: usize = 64;
/// Rows that are taken together.
const PANEL: usize = 16;

/// The rotation of one layout, by positions relative to the first key.
#[derive(Clone, Copy)]
pub(crate) struct Rotation<'a> {
    layout: Rope,
    angles: Angles<'a>,
    half: usize,
}

impl<'a> Rotation<'a> {
    /// Checks that the angles reach `positions` positions.
    pub(crate) fn new(layout: Rope, angles: Option<Angles<'a>>, d: usize, positions: usize) -> Self {
        if layout == Rope::None {
            return Rotation { layout, angles: Angles { cos: &[], sin: &[] }, half: 0 };
        }
        let (angles, half) = (angles.expect("rope: angles missing: pass a table"), d / 2);
        assert!(d.is_multiple_of(2), "rope: head width {d} is odd");
        let n = positions * half;
        assert!(angles.cos.len() >= n && angles.sin.len() >= n, "rope: angles: fewer than {positions} positions");
        Rotation { layout, angles, half }
    }

    /// `n` rows of `x`, turned by positions `p..` (back if `inverse`) and scaled, into the dense `out`.
    pub(crate) fn rows(
        &self,
        x: &[f32],
        stride: usize,
        n: usize,
        d: usize,
        p: usize,
        inverse: bool,
        scale: f32,
        out: &mut [f32],
    ) {
        let (cos, sin) = match self.layout {
            Rope::None => (&[][..], &[][..]),
            _ => (&self.angles.cos[p * self.half..], &self.angles.sin[p * self.half..]),
        };
        turn(self.layout, x, stride, d, cos, sin, if inverse { -1.0 } else { 1.0 }, scale, &mut out[..n * d]);
    }
}

crate::simd! {
fn turn(layout: Rope, x: &[f32], stride: usize, d: usize, cos: &[f32], sin: &[f32], sign: f32, scale: f32, out: &mut [f32]) {
    let half = d / 2;
    for (i, out) in out.chunks_exact_mut(d).enumerate() {
        let x = &x[i * stride..i * stride + d];
        if layout == Rope::None {
            lanes::map(out, x, |x| x * scale);
            continue;
        }
        let angles = (&cos[i * half..(i + 1) * half], &sin[i * half..(i + 1) * half]);
        if layout == Rope::Half {
            lanes::pairs(out.split_at_mut(half), x.split_at(half), angles, |x0, x1, c, s| {
                let (c, s) = (c * scale, s * (scale * sign));
                (x0 * c - x1 * s, x0 * s + x1 * c)
            });
        } else {
            for ((out, x), (c, s)) in out.chunks_exact_mut(2).zip(x.chunks_exact(2)).zip(angles.0.iter().zip(angles.1)) {
                let (c, s) = (c * scale, s * (scale * sign));
                out[0] = x[0] * c - x[1] * s;
                out[1] = x[0] * s + x[1] * c;
            }
        }
    }
}
}

/// First visible key of each query in turn: `V(i)` of (2).
#[derive(Clone, Copy)]
pub(crate) struct Visible<'a> {
    segment_len: usize,
    span: usize,
    /// Absolute position of key 0, a multiple of the segment length.
    k_pos: usize,
    /// Of the keys; empty where no document starts.
    reset: &'a [u8],
    /// Key index of the next query.
    next: usize,
    /// Key index where its document starts, as far as known.
    document: usize,
}

impl<'a> Visible<'a> {
    pub(crate) fn new(s: &Settings, k_pos: usize, reset: &'a [u8], first_query: usize) -> Self {
        let document = match reset.get(..first_query) {
            Some(r) => r.iter().rposition(|&r| r != 0).unwrap_or(0),
            None => 0,
        };
        Visible { segment_len: s.segment_len, span: s.span, k_pos, reset, next: first_query, document }
    }

    /// The first visible keys of the next `out.len()` queries.
    pub(crate) fn fill(&mut self, out: &mut [usize]) {
        for lo in out {
            if self.reset.get(self.next).is_some_and(|&r| r != 0) {
                self.document = self.next;
            }
            let window = ((self.k_pos + self.next) / self.segment_len + 1).saturating_sub(self.span) * self.segment_len;
            *lo = window.saturating_sub(self.k_pos).max(self.document);
            self.next += 1;
        }
    }
}

/// Tiles of 64 rows of a dense `[n, d]` matrix, each transposed to `[d, 64]`; the last one filled up with 0.
pub(crate) fn pack_transposed(x: &[f32], n: usize, d: usize, out: &mut [f32]) {
    for (tile, out) in x[..n * d].chunks(TILE * d).zip(out.chunks_exact_mut(TILE * d)) {
        let rows = tile.len() / d;
        if rows < TILE {
            out.fill(0.0);
        }
        transpose(tile, d, rows, d, out, TILE);
    }
}

/// The keys of one head, turned and packed as by [`pack_transposed`]; `turned` holds [`TILE`] rows.
pub(crate) fn pack_keys(
    rot: &Rotation,
    k: &[f32],
    stride: usize,
    n: usize,
    d: usize,
    turned: &mut [f32],
    out: &mut [f32],
) {
    for (i, out) in out.chunks_exact_mut(TILE * d).enumerate() {
        let rows = TILE.min(n - i * TILE);
        rot.rows(&k[i * TILE * stride..], stride, rows, d, i * TILE, false, 1.0, turned);
        pack_transposed(turned, rows, d, out);
    }
}

/// Floats of [`pack_transposed`]'s result.
pub(crate) fn packed_len(n: usize, d: usize) -> usize {
    n.next_multiple_of(TILE) * d
}

/// Where 16 queries and the keys of a tile meet.
struct Meeting {
    /// Columns of the tile, multiples of 16.
    from: usize,
    to: usize,
}

/// None if none of the queries sees a key of the tile at `k0`. `lo` are their first visible keys, `last`
/// the key index of the last one.
fn meet(lo: &[usize], last: usize, k0: usize) -> Option<Meeting> {
    let (from, to) = (lo[0].max(k0), (last + 1).min(k0 + TILE));
    (from < to).then(|| Meeting { from: (from - k0) / PANEL * PANEL, to: (to - k0).next_multiple_of(PANEL) })
}

/// Scratch of [`forward`].
pub(crate) fn forward_scratch(d: usize) -> usize {
    TILE * d + PANEL * TILE
}

/// A_dot of some queries, the first of which is key `first`, into the dense `out [n, Dv]`. The log-sum-exp
/// of their scores goes into `lse [n, 2]` as two terms, the largest score and log Σ exp(score − largest):
/// their rounded sum would cost digits when scores are large. `kt` are the turned keys, packed; `v [Tk, Dv]` is dense.
pub(crate) fn forward(
    rot: &Rotation,
    mut visible: Visible,
    (q, stride, first): (&[f32], usize, usize),
    kt: &[f32],
    v: &[f32],
    (d, dv, tk): (usize, usize, usize),
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let (qs, scores) = scratch.split_at_mut(TILE * d);
    let scale = 1.0 / (d as f32).sqrt();
    let n = lse.len() / 2;
    let mut lo = [0; TILE];
    for r0 in (0..n).step_by(TILE) {
        let rows = TILE.min(n - r0);
        rot.rows(&q[r0 * stride..], stride, rows, d, first + r0, false, scale, qs);
        visible.fill(&mut lo[..rows]);
        let out = &mut out[r0 * dv..(r0 + rows) * dv];
        out.fill(0.0);
        let (mut m, mut sum) = ([f32::NEG_INFINITY; TILE], [0.0; TILE]);
        for k0 in (lo[0] / TILE * TILE..first + r0 + rows).step_by(TILE) {
            let kt = &kt[k0 * d..(k0 + TILE) * d];
            for p in (0..rows).step_by(PANEL) {
                let end = (p + PANEL).min(rows);
                let query = first + r0 + p;
                let Some(at) = meet(&lo[p..end], query + (end - p) - 1, k0) else { continue };
                let (pr, keys) = (end - p, at.to.min(tk - k0) - at.from);
                product(
                    [pr, d, at.to - at.from],
                    &mut scores[at.from..],
                    TILE,
                    false,
                    &qs[p * d..],
                    (d, 1),
                    &kt[at.from..],
                    TILE,
                );
                let out = &mut out[p * dv..end * dv];
                let (m, sum) = (&mut m[p..p + PANEL], &mut sum[p..p + PANEL]);
                softmax(scores, (at.from, at.to, k0, query), &lo[p..end], m, sum, out);
                product([pr, keys, dv], out, dv, true, &scores[at.from..], (TILE, 1), &v[(k0 + at.from) * dv..], dv);
            }
        }
        finish(out, dv, &m[..rows], &sum[..rows], &mut lse[2 * r0..2 * (r0 + rows)]);
    }
}

/// Scores of up to 16 rows → exp(score − m), 0 where the key is not visible; running maximum, sum and output
/// follow. `m` and `sum` have 16 elements, as many as rows count.
///
/// What goes across a row (maximum and sum) is taken lane by lane, 16 rows are turned, and the rest is vertical.
fn softmax(
    scores: &mut [f32],
    (from, to, k0, query): (usize, usize, usize, usize),
    lo: &[usize],
    m: &mut [f32],
    sum: &mut [f32],
    out: &mut [f32],
) {
    let (mut lanes, mut turned, mut fade) = ([0.0; PANEL * PANEL], [0.0; PANEL * PANEL], [0.0; PANEL]);
    maxima(scores, from, to, k0, query, lo, &mut lanes);
    transpose(&lanes, PANEL, PANEL, PANEL, &mut turned, PANEL);
    raise(&turned, m, &mut fade);
    exponentials(scores, from, to, lo.len(), m, &mut lanes);
    transpose(&lanes, PANEL, PANEL, PANEL, &mut turned, PANEL);
    let faded = add_up(&turned, &fade, sum);
    if faded {
        fade_rows(out, out.len() / lo.len(), &fade);
    }
}

crate::simd! {
/// −∞ where the key is not visible; `out [16, 16]`: maxima of each row, lane by lane.
fn maxima(scores: &mut [f32], from: usize, to: usize, k0: usize, query: usize, lo: &[usize], out: &mut [f32]) {
    let out = out.as_chunks_mut::<PANEL>().0;
    for i in 0..lo.len() {
        let row = &mut scores[i * TILE + from..i * TILE + to];
        // visible: columns a..b of the row
        let a = lo[i].saturating_sub(k0 + from).min(row.len());
        let b = (query + i + 1).saturating_sub(k0 + from).clamp(a, row.len());
        row[..a].fill(f32::NEG_INFINITY);
        row[b..].fill(f32::NEG_INFINITY);
        out[i] = lanes::each_folded(row, f32::NEG_INFINITY, |x| x, |m, x| if x > m { x } else { m });
    }
    out[lo.len()..].fill([f32::NEG_INFINITY; PANEL]);
}
/// Running maxima `m` of 16 rows from their lanes, `x [16 lanes, 16 rows]`; `fade` = exp(old − new).
fn raise(x: &[f32], m: &mut [f32], fade: &mut [f32]) {
    let (m, fade) = (m.first_chunk_mut::<PANEL>().unwrap(), fade.first_chunk_mut::<PANEL>().unwrap());
    let mut top = *m;
    for x in x.as_chunks::<PANEL>().0 {
        lanes::one_register_at_a_time();
        let x = *x;
        for i in 0..PANEL {
            top[i] = if x[i] > top[i] { x[i] } else { top[i] };
        }
    }
    for i in 0..PANEL {
        // a row that has seen nothing yet: −∞ − −∞
        fade[i] = if top[i] == m[i] { 1.0 } else { exp(m[i] - top[i]) };
    }
    *m = top;
}
/// Scores → exp(score − m); `out [16, 16]`: their sums, lane by lane.
fn exponentials(scores: &mut [f32], from: usize, to: usize, rows: usize, m: &[f32], out: &mut [f32]) {
    let out = out.as_chunks_mut::<PANEL>().0;
    for i in 0..rows {
        let top = if m[i] == f32::NEG_INFINITY { 0.0 } else { m[i] };
        let row = &mut scores[i * TILE + from..i * TILE + to];
        out[i] = lanes::each_folded(row, 0.0, |x| exp(x - top), |s, x| s + x);
    }
}
/// Running sums of 16 rows from their lanes; whether any row fades.
fn add_up(x: &[f32], fade: &[f32], sum: &mut [f32]) -> bool {
    let (sum, fade) = (sum.first_chunk_mut::<PANEL>().unwrap(), fade.first_chunk::<PANEL>().unwrap());
    let mut new = [0.0; PANEL];
    for x in x.as_chunks::<PANEL>().0 {
        lanes::one_register_at_a_time();
        let x = *x;
        for i in 0..PANEL {
            new[i] += x[i];
        }
    }
    let mut faded = false;
    for i in 0..PANEL {
        sum[i] = sum[i].mul_add(fade[i], new[i]);
        faded |= fade[i] != 1.0;
    }
    faded
}
fn fade_rows(out: &mut [f32], dv: usize, fade: &[f32]) {
    for (row, &fade) in out.chunks_exact_mut(dv).zip(fade) {
        lanes::each(row, |x| x * fade);
    }
}
fn finish(out: &mut [f32], dv: usize, m: &[f32], sum: &[f32], lse: &mut [f32]) {
    for i in 0..m.len() {
        let s = 1.0 / sum[i];
        lanes::each(&mut out[i * dv..(i + 1) * dv], |x| x * s);
        lse[2 * i] = m[i];
        lse[2 * i + 1] = sum[i].ln();
    }
}
/// `p`: scores → probabilities, `ds`: their gradients → those of the scores (§9 b, the scale left to q).
fn softmax_backward(p: &mut [f32], ds: &mut [f32], from: usize, to: usize, k0: usize, query: usize, lo: &[usize], lse: &[f32], delta: &[f32]) {
    for i in 0..lo.len() {
        let (p, ds) = (&mut p[i * TILE..(i + 1) * TILE], &mut ds[i * TILE..(i + 1) * TILE]);
        let a = lo[i].saturating_sub(k0).min(TILE);
        let b = (query + i + 1).saturating_sub(k0).min(TILE);
        p[..from].fill(0.0);
        ds[..from].fill(0.0);
        p[to..].fill(0.0);
        ds[to..].fill(0.0);
        if a >= b {
            p.fill(0.0);
            ds.fill(0.0);
            continue;
        }
        let (a, b, p, ds) = (a - from.min(a), b - from, &mut p[from..to], &mut ds[from..to]);
        p[..a].fill(f32::NEG_INFINITY);
        p[b..].fill(f32::NEG_INFINITY);
        let (top, rest, delta) = (lse[2 * i], lse[2 * i + 1], delta[i]);
        lanes::both(p, ds, |s, dp| {
            let p = exp((s - top) - rest);
            (p, p * (dp - delta))
        });
    }
}
/// `dots_i = Σ_j x_ij y_ij` for dense rows, in the order in which [`product`] adds: where one key has all the
/// weight, `<dA_dot, A_dot>` then cancels `<dA_dot, v>` exactly, however large the scores are.
pub(crate) fn chained_dots(d: usize, x: &[f32], y: &[f32], dots: &mut [f32]) {
    const ROWS: usize = 4;
    let (fours, rest) = dots.as_chunks_mut::<ROWS>();
    let done = fours.len() * ROWS;
    for (i, dots) in fours.iter_mut().enumerate() {
        let (x, y) = (&x[i * ROWS * d..(i + 1) * ROWS * d], &y[i * ROWS * d..(i + 1) * ROWS * d]);
        // four chains at once hide the latency of each
        *dots = [0.0; ROWS];
        for j in 0..d {
            for r in 0..ROWS {
                dots[r] = x[r * d + j].mul_add(y[r * d + j], dots[r]);
            }
        }
    }
    for (i, dot) in rest.iter_mut().enumerate() {
        let row = (done + i) * d..(done + i + 1) * d;
        *dot = x[row.clone()].iter().zip(&y[row]).fold(0.0, |s, (x, y)| x.mul_add(*y, s));
    }
}
}

/// Scratch of [`backward`].
pub(crate) fn backward_scratch(d: usize) -> usize {
    2 * TILE * d + 2 * TILE * TILE
}

/// What the backward pass needs of the keys and values of one head.
pub(crate) struct Keys<'a> {
    /// Turned, dense `[Tk, D]`.
    pub k: &'a [f32],
    /// The same, packed.
    pub kt: &'a [f32],
    /// Values, packed.
    pub vt: &'a [f32],
}

/// §9 b for one query head: `dout [n, Dv]` is dense, `delta_i = <dout_i, A_dot_i>`. Writes the dense
/// `dq [n, D]`; adds to the dense `dk [Tk, D]`, the gradient of the turned keys, and `dv [Tk, Dv]`.
pub(crate) fn backward(
    rot: &Rotation,
    mut visible: Visible,
    (q, stride, first): (&[f32], usize, usize),
    keys: &Keys,
    (d, dv, tk): (usize, usize, usize),
    lse: &[f32],
    dout: &[f32],
    delta: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dval: &mut [f32],
    scratch: &mut [f32],
) {
    let (qs, rest) = scratch.split_at_mut(TILE * d);
    let (dqs, rest) = rest.split_at_mut(TILE * d);
    let (p, ds) = rest.split_at_mut(TILE * TILE);
    let scale = 1.0 / (d as f32).sqrt();
    let n = lse.len() / 2;
    let mut lo = [0; TILE];
    for r0 in (0..n).step_by(TILE) {
        let rows = TILE.min(n - r0);
        rot.rows(&q[r0 * stride..], stride, rows, d, first + r0, false, scale, qs);
        visible.fill(&mut lo[..rows]);
        dqs[..rows * d].fill(0.0);
        let dout = &dout[r0 * dv..(r0 + rows) * dv];
        for k0 in (lo[0] / TILE * TILE..first + r0 + rows).step_by(TILE) {
            let (kt, vt) = (&keys.kt[k0 * d..(k0 + TILE) * d], &keys.vt[k0 * dv..(k0 + TILE) * dv]);
            // first row that sees anything of each 16 keys
            let mut seen = [rows; TILE / PANEL];
            for r in (0..rows).step_by(PANEL) {
                let end = (r + PANEL).min(rows);
                let query = first + r0 + r;
                let (p, ds) = (&mut p[r * TILE..end * TILE], &mut ds[r * TILE..end * TILE]);
                let Some(at) = meet(&lo[r..end], query + (end - r) - 1, k0) else {
                    p.fill(0.0);
                    ds.fill(0.0);
                    continue;
                };
                let (pr, cols, keys_met) = (end - r, at.to - at.from, at.to.min(tk - k0) - at.from);
                product([pr, d, cols], &mut p[at.from..], TILE, false, &qs[r * d..], (d, 1), &kt[at.from..], TILE);
                product(
                    [pr, dv, cols],
                    &mut ds[at.from..],
                    TILE,
                    false,
                    &dout[r * dv..],
                    (dv, 1),
                    &vt[at.from..],
                    TILE,
                );
                let of = r0 + r..r0 + end;
                softmax_backward(
                    p,
                    ds,
                    at.from,
                    at.to,
                    k0,
                    query,
                    &lo[r..end],
                    &lse[2 * of.start..2 * of.end],
                    &delta[of],
                );
                let k = &keys.k[(k0 + at.from) * d..];
                product([pr, keys_met, d], &mut dqs[r * d..], d, true, &ds[at.from..], (TILE, 1), k, d);
                for s in &mut seen[at.from / PANEL..at.to / PANEL] {
                    *s = (*s).min(r);
                }
            }
            let mut c = 0;
            while c < TILE / PANEL {
                let (from, mut to) = (c, c + 1);
                while to < TILE / PANEL && seen[to] == seen[from] {
                    to += 1;
                }
                c = to;
                let (r, j, j_end) = (seen[from], from * PANEL, (to * PANEL).min(tk - k0));
                if r == rows || j >= j_end {
                    continue;
                }
                let (m, k) = (j_end - j, rows - r);
                let (p, ds) = (&p[r * TILE + j..], &ds[r * TILE + j..]);
                product([m, k, dv], &mut dval[(k0 + j) * dv..], dv, true, p, (1, TILE), &dout[r * dv..], dv);
                product([m, k, d], &mut dk[(k0 + j) * d..], d, true, ds, (1, TILE), &qs[r * d..], d);
            }
        }
        rot.rows(dqs, d, rows, d, first + r0, true, scale, &mut dq[r0 * d..(r0 + rows) * d]);
    }
}
