//! The gradients of [`attention::forward`](crate::attention::forward): §9 of `docs/math.md`, through all
//! segments (no truncation). Of the forward pass only answers, log-sum-exps and states are kept; φ,
//! denominators and the sequential rule's matrices are computed anew for each chunk.

use crate::attention::{Inputs, Plan, Saved, split};
use crate::cells::{CHUNK, Cell, WriteBuffers, weighted};
use crate::features;
use crate::flash::{self, Keys, Rotation};
use crate::heads::{Heads, HeadsMut, SharedHeads};
use crate::lanes;
use crate::local::gather;
use crate::math::dot;
use crate::memory::{Gate, State, StateMut, Written};
use crate::par::{self, Carve, Shared};
use crate::seqdelta::{self, Tokens};
use crate::settings::{Mix, Rule, Settings};
use crate::tile::transpose;
use std::ops::Range;

/// Gradients of the results.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// Of y, `[B, T, H, Dv]`.
    pub y: Heads<'a>,
    /// Of the final M, none = 0.
    pub m: Option<&'a [f32]>,
    /// Of the final z, none = 0; unused by [`Rule::SeqDelta`].
    pub z: Option<&'a [f32]>,
}

/// Gradients of the inputs, each in its input's layout; overwritten. None = not wanted.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Grads<'a> {
    pub q: HeadsMut<'a>,
    pub k: HeadsMut<'a>,
    pub v: HeadsMut<'a>,
    pub w: Option<&'a mut [f32]>,
    pub a: Option<&'a mut [f32]>,
    pub c: Option<&'a mut [f32]>,
    pub beta: Option<&'a mut [f32]>,
    pub gate: Option<&'a mut [f32]>,
    pub fmap_w: Option<&'a mut [f32]>,
    pub m0: Option<&'a mut [f32]>,
    pub z0: Option<&'a mut [f32]>,
}

/// Scratch of one task.
struct Layout {
    /// Tiles and rows of the whole sequence.
    sequence: usize,
    /// Chunks of the memory.
    chunks: usize,
}

impl Layout {
    fn new(p: &Plan) -> Layout {
        let (t, d, dv, f) = (p.t, p.d, p.dv, p.f);
        let seq = p.s.rule == Rule::SeqDelta;
        let states = if seq { p.t.min(p.s.segment_len).div_ceil(CHUNK) * f * dv } else { 0 };
        Layout {
            sequence: 3 * t * d
                + flash::packed_len(t, d)
                + flash::packed_len(t, dv)
                + t * (2 * dv + 2)
                + p.group * t
                + flash::backward_scratch(d),
            chunks: CHUNK * (2 * f + 3 * dv + d + 6)
                + 2 * f * (dv + 1)
                + 2 * f * dv
                + f * d
                + states
                + if seq { seqdelta::backward_scratch(f, dv).max(seqdelta::write_scratch(f, dv)) } else { 0 },
        }
    }
}

/// Partial sums that tasks leave for the reductions over the batch.
fn partials(p: &Plan) -> usize {
    p.b * p.h + p.b * p.hkv + p.b * p.x.fmap_w.map_or(0, <[_]>::len)
}

pub(crate) fn scratch_len(p: &Plan, workers: usize) -> usize {
    let l = Layout::new(p);
    (l.sequence + l.chunks) * workers + partials(p)
}

/// Where the tasks put their results.
struct Targets<'a> {
    q: SharedHeads<'a>,
    k: SharedHeads<'a>,
    v: SharedHeads<'a>,
    w: Option<Shared<'a>>,
    a: Option<Shared<'a>>,
    gate: Option<Shared<'a>>,
    m0: Option<Shared<'a>>,
    z0: Option<Shared<'a>>,
    /// Sums of each task: of beta `[B, H]`, of c `[B, Hkv]`, of W `[B, Hkv, D Fw]`.
    beta: Shared<'a>,
    c: Shared<'a>,
    fmap_w: Shared<'a>,
}

