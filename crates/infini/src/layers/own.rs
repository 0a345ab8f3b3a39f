//! A memory with heads of its own: projections, a short convolution on keys and values, RMSNorm of the read in each
//! head, and an output matrix that begins at zero. What it gives is added, so that the layer without it stays what it was.

use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::{conv, linear, memory, norm};

use super::attention::Place;
use crate::config::ModelConfig;
use crate::state::{LayerState, Reads};

/// Weights of one layer's memory.
#[derive(Debug)]
pub(crate) struct Own {
    settings: infini_kernels::Settings,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    o: Vec<f32>,
    convs: Option<[Vec<f32>; 2]>,
    norm: Vec<f32>,
}

/// Queries, keys, values and reads of one piece, `[B, T, heads · width]`.
#[derive(Debug, Default)]
pub(crate) struct OwnPiece {
    q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub y: Vec<f32>,
}

impl Own {
    /// Takes the weights of layer `l`; `take` knows the layer's prefix.
    pub fn new(config: &ModelConfig, l: usize, take: &mut dyn FnMut(&str) -> Vec<f32>) -> Self {
        let mut take = |name: &str| take(&format!("infini.memory.{name}.weight"));
        Own {
            settings: config.own_settings(l),
            q: take("q_proj"),
            k: take("k_proj"),
            v: take("v_proj"),
            o: take("o_proj"),
            convs: (config.infini.memory_conv > 0).then(|| [take("k_conv"), take("v_conv")]),
            norm: take("norm"),
        }
    }

    /// What the inputs `h` (`[B, T, d]`) ask and hold.
    pub fn project(&self, p: &Place, state: &mut LayerState, h: &[f32]) -> OwnPiece {
        let (d, rows) = (p.config.hidden_size, p.batch * p.tokens);
        let apply = |w: &[f32]| {
            let out = w.len() / d;
            let mut y = vec![0.0; rows * out];
            linear::forward(h, w, &mut y, [rows, d, out], false);
            y
        };
        let (q, mut k, mut v) = (apply(&self.q), apply(&self.k), apply(&self.v));
        if let Some([k_conv, v_conv]) = &self.convs {
            let shape = conv::Shape { b: p.batch, t: p.tokens, d: self.norm.len(), width: p.config.infini.memory_conv };
            let tails = [&mut state.own_k_tail, &mut state.own_v_tail];
            for ((x, kernel), tail) in [&mut k, &mut v].into_iter().zip([k_conv, v_conv]).zip(tails) {
                let mut y = vec![0.0; x.len()];
                conv::forward(shape, x, kernel, None, Some(tail), &mut y);
                x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
            }
        }
        let y = vec![0.0; q.len()];
        OwnPiece { q, k, v, y }
    }

    /// Reads for tokens `done..done + n` of the piece.
    pub fn read(&self, p: &Place, state: &LayerState, phi: memory::Phi, piece: &mut OwnPiece, done: usize, n: usize) {
        if p.reads == Reads::Nothing {
            return;
        }
        let (heads, _, width) = p.config.memory_shape();
        let strides = [p.tokens * heads * width, heads * width, width];
        let q = Heads::new(&piece.q[done * heads * width..], [p.batch, n, heads, width], strides);
        let mut y = HeadsMut::new(&mut piece.y[done * heads * width..], [p.batch, n, heads, width], strides);
        let swapped;
        let st = match p.reads {
            Reads::Swapped => {
                swapped = state.swapped(p.batch);
                memory::State { m: &swapped[0], z: &swapped[1] }
            }
            _ => memory::State { m: &state.m, z: &state.z },
        };
        let f = p.config.feature_dim();
        let mut scratch = vec![0.0; memory::scratch_len(&self.settings, width, f, width, rayon::current_num_threads())];
        memory::read(&self.settings, q, heads, st, phi, None, &mut y, &mut scratch);
    }

    /// `x += norm(y) · gain · Oᵀ` for reads `y` and residuals `x` (`[B, T, d]`).
    pub fn add(&self, config: &ModelConfig, y: &[f32], x: &mut [f32]) {
        let (heads, _, width) = config.memory_shape();
        let rows = y.len() / (heads * width);
        let (mut normed, mut inv) = (vec![0.0; y.len()], vec![0.0; rows * heads]);
        norm::rms_forward(y, &vec![1.0; width], config.rms_norm_eps as f32, &mut normed, &mut inv);
        for row in normed.chunks_mut(heads * width) {
            row.iter_mut().zip(&self.norm).for_each(|(x, g)| *x *= g);
        }
        linear::forward(&normed, &self.o, x, [rows, heads * width, config.hidden_size], true);
    }
}
