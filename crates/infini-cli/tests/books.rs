//! Books through the command: vocabulary, shards, training, perplexity, copying, report.

mod common;

use common::{Home, has};

const TRAIN: &str = r#"
[model]
vocab_size = 300
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
[infini]
preset = "added-linear"
segment_len = 16
[data]
task = "documents"
recall = 0.5
[train]
steps = 4
batch = 2
tokens = 64
token_loss = 1.0
log_every = 1
"#;

#[test]
fn books_become_a_model_and_a_report() {
    let home = Home::new();
    std::fs::create_dir(home.path("books")).unwrap();
    home.write("books/a.txt", &"It was the best\nof times, it was the worst of times. ".repeat(60));
    home.write("books/b.txt", &"Call me Ishmael. Some years\nago, never mind how long. ".repeat(60));
    home.write("books/empty.txt", "");
    home.write("train.toml", TRAIN);
    home.ok(&[
        "tokenizer",
        "train",
        "books/a.txt",
        "books/b.txt",
        "--vocab-size",
        "300",
        "--unwrap",
        "--out",
        "t.json",
    ]);
    let prepare = ["data", "prepare", "books", "--tokenizer", "t.json", "--unwrap", "--out", "shards"];
    let made = home.json(&prepare, 0);
    assert_eq!((&made["documents"], &made["passed_over"]), (&2.into(), &1.into()), "{made}");
    assert!(home.fails(1, &prepare).contains("finished token shards"));

    home.ok(&["train", "--config", "train.toml", "--data", ".", "--out", "run"]);
    let score =
        |extra: &[&str]| home.json(&[&["eval", "perplexity", "--model", "run", "--data", "shards"], extra].concat(), 0);
    let own = score(&[]);
    has(
        &own,
        &[
            "loss",
            "perplexity",
            "word_perplexity",
            "bits_per_byte",
            "by_position",
            "words_seen",
            "state_bytes",
            "memory_bytes",
        ],
    );
    assert_eq!(own["documents"].as_array().unwrap().len(), 2);
    // the files give what the shards give
    let files = home.json(&["eval", "perplexity", "--model", "run", "--data", "books", "--unwrap"], 0);
    assert_eq!(files["loss"], own["loss"]);
    assert_eq!(score(&["--max-tokens", "100"])["tokens"], 2 * 99);
    assert_eq!(score(&["--knock-out"])["reads"], "nothing");
    assert_eq!(score(&["--swap"])["reads"], "swapped");
    let sink = ["eval", "perplexity", "--model", "run", "--data", "shards", "--sink", "2"];
    assert!(home.fails(2, &sink).contains("window already"));

    let demo = home.json(&["demo", "--book", "books/a.txt", "--model", "run"], 0);
    has(&demo, &["tokens", "with", "without", "by_position", "rss_bytes_early", "rss_bytes_at_the_end", "state_bytes"]);
    let a = own["documents"][0].clone();
    assert_eq!((&a["name"], &demo["tokens"]), (&"a.txt".into(), &(a["tokens"].as_u64().unwrap() + 1).into()));
    let near = |x: &serde_json::Value, y: &serde_json::Value| (x.as_f64().unwrap() - y.as_f64().unwrap()).abs() < 1e-4;
    assert!(near(&demo["with"]["loss"], &a["loss"]), "{demo}");
    let out = score(&["--knock-out"]);
    assert!(near(&demo["without"]["loss"], &out["documents"][0]["loss"]), "{demo}");
    let beside = home.json(&["demo", "--book", "books/a.txt", "--model", "run", "--control", "run"], 0);
    assert_eq!(beside["without"]["loss"], beside["with"]["loss"]);
    assert!(home.ok(&["demo", "--book", "books/a.txt", "--model", "run"]).contains("without the memory"));
    let other = ["demo", "--book", "books/a.txt", "--model", "run", "--control", "models/passkey"];
    assert!(home.fails(2, &other).contains("tokenizer"));
    assert!(home.fails(1, &["demo", "--book", "books/empty.txt", "--model", "run"]).contains("nothing to read"));
    // the shipped model, found beside the program
    let shipped = home.json(&["demo", "--book", "books/a.txt"], 0);
    assert!(
        shipped["tokens"].as_u64().unwrap() > 0 && shipped["memory_bytes"] == 4 * (4096 + 2 * 131_072),
        "{shipped}"
    );

    let copy = ["eval", "copy", "--model", "run", "--data", "shards", "--gaps", "0,64", "--samples", "4"];
    assert_eq!(home.json(&copy, 0)["rows"].as_array().unwrap().len(), 2);
    let files = ["--json", "run/valid.json", "--csv", "loss.csv", "--plot", "loss.svg"];
    home.ok(&[&["eval", "perplexity", "--model", "run", "--data", "shards"], &files[..]].concat());
    assert!(
        std::fs::read_to_string(home.path("loss.csv")).unwrap().starts_with("what,from,to,tokens,loss\nposition,0,128")
    );
    home.ok(&["report", "run", "run", "--out", "report.html", "--pictures", "pictures"]);
    let page = std::fs::read_to_string(home.path("report.html")).unwrap();
    assert!(page.contains("Perplexity of whole documents") && page.contains("<svg"));
    assert_eq!(page.matches("<td>run</td>").count(), 2, "a folder named twice counts once");
    assert!(home.path("pictures/position-valid.svg").is_file());
    assert!(home.fails(1, &["report", "books", "--out", "r.html"]).contains("no run"));
}
