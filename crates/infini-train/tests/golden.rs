//! Golden files: every executor reproduces what another implementation computed.

use std::path::Path;

use infini_train::check::{Report, check_file};

fn reports(prefix: &str) -> Vec<(String, Report)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with(prefix) && n.ends_with(".safetensors"))
        .collect();
    names.sort();
    names.into_iter().map(|n| (n.clone(), check_file(&dir.join(n)).unwrap())).collect()
}

fn assert_passed(reports: &[(String, Report)]) {
    for (name, report) in reports {
        for row in &report.rows {
            for t in &row.tensors {
                assert!(
                    t.passed(),
                    "{name}: {}: {} is off by {:.1e}, allowed {:.1e}",
                    row.executor,
                    t.tensor,
                    t.error,
                    t.bound
                );
            }
        }
    }
}

#[test]
fn operations() {
    let reports = reports("op_");
    assert_eq!(reports.len(), 30);
    assert_passed(&reports);
}

#[test]
fn models() {
    let reports = reports("model_");
    assert_eq!(reports.len(), 3);
    assert!(reports.iter().all(|(_, r)| r.rows.len() >= 4));
    assert_passed(&reports);
}

#[test]
fn random_weights_agree_with_the_reference() {
    let config = infini::ModelConfig {
        vocab_size: 40,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 0,
        head_dim: 0,
        intermediate_size: 48,
        hidden_act: infini::config::Activation::Silu,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention: infini::config::Attention::Infini,
        infini: infini::InfiniConfig { segment_len: 8, ..infini::InfiniConfig::preset("selective-delta").unwrap() },
    };
    let row = infini_train::check::verify(&config, 2, 27, 1).unwrap();
    assert!(row.passed() && row.tensors.len() > 20, "{:?}", row.worst());
}
