//! Weights of a linear layer held in bf16, half the bytes of f32: what bounds decoding.
//!
//! Sums are f32, of activations in f32: over weights that are bf16 numbers to begin with, the result is that of
//! [`linear::forward`](crate::linear::forward) up to the order of the sums.

use std::ops::Range;

use crate::lanes;
use crate::panels::{self, L, PANEL, Panels, Sums, put};

/// `W [out, inp]` in bf16: panels of 64 outputs, within one for each pair of inputs the 64 pairs of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    out: usize,
    /// Not 0.
    inp: usize,
    /// `[panels, pairs, 64]`: the even input's weight in the low half, the odd one's in the high half.
    panels: Vec<u32>,
}

/// The nearest bf16 number, ties to even; NaN stays NaN.
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Whether every number is a bf16 number, so that [`Matrix::new`] loses nothing.
pub fn is_bf16(w: &[f32]) -> bool {
    w.iter().all(|x| x.to_bits() & 0xffff == 0)
}

impl Matrix {
    /// Rounds `w [out, inp]` to bf16.
    ///
    /// # Panics
    /// If `w` is not whole rows of `inp`.
    pub fn new(w: &[f32], inp: usize) -> Matrix {
        assert!(inp > 0 && w.len().is_multiple_of(inp), "bf16: {} weights in rows of {inp}", w.len());
        let (out, pairs) = (w.len() / inp, inp.div_ceil(2));
        let mut panels = vec![0; out.div_ceil(PANEL) * pairs * PANEL];
        for (o, row) in w.chunks_exact(inp).enumerate() {
            let panel = &mut panels[o / PANEL * pairs * PANEL..];
            for (p, pair) in row.chunks(2).enumerate() {
                let [low, high] = [pair[0], pair.get(1).copied().unwrap_or(0.0)].map(|x| u32::from(round(x)));
                panel[p * PANEL + o % PANEL] = low | high << 16;
            }
        }
        Matrix { out, inp, panels }
    }

    /// Outputs.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Inputs.
    pub fn inp(&self) -> usize {
        self.inp
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        4 * self.panels.len()
    }

    fn pairs(&self) -> usize {
        self.inp.div_ceil(2)
    }

    /// The weights of output `o`, widened to `row [inp]`.
    ///
    /// # Panics
    /// If there is no such output, or `row` has another length.
    pub fn row(&self, o: usize, row: &mut [f32]) {
        assert!(o < self.out && row.len() == self.inp, "bf16: row {o} of {}, {} of {}", self.out, row.len(), self.inp);
        let panel = &self.panels[o / PANEL * self.pairs() * PANEL..];
        for (p, row) in row.chunks_mut(2).enumerate() {
            let both = panel[p * PANEL + o % PANEL];
            row[0] = f32::from_bits(both << 16);
            if let Some(odd) = row.get_mut(1) {
                *odd = f32::from_bits(both & 0xffff_0000);
            }
        }
    }

    /// `y = x Wᵀ`, `x [n, inp]`, `y [n, out]`; added to `y` when `add`, which is never read without.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn forward(&self, x: &[f32], y: &mut [f32], n: usize, add: bool) {
        panels::forward(self, x, y, n, add);
    }
}

impl Panels for Matrix {
    fn sizes(&self) -> [usize; 2] {
        [self.out, self.inp]
    }

    fn widen(&self, p: usize, wide: &mut [f32], width: usize) {
        let panel = self.pairs() * PANEL;
        widen(&self.panels[p * panel..][..panel], wide, width);
    }

    fn stream(&self, p: Range<usize>, x: &[f32], y: &mut [&mut [f32]], add: bool) {
        let panel = self.pairs() * PANEL;
        stream(&self.panels[p.start * panel..p.end * panel], x, self.inp, y, add);
    }
}

crate::simd! {
/// Pairs `[pairs, 64]` as f32 `[2 pairs, 64]`, rows `width` apart.
fn widen(panel: &[u32], wide: &mut [f32], width: usize) {
    for (pair, wide) in panel.as_chunks::<PANEL>().0.iter().zip(wide.chunks_mut(2 * width)) {
        let (even, odd) = wide.split_at_mut(width);
        let (even, odd) = (&mut even[..PANEL], &mut odd[..PANEL]);
        for l in 0..PANEL {
            even[l] = f32::from_bits(pair[l] << 16);
            odd[l] = f32::from_bits(pair[l] & 0xffff_0000);
        }
    }
}

/// `y_r = x_r Wᵀ` over whole panels.
fn stream(panels: &[u32], x: &[f32], inp: usize, y: &mut [&mut [f32]], add: bool) {
    for (i, panel) in panels.chunks_exact(inp.div_ceil(2) * PANEL).enumerate() {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(inp)) {
            put(&panel_product(panel, x), &mut y[i * PANEL..], add);
        }
    }
}
}

/// The 64 sums of one panel and one row, even inputs and odd ones apart to the end.
#[inline(always)]
fn panel_product(panel: &[u32], x: &[f32]) -> Sums {
    let (mut even, mut odd) = ([[0f32; L]; PANEL / L], [[0f32; L]; PANEL / L]);
    let (pairs, last) = x.as_chunks::<2>();
    let weights = panel.as_chunks::<L>().0.as_chunks::<{ PANEL / L }>().0;
    for (w, x) in weights.iter().zip(pairs) {
        for v in 0..PANEL / L {
            lanes::one_register_at_a_time();
            let w = w[v];
            let (mut e, mut o) = (even[v], odd[v]);
            for l in 0..L {
                e[l] = f32::from_bits(w[l] << 16).mul_add(x[0], e[l]);
            }
            for l in 0..L {
                o[l] = f32::from_bits(w[l] & 0xffff_0000).mul_add(x[1], o[l]);
            }
            (even[v], odd[v]) = (e, o);
        }
    }
    if let [x] = last {
        for v in 0..PANEL / L {
            for l in 0..L {
                even[v][l] = f32::from_bits(weights[pairs.len()][v][l] << 16).mul_add(*x, even[v][l]);
            }
        }
    }
    for v in 0..PANEL / L {
        for l in 0..L {
            even[v][l] += odd[v][l];
        }
    }
    even
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_number_ties_to_even() {
        let of = |bits: u32| round(f32::from_bits(bits));
        assert_eq!([of(0x3f80_8000), of(0x3f81_8000), of(0x3f80_8001)], [0x3f80, 0x3f82, 0x3f81]);
        assert_eq!([round(f32::INFINITY), round(-0.0), round(f32::MAX)], [0x7f80, 0x8000, 0x7f80]);
        assert!(f32::from_bits(u32::from(of(0x7f80_0001)) << 16).is_nan(), "NaN stays NaN");
        assert!(is_bf16(&[1.0, -0.5, 0.0]) && !is_bf16(&[1.0, 0.1]));
    }
}
