//! Infini-attention as the mathematics says it: the forward pass is a streaming machine that takes one
//! token at a time, the backward pass is the hand-derived one of `docs/math.md` §9. Dense f64 arrays in
//! the layouts of §0; slow on purpose, the kernels are compared with it.

use super::features::{phi, phi_backward};
use crate::schedule::Schedule;
use crate::{FinalState, Mix, Rope, Rule, Settings};

/// Sizes of one call, in the letters of math.md §0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the batch.
    pub b: usize,
    /// Tokens.
    pub t: usize,
    /// Query heads.
    pub h: usize,
    /// Key/value heads, a divisor of `h`.
    pub hkv: usize,
    /// Width of q and k.
    pub d: usize,
    /// Width of v.
    pub dv: usize,
    /// Feature width F of the memory.
    pub f: usize,
}

/// Inputs of [`forward`], dense. An empty slice stands for an absent one: `w`, `a` = 1, `c` = 0,
/// `m0`, `z0` = 0, no reset.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Sizes.
    pub dims: Dims,
    /// Queries `[B, T, H, D]`.
    pub q: &'a [f64],
    /// Keys `[B, T, Hkv, D]`.
    pub k: &'a [f64],
    /// Values `[B, T, Hkv, Dv]`.
    pub v: &'a [f64],
    /// Write strengths `[B, T, Hkv]`.
    pub w: &'a [f64],
    /// Decays `[B, T, Hkv]` of [`Rule::SeqDelta`].
    pub a: &'a [f64],
    /// Null slot `[Hkv]`.
    pub c: &'a [f64],
    /// Mix logits `[H]` of [`Mix::Head`].
    pub beta: &'a [f64],
    /// Mix logits `[B, T, H]` of [`Mix::Token`].
    pub gate: &'a [f64],
    /// Feature weights `[Hkv, D, Fw]` of the softmax pair.
    pub fmap_w: &'a [f64],
    /// 1 at the first token of each new document, `[B, T]`.
    pub reset: &'a [u8],
    /// Memory at the start `[B, Hkv, F, Dv]`.
    pub m0: &'a [f64],
    /// Normaliser at the start `[B, Hkv, F]`.
    pub z0: &'a [f64],
}

/// Results of [`forward`].
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// `[B, T, H, Dv]`.
    pub y: Vec<f64>,
    /// What the memory answered, `[B, T, H, Dv]`.
    pub a_mem: Vec<f64>,
    /// What the window answered, `[B, T, H, Dv]`.
    pub a_dot: Vec<f64>,
    /// Final memory `[B, Hkv, F, Dv]`.
    pub m: Vec<f64>,
    /// Final normaliser `[B, Hkv, F]`; empty for [`Rule::SeqDelta`].
    pub z: Vec<f64>,
}

/// Gradients of [`backward`], one for each float input, in its layout.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Grads {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub w: Vec<f64>,
    pub a: Vec<f64>,
    pub c: Vec<f64>,
    pub beta: Vec<f64>,
    pub gate: Vec<f64>,
    pub fmap_w: Vec<f64>,
    pub m0: Vec<f64>,
    pub z0: Vec<f64>,
}

/// The memory of one batch row and key/value head.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// `[F, Dv]`.
    pub m: Vec<f64>,
    /// `[F]`; unused by [`Rule::SeqDelta`].
    pub z: Vec<f64>,
}

impl State {
    fn empty(d: Dims) -> State {
        State { m: vec![0.0; d.f * d.dv], z: vec![0.0; d.f] }
    }
}

