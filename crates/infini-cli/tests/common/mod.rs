//! A tiny model with random weights, and the command run on it.

#![allow(dead_code)] // each test binary uses its part

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use infini::config::{Activation, Attention, InfiniConfig, ModelConfig};
use infini::text::Tokenizer;
use infini::{Weights, folder};
use infini_format::tensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

pub const TEXT: &str =
    "The pass key is 48213. Remember it. The grass is green. The sky is blue. Here we go, there and back again.\n";

/// A folder with `models/passkey` in it, in which commands run.
pub struct Home(pub TempDir);

impl Home {
    pub fn new() -> Home {
        let home = Home(tempfile::tempdir().unwrap());
        let tokenizer = Tokenizer::train(std::iter::once(TEXT.repeat(20)), 300).unwrap();
        let config = ModelConfig {
            vocab_size: 300,
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 0,
            head_dim: 0,
            intermediate_size: 32,
            hidden_act: Activation::GeluMlp,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            qkv_bias: false,
            max_position_embeddings: 0,
            attention: Attention::Infini,
            infini: InfiniConfig { segment_len: 16, ..InfiniConfig::preset("selective-linear").unwrap() },
        };
        let weights = Weights::init(&config, 1);
        folder::save(&home.path("models/passkey"), &config, &weights, &tokenizer.to_json(), Dtype::F32).unwrap();
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_infini"));
        command.current_dir(self.0.path()).args(["--threads", "1"]).args(arguments);
        // what was pulled on this machine is no part of a test
        command.env("INFINI_CACHE", self.path("cache")).env_remove("INFINI_MODELS").env_remove("INFINI_SIMD");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must end with `code`; what it complained.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {complaint}");
        assert!(!complaint.contains("panicked"), "{complaint}");
        complaint
    }

    pub fn json(&self, arguments: &[&str], code: i32) -> Value {
        let output = self.run(&[arguments, &["--json", "-"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        let value: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON and nothing else");
        assert_eq!(value["schema"], 1, "{arguments:?}");
        value
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "{key} is missing: {value}");
    }
}

/// A configuration that trains in no time.
pub const TRAIN: &str = r#"
[model]
vocab_size = 300
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
hidden_act = "gelu_mlp"
[infini]
preset = "selective-linear"
segment_len = 16
[data]
task = "passkey"
filler = { paper = 1 }
tokenizer = "models/passkey/tokenizer.json"
[train]
steps = 4
batch = 2
tokens = 320
hold = 1.0
checkpoint_every = 2
log_every = 1
"#;
