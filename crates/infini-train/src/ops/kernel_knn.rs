//! The best few of a store as a differentiable operation.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::knn::{self, Choice, Store};

use super::kernel::{finish, parts, slice, upstream, wrap, zeros};
use super::knn::Past;
use super::{HeadShape, Tokens};

#[derive(Clone, Debug)]
struct State {
    shape: HeadShape,
    sizes: [usize; 3],
    q: FlexTensor,
    past: Past,
    choice: Choice,
}

impl State {
    fn store(&self) -> Store<'_> {
        let HeadShape { kv_heads, width, .. } = self.shape;
        let ([b, ..], n) = (self.sizes, self.past.len);
        Store {
            k: Heads::dense(&self.past.k, b, n, kv_heads, width),
            v: Heads::dense(&self.past.v, b, n, kv_heads, width),
        }
    }
}

#[derive(Debug)]
struct Knn;

impl Backward<Flex, 1> for Knn {
    type State = State;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = upstream(&ops, grads);
        let s = &ops.state;
        let ([b, t, top], HeadShape { heads, width, .. }) = (s.sizes, s.shape);
        let heads_of = |x| Heads::dense(x, b, t, heads, width);
        let mut dq = zeros(b * t * heads * width);
        let mut out = HeadsMut::dense(&mut dq, b, t, heads, width);
        knn::backward(heads_of(slice(&s.q)), s.store(), &s.choice, top, heads_of(slice(&dy)), &mut out);
        if let Some(node) = &ops.parents[0] {
            grads.register::<Flex>(node.id, wrap(dq, [b * t, heads * width]));
        }
    }
}

pub fn knn(shape: HeadShape, q: Tensor<2>, past: Past, top: usize, t: &Tokens) -> Tensor<2> {
    let HeadShape { heads, width, .. } = shape;
    let (b, len) = (t.batch, t.len);
    let (q, node) = parts(q);
    let mut state = State { shape, sizes: [b, len, top], q, past, choice: Choice::default() };
    let (mut y, mut choice) = (zeros(b * len * heads * width), Choice::default());
    let q = Heads::dense(slice(&state.q), b, len, heads, width);
    let mut out = HeadsMut::dense(&mut y, b, len, heads, width);
    knn::forward(q, state.store(), &state.past.seen, top, &mut out, Some(&mut choice));
    state.choice = choice;
    finish!(Knn, [node], state, wrap(y, [b * len, heads * width]))
}
