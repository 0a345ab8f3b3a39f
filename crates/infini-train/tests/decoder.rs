//! The decoder's training graph with kernels against the f64 reference and against the streaming model,
//! for every kind of layer.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};
use infini::config::{
    Activation, Attention, FeatureName, InfiniConfig, Init, Layers, LayersName, Learned, MixName, ModelConfig,
    NullSlot, RuleName, Write,
};
use infini::model::{Model, Want};
use infini::weights::Weights;
use infini_kernels::conformance::error;
use infini_train::carry::Carry;
use infini_train::ops::{Body, Gradient, Tokens};
use infini_train::{Device, Parameters, decoder, reference};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn base() -> ModelConfig {
    ModelConfig {
        vocab_size: 31,
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        intermediate_size: 40,
        hidden_act: Activation::GeluMlp,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention: Attention::Infini,
        infini: InfiniConfig { segment_len: 8, ..InfiniConfig::preset("selective-linear").unwrap() },
    }
}

fn added() -> InfiniConfig {
    InfiniConfig::preset("added-linear").unwrap()
}

fn configs() -> Vec<(&'static str, ModelConfig)> {
    let with = |f: &dyn Fn(&mut ModelConfig)| {
        let mut c = base();
        f(&mut c);
        c
    };
    vec![
        ("selective-linear", base()),
        (
            "selective-delta",
            with(&|c| c.infini = InfiniConfig { segment_len: 8, ..InfiniConfig::preset("selective-delta").unwrap() }),
        ),
        (
            "paper-linear, SwiGLU, tied",
            with(&|c| {
                c.infini = InfiniConfig { segment_len: 8, ..InfiniConfig::default() };
                c.hidden_act = Activation::Silu;
                c.tie_word_embeddings = true;
            }),
        ),
        ("full", with(&|c| c.attention = Attention::Full)),
        (
            "full, biases, SwiGLU, tied",
            with(&|c| {
                (c.attention, c.qkv_bias, c.tie_word_embeddings) = (Attention::Full, true, true);
                c.hidden_act = Activation::Silu;
            }),
        ),
        ("local", with(&|c| c.attention = Attention::Local)),
        (
            "gated delta, lag 1, soft",
            with(&|c| {
                c.infini.rule = RuleName::GatedDelta;
                (c.infini.lag, c.infini.write, c.infini.mix) = (1, Write::Soft, MixName::Token);
                c.infini.layers = Layers::Named(LayersName::All);
            }),
        ),
        ("local with sinks", with(&|c| (c.attention, c.infini.sink) = (Attention::Local, 3))),
        (
            "local with a sink, no conv",
            with(&|c| (c.attention, c.infini.sink, c.infini.conv) = (Attention::Local, 1, 0)),
        ),
        ("local, keys and values convolved", with(&|c| (c.attention, c.infini.kv_conv) = (Attention::Local, 3))),
        ("keys and values convolved", with(&|c| (c.infini.conv, c.infini.kv_conv) = (0, 4))),
        ("local, no conv", with(&|c| (c.attention, c.infini.conv) = (Attention::Local, 0))),
        (
            "delta, softmax pair, learned null slot, hard, added",
            with(&|c| {
                (c.infini.rule, c.infini.features) = (RuleName::Delta, FeatureName::SoftmaxPair);
                (c.infini.feature_width, c.infini.null_slot) = (6, NullSlot::Learned(Learned::Learned));
                (c.infini.write, c.infini.mix, c.infini.conv) = (Write::Hard, MixName::Add, 0);
                c.infini.layers = Layers::List(vec![0]);
            }),
        ),
        ("full, no conv", with(&|c| (c.attention, c.infini.conv) = (Attention::Full, 0))),
        ("transformer-xl", with(&|c| c.attention = Attention::TransformerXl)),
        (
            "memorizing",
            with(&|c| {
                c.attention = Attention::Memorizing;
                (c.infini.store, c.infini.top) = (16, 3);
            }),
        ),
        ("added-linear", with(&|c| c.infini = InfiniConfig { segment_len: 8, ..added() })),
        (
            "rmt",
            with(&|c| {
                c.attention = Attention::Rmt;
                (c.infini.span, c.infini.lag, c.infini.summaries, c.infini.kv_conv) = (1, 0, 3, 2);
            }),
        ),
        (
            "rmt, no conv, SwiGLU, tied",
            with(&|c| {
                c.attention = Attention::Rmt;
                (c.infini.span, c.infini.lag, c.infini.summaries, c.infini.conv) = (1, 0, 2, 0);
                (c.hidden_act, c.tie_word_embeddings) = (Activation::Silu, true);
            }),
        ),
        (
            "heads of its own, gated delta, soft",
            with(&|c| {
                c.infini = InfiniConfig { segment_len: 8, memory_heads: 3, memory_dim: 6, ..added() };
                (c.infini.rule, c.infini.write, c.infini.conv) = (RuleName::GatedDelta, Write::Soft, 0);
                (c.infini.span, c.infini.lag) = (1, 0);
                c.infini.layers = Layers::List(vec![1]);
            }),
        ),
        (
            "heads of its own, delta, softmax pair, null slot",
            with(&|c| {
                c.infini = InfiniConfig { segment_len: 8, memory_dim: 10, memory_conv: 0, ..added() };
                (c.infini.rule, c.infini.features) = (RuleName::Delta, FeatureName::SoftmaxPair);
                (c.infini.feature_width, c.infini.null_slot) = (6, NullSlot::Learned(Learned::Learned));
            }),
        ),
    ]
}

