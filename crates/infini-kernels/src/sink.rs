//! Attention sinks: the first keys of a document, which every window sees besides its own (Xiao et al. 2023,
//! arXiv 2309.17453). Equation (26) of `docs/math.md`.
//!
//! The window's softmax is extended after the fact: its log-sum-exp is all that is needed of it. With the
//! extended log-sum-exp and output, [`local::backward`](crate::local::backward) gives the window's share of the
//! gradients and [`backward`] the sinks'.

use crate::flash::Rotation;
use crate::heads::{Heads, HeadsMut};
use crate::local::Angles;
use crate::math::{dot, exp};
use crate::matmul::axpy;
use crate::settings::Rope;

/// Queries of one window and the sinks they see.
#[derive(Clone, Copy, Debug)]
pub struct Sinks<'a> {
    /// `[B, Tq, H, D]`, un-rotated.
    pub q: Heads<'a>,
    /// Position of the first query; sink i has position i. Only differences matter.
    pub q_pos: usize,
    /// `[B, n, Hkv, D]`, un-rotated.
    pub k: Heads<'a>,
    /// `[B, n, Hkv, Dv]`.
    pub v: Heads<'a>,
    /// How many of the n each row sees, `[B]`: its first ones.
    pub visible: &'a [usize],
    /// Layout of the rotary positions,
    pub rope: Rope,
    /// and their angles, of at least `max(n, q_pos + Tq)` positions; none without them.
    pub angles: Option<Angles<'a>>,
}

/// Sizes, checked.
struct Sizes {
    b: usize,
    t: usize,
    h: usize,
    group: usize,
    n: usize,
    d: usize,
    dv: usize,
}

impl Sizes {
    fn new(x: &Sinks) -> Sizes {
        let ([b, t, h, d], [kb, n, hkv, kd], v) = (x.q.shape(), x.k.shape(), x.v.shape());
        assert!(kb == b && kd == d && v[..3] == [b, n, hkv], "sink: shapes of q, k, v differ");
        assert!(hkv > 0 && h % hkv == 0, "sink: {h} query heads over {hkv} key heads");
        assert!(x.visible.len() == b && x.visible.iter().all(|m| *m <= n), "sink: visible: [B] numbers up to {n}");
        Sizes { b, t, h, group: h / hkv, n, d, dv: v[3] }
    }

    fn rotation<'a>(&self, x: &Sinks<'a>) -> Rotation<'a> {
        Rotation::new(x.rope, x.angles, self.d, self.n.max(x.q_pos + self.t))
    }

    fn scale(&self) -> f32 {
        (self.d as f32).powf(-0.5)
    }
}

/// Floats of scratch.
///
/// # Panics
/// If the shapes do not fit together.
pub fn scratch_len(x: &Sinks) -> usize {
    let z = Sizes::new(x);
    2 * (z.t + z.n) * z.d + z.n + z.d.max(z.dv)
}

/// (26): extends the window's output `out [B, Tq, H, Dv]` and log-sum-exp `lse [B, Tq, H, 2]` (a view of
/// [`local::forward`](crate::local::forward)'s) by the sinks.
///
/// # Panics
/// If shapes do not fit together, or `scratch` is shorter than [`scratch_len`].
pub fn forward(x: &Sinks, out: &mut HeadsMut, lse: &mut HeadsMut, scratch: &mut [f32]) {
    let z = Sizes::new(x);
    assert_eq!((out.shape(), lse.shape()), ([z.b, z.t, z.h, z.dv], [z.b, z.t, z.h, 2]), "sink: shapes of out and lse");
    let rot = z.rotation(x);
    let (q, rest) = scratch.split_at_mut(z.t * z.d);
    let (k, rest) = rest.split_at_mut(z.n * z.d);
    let scores = &mut rest[..z.n];
    for (b, seen) in x.visible.iter().enumerate().filter(|(_, m)| **m > 0) {
        for h in 0..z.h {
            let (rows, stride) = x.q.head(b, h, 0);
            rot.rows(rows, stride, z.t, z.d, x.q_pos, false, z.scale(), q);
            if h % z.group == 0 {
                let (rows, stride) = x.k.head(b, h / z.group, 0);
                rot.rows(rows, stride, z.n, z.d, 0, false, 1.0, k);
            }
            for (t, q) in q.chunks_exact(z.d).enumerate() {
                let lse = lse.row_mut(b, t, h);
                let mut top = lse[0];
                for (s, k) in scores.iter_mut().zip(k.chunks_exact(z.d)).take(*seen) {
                    *s = dot(q, k);
                    top = top.max(*s);
                }
                let window = exp(lse[0] - top + lse[1]);
                let sum = scores[..*seen].iter().fold(window, |sum, s| sum + exp(s - top));
                *lse.as_mut_array::<2>().expect("two numbers") = [top, sum.ln()];
                let y = out.row_mut(b, t, h);
                let keep = window / sum;
                y.iter_mut().for_each(|y| *y *= keep);
                for (i, s) in scores[..*seen].iter().enumerate() {
                    axpy(exp(s - top) / sum, x.v.row(b, i, h / z.group), y);
                }
            }
        }
    }
}

