//! The MLP half of a layer as one operation. It keeps its input and what its first products gave; the norm, the
//! activation and their product are computed anew on the way back, some rows at a time.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use infini_kernels::matmul::axpy;
use infini_kernels::{activation, linear, norm};

use super::kernel::{finish, parts, slice, upstream, with_scratch, wrap, zeros};
use super::{Mlp, absent};

/// Rows computed anew together: enough for large products, little memory.
const ROWS: usize = 1024;

#[derive(Clone, Debug)]
struct State {
    x: FlexTensor,
    gain: FlexTensor,
    eps: f32,
    /// `[f, d]`, and what it gave `[n, f]`.
    gate: Option<[FlexTensor; 2]>,
    /// As `gate`.
    up: [FlexTensor; 2],
    /// `[d, f]`.
    down: FlexTensor,
    /// Rows, width and inner width.
    sizes: [usize; 3],
}

impl State {
    /// `inner = silu(gate) · up`, or `gelu(up)`, of rows `at`.
    fn inner(&self, at: std::ops::Range<usize>, inner: &mut [f32]) {
        let up = &slice(&self.up[1])[at.clone()];
        match &self.gate {
            Some([_, gate]) => activation::swiglu_forward(&slice(gate)[at], up, inner),
            None => activation::gelu_forward(up, inner),
        }
    }
}

#[derive(Debug)]
struct MlpOp;

impl Backward<Flex, 5> for MlpOp {
    type State = State;

    fn backward(self, ops: Ops<State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let s = &ops.state;
        let [n, d, f] = s.sizes;
        let (mut dx, mut dgain) = (zeros(n * d), zeros(d));
        let (mut dgate, mut dup, mut ddown) =
            (zeros(if s.gate.is_some() { f * d } else { 0 }), zeros(f * d), zeros(d * f));
        let rows = ROWS.min(n);
        let scratch = rows * (2 * d + 3 * f + 1) + d + norm::rms_backward_scratch(rows, d);
        with_scratch(scratch, |scratch| {
            for first in (0..n).step_by(ROWS) {
                let rows = ROWS.min(n - first);
                let (h, rest) = scratch.split_at_mut(rows * d);
                let (dh, rest) = rest.split_at_mut(rows * d);
                let (inner, rest) = rest.split_at_mut(rows * f);
                let (dinner, rest) = rest.split_at_mut(rows * f);
                let (du, rest) = rest.split_at_mut(rows * f);
                let (inv, rest) = rest.split_at_mut(rows);
                let (part, rest) = rest.split_at_mut(d);
                let (narrow, wide) = (first * d..(first + rows) * d, first * f..(first + rows) * f);
                let (x, dy) = (&slice(&s.x)[narrow.clone()], &slice(&dy)[narrow.clone()]);
                s.inner(wide.clone(), inner);
                linear::backward_weight(dy, inner, &mut ddown, [rows, f, d], true);
                linear::backward_input(dy, slice(&s.down), dinner, [rows, f, d], false);
                norm::rms_forward(x, slice(&s.gain), s.eps, h, inv);
                let up = &slice(&s.up[1])[wide.clone()];
                if let Some([weight, gate]) = &s.gate {
                    let dg = inner; // done with
                    activation::swiglu_backward(&slice(gate)[wide], up, dinner, dg, du);
                    linear::backward_weight(dg, h, &mut dgate, [rows, d, f], true);
                    linear::backward_input(dg, slice(weight), dh, [rows, d, f], false);
                } else {
                    activation::gelu_backward(up, dinner, du);
                }
                linear::backward_weight(du, h, &mut dup, [rows, d, f], true);
                linear::backward_input(du, slice(&s.up[0]), dh, [rows, d, f], s.gate.is_some());
                let dx = &mut dx[narrow];
                norm::rms_backward(x, slice(&s.gain), inv, dh, dx, part, rest);
                axpy(1.0, dy, dx);
                axpy(1.0, part, &mut dgain);
            }
        });
        let shapes = [[n, d], [1, d], [f, d], [f, d], [d, f]];
        for (i, (node, grad)) in ops.parents.into_iter().zip([dx, dgain, dgate, dup, ddown]).enumerate() {
            let Some(node) = node.filter(|_| !grad.is_empty()) else { continue };
            let grad = if i == 1 { wrap(grad, [d]) } else { wrap(grad, shapes[i]) };
            grads.register::<Flex>(node.id, grad);
        }
    }
}

pub fn mlp(x: Tensor<2>, w: Mlp) -> Tensor<2> {
    let ([n, d], [f, _]) = (x.dims(), w.up.dims());
    let absent = absent(&x.device());
    let ((x, nx), (gain, ngain)) = (parts(x), parts(w.norm));
    let (gate, ngate) = match w.gate {
        Some(gate) => {
            let (gate, node) = parts(gate);
            (Some([gate, wrap(zeros(n * f), [n, f])]), node)
        }
        None => (None, parts(absent).1),
    };
    let ((up, nup), (down, ndown)) = (parts(w.up), parts(w.down));
    let up = [up, wrap(zeros(n * f), [n, f])];
    let mut s = State { x, gain, eps: w.eps as f32, gate, up, down, sizes: [n, d, f] };
    let mut y = slice(&s.x).to_vec();
    let rows = ROWS.min(n);
    with_scratch(rows * (d + f + 1), |scratch| {
        for first in (0..n).step_by(ROWS) {
            let rows = ROWS.min(n - first);
            let (h, rest) = scratch.split_at_mut(rows * d);
            let (inner, rest) = rest.split_at_mut(rows * f);
            let (narrow, wide) = (first * d..(first + rows) * d, first * f..(first + rows) * f);
            norm::rms_forward(&slice(&s.x)[narrow.clone()], slice(&s.gain), s.eps, h, &mut rest[..rows]);
            for [weight, out] in s.gate.iter_mut().chain([&mut s.up]) {
                linear::forward(h, slice(weight), &mut out.storage_mut::<f32>()[wide.clone()], [rows, d, f], false);
            }
            s.inner(wide, inner);
            linear::forward(inner, slice(&s.down), &mut y[narrow], [rows, f, d], true);
        }
    });
    finish!(MlpOp, [nx, ngain, ngate, nup, ndown], s, wrap(y, [n, d]))
}
