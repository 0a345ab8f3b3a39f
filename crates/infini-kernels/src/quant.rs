//! Weights of a linear layer that stand on grids, as quantised files hold them: blocks of 32 inputs of one output,
//! `w = d q + m` with q of 4 bits, or `w = d q` with q of 8 bits and a sign. (GGUF's Q4_0, Q4_1 and Q8_0.)
//!
//! Nothing is rounded here: a matrix is held so only if every weight comes back as the same f32 number, and it is multiplied
//! as that number. Sums and activations are f32, so results are those of [`linear::forward`](crate::linear::forward) up
//! to the order of the sums, for a sixth (4 bits) or a quarter (8 bits) of the bytes.

use std::ops::Range;

use crate::lanes;
use crate::panels::{self, L, PANEL, Panels, Sums, put};

/// Inputs that share a grid.
const BLOCK: usize = 32;

/// The numbers q, panel by panel of 64 outputs.
#[derive(Clone, Debug, PartialEq)]
enum Codes {
    /// `[panels, inp / 2, 64]`: the even input's in the low half of a byte, the odd one's in the high half.
    Four(Vec<u8>),
    /// `[panels, inp, 64]`.
    Eight(Vec<i8>),
}

/// `W [out, inp]` on grids.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    out: usize,
    /// A multiple of 32.
    inp: usize,
    codes: Codes,
    /// d of each block, `[panels, inp / 32, 64]`.
    step: Vec<f32>,
    /// m of each block, the same; empty with 8 bits.
    least: Vec<f32>,
}

/// The nearest f16 number, ties to even; NaN and what is too large for one stay what they are.
fn f16(x: f32) -> f32 {
    if !x.is_finite() || x == 0.0 {
        return x;
    }
    // the distance of f16 numbers around x: 2^-10 of its power of two, at least the smallest number 2^-24
    let exponent = ((x.to_bits() >> 23 & 0xff) as i32 - 127).max(-14);
    let unit = f32::from_bits(((exponent - 10 + 127) as u32) << 23);
    (x / unit).round_ties_even() * unit
}

crate::simd! {
/// The numbers q of a block on the grid `d q + m`, 4 bits; None if a weight would become another.
fn four(w: &[f32; BLOCK], d: f32, m: f32) -> Option<[u8; BLOCK]> {
    let (mut q, mut same) = ([0; BLOCK], true);
    for (q, w) in q.iter_mut().zip(w) {
        // 0 / 0 becomes 0
        *q = ((w - m) / d + 0.5) as u8;
        same &= *q < 16 && d.mul_add(*q as f32, m) == *w;
    }
    same.then_some(q)
}

/// The numbers q of a block on the grid `d q`, 8 bits and a sign; None if a weight would become another.
fn eight(w: &[f32; BLOCK], d: f32) -> Option<[i8; BLOCK]> {
    let (mut q, mut same) = ([0; BLOCK], true);
    for (q, w) in q.iter_mut().zip(w) {
        *q = (w / d + 0.5f32.copysign(*w)) as i8;
        same &= d * *q as f32 == *w;
    }
    same.then_some(q)
}

/// The least and the largest weight of a block.
fn range(w: &[f32; BLOCK]) -> [f32; 2] {
    w.iter().fold([f32::MAX, f32::MIN], |[low, high], x| [low.min(*x), high.max(*x)])
}
}

/// d, m and the numbers q of a block of 4 bits; None if it is none.
fn four_bits(w: &[f32; BLOCK]) -> Option<(f32, f32, [u8; BLOCK])> {
    let [low, high] = range(w);
    // the q of Q4_1 run from 0 to 15; those of Q4_0 from −8 to 7, and −8 stands for the largest magnitude
    let half = f16(if -low > high { low } else { high } / -8.0);
    let grids = [(f16((high - low) / 15.0), low), (half, -8.0 * half)];
    grids.into_iter().find_map(|(d, m)| Some((d, m, four(w, d, m)?)))
}

/// d and the numbers q of a block of 8 bits; None if it is none.
fn eight_bits(w: &[f32; BLOCK]) -> Option<(f32, [i8; BLOCK])> {
    let [low, high] = range(w);
    let d = f16(high.max(-low) / 127.0);
    Some((d, eight(w, d)?))
}

