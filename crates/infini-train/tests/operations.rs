//! Every operation with its kernel against its composed body: values and every gradient.

use burn::tensor::{DType, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use infini::config::Write;
use infini_kernels::conformance::error;
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};
use infini_train::Device;
use infini_train::ops::{AttentionInputs, Body, HeadShape, Mlp, Tokens};

/// An f32 result may be this far from the f64 one, relative to the largest element.
const BOUND: f64 = 2e-5;

fn random(rng: &mut ChaCha8Rng, n: usize, low: f64, high: f64) -> Vec<f64> {
    // exact in f32, so that both bodies begin with the same numbers
    (0..n).map(|_| f64::from(rng.random_range(low..high) as f32)).collect()
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data_dtype(DType::F64).try_into_vec().unwrap()
}

/// Runs `op` on leaves with these values in f32 kernels and in composed f64 ops; compares the output and
/// the gradients of `Σ up · output`.
fn compare(name: &str, leaves: &[Vec<f64>], op: impl Fn(Body, &[Tensor<1>]) -> Tensor<2>) {
    let device = Device::flex().autodiff();
    let run = |body: Body, dtype: DType| {
        let leaf = |data: &Vec<f64>| {
            Tensor::<1>::from_data(TensorData::new(data.clone(), [data.len()]), (&device, dtype)).require_grad()
        };
        let inputs: Vec<Tensor<1>> = leaves.iter().map(leaf).collect();
        let y = op(body, &inputs);
        let mut rng = ChaCha8Rng::seed_from_u64(99);
        let up = random(&mut rng, y.shape().num_elements(), -1.0, 1.0);
        let up = Tensor::<2>::from_data(TensorData::new(up, y.dims()), (&device, dtype));
        let grads = (y.clone() * up).sum().backward();
        let zero = |x: &Tensor<1>| vec![0.0; x.dims()[0]];
        let grads = inputs.iter().map(|x| x.grad(&grads).map_or_else(|| zero(x), values)).collect::<Vec<_>>();
        (values(y.detach()), grads)
    };
    let ((y, dy), (reference, dreference)) = (run(Body::Kernel, DType::F32), run(Body::Composed, DType::F64));
    let e = error(&y, &reference);
    assert!(e <= BOUND, "{name}: the output is off by {e:.1e}");
    for (i, (d, r)) in dy.iter().zip(&dreference).enumerate() {
        let e = error(d, r);
        assert!(e <= BOUND, "{name}: the gradient of input {i} is off by {e:.1e}");
    }
}

#[test]
fn pointwise() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (b, len, d, out) = (2, 11, 24, 10);
    let n = b * len;
    let mut matrix = |n: usize| random(&mut rng, n, -2.0, 2.0);
    let (x, x2, w, gain, kernel, logits) =
        (matrix(n * d), matrix(n * d), matrix(out * d), matrix(d), matrix(5 * d), matrix(n * 3));
    let table = matrix(7 * d);
    let at = move |x: &Tensor<1>| {
        let c = x.dims()[0] / n;
        x.clone().reshape([n, c])
    };
    compare("rms_norm", &[x.clone(), gain.clone()], |body, p| body.rms_norm(at(&p[0]), p[1].clone(), 1e-6));
    let weight = |x: &Tensor<1>, rows: usize| x.clone().reshape([rows, d]);
    compare("linear", &[x.clone(), w.clone()], |body, p| body.linear(at(&p[0]), weight(&p[1], out)));
    compare("swiglu", &[x.clone(), x2], |body, p| body.swiglu(at(&p[0]), at(&p[1])));
    compare("gelu", std::slice::from_ref(&x), |body, p| body.gelu(at(&p[0])));
    for gated in [true, false] {
        let leaves = [x.clone(), gain.clone(), w.clone(), matrix(out * d), matrix(out * d)];
        compare(&format!("mlp, gate {gated}"), &leaves, |body, p| {
            let gate = gated.then(|| weight(&p[2], out));
            let down = p[4].clone().reshape([d, out]);
            body.mlp(at(&p[0]), Mlp { norm: p[1].clone(), eps: 1e-6, gate, up: weight(&p[3], out), down })
        });
    }
    for write in [Write::Soft, Write::Clip, Write::Hard] {
        let name = format!("write_gate {write:?}");
        compare(&name, &[logits.iter().map(|x| 3.0 * x).collect()], |body, p| body.write_gate(at(&p[0]), write));
    }
    let ids: Vec<u32> = (0..n as u32).map(|i| i * i % 7).collect();
    let mut reset = vec![0u8; n];
    [0, 3, 4, len + 6].into_iter().for_each(|i| reset[i] = 1);
    for reset in [None, Some(&reset[..])] {
        let t = Tokens { ids: &ids, reset, batch: b, len };
        let conv = |body: Body, p: &[Tensor<1>]| body.conv(at(&p[0]), weight(&p[1], 5), &t);
        compare("conv", &[x.clone(), kernel.clone()], conv);
    }
    let t = Tokens { ids: &ids, reset: None, batch: b, len };
    compare("embedding", std::slice::from_ref(&table), |body, p| body.embedding(weight(&p[0], 7), &t));

    let weights: Vec<f32> = (0..n).map(|i| [0.0, 0.25, 1.0][i % 3]).collect();
    compare("cross_entropy", &[x, table], |body, p| {
        let loss = body.cross_entropy(at(&p[0]), weight(&p[1], 7), &ids, &weights);
        assert_eq!((loss.losses.len(), loss.hits.len()), (n, n));
        loss.value.unsqueeze()
    });
}

