//! Models, vocabularies and chat templates of others, against the programs they come from
//! (`peers/pretrained_golden.py` made the files).

use std::path::{Path, PathBuf};

use infini::config::Attention;
use infini::folder::{self, Loaded};
use infini::model::Want;
use infini::pretrained;
use infini::text::chat::{ChatTemplate, Message, TemplateSource};
use infini_format::io::RealIo;
use infini_format::tensors::{Dtype, TensorFile};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/pretrained").join(name)
}

/// Ids, and PyTorch's logits of every fifth position.
fn expected(family: &str) -> (Vec<u32>, Vec<f32>) {
    let file = TensorFile::read(&RealIo, &golden(family).join("expected.safetensors")).unwrap();
    let ids = file.get("ids").unwrap().to_i64().unwrap().iter().map(|i| *i as u32).collect();
    (ids, file.get("logits").unwrap().to_f32().unwrap())
}

fn logits(loaded: &Loaded, ids: &[u32]) -> Vec<f32> {
    loaded.model.forward(&mut loaded.model.state(1), ids, Want::All)
}

fn worst(loaded: &Loaded, family: &str) -> f32 {
    let (ids, expected) = expected(family);
    let got = logits(loaded, &ids);
    let v = loaded.model.config().vocab_size;
    let rows = got.chunks(v).step_by(5);
    assert_eq!(expected.len(), rows.len() * v);
    let scale = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    rows.flatten().zip(&expected).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / scale
}

#[test]
fn logits_are_pytorchs() {
    for family in ["llama", "mistral", "qwen2", "llama.gguf", "qwen2.gguf"] {
        let loaded = folder::load(&golden(family)).unwrap();
        let e = worst(&loaded, family.trim_end_matches(".gguf"));
        assert!(e < 1e-5, "{family}: {e:.1e}");
        assert_eq!(loaded.model.config().attention, Attention::Full);
        assert_eq!(loaded.end, [259], "{family}");
        // one tensor after the other or all of them in f32: the same to the last bit
        let (whole, (ids, _)) = (folder::parts(&golden(family)).unwrap(), expected(family.trim_end_matches(".gguf")));
        assert!(logits(&loaded, &ids) == logits(&whole.build().unwrap(), &ids), "{family}");
    }
    let c = |family: &str| folder::parts(&golden(family)).unwrap().config;
    let (llama, mistral, qwen) = (c("llama"), c("mistral"), c("qwen2"));
    assert_eq!(llama, c("llama.gguf"));
    assert!(llama.tie_word_embeddings && !mistral.tie_word_embeddings && qwen.qkv_bias && c("qwen2.gguf").qkv_bias);
    assert_eq!((mistral.head_width(), llama.rope_theta), (6, 50_000.0));
    // inside its window, sliding attention is full attention; beyond, this is another model
    assert_eq!((llama.max_position_embeddings, mistral.max_position_embeddings), (64, 32));
    let loaded = folder::load(&golden("mistral")).unwrap();
    let mut state = loaded.model.state(1);
    loaded.model.forward(&mut state, &[1; 30], Want::Nothing);
    assert_eq!(loaded.model.room(&state), Some(2));
    assert!(loaded.model.check_room(&state, 2).is_ok());
    assert!(loaded.model.check_room(&state, 3).unwrap_err().to_string().contains("no room for 3 tokens after 30"));
}

#[test]
fn both_forms_of_a_model_share_their_tokens() {
    let (a, b) = (folder::parts(&golden("llama")).unwrap(), folder::parts(&golden("llama.gguf")).unwrap());
    let text = "user\nIt's 12:30 <|im_end|> naïve 東京";
    assert_eq!(a.tokenizer.encode(text), b.tokenizer.encode(text));
    assert_eq!(a.tokenizer.special_at("<|im_end|>\n"), Some((259, 10)));
    assert_eq!(b.tokenizer.special_at("<|im_end|>\n"), Some((259, 10)));
    // other bytes, another model
    assert_ne!(a.identity.weights, b.identity.weights);
    assert_eq!(a.identity.config, b.identity.config);
}

