//! The weights of a linear layer as they are kept in memory.

use infini_kernels::{bf16, embedding, linear, quant};

/// `W [out, inp]`: in bf16 if every number is one, in 4 or 8 bits if they stand on the grids of a quantised file. What a
/// token reads is a half to a sixth then, and nothing is lost.
#[derive(Debug)]
pub(crate) enum Matrix {
    F32 { weights: Vec<f32>, inp: usize },
    Bf16(bf16::Matrix),
    Quant(quant::Matrix),
}

impl Matrix {
    /// Rows of `inp` weights.
    pub fn new(weights: Vec<f32>, inp: usize) -> Self {
        if bf16::is_bf16(&weights) {
            Matrix::Bf16(bf16::Matrix::new(&weights, inp))
        } else if let Some(m) = quant::Matrix::new(&weights, inp) {
            Matrix::Quant(m)
        } else {
            Matrix::F32 { weights, inp }
        }
    }

    /// Rows.
    pub fn out(&self) -> usize {
        match self {
            Matrix::F32 { weights, inp } => weights.len() / inp,
            Matrix::Bf16(m) => m.out(),
            Matrix::Quant(m) => m.out(),
        }
    }

    /// `y = x Wᵀ` for rows of `x`; added to `y` when `add`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], add: bool) {
        match self {
            Matrix::F32 { weights, inp } => linear::forward(x, weights, y, [x.len() / inp, *inp, self.out()], add),
            Matrix::Bf16(m) => m.forward(x, y, x.len() / m.inp(), add),
            Matrix::Quant(m) => m.forward(x, y, x.len() / m.inp(), add),
        }
    }

    /// A copy of W.
    pub fn to_vec(&self) -> Vec<f32> {
        let inp = match self {
            Matrix::F32 { inp, .. } => *inp,
            Matrix::Bf16(m) => m.inp(),
            Matrix::Quant(m) => m.inp(),
        };
        let mut out = vec![0.0; self.out() * inp];
        self.rows(&(0..self.out() as u32).collect::<Vec<_>>(), &mut out);
        out
    }

    /// Rows `ids` of W.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn rows(&self, ids: &[u32], out: &mut [f32]) {
        match self {
            Matrix::F32 { weights, inp } => embedding::forward(ids, weights, *inp, out),
            Matrix::Bf16(m) => {
                ids.iter().zip(out.chunks_exact_mut(m.inp())).for_each(|(id, out)| m.row(*id as usize, out));
            }
            Matrix::Quant(m) => {
                ids.iter().zip(out.chunks_exact_mut(m.inp())).for_each(|(id, out)| m.row(*id as usize, out));
            }
        }
    }
}