/// R_p x of §1, the rotation by position `p` (negative: its transpose).
pub fn rotate(x: &[f64], p: f64, layout: Rope, theta: f64) -> Vec<f64> {
    let (d, mut y) = (x.len(), x.to_vec());
    for i in 0..d / 2 {
        let (i0, i1) = match layout {
            Rope::None => break,
            Rope::Half => (i, i + d / 2),
            Rope::Interleaved => (2 * i, 2 * i + 1),
        };
        let (s, c) = (p * theta.powf(-2.0 * i as f64 / d as f64)).sin_cos();
        (y[i0], y[i1]) = (x[i0] * c - x[i1] * s, x[i0] * s + x[i1] * c);
    }
    y
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// `y += s x`.
fn axpy(s: f64, x: &[f64], y: &mut [f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += s * x;
    }
}

/// `f M` for `m [F, Dv]`.
fn vec_mat(f: &[f64], m: &[f64]) -> Vec<f64> {
    let dv = m.len() / f.len();
    let mut out = vec![0.0; dv];
    for (f, row) in f.iter().zip(m.chunks_exact(dv)) {
        axpy(*f, row, &mut out);
    }
    out
}

/// `v Mᵀ` for `m [F, Dv]`.
fn vec_mat_t(v: &[f64], m: &[f64]) -> Vec<f64> {
    m.chunks_exact(v.len()).map(|row| dot(v, row)).collect()
}

/// `M += s fᵀ v`.
fn outer(s: f64, f: &[f64], v: &[f64], m: &mut [f64]) {
    for (f, row) in f.iter().zip(m.chunks_exact_mut(v.len())) {
        axpy(s * f, v, row);
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// (3): the denominator `φ·z + c`, none where the guard holds it (D3).
fn denominator(f: &[f64], s: &State, c: f64) -> Option<f64> {
    let den = dot(f, &s.z) + c;
    (den > f64::MIN_POSITIVE).then_some(den)
}

/// (3), for [`Rule::SeqDelta`] the read of (6).
pub fn read(rule: Rule, f: &[f64], s: &State, c: f64) -> Vec<f64> {
    let num = vec_mat(f, &s.m);
    if rule == Rule::SeqDelta {
        return num;
    }
    match denominator(f, s, c) {
        Some(den) => num.iter().map(|x| x / den).collect(),
        None => vec![0.0; num.len()],
    }
}

/// One token as the memory takes it: φ(k), v, write strength, decay.
pub struct Token<'a> {
    /// φ(k) `[F]`.
    pub phi: Vec<f64>,
    /// v `[Dv]`.
    pub v: &'a [f64],
    /// Write strength.
    pub w: f64,
    /// Decay of [`Rule::SeqDelta`].
    pub a: f64,
}

/// (4), (5) or (6): the state after a segment's tokens.
pub fn write(rule: Rule, tokens: &[Token], s: &State, c: f64) -> State {
    let mut new = s.clone();
    for t in tokens {
        match rule {
            Rule::Linear => outer(t.w, &t.phi, t.v, &mut new.m),
            Rule::Delta => {
                let mut d = t.v.to_vec();
                axpy(-1.0, &read(rule, &t.phi, s, c), &mut d);
                outer(t.w, &t.phi, &d, &mut new.m);
            }
            Rule::SeqDelta => {
                let mut d = t.v.to_vec();
                axpy(-t.a, &vec_mat(&t.phi, &new.m), &mut d);
                new.m.iter_mut().for_each(|x| *x *= t.a);
                outer(t.w, &t.phi, &d, &mut new.m);
            }
        }
        if rule != Rule::SeqDelta {
            axpy(t.w, &t.phi, &mut new.z);
        }
    }
    new
}

impl<'a> Inputs<'a> {
    fn at(x: &'a [f64], i: usize, absent: f64) -> f64 {
        if x.is_empty() { absent } else { x[i] }
    }
    fn q(&self, b: usize, t: usize, h: usize) -> &'a [f64] {
        let i = ((b * self.dims.t + t) * self.dims.h + h) * self.dims.d;
        &self.q[i..i + self.dims.d]
    }
    fn k(&self, b: usize, t: usize, n: usize) -> &'a [f64] {
        let i = ((b * self.dims.t + t) * self.dims.hkv + n) * self.dims.d;
        &self.k[i..i + self.dims.d]
    }
    fn v(&self, b: usize, t: usize, n: usize) -> &'a [f64] {
        let i = ((b * self.dims.t + t) * self.dims.hkv + n) * self.dims.dv;
        &self.v[i..i + self.dims.dv]
    }
    fn fmap_w(&self, n: usize) -> &'a [f64] {
        let w = self.fmap_w.len() / self.dims.hkv.max(1);
        &self.fmap_w[n * w..(n + 1) * w]
    }
    fn reset(&self, b: usize, t: usize) -> bool {
        !self.reset.is_empty() && self.reset[b * self.dims.t + t] != 0
    }
    fn resets(&self, b: usize) -> &'a [u8] {
        if self.reset.is_empty() { &[] } else { &self.reset[b * self.dims.t..(b + 1) * self.dims.t] }
    }
    fn c(&self, n: usize) -> f64 {
        Self::at(self.c, n, 0.0)
    }
    fn token(&self, s: &Settings, b: usize, t: usize, n: usize) -> Token<'a> {
        let i = (b * self.dims.t + t) * self.dims.hkv + n;
        Token {
            phi: phi(s.features, self.k(b, t, n), self.fmap_w(n)),
            v: self.v(b, t, n),
            w: Self::at(self.w, i, 1.0),
            a: Self::at(self.a, i, 1.0),
        }
    }
    fn start(&self, b: usize, n: usize) -> State {
        let (d, mut s) = (self.dims, State::empty(self.dims));
        let i = b * d.hkv + n;
        if !self.m0.is_empty() {
            s.m.copy_from_slice(&self.m0[i * d.f * d.dv..(i + 1) * d.f * d.dv]);
        }
        if !self.z0.is_empty() {
            s.z.copy_from_slice(&self.z0[i * d.f..(i + 1) * d.f]);
        }
        s
    }
    /// `g` of (10) for token t and head h.
    fn g(&self, mix: Mix, b: usize, t: usize, h: usize) -> f64 {
        match mix {
            Mix::Head => sigmoid(self.beta[h]),
            Mix::Token => sigmoid(self.gate[(b * self.dims.t + t) * self.dims.h + h]),
            Mix::Add | Mix::Memory => f64::NAN,
        }
    }
    /// R_j k_j of every key of head n.
    fn turned_keys(&self, s: &Settings, b: usize, n: usize) -> Vec<Vec<f64>> {
        (0..self.dims.t).map(|j| rotate(self.k(b, j, n), j as f64, s.rope, s.theta)).collect()
    }
    /// The probabilities of (1) of query t, turned, over the turned keys `from..=t`.
    fn probabilities(&self, q: &[f64], keys: &[Vec<f64>], t: usize, from: usize) -> Vec<f64> {
        let scale = (self.dims.d as f64).sqrt();
        softmax(&keys[from..=t].iter().map(|k| dot(q, k) / scale).collect::<Vec<_>>())
    }
    /// First key of V(t) in (2).
    fn first_visible(&self, s: &Settings, b: usize, t: usize) -> usize {
        let window = (t / s.segment_len + 1).saturating_sub(s.span) * s.segment_len;
        (window..=t).rev().find(|&j| self.reset(b, j)).unwrap_or(window)
    }
}

