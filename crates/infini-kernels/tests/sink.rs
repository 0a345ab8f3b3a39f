//! Attention sinks against one plain softmax over sinks and window, in f64, and its central differences.

use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::local::{self, Angles, Window};
use infini_kernels::naive::attention::rotate;
use infini_kernels::rope::{Table, frequencies};
use infini_kernels::sink::{self, Sinks};
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};

const B: usize = 2;
const S: usize = 4;
const N: usize = 3;
const TK: usize = 2 * S;
const TQ: usize = S;
const H: usize = 4;
const HKV: usize = 2;
const D: usize = 8;
const THETA: f64 = 100.0;
/// The second row sees no sink.
const VISIBLE: [usize; B] = [2, 0];

fn settings() -> Settings {
    Settings {
        rule: Rule::Linear,
        features: Features::Elu1,
        mix: Mix::Add,
        rope: Rope::Half,
        theta: THETA,
        segment_len: S,
        span: 2,
        lag: 1,
        final_state: FinalState::Closed,
    }
}

fn numbers(n: usize, seed: f64) -> Vec<f64> {
    (0..n).map(|i| f64::from(((i as f64 + 1.0) * seed).sin() as f32)).collect()
}

/// Queries, window keys and values, sink keys and values; queries are the window's last segment.
fn inputs() -> [Vec<f64>; 5] {
    [
        numbers(B * TQ * H * D, 1.3),
        numbers(B * TK * HKV * D, 0.7),
        numbers(B * TK * HKV * D, 2.9),
        numbers(B * N * HKV * D, 1.9),
        numbers(B * N * HKV * D, 0.3),
    ]
}

/// Σ up · y of the plain formula.
fn reference([q, k, v, sk, sv]: &[Vec<f64>; 5], up: &[f64]) -> (Vec<f64>, f64) {
    let at = |x: &[f64], len: usize, heads: usize, b: usize, t: usize, h: usize| {
        x[((b * len + t) * heads + h) * D..][..D].to_vec()
    };
    let mut y = Vec::new();
    for (b, visible) in VISIBLE.iter().enumerate() {
        for t in 0..TQ {
            for h in 0..H {
                let n = h / (H / HKV);
                let query = rotate(&at(q, TQ, H, b, t, h), (N + S + t) as f64, Rope::Half, THETA);
                let mut seen: Vec<(Vec<f64>, Vec<f64>)> = (0..*visible)
                    .map(|i| (rotate(&at(sk, N, HKV, b, i, n), i as f64, Rope::Half, THETA), at(sv, N, HKV, b, i, n)))
                    .collect();
                seen.extend((0..=S + t).map(|i| {
                    (rotate(&at(k, TK, HKV, b, i, n), (N + i) as f64, Rope::Half, THETA), at(v, TK, HKV, b, i, n))
                }));
                let dot = |x: &[f64]| x.iter().zip(&query).map(|(x, y)| x * y).sum::<f64>() / (D as f64).sqrt();
                let p: Vec<f64> = seen.iter().map(|(k, _)| dot(k).exp()).collect();
                let sum: f64 = p.iter().sum();
                y.extend((0..D).map(|c| p.iter().zip(&seen).map(|(p, (_, v))| p / sum * v[c]).sum::<f64>()));
            }
        }
    }
    let value = y.iter().zip(up).map(|(y, u)| y * u).sum();
    (y, value)
}

fn worst(x: &[f32], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).fold(0.0, |m: f64, (x, y)| m.max((f64::from(*x) - y).abs()))
}

#[test]
fn values_and_gradients_are_those_of_one_softmax() {
    let x = inputs();
    let up = numbers(B * TQ * H * D, 0.9);
    let (expected, _) = reference(&x, &up);
    let f: Vec<Vec<f32>> = x.iter().map(|x| x.iter().map(|x| *x as f32).collect()).collect();
    let up32: Vec<f32> = up.iter().map(|x| *x as f32).collect();
    let table = Table::new(&frequencies(THETA, D), 0, N + TK);
    let angles = Some(Angles { cos: &table.cos, sin: &table.sin });
    let q = Heads::dense(&f[0], B, TQ, H, D);
    let s = settings();
    let w = Window {
        q,
        q_pos: S,
        k: Heads::dense(&f[1], B, TK, HKV, D),
        v: Heads::dense(&f[2], B, TK, HKV, D),
        k_pos: 0,
        reset: None,
        angles,
    };
    let sinks = Sinks {
        q,
        q_pos: N + S,
        k: Heads::dense(&f[3], B, N, HKV, D),
        v: Heads::dense(&f[4], B, N, HKV, D),
        visible: &VISIBLE,
        rope: Rope::Half,
        angles,
    };
    let (mut y, mut lse) = (vec![f32::NAN; expected.len()], vec![f32::NAN; 2 * B * H * TQ]);
    let mut scratch = vec![f32::NAN; local::scratch_len(&s, &w, 1).max(sink::scratch_len(&sinks))];
    let by_token = ([B, TQ, H, 2], [2 * H * TQ, 2, 2 * TQ]);
    local::forward(&s, &w, &mut HeadsMut::dense(&mut y, B, TQ, H, D), Some(&mut lse), &mut scratch);
    let alone = y.clone();
    let mut out = HeadsMut::dense(&mut y, B, TQ, H, D);
    sink::forward(&sinks, &mut out, &mut HeadsMut::new(&mut lse, by_token.0, by_token.1), &mut scratch);
    assert!(worst(&y, &expected) < 1e-6, "{}", worst(&y, &expected));
    assert!(y[y.len() / 2..] == alone[alone.len() / 2..], "a row without sinks is as it was");

    let mut g: Vec<Vec<f32>> = f.iter().map(|x| vec![f32::NAN; x.len()]).collect();
    g[3].fill(0.0);
    g[4].fill(0.0);
    let [gq, gk, gv, gsk, gsv] = &mut g[..] else { panic!() };
    let (out, up) = (Heads::dense(&y, B, TQ, H, D), (Heads::dense(&up32, B, TQ, H, D), &up));
    let mut dq = HeadsMut::dense(gq, B, TQ, H, D);
    let (mut dk, mut dv) = (HeadsMut::dense(gk, B, TK, HKV, D), HeadsMut::dense(gv, B, TK, HKV, D));
    local::backward(&s, &w, out, &lse, up.0, &mut dq, &mut dk, &mut dv, &mut scratch);
    let lse = Heads::new(&lse, by_token.0, by_token.1);
    let (mut dk, mut dv) = (HeadsMut::dense(gsk, B, N, HKV, D), HeadsMut::dense(gsv, B, N, HKV, D));
    sink::backward(&sinks, out, lse, up.0, &mut dq, &mut dk, &mut dv, &mut scratch);
    for (i, g) in g.iter().enumerate() {
        for j in (0..g.len()).step_by(5) {
            let value = |m: f64| {
                let mut x = x.clone();
                x[i][j] += m * 1e-3;
                reference(&x, up.1).1
            };
            let d = (8.0 * (value(1.0) - value(-1.0)) - (value(2.0) - value(-2.0))) / 12e-3;
            assert!((f64::from(g[j]) - d).abs() < 2e-6, "input {i}, element {j}: {} differenced {d}", g[j]);
        }
    }
}
