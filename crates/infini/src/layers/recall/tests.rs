//! The streaming memory against the plain sums of (29)–(32) in f64.

use std::collections::BTreeMap;

use infini_kernels::rope;

use super::*;
use crate::config::{Activation, Attention, InfiniConfig};

const D: usize = 12;
const V: usize = 19;
const T: usize = 37;

fn config() -> AdapterConfig {
    AdapterConfig {
        layer: 0,
        segment_len: 4,
        sink: 1,
        heads: 2,
        value_width: 5,
        place_width: 3,
        word_width: 2,
        gate_width: 3,
        before: 3,
        after: 2,
    }
}

fn model() -> ModelConfig {
    ModelConfig {
        vocab_size: V,
        hidden_size: D,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 0,
        head_dim: 0,
        intermediate_size: 8,
        hidden_act: Activation::Silu,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention: Attention::Local,
        infini: config().window(),
    }
}

fn numbers(n: usize, seed: f64) -> Vec<f32> {
    (0..n).map(|i| (((i as f64 + 1.0) * seed).sin() * 1.2) as f32).collect()
}

fn adapter() -> Adapter {
    let parameters = config().parameters(D).into_iter().enumerate();
    let tensors: BTreeMap<String, Vec<f32>> = parameters
        .map(|(i, (name, shape))| (name.to_string(), numbers(shape.iter().product(), 0.37 + 0.61 * i as f64)))
        .collect();
    Adapter::new(config(), "0".repeat(64), D, tensors).unwrap()
}

struct Input {
    ids: Vec<u32>,
    h: Vec<f32>,
    embed: Vec<f32>,
}

fn input() -> Input {
    let ids = (0..T as u32).map(|i| i * 7 % V as u32).collect();
    Input { ids, h: numbers(T * D, 1.7), embed: numbers(V * D, 0.9) }
}

/// What the memory adds to the residual stream, `[T, d]`, for a document that begins at `doc`; and how many
/// (token, head) pairs are written.
fn reference(a: &Adapter, x: &Input, doc: usize) -> (Vec<f64>, usize) {
    let c = a.config();
    let get = |name: &str| a.get(name).iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let affine = |name: &str, x: &[f32]| -> Vec<f64> {
        let (w, b) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
        w.chunks(D).zip(b).map(|(w, b)| dot(w) + b).collect()
    };
    let h = |t: usize| &x.h[t * D..(t + 1) * D];
    let e = |t: usize| &x.embed[x.ids[t] as usize * D..][..D];
    let pair = |y: &[f64], s: f64| -> Vec<f64> {
        let r = (y.iter().map(|y| y * y).sum::<f64>() / y.len() as f64 + 1e-6).sqrt();
        let half = |sign: f64| {
            let p: Vec<f64> = y.iter().map(|y| (sign * s.exp() * y / r).exp()).collect();
            let sum: f64 = p.iter().sum();
            p.into_iter().map(|p| p / sum).collect::<Vec<_>>()
        };
        [half(1.0), half(-1.0)].concat()
    };
    // the signals of the tokens around, those outside the document 0
    let gate = |head: usize, i: usize| -> f64 {
        let (row, mut sum) = (c.heads * c.gate_width, get("write.bias")[head]);
        for j in 0..c.taps() {
            let Some(t) = (i + c.delay()).checked_sub(j).filter(|t| *t >= doc && *t < T) else { continue };
            for s in head * c.gate_width..(head + 1) * c.gate_width {
                let w = &get("write.weight")[s * D..(s + 1) * D];
                let signal: f64 = w.iter().zip(h(t)).map(|(w, x)| w * f64::from(*x)).sum();
                sum += get("write.kernel")[j * row + s] * signal;
            }
        }
        sum
    };
    // the pool around the token that comes after position `last`: offsets −before .. upto
    let pool = |head: usize, next: usize, upto: usize| -> Vec<f64> {
        let (mut sum, mut u) = (0.0, vec![0.0; c.word_width]);
        for o in 0..upto {
            let Some(t) = (next + o).checked_sub(c.before).filter(|t| *t >= doc && *t < T) else { continue };
            let score =
                affine("salience", e(t))[head].clamp(-15.0, 15.0) + get("offset")[head * (c.before + c.after) + o];
            sum += score.exp();
            let word = affine("word", e(t));
            u.iter_mut().zip(&word[head * c.word_width..]).for_each(|(u, w)| *u += score.exp() * w);
        }
        u.into_iter().map(|u| u / sum).collect()
    };
    let address = |head: usize, place: &[f64], pool: &[f64]| -> Vec<f64> {
        let s = get("sharpness");
        let (p, u) = (pair(place, s[head]), pair(pool, s[c.heads + head]));
        p.iter().flat_map(|p| u.iter().map(move |u| p * u)).collect()
    };
    let (pw, v) = (c.place_width, c.value_width);
    let mut out = vec![0.0; T * D];
    let mut written = 0;
    for t in doc..T {
        let start = (t / c.segment_len).saturating_sub(1) * c.segment_len;
        if doc >= start {
            continue;
        }
        for head in 0..c.heads {
            let phi = address(head, &affine("query", h(t))[head * pw..][..pw], &pool(head, t + 1, c.before));
            // M [F, V] and z [F] of what is written by then, z as one more column
            let mut m = vec![vec![0.0; v + 1]; phi.len()];
            // those whose words are known
            for i in doc..(t + 1).saturating_sub(c.delay()) {
                if gate(head, i) <= 0.0 {
                    continue;
                }
                written += 1;
                let place = if i == doc { vec![0.0; pw] } else { affine("key", h(i - 1))[head * pw..][..pw].to_vec() };
                let key = address(head, &place, &pool(head, i, c.before + c.after));
                let norm: f64 = key.iter().map(|k| k * k).sum();
                let value = [&affine("value", h(i))[head * v..][..v], &[1.0]].concat();
                let old: Vec<f64> = (0..=v).map(|j| m.iter().zip(&key).map(|(m, k)| m[j] * k).sum::<f64>()).collect();
                for (m, k) in m.iter_mut().zip(&key) {
                    (0..=v).for_each(|j| m[j] += k * (value[j] - old[j] / norm));
                }
            }
            let told = |j: usize| m.iter().zip(&phi).map(|(m, p)| m[j] * p).sum::<f64>();
            let known = told(v).max(0.0);
            let norm: f64 = phi.iter().map(|p| p * p).sum();
            let null = (4.0 * (affine("null", h(t))[head] / 4.0).tanh() - get("doubt")[head] * known / norm).exp();
            let nothing = &get("nothing")[head * v..][..v];
            let num: Vec<f64> = (0..v).map(|j| told(j) + null * nothing[j]).collect();
            let den = known + null;
            let open = 1.0 / (1.0 + (-affine("read", h(t))[head]).exp());
            let w = get("output.weight");
            for (j, o) in out[t * D..(t + 1) * D].iter_mut().enumerate() {
                let row = &w[j * c.heads * v + head * v..][..v];
                *o += row.iter().zip(&num).map(|(w, n)| w * open * n / den).sum::<f64>();
            }
        }
    }
    (out, written)
}

