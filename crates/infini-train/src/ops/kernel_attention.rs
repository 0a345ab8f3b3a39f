//! Attention kernels as differentiable operations: all segments, heads and rows in one.

use std::cell::Cell;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Device, Tensor};
use burn_flex::FlexTensor;

use infini_kernels::attention::{self, Grads, Inputs, Outputs, Saved, Upstream};
use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::local::{self, Angles, Window};
use infini_kernels::rope::{Table, frequencies};
use infini_kernels::{Features, Rope, Rule, Settings};

use super::kernel::{finish, parts, slice, upstream, with_scratch, wrap, zeros};
use super::{AttentionInputs, HeadShape, Tokens, absent};

/// What both operations need to know again in the backward pass.
#[derive(Clone, Debug)]
struct Frame {
    settings: Settings,
    shape: HeadShape,
    batch: usize,
    len: usize,
    value_width: usize,
    reset: Option<Vec<u8>>,
    angles: Option<Arc<Table>>,
}

/// The rotations of positions 0..len; layers and steps of one model ask for the same again and again.
fn table(theta: f64, width: usize, len: usize) -> Arc<Table> {
    type Last = Option<((u64, usize, usize), Arc<Table>)>;
    thread_local! { static LAST: Cell<Last> = const { Cell::new(None) } }
    let key = (theta.to_bits(), width, len);
    let table = match LAST.take() {
        Some((k, table)) if k == key => table,
        _ => Arc::new(Table::new(&frequencies(theta, width), 0, len)),
    };
    LAST.set(Some((key, table.clone())));
    table
}

impl Frame {
    fn new(s: &Settings, shape: HeadShape, v: &Tensor<2>, t: &Tokens) -> Self {
        let angles = (s.rope != Rope::None).then(|| table(s.theta, shape.width, t.len));
        let value_width = v.dims()[1] / shape.kv_heads;
        let reset = t.reset.map(<[u8]>::to_vec);
        Frame { settings: *s, shape, batch: t.batch, len: t.len, value_width, reset, angles }
    }

    fn angles(&self) -> Option<Angles<'_>> {
        self.angles.as_ref().map(|t| Angles { cos: &t.cos, sin: &t.sin })
    }

    fn heads<'a>(&self, x: &'a [f32], heads: usize, width: usize) -> Heads<'a> {
        Heads::dense(x, self.batch, self.len, heads, width)
    }

    fn heads_mut<'a>(&self, x: &'a mut [f32], heads: usize, width: usize) -> HeadsMut<'a> {
        HeadsMut::dense(x, self.batch, self.len, heads, width)
    }

    fn rows(&self) -> usize {
        self.batch * self.len
    }

    /// Columns of q, k, v and y.
    fn columns(&self) -> [usize; 4] {
        let HeadShape { heads, kv_heads, width } = self.shape;
        [heads * width, kv_heads * width, kv_heads * self.value_width, heads * self.value_width]
    }

    fn window<'a>(&'a self, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Window<'a> {
        let HeadShape { heads, kv_heads, width } = self.shape;
        Window {
            q: self.heads(q, heads, width),
            q_pos: 0,
            k: self.heads(k, kv_heads, width),
            v: self.heads(v, kv_heads, self.value_width),
            k_pos: 0,
            reset: self.reset.as_deref(),
            angles: self.angles(),
        }
    }
}

/// Names of the nine inputs, in the order of the operation's parents.
const W: usize = 3;
const A: usize = 4;
const C: usize = 5;
const BETA: usize = 6;
const GATE: usize = 7;
const FMAP: usize = 8;

#[derive(Clone, Debug)]
struct AttentionState {
    frame: Frame,
    /// q, k, v, and the optional inputs that are there.
    inputs: [Option<FlexTensor>; 9],
    /// M and z before the first token.
    start: Option<[Vec<f32>; 2]>,
    saved: Arc<Saved>,
}

