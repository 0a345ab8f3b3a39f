//! Faults met through the command and the library: killed readers, foreign partners, hostile
//! configurations, sessions that are broken off. Each prints one line of counts; `INFINI_FAULTS_LONG=1`
//! runs the long forms.

mod common;

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Home, TEXT, text};
use infini::folder;
use infini::session::Session;
use infini_format::io::RealIo;
use infini_format::memory::read_memory;
use infini_train::Config;

fn cases(short: u64, long: u64) -> u64 {
    if std::env::var_os("INFINI_FAULTS_LONG").is_some_and(|v| v == "1") { long } else { short }
}

fn print(what: &str, [run, lost, refused, panicked]: [u64; 4]) {
    println!("{what}: run {run}, lost {lost}, refused {refused}, panicked {panicked}");
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// R2: `infini read --append` killed at any moment leaves the memory of before or of after.
#[test]
fn a_killed_reading_leaves_a_whole_memory() {
    let home = Home::new();
    home.write("a.txt", TEXT);
    let append = ["read", "a.txt", "--memory", "m.mem", "--append"];
    home.ok(&append[..4]);
    let start = Instant::now();
    home.ok(&append);
    let whole = start.elapsed();
    let path = home.path("m.mem");
    let mut generation = read_memory(&RealIo, &path).unwrap().0.generation;
    let (n, mut seed, mut lost, mut saved) = (cases(60, 3000), 1, 0, 0);
    for _ in 0..n {
        let mut child = home.command(&append).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // up to a little after the end of an undisturbed run
        sleep(whole.mul_f64(1.2 * (random(&mut seed) % 1000) as f64 / 1000.0));
        let _ = child.kill();
        let done = child.wait().unwrap().success();
        match read_memory(&RealIo, &path) {
            Ok((header, _)) if header.generation == generation + 1 => saved += 1,
            Ok((header, _)) if header.generation == generation && !done => {}
            _ => lost += 1,
        }
        generation = read_memory(&RealIo, &path).map_or(generation, |(h, _)| h.generation);
    }
    print("R2 `infini read` killed (SIGKILL) at any moment", [n, lost, 0, 0]);
    println!("    {saved} of them had saved");
    assert_eq!(lost, 0);
    assert!(saved > 0 && saved < n, "the kills came too early or too late: {saved} of {n} had saved");
    home.ok(&append);
    let names = fs::read_dir(home.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let stray: Vec<String> = names.filter(|n| n.contains("tmp")).collect();
    assert!(stray.is_empty(), "{stray:?}");
}

/// R15: a memory is refused by every other model, with both values shown.
#[test]
fn a_memory_is_refused_by_every_other_model() {
    let home = Home::new();
    home.write("a.txt", TEXT);
    home.ok(&["read", "a.txt", "--memory", "m.mem"]);
    let model = home.path("models/passkey");
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let tokenizer = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let mut weights = fs::read(model.join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    let others: [(&str, &str, Vec<u8>); 4] = [
        ("weights", "model.safetensors", weights),
        ("tokenizer", "tokenizer.json", format!("{tokenizer} ").into()),
        ("config", "config.json", config.replace("10000.0", "10001.0").into()),
        ("segment", "config.json", config.replace("\"segment_len\": 16", "\"segment_len\": 32").into()),
    ];
    let (mut lost, mut refused) = (0, 0);
    for (what, file, bytes) in &others {
        let other = home.path(what);
        fs::create_dir(&other).unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::copy(model.join(name), other.join(name)).unwrap();
        }
        assert_ne!(&fs::read(other.join(file)).unwrap(), bytes, "{what} is not changed");
        fs::write(other.join(file), bytes).unwrap();
        let output = home.run(&["ask", "--memory", "m.mem", "--model", what, "The pass key is"]);
        let complaint = text(&output.stderr);
        let named = complaint.contains(what) || (*what == "segment" && complaint.contains("config"));
        match output.status.code() {
            Some(1) if named && output.stdout.is_empty() => refused += 1,
            _ => lost += 1,
        }
        if lost > 0 {
            panic!("{what}: {complaint}");
        }
    }
    print("R15 memory of another model, through `infini ask`", [others.len() as u64, lost, refused, 0]);
}

/// R14: every number of a configuration, hostile: a named error, before anything is allocated.
#[test]
fn hostile_configurations_are_refused_by_name() {
    const INTEGERS: [&str; 17] = [
        "model.vocab_size",
        "model.hidden_size",
        "model.num_hidden_layers",
        "model.num_attention_heads",
        "model.num_key_value_heads",
        "model.head_dim",
        "model.intermediate_size",
        "infini.segment_len",
        "infini.span",
        "infini.lag",
        "infini.feature_width",
        "infini.conv",
        "train.steps",
        "train.batch",
        "train.tokens",
        "train.accumulate",
        "data.keys",
    ];
    let base = include_str!("../../../configs/passkey/selective-linear.toml");
    let (mut run, mut lost, mut refused, mut panicked) = (0, 0, 0, 0);
    for field in INTEGERS {
        for value in ["-1", "9223372036854775807", "9223372036854775808", "nan", "\"many\"", "[]"] {
            run += 1;
            let set = [format!("{field}={value}")];
            let named = |e: &infini::Error| field.split('.').any(|part| e.to_string().contains(part));
            match std::panic::catch_unwind(|| Config::parse(base, &set)) {
                Ok(Err(e)) if named(&e) => refused += 1,
                Ok(other) => {
                    lost += 1;
                    println!("    {field} = {value}: {:?}", other.map(|_| "accepted"));
                }
                Err(_) => panicked += 1,
            }
        }
    }
    for unknown in ["model.layers=2", "infini.memory=1", "train.epochs=1", "data.books=1", "extra.x=1"] {
        run += 1;
        match Config::parse(base, &[unknown.to_string()]) {
            Err(_) => refused += 1,
            Ok(_) => lost += 1,
        }
    }
    print("R14 hostile configuration values", [run, lost, refused, panicked]);
    assert_eq!((lost, panicked), (0, 0));
}

/// R30: a session that is saved and restored after every part goes on bit for bit like one that is not,
/// and restoring reads no token.
#[test]
fn a_restored_session_is_the_unbroken_one() {
    let home = Home::new();
    let loaded = folder::load(&home.path("models/passkey")).unwrap();
    let path = home.path("m.mem");
    let (n, mut seed, mut lost) = (cases(20, 500), 7, 0);
    let mut parts = 0;
    for _ in 0..n {
        let mut whole = Session::new(&loaded);
        whole.begin(&["x".into()]);
        let mut broken = Session::new(&loaded);
        broken.begin(&["x".into()]);
        for _ in 0..1 + random(&mut seed) % 6 {
            parts += 1;
            let words = 1 + random(&mut seed) % 60;
            let part: String = (0..words).map(|_| format!("{} ", random(&mut seed) % 1000)).collect();
            whole.push(&part).unwrap();
            whole.finish().unwrap();
            broken.push(&part).unwrap();
            broken.finish().unwrap();
            broken.save(&RealIo, &path, None).unwrap();
            let position = broken.state().position();
            broken = Session::open(&loaded, &RealIo, &path).unwrap();
            lost += u64::from(broken.state().position() != position);
            let bits = |s: &Session| s.state().logits().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            lost += u64::from(bits(&whole) != bits(&broken));
        }
        fs::remove_file(&path).unwrap();
    }
    print("R30 sessions saved, restored and gone on with", [parts, lost, 0, 0]);
    assert_eq!(lost, 0);
}

/// SIGKILL of `infini train` at any moment: the same command ends with the weights of a run that was left alone.
#[test]
fn a_killed_training_ends_as_the_unbroken_one() {
    let home = Home::new();
    home.write("tiny.toml", common::TRAIN);
    let arguments = ["train", "--config", "tiny.toml", "--set", "train.steps=12", "--set", "train.checkpoint_every=1"];
    let start = Instant::now();
    home.ok(&[&arguments[..], &["--out", "whole"]].concat());
    let whole = start.elapsed().max(Duration::from_millis(20));
    let (n, mut seed, mut lost, mut kills) = (cases(3, 100), 3, 0, 0);
    for _ in 0..n {
        let broken = [&arguments[..], &["--out", "broken"]].concat();
        for _ in 0..6 {
            let mut child = home.command(&broken).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            sleep(whole.mul_f64((random(&mut seed) % 1000) as f64 / 1000.0));
            let _ = child.kill();
            kills += 1;
            if child.wait().unwrap().success() {
                break;
            }
        }
        home.ok(&broken);
        let read = |run: &str, file: &str| fs::read(home.path(run).join(file)).unwrap();
        lost += u64::from(read("whole", "model.safetensors") != read("broken", "model.safetensors"));
        fs::remove_dir_all(home.path("broken")).unwrap();
    }
    print("R1 `infini train` killed (SIGKILL) and gone on with, bit-identical", [kills, lost, 0, 0]);
    assert_eq!(lost, 0);
}
