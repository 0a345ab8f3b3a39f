//! Output head and cross-entropy in one: logits exist for a block of rows at a time, never all `N × V`.
//!
//! The gradients are computed in the forward pass, while a block's logits are at hand, which saves the
//! product that a recomputation would cost; a caller with an upstream gradient other than 1 multiplies
//! them by it ([`math::scale`](crate::math::scale)).

use rayon::prelude::*;

use crate::blocks;
use crate::math::{exp_sum, max};
use crate::matmul::{Mat, MatMut, Par, matmul};

/// The target of a row without a loss.
pub const IGNORE: u32 = u32::MAX;

/// Logits in a block at most, 32 MiB, except that a block has [`MIN_ROWS`] rows at least. Few rows are slow
/// with a large vocabulary: each block reads the head and reads and writes its gradient.
const BLOCK: usize = 1 << 23;
const MIN_ROWS: usize = 64;
const MAX_ROWS: usize = 512;

/// The head and what it is to predict: `loss = Σ_n weights_n ce_n`, `ce_n = −ln softmax(weight · hidden_n)`
/// at `targets_n`.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[N, d]`.
    pub hidden: &'a [f32],
    /// `[V, d]`.
    pub weight: &'a [f32],
    /// `[N]`: below `V`, or [`IGNORE`].
    pub targets: &'a [u32],
    /// `[N]`; none: 1 / (number of targets that are not [`IGNORE`]), the mean.
    pub weights: Option<&'a [f32]>,
    /// Width of the hidden rows.
    pub d: usize,
}

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.weight.len().checked_div(self.d).unwrap_or(0)
    }

    fn check(&self) {
        let (n, d) = (self.targets.len(), self.d);
        assert_eq!(self.hidden.len(), n * d, "loss: hidden rows of {d} for {n} targets");
        assert_eq!(self.weight.len(), self.vocab() * d, "loss: head rows of {d}");
        assert!(self.weights.is_none_or(|w| w.len() == n), "loss: weights for {n} targets");
        if let Some(t) = self.targets.iter().find(|t| **t != IGNORE && **t as usize >= self.vocab()) {
            panic!("loss: target {t} in a vocabulary of {}", self.vocab());
        }
    }
}

fn block_rows(n: usize, v: usize) -> usize {
    (BLOCK / v.max(1)).clamp(MIN_ROWS, MAX_ROWS).min(n)
}

/// Elements of scratch for `n` rows of width `d` and a vocabulary of `v`.
pub fn scratch_len(n: usize, d: usize, v: usize) -> usize {
    block_rows(n, v) * (v + 2 * d + 2)
}

/// The loss alone. `losses [N]` receives `ce_n` (0 where ignored), `hits [N]` whether no logit exceeds the
/// target's.
///
/// # Panics
/// If lengths do not fit, a target is neither below `V` nor [`IGNORE`], or `scratch` is shorter than
/// [`scratch_len`].
pub fn forward(head: &Head, losses: &mut [f32], hits: Option<&mut [bool]>, scratch: &mut [f32]) -> f32 {
    run(head, losses, hits, None, scratch)
}

/// The loss, its gradient `dhidden [N, d]` (overwritten) and `dweight [V, d]` (added to when `add_dweight`,
/// else overwritten). `losses` and `hits` as in [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn forward_backward(
    head: &Head,
    losses: &mut [f32],
    hits: Option<&mut [bool]>,
    dhidden: &mut [f32],
    dweight: &mut [f32],
    add_dweight: bool,
    scratch: &mut [f32],
) -> f32 {
    assert_eq!((dhidden.len(), dweight.len()), (head.hidden.len(), head.weight.len()), "loss: gradients");
    dhidden.fill(0.0);
    if !add_dweight {
        dweight.fill(0.0);
    }
    run(head, losses, hits, Some((dhidden, dweight)), scratch)
}