impl Matrix {
    /// `w [out, inp]` with 4 bits a weight, or with 8, if that loses nothing.
    ///
    /// # Panics
    /// If `w` is not whole rows of `inp`.
    pub fn new(w: &[f32], inp: usize) -> Option<Matrix> {
        assert!(inp > 0 && w.len().is_multiple_of(inp), "quant: {} weights in rows of {inp}", w.len());
        if !inp.is_multiple_of(BLOCK) || w.is_empty() {
            return None;
        }
        let (out, blocks) = (w.len() / inp, inp / BLOCK);
        let panels = out.div_ceil(PANEL);
        let grids = || vec![0.0; panels * blocks * PANEL];
        // block and lane in the panels
        let place = |i: usize| (i / blocks / PANEL * blocks + i % blocks, i / blocks % PANEL);
        let all = w.as_chunks::<BLOCK>().0;
        if four_bits(&all[0]).is_some() {
            let (mut codes, mut step, mut least) = (vec![0u8; panels * inp / 2 * PANEL], grids(), grids());
            let fits = all.iter().enumerate().all(|(i, block)| {
                let Some((d, m, q)) = four_bits(block) else { return false };
                let (b, o) = place(i);
                (step[b * PANEL + o], least[b * PANEL + o]) = (d, m);
                for (j, pair) in q.as_chunks::<2>().0.iter().enumerate() {
                    codes[(b * BLOCK / 2 + j) * PANEL + o] = pair[0] | pair[1] << 4;
                }
                true
            });
            if fits {
                return Some(Matrix { out, inp, codes: Codes::Four(codes), step, least });
            }
        }
        eight_bits(&all[0])?;
        let (mut codes, mut step) = (vec![0i8; panels * inp * PANEL], grids());
        let fits = all.iter().enumerate().all(|(i, block)| {
            let Some((d, q)) = eight_bits(block) else { return false };
            let (b, o) = place(i);
            step[b * PANEL + o] = d;
            q.iter().enumerate().for_each(|(j, q)| codes[(b * BLOCK + j) * PANEL + o] = *q);
            true
        });
        fits.then(|| Matrix { out, inp, codes: Codes::Eight(codes), step, least: Vec::new() })
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
        let codes = match &self.codes {
            Codes::Four(q) => q.len(),
            Codes::Eight(q) => q.len(),
        };
        codes + 4 * (self.step.len() + self.least.len())
    }

    /// The weights of output `o` into `row [inp]`.
    ///
    /// # Panics
    /// If there is no such output, or `row` has another length.
    pub fn row(&self, o: usize, row: &mut [f32]) {
        assert!(o < self.out && row.len() == self.inp, "quant: row {o} of {}, {} of {}", self.out, row.len(), self.inp);
        let blocks = self.inp / BLOCK;
        let (first, o) = (o / PANEL * blocks, o % PANEL);
        for (b, row) in (first..first + blocks).zip(row.chunks_exact_mut(BLOCK)) {
            let d = self.step[b * PANEL + o];
            for (j, w) in row.iter_mut().enumerate() {
                *w = match &self.codes {
                    Codes::Four(q) => {
                        let both = q[(b * BLOCK / 2 + j / 2) * PANEL + o];
                        d.mul_add(f32::from(if j % 2 == 0 { both & 15 } else { both >> 4 }), self.least[b * PANEL + o])
                    }
                    Codes::Eight(q) => d * f32::from(q[(b * BLOCK + j) * PANEL + o]),
                };
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
        let (panel, grid) = (self.inp * PANEL, self.inp / BLOCK * PANEL);
        let step = &self.step[p * grid..][..grid];
        match &self.codes {
            Codes::Four(q) => widen_four(&q[p * panel / 2..][..panel / 2], step, &self.least[p * grid..], wide, width),
            Codes::Eight(q) => widen_eight(&q[p * panel..][..panel], step, wide, width),
        }
    }

    fn stream(&self, p: Range<usize>, x: &[f32], y: &mut [&mut [f32]], add: bool) {
        let (panel, grid) = (self.inp * PANEL, self.inp / BLOCK * PANEL);
        let step = &self.step[p.start * grid..p.end * grid];
        match &self.codes {
            Codes::Four(q) => {
                let least = &self.least[p.start * grid..p.end * grid];
                stream_four(&q[p.start * panel / 2..p.end * panel / 2], step, least, x, self.inp, y, add);
            }
            Codes::Eight(q) => stream_eight(&q[p.start * panel..p.end * panel], step, x, self.inp, y, add),
        }
    }
}

/// A register of codes, or of pairs of them, of each of the 64 outputs.
type Registers<T> = [[T; L]; PANEL / L];

/// Rows of 64 as registers.
#[inline(always)]
fn registers<T>(x: &[T]) -> &[Registers<T>] {
    x.as_chunks::<L>().0.as_chunks::<{ PANEL / L }>().0
}

crate::simd! {
/// One panel of 4 bits as f32.
fn widen_four(q: &[u8], step: &[f32], least: &[f32], wide: &mut [f32], width: usize) {
    let grids = step.as_chunks::<PANEL>().0.iter().zip(least.as_chunks::<PANEL>().0);
    let blocks = q.as_chunks::<PANEL>().0.chunks_exact(BLOCK / 2).zip(wide.chunks_mut(BLOCK * width));
    for ((d, m), (q, wide)) in grids.zip(blocks) {
        for (q, wide) in q.iter().zip(wide.chunks_mut(2 * width)) {
            let (even, odd) = wide.split_at_mut(width);
            let (even, odd) = (&mut even[..PANEL], &mut odd[..PANEL]);
            for l in 0..PANEL {
                even[l] = d[l].mul_add((q[l] & 15) as f32, m[l]);
                odd[l] = d[l].mul_add((q[l] >> 4) as f32, m[l]);
            }
        }
    }
}

/// One panel of 8 bits as f32.
fn widen_eight(q: &[i8], step: &[f32], wide: &mut [f32], width: usize) {
    let blocks = q.as_chunks::<PANEL>().0.chunks_exact(BLOCK).zip(wide.chunks_mut(BLOCK * width));
    for (d, (q, wide)) in step.as_chunks::<PANEL>().0.iter().zip(blocks) {
        for (q, wide) in q.iter().zip(wide.chunks_mut(width)) {
            let wide = &mut wide[..PANEL];
            for l in 0..PANEL {
                wide[l] = d[l] * q[l] as f32;
            }
        }
    }
}

/// `y_r = x_r Wᵀ` over whole panels of 4 bits.
fn stream_four(q: &[u8], step: &[f32], least: &[f32], x: &[f32], inp: usize, y: &mut [&mut [f32]], add: bool) {
    let (q, grid) = (q.chunks_exact(inp / 2 * PANEL), inp / BLOCK * PANEL);
    for (i, (q, (step, least))) in q.zip(step.chunks_exact(grid).zip(least.chunks_exact(grid))).enumerate() {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(inp)) {
            put(&product_four(registers(q), registers(step), registers(least), x), &mut y[i * PANEL..], add);
        }
    }
}

/// `y_r = x_r Wᵀ` over whole panels of 8 bits.
fn stream_eight(q: &[i8], step: &[f32], x: &[f32], inp: usize, y: &mut [&mut [f32]], add: bool) {
    for (i, (q, step)) in q.chunks_exact(inp * PANEL).zip(step.chunks_exact(inp / BLOCK * PANEL)).enumerate() {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(inp)) {
            put(&product_eight(registers(q), registers(step), x), &mut y[i * PANEL..], add);
        }
    }
}
}

