//! The command as its users meet it: on a tiny model with random weights, so quickly and without recall.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Home, TEXT, TRAIN, has, text};
use serde_json::Value;

const COMMANDS: [&str; 16] = [
    "demo",
    "train",
    "eval",
    "read",
    "ask",
    "generate",
    "chat",
    "memory",
    "pull",
    "convert",
    "inspect",
    "check",
    "bench",
    "tokenizer",
    "completions",
    "man",
];

#[test]
fn every_command_explains_itself_with_examples() {
    let home = Home::new();
    let all = home.ok(&["--help"]);
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command} ")), "--help leaves out {command}");
        assert!(home.ok(&[command, "--help"]).contains("Examples:"), "{command} --help shows no example");
    }
    for task in ["passkey", "mqar"] {
        assert!(home.ok(&["eval", task, "--help"]).contains("Examples:"));
    }
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() {
    let home = Home::new();
    for arguments in [
        &["--nonsense"][..],
        &["frobnicate"],
        &["ask", "question"],
        &["eval", "passkey", "--lengths", "0"],
        &["eval", "passkey", "--depths", "1.5"],
        &["eval", "passkey", "--prompt", "p.txt", "--keys", "2"],
        &["demo", "--tokens", "30"],
        &["memory"],
        &["read", "--memory", "x.mem"],
    ] {
        home.fails(2, arguments);
    }
    for (arguments, what) in [
        (&["ask", "--memory", "no.mem", "question"][..], "no.mem"),
        (&["read", "no.txt", "--memory", "x.mem"], "no.txt"),
        (&["inspect", "nowhere"], "no such model: nowhere: name a folder or GGUF file"),
        (&["demo", "--tokens", "2000", "--model", "nowhere"], "no such model: nowhere"),
        (&["check", "nowhere"], "nowhere"),
        (&["check", "."], "no golden files"),
        (&["eval", "passkey", "--lengths", "8"], "length 8"),
        (&["eval", "passkey", "--json", "no/such/folder/x.json"], "no such folder: no/such/folder"),
        (&["eval", "passkey", "--filler", "books"], "--data"),
        (&["tokenizer", "decode", "999"], "no such id: 999"),
        (&["train", "--config", "no.toml"], "no.toml"),
    ] {
        let complaint = home.fails(1, arguments);
        assert!(complaint.contains(what) && complaint.starts_with("error: "), "{arguments:?}: {complaint}");
    }
    let spoken = home.run(&["-v", "tokenizer", "encode", "word"]);
    assert!(text(&spoken.stderr).contains("threads=1"), "{}", text(&spoken.stderr));
    let output = home.command(&["inspect"]).env("INFINI_SIMD", "abacus").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("unknown kernel path: INFINI_SIMD=abacus"));
}