/// The gradients of every input that `g` asks for, from those of the results. `saved` is the forward
/// pass's, of the same `s` and `x`; a gradient of the final state needs a forward pass that returned it.
///
/// # Panics
/// If shapes do not fit together, `saved` is of another call, or `scratch` is shorter than
/// [`scratch_len`](crate::attention::scratch_len) for one worker.
pub fn backward(s: &Settings, x: &Inputs, saved: &Saved, up: &Upstream, g: &mut Grads, scratch: &mut [f32]) {
    let p = Plan::new(s, x);
    let rows = p.b * p.h * p.t;
    assert_eq!(up.y.shape(), [p.b, p.t, p.h, p.dv], "attention: shape of dy");
    let shapes = (g.q.shape(), g.k.shape(), g.v.shape());
    assert_eq!(shapes, (x.q.shape(), x.k.shape(), x.v.shape()), "attention: shapes of dq, dk, dv");
    assert!(saved.lse.len() == 2 * rows && saved.a_dot.len() == rows * p.dv, "attention: saved is of another call");
    let states = p.b * p.hkv * saved.count * p.state_len();
    assert!(
        saved.states.len() == states && saved.count >= (if p.reads { p.schedule.states(false) } else { 0 }),
        "attention: saved is of another call"
    );
    if up.m.is_some() || up.z.is_some() {
        assert!(saved.count == p.schedule.states(true), "attention: the forward pass returned no final state");
    }
    let (seq, fdv) = (s.rule == Rule::SeqDelta, p.f * p.dv);
    for (name, slice, len) in [
        ("dw", g.w.as_deref(), p.b * p.t * p.hkv),
        ("da", g.a.as_deref(), p.b * p.t * p.hkv),
        ("dc", g.c.as_deref(), p.hkv),
        ("dbeta", g.beta.as_deref(), p.h),
        ("dgate", g.gate.as_deref(), rows),
        ("dfmap_w", g.fmap_w.as_deref(), x.fmap_w.map_or(0, <[_]>::len)),
        ("dm0", g.m0.as_deref(), p.b * p.hkv * fdv),
        ("dz0", g.z0.as_deref(), if seq { 0 } else { p.b * p.hkv * p.f }),
        ("dm", up.m, p.b * p.hkv * fdv),
        ("dz", up.z, if seq { 0 } else { p.b * p.hkv * p.f }),
    ] {
        assert!(slice.is_none_or(|x| x.len() >= len), "attention: {name}: shorter than {len}");
    }
    assert!(scratch.len() >= partials(&p), "scratch: {} floats: see scratch_len", scratch.len());
    let (sums, scratch) = scratch.split_at_mut(partials(&p));
    sums.fill(0.0);
    let (beta, rest) = sums.split_at_mut(p.b * p.h);
    let (c, fmap_w) = rest.split_at_mut(p.b * p.hkv);
    for unused in [&mut g.w, &mut g.a, &mut g.gate].into_iter().flatten() {
        unused.fill(0.0);
    }
    let to = Targets {
        q: g.q.shared(),
        k: g.k.shared(),
        v: g.v.shared(),
        w: g.w.as_deref_mut().map(Shared::new),
        a: g.a.as_deref_mut().map(Shared::new),
        gate: g.gate.as_deref_mut().map(Shared::new),
        m0: g.m0.as_deref_mut().map(Shared::new),
        z0: g.z0.as_deref_mut().map(Shared::new),
        beta: Shared::new(beta),
        c: Shared::new(c),
        fmap_w: Shared::new(fmap_w),
    };
    let (rot, gate, layout) = (p.rotation(), p.gate(), Layout::new(&p));
    par::run(p.b * p.hkv, scratch, layout.sequence + layout.chunks, p.heavy(), &|task, scratch| {
        let head = Head { p: &p, saved, up, to: &to, b: task / p.hkv, n: task % p.hkv };
        head.run(&rot, &gate, scratch);
    });
    // over the batch, in the same order whatever the threads
    for (sums, target) in [(&*beta, &mut g.beta), (&*c, &mut g.c), (&*fmap_w, &mut g.fmap_w)] {
        let Some(target) = target else { continue };
        target.fill(0.0);
        for row in sums.chunks_exact(sums.len().checked_div(p.b).unwrap_or(0).max(1)) {
            for (t, x) in target.iter_mut().zip(row) {
                *t += x;
            }
        }
    }
}

/// One batch row and key/value head with its group of query heads.
struct Head<'a> {
    p: &'a Plan<'a>,
    saved: &'a Saved,
    up: &'a Upstream<'a>,
    to: &'a Targets<'a>,
    b: usize,
    n: usize,
}

