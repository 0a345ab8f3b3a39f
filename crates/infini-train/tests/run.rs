//! Runs: learning, determinism, stopping, killing and resuming, numbers that are none.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use common::{books, outcome, run, tiny};
use infini::folder;
use infini::tasks::{DataConfig, build};
use infini::text::Tokenizer;
use infini::weights::Weights;
use infini_format::checkpoint;
use infini_format::io::RealIo;
use infini_train::{Config, Device, Error, Event, Options, Resume, Trainer, train};

#[test]
fn a_run_is_deterministic_and_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&[]);
    let whole = dir.path().join("whole");
    let summary = run(&config, &whole, u64::MAX);
    assert!(summary.finished && summary.step == 12 && summary.last.is_some());
    let expected = outcome(&whole);
    let rows: Vec<&str> = expected.3.iter().map(|l| l.split(',').next().unwrap()).collect();
    assert_eq!(rows[0], "step");
    assert_eq!(rows[1..], (1..=12).map(|s| s.to_string()).collect::<Vec<_>>());

    let again = dir.path().join("again");
    run(&config, &again, u64::MAX);
    assert!(outcome(&again) == expected, "the same seed gave another run");

    for k in [1, 4, 5, 7, 11] {
        let stopped = dir.path().join(k.to_string());
        let summary = run(&config, &stopped, k);
        assert!(!summary.finished && summary.step == k);
        // rows that a crash left behind the checkpoint
        for name in ["metrics.csv", "metrics.jsonl", infini_train::tensorboard::FILE] {
            let mut file = std::fs::OpenOptions::new().append(true).open(stopped.join(name)).unwrap();
            file.write_all(b"99,half a row").unwrap();
        }
        let summary = run(&config, &stopped, u64::MAX);
        assert!(summary.finished && summary.step == 12);
        assert!(outcome(&stopped) == expected, "stopped at {k} and resumed, the run is another one");
    }
    // nothing is left to do
    assert!(run(&config, &whole, u64::MAX).last.is_none());
    assert!(outcome(&whole) == expected);
}

#[test]
fn thread_counts_agree() {
    let config = tiny(&[]);
    let on = |threads: usize| {
        let dir = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&config, dir.path(), u64::MAX));
        let loaded = folder::load(dir.path()).unwrap();
        assert_eq!(loaded.model.config(), &config.model);
        outcome(dir.path())
    };
    let (one, two, again) = (on(1), on(2), on(2));
    assert!(two == again, "two threads gave two results");
    let losses = |lines: &[String]| -> Vec<f64> {
        lines[1..].iter().map(|l| l.split(',').nth(2).unwrap().parse().unwrap()).collect()
    };
    for (a, b) in losses(&one.3).iter().zip(losses(&two.3)) {
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "one thread: {a}, two: {b}");
    }
}

/// The child of the test below: trains until it is killed.
#[test]
fn child_trains_until_killed() {
    let Ok(dir) = std::env::var("INFINI_TRAIN_KILLED_RUN") else { return };
    run(&tiny(&LONGER), Path::new(&dir), u64::MAX);
}

/// Long enough to be killed several times on any machine.
const LONGER: [&str; 2] = ["train.checkpoint_every=1", "train.steps=24"];

#[test]
fn a_killed_run_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&LONGER);
    let whole = dir.path().join("whole");
    run(&config, &whole, u64::MAX);
    let expected = outcome(&whole);
    let killed = dir.path().join("killed");
    let (mut kills, mut pause) = (0, 4);
    loop {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_trains_until_killed", "--exact"])
            .env("INFINI_TRAIN_KILLED_RUN", &killed)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // irregular, and longer each time, so that the run gets to its end
        pause += 3 + pause / 5 + (pause * 7919) % 7;
        std::thread::sleep(std::time::Duration::from_millis(pause));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    println!("killed {kills} times");
    assert!(kills > 0, "the run was never killed");
    // a kill between the checkpoint and the model folder leaves the folder behind: resuming mends it
    run(&config, &killed, u64::MAX);
    assert!(outcome(&killed) == expected, "after {kills} kills the run is another one");
}

#[test]
fn another_configuration_does_not_resume() {
    let dir = tempfile::tempdir().unwrap();
    run(&tiny(&[]), dir.path(), 3);
    let stop = AtomicBool::new(false);
    let go = |config: &Config, resume: Resume| {
        let options = Options { out: dir.path(), data_dir: None, resume, device: Device::flex(), stop: &stop };
        train(config, &options, &mut |_| {})
    };
    let e = go(&tiny(&["train.lr=1e-4"]), Resume::Auto).unwrap_err();
    assert!(matches!(e, Error::Resume { .. }) && e.to_string().contains("lr = 0.003"), "{e}");
    assert_eq!(go(&tiny(&["train.steps=5"]), Resume::Auto).unwrap().step, 5);
    let fresh = go(&tiny(&["train.lr=1e-4"]), Resume::Never).unwrap();
    assert_eq!((fresh.step, fresh.tokens), (12, 6 * 64 + 6 * 48));
}

