//! Feed-forward block: SwiGLU, or two matrices with GELU between.

use infini_kernels::activation;

use super::matrix::Matrix;

#[derive(Debug)]
pub(crate) struct Mlp {
    /// `None`: GELU on `up` alone.
    pub gate: Option<Matrix>,
    pub up: Matrix,
    pub down: Matrix,
}

impl Mlp {
    /// `x += down(act(h))`, `h` and `x` `[N, d]`.
    pub fn forward(&self, h: &[f32], x: &mut [f32], d: usize) {
        let inner = h.len() / d * self.up.out();
        let (mut up, mut act) = (vec![0.0; inner], vec![0.0; inner]);
        self.up.forward(h, &mut up, false);
        match &self.gate {
            Some(w) => {
                let mut gate = vec![0.0; inner];
                w.forward(h, &mut gate, false);
                activation::swiglu_forward(&gate, &up, &mut act);
            }
            None => activation::gelu_forward(&up, &mut act),
        }
        self.down.forward(&act, x, true);
    }
}
