//! A Hugging Face folder as configuration, weights and tokenizer.

use std::collections::BTreeSet;
use std::path::Path;

use infini_format::hash::sha256;
use infini_format::tensors::TensorFile;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{Activation, Attention, ModelConfig};
use crate::error::{Error, Result};
use crate::folder::{MAX_CONFIG, MAX_WEIGHTS, Unread, at, identity, read as read_file, read_tokenizer, weight_files};
use crate::text::chat::TemplateSource;
use crate::weights::Source;

/// Most files that the weights of one model may lie in.
const MAX_SHARDS: usize = 256;

/// Keys of `config.json` that say nothing about the logits of one sequence.
const IGNORED: [&str; 41] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "eos_token_id",
    "finetuning_task",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "max_length",
    "max_window_layers",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
];

/// Whether `config.json` is Hugging Face's: it names a `model_type`.
pub(crate) fn is_huggingface(config: &Value) -> bool {
    config.get("model_type").is_some()
}

/// The decoder that a `config.json` describes.
///
/// # Errors
/// Another family than Llama, Mistral and Qwen2, a missing size, or a key that this crate does not know
/// or compute, by name.
pub(crate) fn config(json: &Value) -> Result<ModelConfig> {
    let Some(object) = json.as_object() else {
        return Err(Error::Model("config.json is no object".into()));
    };
    let kind = object.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if !["llama", "mistral", "qwen2"].contains(&kind) {
        return Err(Error::Model(format!("model_type is {kind}: llama, mistral and qwen2 are read")));
    }
    let mut keys = Keys { object, seen: BTreeSet::new() };
    let heads = keys.size("num_attention_heads", None)?;
    let mistral = kind == "mistral";
    let default_kv = match kind {
        "mistral" => 8,
        "qwen2" => 32,
        _ => heads,
    };
    let hidden = keys.size("hidden_size", None)?;
    let theta = keys.rope()?;
    let mut positions = keys.size(
        "max_position_embeddings",
        Some(if mistral {
            131_072
        } else if kind == "qwen2" {
            32_768
        } else {
            2048
        }),
    )?;
    // inside the window, sliding attention is full attention
    if let Some(window) = keys.window(mistral)? {
        positions = positions.min(window);
    }
    let config = ModelConfig {
        vocab_size: keys.size("vocab_size", None)?,
        hidden_size: hidden,
        num_hidden_layers: keys.size("num_hidden_layers", None)?,
        num_attention_heads: heads,
        num_key_value_heads: keys.size("num_key_value_heads", Some(default_kv))?,
        head_dim: super::explicit(keys.size("head_dim", Some(0))?, hidden, heads),
        intermediate_size: keys.size("intermediate_size", None)?,
        hidden_act: Activation::Silu,
        rope_theta: theta,
        rms_norm_eps: keys.float("rms_norm_eps", 1e-6)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        qkv_bias: kind == "qwen2",
        max_position_embeddings: positions,
        attention: keys.parsed("attention")?.unwrap_or(Attention::Full),
        infini: keys.parsed("infini")?.unwrap_or_default(),
    };
    keys.only("hidden_act", &["silu".into()])?;
    keys.only("attention_bias", &[false.into()])?;
    keys.only("mlp_bias", &[false.into()])?;
    keys.only("rope_interleaved", &[false.into()])?;
    keys.only("partial_rotary_factor", &[1.0.into()])?;
    keys.only("add_cross_attention", &[false.into()])?;
    keys.only("is_encoder_decoder", &[false.into()])?;
    keys.only("pruned_heads", &[Value::Object(Map::new())])?;
    keys.rest()?;
    config.check()?;
    Ok(config)
}

/// The `config.json` of a decoder; settings of windows and memories are keys of this crate's own.
///
/// # Errors
/// An activation that no family here has.
pub(super) fn to_json(c: &ModelConfig) -> Result<Value> {
    if c.hidden_act != Activation::Silu {
        let why = "Hugging Face's families have silu".into();
        return Err(Error::Config { field: "hidden_act".into(), why });
    }
    let (kind, class) = if c.qkv_bias { ("qwen2", "Qwen2ForCausalLM") } else { ("llama", "LlamaForCausalLM") };
    let mut json = json!({
        "architectures": [class],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.kv_heads(),
        "intermediate_size": c.intermediate_size,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.rms_norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
    });
    if c.head_dim > 0 {
        json["head_dim"] = c.head_dim.into();
    }
    if c.max_position_embeddings > 0 {
        json["max_position_embeddings"] = c.max_position_embeddings.into();
    }
    if c.attention != Attention::Full {
        json["attention"] = serde_json::to_value(c.attention).expect("plain data");
        json["infini"] = serde_json::to_value(&c.infini).expect("plain data");
    }
    Ok(json)
}

