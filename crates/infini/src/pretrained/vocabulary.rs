//! The tokenizer that a GGUF file describes, as the `tokenizer.json` it was made from would say it.

use std::collections::BTreeMap;

use infini_format::gguf::Value;
use serde_json::{Value as Json, json};

use crate::error::{Error, Result};

/// How GPT-4 splits words; `{digits}` is the part that takes digits.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kinds of token in `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Builds a `tokenizer.json`.
///
/// # Errors
/// Another model than byte-level BPE (`gpt2`), an unknown way to split words, or arrays that do not fit.
pub(super) fn tokenizer_json(metadata: &BTreeMap<String, Value>) -> Result<Vec<u8>> {
    let bad = |why: String| Error::Tokenizer(why);
    let find = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}"));
    let text = |name: &str| find(name).and_then(Value::as_text).unwrap_or("none");
    let texts = |name: &str| {
        find(name).and_then(Value::as_texts).ok_or_else(|| bad(format!("tokenizer.ggml.{name} is no list of texts")))
    };
    if text("model") != "gpt2" {
        return Err(bad(format!(
            "tokenizer.ggml.model is {}: gpt2 (byte-level BPE) is read: take the model's Hugging Face folder",
            text("model")
        )));
    }
    let rules = Rules::of(text("pre"))?;
    let (tokens, merges) = (texts("tokens")?, texts("merges")?);
    let types = find("token_type").and_then(Value::as_integers).unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(bad(format!("{} tokens have {} types", tokens.len(), types.len())));
    }
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        if [CONTROL, USER_DEFINED].contains(kind) {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL,
            }));
        }
    }
    let vocab: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    if vocab.len() != tokens.len() {
        return Err(bad(format!("{} of {} tokens are there twice", tokens.len() - vocab.len(), tokens.len())));
    }
    let begin = find("add_bos_token").map_or(Some(rules.begin), Value::as_bool).unwrap_or(false);
    let bos =
        find("bos_token_id").and_then(Value::as_u64).and_then(|id| Some((id, tokens.get(usize::try_from(id).ok()?)?)));
    let post = match bos {
        Some((id, token)) if begin => json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": token, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
        }),
        _ => Json::Null,
    };
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": rules.normalizer,
        "pre_tokenizer": rules.split,
        "post_processor": post,
        "decoder": byte_level(false),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": rules.ignore_merges, "vocab": vocab, "merges": merges,
        },
    });
    Ok(json.to_string().into_bytes())
}

/// What `tokenizer.ggml.pre` stands for.
struct Rules {
    normalizer: Json,
    split: Json,
    ignore_merges: bool,
    /// Whether a text begins with a token of its own where the file does not say.
    begin: bool,
}

impl Rules {
    fn of(pre: &str) -> Result<Rules> {
        let plain = |split: Json| Rules { normalizer: Json::Null, split, ignore_merges: false, begin: false };
        let words = |digits: &str| {
            let split = json!({
                "type": "Split", "pattern": { "Regex": WORDS.replace("{digits}", digits) }, "behavior": "Isolated",
                "invert": false,
            });
            json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
        };
        match pre {
            "gpt-2" => Ok(plain(byte_level(true))),
            "smollm" => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                Ok(plain(json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] })))
            }
            "qwen2" => Ok(Rules { normalizer: json!({ "type": "NFC" }), ..plain(words(r"\p{N}")) }),
            "llama-bpe" => Ok(Rules { ignore_merges: true, begin: true, ..plain(words(r"\p{N}{1,3}")) }),
            _ => Err(Error::Tokenizer(format!(
                "tokenizer.ggml.pre is {pre}: gpt-2, smollm, qwen2 and llama-bpe are read: take the model's Hugging Face \
                 folder"
            ))),
        }
    }
}

fn byte_level(use_regex: bool) -> Json {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}
