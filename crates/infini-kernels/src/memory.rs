//! The compressive memory as a stream uses it: read, write a segment, mix. (3)–(6), (10) of
//! `docs/math.md`. A memory belongs to a batch row and key/value head and is shared by the query heads
//! of its group.

use crate::cells::{CHUNK, Cell};
use crate::features;
use crate::heads::{Heads, HeadsMut};
use crate::lanes;
use crate::math::sigmoid;
use crate::par::{self, Carve, Shared};
use crate::seqdelta::{self, Tokens};
use crate::settings::{Features, Mix, Rule, Settings};

/// Memories, read-only: of every batch row and head, or of one.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// `[B, Hkv, F, Dv]`.
    pub m: &'a [f32],
    /// `[B, Hkv, F]`; empty for [`Rule::SeqDelta`].
    pub z: &'a [f32],
}

/// Memories that are written.
#[derive(Debug)]
pub struct StateMut<'a> {
    /// `[B, Hkv, F, Dv]`.
    pub m: &'a mut [f32],
    /// `[B, Hkv, F]`; empty for [`Rule::SeqDelta`].
    pub z: &'a mut [f32],
}

impl StateMut<'_> {
    /// The same, read-only.
    pub fn as_ref(&self) -> State<'_> {
        State { m: self.m, z: self.z }
    }
}

/// Parameters of reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phi<'a> {
    /// Null slot `[Hkv]`, none = 0.
    pub c: Option<&'a [f32]>,
    /// Projections `[Hkv, D, Fw]` of the softmax pair.
    pub fmap_w: Option<&'a [f32]>,
}

impl<'a> Phi<'a> {
    /// The cell of key/value head `n` of `hkv`.
    pub(crate) fn cell(&self, s: &Settings, n: usize, hkv: usize, d: usize, dv: usize) -> Cell<'a> {
        let fmap_w = self.fmap_w.map(|w| &w[n * (w.len() / hkv)..(n + 1) * (w.len() / hkv)]);
        let fw = fmap_w.map_or(0, |w| w.len() / d.max(1));
        if s.features == Features::SoftmaxPair {
            assert!(
                fw > 0 && fmap_w.is_some_and(|w| w.len() == d * fw),
                "memory: the softmax pair needs fmap_w [Hkv, D, Fw]"
            );
        }
        let c = match s.rule {
            Rule::SeqDelta => 0.0,
            _ => self.c.map_or(0.0, |c| c[n]),
        };
        Cell { rule: s.rule, features: s.features, d, f: features::width(s.features, d, fw), dv, c, fmap_w }
    }
}

/// A number per token and head, `[B, T, Hkv]`, 1 where absent: the part of one head.
#[derive(Clone, Copy)]
pub(crate) struct PerToken<'a> {
    data: Option<&'a [f32]>,
    at: usize,
    stride: usize,
}

impl<'a> PerToken<'a> {
    pub(crate) fn new(data: Option<&'a [f32]>, [b, t]: [usize; 2], n: usize, heads: usize) -> Self {
        PerToken { data, at: b * t * heads + n, stride: heads }
    }

    /// Tokens `from..from + out.len()`.
    pub(crate) fn fill(&self, from: usize, out: &mut [f32]) {
        match self.data {
            None => out.fill(1.0),
            Some(x) => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = x[self.at + (from + i) * self.stride];
                }
            }
        }
    }
}