fn run(
    head: &Head,
    losses: &mut [f32],
    mut hits: Option<&mut [bool]>,
    mut grads: Option<(&mut [f32], &mut [f32])>,
    scratch: &mut [f32],
) -> f32 {
    head.check();
    let (n, d, v) = (head.targets.len(), head.d, head.vocab());
    assert_eq!(losses.len(), n, "loss: losses");
    assert!(hits.as_ref().is_none_or(|h| h.len() == n), "loss: hits");
    losses.fill(0.0);
    if let Some(hits) = &mut hits {
        hits.fill(false);
    }
    let counted = head.targets.iter().filter(|t| **t != IGNORE).count();
    let mean = 1.0 / counted.max(1) as f32;
    let weight = |n: usize| head.weights.map_or(mean, |w| w[n]);
    let rows = block_rows(n, v);
    let (logits, rest) = scratch[..scratch_len(n, d, v)].split_at_mut(rows * v);
    let (hidden, rest) = rest.split_at_mut(rows * d);
    let (dhidden, results) = rest.split_at_mut(rows * d);
    let mut total = 0.0;
    let mut todo = (0..n).filter(|n| head.targets[*n] != IGNORE);
    let mut block = [0; MAX_ROWS];
    loop {
        // rows without a target cost nothing: the others are gathered into dense blocks
        let mut m = 0;
        for row in todo.by_ref().take(rows) {
            block[m] = row;
            hidden[m * d..(m + 1) * d].copy_from_slice(&head.hidden[row * d..(row + 1) * d]);
            m += 1;
        }
        if m == 0 {
            return total as f32;
        }
        let block = &block[..m];
        let (logits, hidden) = (&mut logits[..m * v], &hidden[..m * d]);
        let head_t = Mat::rows(head.weight, v, d).t();
        matmul(MatMut::rows(logits, m, v), false, 1.0, Mat::rows(hidden, m, d), head_t, Par::auto());
        let train = grads.is_some();
        let softmax = |logits: &mut [f32], out: &mut [f32; 2], row: usize| {
            *out = softmax_row(logits, head.targets[row] as usize, train.then(|| weight(row)));
        };
        let results = &mut results.as_chunks_mut::<2>().0[..m];
        if blocks::worthwhile(m * v) {
            let rows = logits.par_chunks_exact_mut(v).zip(results.par_iter_mut()).zip(block.par_iter());
            rows.for_each(|((logits, out), row)| softmax(logits, out, *row));
        } else {
            let rows = logits.chunks_exact_mut(v).zip(results.iter_mut()).zip(block);
            rows.for_each(|((logits, out), row)| softmax(logits, out, *row));
        }
        for (row, [ce, hit]) in block.iter().zip(results.iter()) {
            total += f64::from(weight(*row)) * f64::from(*ce);
            losses[*row] = *ce;
            if let Some(hits) = &mut hits {
                hits[*row] = *hit != 0.0;
            }
        }
        if let Some((dhidden_all, dweight)) = &mut grads {
            let dlogits = Mat::rows(logits, m, v);
            let out = MatMut::rows(&mut dhidden[..m * d], m, d);
            matmul(out, false, 1.0, dlogits, Mat::rows(head.weight, v, d), Par::auto());
            for (row, dh) in block.iter().zip(dhidden.chunks_exact(d)) {
                dhidden_all[row * d..(row + 1) * d].copy_from_slice(dh);
            }
            matmul(MatMut::rows(dweight, v, d), true, 1.0, dlogits.t(), Mat::rows(hidden, m, d), Par::auto());
        }
    }
}

crate::simd! {
/// The cross-entropy of one row and whether no logit exceeds the target's (1 or 0). With a weight, the row
/// becomes `weight · (softmax − onehot)`, the gradient.
fn softmax_row(logits: &mut [f32], target: usize, weight: Option<f32>) -> [f32; 2] {
    let (top, own) = (max(logits), logits[target]);
    let sum = exp_sum(logits, 1.0, top);
    if let Some(weight) = weight {
        let s = weight / sum;
        for x in logits.iter_mut() {
            *x *= s;
        }
        logits[target] -= weight;
    }
    // a NaN anywhere is in `sum`
    [sum.ln() + (top - own), f32::from(u8::from(own >= top))]
}
}