fn softmax(l: &[f64]) -> Vec<f64> {
    let m = l.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
    let e: Vec<f64> = l.iter().map(|x| (x - m).exp()).collect();
    let s: f64 = e.iter().sum();
    e.iter().map(|x| x / s).collect()
}

/// Infini-attention, token by token: (1)–(6), (10), documents by the eager machine of §7.
pub fn forward(s: &Settings, x: &Inputs) -> Outputs {
    let d = x.dims;
    let rows = d.b * d.t * d.h * d.dv;
    let mut out = Outputs { y: vec![0.0; rows], a_mem: vec![0.0; rows], a_dot: vec![0.0; rows], ..Outputs::default() };
    for b in 0..d.b {
        for n in 0..d.hkv {
            let (c, keys) = (x.c(n), x.turned_keys(s, b, n));
            let mut state = x.start(b, n);
            // tokens of the open segment and, with lag 1, of the one that waits to be written
            let (mut open, mut waiting): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
            let write_all = |ts: &[usize], st: &State| {
                let tokens: Vec<Token> = ts.iter().map(|&t| x.token(s, b, t, n)).collect();
                write(s.rule, &tokens, st, c)
            };
            for t in 0..d.t {
                if x.reset(b, t) {
                    state = State::empty(d);
                    open.clear();
                    waiting.clear();
                }
                open.push(t);
                for h in n * (d.h / d.hkv)..(n + 1) * (d.h / d.hkv) {
                    let i = ((b * d.t + t) * d.h + h) * d.dv;
                    let from = x.first_visible(s, b, t);
                    let q = rotate(x.q(b, t, h), t as f64, s.rope, s.theta);
                    // a memory alone has no window
                    let probabilities = match s.mix {
                        Mix::Memory => Vec::new(),
                        _ => x.probabilities(&q, &keys, t, from),
                    };
                    for (j, p) in probabilities.iter().enumerate() {
                        axpy(*p, x.v(b, from + j, n), &mut out.a_dot[i..i + d.dv]);
                    }
                    let f = phi(s.features, x.q(b, t, h), x.fmap_w(n));
                    out.a_mem[i..i + d.dv].copy_from_slice(&read(s.rule, &f, &state, c));
                    let (wm, wd) = match s.mix {
                        Mix::Add => (1.0, 1.0),
                        Mix::Memory => (1.0, 0.0),
                        _ => (x.g(s.mix, b, t, h), 1.0 - x.g(s.mix, b, t, h)),
                    };
                    for e in i..i + d.dv {
                        out.y[e] = wm * out.a_mem[e] + wd * out.a_dot[e];
                    }
                }
                if (t + 1) % s.segment_len == 0 {
                    if s.lag == 0 {
                        state = write_all(&open, &state);
                    } else {
                        state = write_all(&waiting, &state);
                        waiting = std::mem::take(&mut open);
                    }
                    open.clear();
                }
            }
            if s.final_state == FinalState::Flush {
                state = write_all(&waiting, &state);
                state = write_all(&open, &state);
            }
            out.m.extend(state.m);
            if s.rule != Rule::SeqDelta {
                out.z.extend(state.z);
            }
        }
    }
    out
}

