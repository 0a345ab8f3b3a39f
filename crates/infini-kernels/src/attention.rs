//! Infini-attention over a whole sequence as one operation: window, memory and mix over all segments,
//! (1)–(10) of `docs/math.md`, from an initial state to a final one.

use crate::cells::{CHUNK, Cell};
use crate::flash::{self, Rotation, TILE, Visible};
use crate::heads::{Heads, HeadsMut, SharedHeads};
use crate::lanes;
use crate::local::{Angles, gather};
use crate::memory::{self, Gate, PerToken, Phi, State, StateMut, Written};
use crate::par::{self, Carve, Shared};
use crate::schedule::Schedule;
use crate::settings::{Mix, Rule, Settings};

pub use crate::attention_backward::{Grads, Upstream, backward};

/// Inputs of the operation.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Queries `[B, T, H, D]`.
    pub q: Heads<'a>,
    /// Keys `[B, T, Hkv, D]`.
    pub k: Heads<'a>,
    /// Values `[B, T, Hkv, Dv]`.
    pub v: Heads<'a>,
    /// Write strengths `[B, T, Hkv]`, none = 1.
    pub w: Option<&'a [f32]>,
    /// Decays `[B, T, Hkv]` of [`Rule::SeqDelta`], none = 1.
    pub a: Option<&'a [f32]>,
    /// Null slot `[Hkv]`, none = 0.
    pub c: Option<&'a [f32]>,
    /// Mix logits `[H]` of [`Mix::Head`].
    pub beta: Option<&'a [f32]>,
    /// Mix logits `[B, T, H]` of [`Mix::Token`].
    pub gate: Option<&'a [f32]>,
    /// Projections `[Hkv, D, Fw]` of the softmax pair.
    pub fmap_w: Option<&'a [f32]>,
    /// 1 at the first token of each new document, `[B, T]`.
    pub reset: Option<&'a [u8]>,
    /// Memory at the start `[B, Hkv, F, Dv]`, none = empty.
    pub m0: Option<&'a [f32]>,
    /// Normaliser at the start `[B, Hkv, F]`, none = empty; unused by [`Rule::SeqDelta`].
    pub z0: Option<&'a [f32]>,
    /// Rotary angles of at least T positions, unless the layout is [`Rope::None`](crate::Rope::None).
    pub angles: Option<Angles<'a>>,
}

/// Results of [`forward`].
#[derive(Debug)]
pub struct Outputs<'a> {
    /// `[B, T, H, Dv]`.
    pub y: HeadsMut<'a>,
    /// Final memory `[B, Hkv, F, Dv]`, if wanted.
    pub m: Option<&'a mut [f32]>,
    /// Final normaliser `[B, Hkv, F]`, if wanted; left alone by [`Rule::SeqDelta`].
    pub z: Option<&'a mut [f32]>,
}

/// What [`backward`] needs of the forward pass: the answers, the log-sum-exps and the states between
/// segments. Reusable.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    pub(crate) lse: Vec<f32>,
    pub(crate) a_dot: Vec<f32>,
    pub(crate) a_mem: Vec<f32>,
    pub(crate) states: Vec<f32>,
    pub(crate) count: usize,
}

impl Saved {
    /// A_dot, `[B, H, T, Dv]`.
    pub fn a_dot(&self) -> &[f32] {
        &self.a_dot
    }

    /// A_mem, `[B, H, T, Dv]`; empty if no token had a memory to read.
    pub fn a_mem(&self) -> &[f32] {
        &self.a_mem
    }

    /// States P_0, P_1, … of each batch row and key/value head: `[B, Hkv, states, F (Dv + 1)]`, M then z.
    pub fn states(&self) -> &[f32] {
        &self.states
    }

    /// States of each batch row and head.
    pub fn state_count(&self) -> usize {
        self.count
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        4 * (self.lse.len() + self.a_dot.len() + self.a_mem.len() + self.states.len())
    }
}

