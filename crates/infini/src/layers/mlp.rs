//! Feed-forward block: SwiGLU, or two matrices with GELU between.

use infini_kernels::{activation, linear};

#[derive(Debug)]
pub(crate) struct Mlp {
    /// `None`: GELU on `up` alone.
    pub gate: Option<Vec<f32>>,
    pub up: Vec<f32>,
    pub down: Vec<f32>,
}

impl Mlp {
    /// `x += down(act(h))`, `h` and `x` `[N, d]`.
    pub fn forward(&self, h: &[f32], x: &mut [f32], d: usize) {
        let (n, f) = (h.len() / d, self.up.len() / d);
        let (mut up, mut act) = (vec![0.0; n * f], vec![0.0; n * f]);
        linear::forward(h, &self.up, &mut up, [n, d, f], false);
        match &self.gate {
            Some(w) => {
                let mut gate = vec![0.0; n * f];
                linear::forward(h, w, &mut gate, [n, d, f], false);
                activation::swiglu_forward(&gate, &up, &mut act);
            }
            None => activation::gelu_forward(&up, &mut act),
        }
        linear::forward(&act, &self.down, x, [n, f, d], true);
    }
}
