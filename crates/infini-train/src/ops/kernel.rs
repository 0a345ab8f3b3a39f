//! The kernels as differentiable operations on the CPU backend: buffers are borrowed, results moved in,
//! nothing is copied but strided views.

use std::cell::Cell;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Bytes, DType, Shape, Tensor};
use burn_flex::{FlexTensor, Layout};

use infini::config::Write;
use infini_kernels::{
    activation, conv as kernel_conv, embedding as kernel_embedding, linear as kernel_linear, loss, norm,
};

use super::Tokens;

type A = Autodiff<Flex>;

/// Moves a buffer into a tensor.
pub(super) fn wrap<const N: usize>(v: Vec<f32>, dims: [usize; N]) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(v), Layout::contiguous(Shape::from(dims.to_vec())), DType::F32)
}

/// A tensor whose elements are one slice; only strided views are copied.
fn dense(t: FlexTensor) -> FlexTensor {
    if t.as_slice::<f32>().is_some() { t } else { t.to_contiguous() }
}

/// The buffer and the graph node of an input.
///
/// # Panics
/// If the tensor is not f32 on the CPU backend with autodiff.
pub(super) fn parts<const D: usize>(x: Tensor<D>) -> (FlexTensor, NodeGuard) {
    let x = x.try_into_primitive::<A>().expect("kernels take tensors of the CPU backend with autodiff");
    let (x, node) = x.into_parts();
    (dense(x), node)
}

pub(super) fn slice(t: &FlexTensor) -> &[f32] {
    t.as_slice().expect("a dense f32 tensor")
}

/// The gradient of an operation's output.
pub(super) fn upstream<S, const N: usize>(ops: &Ops<S, N>, grads: &mut Gradients) -> FlexTensor {
    dense(grads.consume::<Flex>(&ops.node))
}

pub(super) fn zeros(n: usize) -> Vec<f32> {
    vec![0.0; n]
}

/// Lends `f` floats of this thread that hold anything. They are taken, not borrowed: a kernel that waits for
/// others may run another operation on the same thread, which then gets its own.
pub(super) fn with_scratch<T>(n: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local! { static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) } }
    let mut scratch = SCRATCH.take();
    if scratch.len() < n {
        scratch.resize(n, 0.0);
    }
    let result = f(&mut scratch[..n]);
    SCRATCH.set(scratch);
    result
}

/// Ends an operation: `$op` prepared with the `$nodes`, its `$state` kept if anything is tracked.
macro_rules! finish {
    ($op:expr, $nodes:expr, $state:expr, $out:expr) => {
        Tensor::from_primitive::<Autodiff<Flex>>(
            match $op.prepare::<NoCheckpointing>($nodes).compute_bound().stateful() {
                OpsKind::Tracked(p) => p.finish($state, $out),
                OpsKind::UnTracked(p) => p.finish($out),
            },
        )
    };
}
pub(super) use finish;

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 2> for RmsNorm {
    type State = (FlexTensor, FlexTensor, Vec<f32>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let (x, g, inv) = &ops.state;
        let (n, d) = (inv.len(), slice(g).len());
        let (mut dx, mut dg) = (zeros(n * d), zeros(d));
        with_scratch(norm::rms_backward_scratch(n, d), |scratch| {
            norm::rms_backward(slice(x), slice(g), inv, slice(&dy), &mut dx, &mut dg, scratch);
        });
        let [nx, ng] = ops.parents;
        if let Some(node) = nx {
            grads.register::<Flex>(node.id, wrap(dx, [n, d]));
        }
        if let Some(node) = ng {
            grads.register::<Flex>(node.id, wrap(dg, [d]));
        }
    }
}