/// The checked sizes and the schedule of one call.
pub(crate) struct Plan<'a> {
    pub s: &'a Settings,
    pub x: &'a Inputs<'a>,
    pub b: usize,
    pub t: usize,
    pub h: usize,
    pub hkv: usize,
    pub group: usize,
    pub d: usize,
    pub f: usize,
    pub dv: usize,
    pub schedule: Schedule,
    /// Whether any token reads a state that can hold something.
    pub reads: bool,
}

impl<'a> Plan<'a> {
    pub fn new(s: &'a Settings, x: &'a Inputs<'a>) -> Plan<'a> {
        let ([b, t, h, d], [kb, kt, hkv, kd], [vb, vt, vh, dv]) = (x.q.shape(), x.k.shape(), x.v.shape());
        assert!(
            kb == b && vb == b && kt == t && vt == t && vh == hkv && kd == d,
            "attention: shapes of q, k, v differ"
        );
        assert!(hkv > 0 && h % hkv == 0 && h > 0, "attention: {h} query heads over {hkv} key heads");
        assert!(d > 0 && dv > 0, "attention: heads of width 0");
        assert!(s.segment_len > 0, "attention: segment_len is 0");
        assert!(matches!(s.span, 1 | 2) && s.lag < 2, "attention: span {} lag {}: 1 or 2, 0 or 1", s.span, s.lag);
        let f = Phi { c: x.c, fmap_w: x.fmap_w }.cell(s, 0, hkv, d, dv).f;
        let seq = s.rule == Rule::SeqDelta;
        let at_least = |name, slice: Option<usize>, len: usize| {
            assert!(slice.is_none_or(|l| l >= len), "attention: {name}: {slice:?} elements, {len} expected");
        };
        at_least("w", x.w.map(<[_]>::len), b * t * hkv);
        at_least("a", x.a.map(<[_]>::len), b * t * hkv);
        at_least("c", x.c.map(<[_]>::len), hkv);
        at_least("reset", x.reset.map(<[_]>::len), b * t);
        at_least("m0", x.m0.map(<[_]>::len), b * hkv * f * dv);
        at_least("z0", x.z0.map(<[_]>::len), if seq { 0 } else { b * hkv * f });
        assert!(seq || x.m0.is_some() == x.z0.is_some(), "attention: m0 and z0 come together");
        let schedule = Schedule::new(s, t);
        let reads = x.m0.is_some() || schedule.states(false) > 1;
        Plan { s, x, b, t, h, hkv, group: h / hkv, d, f, dv, schedule, reads }
    }

    pub fn state_len(&self) -> usize {
        self.f * (self.dv + 1)
    }

    pub fn cell(&self, n: usize) -> Cell<'a> {
        Phi { c: self.x.c, fmap_w: self.x.fmap_w }.cell(self.s, n, self.hkv, self.d, self.dv)
    }

    /// The cell that writes on state `old`: an empty one answers 0, so that delta is linear there.
    pub fn writer(&self, n: usize, old_is_empty: bool) -> Cell<'a> {
        let cell = self.cell(n);
        let rule = if old_is_empty && cell.rule == Rule::Delta { Rule::Linear } else { cell.rule };
        Cell { rule, ..cell }
    }

    pub fn reset(&self, b: usize) -> &'a [u8] {
        self.x.reset.map_or(&[], |r| &r[b * self.t..(b + 1) * self.t])
    }

    pub fn rotation(&self) -> Rotation<'a> {
        Rotation::new(self.s.rope, self.x.angles, self.d, self.t)
    }

    pub fn gate(&self) -> Gate<'a> {
        Gate::new(self.s.mix, self.x.beta, self.x.gate, self.b, self.t, self.h)
    }

    pub fn visible(&self, b: usize) -> Visible<'a> {
        Visible::new(self.s, 0, self.reset(b), 0)
    }

    /// What head `n` of batch row `b` writes.
    pub fn written(&self, b: usize, n: usize) -> Written<'a> {
        Written {
            k: self.x.k.head(b, n, 0),
            v: self.x.v.head(b, n, 0),
            w: PerToken::new(self.x.w, [b, self.t], n, self.hkv),
            a: PerToken::new(self.x.a, [b, self.t], n, self.hkv),
        }
    }

    /// Multiplications worth a second thread.
    pub fn heavy(&self) -> bool {
        let seen = self.t.min(self.s.segment_len.saturating_mul(self.s.span));
        self.b * self.t * self.h * (seen + self.f) * (self.d + self.dv) > 1 << 19
    }

    fn forward_scratch(&self) -> usize {
        // the last line: what `Saved` holds otherwise
        TILE * self.d
            + flash::packed_len(self.t, self.d)
            + self.t * self.dv
            + flash::forward_scratch(self.d)
            + CHUNK * (self.f + self.dv + 1)
            + memory::write_scratch(&self.cell(0))
            + self.t * (2 * self.group * self.dv + 2)
            + 2 * self.state_len()
    }
}