#[test]
fn a_run_begins_with_another_models_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    run(&tiny(&[]), &a, 5);
    let first = folder::parse_weights(&tiny(&[]).model, std::fs::read(a.join("model.safetensors")).unwrap()).unwrap();
    let init = format!("train.init='{}'", a.display());
    // no rate, no change: what comes out is what went in
    let still = tiny(&[&init, "train.lr=0", "train.gate_lr=0"]);
    assert!(run(&still, &b, u64::MAX).finished);
    let last = folder::parse_weights(&still.model, std::fs::read(b.join("model.safetensors")).unwrap()).unwrap();
    assert!(first == last);
    assert_eq!(std::fs::read(a.join("tokenizer.json")).unwrap(), std::fs::read(b.join("tokenizer.json")).unwrap());

    let other = tiny(&[&init, "model.hidden_size=32"]);
    let stop = AtomicBool::new(false);
    let out = dir.path().join("c");
    let options = Options { out: &out, data_dir: None, resume: Resume::Auto, device: Device::flex(), stop: &stop };
    let e = train(&other, &options, &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("train.init") && e.contains("shape"), "{e}");
}

/// A trainer of the tiny model on its task.
fn trainer(config: &Config, weights: &Weights) -> Trainer {
    let tokenizer = Tokenizer::train(std::iter::empty(), 256).unwrap();
    let task =
        build(&config.data, None, &tokenizer, config.model.infini.segment_len, config.model.infini.span).unwrap();
    Trainer::new(config, weights, task, &Device::flex()).unwrap()
}

#[test]
fn numbers_that_are_none_are_skipped_named_and_end_the_run() {
    let config = tiny(&[]);
    let good = Weights::init(&config.model, 0);
    let poisoned = |name: &str, value: f32| {
        let tensors = config.model.parameters().into_iter().map(|p| {
            let mut x = good.get(&p.name).to_vec();
            if p.name == name {
                x.fill(value);
            }
            (p.name, (p.shape, x))
        });
        Weights::new(&config.model, tensors.collect()).unwrap()
    };
    // the largest finite number in the head overflows every logit
    let bad = poisoned("lm_head.weight", f32::MAX);
    let mut t = trainer(&config, &bad);
    let first = t.step(true).unwrap();
    assert_eq!(first.skipped.as_deref(), Some("the loss"));
    assert_eq!(
        t.parameters().weights()["lm_head.weight"].1,
        bad.get("lm_head.weight"),
        "a skipped step changed weights"
    );
    assert_eq!((t.counts().step, t.counts().updates, t.counts().skipped), (1, 0, 1));
    assert_eq!(t.step(true).unwrap().skipped.as_deref(), Some("the loss"));
    let e = t.step(true).unwrap_err();
    assert!(matches!(&e, Error::NotFinite { step: 2, count: 3, .. }), "{e}");

    // with good weights again the count starts anew
    let mut t = trainer(&config, &bad);
    t.step(false).unwrap();
    let moments = t.moments().iter().map(infini_train::ops::Moments::to_vecs).collect();
    let counts = t.counts();
    t.restore(&good, moments, counts, None);
    assert_eq!(t.step(false).unwrap().skipped, None);
    assert_eq!((t.counts().updates, t.counts().skipped, t.counts().in_a_row), (1, 1, 0));
}

#[test]
fn accumulated_batches_are_one_batch() {
    // all tokens weigh alike, so two halves of a batch have the mean loss of the whole
    let set = ["train.answer_loss=0", "train.token_loss=1", "train.curriculum=[{steps=3,batch=4,tokens=16}]"];
    let halves = ["train.accumulate=2", "train.curriculum=[{steps=3,batch=2,tokens=16}]"];
    let (whole, halves) = (tiny(&set), tiny(&[&set[..], &halves[..]].concat()));
    let weights = Weights::init(&whole.model, 3);
    let (mut a, mut b) = (trainer(&whole, &weights), trainer(&halves, &weights));
    for _ in 0..3 {
        let (a, b) = (a.step(false).unwrap(), b.step(false).unwrap());
        assert!((a.loss - b.loss).abs() < 1e-5, "{} {}", a.loss, b.loss);
        assert!((a.gradient_norm - b.gradient_norm).abs() < 1e-4 * a.gradient_norm, "{a:?} {b:?}");
        assert_eq!(a.tokens, b.tokens);
    }
}

#[test]
fn a_tiny_model_learns_to_recall() {
    let config = tiny(&[
        "model.hidden_size=32",
        "infini.conv=2",
        "train.curriculum=[{steps=250,batch=16,tokens=16}]",
        "train.lr=1e-2",
        "train.write_sparsity.weight=0",
        "train.warmup=10",
    ]);
    let mut t = trainer(&config, &Weights::init(&config.model, 0));
    let mut accuracy = Vec::new();
    for _ in 0..250 {
        accuracy.push(t.step(false).unwrap().answer_accuracy.unwrap());
    }
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (first, last) = (mean(&accuracy[..20]), mean(&accuracy[230..]));
    assert!(first < 0.3 && last > 0.9, "accuracy went from {first} to {last}");
}

