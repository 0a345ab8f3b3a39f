//! Nothing is timed that does not compute what the f64 reference does.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use infini::Weights;
use infini::config::{LayerKind, ModelConfig};
use infini::model::{Model, Want};
use infini_kernels::loss::{self, Head};
use infini_kernels::naive::{attention as naive, pointwise};
use infini_kernels::{Mix, Rule, activation, linear, norm};
use infini_train::ops::Tokens;
use infini_train::reference;

use super::operands::{Attention, wave};
use super::steps::{tokens, trainer};

/// Largest RMS error of f32 results, relative to the RMS of the reference.
const BOUND: f64 = 1e-5;

fn close(what: &str, x: &[f32], reference: &[f64]) -> Result<()> {
    assert_eq!(x.len(), reference.len(), "{what}");
    let square = |v: f64| v * v;
    let error: f64 = x.iter().zip(reference).map(|(x, r)| square(f64::from(*x) - r)).sum();
    let size: f64 = reference.iter().copied().map(square).sum();
    let relative = (error / size.max(1e-30)).sqrt();
    ensure!(
        relative <= BOUND,
        "{what} differs from the f64 reference by {relative:.1e}: nothing was timed: please report it"
    );
    Ok(())
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// The kernels that `bench kernels` times, at sizes that are no round numbers.
pub fn kernels() -> Result<()> {
    for (mix, rule) in
        [(Mix::Add, Rule::Linear), (Mix::Head, Rule::Linear), (Mix::Head, Rule::Delta), (Mix::Head, Rule::SeqDelta)]
    {
        attention(mix, rule)?;
    }
    let sizes @ [n, inp, out] = [37, 65, 33];
    let (x, w, dy) = (wave(n * inp), wave(out * inp), wave(n * out));
    let (wx, ww, wdy) = (wide(&x), wide(&w), wide(&dy));
    let mut y = vec![f32::NAN; n * out];
    linear::forward(&x, &w, &mut y, sizes, false);
    close("linear", &y, &pointwise::linear(&wx, &ww, sizes))?;
    linear::forward(&x[..inp], &w, &mut y[..out], [1, inp, out], false);
    close("linear of one row", &y[..out], &pointwise::linear(&wx[..inp], &ww, [1, inp, out]))?;
    let (mut dx, mut dw) = (vec![f32::NAN; n * inp], vec![f32::NAN; out * inp]);
    linear::backward_input(&dy, &w, &mut dx, sizes, false);
    linear::backward_weight(&dy, &x, &mut dw, sizes, false);
    let (rdx, rdw) = pointwise::linear_backward(&wx, &ww, &wdy, sizes);
    close("linear, input gradient", &dx, &rdx)?;
    close("linear, weight gradient", &dw, &rdw)?;

    let gain = wave(inp);
    let (mut y, mut inv) = (vec![f32::NAN; n * inp], vec![f32::NAN; n]);
    norm::rms_forward(&x, &gain, 1e-5, &mut y, &mut inv);
    let eps = f64::from(1e-5f32);
    close("RMSNorm", &y, &pointwise::rms(&wx, &wide(&gain), eps))?;
    let (dy, mut dgain) = (wave(n * inp), vec![f32::NAN; inp]);
    let mut scratch = vec![f32::NAN; norm::rms_backward_scratch(n, inp)];
    norm::rms_backward(&x, &gain, &inv, &dy, &mut y, &mut dgain, &mut scratch);
    let (rdx, rdgain) = pointwise::rms_backward(&wx, &wide(&gain), eps, &wide(&dy));
    close("RMSNorm, input gradient", &y, &rdx)?;
    close("RMSNorm, gain gradient", &dgain, &rdgain)?;

    activation::swiglu_forward(&x, &dy, &mut y);
    let pairs = || wx.iter().zip(&dy).map(|(g, u)| (*g, f64::from(*u)));
    close("SwiGLU", &y, &pairs().map(|(g, u)| pointwise::swiglu(g, u)).collect::<Vec<_>>())?;
    let mut dup = vec![f32::NAN; x.len()];
    activation::swiglu_backward(&x, &dy, &x, &mut y, &mut dup);
    let slopes = || pairs().map(|(g, u)| pointwise::swiglu_slopes(g, u)).zip(&wx);
    close("SwiGLU, gate gradient", &y, &slopes().map(|((g, _), d)| g * d).collect::<Vec<_>>())?;
    close("SwiGLU, up gradient", &dup, &slopes().map(|((_, u), d)| u * d).collect::<Vec<_>>())?;

    let (d, v) = (inp, out);
    let targets: Vec<u32> = (0..n).map(|i| (i * 5 % v) as u32).collect();
    let head = Head { hidden: &x, weight: &w, targets: &targets, weights: None, d };
    let (mut losses, mut dhidden, mut dweight) = (vec![f32::NAN; n], vec![f32::NAN; n * d], vec![f32::NAN; v * d]);
    let mut scratch = vec![f32::NAN; loss::scratch_len(n, d, v)];
    let value = loss::forward_backward(&head, &mut losses, None, &mut dhidden, &mut dweight, false, &mut scratch);
    let expected = pointwise::loss(&wx, &ww, &targets, &vec![1.0 / n as f64; n], d);
    close("loss", &[value], &[expected.loss])?;
    close("loss, input gradient", &dhidden, &expected.dhidden)?;
    close("loss, head gradient", &dweight, &expected.dweight)
}

fn attention(mix: Mix, rule: Rule) -> Result<()> {
    let shape @ [b, t, h, d] = [2, 37, 2, 16];
    let mut a = Attention::new(mix, rule, shape, if mix == Mix::Add { t } else { 8 });
    a.forward();
    a.backward();
    let [q, k, v, dy, beta, decay] = [&a.q, &a.k, &a.v, &a.dy, &a.beta, &a.decay].map(|x| wide(x));
    // without a memory: one that nothing is written into
    let w = if mix == Mix::Add { vec![0.0; b * t * h] } else { Vec::new() };
    let x = naive::Inputs {
        dims: naive::Dims { b, t, h, hkv: h, d, dv: d, f: d },
        q: &q,
        k: &k,
        v: &v,
        w: &w,
        a: if rule == Rule::SeqDelta { &decay } else { &[] },
        c: &[],
        beta: if mix == Mix::Head { &beta } else { &[] },
        gate: &[],
        fmap_w: &[],
        reset: &[],
        m0: &[],
        z0: &[],
    };
    let name = |part: &str| format!("attention ({mix:?}, {rule:?}), {part}");
    close(&name("output"), &a.y, &naive::forward(&a.settings, &x).y)?;
    let g = naive::backward(&a.settings, &x, &dy, &vec![0.0; b * h * d * d], &vec![0.0; b * h * d]);
    for (part, x, r) in [("dq", &a.dq, &g.q), ("dk", &a.dk, &g.k), ("dv", &a.dv, &g.v)] {
        close(&name(part), x, r)?;
    }
    if mix == Mix::Head { close(&name("dbeta"), &a.dbeta, &g.beta) } else { Ok(()) }
}

/// A narrow, short copy of the model: its stream, read in pieces, and its training step's loss against the f64
/// decoder.
pub fn model(config: &ModelConfig) -> Result<()> {
    let mut small = config.clone();
    (small.vocab_size, small.num_hidden_layers) = (61, 2);
    (small.num_attention_heads, small.num_key_value_heads) = (2, small.num_key_value_heads.min(1));
    small.hidden_size = 2 * small.head_width();
    small.intermediate_size = 99;
    small.infini.segment_len = if small.layer_kind(0) == LayerKind::Infini { 16 } else { 64 };
    let weights = Weights::init(&small, 5);
    let named: BTreeMap<String, Vec<f64>> = weights.iter().map(|(n, x)| (n.to_string(), wide(x))).collect();

    let (b, t) = (2, 50);
    let ids = tokens(small.vocab_size, 0, b * (t + 1));
    let rows = || ids.chunks(t + 1);
    let inputs: Vec<u32> = rows().flat_map(|r| &r[..t]).copied().collect();
    let targets: Vec<u32> = rows().flat_map(|r| &r[1..]).copied().collect();
    let input = Tokens { ids: &inputs, reset: None, batch: b, len: t };
    let mean = vec![1.0 / (b * t) as f64; b * t];
    let expected = reference::run(&small, &named, &input, &targets, &mean, 0.0);

    let stream = Model::new(small.clone(), weights.clone())?;
    let mut state = stream.state(b);
    let mut logits = vec![Vec::new(); b];
    for range in [0..21, 21..22, 22..t] {
        let piece: Vec<u32> = inputs.chunks(t).flat_map(|r| &r[range.clone()]).copied().collect();
        let out = stream.forward(&mut state, &piece, Want::All);
        logits.iter_mut().zip(out.chunks(out.len() / b)).for_each(|(row, new)| row.extend(new));
    }
    close("the streaming model", &logits.concat(), &expected.logits)?;
    let step = trainer(&small, &weights, b, t).step(false)?;
    close("the training step's loss", &[step.loss as f32], &[expected.loss])?;
    let norm = expected.gradients.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
    close("the norm of the training step's gradient", &[step.gradient_norm as f32], &[norm])
}
