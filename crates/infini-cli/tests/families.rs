//! Other families than the shipped adapters': tiny models with random weights in the shapes of Mistral and Qwen2, probed,
//! adapted, read with, asked and evaluated.

mod common;

use std::path::Path;

use common::Home;
use serde_json::Value;

/// Bytes are tokens here, so that segments are long.
const ADAPT: &str = r#"
[adapter]
layer = 0
segment_len = 192
heads = 2
value_width = 8
word_width = 8
place_width = 4
[data]
documents = 12
segments = 1
tail = 192
tails = 1
keys = 1
questions = 1
digits = [4, 4]
filler = { paper = 1, prose = 1 }
[train]
steps = [3, 2, 2]
batch = [4, 4, 4]
log_every = 1
"#;

/// A copy of a golden model in `base`, with room for long texts.
fn base(home: &Home, family: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/pretrained").join(family);
    std::fs::create_dir(home.path("base")).unwrap();
    for file in std::fs::read_dir(golden).unwrap().map(|f| f.unwrap()) {
        std::fs::copy(file.path(), home.path("base").join(file.file_name())).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(home.path("base/config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = 4096.into();
    if config["sliding_window"].is_u64() {
        config["sliding_window"] = 4096.into();
    }
    home.write("base/config.json", &config.to_string());
}

#[test]
fn other_families_are_probed_adapted_read_asked_and_evaluated() {
    for family in ["mistral", "qwen2"] {
        let home = Home::new();
        base(&home, family);
        let probed = home.json(&["probe", "base", "--length", "500", "--samples", "2"], 0);
        let weights: Vec<Vec<f64>> = serde_json::from_value(probed["weights"].clone()).unwrap();
        assert!(weights.len() == 2 && weights.iter().all(|w| w.len() == 4), "{probed}");
        assert!(weights.iter().flatten().all(|w| *w > 0.0 && *w < 1.0), "{probed}");

        home.write("adapt.toml", ADAPT);
        let adapted = home.json(&["adapt", "base", "--config", "adapt.toml", "--out", "run"], 0);
        assert_eq!(adapted["steps"], 7, "{adapted}");
        let model = ["--model", "base", "--adapter", "run/adapter.safetensors"];
        home.write("book.txt", &common::TEXT.repeat(12));
        home.ok(&[&["read", "book.txt", "--memory", "book.mem"], &model[..]].concat());
        home.ok(&[&["ask", "--memory", "book.mem", "--max-tokens", "4", "The pass key is"], &model[..]].concat());
        assert!(home.fails(1, &["ask", "--memory", "book.mem", "--model", "base", "x"]).contains("adapter"));

        let passkey = ["eval", "passkey", "--lengths", "800", "--samples", "2", "--depths", "0"];
        assert_eq!(home.json(&[&passkey[..], &model].concat(), 0)["rows"][0]["n"], 2);
        let score = |tokens: &str, more: &[&str]| {
            let of = ["eval", "perplexity", "--data", "book.txt", "--max-tokens", tokens];
            home.json(&[&of[..], more].concat(), 0)["loss"].clone()
        };
        let window = ["--model", "base", "--window", "384", "--sink", "1"];
        let knocked = [&model[..], &["--knock-out"]].concat();
        assert_eq!(score("1000", &knocked), score("1000", &window), "{family}");
        // inside the first span full attention, window and memory are one and the same
        let full = score("384", &["--model", "base"]);
        assert_eq!([score("384", &window), score("384", &model)], [full.clone(), full], "{family}");
    }
}