/// Floats of scratch for `workers` threads, enough for [`forward`] and [`backward`].
///
/// # Panics
/// If the shapes do not fit together.
pub fn scratch_len(s: &Settings, x: &Inputs, workers: usize) -> usize {
    let p = Plan::new(s, x);
    let workers = workers.clamp(1, (p.b * p.hkv).max(1));
    (p.forward_scratch() * workers).max(crate::attention_backward::scratch_len(&p, workers))
}

/// The operation: `out.y` and, where wanted, the final state. `saved` is filled for [`backward`].
///
/// # Panics
/// If shapes do not fit together, something the settings need is missing, or `scratch` is shorter than
/// [`scratch_len`] for one worker.
pub fn forward(s: &Settings, x: &Inputs, out: &mut Outputs, saved: Option<&mut Saved>, scratch: &mut [f32]) {
    let p = Plan::new(s, x);
    assert_eq!(out.y.shape(), [p.b, p.t, p.h, p.dv], "attention: shape of y");
    let (m_len, z_len) = (p.f * p.dv, if s.rule == Rule::SeqDelta { 0 } else { p.f });
    assert!(out.m.as_ref().is_none_or(|m| m.len() >= p.b * p.hkv * m_len), "attention: m: too short");
    assert!(out.z.as_ref().is_none_or(|z| z.len() >= p.b * p.hkv * z_len), "attention: z: too short");
    let wanted = out.m.is_some() || out.z.is_some();
    let count = if p.reads || wanted { p.schedule.states(wanted) } else { 0 };
    let keep = saved.is_some();
    let mut none = Saved::default();
    let saved = saved.unwrap_or(&mut none);
    saved.count = count;
    let rows = if keep { p.b * p.h * p.t } else { 0 };
    saved.lse.resize(2 * rows, 0.0);
    saved.a_dot.resize(rows * p.dv, 0.0);
    saved.a_mem.resize(if p.reads { rows * p.dv } else { 0 }, 0.0);
    saved.states.resize(if keep { p.b * p.hkv * count * p.state_len() } else { 0 }, 0.0);
    let shared = Targets {
        keep,
        count,
        lse: Shared::new(&mut saved.lse),
        a_dot: Shared::new(&mut saved.a_dot),
        a_mem: Shared::new(&mut saved.a_mem),
        states: Shared::new(&mut saved.states),
        y: out.y.shared(),
        m: out.m.as_deref_mut().map(Shared::new),
        z: out.z.as_deref_mut().map(Shared::new),
    };
    let (rot, gate) = (p.rotation(), p.gate());
    par::run(p.b * p.hkv, scratch, p.forward_scratch(), p.heavy(), &|task, scratch| {
        forward_head(&p, &rot, &gate, &shared, task / p.hkv, task % p.hkv, scratch);
    });
}

/// Where the tasks put their results.
struct Targets<'a> {
    keep: bool,
    count: usize,
    lse: Shared<'a>,
    a_dot: Shared<'a>,
    a_mem: Shared<'a>,
    states: Shared<'a>,
    y: SharedHeads<'a>,
    m: Option<Shared<'a>>,
    z: Option<Shared<'a>>,
}