#[test]
fn a_converted_model_computes_the_same() {
    for family in ["llama.gguf", "qwen2"] {
        let parts = folder::parts(&golden(family)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for dtype in [Dtype::F32, Dtype::BF16] {
            pretrained::save(dir.path(), &parts, dtype).unwrap();
            let again = folder::parts(dir.path()).unwrap();
            assert_eq!(again.config, parts.config);
            assert_eq!(again.weights, parts.weights, "the golden weights are bf16");
            assert_eq!((again.end, again.template), (parts.end.clone(), parts.template.clone()));
            assert_eq!(again.tokenizer.to_json(), parts.tokenizer.to_json());
        }
    }
}

#[test]
fn vocabularies_are_llama_cpps() {
    let table: Value = serde_json::from_slice(&std::fs::read(golden("vocabularies.json")).unwrap()).unwrap();
    for pre in ["gpt-2", "smollm", "qwen2", "llama-bpe"] {
        let t = pretrained::gguf_tokenizer(&golden(&format!("vocabulary-{pre}.gguf"))).unwrap();
        for row in table[pre].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let ids: Vec<u32> = row["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
            assert_eq!(t.encode(text), ids, "{pre}: {text:?}");
        }
        assert_eq!(t.begin(), if pre == "llama-bpe" { &[301][..] } else { &[] });
    }
}

#[test]
fn chat_templates_are_jinjas() {
    let table: Value = serde_json::from_slice(&std::fs::read(golden("chat.json")).unwrap()).unwrap();
    let rows = table["rows"].as_array().unwrap();
    let mut refused = 0;
    for row in rows {
        let name = row["template"].as_str().unwrap();
        let source = TemplateSource {
            template: table["templates"][name].as_str().unwrap().into(),
            bos: "<s>".into(),
            eos: "</s>".into(),
        };
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        let text = ChatTemplate::new(&source).unwrap().render(&messages, row["answer"].as_bool().unwrap());
        match row["text"].as_str() {
            Some(expected) => assert_eq!(text.unwrap(), expected, "{name}: {messages:?}"),
            None => {
                assert!(text.is_err(), "{name}: {messages:?}");
                refused += 1;
            }
        }
    }
    assert!(rows.len() >= 40 && refused > 0);
}

/// What would change the logits is refused by its name.
#[test]
fn what_is_not_computed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(golden("llama").join(file), dir.path().join(file)).unwrap();
    }
    let original: Value = serde_json::from_slice(&std::fs::read(golden("llama/config.json")).unwrap()).unwrap();
    let with = |key: &str, value: Value| {
        let mut json = original.clone();
        json[key] = value;
        std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
        folder::parts(dir.path()).map(|_| ()).map_err(|e| e.to_string())
    };
    with("use_cache", true.into()).unwrap();
    with("rope_scaling", Value::Null).unwrap();
    let scaled = serde_json::json!({ "rope_type": "llama3", "factor": 8.0 });
    let cases = [
        ("rope_scaling", scaled.clone()),
        ("rope_parameters", scaled),
        ("attention_bias", true.into()),
        ("mlp_bias", true.into()),
        ("hidden_act", "gelu".into()),
        ("partial_rotary_factor", 0.5.into()),
        ("quantization_config", serde_json::json!({ "bits": 4 })),
        ("logit_softcapping", 30.0.into()),
        ("layer_types", serde_json::json!(["sliding_attention", "full_attention"])),
        ("model_type", "mamba".into()),
        ("num_attention_heads", 0.into()),
        ("num_attention_heads", (-1).into()),
        ("num_key_value_heads", 3.into()),
        ("hidden_size", (1u64 << 63).into()),
        ("vocab_size", u64::MAX.into()),
        ("num_hidden_layers", (1u64 << 40).into()),
        ("intermediate_size", "large".into()),
        ("rms_norm_eps", "small".into()),
        ("tie_word_embeddings", 3.into()),
    ];
    for (key, value) in cases {
        let refused = with(key, value.clone()).unwrap_err();
        let named = key.split('.').next().unwrap();
        assert!(refused.contains(named) || refused.contains("llama, mistral and qwen2"), "{key} = {value}: {refused}");
    }
    // weights that do not fit: a layer more than there is
    assert!(
        with("num_hidden_layers", 3.into()).unwrap_err().contains("model.layers.2.input_layernorm.weight is missing")
    );
    assert!(with("num_hidden_layers", 1.into()).unwrap_err().contains("model.layers.1"));
}

/// A GGUF file with a key or a tensor changed is refused by its name.
#[test]
fn foreign_gguf_files_are_named() {
    let bytes = std::fs::read(golden("llama.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("it is there");
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        folder::parts(&path).map(|_| ()).unwrap_err().to_string()
    };
    for (from, to, named) in [
        ("llama.rope.freq_base", "llama.rope.freq_scal", "llama.rope.freq_scal"),
        ("gpt-2", "gpt-9", "tokenizer.ggml.pre is gpt-9"),
        ("gpt2", "t5xx", "tokenizer.ggml.model is t5xx"),
        ("blk.1.ffn_up.weight", "blk.1.ffn_xp.weight", "blk.1.ffn_up.weight is missing"),
        ("blk.1.ffn_norm.weight", "blk.2.ffn_norm.weight", "blk.1.ffn_norm.weight is missing"),
        ("llama.block_count", "llama.block_xount", "block_xount"),
        ("tokenizer.ggml.merges", "tokenizer.ggml.xerges", "tokenizer.ggml.merges is no list"),
    ] {
        let refused = replaced(from, to);
        assert!(refused.contains(named), "{to}: {refused}");
    }
    std::fs::write(&path, "no model").unwrap();
    assert!(folder::load(&path).unwrap_err().to_string().contains("not a GGUF file"));
    assert!(folder::load(&dir.path().join("none")).unwrap_err().to_string().contains("is no model"));
}
