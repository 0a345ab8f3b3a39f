//! What a counting memory makes of many candidates at once: (34) and (35) of `docs/math.md`.

use crate::math::{LANES, exp, fold, max};

/// A network of one hidden layer that all candidates pass.
#[derive(Clone, Copy, Debug)]
pub struct Network<'a> {
    /// From the features of a candidate to the hidden units, `[F, H]`.
    pub weight: &'a [f32],
    /// What the hidden units hold beforehand, `[H]`.
    pub bias: &'a [f32],
    /// From the hidden units, behind a ReLU, to the raise, `[H]`.
    pub output: &'a [f32],
    /// Added to the raise.
    pub shift: f32,
    /// Largest absolute raise.
    pub limit: f32,
}

/// (35): `raise_i = clip(output · relu(bias + Wᵀ f_i) + shift, ± limit)` of candidates whose features are `[F, n]`.
///
/// # Panics
/// If shapes do not fit together.
pub fn raise(features: &[f32], net: Network, raises: &mut [f32]) {
    let (n, h) = (raises.len(), net.bias.len());
    assert_eq!(net.output.len(), h, "tally: hidden units of bias and output");
    assert_eq!(net.weight.len() * n, features.len() * h, "tally: {} features of {n} candidates", features.len());
    raise_all(features, net, raises);
}

crate::simd! {
/// [`raise`] of checked shapes: a lane a candidate.
fn raise_all(features: &[f32], net: Network, raises: &mut [f32]) {
    let (n, h) = (raises.len(), net.bias.len());
    for (block, raises) in raises.chunks_mut(LANES).enumerate() {
        let m = raises.len();
        let mut out = [net.shift; LANES];
        for j in 0..h {
            let mut unit = [net.bias[j]; LANES];
            for (column, w) in features.chunks_exact(n).zip(net.weight[j..].iter().step_by(h)) {
                let column = &column[block * LANES..];
                if let Some(x) = column.first_chunk::<LANES>() {
                    for i in 0..LANES {
                        unit[i] = x[i].mul_add(*w, unit[i]);
                    }
                } else {
                    for i in 0..m {
                        unit[i] = column[i].mul_add(*w, unit[i]);
                    }
                }
            }
            for i in 0..LANES {
                out[i] = unit[i].max(0.0).mul_add(net.output[j], out[i]);
            }
        }
        for (raise, out) in raises.iter_mut().zip(out) {
            *raise = out.clamp(-net.limit, net.limit);
        }
    }
}

/// ln Σ e^l of `logits` and the entropy of their distribution, in nats.
pub fn spread(logits: &[f32]) -> (f32, f32) {
    let largest = max(logits);
    let (mut sum, mut mean) = ([0f32; LANES], [0f32; LANES]);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let x = chunk[i] - largest;
            let e = exp(x);
            sum[i] += e;
            mean[i] = e.mul_add(x.max(-100.0), mean[i]);
        }
    }
    let (mut sum, mut mean) = (fold(sum), fold(mean));
    for l in rest {
        let e = exp(l - largest);
        sum += e;
        mean += e * (l - largest).max(-100.0);
    }
    (largest + sum.ln(), sum.ln() - mean / sum)
}

/// `x ← e^x`.
pub fn exps(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = exp(*x));
}
}