/// The chain P_0, P_1, … of §4 for one batch row and head, before the document masks of the reads.
pub fn states(s: &Settings, x: &Inputs, b: usize, n: usize) -> Vec<State> {
    let mut p = vec![x.start(b, n)];
    let sched = Schedule::new(s, x.dims.t);
    for j in 0..sched.written {
        let (tokens, keep) = sched.writes(j, x.resets(b));
        let before = if keep { p[j].clone() } else { State::empty(x.dims) };
        let tokens: Vec<Token> = tokens.map(|t| x.token(s, b, t, n)).collect();
        p.push(write(s.rule, &tokens, &before, x.c(n)));
    }
    p
}

/// The hand-derived gradients of §9 from those of the outputs: `dy [B, T, H, Dv]`, `dm`, `dz` (empty for
/// [`Rule::SeqDelta`]).
pub fn backward(s: &Settings, x: &Inputs, dy: &[f64], dm: &[f64], dz: &[f64]) -> Grads {
    let d = x.dims;
    let fwd = forward(s, x);
    let (sched, group, fdv) = (Schedule::new(s, d.t), d.h / d.hkv, d.f * d.dv);
    let zeros = |like: &[f64]| vec![0.0; like.len()];
    let mut g = Grads {
        q: zeros(x.q),
        k: zeros(x.k),
        v: zeros(x.v),
        w: vec![0.0; d.b * d.t * d.hkv],
        a: vec![0.0; if s.rule == Rule::SeqDelta { d.b * d.t * d.hkv } else { 0 }],
        c: vec![0.0; if s.rule == Rule::SeqDelta { 0 } else { d.hkv }],
        beta: zeros(x.beta),
        gate: zeros(x.gate),
        fmap_w: zeros(x.fmap_w),
        m0: vec![0.0; d.b * d.hkv * fdv],
        z0: vec![0.0; if s.rule == Rule::SeqDelta { 0 } else { d.b * d.hkv * d.f }],
    };
    for b in 0..d.b {
        for n in 0..d.hkv {
            let p = states(s, x, b, n);
            let bn = b * d.hkv + n;
            let wn = n * x.fmap_w(n).len();
            let phi_k: Vec<Vec<f64>> = (0..d.t).map(|t| x.token(s, b, t, n).phi).collect();
            let mut dphi_k = vec![vec![0.0; d.f]; d.t];
            let (keys, mut dkeys) = (x.turned_keys(s, b, n), vec![vec![0.0; d.d]; d.t]);
            let mut dp: Vec<State> = p.iter().map(|_| State::empty(d)).collect();
            let last = sched.written;
            if sched.final_survives(x.resets(b)) {
                dp[last].m.copy_from_slice(&dm[bn * fdv..(bn + 1) * fdv]);
                if s.rule != Rule::SeqDelta {
                    dp[last].z.copy_from_slice(&dz[bn * d.f..(bn + 1) * d.f]);
                }
            }
            for h in n * group..(n + 1) * group {
                for t in 0..d.t {
                    let i = ((b * d.t + t) * d.h + h) * d.dv;
                    let (dy, a_mem, a_dot) = (&dy[i..i + d.dv], &fwd.a_mem[i..i + d.dv], &fwd.a_dot[i..i + d.dv]);
                    let dq_at = ((b * d.t + t) * d.h + h) * d.d;
                    // (a) mix
                    let (wm, wd) = match s.mix {
                        Mix::Add => (1.0, 1.0),
                        Mix::Memory => (1.0, 0.0),
                        _ => (x.g(s.mix, b, t, h), 1.0 - x.g(s.mix, b, t, h)),
                    };
                    let dlogit = wm * wd * (dot(dy, a_mem) - dot(dy, a_dot));
                    match s.mix {
                        Mix::Add | Mix::Memory => {}
                        Mix::Head => g.beta[h] += dlogit,
                        Mix::Token => g.gate[(b * d.t + t) * d.h + h] = dlogit,
                    }
                    let d_mem: Vec<f64> = dy.iter().map(|y| wm * y).collect();
                    let d_dot: Vec<f64> = dy.iter().map(|y| wd * y).collect();
                    // (b) local
                    let from = x.first_visible(s, b, t);
                    let scale = (d.d as f64).sqrt();
                    let row = dot(&d_dot, a_dot);
                    let q = rotate(x.q(b, t, h), t as f64, s.rope, s.theta);
                    let mut dq = vec![0.0; d.d];
                    for (j, p) in x.probabilities(&q, &keys, t, from).iter().enumerate() {
                        let j = from + j;
                        let jn = (b * d.t + j) * d.hkv + n;
                        axpy(*p, &d_dot, &mut g.v[jn * d.dv..(jn + 1) * d.dv]);
                        let ds = p * (dot(&d_dot, x.v(b, j, n)) - row) / scale;
                        axpy(ds, &keys[j], &mut dq);
                        axpy(ds, &q, &mut dkeys[j]);
                    }
                    axpy(1.0, &rotate(&dq, -(t as f64), s.rope, s.theta), &mut g.q[dq_at..dq_at + d.d]);
                    // (c) read of P_i, if no reset lies in [i S, t]
                    let i = sched.state_read(t / s.segment_len);
                    if (i * s.segment_len..=t).any(|t| x.reset(b, t)) {
                        continue;
                    }
                    let f = phi(s.features, x.q(b, t, h), x.fmap_w(n));
                    let df = read_backward(s.rule, &f, &p[i], x.c(n), a_mem, &d_mem, &mut dp[i], g.c.get_mut(n));
                    let dw = &mut g.fmap_w[wn..wn + x.fmap_w(n).len()];
                    let dq = phi_backward(s.features, x.q(b, t, h), x.fmap_w(n), &f, &df, dw);
                    axpy(1.0, &dq, &mut g.q[dq_at..dq_at + d.d]);
                }
            }
            for j in (0..p.len() - 1).rev() {
                let (ts, keep) = sched.writes(j, x.resets(b));
                let before = if keep { p[j].clone() } else { State::empty(d) };
                let tokens: Vec<Token> = ts.clone().map(|t| x.token(s, b, t, n)).collect();
                let back = write_backward(s.rule, &tokens, &before, x.c(n), &dp[j + 1]);
                for (t, r) in ts.zip(back.tokens) {
                    let i = (b * d.t + t) * d.hkv + n;
                    axpy(1.0, &r.v, &mut g.v[i * d.dv..(i + 1) * d.dv]);
                    axpy(1.0, &r.phi, &mut dphi_k[t]);
                    g.w[i] += r.w;
                    if s.rule == Rule::SeqDelta {
                        g.a[i] += r.a;
                    }
                }
                if let Some(c) = g.c.get_mut(n) {
                    *c += back.c;
                }
                if keep {
                    axpy(1.0, &back.state.m, &mut dp[j].m);
                    axpy(1.0, &back.state.z, &mut dp[j].z);
                }
            }
            for t in 0..d.t {
                let i = (b * d.t + t) * d.hkv + n;
                let dw = &mut g.fmap_w[wn..wn + x.fmap_w(n).len()];
                let dk = phi_backward(s.features, x.k(b, t, n), x.fmap_w(n), &phi_k[t], &dphi_k[t], dw);
                axpy(1.0, &dk, &mut g.k[i * d.d..(i + 1) * d.d]);
                axpy(1.0, &rotate(&dkeys[t], -(t as f64), s.rope, s.theta), &mut g.k[i * d.d..(i + 1) * d.d]);
            }
            g.m0[bn * fdv..(bn + 1) * fdv].copy_from_slice(&dp[0].m);
            if s.rule != Rule::SeqDelta {
                g.z0[bn * d.f..(bn + 1) * d.f].copy_from_slice(&dp[0].z);
            }
        }
    }
    g
}

