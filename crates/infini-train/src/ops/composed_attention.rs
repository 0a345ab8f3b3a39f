//! Infini-attention in ordinary tensor ops: a loop over segments, equations numbered as in
//! `docs/math.md`.

use burn::tensor::{DType, Tensor, TensorData, activation};

use super::composed::mask;
use super::{AttentionInputs, Tokens};
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};

/// The memory at a segment border: `m [B, Hkv, F, Dv]`, `z [B, Hkv, F, 1]`.
#[derive(Clone)]
pub struct State {
    /// Values by feature.
    pub m: Tensor<4>,
    /// Normaliser; zeros under the sequential delta rule, which has none.
    pub z: Tensor<4>,
}

/// One query or key/value head shape.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of q and k.
    pub width: usize,
}

/// y `[B T, H Dv]` and the state after the input; `start` is the state before it (`None`: empty).
pub fn attention(
    s: &Settings,
    shape: HeadShape,
    x: &AttentionInputs,
    t: &Tokens,
    start: Option<State>,
) -> (Tensor<2>, State) {
    let HeadShape { heads: h, kv_heads: n, width: d } = shape;
    let (b, len, g) = (t.batch, t.len, h / n);
    let dv = x.v.dims()[1] / n;
    let seg = s.segment_len.min(len.max(1));
    let docs = Documents::new(t);
    // [B, heads, T, width]
    let split = |x: &Tensor<2>, h: usize, w: usize| x.clone().reshape([b, len, h, w]).swap_dims(1, 2);
    let (q, k, v) = (split(&x.q, h, d), split(&x.k, n, d), split(&x.v, n, dv));
    let (qr, kr) = (rotate(q.clone(), s), rotate(k.clone(), s));
    let spread = |x: Tensor<4>| -> Tensor<4> {
        let [b, n, t, w] = x.dims();
        x.reshape([b, n, 1, t, w]).expand([b, n, g, t, w]).reshape([b, h, t, w])
    };
    let (kr, vr) = (spread(kr), spread(v.clone()));

    // φ of the group's queries side by side: [B, Hkv, G T, F]
    let fmap = x.fmap.as_ref();
    let fk = phi(k, s.features, fmap);
    let fq = phi(q.reshape([b, n, g * len, d]), s.features, fmap);
    let f = fk.dims()[3];
    let fq = fq.reshape([b, n, g, len, f]);
    let c = match &x.c {
        Some(c) => c.clone().reshape([1, n, 1, 1]),
        None => Tensor::zeros([1, n, 1, 1], (&x.q.device(), x.q.dtype())),
    };
    let per_token = |x: &Option<Tensor<2>>| match x {
        Some(x) => x.clone().reshape([b, len, n, 1]).swap_dims(1, 2),
        None => Tensor::ones([b, n, len, 1], (&fk.device(), fk.dtype())),
    };
    let (w, a) = (per_token(&x.w), per_token(&x.a));

    let closed = len / s.segment_len;
    let all = len.div_ceil(seg);
    let written = if s.final_state == FinalState::Flush { all } else { closed.saturating_sub(s.lag) };
    let mut states = vec![start.unwrap_or_else(|| State {
        m: Tensor::zeros([b, n, f, dv], (&fk.device(), fk.dtype())),
        z: Tensor::zeros([b, n, f, 1], (&fk.device(), fk.dtype())),
    })];
    let (mut dots, mut mems) = (Vec::new(), Vec::new());
    for j in 0..all.max(written) {
        let (from, to) = (j * seg, ((j + 1) * seg).min(len));
        let rows = |x: &Tensor<4>| x.clone().narrow(2, from, to - from);
        // (1), (2): own segment, and the one before with span 2
        let first = (j + 1).saturating_sub(s.span) * seg;
        dots.push(local(rows(&qr), &kr, &vr, first, from, d, &docs));
        // (3)
        let i = j.saturating_sub(s.lag);
        let fq = fq.clone().narrow(3, from, to - from).reshape([b, n, g * (to - from), f]);
        let mut allowed = Vec::with_capacity(b * g * (to - from));
        for row in 0..b {
            let one: Vec<bool> = (from..to).map(|p| !docs.any(row, i * seg, p + 1)).collect();
            (0..g).for_each(|_| allowed.extend(&one));
        }
        let read = read(s.rule, fq, &states[i], &c, Some(allowed));
        mems.push(read.reshape([b, h, to - from, dv]));
        // (4), (5), (6); the state after the last segment that anything reads is not needed
        if j < written || j + 1 + s.lag < all {
            let before = states[j].clone();
            let keep: Vec<bool> = (0..b).map(|row| docs.any(row, from, to)).collect();
            let before = State { m: forget(before.m, &keep), z: forget(before.z, &keep) };
            // only the tokens from the last reset of the segment on are written
            let stale: Vec<bool> = (0..b)
                .flat_map(|row| (from..to).map(move |p| (row, p)))
                .map(|(row, p)| docs.any(row, p + 1, to))
                .collect();
            let stale = mask([b, 1, to - from, 1], stale, &w).expand([b, n, to - from, 1]);
            let w = rows(&w).mask_fill(stale.clone(), 0.0);
            let a = rows(&a).mask_fill(stale, 1.0);
            states.push(write(s.rule, rows(&fk), rows(&v), w, a, before, &c));
        }
    }
    let gone: Vec<bool> = (0..b).map(|row| docs.any(row, written * seg, len)).collect();
    let last = states[written].clone();
    let last = State { m: forget(last.m, &gone), z: forget(last.z, &gone) };
    let (dot, mem) = (Tensor::cat(dots, 2), Tensor::cat(mems, 2));
    // (10)
    let y = match s.mix {
        Mix::Add => mem + dot,
        Mix::Memory => mem,
        Mix::Head => {
            let gate = activation::sigmoid(x.beta.clone().expect("mix = head has a beta").reshape([1, h, 1, 1]));
            dot.clone() + (mem - dot) * gate
        }
        Mix::Token => {
            let gate = x.gate.clone().expect("mix = token has a gate").reshape([b, len, h, 1]).swap_dims(1, 2);
            dot.clone() + (mem - dot) * activation::sigmoid(gate)
        }
    };
    (y.swap_dims(1, 2).reshape([b * len, h * dv]), last)
}