#[test]
fn a_task_that_does_not_fit_is_refused_by_field() {
    let refused = |set: &[&str], field: &str| {
        let config = tiny(set);
        let DataConfig::Mqar(_) = config.data else { panic!("the tiny task is mqar") };
        let dir = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let options =
            Options { out: dir.path(), data_dir: None, resume: Resume::Auto, device: Device::flex(), stop: &stop };
        let e = train(&config, &options, &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains(field), "{e}");
    };
    refused(&["data.vocab_size=1024"], "model.vocab_size");
    refused(&["model.vocab_size=128"], "model.vocab_size");
    refused(&["train.curriculum=[{ steps = 1, batch = 1, tokens = 2 }]"], "train.tokens");
}

#[test]
fn a_run_that_carries_its_memory_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = books(dir.path(), &[]);
    let whole = dir.path().join("whole");
    assert!(run(&config, &whole, u64::MAX).finished);
    let expected = outcome(&whole);
    let carried = |dir: &Path| checkpoint::load(&RealIo, &dir.join("checkpoint")).unwrap().unwrap().parts;
    for k in [1, 4, 7, 11] {
        let stopped = dir.path().join(k.to_string());
        run(&config, &stopped, k);
        assert!(carried(&stopped)["carry.safetensors"].len() > 1000);
        run(&config, &stopped, u64::MAX);
        assert!(outcome(&stopped) == expected, "stopped at {k} and resumed, the run is another one");
        assert!(carried(&stopped)["carry.safetensors"] == carried(&whole)["carry.safetensors"]);
    }
    // without the memory of what was read before it is another run
    let forgets = books(dir.path(), &["data.carry=false"]);
    let other = dir.path().join("forgets");
    run(&forgets, &other, u64::MAX);
    assert!(!carried(&other).contains_key("carry.safetensors"));
    assert!(outcome(&other).0 != expected.0);
    // half a segment cannot be carried
    let stop = AtomicBool::new(false);
    let out = dir.path().join("half");
    let options = Options { out: &out, data_dir: None, resume: Resume::Auto, device: Device::flex(), stop: &stop };
    let e = train(&books(dir.path(), &["train.tokens=20"]), &options, &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("train.tokens") && e.contains("whole segments"), "{e}");
}

#[test]
fn other_shards_are_not_gone_on_with_and_changed_ones_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = books(dir.path(), &[]);
    let out = dir.path().join("run");
    run(&config, &out, 3);
    let stop = AtomicBool::new(false);
    let options = Options { out: &out, data_dir: None, resume: Resume::Auto, device: Device::flex(), stop: &stop };
    // truncated between two steps
    let shard = dir.path().join("shards/shard-00000.tokens");
    let bytes = std::fs::read(&shard).unwrap();
    let cut = |event: Event| {
        if let Event::Step(p) = event
            && p.step.step == 6
        {
            std::fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(200).unwrap();
        }
    };
    let e = train(&config, &options, &mut { cut }).unwrap_err().to_string();
    assert!(e.contains("truncated") && e.contains("shard-00000"), "{e}");
    std::fs::write(&shard, bytes).unwrap();
    assert!(run(&config, &out, 10).step == 10);
    // made anew from other texts
    std::fs::remove_dir_all(dir.path().join("shards")).unwrap();
    std::fs::write(dir.path().join("texts/d"), "another document").unwrap();
    let e = train(&books(dir.path(), &[]), &options, &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("cannot resume") && e.contains("data"), "{e}");
}

#[test]
fn a_memory_is_added_to_a_trained_control() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    run(&books(dir.path(), &["model.attention=local"]), &control, u64::MAX);
    let init = format!("train.init='{}'", control.display());
    // no rate, no change: the control's weights, and a memory whose output begins at zero
    let config = books(dir.path(), &[&init, "train.lr=0", "train.gate_lr=0"]);
    let added = dir.path().join("added");
    run(&config, &added, u64::MAX);
    let [before, after] = [&control, &added].map(|d| folder::load(d).unwrap());
    assert!(after.model.config().own_memory(0) && !before.model.config().own_memory(0));
    let tokens: Vec<u32> = (0..60).map(|i| i * 7 % 250).collect();
    let logits = |l: &folder::Loaded| l.model.forward(&mut l.model.state(1), &tokens, infini::model::Want::All);
    assert_eq!(logits(&before), logits(&after));
    // with rates the memory learns
    let learns = dir.path().join("learns");
    run(&books(dir.path(), &[&init]), &learns, u64::MAX);
    let name = "model.layers.1.self_attn.infini.memory.o_proj.weight";
    let file = std::fs::read(learns.join("model.safetensors")).unwrap();
    let weights = folder::parse_weights(&config.model, file).unwrap();
    assert!(weights.get(name).iter().any(|x| *x != 0.0));
}
