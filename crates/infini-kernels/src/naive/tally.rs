//! [`tally`](crate::tally) as the formulas say it.

/// (35) of one candidate: `weight [F, H]`.
pub fn raise(features: &[f64], weight: &[f64], bias: &[f64], output: &[f64], shift: f64, limit: f64) -> f64 {
    let h = bias.len();
    let unit = |j: usize| bias[j] + features.iter().enumerate().map(|(f, x)| x * weight[f * h + j]).sum::<f64>();
    ((0..h).map(|j| unit(j).max(0.0) * output[j]).sum::<f64>() + shift).clamp(-limit, limit)
}

/// ln Σ e^l and the entropy.
pub fn spread(logits: &[f64]) -> (f64, f64) {
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    (sum.ln(), -logits.iter().map(|l| l.exp() / sum * (l - sum.ln())).sum::<f64>())
}