pub fn rms_norm(x: Tensor<2>, g: Tensor<1>, eps: f64) -> Tensor<2> {
    let [n, d] = x.dims();
    let ((x, nx), (g, ng)) = (parts(x), parts(g));
    let (mut y, mut inv) = (zeros(n * d), zeros(n));
    norm::rms_forward(slice(&x), slice(&g), eps as f32, &mut y, &mut inv);
    finish!(RmsNorm, [nx, ng], (x, g, inv), wrap(y, [n, d]))
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 2> for Linear {
    type State = (FlexTensor, FlexTensor, [usize; 3]);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let (x, w, sizes) = &ops.state;
        let [n, inp, out] = *sizes;
        let [nx, nw] = ops.parents;
        if let Some(node) = nx {
            let mut dx = zeros(n * inp);
            kernel_linear::backward_input(slice(&dy), slice(w), &mut dx, *sizes, false);
            grads.register::<Flex>(node.id, wrap(dx, [n, inp]));
        }
        if let Some(node) = nw {
            let mut dw = zeros(out * inp);
            kernel_linear::backward_weight(slice(&dy), slice(x), &mut dw, *sizes, false);
            grads.register::<Flex>(node.id, wrap(dw, [out, inp]));
        }
    }
}

pub fn linear(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let ([n, inp], [out, _]) = (x.dims(), w.dims());
    let ((x, nx), (w, nw)) = (parts(x), parts(w));
    let mut y = zeros(n * out);
    kernel_linear::forward(slice(&x), slice(&w), &mut y, [n, inp, out], false);
    finish!(Linear, [nx, nw], (x, w, [n, inp, out]), wrap(y, [n, out]))
}

#[derive(Debug)]
struct SwiGlu;

impl Backward<Flex, 2> for SwiGlu {
    type State = (FlexTensor, FlexTensor, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let (gate, up, dims) = &ops.state;
        let n = dims[0] * dims[1];
        let (mut dgate, mut dup) = (zeros(n), zeros(n));
        activation::swiglu_backward(slice(gate), slice(up), slice(&dy), &mut dgate, &mut dup);
        for (node, d) in ops.parents.into_iter().zip([dgate, dup]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, wrap(d, *dims));
            }
        }
    }
}

pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let dims = gate.dims();
    let ((gate, ng), (up, nu)) = (parts(gate), parts(up));
    let mut y = zeros(dims[0] * dims[1]);
    activation::swiglu_forward(slice(&gate), slice(&up), &mut y);
    finish!(SwiGlu, [ng, nu], (gate, up, dims), wrap(y, dims))
}

/// Functions of each element with a derivative in terms of their input.
#[derive(Clone, Copy, Debug)]
enum Elementwise {
    Gelu,
    Gate(Write),
}

impl Elementwise {
    fn forward(self, x: &[f32], y: &mut [f32]) {
        match self {
            Elementwise::Gelu => activation::gelu_forward(x, y),
            Elementwise::Gate(Write::Soft) => activation::sigmoid_forward(x, y),
            Elementwise::Gate(Write::Clip) => activation::clip_gate_forward(x, y),
            Elementwise::Gate(Write::Hard) => {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = if *x > 0.0 { 1.0 } else { 0.0 });
            }
            Elementwise::Gate(Write::All) => y.fill(1.0),
        }
    }

    fn backward(self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        match self {
            Elementwise::Gelu => activation::gelu_backward(x, dy, dx),
            Elementwise::Gate(Write::Soft | Write::Hard) => activation::sigmoid_backward(x, dy, dx),
            Elementwise::Gate(Write::Clip) => activation::clip_gate_backward(x, dy, dx),
            Elementwise::Gate(Write::All) => dx.fill(0.0),
        }
    }

    fn apply(self, x: Tensor<2>) -> Tensor<2> {
        let dims = x.dims();
        let (x, node) = parts(x);
        let mut y = zeros(dims[0] * dims[1]);
        self.forward(slice(&x), &mut y);
        finish!(ElementwiseOp, [node], (self, x, dims), wrap(y, dims))
    }
}

#[derive(Debug)]
struct ElementwiseOp;

impl Backward<Flex, 1> for ElementwiseOp {
    type State = (Elementwise, FlexTensor, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let (f, x, dims) = &ops.state;
        if let [Some(node)] = ops.parents {
            let mut dx = zeros(dims[0] * dims[1]);
            f.backward(slice(x), slice(&dy), &mut dx);
            grads.register::<Flex>(node.id, wrap(dx, *dims));
        }
    }
}

pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    Elementwise::Gelu.apply(x)
}

pub fn write_gate(logits: Tensor<2>, write: Write) -> Tensor<2> {
    Elementwise::Gate(write).apply(logits)
}

