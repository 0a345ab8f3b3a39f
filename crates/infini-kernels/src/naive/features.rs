//! Feature maps φ (math.md §2) and their gradients (§9 f), one row at a time.

use crate::Features;

/// Under the root of [`Features::L2`].
pub const L2_EPS: f64 = 1e-6;

/// `x W` for one row `x [D]` and `w [D, F]`.
fn project(x: &[f64], w: &[f64]) -> Vec<f64> {
    let f = w.len() / x.len();
    (0..f).map(|j| x.iter().enumerate().map(|(i, x)| x * w[i * f + j]).sum()).collect()
}

fn softmax(u: &[f64], sign: f64) -> Vec<f64> {
    let m = u.iter().fold(f64::NEG_INFINITY, |m, x| m.max(sign * x));
    let e: Vec<f64> = u.iter().map(|x| (sign * x - m).exp()).collect();
    let s: f64 = e.iter().sum();
    e.iter().map(|x| x / s).collect()
}

/// φ(x) of one row; `w [D, Fw]` for the softmax pair.
pub fn phi(features: Features, x: &[f64], w: &[f64]) -> Vec<f64> {
    match features {
        Features::Elu1 => x.iter().map(|&x| if x > 0.0 { x + 1.0 } else { x.exp() }).collect(),
        Features::L2 => {
            let n = norm(x);
            x.iter().map(|x| x / n).collect()
        }
        Features::SoftmaxPair => {
            let u = project(x, w);
            let mut f = softmax(&u, 1.0);
            f.extend(softmax(&u, -1.0));
            f
        }
    }
}

fn norm(x: &[f64]) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() + L2_EPS).sqrt()
}

/// §9 f: the gradient of x from `f = φ(x)` and its gradient `df`; adds the gradient of W to `dw`.
pub fn phi_backward(features: Features, x: &[f64], w: &[f64], f: &[f64], df: &[f64], dw: &mut [f64]) -> Vec<f64> {
    match features {
        Features::Elu1 => (0..x.len()).map(|i| if x[i] > 0.0 { df[i] } else { df[i] * f[i] }).collect(),
        Features::L2 => {
            let s: f64 = f.iter().zip(df).map(|(a, b)| a * b).sum();
            (0..x.len()).map(|i| (df[i] - f[i] * s) / norm(x)).collect()
        }
        Features::SoftmaxPair => {
            let n = f.len() / 2;
            let mut du = vec![0.0; n];
            for (half, sign) in [(0, 1.0), (n, -1.0)] {
                let (f, df) = (&f[half..half + n], &df[half..half + n]);
                let s: f64 = f.iter().zip(df).map(|(a, b)| a * b).sum();
                for j in 0..n {
                    du[j] += sign * f[j] * (df[j] - s);
                }
            }
            let mut dx = vec![0.0; x.len()];
            for i in 0..x.len() {
                for j in 0..n {
                    dx[i] += du[j] * w[i * n + j];
                    dw[i * n + j] += x[i] * du[j];
                }
            }
            dx
        }
    }
}
