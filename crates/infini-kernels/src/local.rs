//! Exact attention inside a window of one or two segments: (1), (2) of `docs/math.md`, with grouped
//! queries, rotary positions and document resets.
//!
//! One function serves a whole sequence and a stream: the keys are a buffer that starts at a segment
//! border, the queries are the newest of its tokens. Angles are relative to the first key, as only
//! differences of positions matter.

use crate::cells;
use crate::few;
use crate::flash::{self, Keys, Rotation, Visible};
use crate::heads::{Heads, HeadsMut};
use crate::par::{self, Carve, Shared};
use crate::settings::Settings;

/// Cosines and sines of the rotary angles, `[n, D/2]` each; row p belongs to position p after the first
/// key. To be made from f64 angles, see [`rope::Table`](crate::rope::Table).
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// Queries and the keys and values they may see.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// `[B, Tq, H, D]`, un-rotated.
    pub q: Heads<'a>,
    /// Absolute position of the first query.
    pub q_pos: usize,
    /// `[B, Tk, Hkv, D]`, un-rotated.
    pub k: Heads<'a>,
    /// `[B, Tk, Hkv, Dv]`.
    pub v: Heads<'a>,
    /// Absolute position of the first key: a multiple of the segment length, not behind `q_pos`. Keys
    /// before it do not exist.
    pub k_pos: usize,
    /// 1 at the first token of each new document, `[B, Tk]`.
    pub reset: Option<&'a [u8]>,
    /// Of at least `Tk` positions, unless the layout is [`Rope::None`](crate::Rope::None).
    pub angles: Option<Angles<'a>>,
}

/// Sizes of a window, checked.
#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    tq: usize,
    tk: usize,
    h: usize,
    hkv: usize,
    d: usize,
    dv: usize,
    /// Key index of the first query.
    first: usize,
}

impl Sizes {
    fn new(s: &Settings, w: &Window) -> Sizes {
        let ([b, tq, h, d], [kb, tk, hkv, kd], [vb, vt, vh, dv]) = (w.q.shape(), w.k.shape(), w.v.shape());
        assert!(kb == b && vb == b && vt == tk && vh == hkv && kd == d, "local: shapes of q, k, v differ");
        assert!(hkv > 0 && h % hkv == 0, "local: {h} query heads over {hkv} key heads");
        assert!(s.segment_len > 0 && s.span > 0, "local: segment_len and span must be positive");
        assert!(w.k_pos.is_multiple_of(s.segment_len), "local: k_pos {} is no multiple of {}", w.k_pos, s.segment_len);
        assert!(w.k_pos <= w.q_pos && w.q_pos + tq <= w.k_pos + tk, "local: queries outside the keys");
        assert!(w.reset.is_none_or(|r| r.len() >= b * tk), "local: reset: shorter than [B, Tk]");
        Sizes { b, tq, tk, h, hkv, d, dv, first: w.q_pos - w.k_pos }
    }

    fn empty(&self) -> bool {
        self.b * self.tq * self.h * self.d * self.dv == 0
    }

    /// Scores of one query are worth a second thread from about a million multiplications on.
    fn heavy(&self, s: &Settings) -> bool {
        let seen = self.tk.min(s.segment_len.saturating_mul(s.span));
        self.b * self.tq * self.h * seen * (self.d + self.dv) > 1 << 19
    }

    /// Whether the queries of a group are so few that [`few`] is the faster way.
    fn few(&self) -> bool {
        self.tq * self.group() <= few::QUERIES
    }

    fn group(&self) -> usize {
        self.h / self.hkv
    }

    fn forward_scratch(&self) -> usize {
        if self.few() {
            let n = self.tq * self.group();
            return few::scratch(n, self.d, self.tk) + n * (self.dv + 2);
        }
        flash::forward_scratch(self.d)
            + self.tk * (self.d + self.dv)
            + flash::packed_len(self.tk, self.d)
            + self.tq * (self.dv + 2)
    }