/// Tokens of one head that are written.
pub(crate) struct Written<'a> {
    /// Rows of keys and their distance.
    pub k: (&'a [f32], usize),
    /// Rows of values and their distance.
    pub v: (&'a [f32], usize),
    pub w: PerToken<'a>,
    pub a: PerToken<'a>,
}

/// Scratch of [`write_tokens`].
pub(crate) fn write_scratch(cell: &Cell) -> usize {
    let seq = if cell.rule == Rule::SeqDelta { seqdelta::write_scratch(cell.f, cell.dv) } else { 0 };
    CHUNK * (cell.f + cell.dv + 3) + seq
}

/// Writes `tokens` of a segment; `new` holds a copy of `old`.
pub(crate) fn write_tokens(
    cell: &Cell,
    x: &Written,
    tokens: std::ops::Range<usize>,
    old: State,
    new: &mut StateMut,
    scratch: &mut [f32],
) {
    let mut c = Carve(scratch);
    let (phi, values) = (c.take(CHUNK * cell.f), c.take(CHUNK * cell.dv));
    let (w, a, inv_den) = (c.take(CHUNK), c.take(CHUNK), c.take(CHUNK));
    for t in tokens.clone().step_by(CHUNK) {
        let n = CHUNK.min(tokens.end - t);
        let v = (&x.v.0[t * x.v.1..], x.v.1);
        cell.phi(&x.k.0[t * x.k.1..], x.k.1, n, phi);
        x.w.fill(t, &mut w[..n]);
        if cell.rule == Rule::SeqDelta {
            x.a.fill(t, &mut a[..n]);
            let tokens = Tokens { k: &phi[..n * cell.f], v, w: &w[..n], a: &a[..n] };
            seqdelta::write(&tokens, cell.f, cell.dv, new.m, c.0);
        } else {
            cell.write(n, phi, v, &w[..n], old, new, inv_den, values);
        }
    }
}

fn sizes(x: &Heads, cell: &Cell, hkv: usize, m: usize, z: usize, rule: Rule) {
    let [b, ..] = x.shape();
    assert!(m >= b * hkv * cell.f * cell.dv, "memory: m: shorter than [B, Hkv, F, Dv]");
    assert!(rule == Rule::SeqDelta || z >= b * hkv * cell.f, "memory: z: shorter than [B, Hkv, F]");
}

/// Floats of scratch for [`read`] and [`write()`] with `workers` threads; widths D, F, Dv of one head.
pub fn scratch_len(s: &Settings, d: usize, f: usize, dv: usize, workers: usize) -> usize {
    let cell = Cell { rule: s.rule, features: s.features, d, f, dv, c: 0.0, fmap_w: None };
    (write_scratch(&cell) + f * (dv + 1)) * workers.max(1)
}

/// (3): `out [B, T, H, Dv]` = what the memories answer to `q [B, T, H, D]`, exactly 0 where the guard
/// holds, where `allowed [B, T]` is 0, and from an empty memory.
///
/// # Panics
/// If shapes do not fit together, or `scratch` is shorter than [`scratch_len`] for one worker.
pub fn read(
    s: &Settings,
    q: Heads,
    hkv: usize,
    st: State,
    phi: Phi,
    allowed: Option<&[u8]>,
    out: &mut HeadsMut,
    scratch: &mut [f32],
) {
    let ([b, t, h, d], [ob, ot, oh, dv]) = (q.shape(), out.shape());
    assert!((b, t, h) == (ob, ot, oh), "memory: shapes of q and out differ");
    assert!(hkv > 0 && h % hkv == 0, "memory: {h} query heads over {hkv} memories");
    assert!(allowed.is_none_or(|a| a.len() >= b * t), "memory: allowed: shorter than [B, T]");
    if b * t * h * d * dv == 0 {
        return;
    }
    let cell = phi.cell(s, 0, hkv, d, dv);
    sizes(&q, &cell, hkv, st.m.len(), st.z.len(), s.rule);
    let (f, out) = (cell.f, out.shared());
    par::run(b * hkv, scratch, write_scratch(&cell), b * t * h * f * dv > 1 << 19, &|task, scratch| {
        let (row, n) = (task / hkv, task % hkv);
        let cell = phi.cell(s, n, hkv, d, dv);
        let state = one(st, task, f, dv, s.rule);
        let mut c = Carve(scratch);
        let (phi, answers, inv_den) = (c.take(CHUNK * f), c.take(CHUNK * dv), c.take(CHUNK));
        for h in n * (h / hkv)..(n + 1) * (h / hkv) {
            for t0 in (0..t).step_by(CHUNK) {
                let (rows, stride) = q.head(row, h, t0);
                let len = CHUNK.min(t - t0);
                cell.phi(rows, stride, len, phi);
                cell.read(phi, len, state, inv_den, answers);
                for (i, answer) in answers.chunks_exact(dv).take(len).enumerate() {
                    // SAFETY: this task alone writes batch row `row` and head h.
                    let out = unsafe { out.row(row, t0 + i, h) };
                    if allowed.is_none_or(|a| a[row * t + t0 + i] != 0) {
                        out.copy_from_slice(answer);
                    } else {
                        out.fill(0.0);
                    }
                }
            }
        }
    });
}

fn one(st: State<'_>, i: usize, f: usize, dv: usize, rule: Rule) -> State<'_> {
    let z = if rule == Rule::SeqDelta { &[][..] } else { &st.z[i * f..(i + 1) * f] };
    State { m: &st.m[i * f * dv..(i + 1) * f * dv], z }
}

/// (4), (5), (6): writes one segment, or its part from a document's start on, into the memories: keys
/// `[B, N, Hkv, D]`, values `[B, N, Hkv, Dv]`, write strengths `w` and decays `a` `[B, N, Hkv]` (none = 1).
/// A token with w = 0 (and a = 1) leaves no trace.
///
/// # Panics
/// As [`read`].
pub fn write(
    s: &Settings,
    k: Heads,
    v: Heads,
    w: Option<&[f32]>,
    a: Option<&[f32]>,
    st: StateMut,
    phi: Phi,
    scratch: &mut [f32],
) {
    let ([b, t, hkv, d], [vb, vt, vh, dv]) = (k.shape(), v.shape());
    assert!((b, t, hkv) == (vb, vt, vh), "memory: shapes of k and v differ");
    for x in [w, a].into_iter().flatten() {
        assert!(x.len() >= b * t * hkv, "memory: w or a: shorter than [B, N, Hkv]");
    }
    if b * t * hkv * d * dv == 0 {
        return;
    }
    let cell = phi.cell(s, 0, hkv, d, dv);
    sizes(&k, &cell, hkv, st.m.len(), st.z.len(), s.rule);
    let (f, seq) = (cell.f, s.rule == Rule::SeqDelta);
    let (m, z) = (Shared::new(st.m), Shared::new(st.z));
    par::run(
        b * hkv,
        scratch,
        write_scratch(&cell) + f * (dv + 1),
        b * t * hkv * f * dv > 1 << 18,
        &|task, scratch| {
            let (row, n) = (task / hkv, task % hkv);
            let cell = phi.cell(s, n, hkv, d, dv);
            // SAFETY: this task alone takes the memory of its row and head.
            let m = unsafe { m.part(task * f * dv, f * dv) };
            // SAFETY: as above.
            let z = unsafe { if seq { z.part(0, 0) } else { z.part(task * f, f) } };
            let mut c = Carve(scratch);
            let (old_m, old_z) = (c.take(f * dv), c.take(f));
            // only the delta rule reads what it overwrites
            if s.rule == Rule::Delta {
                old_m.copy_from_slice(m);
                old_z.copy_from_slice(z);
            }
            let x = Written {
                k: k.head(row, n, 0),
                v: v.head(row, n, 0),
                w: PerToken::new(w, [row, t], n, hkv),
                a: PerToken::new(a, [row, t], n, hkv),
            };
            write_tokens(&cell, &x, 0..t, State { m: old_m, z: old_z }, &mut StateMut { m, z }, c.0);
        },
    );
}

/// (10): `out [B, T, H, Dv]` from what memory and window answered. `beta [H]` for [`Mix::Head`], `gate`
/// `[B, T, H]` for [`Mix::Token`]: logits of the memory's share.
///
/// # Panics
/// If shapes differ or the logits of the mix are missing.
pub fn mix(mix: Mix, a_mem: Heads, a_dot: Heads, beta: Option<&[f32]>, gate: Option<&[f32]>, out: &mut HeadsMut) {
    let [b, t, h, dv] = out.shape();
    assert!(a_mem.shape() == out.shape() && a_dot.shape() == out.shape(), "mix: shapes differ");
    let gate = Gate::new(mix, beta, gate, b, t, h);
    for (row, i) in (0..b).flat_map(|b| (0..t).map(move |t| (b, t))) {
        for n in 0..h {
            let mut g = [0.0];
            gate.memory_share(row, n, i, &mut g);
            let wd = gate.window_share(g[0]);
            let (m, d) = (a_mem.row(row, i, n), a_dot.row(row, i, n));
            let o = out.row_mut(row, i, n);
            for j in 0..dv {
                o[j] = g[0] * m[j] + wd * d[j];
            }
        }
    }
}

/// The mix logits of a call, checked.
#[derive(Clone, Copy)]
pub(crate) struct Gate<'a> {
    mix: Mix,
    logits: &'a [f32],
    t: usize,
    h: usize,
}

impl<'a> Gate<'a> {
    pub(crate) fn new(
        mix: Mix,
        beta: Option<&'a [f32]>,
        gate: Option<&'a [f32]>,
        b: usize,
        t: usize,
        h: usize,
    ) -> Self {
        let (logits, len) = match mix {
            Mix::Head => (beta.expect("mix: beta missing"), h),
            Mix::Token => (gate.expect("mix: gate missing"), b * t * h),
            Mix::Add | Mix::Memory => (&[][..], 0),
        };
        assert!(logits.len() >= len, "mix: {} logits: {len} expected", logits.len());
        Gate { mix, logits, t, h }
    }

    /// g of tokens `from..from + out.len()`: the weight of the memory's answer.
    pub(crate) fn memory_share(&self, b: usize, h: usize, from: usize, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        match self.mix {
            Mix::Add | Mix::Memory => out.fill(1.0),
            Mix::Head => out.fill(sigmoid(self.logits[h])),
            Mix::Token => shares(&self.logits[(b * self.t + from) * self.h + h..], self.h, out),
        }
    }

    /// The weight of the window's answer beside `g`.
    pub(crate) fn window_share(&self, g: f32) -> f32 {
        match self.mix {
            Mix::Add => 1.0,
            Mix::Memory => 0.0,
            Mix::Head | Mix::Token => 1.0 - g,
        }
    }
}

crate::simd! {
fn shares(logits: &[f32], stride: usize, out: &mut [f32]) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = logits[i * stride];
    }
    lanes::each(out, sigmoid);
}
}
