//! The memory of one batch row and key/value head: reads, writes and their gradients on chunks of at most
//! [`CHUNK`] rows. (3)–(5) and §9 c, d; the sequential rule is in [`seqdelta`](crate::seqdelta).

use crate::features;
use crate::lanes;
use crate::math::dot;
use crate::memory::{State, StateMut};
use crate::settings::{Features, Rule};
use crate::tile::product;

/// Rows taken together.
pub(crate) const CHUNK: usize = 64;

/// What a memory is, without its state.
#[derive(Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub rule: Rule,
    pub features: Features,
    pub d: usize,
    pub f: usize,
    pub dv: usize,
    /// Null slot.
    pub c: f32,
    /// `[D, Fw]` of the softmax pair.
    pub fmap_w: Option<&'a [f32]>,
}

impl Cell<'_> {
    /// φ of `n` rows.
    pub fn phi(&self, x: &[f32], stride: usize, n: usize, phi: &mut [f32]) {
        features::forward(self.features, x, stride, n, self.d, self.fmap_w, phi);
    }

    /// (3): answers to `n` rows of `phi` from a state into the dense `out [n, Dv]`; `inv_den [n]` is
    /// 1/den, 0 where guarded (1 for the sequential rule).
    pub fn read(&self, phi: &[f32], n: usize, state: State, inv_den: &mut [f32], out: &mut [f32]) {
        product([n, self.f, self.dv], out, self.dv, false, phi, (self.f, 1), state.m, self.dv);
        if self.rule == Rule::SeqDelta {
            inv_den[..n].fill(1.0);
        } else {
            normalise(&phi[..n * self.f], state.z, self.c, self.dv, &mut inv_den[..n], &mut out[..n * self.dv]);
        }
    }

    /// `inv_den` of [`Cell::read`] alone.
    pub fn inverse_denominators(&self, phi: &[f32], state: State, inv_den: &mut [f32]) {
        if self.rule == Rule::SeqDelta {
            inv_den.fill(1.0);
        } else {
            denominators(&phi[..inv_den.len() * self.f], state.z, self.c, inv_den);
        }
    }

    /// §9 c for `n` rows: `u [n, Dv]` comes in as the gradient of the answers and leaves as u_t. Adds to
    /// the gradient of the state and of c; `dphi [n, F]` is overwritten. `mt` is Mᵀ `[Dv, F]`.
    pub fn read_backward(
        &self,
        n: usize,
        phi: &[f32],
        answers: &[f32],
        inv_den: &[f32],
        state: State,
        mt: &[f32],
        u: &mut [f32],
        e: &mut [f32],
        dphi: &mut [f32],
        dstate: &mut StateMut,
        dc: &mut f64,
    ) {
        let (f, dv) = (self.f, self.dv);
        if self.rule != Rule::SeqDelta {
            *dc -= f64::from(divide(dv, inv_den, &answers[..n * dv], &mut u[..n * dv], &mut e[..n]));
        }
        product([n, dv, f], dphi, f, false, u, (dv, 1), mt, f);
        product([f, n, dv], dstate.m, dv, true, phi, (1, f), u, dv);
        if self.rule != Rule::SeqDelta {
            add_outer(f, -1.0, &e[..n], state.z, &mut dphi[..n * f]);
            add_sum(f, -1.0, &e[..n], &phi[..n * f], dstate.z);
        }
    }

    /// (4), (5) for `n` rows: adds to `new` what they write on `old`. `v` are rows of width Dv, `w [n]`.
    pub fn write(
        &self,
        n: usize,
        phi: &[f32],
        v: (&[f32], usize),
        w: &[f32],
        old: State,
        new: &mut StateMut,
        inv_den: &mut [f32],
        values: &mut [f32],
    ) {
        let (f, dv) = (self.f, self.dv);
        if self.rule == Rule::Delta {
            self.read(phi, n, old, inv_den, values);
            weighted_rest(v.0, v.1, dv, w, values);
        } else {
            weighted(v.0, v.1, dv, w, values);
        }
        product([f, n, dv], new.m, dv, true, phi, (1, f), values, dv);
        add_sum(f, 1.0, w, &phi[..n * f], new.z);
    }

    /// §9 d for `n` rows of a linear or delta write on `old`. `up` is the gradient of the state after the
    /// write and `gt` = Gᵀ of it, `mt` = Mᵀ of `old`; `b` holds what comes out.
    pub fn write_backward(
        &self,
        n: usize,
        phi: &[f32],
        v: (&[f32], usize),
        w: &[f32],
        old: State,
        mt: &[f32],
        up: State,
        gt: &[f32],
        dstate: &mut StateMut,
        dc: &mut f64,
        b: &mut WriteBuffers,
    ) {
        let (f, dv) = (self.f, self.dv);
        let (g, h) = (up.m, up.z);
        // y_t = φ_t G
        product([n, f, dv], b.y, dv, false, phi, (f, 1), g, dv);
        if self.rule == Rule::Delta {
            self.read(phi, n, old, b.inv_den, b.answers);
            // dr_t = −w_t y_t
            scale_rows(dv, w, -1.0, &b.y[..n * dv], b.u);
            self.read_backward(n, phi, b.answers, b.inv_den, old, mt, b.u, b.e, b.dphi, dstate, dc);
            rest(v.0, v.1, dv, &mut b.answers[..n * dv]);
        } else {
            b.dphi[..n * f].fill(0.0);
            copy_rows(v.0, v.1, dv, &mut b.answers[..n * dv]);
        }
        // answers now hold d_t = v_t − r_t
        row_dots(dv, &b.y[..n * dv], b.answers, b.dw);
        add_dots(f, &phi[..n * f], h, b.dw);
        scale_rows(dv, w, 1.0, &b.answers[..n * dv], b.u);
        product([n, dv, f], b.dphi, f, true, b.u, (dv, 1), gt, f);
        add_outer(f, 1.0, w, h, &mut b.dphi[..n * f]);
        // dv_t = w_t y_t
        scale_rows(dv, w, 1.0, &b.y[..n * dv], b.u);
    }
}

