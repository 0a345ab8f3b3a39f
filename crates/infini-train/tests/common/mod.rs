//! Models that train in a moment, and their runs.

#![allow(dead_code)] // each test binary uses its part

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use infini::text::Tokenizer;
use infini_format::checkpoint;
use infini_format::io::RealIo;
use infini_train::{Config, Device, Event, Options, Resume, Summary, train};

/// A model small enough to train in a moment, with a memory, a convolution and all its gates.
pub const TINY: &str = r#"
    [model]
    vocab_size = 256
    hidden_size = 16
    num_hidden_layers = 2
    num_attention_heads = 2
    intermediate_size = 32
    [infini]
    preset = "selective-delta"
    segment_len = 8
    [data]
    task = "mqar"
    vocab_size = 16
    pairs = 2
    [train]
    curriculum = [{ steps = 6, batch = 4, tokens = 16 }, { steps = 6, batch = 2, tokens = 24 }]
    warmup = 2
    log_every = 1
    checkpoint_every = 4
    write_sparsity = { weight = 0.1, start = 2, end = 4 }
"#;

pub fn tiny(set: &[&str]) -> Config {
    Config::parse(TINY, &set.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
}

/// Trains until `until` steps are taken, then stops as a signal would.
pub fn run(config: &Config, out: &Path, until: u64) -> Summary {
    let stop = AtomicBool::new(until == 0);
    let options = Options { out, data_dir: None, resume: Resume::Auto, device: Device::flex(), stop: &stop };
    let watch = |event: Event| {
        if let Event::Step(p) = event
            && p.step.step + 1 >= until
        {
            stop.store(true, Ordering::Relaxed);
        }
    };
    train(config, &options, &mut { watch }).unwrap()
}

/// Everything of a run that must not depend on how often it was stopped: weights, moments, counts, and the
/// metrics without their clock.
pub fn outcome(dir: &Path) -> (Vec<u8>, Vec<u8>, serde_json::Value, Vec<String>) {
    let c = checkpoint::load(&RealIo, &dir.join("checkpoint")).unwrap().unwrap();
    let state: serde_json::Value = serde_json::from_slice(&c.parts["state.json"]).unwrap();
    let csv = std::fs::read_to_string(dir.join("metrics.csv")).unwrap();
    let timeless = |line: &str| {
        let columns: Vec<&str> =
            line.split(',').enumerate().filter(|(i, _)| *i != 9 && *i != 10).map(|(_, c)| c).collect();
        columns.join(",")
    };
    let lines = csv.lines().map(timeless).collect();
    let json = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    assert_eq!(json.lines().count() + 1, csv.lines().count());
    let weights = std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights == c.parts["weights.safetensors"], "the model folder is of another step than the checkpoint");
    (weights, c.parts["moments.safetensors"].clone(), state["counts"].clone(), lines)
}

/// Token shards of three short documents, and a configuration that reads them in order.
pub fn books(dir: &Path, set: &[&str]) -> Config {
    let texts = dir.join("texts");
    std::fs::create_dir_all(&texts).unwrap();
    for (name, text) in [("a", "the cat sat on the mat. "), ("b", "a dog and a cat. "), ("c", "on and on it goes: ")] {
        std::fs::write(texts.join(name), text.repeat(9)).unwrap();
    }
    let shards = dir.join("shards");
    if !shards.exists() {
        let tokenizer = Tokenizer::train(std::iter::empty(), 256).unwrap();
        let stop = AtomicBool::new(false);
        let options = infini::corpus::Options { tokenizer: &tokenizer, unwrap: false, shard_tokens: 100, stop: &stop };
        let inputs = infini::corpus::sources(&[texts]).unwrap();
        infini::corpus::prepare(&inputs, &shards, &options, &mut |_| {}).unwrap();
    }
    let text = format!(
        r#"
        [model]
        vocab_size = 256
        hidden_size = 16
        num_hidden_layers = 2
        num_attention_heads = 2
        intermediate_size = 32
        [infini]
        preset = "added-linear"
        segment_len = 8
        conv = 3
        [data]
        task = "documents"
        shards = "{}"
        recall = 0.34
        [train]
        steps = 12
        batch = 3
        tokens = 16
        warmup = 2
        log_every = 1
        checkpoint_every = 4
        token_loss = 1.0
        "#,
        shards.display()
    );
    Config::parse(&text, &set.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
}