/// [`attention`] from and to memories as plain numbers.
pub fn attention_from(
    s: &Settings,
    shape: HeadShape,
    x: &AttentionInputs,
    t: &Tokens,
    start: Option<[&[f32]; 2]>,
) -> (Tensor<2>, [Vec<f32>; 2]) {
    let (b, n) = (t.batch, shape.kv_heads);
    let dv = x.v.dims()[1] / n;
    let start = start.map(|[m, z]| {
        let f = m.len() / (b * n * dv);
        let tensor = |values: Vec<f32>, shape: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(values, shape), (&x.q.device(), x.q.dtype()))
        };
        let z = if z.is_empty() { vec![0.0; b * n * f] } else { z.to_vec() };
        State { m: tensor(m.to_vec(), [b, n, f, dv]), z: tensor(z, [b, n, f, 1]) }
    });
    let (y, end) = attention(s, shape, x, t, start);
    let values =
        |x: Tensor<4>| x.detach().into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for");
    let z = if s.rule == Rule::SeqDelta { Vec::new() } else { values(end.z) };
    (y, [values(end.m), z])
}

/// Exact attention alone, over at most `span` segments: y `[B T, H Dv]`.
pub fn window(s: &Settings, shape: HeadShape, x: &AttentionInputs, t: &Tokens) -> Tensor<2> {
    let HeadShape { heads: h, kv_heads: n, width: d } = shape;
    let (b, len, g) = (t.batch, t.len, h / n);
    let dv = x.v.dims()[1] / n;
    let seg = s.segment_len.min(len.max(1));
    let docs = Documents::new(t);
    let split = |x: &Tensor<2>, h: usize, w: usize| x.clone().reshape([b, len, h, w]).swap_dims(1, 2);
    let spread = |x: Tensor<4>, w: usize| -> Tensor<4> {
        x.reshape([b, n, 1, len, w]).expand([b, n, g, len, w]).reshape([b, h, len, w])
    };
    let q = rotate(split(&x.q, h, d), s);
    let k = spread(rotate(split(&x.k, n, d), s), d);
    let v = spread(split(&x.v, n, dv), dv);
    let parts = (0..len.div_ceil(seg)).map(|j| {
        let (from, to) = (j * seg, ((j + 1) * seg).min(len));
        let first = (j + 1).saturating_sub(s.span) * seg;
        local(q.clone().narrow(2, from, to - from), &k, &v, first, from, d, &docs)
    });
    Tensor::cat(parts.collect(), 2).swap_dims(1, 2).reshape([b * len, h * dv])
}