/// The keys of a `config.json` and which of them were read.
struct Keys<'a> {
    object: &'a Map<String, Value>,
    seen: BTreeSet<&'static str>,
}

impl<'a> Keys<'a> {
    /// The value of `key`; null is nothing.
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.insert(key);
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn size(&mut self, key: &'static str, default: Option<usize>) -> Result<usize> {
        let bad = |why: String| Error::Config { field: key.into(), why };
        match (self.get(key), default) {
            (Some(v), _) => {
                v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| bad(format!("{v} is no size")))
            }
            (None, Some(n)) => Ok(n),
            (None, None) => Err(bad("is missing".into())),
        }
    }

    fn float(&mut self, key: &'static str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| Error::Config { field: key.into(), why: format!("{v} is no number") }),
        }
    }

    fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => {
                v.as_bool().ok_or_else(|| Error::Config { field: key.into(), why: format!("{v} is no truth value") })
            }
        }
    }

    /// A value of this crate's own, as `infini convert` writes it.
    fn parsed<T: for<'de> Deserialize<'de>>(&mut self, key: &'static str) -> Result<Option<T>> {
        let parse = |v: &Value| T::deserialize(v).map_err(|e| Error::Config { field: key.into(), why: e.to_string() });
        self.get(key).map(parse).transpose()
    }

    /// `key` may be missing, or be one of these.
    fn only(&mut self, key: &'static str, allowed: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(v)
                if !allowed.contains(v)
                    && v.as_f64().is_none_or(|x| !allowed.iter().any(|a| a.as_f64() == Some(x))) =>
            {
                Err(not_computed(key, v))
            }
            _ => Ok(()),
        }
    }

    /// `rope_theta`, from its old place or from `rope_parameters`; no scaling.
    fn rope(&mut self) -> Result<f64> {
        let mut theta = self.float("rope_theta", 10_000.0)?;
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(v) = self.get(key) else { continue };
            for (name, v) in v.as_object().into_iter().flatten() {
                match name.as_str() {
                    "rope_type" | "type" if v == "default" => {}
                    "rope_theta" => theta = v.as_f64().ok_or_else(|| not_computed("rope_theta", v))?,
                    "partial_rotary_factor" if v.as_f64() == Some(1.0) => {}
                    _ => return Err(not_computed(&format!("{key}.{name}"), v)),
                }
            }
        }
        Ok(theta)
    }

    /// The sliding window, if it is in use.
    fn window(&mut self, mistral: bool) -> Result<Option<usize>> {
        let used = self.flag("use_sliding_window", mistral)?;
        let default = if mistral && !self.object.contains_key("sliding_window") { 4096 } else { 0 };
        let window = self.size("sliding_window", Some(default))?;
        let sliding = used && window > 0;
        if let Some(types) = self.get("layer_types") {
            let full = types.as_array().is_some_and(|a| a.iter().all(|t| t == "full_attention"));
            if !(full || sliding) {
                return Err(not_computed("layer_types", types));
            }
        }
        Ok(sliding.then_some(window))
    }

    /// Refuses what was not read and is not known to be harmless.
    fn rest(&self) -> Result<()> {
        match self
            .object
            .iter()
            .find(|(k, v)| !v.is_null() && !self.seen.contains(k.as_str()) && !IGNORED.contains(&k.as_str()))
        {
            Some((k, v)) => Err(not_computed(k, v)),
            None => Ok(()),
        }
    }
}

fn not_computed(key: &str, value: &Value) -> Error {
    Error::Config {
        field: key.into(),
        why: format!("{value} is not computed here: remove the key if it does not change the logits"),
    }
}

