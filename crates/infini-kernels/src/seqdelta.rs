//! The sequential delta rule with decay (6) on a chunk of at most [`CHUNK`] tokens, in its WY form (7), (8),
//! and the gradient of that form, §9 e. A chunk may be any part of a segment.

use crate::cells::{CHUNK, row_dots, scale_rows};
use crate::lanes;
use crate::math::{dot, exp};
use crate::par::Carve;
use crate::tile::{product, transpose};

/// The tokens of a chunk.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    /// Normalised keys `[n, F]`.
    pub k: &'a [f32],
    /// Values: rows of width Dv, and their distance.
    pub v: (&'a [f32], usize),
    /// Write strengths `[n]`.
    pub w: &'a [f32],
    /// Decays `[n]`, in (0, 1].
    pub a: &'a [f32],
}

/// Floats of scratch of [`write`].
pub(crate) fn write_scratch(f: usize, dv: usize) -> usize {
    CHUNK * (4 + f + 3 * CHUNK + 2 * dv)
}

/// Floats of scratch of [`backward`].
pub(crate) fn backward_scratch(f: usize, dv: usize) -> usize {
    write_scratch(f, dv) + CHUNK * (3 * dv + 2 + CHUNK) + 2 * f * dv
}

/// The matrices of (7), each a row-major part of scratch.
struct Wy<'a> {
    /// g_i.
    g: &'a mut [f32],
    /// g_N / g_i.
    rest: &'a mut [f32],
    /// w_i g_i.
    wg: &'a mut [f32],
    /// g_i/g_j <k_i, k_j> below the diagonal, 0 elsewhere, `[n, CHUNK]`.
    kk: &'a mut [f32],
    /// g_i/g_j below the diagonal, 0 elsewhere.
    decay: &'a mut [f32],
    /// −L of (7).
    minus_l: &'a mut [f32],
    /// K M `[n, Dv]`.
    km: &'a mut [f32],
    /// U `[n, Dv]`.
    u: &'a mut [f32],
}

/// (7): everything up to U, from the state `m [F, Dv]` before the chunk.
fn solve<'a>(t: &Tokens, f: usize, dv: usize, m: &[f32], c: &mut Carve<'a>) -> Wy<'a> {
    let n = t.w.len();
    let (g, rest, wg) = (c.take(CHUNK), c.take(CHUNK), c.take(CHUNK));
    let (kk, decay, minus_l) = (c.take(CHUNK * CHUNK), c.take(CHUNK * CHUNK), c.take(CHUNK * CHUNK));
    let (kt, km, u) = (c.take(CHUNK * f), c.take(CHUNK * dv), c.take(CHUNK * dv));
    let lg = c.take(CHUNK);
    // sums of logarithms in f64: a long decay must not drift
    let mut sum = 0.0f64;
    for i in 0..n {
        sum += f64::from(t.a[i].max(f32::MIN_POSITIVE)).ln();
        lg[i] = sum as f32;
    }
    transpose(t.k, f, n, f, kt, CHUNK);
    product([n, f, n], kk, CHUNK, false, t.k, (f, 1), kt, CHUNK);
    triangles(&lg[..n], t.w, g, rest, wg, kk, decay, minus_l);
    product([n, f, dv], km, dv, false, t.k, (f, 1), m, dv);
    right_side(t.v.0, t.v.1, dv, t.w, wg, km, u);
    substitute(n, dv, minus_l, u);
    Wy { g, rest, wg, kk, decay, minus_l, km, u }
}

/// (8): `m` becomes the state after the chunk.
pub(crate) fn write(t: &Tokens, f: usize, dv: usize, m: &mut [f32], scratch: &mut [f32]) {
    let n = t.w.len();
    if n == 0 {
        return;
    }
    let mut c = Carve(scratch);
    let wy = solve(t, f, dv, m, &mut c);
    let last = wy.g[n - 1];
    m.iter_mut().for_each(|x| *x *= last);
    scale_rows(dv, &wy.rest[..n], 1.0, &wy.u[..n * dv], wy.km);
    product([f, n, dv], m, dv, true, t.k, (1, f), wy.km, dv);
}

/// Gradients of a chunk.
pub(crate) struct Out<'a> {
    /// Of the normalised keys `[n, F]`.
    pub dk: &'a mut [f32],
    /// Of v `[n, Dv]`.
    pub dv: &'a mut [f32],
    /// Of w `[n]`.
    pub dw: &'a mut [f32],
    /// Of a `[n]`.
    pub da: &'a mut [f32],
}