impl AttentionState {
    fn inputs(&self) -> Inputs<'_> {
        let f = &self.frame;
        let at = |i: usize| self.inputs[i].as_ref().map(slice);
        let window = f.window(at(0).unwrap_or(&[]), at(1).unwrap_or(&[]), at(2).unwrap_or(&[]));
        Inputs {
            q: window.q,
            k: window.k,
            v: window.v,
            w: at(W),
            a: at(A),
            c: at(C),
            beta: at(BETA),
            gate: at(GATE),
            fmap_w: at(FMAP),
            reset: f.reset.as_deref(),
            m0: self.start.as_ref().map(|s| &s[0][..]),
            z0: self.start.as_ref().map(|s| &s[1][..]).filter(|z| !z.is_empty()),
            angles: f.angles(),
        }
    }
}

#[derive(Debug)]
struct Attention;

impl Backward<Flex, 9> for Attention {
    type State = AttentionState;

    fn backward(self, ops: Ops<Self::State, 9>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let state = &ops.state;
        let f = &state.frame;
        let HeadShape { heads, kv_heads, width } = f.shape;
        let x = state.inputs();
        let scratch = attention::scratch_len(&f.settings, &x, rayon::current_num_threads());
        // inputs that are absent or untracked get no gradient
        let wanted = |i: usize| ops.parents[i].is_some() && state.inputs[i].is_some();
        let mut d: [Vec<f32>; 9] = std::array::from_fn(|i| match &state.inputs[i] {
            Some(input) if i < W || wanted(i) => zeros(slice(input).len()),
            _ => Vec::new(),
        });
        {
            let [q, k, v, w, a, c, beta, gate, fmap] = &mut d;
            let mut g = Grads {
                q: f.heads_mut(q, heads, width),
                k: f.heads_mut(k, kv_heads, width),
                v: f.heads_mut(v, kv_heads, f.value_width),
                w: optional(w),
                a: optional(a),
                c: optional(c),
                beta: optional(beta),
                gate: optional(gate),
                fmap_w: optional(fmap),
                m0: None,
                z0: None,
            };
            let up = Upstream { y: f.heads(slice(&dy), heads, f.value_width), m: None, z: None };
            with_scratch(scratch, |scratch| attention::backward(&f.settings, &x, &state.saved, &up, &mut g, scratch));
        }
        let [q, k, v, _] = f.columns();
        let n = f.rows();
        for (i, (node, d)) in ops.parents.iter().zip(d).enumerate() {
            let Some(node) = node.as_ref().filter(|_| !d.is_empty()) else { continue };
            let d = match i {
                0 => wrap(d, [n, q]),
                1 => wrap(d, [n, k]),
                2 => wrap(d, [n, v]),
                W | A => wrap(d, [n, kv_heads]),
                C => wrap(d, [kv_heads]),
                BETA => wrap(d, [heads]),
                GATE => wrap(d, [n, heads]),
                _ => {
                    let columns = d.len() / (kv_heads * width);
                    wrap(d, [kv_heads, width, columns])
                }
            };
            grads.register::<Flex>(node.id, d);
        }
    }
}

fn optional(d: &mut [f32]) -> Option<&mut [f32]> {
    if d.is_empty() { None } else { Some(d) }
}

/// An input and its node.
fn part<const D: usize>(x: Option<&Tensor<D>>, device: &Device) -> (Option<FlexTensor>, NodeGuard) {
    match x {
        Some(x) => {
            let (buffer, node) = parts(x.clone());
            (Some(buffer), node)
        }
        None => (None, parts(absent(device)).1),
    }
}