/// Scratch and results of [`Cell::write_backward`], each for [`CHUNK`] rows.
pub(crate) struct WriteBuffers<'a> {
    /// Scratch `[n, Dv]`.
    pub y: &'a mut [f32],
    /// Scratch `[n, Dv]`.
    pub answers: &'a mut [f32],
    /// Result: the gradient of v `[n, Dv]`.
    pub u: &'a mut [f32],
    /// Result: the gradient of φ(k) `[n, F]`.
    pub dphi: &'a mut [f32],
    /// Result: the gradient of w `[n]`.
    pub dw: &'a mut [f32],
    /// Scratch `[n]`.
    pub inv_den: &'a mut [f32],
    /// Scratch `[n]`.
    pub e: &'a mut [f32],
}

crate::simd! {
/// Rows of `out` divided by `φ·z + c`; 0 where that is not a positive normal number (D3).
fn normalise(phi: &[f32], z: &[f32], c: f32, dv: usize, inv_den: &mut [f32], out: &mut [f32]) {
    let f = z.len();
    for (i, inv) in inv_den.iter_mut().enumerate() {
        let den = dot(&phi[i * f..(i + 1) * f], z) + c;
        let row = &mut out[i * dv..(i + 1) * dv];
        if den <= f32::MIN_POSITIVE {
            *inv = 0.0;
            row.fill(0.0);
        } else {
            *inv = 1.0 / den;
            lanes::each(row, |x| x / den);
        }
    }
}
fn denominators(phi: &[f32], z: &[f32], c: f32, inv_den: &mut [f32]) {
    for (phi, inv) in phi.chunks_exact(z.len()).zip(inv_den) {
        let den = dot(phi, z) + c;
        *inv = if den <= f32::MIN_POSITIVE { 0.0 } else { 1.0 / den };
    }
}
/// `u_t ← u_t / den_t`, `e_t = <u_t, answer_t>`; returns Σ e.
fn divide(dv: usize, inv_den: &[f32], answers: &[f32], u: &mut [f32], e: &mut [f32]) -> f32 {
    let mut sum = 0.0;
    for (i, e) in e.iter_mut().enumerate() {
        let (u, inv) = (&mut u[i * dv..(i + 1) * dv], inv_den[i]);
        if inv == 0.0 {
            // a guarded row passes no gradient, whatever came in
            u.fill(0.0);
        } else {
            lanes::each(u, |x| x * inv);
        }
        *e = dot(u, &answers[i * dv..(i + 1) * dv]);
        sum += *e;
    }
    sum
}
/// `x_t += s e_t z`.
fn add_outer(f: usize, s: f32, e: &[f32], z: &[f32], x: &mut [f32]) {
    for (x, e) in x.chunks_exact_mut(f).zip(e) {
        let e = s * e;
        lanes::update(x, z, |x, z| z.mul_add(e, x));
    }
}
/// `z += s Σ_t e_t φ_t`.
fn add_sum(f: usize, s: f32, e: &[f32], phi: &[f32], z: &mut [f32]) {
    for (phi, e) in phi.chunks_exact(f).zip(e) {
        let e = s * e;
        lanes::update(z, phi, |z, x| x.mul_add(e, z));
    }
}
/// `out_t = w_t v_t`.
pub(crate) fn weighted(v: &[f32], stride: usize, dv: usize, w: &[f32], out: &mut [f32]) {
    for (i, &w) in w.iter().enumerate() {
        lanes::map(&mut out[i * dv..(i + 1) * dv], &v[i * stride..i * stride + dv], |v| w * v);
    }
}
/// `r_t ← w_t (v_t − r_t)`.
fn weighted_rest(v: &[f32], stride: usize, dv: usize, w: &[f32], r: &mut [f32]) {
    for (i, &w) in w.iter().enumerate() {
        lanes::update(&mut r[i * dv..(i + 1) * dv], &v[i * stride..i * stride + dv], |r, v| w * (v - r));
    }
}
/// `r_t ← v_t − r_t`.
fn rest(v: &[f32], stride: usize, dv: usize, r: &mut [f32]) {
    for (i, r) in r.chunks_exact_mut(dv).enumerate() {
        lanes::update(r, &v[i * stride..i * stride + dv], |r, v| v - r);
    }
}
/// Strided rows made dense.
pub(crate) fn copy_rows(v: &[f32], stride: usize, dv: usize, out: &mut [f32]) {
    for (i, o) in out.chunks_exact_mut(dv).enumerate() {
        lanes::map(o, &v[i * stride..i * stride + dv], |v| v);
    }
}
/// `out_t = s w_t x_t`.
pub(crate) fn scale_rows(dv: usize, w: &[f32], s: f32, x: &[f32], out: &mut [f32]) {
    for ((o, x), w) in out.chunks_exact_mut(dv).zip(x.chunks_exact(dv)).zip(w) {
        let w = s * w;
        lanes::map(o, x, |x| w * x);
    }
}
/// `out_t = <x_t, y_t>`.
pub(crate) fn row_dots(dv: usize, x: &[f32], y: &[f32], out: &mut [f32]) {
    for ((x, y), o) in x.chunks_exact(dv).zip(y.chunks_exact(dv)).zip(out) {
        *o = dot(x, y);
    }
}
/// `out_t += <x_t, h>`.
fn add_dots(f: usize, x: &[f32], h: &[f32], out: &mut [f32]) {
    for (x, o) in x.chunks_exact(f).zip(out) {
        *o += dot(x, h);
    }
}
}
