//! Models of others: Llama, Mistral, Qwen2 and what has their shape, out of Hugging Face folders and
//! GGUF files.
//!
//! Whatever could change the logits and is not computed here (scaled rotary positions, biases
//! elsewhere, experts, …) is refused by its name. Attention is [`full`](crate::config::Attention::Full),
//! up to the positions that the model was made for.

mod gguf;
mod huggingface;
mod vocabulary;

use std::path::Path;

use infini_format::tensors::Dtype;
use serde_json::{Value, json};

use crate::error::Result;
use crate::folder::{self, Parts};
use crate::text::Tokenizer;

pub(crate) use gguf::read as read_gguf;
pub(crate) use huggingface::{config, is_huggingface, read as read_huggingface, shards};

/// A head width, 0 where it is the usual one: so that both forms of a model are the same configuration.
fn explicit(head_dim: usize, hidden: usize, heads: usize) -> usize {
    if head_dim.checked_mul(heads) == Some(hidden) { 0 } else { head_dim }
}

/// Writes a Hugging Face folder: `config.json`, `tokenizer.json`, `tokenizer_config.json`,
/// `generation_config.json` and `model.safetensors`, each file atomically, the weights last.
///
/// # Errors
/// The disk's, and a decoder that Hugging Face has no name for.
pub fn save(dir: &Path, parts: &Parts, dtype: Dtype) -> Result<()> {
    let mut config = huggingface::to_json(&parts.config)?;
    config["torch_dtype"] = if dtype == Dtype::BF16 { "bfloat16" } else { "float32" }.into();
    let mut tokenizer = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    if let Some(t) = &parts.template {
        tokenizer["chat_template"] = t.template.clone().into();
        let token = |s: &String| if s.is_empty() { Value::Null } else { s.clone().into() };
        (tokenizer["bos_token"], tokenizer["eos_token"]) = (token(&t.bos), token(&t.eos));
    }
    let mut generation = json!({ "eos_token_id": parts.end });
    if !parts.stop.is_empty() {
        generation["stop_strings"] = json!(parts.stop);
    }
    let text = |json: &Value| format!("{json:#}\n").into_bytes();
    std::fs::create_dir_all(dir).map_err(|e| crate::Error::io("cannot make the folder", dir, e))?;
    folder::write(&dir.join("config.json"), &text(&config))?;
    folder::write(&dir.join("tokenizer.json"), &parts.tokenizer.to_json())?;
    folder::write(&dir.join("tokenizer_config.json"), &text(&tokenizer))?;
    folder::write(&dir.join("generation_config.json"), &text(&generation))?;
    folder::write(&dir.join("model.safetensors"), &folder::weight_bytes(&parts.config, &parts.weights, dtype)?)
}

/// The tokenizer of a GGUF file, which may hold nothing else.
///
/// # Errors
/// A damaged file, or a tokenizer that is not read.
pub fn gguf_tokenizer(path: &Path) -> Result<Tokenizer> {
    gguf::tokenizer(path)
}
