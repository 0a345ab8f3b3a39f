//! A GGUF file as configuration, weights and tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use infini_format::gguf::{Gguf, Value};
use infini_format::hash::sha256;
use infini_format::io::RealIo;

use super::vocabulary;
use crate::config::{Activation, Attention, InfiniConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::folder::{Unread, identity};
use crate::text::Tokenizer;
use crate::text::chat::TemplateSource;
use crate::weights::Source;

/// Keys below the architecture's name that are read, or that say nothing about the logits.
const KNOWN: [&str; 12] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
];

/// Keys that are harmless with one value only.
const HARMLESS: [(&str, Value); 6] = [
    ("attention.causal", Value::Bool(true)),
    ("expert_count", Value::Unsigned(0)),
    ("expert_used_count", Value::Unsigned(0)),
    ("rope.scaling.factor", Value::Float(1.0)),
    ("rope.scale_linear", Value::Float(1.0)),
    ("attention.scale", Value::Float(0.0)),
];

/// Reads a GGUF file.
///
/// # Errors
/// A damaged file, another architecture than llama and qwen2, or whatever this crate does not compute.
pub(crate) fn read(path: &Path) -> Result<Unread> {
    let file = Gguf::read(&RealIo, path).map_err(|e| Error::Model(e.to_string()))?;
    from_file(file, path).map_err(|e| Error::Model(format!("{}: {e}", path.display())))
}

/// The tokenizer alone.
pub(super) fn tokenizer(path: &Path) -> Result<Tokenizer> {
    let file = Gguf::read(&RealIo, path).map_err(|e| Error::Model(e.to_string()))?;
    Tokenizer::from_bytes(&vocabulary::tokenizer_json(&file.metadata)?)
}

fn from_file(file: Gguf, path: &Path) -> Result<Unread> {
    let config = config(&file)?;
    let json = vocabulary::tokenizer_json(&file.metadata)?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let id = |key: &str| {
        let n = file.metadata.get(&format!("tokenizer.ggml.{key}")).and_then(Value::as_u64)?;
        u32::try_from(n).ok().filter(|n| (*n as usize) < config.vocab_size)
    };
    let end = ["eos_token_id", "eot_token_id"].iter().filter_map(|k| id(k)).collect::<std::collections::BTreeSet<_>>();
    let spelled = |key| id(key).map(|i| tokenizer.decode(&[i])).unwrap_or_default();
    let template = file.metadata.get("tokenizer.chat_template").and_then(Value::as_text).map(|t| TemplateSource {
        template: t.into(),
        bos: spelled("bos_token_id"),
        eos: spelled("eos_token_id"),
    });
    Ok(Unread {
        identity: identity(&config, sha256(file.bytes()), &json),
        weights: source(file, &config, path)?,
        config,
        tokenizer,
        stop: Vec::new(),
        end: end.into_iter().collect(),
        template,
    })
}

