//! The streaming model against the whole-model golden files, token by token and with documents.

use std::collections::BTreeMap;
use std::path::Path;

use infini::config::{
    Activation, Attention, FeatureName, Layers, LayersName, Learned, MixName, NullSlot, RuleName, Write,
};
use infini::model::{Model, Want};
use infini::{InfiniConfig, ModelConfig, Weights};
use infini_format::tensors::TensorFile;

fn config(s: &serde_json::Value) -> ModelConfig {
    let n = |k: &str| s[k].as_u64().unwrap_or_else(|| panic!("{k}")) as usize;
    let flag = |k: &str| s[k].as_bool().unwrap();
    ModelConfig {
        vocab_size: n("vocab"),
        hidden_size: n("d_model"),
        num_hidden_layers: n("layers"),
        num_attention_heads: n("H"),
        num_key_value_heads: n("Hkv"),
        head_dim: n("D"),
        intermediate_size: n("ffn"),
        hidden_act: Activation::Silu,
        rope_theta: s["theta"].as_f64().unwrap(),
        rms_norm_eps: s["rms_eps"].as_f64().unwrap(),
        tie_word_embeddings: flag("tied"),
        qkv_bias: false,
        max_position_embeddings: 0,
        attention: Attention::Infini,
        infini: InfiniConfig {
            segment_len: n("S"),
            span: n("span"),
            lag: n("lag"),
            layers: Layers::Named(LayersName::All),
            rule: match s["rule"].as_str().unwrap() {
                "linear" => RuleName::Linear,
                "delta" => RuleName::Delta,
                _ => RuleName::GatedDelta,
            },
            features: FeatureName::Elu1,
            write: if flag("write_gate") { Write::Soft } else { Write::All },
            null_slot: if flag("learn_c") { NullSlot::Learned(Learned::Learned) } else { NullSlot::Fixed(0.0) },
            mix: if s["mix"] == "head" { MixName::Head } else { MixName::Token },
            ..InfiniConfig::default()
        },
    }
}

#[test]
fn logits_of_every_golden_model() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("model_") {
            continue;
        }
        seen += 1;
        let file = TensorFile::parse(std::fs::read(&path).unwrap()).unwrap();
        let settings: serde_json::Value = serde_json::from_str(&file.metadata["settings"]).unwrap();
        let config = config(&settings);
        let tensors: BTreeMap<_, _> = file
            .iter()
            .filter_map(|(n, t)| {
                let data = t.to_f64().ok()?.into_iter().map(|x| x as f32).collect();
                Some((n.strip_prefix("w.")?.to_string(), (t.shape.to_vec(), data)))
            })
            .collect();
        let v = config.vocab_size;
        let model = Model::new(config.clone(), Weights::new(&config, tensors).unwrap()).unwrap();
        let tokens: Vec<u32> = file.get("tokens").unwrap().to_i64().unwrap().iter().map(|t| *t as u32).collect();
        let logits = file.get("logits").unwrap().to_f64().unwrap();
        let (b, t) = (settings["B"].as_u64().unwrap() as usize, settings["T"].as_u64().unwrap() as usize);
        let reset = file.contains("reset").then(|| file.get("reset").unwrap().to_u8().unwrap());
        let mut state = model.state(b);
        let mut worst = 0f64;
        for j in 0..t {
            for row in 0..b {
                if reset.as_ref().is_some_and(|r| r[row * t + j] == 1) {
                    state.start_document(row);
                }
            }
            let column: Vec<u32> = (0..b).map(|row| tokens[row * t + j]).collect();
            let out = model.forward(&mut state, &column, Want::Last);
            for row in 0..b {
                for i in 0..v {
                    worst = worst.max((f64::from(out[row * v + i]) - logits[(row * t + j) * v + i]).abs());
                }
            }
        }
        let scale = logits.iter().fold(1f64, |m, x| m.max(x.abs()));
        println!("{name}: {:.1e}", worst / scale);
        assert!(worst / scale <= 1e-5, "{name}: {:e}", worst / scale);
    }
    assert_eq!(seen, 3);
}
