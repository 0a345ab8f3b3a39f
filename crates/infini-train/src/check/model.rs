//! Golden files of a whole decoder.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::op::values;
use super::{Row, at_every_level, deviation, number, size};
use crate::ops::{Body, Gradient, Tokens};
use crate::parameters::Parameters;
use crate::{decoder, reference};
use infini::config::{
    Activation, Attention, FeatureName, InfiniConfig, Layers, LayersName, Learned, MixName, ModelConfig, NullSlot,
    RuleName, Write,
};
use infini::weights::Weights;
use infini_kernels::conformance::{F32_BOUND, F64_BOUND, Tensor};
use infini_kernels::{FinalState, Mix, Rope, Rule};

/// The configuration that the files' settings mean.
fn config(s: &serde_json::Value) -> Result<ModelConfig, String> {
    let k = super::op::settings(s)?;
    if k.rope != Rope::Half || k.final_state != FinalState::Closed {
        return Err("a decoder has half-split rotations and leaves the last segment open".into());
    }
    let flag = |key: &str| s[key].as_bool().ok_or(format!("setting {key} is no truth value"));
    let rule = match k.rule {
        Rule::Linear => RuleName::Linear,
        Rule::Delta => RuleName::Delta,
        Rule::SeqDelta => RuleName::GatedDelta,
    };
    let mix = match k.mix {
        Mix::Head => MixName::Head,
        Mix::Token => MixName::Token,
        Mix::Add => MixName::Add,
        Mix::Memory => return Err("a decoder's memory is mixed with its window".into()),
    };
    Ok(ModelConfig {
        vocab_size: size(s, "vocab")?,
        hidden_size: size(s, "d_model")?,
        num_hidden_layers: size(s, "layers")?,
        num_attention_heads: size(s, "H")?,
        num_key_value_heads: size(s, "Hkv")?,
        head_dim: size(s, "D")?,
        intermediate_size: size(s, "ffn")?,
        hidden_act: Activation::Silu,
        rope_theta: k.theta,
        rms_norm_eps: number(s, "rms_eps")?,
        tie_word_embeddings: flag("tied")?,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention: Attention::Infini,
        infini: InfiniConfig {
            segment_len: k.segment_len,
            span: k.span,
            lag: k.lag,
            sink: 0,
            layers: Layers::Named(LayersName::All),
            rule,
            features: FeatureName::Elu1,
            feature_width: 64,
            write: if flag("write_gate")? { Write::Soft } else { Write::All },
            null_slot: if flag("learn_c")? { NullSlot::Learned(Learned::Learned) } else { NullSlot::Fixed(0.0) },
            mix,
            ..InfiniConfig::default()
        },
    })
}

struct Golden {
    config: ModelConfig,
    weights: BTreeMap<String, Tensor>,
    ids: Vec<u32>,
    targets: Vec<u32>,
    /// Weights that make the sum over tokens the mean over the targets that count.
    token_weights: Vec<f64>,
    reset: Option<Vec<u8>>,
    batch: usize,
    tensors: BTreeMap<String, Tensor>,
}

pub(super) fn check(text: &str, tensors: BTreeMap<String, Tensor>) -> Result<Vec<Row>, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("settings: {e}"))?;
    let config = config(&json)?;
    config.check().map_err(|e| e.to_string())?;
    let data = |name: &str| tensors.get(name).map(|t| &t.data).ok_or(format!("tensor {name} is missing"));
    let ids: Vec<u32> = data("tokens")?.iter().map(|x| *x as u32).collect();
    let targets = data("targets")?;
    if targets.len() != ids.len() || ids.iter().any(|id| *id as usize >= config.vocab_size) {
        return Err("tokens and targets do not fit the vocabulary or each other".into());
    }
    let counted = targets.iter().filter(|t| **t >= 0.0).count() as f64;
    let weights = tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("w.")?.to_owned(), t.clone()))).collect();
    let golden = Golden {
        weights,
        batch: size(&json, "B")?,
        token_weights: targets.iter().map(|t| if *t >= 0.0 { 1.0 / counted } else { 0.0 }).collect(),
        targets: targets.iter().map(|t| t.max(0.0) as u32).collect(),
        reset: tensors.get("reset").map(|t| t.data.iter().map(|x| u8::from(*x != 0.0)).collect()),
        ids,
        config,
        tensors,
    };
    let mut rows = vec![golden.reference()?];
    for row in at_every_level(|level| golden.graph(Body::Kernel, DType::F32, format!("kernels {}", level.name()))) {
        rows.push(row?);
    }
    rows.push(golden.graph(Body::Composed, DType::F32, "composed f32".into())?);
    rows.push(golden.graph(Body::Composed, DType::F64, "composed f64".into())?);
    Ok(rows)
}