struct Case {
    settings: Settings,
    shape: HeadShape,
    batch: usize,
    len: usize,
    feature_width: usize,
    null_slot: bool,
    resets: bool,
}

#[test]
fn attention() {
    let base = Settings {
        rule: Rule::Linear,
        features: Features::Elu1,
        mix: Mix::Head,
        rope: Rope::Half,
        theta: 1e4,
        segment_len: 8,
        span: 2,
        lag: 0,
        final_state: FinalState::Closed,
    };
    let mut cases = 0;
    for (rule, features) in [
        (Rule::Linear, Features::Elu1),
        (Rule::Linear, Features::SoftmaxPair),
        (Rule::Delta, Features::Elu1),
        (Rule::Delta, Features::SoftmaxPair),
        (Rule::SeqDelta, Features::L2),
    ] {
        for (i, mix) in [Mix::Head, Mix::Token, Mix::Add].into_iter().enumerate() {
            for (span, lag) in [(1, 0), (2, 0), (2, 1)] {
                for (heads, kv_heads) in [(2, 2), (4, 2)] {
                    // what does not multiply goes round with the cases
                    cases += 1;
                    let case = Case {
                        settings: Settings { rule, features, mix, span, lag, ..base },
                        shape: HeadShape { heads, kv_heads, width: 8 },
                        batch: 2,
                        len: [29, 32, 5][cases % 3],
                        feature_width: 6,
                        null_slot: (cases + i) % 2 == 0 && rule != Rule::SeqDelta,
                        resets: cases % 4 < 2,
                    };
                    check(&format!("{rule:?} {features:?} {mix:?} span {span} lag {lag} {heads}/{kv_heads}"), &case);
                }
            }
        }
    }
    assert_eq!(cases, 90);
}

fn check(name: &str, c: &Case) {
    let HeadShape { heads, kv_heads, width } = c.shape;
    let n = c.batch * c.len;
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut some = |n: usize, low: f64, high: f64| random(&mut rng, n, low, high);
    let leaves: Vec<Vec<f64>> = vec![
        some(n * heads * width, -1.0, 1.0),
        some(n * kv_heads * width, -1.0, 1.0),
        some(n * kv_heads * width, -1.0, 1.0),
        some(n * kv_heads, 0.1, 0.9),
        some(n * kv_heads, 0.7, 1.0),
        some(kv_heads, 0.5, 1.5),
        some(heads, -1.0, 1.0),
        some(n * heads, -1.0, 1.0),
        some(kv_heads * width * c.feature_width, -1.0, 1.0),
    ];
    let mut reset = vec![0u8; n];
    [3, c.len - 1, c.len].into_iter().for_each(|i| reset[i] = 1);
    let ids = vec![0; n];
    let t = Tokens { ids: &ids, reset: c.resets.then_some(&reset[..]), batch: c.batch, len: c.len };
    compare(name, &leaves, |body, p| {
        let at = |i: usize| p[i].clone().reshape([n, p[i].dims()[0] / n]);
        let seq = c.settings.rule == Rule::SeqDelta;
        let mut x = AttentionInputs::new(at(0), at(1), at(2));
        x.w = Some(at(3));
        x.a = seq.then(|| at(4));
        x.c = c.null_slot.then(|| p[5].clone());
        x.beta = (c.settings.mix == Mix::Head).then(|| p[6].clone());
        x.gate = (c.settings.mix == Mix::Token).then(|| at(7));
        let pair = c.settings.features == Features::SoftmaxPair;
        x.fmap = pair.then(|| p[8].clone().reshape([kv_heads, width, c.feature_width]));
        body.attention(&c.settings, c.shape, &x, &t)
    });
}

#[test]
fn window() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (segment_len, span, len, heads, kv_heads) in
        [(8, 1, 29, 2, 2), (8, 2, 29, 4, 2), (1 << 40, 1, 33, 4, 1), (4, 2, 3, 2, 1), (8, 2, 64, 9, 3)]
    {
        let s = Settings {
            rule: Rule::Linear,
            features: Features::Elu1,
            mix: Mix::Add,
            rope: Rope::Half,
            theta: 1e4,
            segment_len,
            span,
            lag: 0,
            final_state: FinalState::Closed,
        };
        let (batch, width) = (2, 16);
        let n = batch * len;
        let leaves: Vec<Vec<f64>> =
            [heads, kv_heads, kv_heads].map(|h| random(&mut rng, n * h * width, -1.0, 1.0)).into();
        let mut reset = vec![0u8; n];
        [1, len].into_iter().for_each(|i| reset[i] = 1);
        let ids = vec![0; n];
        for reset in [None, Some(&reset[..])] {
            let t = Tokens { ids: &ids, reset, batch, len };
            let shape = HeadShape { heads, kv_heads, width };
            compare(&format!("window {segment_len} {span} {len}"), &leaves, |body, p| {
                let at = |i: usize| p[i].clone().reshape([n, p[i].dims()[0] / n]);
                body.window(&s, shape, &AttentionInputs::new(at(0), at(1), at(2)), &t)
            });
        }
    }
}