fn config(file: &Gguf) -> Result<ModelConfig> {
    let bad = |why: String| Error::Model(why);
    let meta = &file.metadata;
    let arch = meta.get("general.architecture").and_then(Value::as_text).unwrap_or("none");
    if !["llama", "qwen2"].contains(&arch) {
        return Err(bad(format!("the architecture is {arch}: llama and qwen2 are read")));
    }
    let prefix = format!("{arch}.");
    for (key, value) in meta.range(prefix.clone()..).take_while(|(k, _)| k.starts_with(&prefix)) {
        let name = &key[prefix.len()..];
        let none = name == "rope.scaling.type" && value.as_text() == Some("none");
        if !(none || KNOWN.contains(&name) || HARMLESS.iter().any(|(k, v)| *k == name && v == value)) {
            return Err(bad(format!("{key} = {value:?}: this is not computed here: take a model without it")));
        }
    }
    let find = |name: &str| meta.get(&format!("{arch}.{name}"));
    let number = |name: &str| -> Result<Option<usize>> {
        match find(name) {
            None => Ok(None),
            Some(v) => match v.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(bad(format!("{arch}.{name} is {v:?}, not one size"))),
            },
        }
    };
    let size = |name: &str| number(name)?.ok_or_else(|| bad(format!("{arch}.{name} is missing")));
    let float = |name: &str, default: Option<f64>| {
        find(name).map_or(default, Value::as_f64).ok_or_else(|| bad(format!("{arch}.{name} is no number")))
    };
    let embedding = file.get("token_embd.weight").ok_or_else(|| bad("token_embd.weight is missing".into()))?;
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let config = ModelConfig {
        vocab_size: embedding.shape.first().copied().unwrap_or(0),
        hidden_size: hidden,
        num_hidden_layers: size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: number("attention.head_count_kv")?.unwrap_or(heads),
        head_dim: super::explicit(number("attention.key_length")?.unwrap_or(0), hidden, heads),
        intermediate_size: size("feed_forward_length")?,
        hidden_act: Activation::Silu,
        // stored as f32: the nearest number of few digits is what was meant
        rope_theta: short(float("rope.freq_base", Some(10_000.0))?),
        rms_norm_eps: short(float("attention.layer_norm_rms_epsilon", None)?),
        tie_word_embeddings: file.get("output.weight").is_none(),
        qkv_bias: file.get("blk.0.attn_q.bias").is_some(),
        max_position_embeddings: size("context_length")?,
        attention: Attention::Full,
        infini: InfiniConfig::default(),
    };
    config.check()?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(n) = number(name)?
            && n != config.head_width()
        {
            return Err(bad(format!(
                "{arch}.{name} is {n}, the heads have {}: this is not computed here",
                config.head_width()
            )));
        }
    }
    Ok(config)
}

/// The f64 that prints as the f32 does.
fn short(x: f64) -> f64 {
    (x as f32).to_string().parse().expect("a printed number")
}

/// GGUF's name of a parameter of ours.
fn gguf_name(ours: &str) -> Option<String> {
    let whole = [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ];
    if let Some((_, name)) = whole.iter().find(|(o, _)| *o == ours) {
        return Some(name.to_string());
    }
    let (layer, name) = ours.strip_prefix("model.layers.")?.split_once('.')?;
    let (name, kind) = name.rsplit_once('.')?;
    let name = match name {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{name}.{kind}"))
}

/// The tensors of a decoder, under our names.
fn source(file: Gguf, config: &ModelConfig, path: &Path) -> Result<Source> {
    let paired = file.metadata.get("general.architecture").and_then(Value::as_text) == Some("llama");
    let parameters = config.parameters();
    let mut shapes = BTreeMap::new();
    for p in &parameters {
        let name = gguf_name(&p.name).expect("a full decoder has Llama's parameters");
        let t = file.get(&name).ok_or_else(|| Error::Model(format!("{name} is missing")))?;
        if t.shape != p.shape {
            return Err(Error::Model(format!("{name} has shape {:?}, the keys say {:?}", t.shape, p.shape)));
        }
        shapes.insert(p.name.as_str(), &p.shape[..]);
    }
    let surplus =
        file.iter().map(|(n, _)| n).find(|n| !parameters.iter().any(|p| gguf_name(&p.name).as_deref() == Some(n)));
    if let Some(name) = surplus {
        return Err(Error::Model(format!(
            "the tensor {name} belongs to no part that is computed here: take a model without it"
        )));
    }
    let head = config.head_width();
    let values = move |ours: &str| {
        let t = gguf_name(ours).and_then(|name| file.get(&name)).expect("it was there before");
        let data = t.to_f32();
        let turned = paired && (ours.contains("q_proj") || ours.contains("k_proj"));
        Ok(if turned { halves(&data, head, t.shape.get(1).copied().unwrap_or(1)) } else { data })
    };
    Source::new(config, path.to_path_buf(), &shapes, Box::new(values))
}

/// Rows of each head from (0, d/2, 1, d/2 + 1, …), as llama.cpp wants them, back to (0, 1, …).
fn halves(data: &[f32], head: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(data.len());
    for rows in data.chunks_exact(head * cols) {
        for parity in 0..2 {
            for pair in 0..head / 2 {
                out.extend_from_slice(&rows[(2 * pair + parity) * cols..][..cols]);
            }
        }
    }
    out
}