pub fn attention(
    s: &Settings,
    shape: HeadShape,
    x: &AttentionInputs,
    t: &Tokens,
    start: Option<[&[f32]; 2]>,
) -> (Tensor<2>, [Vec<f32>; 2]) {
    let frame = Frame::new(s, shape, &x.v, t);
    let device = x.q.device();
    let all = [
        part(Some(&x.q), &device),
        part(Some(&x.k), &device),
        part(Some(&x.v), &device),
        part(x.w.as_ref(), &device),
        part(x.a.as_ref(), &device),
        part(x.c.as_ref(), &device),
        part(x.beta.as_ref(), &device),
        part(x.gate.as_ref(), &device),
        part(x.fmap.as_ref(), &device),
    ];
    let (inputs, nodes): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let mut state = AttentionState {
        frame,
        inputs: inputs.try_into().expect("nine inputs"),
        start: start.map(|s| s.map(<[f32]>::to_vec)),
        saved: Arc::default(),
    };
    let [_, _, _, columns] = state.frame.columns();
    let n = state.frame.rows();
    let mut y = zeros(n * columns);
    let mut saved = Saved::default();
    let kv = t.batch * shape.kv_heads;
    let f = match (s.features, &x.fmap) {
        (Features::SoftmaxPair, Some(w)) => 2 * w.dims()[2],
        _ => shape.width,
    };
    let mut end = [zeros(kv * f * state.frame.value_width), zeros(if s.rule == Rule::SeqDelta { 0 } else { kv * f })];
    {
        let x = state.inputs();
        let y = state.frame.heads_mut(&mut y, shape.heads, state.frame.value_width);
        let [m, z] = &mut end;
        let mut out = Outputs { y, m: Some(m), z: optional(z) };
        with_scratch(attention::scratch_len(s, &x, rayon::current_num_threads()), |scratch| {
            attention::forward(s, &x, &mut out, Some(&mut saved), scratch);
        });
    }
    state.saved = Arc::new(saved);
    let nodes: [_; 9] = nodes.try_into().expect("nine inputs");
    (finish!(Attention, nodes, state, wrap(y, [n, columns])), end)
}

#[derive(Clone, Debug)]
struct WindowState {
    frame: Frame,
    qkv: [FlexTensor; 3],
    y: FlexTensor,
    lse: Vec<f32>,
}

#[derive(Debug)]
struct WindowOp;

impl Backward<Flex, 3> for WindowOp {
    type State = WindowState;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let WindowState { frame: f, qkv, y, lse } = &ops.state;
        let HeadShape { heads, kv_heads, width } = f.shape;
        let columns = f.columns();
        let n = f.rows();
        let [mut dq, mut dk, mut dv] = [0, 1, 2].map(|i| zeros(n * columns[i]));
        let [q, k, v] = qkv.each_ref().map(slice);
        let window = f.window(q, k, v);
        with_scratch(local::scratch_len(&f.settings, &window, rayon::current_num_threads()), |scratch| {
            local::backward(
                &f.settings,
                &window,
                f.heads(slice(y), heads, f.value_width),
                lse,
                f.heads(slice(&dy), heads, f.value_width),
                &mut f.heads_mut(&mut dq, heads, width),
                &mut f.heads_mut(&mut dk, kv_heads, width),
                &mut f.heads_mut(&mut dv, kv_heads, f.value_width),
                scratch,
            );
        });
        for ((node, d), columns) in ops.parents.iter().zip([dq, dk, dv]).zip(columns) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, wrap(d, [n, columns]));
            }
        }
    }
}

pub fn window(s: &Settings, shape: HeadShape, x: &AttentionInputs, t: &Tokens) -> Tensor<2> {
    let frame = Frame::new(s, shape, &x.v, t);
    let ((q, nq), (k, nk), (v, nv)) = (parts(x.q.clone()), parts(x.k.clone()), parts(x.v.clone()));
    let [_, _, _, columns] = frame.columns();
    let n = frame.rows();
    let (mut y, mut lse) = (zeros(n * columns), zeros(2 * n * shape.heads));
    {
        let window = frame.window(slice(&q), slice(&k), slice(&v));
        let mut out = frame.heads_mut(&mut y, shape.heads, frame.value_width);
        with_scratch(local::scratch_len(s, &window, rayon::current_num_threads()), |scratch| {
            local::forward(s, &window, &mut out, Some(&mut lse), scratch);
        });
    }
    let y = wrap(y, [n, columns]);
    let state = WindowState { frame, qkv: [q, k, v], y: y.clone(), lse };
    finish!(WindowOp, [nq, nk, nv], state, y)
}