/// §9 c for one row: adds to the gradients of the state and of c, returns that of φ.
fn read_backward(
    rule: Rule,
    f: &[f64],
    p: &State,
    c: f64,
    answer: &[f64],
    d_answer: &[f64],
    dp: &mut State,
    dc: Option<&mut f64>,
) -> Vec<f64> {
    if rule == Rule::SeqDelta {
        outer(1.0, f, d_answer, &mut dp.m);
        return vec_mat_t(d_answer, &p.m);
    }
    let Some(den) = denominator(f, p, c) else { return vec![0.0; f.len()] };
    let u: Vec<f64> = d_answer.iter().map(|x| x / den).collect();
    let e = dot(&u, answer);
    outer(1.0, f, &u, &mut dp.m);
    axpy(-e, f, &mut dp.z);
    if let Some(dc) = dc {
        *dc -= e;
    }
    let mut df = vec_mat_t(&u, &p.m);
    axpy(-e, &p.z, &mut df);
    df
}

struct TokenGrad {
    phi: Vec<f64>,
    v: Vec<f64>,
    w: f64,
    a: f64,
}

struct WriteGrad {
    tokens: Vec<TokenGrad>,
    state: State,
    c: f64,
}

/// §9 d; for [`Rule::SeqDelta`] the derivative of (6) itself, token by token (the kernels use §9 e).
fn write_backward(rule: Rule, tokens: &[Token], s: &State, c: f64, up: &State) -> WriteGrad {
    let (f, dv) = (s.z.len(), s.m.len() / s.z.len());
    let mut r = WriteGrad { tokens: Vec::new(), state: up.clone(), c: 0.0 };
    if rule == Rule::SeqDelta {
        let mut states = vec![s.clone()];
        for i in 0..tokens.len() {
            states.push(write(rule, &tokens[i..=i], &states[i], c));
        }
        let mut g = up.m.clone();
        for (t, prev) in tokens.iter().zip(&states).rev() {
            // M = a Mp + kᵀ u, u = w (v − a k Mp); y = dL/du
            let (y, km) = (vec_mat(&t.phi, &g), vec_mat(&t.phi, &prev.m));
            let e: Vec<f64> = (0..dv).map(|i| t.v[i] - t.a * km[i]).collect();
            let u: Vec<f64> = e.iter().map(|e| t.w * e).collect();
            let mut dphi = vec_mat_t(&u, &g);
            axpy(-t.a * t.w, &vec_mat_t(&y, &prev.m), &mut dphi);
            r.tokens.push(TokenGrad {
                phi: dphi,
                v: y.iter().map(|y| t.w * y).collect(),
                w: dot(&y, &e),
                a: dot(&g, &prev.m) - t.w * dot(&y, &km),
            });
            g.iter_mut().for_each(|g| *g *= t.a);
            outer(-t.a * t.w, &t.phi, &y, &mut g);
        }
        r.tokens.reverse();
        r.state.m = g;
        return r;
    }
    for t in tokens {
        let y = vec_mat(&t.phi, &up.m);
        let mut dphi = vec![0.0; f];
        let mut e = t.v.to_vec();
        if rule == Rule::Delta {
            let answer = read(rule, &t.phi, s, c);
            axpy(-1.0, &answer, &mut e);
            let dr: Vec<f64> = y.iter().map(|y| -t.w * y).collect();
            dphi = read_backward(rule, &t.phi, s, c, &answer, &dr, &mut r.state, Some(&mut r.c));
        }
        axpy(t.w, &vec_mat_t(&e, &up.m), &mut dphi);
        axpy(t.w, &up.z, &mut dphi);
        r.tokens.push(TokenGrad {
            phi: dphi,
            v: y.iter().map(|y| t.w * y).collect(),
            w: dot(&y, &e) + dot(&t.phi, &up.z),
            a: 0.0,
        });
    }
    r
}