/// Weights with nothing left at 0 or 1, exact in f32.
fn weights(c: &ModelConfig) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut one = |p: infini::config::Parameter| {
        let n = p.shape.iter().product();
        let (middle, spread) = match p.init {
            Init::Constant(x) => (x, 0.5),
            Init::Normal(std) => (0.0, 1.7 * std),
            Init::Values(v) => (v[0], 1.0),
        };
        (p.name, (p.shape, (0..n).map(|_| middle + rng.random_range(-spread..spread)).collect()))
    };
    c.parameters().into_iter().map(&mut one).collect()
}

struct Input {
    ids: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    reset: Option<Vec<u8>>,
}

impl Input {
    fn new(vocab: u32, resets: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut draw = || (0..2 * 29).map(|_| rng.random_range(0..vocab)).collect::<Vec<u32>>();
        let reset = resets.then(|| (0..2 * 29).map(|i| u8::from([0, 12, 29 + 16, 29 + 20].contains(&i))).collect());
        Input { ids: draw(), targets: draw(), weights: (0..58).map(|i| [0.0, 0.125, 0.0625][i % 3]).collect(), reset }
    }

    fn tokens(&self) -> Tokens<'_> {
        Tokens { ids: &self.ids, reset: self.reset.as_deref(), batch: 2, len: 29 }
    }
}

#[test]
fn gradients_are_the_references() {
    for (name, c) in configs() {
        for resets in [false, true] {
            let input = Input::new(c.vocab_size as u32, resets);
            let w = weights(&c);
            let p64 = w.iter().map(|(n, (_, x))| (n.clone(), x.iter().map(|x| f64::from(*x)).collect())).collect();
            let token_weights: Vec<f64> = input.weights.iter().map(|w| f64::from(*w)).collect();
            let r = reference::run(&c, &p64, &input.tokens(), &input.targets, &token_weights, 0.5);

            let device = Device::flex().autodiff();
            let p = Parameters::new(&c, &Weights::new(&c, w).unwrap(), &device, DType::F32);
            let out = decoder::forward(Body::Kernel, &c, &p, &input.tokens());
            let head = decoder::head(&c, &p);
            let mut loss = Body::Kernel.cross_entropy(out.hidden, head, &input.targets, &input.weights).value;
            for gate in out.gates {
                if let Some(write) = gate.write {
                    loss = loss + write.strength.mean() * 0.5;
                }
            }
            let value = f64::from(loss.clone().into_scalar::<f32>());
            assert!((value - r.loss).abs() < 1e-5 * r.loss.abs().max(1.0), "{name}: loss {value}, not {}", r.loss);
            let mut grads = loss.backward();
            for leaf in p.leaves() {
                let expected = &r.gradients[&leaf.name];
                let g = Gradient::take(&leaf.value, &mut grads).map_or(vec![0.0; expected.len()], |g| g.to_f64());
                let e = error(&g, expected);
                assert!(e < 2e-5, "{name}, resets {resets}: the gradient of {} is off by {e:.1e}", leaf.name);
            }
        }
    }
}