/// The sinks' share of the gradients, added to `dq`, `dk` and `dv`; `out` and `lse` are [`forward`]'s, `dout` is
/// the gradient of `out`.
///
/// # Panics
/// As [`forward`].
pub fn backward(
    x: &Sinks,
    out: Heads,
    lse: Heads,
    dout: Heads,
    dq: &mut HeadsMut,
    dk: &mut HeadsMut,
    dv: &mut HeadsMut,
    scratch: &mut [f32],
) {
    let z = Sizes::new(x);
    for shape in [out.shape(), dout.shape()] {
        assert_eq!(shape, [z.b, z.t, z.h, z.dv], "sink: shape of out or dout");
    }
    assert_eq!(lse.shape(), [z.b, z.t, z.h, 2], "sink: shape of lse");
    let shapes = (dq.shape(), dk.shape(), dv.shape());
    assert_eq!(shapes, (x.q.shape(), x.k.shape(), x.v.shape()), "sink: shapes of the gradients");
    let rot = z.rotation(x);
    let (q, rest) = scratch.split_at_mut(z.t * z.d);
    let (k, rest) = rest.split_at_mut(z.n * z.d);
    let (gq, rest) = rest.split_at_mut(z.t * z.d);
    let (gk, row) = rest.split_at_mut(z.n * z.d);
    for (b, seen) in x.visible.iter().enumerate().filter(|(_, m)| **m > 0) {
        for h in 0..z.h {
            let n = h / z.group;
            let (rows, stride) = x.q.head(b, h, 0);
            rot.rows(rows, stride, z.t, z.d, x.q_pos, false, z.scale(), q);
            let (rows, stride) = x.k.head(b, n, 0);
            rot.rows(rows, stride, z.n, z.d, 0, false, 1.0, k);
            gq.fill(0.0);
            gk.fill(0.0);
            for t in 0..z.t {
                let (lse, dy) = (lse.row(b, t, h), dout.row(b, t, h));
                let delta = dot(dy, out.row(b, t, h));
                for i in 0..*seen {
                    let (at, to) = (t * z.d..(t + 1) * z.d, i * z.d..(i + 1) * z.d);
                    let p = exp(dot(&q[at.clone()], &k[to.clone()]) - lse[0] - lse[1]);
                    axpy(p, dy, dv.row_mut(b, i, n));
                    let ds = p * (dot(dy, x.v.row(b, i, n)) - delta);
                    axpy(ds, &k[to.clone()], &mut gq[at.clone()]);
                    axpy(ds, &q[at], &mut gk[to]);
                }
            }
            let row = &mut row[..z.d];
            for t in 0..z.t {
                rot.rows(&gq[t * z.d..], z.d, 1, z.d, x.q_pos + t, true, z.scale(), row);
                axpy(1.0, row, dq.row_mut(b, t, h));
            }
            for i in 0..*seen {
                rot.rows(&gk[i * z.d..], z.d, 1, z.d, i, true, 1.0, row);
                axpy(1.0, row, dk.row_mut(b, i, n));
            }
        }
    }
}