/// §9 e: from the state `m` before the chunk and the gradient `g [F, Dv]` of the state after it, which
/// becomes that of `m`.
pub(crate) fn backward(t: &Tokens, f: usize, dv: usize, m: &[f32], g: &mut [f32], out: &mut Out, scratch: &mut [f32]) {
    let n = t.w.len();
    if n == 0 {
        return;
    }
    let mut c = Carve(scratch);
    let wy = solve(t, f, dv, m, &mut c);
    let (du, ut, x) = (c.take(CHUNK * dv), c.take(CHUNK * dv), c.take(CHUNK * CHUNK));
    let (tmp, dlg, s) = (c.take(CHUNK * dv), c.take(CHUNK), c.take(CHUNK));
    let (mt, gt) = (c.take(f * dv), c.take(f * dv));
    transpose(m, dv, f, dv, mt, f);
    transpose(g, dv, f, dv, gt, f);
    let last = wy.g[n - 1];
    // M' = g_N M + Kdᵀ U
    product([n, f, dv], tmp, dv, false, t.k, (f, 1), g, dv);
    scale_rows(dv, &wy.rest[..n], 1.0, &tmp[..n * dv], du);
    scale_rows(dv, &wy.rest[..n], 1.0, &wy.u[..n * dv], tmp);
    product([n, dv, f], out.dk, f, false, tmp, (dv, 1), gt, f);
    row_dots(dv, &du[..n * dv], wy.u, &mut dlg[..n]);
    let total: f32 = dlg[..n].iter().sum();
    dlg[..n].iter_mut().for_each(|x| *x = -*x);
    dlg[n - 1] += total + last * inner(g, m);
    g.iter_mut().for_each(|x| *x *= last);
    // U = (I + L)⁻¹ R
    substitute_back(n, dv, wy.minus_l, du);
    let dr = du;
    transpose(wy.u, dv, n, dv, ut, CHUNK);
    product([n, dv, n], x, CHUNK, false, dr, (dv, 1), ut, CHUNK);
    triangle_gradients(t.w, wy.decay, wy.kk, wy.minus_l, x, out.dw, dlg, s);
    // x holds X now: dK += (X + Xᵀ) K
    product([n, n, f], out.dk, f, true, x, (CHUNK, 1), t.k, f);
    product([n, n, f], out.dk, f, true, x, (1, CHUNK), t.k, f);
    // R = diag(w) V − diag(w g) K M
    rest_gradients(t.v.0, t.v.1, dv, t.w, wy.g, wy.wg, wy.km, dr, out.dv, tmp, out.dw, dlg);
    product([n, dv, f], out.dk, f, true, tmp, (dv, 1), mt, f);
    product([f, n, dv], g, dv, true, t.k, (1, f), tmp, dv);
    let mut sum = 0.0;
    for i in (0..n).rev() {
        sum += dlg[i];
        out.da[i] = sum / t.a[i].max(f32::MIN_POSITIVE);
    }
}

/// Rows that a substitution takes together; what they owe to the others is a product.
const BLOCK: usize = 16;

/// `x [n, Dv] ← (I + L)⁻¹ x`.
fn substitute(n: usize, dv: usize, minus_l: &[f32], x: &mut [f32]) {
    for i in (0..n).step_by(BLOCK) {
        let rows = BLOCK.min(n - i);
        let (done, block) = x.split_at_mut(i * dv);
        product([rows, i, dv], block, dv, true, &minus_l[i * CHUNK..], (CHUNK, 1), done, dv);
        substitute_block(rows, dv, &minus_l[i * CHUNK + i..], block);
    }
}

/// `x [n, Dv] ← (I + L)⁻ᵀ x`.
fn substitute_back(n: usize, dv: usize, minus_l: &[f32], x: &mut [f32]) {
    for i in (0..n).step_by(BLOCK).rev() {
        let rows = BLOCK.min(n - i);
        let (head, done) = x.split_at_mut((i + rows) * dv);
        let block = &mut head[i * dv..];
        if i + rows < n {
            let owed = &minus_l[(i + rows) * CHUNK + i..];
            product([rows, n - i - rows, dv], block, dv, true, owed, (1, CHUNK), done, dv);
        }
        substitute_back_block(rows, dv, &minus_l[i * CHUNK + i..], block);
    }
}