/// `generation_config.json`: what of it is honoured.
#[derive(Deserialize, Default)]
struct Generation {
    #[serde(default)]
    eos_token_id: Value,
    #[serde(default)]
    stop_strings: Vec<String>,
}

/// `tokenizer_config.json`: what of it is honoured.
#[derive(Deserialize, Default)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Value,
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
}

/// Reads a folder whose `config.json` is `json`.
///
/// # Errors
/// A missing or damaged file, or whatever this crate does not compute.
pub(crate) fn read(dir: &Path, json: &Value) -> Result<Unread> {
    let path = dir.join("config.json");
    let config = config(json).map_err(|e| at(&path, e))?;
    let (source, weights_hash) = source(dir, &config)?;
    let (tokenizer, tokenizer_bytes) = read_tokenizer(dir, &config)?;
    let generation: Generation = optional(&dir.join("generation_config.json"))?;
    let mut end = ids(&generation.eos_token_id);
    if end.is_empty() {
        end = ids(&json["eos_token_id"]);
    }
    Ok(Unread {
        identity: identity(&config, weights_hash, &tokenizer_bytes),
        template: template(dir)?,
        config,
        weights: source,
        tokenizer,
        stop: generation.stop_strings,
        end,
    })
}

fn optional<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    if !path.exists() {
        return Ok(T::default());
    }
    serde_json::from_slice(&read_file(path, 4 * MAX_CONFIG)?)
        .map_err(|e| Error::Model(format!("{}: {e}", path.display())))
}

/// A token id or a list of them.
fn ids(v: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    v.as_array().map_or_else(|| one(v).into_iter().collect(), |a| a.iter().filter_map(one).collect())
}

fn template(dir: &Path) -> Result<Option<TemplateSource>> {
    let config: TokenizerConfig = optional(&dir.join("tokenizer_config.json"))?;
    let file = dir.join("chat_template.jinja");
    let template = if file.exists() {
        let bytes = read_file(&file, MAX_CONFIG)?;
        Some(String::from_utf8(bytes).map_err(|e| Error::Model(format!("{}: no UTF-8: {e}", file.display())))?)
    } else {
        // a template, or several with names
        let named = config.chat_template.as_array().and_then(|a| a.iter().find(|t| t["name"] == "default"));
        named.map_or(&config.chat_template, |t| &t["template"]).as_str().map(str::to_string)
    };
    let spelled = |v: &Value| v.as_str().or(v["content"].as_str()).unwrap_or_default().to_string();
    Ok(template.map(|template| TemplateSource {
        template,
        bos: spelled(&config.bos_token),
        eos: spelled(&config.eos_token),
    }))
}

/// The weights out of `model.safetensors`, or out of the shards that its index names; and their hash.
fn source(dir: &Path, config: &ModelConfig) -> Result<(Source, String)> {
    let (mut parsed, mut hashes) = (Vec::new(), Vec::new());
    for name in weight_files(dir)? {
        let path = dir.join(&name);
        let bytes = read_file(&path, MAX_WEIGHTS)?;
        hashes.push(sha256(&bytes));
        parsed.push(TensorFile::parse(bytes).map_err(|e| Error::Model(format!("{}: {e}", path.display())))?);
    }
    let hash = if let [one] = &hashes[..] { one.clone() } else { sha256(hashes.concat().as_bytes()) };
    // not the copy of a tied head, nor angles that older versions stored
    let wanted =
        |name: &str| !(name == "lm_head.weight" && config.tie_word_embeddings || name.ends_with("rotary_emb.inv_freq"));
    Ok((Source::of_files(config, dir.to_path_buf(), parsed, &wanted)?, hash))
}

/// The files that an index names, sorted.
pub(crate) fn shards(index: &Path) -> Result<Vec<String>> {
    let bad = |why: &str| Error::Model(format!("{}: {why}", index.display()));
    let json: Value = serde_json::from_slice(&read_file(index, 16 * MAX_CONFIG)?).map_err(|e| bad(&e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| bad("there is no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(bad(&format!("{} files, 1 to {MAX_SHARDS} are read", names.len())));
    }
    if let Some(name) = names.iter().find(|n| !n.ends_with(".safetensors") || n.contains(['/', '\\'])) {
        return Err(bad(&format!("{name} is no safetensors file of this folder")));
    }
    Ok(names.into_iter().map(str::to_string).collect())
}