    fn backward_scratch(&self) -> usize {
        flash::backward_scratch(self.d)
            + 2 * self.tk * self.d
            + self.tk * self.dv
            + flash::packed_len(self.tk, self.d)
            + flash::packed_len(self.tk, self.dv)
            + self.tq * (self.d + 2 * self.dv + 1)
    }
}

fn resets(reset: Option<&[u8]>, b: usize, t: usize) -> &[u8] {
    reset.map_or(&[], |r| &r[b * t..(b + 1) * t])
}

/// Copies the rows of one head into a dense array.
pub(crate) fn gather(x: &Heads, b: usize, h: usize, out: &mut [f32]) {
    let (rows, stride) = x.head(b, h, 0);
    cells::copy_rows(rows, stride, x.shape()[3], out);
}

/// Floats of scratch for `workers` threads, enough for [`forward`] and [`backward`].
///
/// # Panics
/// If the window's shapes do not fit together.
pub fn scratch_len(s: &Settings, w: &Window, workers: usize) -> usize {
    let z = Sizes::new(s, w);
    z.forward_scratch().max(z.backward_scratch()) * workers.clamp(1, (z.b * z.hkv).max(1))
}

/// (1), (2): `out [B, Tq, H, Dv]` = A_dot, and into `lse [B, H, Tq, 2]` the log-sum-exp of the scores, which
/// [`backward`] needs: the largest score and the logarithm of the sum of exp(score − largest).
///
/// # Panics
/// If shapes or positions do not fit together, or `scratch` is shorter than [`scratch_len`] for one worker.
pub fn forward(s: &Settings, w: &Window, out: &mut HeadsMut, lse: Option<&mut [f32]>, scratch: &mut [f32]) {
    let z = Sizes::new(s, w);
    assert_eq!(out.shape(), [z.b, z.tq, z.h, z.dv], "local: shape of out");
    assert!(lse.as_ref().is_none_or(|l| l.len() >= 2 * z.b * z.h * z.tq), "local: lse: shorter than [B, H, Tq, 2]");
    if z.empty() {
        return;
    }
    let rot = Rotation::new(s.rope, w.angles, z.d, z.tk);
    let (out, lse, group) = (out.shared(), lse.map(Shared::new), z.h / z.hkv);
    par::run(z.b * z.hkv, scratch, z.forward_scratch(), z.heavy(s), &|task, scratch| {
        let (b, n) = (task / z.hkv, task % z.hkv);
        let mut c = Carve(scratch);
        let visible = Visible::new(s, w.k_pos, resets(w.reset, b, z.tk), z.first);
        if z.few() {
            let (rows, sums) = (c.take(group * z.tq * z.dv), c.take(2 * group * z.tq));
            let (k, v, sizes) = (w.k.head(b, n, 0), w.v.head(b, n, 0), (z.d, z.dv, z.tk));
            let q = |i| w.q.head(b, n * group + i, 0);
            few::forward(&rot, visible, q, (z.tq, z.first), k, v, sizes, rows, sums, c.0);
            for i in 0..group {
                // SAFETY: this task alone writes batch row b and the heads of its group.
                unsafe { out.put(b, 0, n * group + i, &rows[i * z.tq * z.dv..(i + 1) * z.tq * z.dv]) };
            }
            if let Some(lse) = &lse {
                // SAFETY: as above.
                unsafe { lse.part(2 * (b * z.h + n * group) * z.tq, sums.len()) }.copy_from_slice(sums);
            }
            return;
        }
        let (kr, kt) = (c.take(z.tk * z.d), c.take(flash::packed_len(z.tk, z.d)));
        let (v, rows, sums) = (c.take(z.tk * z.dv), c.take(z.tq * z.dv), c.take(2 * z.tq));
        let (k, stride) = w.k.head(b, n, 0);
        rot.rows(k, stride, z.tk, z.d, 0, false, 1.0, kr);
        flash::pack_transposed(kr, z.tk, z.d, kt);
        gather(&w.v, b, n, v);
        for h in n * group..(n + 1) * group {
            let (q, stride) = w.q.head(b, h, 0);
            flash::forward(&rot, visible, (q, stride, z.first), kt, v, (z.d, z.dv, z.tk), rows, sums, c.0);
            // SAFETY: this task alone writes batch row b and head h.
            unsafe { out.put(b, 0, h, rows) };
            if let Some(lse) = &lse {
                // SAFETY: as above.
                unsafe { lse.part(2 * (b * z.h + h) * z.tq, 2 * z.tq) }.copy_from_slice(sums);
            }
        }
    });
}