crate::simd! {
fn inner(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y)
}
fn triangles(lg: &[f32], w: &[f32], g: &mut [f32], rest: &mut [f32], wg: &mut [f32], kk: &mut [f32], decay: &mut [f32], minus_l: &mut [f32]) {
    let n = lg.len();
    for i in 0..n {
        g[i] = exp(lg[i]);
        rest[i] = exp(lg[n - 1] - lg[i]);
        wg[i] = w[i] * g[i];
        let row = i * CHUNK..i * CHUNK + n;
        let (kk, decay, l) = (&mut kk[row.clone()], &mut decay[row.clone()], &mut minus_l[row]);
        for j in 0..n {
            // ratios as one exponential: both products may have underflowed
            decay[j] = if j < i { exp(lg[i] - lg[j]) } else { 0.0 };
            kk[j] *= decay[j];
            l[j] = -w[i] * kk[j];
        }
    }
}
/// R of (7).
fn right_side(v: &[f32], stride: usize, dv: usize, w: &[f32], wg: &[f32], km: &[f32], out: &mut [f32]) {
    for i in 0..w.len() {
        let (v, km) = (&v[i * stride..i * stride + dv], &km[i * dv..(i + 1) * dv]);
        lanes::update2(&mut out[i * dv..(i + 1) * dv], v, km, |_, v, km| w[i] * v - wg[i] * km);
    }
}
/// `x ← (I + L)⁻¹ x` inside one block.
fn substitute_block(rows: usize, dv: usize, minus_l: &[f32], x: &mut [f32]) {
    for i in 1..rows {
        let (done, row) = x.split_at_mut(i * dv);
        for (u, &l) in done.chunks_exact(dv).zip(&minus_l[i * CHUNK..]) {
            lanes::update(&mut row[..dv], u, |x, u| u.mul_add(l, x));
        }
    }
}
/// `x ← (I + L)⁻ᵀ x` inside one block.
fn substitute_back_block(rows: usize, dv: usize, minus_l: &[f32], x: &mut [f32]) {
    for i in (0..rows).rev() {
        let (row, done) = x[i * dv..rows * dv].split_at_mut(dv);
        for (m, r) in done.chunks_exact(dv).enumerate() {
            let l = minus_l[(i + 1 + m) * CHUNK + i];
            lanes::update(row, r, |x, r| r.mul_add(l, x));
        }
    }
}
/// x = dR Uᵀ becomes X; dw = Σ_j dL_ij g_i/g_j <k_i, k_j>; dlg += rowsum(dL L) − colsum(dL L).
fn triangle_gradients(w: &[f32], decay: &[f32], kk: &[f32], minus_l: &[f32], x: &mut [f32], dw: &mut [f32], dlg: &mut [f32], columns: &mut [f32]) {
    let n = w.len();
    columns[..n].fill(0.0);
    for i in 0..n {
        let row = i * CHUNK..i * CHUNK + n;
        let (decay, kk, l, x) = (&decay[row.clone()], &kk[row.clone()], &minus_l[row.clone()], &mut x[row]);
        dw[i] = -dot(x, kk);
        dlg[i] += dot(x, l);
        for j in 0..n {
            columns[j] += x[j] * l[j];
            x[j] *= -w[i] * decay[j];
        }
    }
    for j in 0..n {
        dlg[j] -= columns[j];
    }
}
/// dV = w dR; dw += dR.(V − g K M); dlg −= w g dR.(K M); `tmp` = −w g dR.
fn rest_gradients(v: &[f32], stride: usize, dv: usize, w: &[f32], g: &[f32], wg: &[f32], km: &[f32], dr: &[f32], out: &mut [f32], tmp: &mut [f32], dw: &mut [f32], dlg: &mut [f32]) {
    for i in 0..w.len() {
        let row = i * dv..(i + 1) * dv;
        let (v, km, dr) = (&v[i * stride..i * stride + dv], &km[row.clone()], &dr[row.clone()]);
        let along = dot(dr, km);
        dw[i] += dot(dr, v) - g[i] * along;
        dlg[i] -= wg[i] * along;
        lanes::map(&mut out[row.clone()], dr, |dr| w[i] * dr);
        lanes::map(&mut tmp[row], dr, |dr| -wg[i] * dr);
    }
}
}