/// Streams the input in pieces of the given lengths; a document begins at `doc`.
fn stream(a: &Adapter, pieces: &[usize], doc: usize) -> Vec<f32> {
    let (x, model) = (input(), model());
    let recall = Recall::new(a);
    let mut state = RecallState::new(a.config(), 1);
    let angles = rope::Table::new(&rope::frequencies(1e4, 6), 0, 9);
    let mut writes = LayerWrites { layer: 0, tokens: 0, open: vec![0; 2], strength: vec![0.0; 2] };
    let mut out = vec![0.0; T * D];
    let mut at = 0;
    for n in pieces {
        let starts = [if at >= doc { doc as u64 } else { 0 }];
        if at == doc {
            state.forget(0, 1);
        }
        let place = Place {
            config: &model,
            angles: &angles,
            batch: 1,
            tokens: *n,
            position: at as u64,
            doc_start: &starts,
            reads: Reads::Own,
        };
        let (ids, h) = (&x.ids[at..at + n], &x.h[at * D..(at + n) * D]);
        let y = &mut out[at * D..(at + n) * D];
        recall.forward(&place, &Matrix::new(x.embed.clone(), D), &mut state, &mut writes, ids, h, y, false);
        at += n;
    }
    assert_eq!(at, T);
    out
}

fn worst(x: &[f32], y: &[f64]) -> f64 {
    x.iter().zip(y).fold(0.0, |m: f64, (x, y)| m.max((f64::from(*x) - y).abs()))
}

#[test]
fn streams_are_the_plain_sums() {
    let (x, a) = (input(), adapter());
    let (expected, written) = reference(&a, &x, 0);
    assert!(written > 100, "{written} reads of written tokens");
    assert!(expected.iter().any(|y| y.abs() > 0.1));
    assert!(expected[..8 * D].iter().all(|y| *y == 0.0), "nothing is read inside the first span");
    for pieces in [&[T][..], &[1; T], &[3, 5, 1, 11, 8, 9], &[4, 4, 4, 4, 21]] {
        let got = stream(&a, pieces, 0);
        assert!(worst(&got, &expected) < 1e-5, "{pieces:?}: {}", worst(&got, &expected));
        assert!(got[..8 * D].iter().all(|y| *y == 0.0), "exact zeros inside the first span");
    }
    // a document that begins inside a segment, after another one
    let (expected, _) = reference(&a, &x, 6);
    let got = stream(&a, &[6, 10, 21], 6);
    assert!(worst(&got[6 * D..], &expected[6 * D..]) < 1e-5);
}

#[test]
fn the_window_of_the_base_is_checked() {
    let mut c = config();
    c.after = 5;
    assert!(c.check(&model()).unwrap_err().to_string().contains("after"));
    c = AdapterConfig { layer: 1, ..config() };
    assert!(c.check(&model()).unwrap_err().to_string().contains("layer"));
    assert_eq!(config().window(), InfiniConfig { segment_len: 4, span: 2, lag: 1, sink: 1, ..InfiniConfig::default() });
}