/// §9 b: the gradients of q, k and v from `dout [B, Tq, H, Dv]`; `out` and `lse` are [`forward`]'s.
///
/// # Panics
/// As [`forward`].
pub fn backward(
    s: &Settings,
    w: &Window,
    out: Heads,
    lse: &[f32],
    dout: Heads,
    dq: &mut HeadsMut,
    dk: &mut HeadsMut,
    dv: &mut HeadsMut,
    scratch: &mut [f32],
) {
    let z = Sizes::new(s, w);
    for shape in [out.shape(), dout.shape()] {
        assert_eq!(shape, [z.b, z.tq, z.h, z.dv], "local: shape of out or dout");
    }
    let shapes = (dq.shape(), dk.shape(), dv.shape());
    assert_eq!(shapes, (w.q.shape(), w.k.shape(), w.v.shape()), "local: shapes of the gradients");
    assert!(lse.len() >= 2 * z.b * z.h * z.tq, "local: lse: shorter than [B, H, Tq, 2]");
    let rot = Rotation::new(s.rope, w.angles, z.d, z.tk);
    let (dq, dk, dv, group) = (dq.shared(), dk.shared(), dv.shared(), z.h / z.hkv);
    if z.b * z.tk * z.d * z.dv == 0 {
        return;
    }
    par::run(z.b * z.hkv, scratch, z.backward_scratch(), z.heavy(s), &|task, scratch| {
        let (b, n) = (task / z.hkv, task % z.hkv);
        let mut c = Carve(scratch);
        let (kr, kt) = (c.take(z.tk * z.d), c.take(flash::packed_len(z.tk, z.d)));
        let vt = c.take(flash::packed_len(z.tk, z.dv));
        let (gk, gv, gq) = (c.take(z.tk * z.d), c.take(z.tk * z.dv), c.take(z.tq * z.d));
        let (a_dot, d_dot, delta) = (c.take(z.tq * z.dv), c.take(z.tq * z.dv), c.take(z.tq));
        let (k, stride) = w.k.head(b, n, 0);
        rot.rows(k, stride, z.tk, z.d, 0, false, 1.0, kr);
        flash::pack_transposed(kr, z.tk, z.d, kt);
        gather(&w.v, b, n, gv);
        flash::pack_transposed(gv, z.tk, z.dv, vt);
        gk.fill(0.0);
        gv.fill(0.0);
        let visible = Visible::new(s, w.k_pos, resets(w.reset, b, z.tk), z.first);
        let keys = Keys { k: kr, kt, vt };
        for h in n * group..(n + 1) * group {
            gather(&out, b, h, a_dot);
            gather(&dout, b, h, d_dot);
            flash::chained_dots(z.dv, d_dot, a_dot, delta);
            let (q, stride) = w.q.head(b, h, 0);
            let lse = &lse[2 * (b * z.h + h) * z.tq..][..2 * z.tq];
            let sizes = (z.d, z.dv, z.tk);
            flash::backward(&rot, visible, (q, stride, z.first), &keys, sizes, lse, d_dot, delta, gq, gk, gv, c.0);
            // SAFETY: this task alone writes batch row b and head h.
            unsafe { dq.put(b, 0, h, gq) };
        }
        // the turned keys are done with
        rot.rows(gk, z.d, z.tk, z.d, 0, true, 1.0, kr);
        // SAFETY: this task alone writes batch row b and key/value head n.
        unsafe { dk.put(b, 0, n, kr) };
        // SAFETY: as above.
        unsafe { dv.put(b, 0, n, gv) };
    });
}