/// One batch row and key/value head with its group of query heads.
fn forward_head(p: &Plan, rot: &Rotation, gate: &Gate, to: &Targets, b: usize, n: usize, scratch: &mut [f32]) {
    let (t, d, dv, group) = (p.t, p.d, p.dv, p.group);
    let mut c = Carve(scratch);
    let (turned, kt, v) = (c.take(TILE * d), c.take(flash::packed_len(t, d)), c.take(t * dv));
    // SAFETY (of the parts taken here and below): this task alone takes those of batch row b and of its heads.
    let (a_dot, a_mem, lse) = if to.keep {
        let (at, len) = ((b * p.h + n * group) * t, group * t);
        let a_mem = if p.reads { (at * dv, len * dv) } else { (0, 0) };
        // SAFETY: see above.
        unsafe { (to.a_dot.part(at * dv, len * dv), to.a_mem.part(a_mem.0, a_mem.1), to.lse.part(2 * at, 2 * len)) }
    } else {
        (c.take(group * t * dv), c.take(group * t * dv), c.take(2 * t))
    };
    let (k, stride) = p.x.k.head(b, n, 0);
    flash::pack_keys(rot, k, stride, t, d, turned, kt);
    gather(&p.x.v, b, n, v);
    for i in 0..group {
        let (q, stride) = p.x.q.head(b, n * group + i, 0);
        let rows = &mut a_dot[i * t * dv..(i + 1) * t * dv];
        if p.s.mix == Mix::Memory {
            rows.fill(0.0);
            continue;
        }
        let lse = if to.keep { &mut lse[2 * i * t..2 * (i + 1) * t] } else { &mut *lse };
        flash::forward(rot, p.visible(b), (q, stride, 0), kt, v, (d, dv, t), rows, lse, c.0);
    }
    if to.count > 0 {
        segments(p, to, b, n, a_mem, c.0);
    }
    for i in 0..group {
        let head = n * group + i;
        let rows = i * t * dv..(i + 1) * t * dv;
        let a_mem = if p.reads { &a_mem[rows.clone()] } else { &[] };
        for t0 in (0..t).step_by(TILE) {
            let len = TILE.min(t - t0);
            let (mut g, mut wd) = ([0.0; TILE], [0.0; TILE]);
            gate.memory_share(b, head, t0, &mut g[..len]);
            for i in 0..len {
                wd[i] = gate.window_share(g[i]);
            }
            let part = t0 * dv..(t0 + len) * dv;
            let a_mem = if p.reads { &a_mem[part.clone()] } else { a_mem };
            mix_rows(&to.y, b, t0, head, &g[..len], &wd[..len], a_mem, &a_dot[rows.clone()][part]);
        }
    }
}

crate::simd! {
/// (10) for rows t0.. of one head; an empty `a_mem` is all 0.
fn mix_rows(y: &SharedHeads, b: usize, t0: usize, head: usize, g: &[f32], wd: &[f32], a_mem: &[f32], a_dot: &[f32]) {
    let dv = a_dot.len() / g.len();
    for i in 0..g.len() {
        // SAFETY: the task of this batch row and head alone writes the row.
        let y = unsafe { y.row(b, t0 + i, head) };
        let d = &a_dot[i * dv..(i + 1) * dv];
        if a_mem.is_empty() {
            lanes::map(y, d, |d| wd[i] * d);
        } else {
            lanes::update2(y, d, &a_mem[i * dv..(i + 1) * dv], |_, d, m| g[i] * m + wd[i] * d);
        }
    }
}
}