/// Causal softmax of the queries at `from..` over the keys at `first..`, within documents.
fn local(
    q: Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    first: usize,
    from: usize,
    d: usize,
    docs: &Documents,
) -> Tensor<4> {
    let [b, h, rows, _] = q.dims();
    let cols = from + rows - first;
    let (k, v) = (k.clone().narrow(2, first, cols), v.clone().narrow(2, first, cols));
    let logits = q.matmul(k.swap_dims(2, 3)) * (d as f64).powf(-0.5);
    let hidden = (0..b).flat_map(|row| (from..from + rows).map(move |i| (row, i)));
    let hidden = hidden.flat_map(|(row, i)| (first..first + cols).map(move |j| (row, i, j)));
    let hidden = hidden.map(|(row, i, j)| j > i || docs.any(row, j + 1, i + 1)).collect();
    let hidden = mask([b, 1, rows, cols], hidden, &logits).expand([b, h, rows, cols]);
    activation::softmax(logits.mask_fill(hidden, f32::NEG_INFINITY), 3).matmul(v)
}

/// (3): `φ M / (φ·z + c)`, 0 where the denominator is not a normal number or reading is not allowed.
fn read(rule: Rule, f: Tensor<4>, state: &State, c: &Tensor<4>, allowed: Option<Vec<bool>>) -> Tensor<4> {
    let [b, n, rows, _] = f.dims();
    let blocked =
        allowed.map(|ok| mask([b, 1, rows, 1], ok.into_iter().map(|ok| !ok).collect(), &f).expand([b, n, rows, 1]));
    let num = f.clone().matmul(state.m.clone());
    let dv = num.dims()[3];
    if rule == Rule::SeqDelta {
        return match blocked {
            Some(blocked) => num.mask_fill(blocked.expand([b, n, rows, dv]), 0.0),
            None => num,
        };
    }
    let den = f.matmul(state.z.clone()) + c.clone();
    let tiny = if den.dtype() == DType::F64 { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    let mut guarded = den.clone().lower_equal_scalar(tiny);
    if let Some(blocked) = blocked {
        guarded = guarded.bool_or(blocked);
    }
    (num / den.mask_fill(guarded.clone(), 1.0)).mask_fill(guarded.expand([b, n, rows, dv]), 0.0)
}

/// (4), (5) or (6): the state after one segment.
fn write(
    rule: Rule,
    f: Tensor<4>,
    v: Tensor<4>,
    w: Tensor<4>,
    a: Tensor<4>,
    State { m, z }: State,
    c: &Tensor<4>,
) -> State {
    if rule == Rule::SeqDelta {
        let mut m = m;
        for t in 0..f.dims()[2] {
            let at = |x: &Tensor<4>| x.clone().narrow(2, t, 1);
            let (f, v, w, a) = (at(&f), at(&v), at(&w), at(&a));
            let decayed = m * a;
            let error = v - f.clone().matmul(decayed.clone());
            m = decayed + (f * w).swap_dims(2, 3).matmul(error);
        }
        return State { m, z };
    }
    let v = match rule {
        Rule::Delta => v - read(rule, f.clone(), &State { m: m.clone(), z: z.clone() }, c, None),
        _ => v,
    };
    let fw = (f * w).swap_dims(2, 3);
    State { m: m + fw.clone().matmul(v), z: z + fw.sum_dim(3) }
}

/// Zeroes the rows of the batch that `gone` names.
fn forget(x: Tensor<4>, gone: &[bool]) -> Tensor<4> {
    if gone.iter().any(|g| *g) {
        let [b, n, f, d] = x.dims();
        let gone = mask([b, 1, 1, 1], gone.to_vec(), &x).expand([b, n, f, d]);
        x.mask_fill(gone, 0.0)
    } else {
        x
    }
}

/// Section 2: φ of the last dimension of `x [B, Hkv, rows, D]`.
pub fn phi(x: Tensor<4>, features: Features, fmap: Option<&Tensor<3>>) -> Tensor<4> {
    match features {
        Features::Elu1 => {
            let above = x.clone().greater_scalar(0.0);
            x.clone().clamp_max(0.0).exp().mask_where(above, x + 1.0)
        }
        Features::SoftmaxPair => {
            let w = fmap.expect("the softmax pair has a projection").clone();
            let u = x.matmul(w.unsqueeze());
            Tensor::cat(vec![activation::softmax(u.clone(), 3), activation::softmax(u.neg(), 3)], 3)
        }
        Features::L2 => {
            let norm = (x.clone().square().sum_dim(3) + 1e-6).sqrt();
            x / norm
        }
    }
}

/// Rotary positions of `x [B, heads, T, D]`, positions from 0; angles in f64.
fn rotate(x: Tensor<4>, s: &Settings) -> Tensor<4> {
    let [b, h, t, d] = x.dims();
    if s.rope == Rope::None {
        return x;
    }
    let angle = |p: usize, i: usize| p as f64 * s.theta.powf(-2.0 * i as f64 / d as f64);
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f64> = (0..t).flat_map(|p| (0..d / 2).map(move |i| f(angle(p, i)))).collect();
        Tensor::<4>::from_data(TensorData::new(values, [1, 1, t, d / 2]), (&x.device(), x.dtype()))
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let turn = |x0: Tensor<4>, x1: Tensor<4>| {
        (x0.clone() * cos.clone() - x1.clone() * sin.clone(), x0 * sin.clone() + x1 * cos.clone())
    };
    if s.rope == Rope::Half {
        let (y0, y1) = turn(x.clone().narrow(3, 0, d / 2), x.narrow(3, d / 2, d / 2));
        Tensor::cat(vec![y0, y1], 3)
    } else {
        let pairs = x.reshape([b, h, t, d / 2, 2]);
        let part = |i| pairs.clone().narrow(4, i, 1).reshape([b, h, t, d / 2]);
        let (y0, y1) = turn(part(0), part(1));
        let column = |y: Tensor<4>| y.reshape([b, h, t, d / 2, 1]);
        Tensor::cat(vec![column(y0), column(y1)], 4).reshape([b, h, t, d])
    }
}

/// Where documents begin, as running counts.
struct Documents {
    /// `[B, T + 1]`: resets before position p.
    counts: Vec<u32>,
    len: usize,
}

impl Documents {
    fn new(t: &Tokens) -> Self {
        let mut counts = Vec::with_capacity(t.batch * (t.len + 1));
        for row in 0..t.batch {
            let mut n = 0;
            counts.push(0);
            for p in 0..t.len {
                n += t.reset.map_or(0, |r| u32::from(r[row * t.len + p] != 0));
                counts.push(n);
            }
        }
        Documents { counts, len: t.len }
    }

    /// Whether a document begins in `row` at one of the positions `from..to`.
    fn any(&self, row: usize, from: usize, to: usize) -> bool {
        let at = |p: usize| self.counts[row * (self.len + 1) + p.min(self.len)];
        from < to && at(from) != at(to)
    }
}
