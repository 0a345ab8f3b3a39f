//! Evaluations of a pretrained decoder: full attention, a window, an adapter, its memory knocked out, on the same tokens.

mod common;

use std::collections::BTreeMap;

use common::{Home, TEXT};
use infini::config::{Activation, Attention, InfiniConfig, ModelConfig};
use infini::text::Tokenizer;
use infini::{Adapter, AdapterConfig, Weights, folder};
use infini_format::tensors::Dtype;

/// A decoder with room for 400 tokens in `base` and an adapter with segments of 16 tokens in `adapter.safetensors`.
fn adapted() -> Home {
    let home = Home::new();
    let tokenizer = Tokenizer::train(std::iter::once(TEXT.repeat(20)), 300).unwrap();
    let config = ModelConfig {
        vocab_size: 300,
        hidden_size: 16,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        num_key_value_heads: 0,
        head_dim: 0,
        intermediate_size: 32,
        hidden_act: Activation::Silu,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        qkv_bias: false,
        max_position_embeddings: 400,
        attention: Attention::Full,
        infini: InfiniConfig::default(),
    };
    let base = home.path("base");
    folder::save(&base, &config, &Weights::init(&config, 1), &tokenizer.to_json(), Dtype::F32).unwrap();
    let sizes = AdapterConfig {
        layer: 1,
        segment_len: 16,
        sink: 1,
        heads: 2,
        value_width: 6,
        place_width: 3,
        word_width: 4,
        gate_width: 2,
        before: 5,
        after: 4,
    };
    let numbers = |(i, (name, shape)): (usize, (&'static str, Vec<usize>))| {
        let x = (0..shape.iter().product::<usize>()).map(|j| ((j as f64 + 1.0) * (0.3 + 0.61 * i as f64)).sin() as f32);
        (name.to_string(), x.collect())
    };
    let tensors: BTreeMap<_, _> = sizes.parameters(16).into_iter().enumerate().map(numbers).collect();
    let weights = folder::load(&base).unwrap().identity.weights;
    Adapter::new(sizes, weights, 16, tensors).unwrap().save(&home.path("a.safetensors"), Dtype::F32).unwrap();
    home.write("book.txt", &TEXT.repeat(40));
    home.write("other.txt", &"Blue grass, green sky: 7 and 9 and back. ".repeat(12));
    home
}

#[test]
fn one_text_under_full_attention_a_window_and_a_memory() {
    let home = adapted();
    let command = ["eval", "perplexity", "--model", "base", "--data", "book.txt", "--max-tokens", "200"];
    let score = |extra: &[&str]| home.json(&[&command, extra].concat(), 0);
    let (window, adapter) = (["--window", "32", "--sink", "1"], ["--adapter", "a.safetensors"]);
    let (full, window, own) = (score(&[]), score(&window), score(&adapter));
    assert_eq!((&full["tokens"], &window["tokens"], &own["tokens"]), (&199.into(), &199.into(), &199.into()));
    assert_eq!((&window["window"], &own["adapter"]), (&32.into(), &serde_json::json!(["a.safetensors"])));
    assert!(own["loss"] != window["loss"] && full["loss"] != window["loss"]);
    // what a knocked-out memory leaves is the window alone
    let out = score(&[&adapter[..], &["--knock-out"]].concat());
    assert_eq!((&out["loss"], &out["knock_out"]), (&window["loss"], &true.into()));
    // a filled memory is another one
    let filled = score(&[&adapter[..], &["--before", "other.txt"]].concat());
    assert_eq!(filled["tokens"], 199);
    assert!(filled["before_tokens"].as_u64().unwrap() > 100 && filled["loss"] != own["loss"], "{filled}");

    assert!(home.fails(1, &[&command[..6], &["--max-tokens", "402"]].concat()).contains("room"));
    assert!(home.fails(1, &[&command[..], &["--before", "no.txt"]].concat()).contains("no.txt"));
    for wrong in [&["--window", "31"][..], &["--window", "32", "--adapter", "a"], &["--before", "b", "--swap"]] {
        home.fails(2, &[&command, wrong].concat());
    }
    let narrow = ["eval", "perplexity", "--data", "book.txt", "--window", "32"];
    assert!(home.fails(2, &narrow).contains("window already"));
}

#[test]
fn needles_and_facts_are_asked_for_at_every_length() {
    let home = adapted();
    let ruler = ["eval", "ruler", "--tasks", "niah_single_2,niah_multiquery", "--samples", "3", "--lengths", "700,900"];
    let rows = home.json(&ruler, 0)["rows"].clone();
    let n: Vec<u64> = rows.as_array().unwrap().iter().map(|r| r["n"].as_u64().unwrap()).collect();
    assert_eq!(n, [3, 3, 12, 12]);
    let adapter = ["--model", "base", "--adapter", "a.safetensors"];
    home.ok(&[&ruler[..], &adapter, &["--plot", "ruler.svg"]].concat());
    assert!(std::fs::read_to_string(home.path("ruler.svg")).unwrap().contains("niah_multiquery"));
    assert!(home.fails(1, &["eval", "ruler", "--tasks", "niah_single"]).contains("niah_single_"));

    std::fs::create_dir(home.path("babi")).unwrap();
    let babi = ["eval", "babi", "--data", "babi", "--tasks", "qa1", "--samples", "3", "--shots", "1"];
    assert!(home.fails(1, &babi).contains("no bAbI data"));
    for split in ["train", "test"] {
        let story = "1 Ann went to the attic.\n2 Bob moved to the cellar.\n3 Where is Ann? \tattic\t1\n";
        home.write(&format!("babi/qa1_single_{split}.txt"), story);
    }
    let rows = home.json(&[&babi[..], &["--lengths", "0,600"]].concat(), 0)["rows"].clone();
    assert_eq!((&rows[0]["n"], &rows[1]["tokens"], &rows[1]["task"]), (&3.into(), &1800.into(), &"qa1".into()));
    assert!(home.fails(1, &[&babi[..], &["--lengths", "60"]].concat()).contains("does not fit"));
}

#[test]
fn recall_of_full_attention_ends_where_it_has_no_room() {
    let home = adapted();
    let passkey = ["eval", "passkey", "--model", "base", "--samples", "2", "--depths", "0", "--lengths"];
    assert!(home.fails(1, &[&passkey[..], &["4096"]].concat()).contains("room"));
    assert_eq!(home.json(&[&passkey[..], &["4096", "--adapter", "a.safetensors"]].concat(), 0)["rows"][0]["n"], 2);
    let changed =
        home.json(&[&passkey[..], &["900", "--keys", "2", "--changed", "--adapter", "a.safetensors"]].concat(), 0);
    assert_eq!((&changed["rows"][0]["n"], &changed["name_first"]["n"]), (&4.into(), &4.into()));
    assert!(changed["rows"][0]["stale"].is_number() && changed["rows"][0].get("said").is_none());
    let said = &home.json(&[&passkey[..], &["300", "--absent"]].concat(), 0)["rows"][0]["said"];
    let kinds = ["unknown", "another_key", "other_number", "no_number"];
    assert_eq!(kinds.map(|k| said[k].as_f64().unwrap()).iter().sum::<f64>(), 1.0);
    home.fails(2, &[&passkey[..], &["600", "--absent", "--changed"]].concat());
}