/// The 64 sums of one panel of 4 bits and one row, even inputs and odd ones apart to the end.
#[inline(always)]
fn product_four(q: &[Registers<u8>], step: &[Registers<f32>], least: &[Registers<f32>], x: &[f32]) -> Sums {
    let (mut even, mut odd) = ([[0f32; L]; PANEL / L], [[0f32; L]; PANEL / L]);
    let blocks = q.chunks_exact(BLOCK / 2).zip(x.as_chunks::<2>().0.chunks_exact(BLOCK / 2));
    for ((step, least), (q, x)) in step.iter().zip(least).zip(blocks) {
        for v in 0..PANEL / L {
            let (d, m, mut e, mut o) = (step[v], least[v], even[v], odd[v]);
            for (q, x) in q.iter().zip(x) {
                lanes::one_register_at_a_time();
                let q = q[v];
                for l in 0..L {
                    e[l] = d[l].mul_add((q[l] & 15) as f32, m[l]).mul_add(x[0], e[l]);
                }
                for l in 0..L {
                    o[l] = d[l].mul_add((q[l] >> 4) as f32, m[l]).mul_add(x[1], o[l]);
                }
            }
            (even[v], odd[v]) = (e, o);
        }
    }
    for v in 0..PANEL / L {
        for l in 0..L {
            even[v][l] += odd[v][l];
        }
    }
    even
}

/// The 64 sums of one panel of 8 bits and one row.
#[inline(always)]
fn product_eight(q: &[Registers<i8>], step: &[Registers<f32>], x: &[f32]) -> Sums {
    let mut sums = [[0f32; L]; PANEL / L];
    for (step, (q, x)) in step.iter().zip(q.chunks_exact(BLOCK).zip(x.as_chunks::<BLOCK>().0)) {
        for v in 0..PANEL / L {
            let (d, mut s) = (step[v], sums[v]);
            for (q, x) in q.iter().zip(x) {
                lanes::one_register_at_a_time();
                let q = q[v];
                for l in 0..L {
                    s[l] = (d[l] * q[l] as f32).mul_add(*x, s[l]);
                }
            }
            sums[v] = s;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_the_nearest_number_of_eleven_bits() {
        let exact = [1.0, -0.5, 65504.0, 2f32.powi(-14), 2f32.powi(-24), 3.0 * 2f32.powi(-24), 0.099_975_586];
        assert!(exact.iter().all(|x| f16(*x) == *x));
        assert_eq!((f16(0.1), f16(2049.0), f16(2051.0)), (0.099_975_586, 2048.0, 2052.0));
        assert_eq!((f16(1.5 * 2f32.powi(-24)), f16(2f32.powi(-26))), (2f32.powi(-23), 0.0));
        assert!(f16(f32::NAN).is_nan());
    }

    #[test]
    fn only_numbers_on_grids_are_held() {
        let mut w: Vec<f32> = (0..64).map(|i| 0.25 * (i % 16) as f32 - 1.0).collect();
        assert!(matches!(Matrix::new(&w, 32), Some(Matrix { codes: Codes::Four(_), .. })));
        assert!(Matrix::new(&w, 16).is_none() && Matrix::new(&[], 32).is_none());
        w[40] += 1e-6;
        assert!(Matrix::new(&w, 32).is_none());
        let w: Vec<f32> = (0..64).map(|i| 0.5 * (i % 32 * 8 - 121) as f32).collect();
        assert!(matches!(Matrix::new(&w, 32), Some(Matrix { codes: Codes::Eight(_), .. })));
    }
}