#[test]
fn read_once_ask_again() {
    let home = Home::new();
    home.write("a.txt", &TEXT.repeat(40));
    home.write("b.txt", "Something else.\n");
    let read = home.json(&["read", "a.txt", "--memory", "m.mem"], 0);
    has(
        &read,
        &["memory", "tokens", "position", "seconds", "tokens_per_second", "state_bytes", "generation", "sources"],
    );
    let before = fs::read(home.path("m.mem")).unwrap();

    let question = "The pass key is";
    let answer = home.ok(&["ask", "--memory", "m.mem", "--max-tokens", "8", question]);
    assert!(answer.ends_with('\n') && answer.lines().count() == 1, "{answer:?}");
    home.write("q.txt", &format!("{question}\n\n{question}\n"));
    let twice = home.ok(&["ask", "--memory", "m.mem", "--max-tokens", "8", "--questions", "q.txt"]);
    assert_eq!(twice, answer.repeat(2), "a question changes nothing for the next");
    assert_eq!(fs::read(home.path("m.mem")).unwrap(), before, "asking changes no file");

    assert!(home.fails(1, &["read", "b.txt", "--memory", "m.mem"]).contains("--append"));
    assert!(home.fails(1, &["read", "b.txt", "--memory", "new.mem", "--append"]).contains("no such memory file"));
    assert!(home.fails(1, &["read", "a.txt", "--memory", "no/m.mem"]).contains("no such folder: no"));
    home.ok(&["memory", "fork", "m.mem", "fork.mem"]);
    assert!(home.fails(1, &["memory", "fork", "m.mem", "fork.mem"]).contains("exists"));
    let more = home.json(&["read", "b.txt", "--memory", "m.mem", "--append"], 0);
    assert!(more["position"].as_u64() > read["position"].as_u64());
    assert_eq!(more["sources"], serde_json::json!(["a.txt", "b.txt"]));
    assert_eq!(more["state_bytes"], read["state_bytes"], "a memory does not grow");

    let list = home.json(&["memory", "list"], 0);
    assert_eq!(list["memories"].as_array().unwrap().len(), 2);
    let show = home.json(&["memory", "show", "fork.mem"], 0);
    assert_eq!((&show["tokens"], &show["generation"]), (&read["position"], &1.into()));
    let inside = home.json(&["inspect", "m.mem"], 0);
    assert_eq!(inside["layers"].as_array().unwrap().len(), 1);

    // another model may not have it, a damaged file nobody
    let other = fs::read(home.path("models/passkey/config.json")).unwrap();
    fs::create_dir_all(home.path("other")).unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(home.path("models/passkey").join(file), home.path("other").join(file)).unwrap();
    }
    fs::write(home.path("other/config.json"), text(&other).replace("10000.0", "20000.0")).unwrap();
    home.fails(1, &["ask", "--memory", "m.mem", "--model", "other", question]);
    let mut damaged = fs::read(home.path("m.mem")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(home.path("m.mem"), damaged).unwrap();
    home.fails(1, &["ask", "--memory", "m.mem", question]);
    assert_eq!(home.run(&["memory", "list"]).status.code(), Some(1));
}

#[test]
fn empty_inputs_are_errors() {
    let home = Home::new();
    home.write("empty.txt", "");
    fs::create_dir(home.path("folder")).unwrap();
    home.fails(1, &["read", "empty.txt", "--memory", "m.mem"]);
    home.fails(1, &["read", "folder", "--memory", "m.mem"]);
    assert!(!home.path("m.mem").exists());
}