/// Chunk-sized buffers of the memory part.
struct Buffers<'a> {
    phi: &'a mut [f32],
    dphi: &'a mut [f32],
    u: &'a mut [f32],
    y: &'a mut [f32],
    answers: &'a mut [f32],
    dx: &'a mut [f32],
    inv_den: &'a mut [f32],
    e: &'a mut [f32],
    w: &'a mut [f32],
    a: &'a mut [f32],
    dw: &'a mut [f32],
    da: &'a mut [f32],
    /// Mᵀ of a state.
    mt: &'a mut [f32],
    /// Gᵀ of a gradient.
    gt: &'a mut [f32],
    /// Of [`features::backward`].
    wt: &'a mut [f32],
    /// Of the sequential rule: states before each chunk, and the rest.
    seq: &'a mut [f32],
}

impl Head<'_> {
    fn run(&self, rot: &Rotation, gate: &Gate, scratch: &mut [f32]) {
        let p = self.p;
        let (t, d, dv) = (p.t, p.d, p.dv);
        let mut c = Carve(scratch);
        let (kr, kt, vt) = (c.take(t * d), c.take(flash::packed_len(t, d)), c.take(flash::packed_len(t, dv)));
        let (dk, dval, dq) = (c.take(t * d), c.take(t * dv), c.take(t * d));
        let (d_dot, delta, dlogit) = (c.take(t * dv), c.take(t), c.take(t));
        let shares = c.take(p.group * t);
        let (k, stride) = p.x.k.head(self.b, self.n, 0);
        rot.rows(k, stride, t, d, 0, false, 1.0, kr);
        flash::pack_transposed(kr, t, d, kt);
        gather(&p.x.v, self.b, self.n, dval);
        flash::pack_transposed(dval, t, dv, vt);
        dk.fill(0.0);
        dval.fill(0.0);
        let keys = Keys { k: kr, kt, vt };
        for i in 0..p.group {
            let h = self.n * p.group + i;
            let g = &mut shares[i * t..(i + 1) * t];
            self.mix_backward(gate, h, g, d_dot, delta, dlogit);
            let (q, stride) = p.x.q.head(self.b, h, 0);
            let lse = &self.saved.lse[2 * (self.b * p.h + h) * t..][..2 * t];
            let visible = p.visible(self.b);
            if p.s.mix == Mix::Memory {
                dq.fill(0.0);
            } else {
                flash::backward(rot, visible, (q, stride, 0), &keys, (d, dv, t), lse, d_dot, delta, dq, dk, dval, c.0);
            }
            // SAFETY: this task alone writes batch row b and head h.
            unsafe { self.to.q.put(self.b, 0, h, dq) };
        }
        // the turned keys are done with, and the tiles' scratch is free again
        rot.rows(dk, d, t, d, 0, true, 1.0, kr);
        let dk = kr;
        c.take(flash::backward_scratch(d));
        self.memory(shares, dk, dval, c.0);
        // SAFETY: this task alone writes batch row b and key/value head n.
        unsafe { self.to.k.put(self.b, 0, self.n, dk) };
        // SAFETY: as above.
        unsafe { self.to.v.put(self.b, 0, self.n, dval) };
    }

    /// §9 a for query head h: the memory's shares `g`, the gradient of A_dot, `delta = <dA_dot, A_dot>`, and the
    /// gradients of the mix logits.
    fn mix_backward(
        &self,
        gate: &Gate,
        h: usize,
        g: &mut [f32],
        d_dot: &mut [f32],
        delta: &mut [f32],
        dlogit: &mut [f32],
    ) {
        let (p, t, dv) = (self.p, self.p.t, self.p.dv);
        gate.memory_share(self.b, h, 0, g);
        for (wd, g) in dlogit.iter_mut().zip(g.iter()) {
            *wd = gate.window_share(*g);
        }
        let (dy, stride) = self.up.y.head(self.b, h, 0);
        let rows = (self.b * p.h + h) * t * dv..(self.b * p.h + h + 1) * t * dv;
        let a_mem = if p.reads { &self.saved.a_mem[rows.clone()] } else { &[] };
        let a_dot = &self.saved.a_dot[rows];
        split_rows(dy, stride, dv, g, a_mem, a_dot, d_dot, dlogit);
        flash::chained_dots(dv, d_dot, a_dot, delta);
        match p.s.mix {
            Mix::Add | Mix::Memory => {}
            Mix::Head => {
                let sum: f64 = dlogit.iter().map(|x| f64::from(*x)).sum();
                // SAFETY: this task alone takes the sums of its row and heads.
                unsafe { self.to.beta.set(self.b * p.h + h, sum as f32) };
            }
            Mix::Token => {
                if let Some(gate) = &self.to.gate {
                    for (i, x) in dlogit.iter().enumerate() {
                        // SAFETY: this task alone takes the logits of its row and heads.
                        unsafe { gate.set((self.b * t + i) * p.h + h, *x) };
                    }
                }
            }
        }
    }

    /// §9 c–g: the chain of states from the last to the first. `shares [G, T]`; adds to `dk [T, D]` and
    /// `dval [T, Dv]` and to the rows of dq.
    fn memory(&self, shares: &[f32], dk: &mut [f32], dval: &mut [f32], scratch: &mut [f32]) {
        let (p, count, len) = (self.p, self.saved.count, self.p.state_len());
        let (f, dv, d, fdv) = (p.f, p.dv, p.d, p.f * p.dv);
        let (task, reset) = (self.b * p.hkv + self.n, p.reset(self.b));
        let mut c = Carve(scratch);
        let (carry, next) = (c.take(len), c.take(len));
        carry.fill(0.0);
        if p.schedule.final_survives(reset) {
            let (m, z) = carry.split_at_mut(fdv);
            let seq = p.s.rule == Rule::SeqDelta;
            for (part, up) in [(m, self.up.m), (z, if seq { None } else { self.up.z })] {
                if let Some(up) = up {
                    part.copy_from_slice(&up[task * part.len()..(task + 1) * part.len()]);
                }
            }
        }
        if count > 0 {
            let mut b = Buffers {
                phi: c.take(CHUNK * f),
                dphi: c.take(CHUNK * f),
                u: c.take(CHUNK * dv),
                y: c.take(CHUNK * dv),
                answers: c.take(CHUNK * dv),
                dx: c.take(CHUNK * d),
                inv_den: c.take(CHUNK),
                e: c.take(CHUNK),
                w: c.take(CHUNK),
                a: c.take(CHUNK),
                dw: c.take(CHUNK),
                da: c.take(CHUNK),
                mt: c.take(fdv),
                gt: c.take(fdv),
                wt: c.take(f * d),
                seq: c.0,
            };
            let states = &self.saved.states[task * count * len..(task + 1) * count * len];
            let state = |j: usize| split(&states[j * len..(j + 1) * len], fdv);
            let mut dc = 0.0;
            // the state whose transpose is in b.mt
            let mut transposed = usize::MAX;
            let mut want = |j: usize, mt: &mut [f32]| {
                if transposed != j {
                    transpose(state(j).m, dv, f, dv, mt, f);
                    transposed = j;
                }
            };
            for j in (0..count).rev() {
                if j > 0 || p.x.m0.is_some() {
                    // with lag 1, P_0 is read by segments 0 and 1
                    let last = j + p.s.lag;
                    for s in (if j == 0 { 0 } else { last }..last + 1).filter(|&s| s < p.schedule.segments) {
                        want(j, b.mt);
                        self.read_backward(s, state(j), shares, carry, &mut dc, &mut b);
                    }
                }
                if j > 0 {
                    let (tokens, survives) = p.schedule.writes(j - 1, reset);
                    let empty = !survives || (j == 1 && p.x.m0.is_none());
                    let cell = p.writer(self.n, empty);
                    if cell.rule == Rule::Delta {
                        want(j - 1, b.mt);
                    }
                    let before = (!empty).then(|| state(j - 1));
                    self.write_backward(&cell, tokens, before, carry, next, &mut dc, dk, dval, &mut b);
                    if !survives {
                        carry.fill(0.0);
                    }
                }
            }
            // SAFETY: this task alone takes the sum of its row and head.
            unsafe { self.to.c.set(task, dc as f32) };
        }
        let z_len = if p.s.rule == Rule::SeqDelta { 0 } else { f };
        for (target, from, len) in [(&self.to.m0, 0, fdv), (&self.to.z0, fdv, z_len)] {
            if let Some(target) = target {
                // SAFETY: this task alone takes the state of its row and head.
                unsafe { target.part(task * len, len) }.copy_from_slice(&carry[from..from + len]);
            }
        }
    }

    /// §9 f for rows of x: adds to `dx`.
    fn features_backward(
        &self,
        cell: &Cell,
        (x, stride): (&[f32], usize),
        n: usize,
        phi: &[f32],
        dphi: &mut [f32],
        dx: &mut [f32],
        wt: &mut [f32],
    ) {
        let width = cell.fmap_w.map_or(0, <[_]>::len);
        // SAFETY: this task alone takes the sums of its row and head.
        let dw = unsafe { self.to.fmap_w.part((self.b * self.p.hkv + self.n) * width, width) };
        features::backward(
            cell.features,
            x,
            stride,
            n,
            cell.d,
            cell.fmap_w,
            phi,
            dphi,
            dx,
            cell.fmap_w.map(|_| dw),
            wt,
        );
    }

    /// §9 c for segment `s`, which read `state`; adds to its gradient `carry`.
    fn read_backward(&self, s: usize, state: State, shares: &[f32], carry: &mut [f32], dc: &mut f64, b: &mut Buffers) {
        let (p, cell) = (self.p, self.p.cell(self.n));
        let (t, d, dv) = (p.t, p.d, p.dv);
        let tokens = p.schedule.reads(s, p.reset(self.b));
        let (dm, dz) = carry.split_at_mut(p.f * dv);
        let mut carry = StateMut { m: dm, z: dz };
        for i in 0..p.group {
            let h = self.n * p.group + i;
            for t0 in tokens.clone().step_by(CHUNK) {
                let n = CHUNK.min(tokens.end - t0);
                let (q, stride) = p.x.q.head(self.b, h, t0);
                let (dy, dy_stride) = self.up.y.head(self.b, h, t0);
                let answers = &self.saved.a_mem[((self.b * p.h + h) * t + t0) * dv..][..n * dv];
                cell.phi(q, stride, n, b.phi);
                cell.inverse_denominators(b.phi, state, &mut b.inv_den[..n]);
                weighted(dy, dy_stride, dv, &shares[i * t + t0..i * t + t0 + n], b.u);
                cell.read_backward(n, b.phi, answers, b.inv_den, state, b.mt, b.u, b.e, b.dphi, &mut carry, dc);
                b.dx[..n * d].fill(0.0);
                self.features_backward(&cell, (q, stride), n, b.phi, b.dphi, b.dx, b.wt);
                // SAFETY: this task alone writes batch row b and head h.
                unsafe { self.to.q.add(self.b, t0, h, &b.dx[..n * d]) };
            }
        }
    }

    /// §9 d, e: `carry` goes from the gradient of the state after the write to that of the one before it
    /// (none = an empty one).
    fn write_backward(
        &self,
        cell: &Cell,
        tokens: Range<usize>,
        before: Option<State>,
        carry: &mut [f32],
        next: &mut [f32],
        dc: &mut f64,
        dk: &mut [f32],
        dval: &mut [f32],
        b: &mut Buffers,
    ) {
        let (p, fdv) = (self.p, cell.f * cell.dv);
        let x = p.written(self.b, self.n);
        if cell.rule == Rule::SeqDelta {
            self.sequential(cell, &x, tokens, before.map(|s| s.m), &mut carry[..fdv], dk, dval, b);
            return;
        }
        transpose(&carry[..fdv], cell.dv, cell.f, cell.dv, b.gt, cell.f);
        next.copy_from_slice(carry);
        let up = split(next, fdv);
        let (dm, dz) = carry.split_at_mut(fdv);
        let mut carry = StateMut { m: dm, z: dz };
        let old = before.unwrap_or(up);
        for t0 in tokens.clone().step_by(CHUNK) {
            let n = CHUNK.min(tokens.end - t0);
            let (k, v) = ((&x.k.0[t0 * x.k.1..], x.k.1), (&x.v.0[t0 * x.v.1..], x.v.1));
            cell.phi(k.0, k.1, n, b.phi);
            x.w.fill(t0, &mut b.w[..n]);
            let mut buffers = WriteBuffers {
                y: b.y,
                answers: b.answers,
                u: b.u,
                dphi: b.dphi,
                dw: &mut b.dw[..n],
                inv_den: b.inv_den,
                e: b.e,
            };
            cell.write_backward(n, b.phi, v, &b.w[..n], old, b.mt, up, b.gt, &mut carry, dc, &mut buffers);
            self.token_gradients(cell, k, t0, n, dk, dval, b, false);
        }
    }

    /// What the write of `n` tokens from `t0` on passes to k, v, w and, if `decay`, a.
    fn token_gradients(
        &self,
        cell: &Cell,
        k: (&[f32], usize),
        t0: usize,
        n: usize,
        dk: &mut [f32],
        dval: &mut [f32],
        b: &mut Buffers,
        decay: bool,
    ) {
        let (p, d, dv) = (self.p, cell.d, cell.dv);
        add(&b.u[..n * dv], &mut dval[t0 * dv..(t0 + n) * dv]);
        self.features_backward(cell, k, n, b.phi, b.dphi, &mut dk[t0 * d..(t0 + n) * d], b.wt);
        for (target, from, wanted) in [(&self.to.w, &b.dw, true), (&self.to.a, &b.da, decay)] {
            if let (Some(target), true) = (target, wanted) {
                for i in 0..n {
                    // SAFETY: this task alone takes the elements of its row and head.
                    unsafe { target.set((self.b * p.t + t0 + i) * p.hkv + self.n, from[i]) };
                }
            }
        }
    }

    /// §9 e chunk by chunk: the states before the chunks are run forward once more, from the segment's.
    fn sequential(
        &self,
        cell: &Cell,
        x: &Written,
        tokens: Range<usize>,
        before: Option<&[f32]>,
        carry: &mut [f32],
        dk: &mut [f32],
        dval: &mut [f32],
        b: &mut Buffers,
    ) {
        let (f, dv, fdv) = (cell.f, cell.dv, cell.f * cell.dv);
        let chunks = tokens.len().div_ceil(CHUNK);
        let seq = std::mem::take(&mut b.seq);
        let (states, scratch) = seq.split_at_mut(self.p.t.min(self.p.s.segment_len).div_ceil(CHUNK) * fdv);
        match before {
            Some(m) => states[..fdv].copy_from_slice(m),
            None => states[..fdv].fill(0.0),
        }
        for i in (0..chunks).chain((0..chunks).rev()).enumerate() {
            let (forward, i) = (i.0 < chunks, i.1);
            // the state after the last chunk is not needed
            if forward && i + 1 == chunks {
                continue;
            }
            let t0 = tokens.start + i * CHUNK;
            let n = CHUNK.min(tokens.end - t0);
            let (k, v) = ((&x.k.0[t0 * x.k.1..], x.k.1), (&x.v.0[t0 * x.v.1..], x.v.1));
            cell.phi(k.0, k.1, n, b.phi);
            x.w.fill(t0, &mut b.w[..n]);
            x.a.fill(t0, &mut b.a[..n]);
            let chunk = Tokens { k: &b.phi[..n * f], v, w: &b.w[..n], a: &b.a[..n] };
            if forward {
                let (old, new) = states[i * fdv..(i + 2) * fdv].split_at_mut(fdv);
                new.copy_from_slice(old);
                seqdelta::write(&chunk, f, dv, new, scratch);
                continue;
            }
            let mut out = seqdelta::Out { dk: b.dphi, dv: b.u, dw: b.dw, da: b.da };
            seqdelta::backward(&chunk, f, dv, &states[i * fdv..(i + 1) * fdv], carry, &mut out, scratch);
            self.token_gradients(cell, k, t0, n, dk, dval, b, true);
        }
        b.seq = seq;
    }
}

crate::simd! {
/// `d_dot_i = wd_i dy_i`; `dlogit` holds wd and becomes `g wd <dy, a_mem − a_dot>`. An empty `a_mem` is all 0.
fn split_rows(dy: &[f32], stride: usize, dv: usize, g: &[f32], a_mem: &[f32], a_dot: &[f32], d_dot: &mut [f32], dlogit: &mut [f32]) {
    for i in 0..g.len() {
        let (dy, row) = (&dy[i * stride..i * stride + dv], i * dv..(i + 1) * dv);
        let wd = dlogit[i];
        lanes::map(&mut d_dot[row.clone()], dy, |dy| wd * dy);
        let window = dot(dy, &a_dot[row.clone()]);
        let memory = if a_mem.is_empty() { 0.0 } else { dot(dy, &a_mem[row]) };
        dlogit[i] = g[i] * wd * (memory - window);
    }
}
fn add(x: &[f32], y: &mut [f32]) {
    lanes::update(y, x, |y, x| y + x);
}
}