#[derive(Debug)]
struct Conv;

impl Backward<Flex, 2> for Conv {
    type State = (FlexTensor, FlexTensor, kernel_conv::Shape, Option<Vec<u8>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let (x, c, shape, reset) = &ops.state;
        let (mut dx, mut dc) = (zeros(slice(x).len()), zeros(slice(c).len()));
        with_scratch(kernel_conv::backward_scratch(*shape), |scratch| {
            let reset = reset.as_deref();
            kernel_conv::backward(*shape, slice(x), slice(c), reset, slice(&dy), &mut dx, &mut dc, scratch);
        });
        let [nx, nc] = ops.parents;
        if let Some(node) = nx {
            grads.register::<Flex>(node.id, wrap(dx, [shape.b * shape.t, shape.d]));
        }
        if let Some(node) = nc {
            grads.register::<Flex>(node.id, wrap(dc, [shape.width, shape.d]));
        }
    }
}

pub fn conv(x: Tensor<2>, c: Tensor<2>, t: &Tokens) -> Tensor<2> {
    let ([n, d], [width, _]) = (x.dims(), c.dims());
    let ((x, nx), (c, nc)) = (parts(x), parts(c));
    let shape = kernel_conv::Shape { b: t.batch, t: t.len, d, width };
    let mut y = zeros(n * d);
    kernel_conv::forward(shape, slice(&x), slice(&c), t.reset, None, &mut y);
    finish!(Conv, [nx, nc], (x, c, shape, t.reset.map(<[u8]>::to_vec)), wrap(y, [n, d]))
}

#[derive(Debug)]
struct Embedding;

impl Backward<Flex, 1> for Embedding {
    type State = (Vec<u32>, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let (ids, [vocab, d]) = &ops.state;
        if let [Some(node)] = ops.parents {
            let mut table = zeros(vocab * d);
            kernel_embedding::backward(ids, slice(&dy), *d, &mut table, false);
            grads.register::<Flex>(node.id, wrap(table, [*vocab, *d]));
        }
    }
}

pub fn embedding(table: Tensor<2>, t: &Tokens) -> Tensor<2> {
    let [vocab, d] = table.dims();
    let (table, node) = parts(table);
    let mut out = zeros(t.ids.len() * d);
    kernel_embedding::forward(t.ids, slice(&table), d, &mut out);
    finish!(Embedding, [node], (t.ids.to_vec(), [vocab, d]), wrap(out, [t.ids.len(), d]))
}

/// The gradients are made with the loss, so that the logits never exist as a whole; the backward pass
/// scales them.
#[derive(Debug)]
struct CrossEntropy;

impl Backward<Flex, 2> for CrossEntropy {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let up = slice(&upstream(&ops, grads))[0];
        let (dhidden, dhead) = ops.state;
        for (node, mut d) in ops.parents.into_iter().zip([dhidden, dhead]) {
            if let Some(node) = node {
                if up != 1.0 {
                    infini_kernels::math::scale(d.storage_mut::<f32>(), up);
                }
                grads.register::<Flex>(node.id, d);
            }
        }
    }
}

pub fn cross_entropy(hidden: Tensor<2>, head: Tensor<2>, targets: &[u32], weights: &[f32]) -> super::Loss {
    let ([n, d], [v, _]) = (hidden.dims(), head.dims());
    let ((hidden, nh), (head, nw)) = (parts(hidden), parts(head));
    let (mut losses, mut hits) = (zeros(n), vec![false; n]);
    let (mut dhidden, mut dhead) = (zeros(n * d), zeros(v * d));
    let x = loss::Head { hidden: slice(&hidden), weight: slice(&head), targets, weights: Some(weights), d };
    let value = with_scratch(loss::scratch_len(n, d, v), |scratch| {
        loss::forward_backward(&x, &mut losses, Some(&mut hits), &mut dhidden, &mut dhead, false, scratch)
    });
    let state = (wrap(dhidden, [n, d]), wrap(dhead, [v, d]));
    let value = finish!(CrossEntropy, [nh, nw], state, wrap(vec![value], [1]));
    super::Loss { value, losses, hits }
}