/// A reading is interrupted, and goes on to the same memory as one that was not.
#[cfg(unix)]
#[test]
fn an_interrupted_reading_goes_on() {
    let home = Home::new();
    let document: String = (0..4000).map(|i| format!("{i}. {TEXT}")).collect();
    home.write("whole.txt", &document);
    let whole = home.json(&["read", "whole.txt", "--memory", "whole.mem"], 0);

    let mut child = home.command(&["read", "-", "--memory", "part.mem"]);
    let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&document.as_bytes()[..document.len() / 3]).unwrap();
    // the handler is there once the first part was taken from the pipe
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    // the command may have gone, or go now
    let _ = stdin.write_all(&document.as_bytes()[document.len() / 3..document.len() / 2]);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("interrupted: part.mem: holds"), "{}", text(&output.stderr));

    home.write("small.txt", TEXT);
    assert!(home.fails(1, &["read", "small.txt", "--memory", "part.mem", "--append"]).contains("unfinished"));
    let mut child = home.command(&["read", "-", "--memory", "part.mem"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(document.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("going on in part.mem"), "{}", text(&output.stderr));

    let part = home.json(&["memory", "show", "part.mem"], 0);
    assert_eq!(part["tokens"], whole["position"]);
    let ask = |file| home.ok(&["ask", "--memory", file, "--max-tokens", "12", "The pass key is"]);
    assert_eq!(ask("part.mem"), ask("whole.mem"));
}

#[test]
fn demo_and_eval_report_what_was_asked() {
    let home = Home::new();
    // random weights recall nothing: a missed check
    let demo = home.json(&["demo", "--tokens", "3000"], 1);
    has(
        &demo,
        &["tokens_per_second", "rss_bytes_at_10_percent", "rss_bytes_at_100_percent", "state_bytes", "kv_cache_bytes"],
    );
    assert_eq!(demo["tokens"], 3000);
    let needles = demo["needles"].as_array().unwrap();
    assert_eq!(needles.iter().map(|n| n["depth"].as_f64().unwrap()).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);
    needles.iter().for_each(|n| has(n, &["expected", "answered", "correct"]));
    // 2 layers × 2 heads × 8 wide × key and value × 4 bytes
    assert_eq!(demo["kv_cache_bytes"], 3000 * 2 * 2 * 8 * 2 * 4);
    let keys = |d: &Value| d["needles"].as_array().unwrap().iter().map(|n| n["expected"].clone()).collect::<Vec<_>>();
    let again = home.json(&["demo", "--tokens", "3000"], 1);
    let other = home.json(&["demo", "--tokens", "3000", "--seed", "1"], 1);
    assert_eq!(keys(&demo), keys(&again));
    assert_ne!(keys(&demo), keys(&other));

    let lengths = ["--lengths", "700,1400", "--depths", "0,1", "--samples", "3"];
    let eval = home.json(&[&["eval", "passkey", "--csv", "rows.csv", "--plot", "heat.svg"][..], &lengths].concat(), 0);
    has(&eval, &["tokens_per_second", "peak_rss_bytes", "state_bytes", "writes"]);
    let rows = eval["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    rows.iter().for_each(|r| has(r, &["length", "depth", "n", "exact", "digit", "knock_out", "interval"]));
    assert_eq!(fs::read_to_string(home.path("rows.csv")).unwrap().lines().count(), 5);
    assert!(fs::read_to_string(home.path("heat.svg")).unwrap().contains("<svg"));
    let table = home.ok(&[&["eval", "passkey", "--knock-out"][..], &lengths].concat());
    assert!(table.starts_with("length"), "{table}");

    home.write("prompt.txt", "Look.{filler} Secret {needle}.{filler} Secret");
    home.json(&[&["eval", "passkey", "--prompt", "prompt.txt"][..], &lengths].concat(), 0);
    home.write("prompt.txt", "Look.{filler} Secret {needle}. Secret");
    assert!(home.fails(1, &["eval", "passkey", "--prompt", "prompt.txt"]).contains("twice"));

    let mqar = home.json(&["eval", "mqar", "--model", "models/passkey", "--lengths", "64", "--samples", "2"], 0);
    assert_eq!(mqar["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn a_run_is_trained_stopped_and_gone_on_with() {
    let home = Home::new();
    home.write("tiny.toml", TRAIN);
    let arguments = ["train", "--config", "tiny.toml"];
    let summary = home.json(&arguments, 0);
    has(&summary, &["model", "step", "finished", "tokens", "seconds", "loss", "answer_accuracy"]);
    assert_eq!((&summary["step"], &summary["finished"]), (&4.into(), &true.into()));
    for file in ["config.toml", "config.json", "model.safetensors", "tokenizer.json", "metrics.csv", "metrics.jsonl"] {
        assert!(home.path("runs/tiny").join(file).exists(), "{file}");
    }
    let demo = home.json(&["demo", "--model", "runs/tiny", "--tokens", "1000"], 1);
    assert_eq!(demo["needles"].as_array().unwrap().len(), 3);

    // four steps and two more are six steps
    let more = home.run(&[&arguments[..], &["--set", "train.steps=6"]].concat());
    assert_eq!(more.status.code(), Some(0), "{}", text(&more.stderr));
    assert!(text(&more.stderr).contains("going on from step 4"), "{}", text(&more.stderr));
    home.ok(&[&arguments[..], &["--set", "train.steps=6", "--out", "runs/whole"]].concat());
    let weights = |run: &str| fs::read(home.path(run).join("model.safetensors")).unwrap();
    assert!(weights("runs/tiny") == weights("runs/whole"), "a run that was stopped differs from one that was not");

    for (set, hint) in [
        ("train.stpes=1", "did you mean steps?"),
        ("infini.preset=selective-liner", "did you mean selective-linear?"),
        ("train.batch=0", "train.batch"),
        ("model.hidden_size=9223372036854775807", "hidden_size"),
    ] {
        let complaint = home.fails(1, &[&arguments[..], &["--set", set]].concat());
        assert!(complaint.contains("tiny.toml") && complaint.contains(hint), "{set}: {complaint}");
    }
    let complaint = home.fails(1, &[&arguments[..], &["--set", "train.lr=1e-4"]].concat());
    assert!(complaint.contains("cannot resume: runs/tiny"), "{complaint}");
}

/// The commands of the README, on the tiny model and made small.
#[test]
fn the_readme_can_be_followed() {
    let home = Home::new();
    home.write("book.txt", &TEXT.repeat(20));
    fs::create_dir_all(home.path("configs/passkey")).unwrap();
    home.write("configs/passkey/selective-linear.toml", TRAIN);
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let mut run = Vec::new();
    for line in readme.split("```").skip(1).step_by(2).filter(|b| b.starts_with("sh\n")).flat_map(str::lines) {
        let line = line.split("    ").next().unwrap().trim();
        if let Some(adapter) = line.strip_prefix("A=") {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            assert!(root.join(adapter).exists(), "the README names an adapter that is not there: {adapter}");
        }
        // a shipped adapter fits the true model alone, which tests do not download
        if line.contains("--adapter") {
            continue;
        }
        let Some(line) = line.strip_prefix("infini ").or(line.strip_prefix("cargo run --release -- ")) else {
            continue;
        };
        let mut arguments = words(line);
        let smaller = match arguments[0].as_str() {
            "demo" if !line.contains("--book") => &["--tokens", "1000"][..],
            "eval" => {
                arguments.retain(|a| a != "--lengths" && !a.contains(','));
                &["--lengths", "700", "--depths", "0.5"]
            }
            _ => &[],
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(smaller.iter().copied()).collect();
        // random weights recall nothing, so a demo of keys misses
        let expected = i32::from(arguments[0] == "demo" && !line.contains("--book"));
        let output = home.run(&arguments);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}", text(&output.stderr));
        run.push(arguments[0].to_string());
    }
    for command in ["demo", "read", "ask", "memory", "train", "eval"] {
        assert!(run.iter().any(|r| r == command), "the README shows no {command}");
    }
}

/// A line of shell as its words; quotes keep blanks.
fn words(line: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (i, part) in line.split(['"', '\'']).enumerate() {
        match i % 2 {
            0 => out.extend(part.split_whitespace().map(str::to_string)),
            _ => out.push(part.to_string()),
        }
    }
    out
}

#[test]
fn tokenizers_are_made_and_used() {
    let home = Home::new();
    home.write("a.txt", &TEXT.repeat(30));
    home.ok(&["tokenizer", "train", "a.txt", "--vocab-size", "280", "--out", "t.json"]);
    let ids = home.ok(&["tokenizer", "encode", "--tokenizer", "t.json", "Key 48213, naïve."]);
    let ids: Vec<&str> = ids.split_whitespace().collect();
    let decoded = home.ok(&[&["tokenizer", "decode", "--tokenizer", "t.json"], &ids[..]].concat());
    assert_eq!(decoded, "Key 48213, naïve.\n");
    home.fails(1, &["tokenizer", "train", "a.txt", "--vocab-size", "10"]);
}

#[test]
fn a_model_is_shown() {
    let home = Home::new();
    let shown = home.ok(&["inspect"]);
    assert!(shown.contains("parameters") && shown.contains("infini"), "{shown}");
    let fields = home.json(&["inspect", "models/passkey", "--plot", "gates.svg"], 0);
    let picture = fs::read_to_string(home.path("gates.svg")).unwrap();
    let share = fields["layers"][1]["memory_share"][0].as_f64().unwrap();
    assert!(picture.contains(&format!("{share:.3}")), "{picture}");
    has(&fields, &["parameters", "config", "layers", "weights"]);
}

#[test]
fn golden_files_are_checked() {
    let home = Home::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    fs::create_dir(home.path("golden")).unwrap();
    for file in ["op_02_delta_paper_min.safetensors", "model_1_linear_paper.safetensors"] {
        fs::copy(golden.join(file), home.path("golden").join(file)).unwrap();
    }
    let check = home.json(&["check", "golden"], 0);
    assert_eq!((&check["files"], &check["skipped"], &check["failed"]), (&2.into(), &0.into(), &0.into()));
    assert!(check["worst"].as_f64().unwrap() <= 1.0);
    // a tensor that is wrong
    let path = home.path("golden/op_02_delta_paper_min.safetensors");
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 0x40;
    fs::write(&path, bad).unwrap();
    assert_eq!(home.json(&["check", "golden"], 1)["failed"], 1);
    fs::write(&path, good).unwrap();
    // a file that is none
    home.write("golden/x.safetensors", "nothing");
    assert_eq!(home.json(&["check", "golden"], 1)["skipped"], 1);
}

#[test]
fn shells_and_manuals_are_served() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.ok(&["completions", shell]).contains("infini"));
    }
    assert!(home.ok(&["man"]).contains(".TH infini"));
    home.ok(&["man", "--out", "man1"]);
    for command in COMMANDS {
        assert!(home.path("man1").join(format!("infini-{command}.1")).exists(), "{command}");
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let home = Home::new();
    let mut child =
        home.command(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

fn pretrained(name: &str) -> String {
    format!("{}/../../golden/pretrained/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn pretrained_models_are_continued_and_talked_to() {
    let home = Home::new();
    for model in ["llama", "llama.gguf", "qwen2"] {
        let model = pretrained(model);
        let generate = ["generate", "--model", &model, "--prompt", "Hello", "--max-tokens", "6"];
        let greedy = home.json(&generate, 0);
        has(&greedy, &["text", "finish", "prompt_tokens", "ids", "tokens", "tokens_per_second"]);
        assert!(greedy["tokens"].as_u64().unwrap() <= 6);
        let warm = [&generate[..], &["--temperature", "2", "--top-p", "0.9", "--seed", "5"]].concat();
        assert_eq!(home.json(&warm, 0)["ids"], home.json(&warm, 0)["ids"], "a seed decides");
    }
    let long = "x".repeat(70);
    let refused = home.fails(1, &["generate", "--model", &pretrained("llama"), "--prompt", &long]);
    assert!(refused.contains("no room for 70 tokens"), "{refused}");
    assert!(home.fails(1, &["generate", "--prompt", "hi", "--temperature", "200"]).contains("temperature"));
    assert!(home.fails(1, &["generate", "--prompt", "hi", "--chat"]).contains("no chat template"));
    assert!(home.fails(1, &["generate", "--model", "smollm2", "--prompt", "hi"]).contains("infini pull smollm2"));
    assert!(home.fails(1, &["pull", "smolm2"]).contains("did you mean smollm2?"));

    // a memory model with a template of its own
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    let dir = home.path("talker");
    home.ok(&["convert", &pretrained("llama.gguf"), "--out", dir.to_str().unwrap()]);
    home.write("talker/chat_template.jinja", template);
    let talk = |lines: &str, more: &[&str]| {
        let arguments = [&["chat", "--model", "talker", "--max-tokens", "3"], more].concat();
        let mut child = home.command(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        text(&output.stdout)
    };
    let stats = talk("hi\n/fork\nyou\n/back\n/stats\n/save talk.mem\n/nonsense\n/quit\nnever\n", &[]);
    let of =
        |s: &str| s.lines().find(|l| l.contains("tokens read")).unwrap().split(", state").next().unwrap().to_string();
    let resumed = talk("/stats\n/memory off\n/load talk.mem\n/stats\n", &["--memory", "talk.mem"]);
    assert_eq!(of(&stats), of(&resumed));
    assert!(of(&stats).ends_with("2 turns"), "{stats}");
}