/// Reads and writes of all segments; the final state.
fn segments(p: &Plan, to: &Targets, b: usize, n: usize, a_mem: &mut [f32], scratch: &mut [f32]) {
    let (t, dv, len) = (p.t, p.dv, p.state_len());
    let mut c = Carve(scratch);
    let task = b * p.hkv + n;
    // all states are kept, or the two newest: no segment reads an older one
    let states = if to.keep {
        // SAFETY: this task alone takes the states of its row and head.
        unsafe { to.states.part(task * to.count * len, to.count * len) }
    } else {
        c.take(2 * len)
    };
    let slot = |i: usize| if to.keep { i * len } else { i % 2 * len };
    let (phi, answers, inv_den) = (c.take(CHUNK * p.f), c.take(CHUNK * dv), c.take(CHUNK));
    start(p, task, &mut states[..len]);
    let (cell, written, reset) = (p.cell(n), p.written(b, n), p.reset(b));
    for j in 0..p.schedule.segments {
        let read = p.schedule.state_read(j);
        if p.reads {
            let tokens = p.schedule.tokens(j);
            let allowed =
                if read == 0 && p.x.m0.is_none() { tokens.start..tokens.start } else { p.schedule.reads(j, reset) };
            let state = split(&states[slot(read)..slot(read) + len], p.f * dv);
            for i in 0..p.group {
                let out = &mut a_mem[i * t * dv..(i + 1) * t * dv];
                for t0 in allowed.clone().step_by(CHUNK) {
                    let rows = CHUNK.min(allowed.end - t0);
                    let (q, stride) = p.x.q.head(b, n * p.group + i, t0);
                    cell.phi(q, stride, rows, phi);
                    cell.read(phi, rows, state, inv_den, answers);
                    out[t0 * dv..(t0 + rows) * dv].copy_from_slice(&answers[..rows * dv]);
                }
                out[allowed.end * dv..tokens.end * dv].fill(0.0);
            }
        }
        if j + 1 < to.count {
            let (tokens, survives) = p.schedule.writes(j, reset);
            let (old, new) = two(states, slot(j), slot(j + 1), len);
            let empty = !survives || (j == 0 && p.x.m0.is_none());
            if survives {
                new.copy_from_slice(old);
            } else {
                new.fill(0.0);
            }
            let (m, z) = new.split_at_mut(p.f * dv);
            memory::write_tokens(
                &p.writer(n, empty),
                &written,
                tokens,
                split(old, p.f * dv),
                &mut StateMut { m, z },
                c.0,
            );
        }
    }
    let last = split(&states[slot(to.count - 1)..][..len], p.f * dv);
    let survives = p.schedule.final_survives(reset);
    let seq = p.s.rule == Rule::SeqDelta;
    let outputs = [(&to.m, last.m, p.f * dv), (&to.z, last.z, if seq { 0 } else { p.f })];
    for (target, state, len) in outputs {
        if let Some(target) = target {
            // SAFETY: this task alone takes the final state of its row and head.
            let target = unsafe { target.part(task * len, len) };
            if survives {
                target.copy_from_slice(&state[..len]);
            } else {
                target.fill(0.0);
            }
        }
    }
}

/// P_0 of one row and head.
fn start(p: &Plan, task: usize, state: &mut [f32]) {
    let (m, z) = state.split_at_mut(p.f * p.dv);
    for (part, given) in [(m, p.x.m0), (z, if p.s.rule == Rule::SeqDelta { None } else { p.x.z0 })] {
        match given {
            Some(x) => part.copy_from_slice(&x[task * part.len()..(task + 1) * part.len()]),
            None => part.fill(0.0),
        }
    }
}

/// A state of a [`Saved`] as M and z.
pub(crate) fn split(state: &[f32], at: usize) -> State<'_> {
    let (m, z) = state.split_at(at);
    State { m, z }
}

/// Two different slots of a buffer.
fn two(x: &mut [f32], a: usize, b: usize, len: usize) -> (&[f32], &mut [f32]) {
    let (lo, hi) = x.split_at_mut(a.max(b));
    if a < b { (&lo[a..a + len], &mut hi[..len]) } else { (&hi[..len], &mut lo[b..b + len]) }
}
