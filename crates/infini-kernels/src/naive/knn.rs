//! [`knn`](crate::knn) as the formula says it: one query at a time, all scores sorted.

/// Σ p_i v_i and its places and weights: `q [D]`, keys `[N, D]` and values `[N, Dv]` that the query sees.
pub fn forward(q: &[f64], k: &[f64], v: &[f64], top: usize) -> (Vec<f64>, Vec<(usize, f64)>) {
    let d = q.len();
    let n = k.len() / d;
    let dv = v.len().checked_div(n).unwrap_or(0);
    let unit = |x: &[f64]| -> Vec<f64> {
        let norm = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
        x.iter().map(|x| x / norm).collect()
    };
    let q = unit(q);
    let mut scores: Vec<(usize, f64)> = (0..n)
        .map(|i| (i, q.iter().zip(unit(&k[i * d..(i + 1) * d])).map(|(q, k)| q * k).sum::<f64>() * (d as f64).sqrt()))
        .collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scores.truncate(top);
    let sum: f64 = scores.iter().map(|(_, s)| s.exp()).sum();
    let mut y = vec![0.0; dv];
    for (i, s) in &mut scores {
        *s = s.exp() / sum;
        y.iter_mut().zip(&v[*i * dv..(*i + 1) * dv]).for_each(|(y, v)| *y += *s * v);
    }
    (y, scores)
}

/// The gradient of `q` by central differences of [`forward`], the choice held fixed by the caller's small `h`.
pub fn dq(q: &[f64], k: &[f64], v: &[f64], top: usize, dy: &[f64]) -> Vec<f64> {
    let h = 1e-6;
    let along = |q: &[f64]| forward(q, k, v, top).0.iter().zip(dy).map(|(y, d)| y * d).sum::<f64>();
    (0..q.len())
        .map(|i| {
            let at = |step: f64| {
                let mut q = q.to_vec();
                q[i] += step;
                along(&q)
            };
            (at(h) - at(-h)) / (2.0 * h)
        })
        .collect()
}