/// The kernels' graph of a configuration against the f64 reference on random weights and tokens: what a
/// benchmark verifies before it times.
///
/// # Errors
/// A configuration that cannot be.
pub fn verify(config: &ModelConfig, batch: usize, len: usize, seed: u64) -> Result<Row, String> {
    config.check().map_err(|e| e.to_string())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = batch * len;
    let mut draw = || (0..n).map(|_| rng.random_range(0..config.vocab_size as u32)).collect::<Vec<u32>>();
    let init = Weights::init(config, seed);
    let wide = |p: infini::config::Parameter| {
        let data = init.get(&p.name).iter().map(|x| f64::from(*x)).collect();
        (p.name, Tensor { shape: p.shape, data })
    };
    let mut golden = Golden {
        weights: config.parameters().into_iter().map(wide).collect(),
        config: config.clone(),
        ids: draw(),
        targets: draw(),
        token_weights: vec![1.0 / n as f64; n],
        reset: None,
        batch,
        tensors: BTreeMap::new(),
    };
    let p = golden.weights.iter().map(|(n, t)| (n.clone(), t.data.clone())).collect();
    let out = reference::run(config, &p, &golden.tokens(), &golden.targets, &golden.token_weights, 0.0);
    let grads = out.gradients.into_iter().map(|(n, g)| (format!("grad.{n}"), g));
    let all = grads.chain([("logits".into(), out.logits), ("loss".into(), vec![out.loss])]);
    golden.tensors = all.map(|(n, data)| (n, Tensor { shape: vec![data.len()], data })).collect();
    golden.graph(Body::Kernel, DType::F32, "kernels".into())
}

impl Golden {
    fn tokens(&self) -> Tokens<'_> {
        let len = self.ids.len() / self.batch.max(1);
        Tokens { ids: &self.ids, reset: self.reset.as_deref(), batch: self.batch, len }
    }

    fn weights(&self) -> Result<Weights, String> {
        let f32s = |t: &Tensor| (t.shape.clone(), t.data.iter().map(|x| *x as f32).collect());
        let tensors = self.weights.iter().map(|(n, t)| (n.clone(), f32s(t))).collect();
        Weights::new(&self.config, tensors).map_err(|e| e.to_string())
    }

    fn reference(&self) -> Result<Row, String> {
        self.weights()?;
        let p = self.weights.iter().map(|(n, t)| (n.clone(), t.data.clone())).collect();
        let out = reference::run(&self.config, &p, &self.tokens(), &self.targets, &self.token_weights, 0.0);
        Ok(self.compare("reference f64".into(), F64_BOUND, out.logits, out.loss, out.gradients))
    }

    fn graph(&self, body: Body, dtype: DType, executor: String) -> Result<Row, String> {
        let device = Device::flex().autodiff();
        let p = Parameters::new(&self.config, &self.weights()?, &device, dtype);
        let t = self.tokens();
        let logits = values(&decoder::logits(body, &self.config, &p, &t))?;
        let hidden = decoder::forward(body, &self.config, &p, &t).hidden;
        // whole numbers as weights, the mean's factor after it: exact in both types
        let counts: Vec<f32> = self.token_weights.iter().map(|w| f32::from(u8::from(*w > 0.0))).collect();
        let mean = self.token_weights.iter().copied().fold(0.0, f64::max);
        let loss = body.cross_entropy(hidden, decoder::head(&self.config, &p), &self.targets, &counts).value * mean;
        let mut grads = loss.backward();
        let mut gradients = BTreeMap::new();
        for leaf in p.leaves() {
            let n = leaf.shape.iter().product();
            let g = Gradient::take(&leaf.value, &mut grads).map_or(vec![0.0; n], |g| g.to_f64());
            gradients.insert(leaf.name.clone(), g);
        }
        let bound = if dtype == DType::F64 { F64_BOUND } else { F32_BOUND };
        let loss = values(&loss)?[0];
        Ok(self.compare(executor, bound, logits, loss, gradients))
    }

    fn compare(&self, executor: String, bound: f64, logits: Vec<f64>, loss: f64, grads: reference::Named) -> Row {
        let found = grads.into_iter().map(|(n, g)| (format!("grad.{n}"), g));
        let found = found.chain([("logits".into(), logits), ("loss".into(), vec![loss])]);
        let tensors = found.map(|(tensor, x)| {
            let expected = self.tensors.get(&tensor).map_or(&[][..], |t| &t.data);
            deviation(tensor, &x, expected, bound)
        });
        Row { executor, tensors: tensors.collect() }
    }
}
