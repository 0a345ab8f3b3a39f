//! Whitened starts: projections whose outputs have unit variance and no correlation on given data.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Directions of most variance, whitened.
#[derive(Clone, Debug, Default)]
pub struct Whitening {
    /// Mean of the data, `[d]`.
    pub mean: Vec<f64>,
    /// `[k, d]`: rows W with W Cov Wᵀ = 1.
    pub rows: Vec<f64>,
    d: usize,
}

/// Rounds of subspace iteration: the leading directions need no more accuracy than the data has.
const ROUNDS: usize = 8;

impl Whitening {
    /// Of `x [n, d]`, within the `k` directions of most variance.
    ///
    /// # Panics
    /// If `k` is above `d`, or the data varies in fewer than `k` directions.
    pub fn new(x: &[f32], d: usize, k: usize, rng: &mut ChaCha8Rng) -> Self {
        assert!(k <= d && x.len() >= d, "whitening: {k} directions of {d}");
        let n = x.len() / d;
        let mut mean = vec![0.0; d];
        x.chunks(d).for_each(|x| mean.iter_mut().zip(x).for_each(|(m, x)| *m += f64::from(*x) / n as f64));
        let mut cov = vec![0.0; d * d];
        for x in x.chunks(d) {
            let x: Vec<f64> = x.iter().zip(&mean).map(|(x, m)| f64::from(*x) - m).collect();
            for (row, a) in cov.chunks_mut(d).zip(&x) {
                row.iter_mut().zip(&x).for_each(|(c, b)| *c += a * b / n as f64);
            }
        }
        // rows of q span the leading directions
        let mut q = orthonormal(k, d, rng);
        for _ in 0..ROUNDS {
            q = times(&q, &cov, d, d);
            gram_schmidt(&mut q, d);
        }
        // B = Q Cov Qᵀ = L Lᵀ, rows = L⁻¹ Q
        let qc = times(&q, &cov, d, d);
        let mut l = vec![0.0; k * k];
        for i in 0..k {
            for j in 0..=i {
                let b = dot(&qc[i * d..(i + 1) * d], &q[j * d..(j + 1) * d]);
                let s = b - dot(&l[i * k..i * k + j], &l[j * k..j * k + j]);
                assert!(i != j || s > 0.0, "whitening: the data does not vary in {k} directions");
                l[i * k + j] = if i == j { s.sqrt() } else { s / l[j * k + j] };
            }
        }
        let mut rows = q;
        for i in 0..k {
            let (done, rest) = rows.split_at_mut(i * d);
            let row = &mut rest[..d];
            for (j, done) in done.chunks(d).enumerate() {
                row.iter_mut().zip(done).for_each(|(r, x)| *r -= l[i * k + j] * x);
            }
            row.iter_mut().for_each(|r| *r /= l[i * k + i]);
        }
        Whitening { mean, rows, d }
    }

    /// `n` projections at random, orthonormal in the whitened space and scaled: weight `[n, d]` and the bias that
    /// centres it.
    pub fn project(&self, n: usize, scale: f64, rng: &mut ChaCha8Rng) -> (Vec<f32>, Vec<f32>) {
        let k = self.rows.len() / self.d;
        let w = times(&orthonormal(n, k, rng), &self.rows, k, self.d);
        let bias = w.chunks(self.d).map(|w| (-scale * dot(w, &self.mean)) as f32).collect();
        (w.iter().map(|w| (scale * w) as f32).collect(), bias)
    }

    /// The linear map `x ↦ w · rows (x − mean)` as weight `[n, d]` and bias `[n]`, `w [n, k]`.
    pub fn merge(&self, w: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let k = self.rows.len() / self.d;
        let w: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
        let w = times(&w, &self.rows, k, self.d);
        let bias = w.chunks(self.d).map(|w| -dot(w, &self.mean) as f32).collect();
        (w.into_iter().map(|w| w as f32).collect(), bias)
    }
}

/// `a [n, k]` times `b [k, d]`.
fn times(a: &[f64], b: &[f64], k: usize, d: usize) -> Vec<f64> {
    let mut out = vec![0.0; a.len() / k * d];
    for (a, out) in a.chunks(k).zip(out.chunks_mut(d)) {
        for (a, b) in a.iter().zip(b.chunks(d)) {
            out.iter_mut().zip(b).for_each(|(o, b)| *o += a * b);
        }
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Makes the rows orthonormal, one after the other.
fn gram_schmidt(q: &mut [f64], d: usize) {
    for i in 0..q.len() / d {
        let (done, rest) = q.split_at_mut(i * d);
        let row = &mut rest[..d];
        // twice is enough (Giraud et al. 2005)
        for _ in 0..2 {
            for done in done.chunks(d) {
                let s = dot(done, row);
                row.iter_mut().zip(done).for_each(|(r, x)| *r -= s * x);
            }
        }
        let norm = dot(row, row).sqrt();
        row.iter_mut().for_each(|r| *r /= norm);
    }
}

/// Random rows `[n, d]`, orthonormal; `n` at most `d`.
fn orthonormal(n: usize, d: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    // sums of uniforms are normal enough for a random direction
    let mut q: Vec<f64> = (0..n * d).map(|_| (0..4).map(|_| rng.random::<f64>() - 0.5).sum()).collect();
    gram_schmidt(&mut q, d);
    q
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn outputs_have_unit_variance_and_no_correlation() {
        let (n, d, k) = (4000, 12, 7);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // correlated, far from 0, of very different spreads
        let x: Vec<f32> = (0..n)
            .flat_map(|_| {
                let z: Vec<f32> = (0..d).map(|_| rng.random::<f32>() - 0.5).collect();
                (0..d).map(|i| 3.0 + (z[i] + 0.7 * z[(i + 1) % d]) * 2f32.powi(-(i as i32) / 2)).collect::<Vec<_>>()
            })
            .collect();
        let w = Whitening::new(&x, d, k, &mut rng);
        for (weight, bias) in [
            w.project(k, 1.0, &mut rng),
            w.merge(&{
                let mut one = vec![0.0; k * k];
                (0..k).for_each(|i| one[i * k + i] = 1.0);
                one
            }),
        ] {
            let y: Vec<Vec<f64>> = x
                .chunks(d)
                .map(|x| {
                    let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                    weight.chunks(d).zip(&bias).map(|(w, b)| dot(w) + f64::from(*b)).collect()
                })
                .collect();
            for i in 0..k {
                for j in 0..k {
                    let c = y.iter().map(|y| y[i] * y[j]).sum::<f64>() / n as f64;
                    let expected = f64::from(u8::from(i == j));
                    assert!((c - expected).abs() < 1e-3, "({i}, {j}): {c}");
                }
            }
        }
    }
}