/// The reference's own gradients against fourth-order central differences.
#[test]
fn the_reference_differentiates_itself() {
    // gradients that are stopped are no differences
    let stopped = |c: &ModelConfig| matches!(c.attention, Attention::TransformerXl | Attention::Memorizing);
    for (name, mut c) in configs().into_iter().filter(|(_, c)| !stopped(c)).skip(1).step_by(2) {
        // straight-through gradients are no differences
        if matches!(c.infini.write, Write::Clip | Write::Hard) {
            c.infini.write = Write::Soft;
        }
        let input = Input::new(c.vocab_size as u32, true);
        let p: reference::Named =
            weights(&c).into_iter().map(|(n, (_, x))| (n, x.into_iter().map(f64::from).collect())).collect();
        let token_weights: Vec<f64> = input.weights.iter().map(|w| f64::from(*w)).collect();
        let run = |p: &reference::Named| reference::run(&c, p, &input.tokens(), &input.targets, &token_weights, 0.5);
        let r = run(&p);
        for (parameter, g) in &r.gradients {
            let i = g.len() / 2;
            let h = 1e-3;
            let at = |m: f64| {
                let mut p = p.clone();
                p.get_mut(parameter).unwrap()[i] += m * h;
                run(&p).loss
            };
            let d = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
            assert!((d - g[i]).abs() < 1e-8 * d.abs().max(1.0), "{name}: {parameter}[{i}]: {} differenced {d}", g[i]);
        }
    }
}

#[test]
fn the_streaming_model_computes_the_same() {
    for (name, c) in configs() {
        let input = Input::new(c.vocab_size as u32, false);
        let mut w = Weights::new(&c, weights(&c)).unwrap();
        for bf16 in [false, true] {
            // the streaming model keeps bf16 numbers in two bytes, the graph does not
            if bf16 {
                w.round_to_bf16();
            }
            let p = Parameters::new(&c, &w, &Device::flex().autodiff(), DType::F32);
            let graph = decoder::logits(Body::Kernel, &c, &p, &input.tokens());
            let graph: Vec<f64> = graph.into_data_dtype(DType::F64).try_into_vec().unwrap();
            let model = Model::new(c.clone(), w.clone()).unwrap();
            let streamed = model.forward(&mut model.state(2), &input.ids, Want::All);
            let e = error(&streamed.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), &graph);
            assert!(e < 1e-5, "{name}, bf16 {bf16}: logits are {e:.1e} apart");
        }
    }
}

/// Steps that carry what they have read give the logits of one step over all tokens, and of the stream; gradients stop at
/// the step's beginning, so those of a last step alone are the same whatever came before in the graph.
#[test]
fn steps_that_carry_are_one_step() {
    for (name, c) in configs() {
        if c.attention == Attention::Full {
            continue;
        }
        for resets in [false, true] {
            let (batch, len, steps) = (2, 16, 3);
            let all = batch * len * steps;
            let mut rng = ChaCha8Rng::seed_from_u64(8);
            let ids: Vec<u32> = (0..all).map(|_| rng.random_range(0..c.vocab_size as u32)).collect();
            // in the first row one inside a step and one at its first token, in the second one in the last tokens of a step
            let begins = [0, 5, 16, 48 + 30, 48 + 45];
            let reset: Vec<u8> = (0..all).map(|i| u8::from(resets && begins.contains(&i))).collect();
            let w = Weights::new(&c, weights(&c)).unwrap();
            let p = Parameters::new(&c, &w, &Device::flex().autodiff(), DType::F32);
            let head = decoder::head(&c, &p);
            let whole = Tokens { ids: &ids, reset: resets.then_some(&reset[..]), batch, len: len * steps };
            for body in [Body::Kernel, Body::Composed] {
                let numbers = |x: Tensor<2>| x.into_data_dtype(DType::F64).try_into_vec::<f64>().unwrap();
                let expected = numbers(decoder::logits(body, &c, &p, &whole));
                let mut carry: Option<Carry> = None;
                let width = c.vocab_size;
                for step in 0..steps {
                    let cut = |x: usize| x / (len * steps) * len * steps + step * len + x % (len * steps);
                    let rows = |x: &[u32]| -> Vec<u32> {
                        (0..batch).flat_map(|b| x[cut(b * len * steps)..][..len].to_vec()).collect()
                    };
                    let flags: Vec<u8> =
                        (0..batch).flat_map(|b| reset[cut(b * len * steps)..][..len].to_vec()).collect();
                    let ids = rows(&ids);
                    let t = Tokens { ids: &ids, reset: flags.contains(&1).then_some(&flags[..]), batch, len };
                    let (out, after) = decoder::forward_carried(body, &c, &p, &t, carry.as_ref(), true);
                    let got = numbers(body.linear(out.hidden, head.clone()));
                    let wanted: Vec<f64> = (0..batch)
                        .flat_map(|b| expected[cut(b * len * steps) * width..][..len * width].to_vec())
                        .collect();
                    let e = error(&got, &wanted);
                    assert!(e < 1e-5, "{name}, resets {resets}, {body:?}, step {step}: {e:.1e}");
                    // through a file and back
                    let after = after.unwrap();
                    let back = Carry::from_bytes(&c, after.to_bytes().unwrap()).unwrap();
                    assert_eq!(back, after, "{name}");
                    carry = Some(back);
                }
            }
        }
    }
}
