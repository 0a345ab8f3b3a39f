//! Long runs: the same numbers whatever stops them and whatever they run on, and shards that change under them. Each
//! test prints one line of counts; `INFINI_FAULTS_LONG=1` runs the long forms.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use common::{books, outcome, run, tiny};
use infini::text::Tokenizer;
use infini_format::checkpoint;
use infini_format::io::RealIo;
use infini_kernels::simd::Level;
use infini_train::{Config, Device, Event, Options, Resume, train};

fn long() -> bool {
    std::env::var_os("INFINI_FAULTS_LONG").is_some_and(|v| v == "1")
}

fn print(what: &str, [run, lost, refused, panicked]: [u64; 4]) {
    println!("{what}: run {run}, lost {lost}, refused {refused}, panicked {panicked}");
}

/// A run of every kind of task: pairs in two stages of a curriculum, books whose memory is carried from step to step,
/// keys in filler.
fn tasks(dir: &Path) -> [(&'static str, Config); 3] {
    let tokenizer = dir.join("tokenizer.json");
    std::fs::write(&tokenizer, Tokenizer::train(std::iter::empty(), 256).unwrap().to_json()).unwrap();
    let set = [
        "data={task=\"passkey\",filler={paper=1}}",
        &format!("data.tokenizer=\"{}\"", tokenizer.display()),
        "infini.segment_len=64",
        "train.curriculum=[{steps=22,batch=2,tokens=640}]",
    ];
    [
        ("pairs", tiny(&["train.steps=22"])),
        ("books with their memory carried", books(dir, &["train.steps=22"])),
        ("keys", tiny(&set)),
    ]
}

/// All that a run leaves, what it carries included.
fn whole(dir: &Path) -> (impl PartialEq + use<>, Option<Vec<u8>>) {
    let parts = checkpoint::load(&RealIo, &dir.join("checkpoint")).unwrap().unwrap().parts;
    (outcome(dir), parts.get("carry.safetensors").cloned())
}

/// R29: the same seed twice, and a run that is stopped after any of its steps and gone on with, are bit for bit one run.
#[test]
fn r29_the_same_seed_and_a_resumed_run_are_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let (mut n, mut lost) = (0, 0);
    for (what, config) in tasks(dir.path()) {
        let at = |name: &str| dir.path().join(what).join(name);
        run(&config, &at("whole"), u64::MAX);
        let expected = whole(&at("whole"));
        assert_eq!(expected.1.is_some(), what.starts_with("books"));
        let stops: Vec<u64> = if long() { (0..=20).collect() } else { vec![0, 3, 13] };
        for k in stops {
            let out = at(&k.to_string());
            // 0: never stopped
            if k > 0 {
                assert_eq!(run(&config, &out, k).step, k);
            }
            assert!(run(&config, &out, u64::MAX).finished);
            n += 1;
            if whole(&out) != expected {
                lost += 1;
                println!("    {what}: stopped after {k} steps it is another run");
            }
        }
    }
    print("R29 runs repeated, or stopped after step k and resumed (lost = not bit-identical)", [n, lost, 0, 0]);
    assert_eq!(lost, 0);
}

/// R29: the number of threads does not show.
#[test]
fn r29_any_number_of_threads_gives_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let (mut n, mut lost) = (0, 0);
    for (what, config) in tasks(dir.path()) {
        let on = |threads: usize| {
            let out = dir.path().join(what).join(threads.to_string());
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&config, &out, if long() { u64::MAX } else { 5 }));
            whole(&out)
        };
        let one = on(1);
        for threads in [2, 3, 8] {
            n += 1;
            if on(threads) != one {
                lost += 1;
                println!("    {what}: {threads} threads give another run");
            }
        }
    }
    print("R29 runs on 2, 3 and 8 threads against one (lost = not bit-identical)", [n, lost, 0, 0]);
    assert_eq!(lost, 0);
}

const CHILD: &str = "INFINI_FAULTS_LEVEL";

/// The losses of a run.
fn losses(out: &Path) -> Vec<f64> {
    let csv = std::fs::read_to_string(out.join("metrics.csv")).unwrap();
    csv.lines().skip(1).map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect()
}

/// R29: instruction sets differ by rounding alone. Each in a process of its own, because the choice is the process's.
#[test]
fn r29_instruction_sets_agree() {
    if let Some(dir) = std::env::var_os(CHILD) {
        for (what, config) in tasks(Path::new(&dir)) {
            run(&config, &Path::new(&dir).join(what), if long() { u64::MAX } else { 5 });
        }
        return;
    }
    let levels = Level::available();
    let of = |level: &Level| {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["r29_instruction_sets_agree", "--exact"])
            .env(CHILD, dir.path())
            .env("INFINI_SIMD", level.name())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{level:?}");
        tasks(dir.path()).map(|(what, _)| (what, losses(&dir.path().join(what))))
    };
    let best = of(levels.last().unwrap());
    let (mut n, mut lost, mut most) = (0, 0, 0.0);
    for level in &levels[..levels.len() - 1] {
        for ((what, a), (_, b)) in best.iter().zip(of(level)) {
            assert_eq!(a.len(), b.len());
            for (step, (a, b)) in a.iter().zip(&b).enumerate() {
                n += 1;
                let apart = (a - b).abs() / a.abs();
                most = f64::max(most, apart);
                if apart > 1e-5 {
                    lost += 1;
                    println!("    {what}, step {step}: {a} on the best, {b} on {}", level.name());
                }
            }
        }
    }
    let what = format!("R29 losses on {} other instruction sets (lost = over 1e-5; most {most:.1e})", levels.len() - 1);
    print(&what, [n, lost, 0, 0]);
    assert_eq!(lost, 0);
}

/// Something done to shards.
type Change = Box<dyn Fn()>;

/// A shard that is no longer what was opened: truncated, replaced by another or by its own copy, changed in place, grown,
/// removed.
fn changes(shards: &Path) -> Vec<(&'static str, Change)> {
    let file = shards.join("shard-00000.tokens");
    let other = shards.join("shard-00001.tokens");
    type Edit = Box<dyn Fn(&Path, &Path)>;
    let change = |what, f: Edit| {
        let (file, other) = (file.clone(), other.clone());
        (what, Box::new(move || f(&file, &other)) as Change)
    };
    let replace = |file: &Path, by: &Path| {
        let copy = file.with_extension("copy");
        std::fs::copy(by, &copy).unwrap();
        std::fs::rename(copy, file).unwrap();
    };
    let rewrite = |file: &Path, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(file).unwrap();
        edit(&mut bytes);
        std::fs::write(file, bytes).unwrap();
    };
    vec![
        change("cut", Box::new(|f, _| std::fs::OpenOptions::new().write(true).open(f).unwrap().set_len(200).unwrap())),
        change("emptied", Box::new(|f, _| std::fs::write(f, b"").unwrap())),
        change("replaced by the next shard", Box::new(move |f, other| replace(f, other))),
        change("replaced by a copy", Box::new(move |f, _| replace(f, f))),
        change("a token changed in place", Box::new(move |f, _| rewrite(f, &|b| b[150] ^= 1))),
        change("written anew", Box::new(move |f, _| rewrite(f, &|_| {}))),
        change("a byte longer", Box::new(move |f, _| rewrite(f, &|b| b.push(0)))),
        change("removed", Box::new(|f, _| std::fs::remove_file(f).unwrap())),
    ]
}

/// R7: a shard that changes during a run ends it with an error that names the file; when the shard is back, the same command
/// ends the run as if nothing had been.
#[test]
fn r7_a_shard_that_changes_during_a_run_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    // long enough for every row to come to every shard once more
    let config = books(dir.path(), &["train.steps=50"]);
    run(&config, &dir.path().join("whole"), u64::MAX);
    let expected = whole(&dir.path().join("whole"));
    let shards = dir.path().join("shards");
    let file = shards.join("shard-00000.tokens");
    let good = std::fs::read(&file).unwrap();
    let [mut n, mut lost, mut refused] = [0; 3];
    let steps: Vec<u64> = if long() { (0..11).collect() } else { vec![4] };
    for (what, change) in changes(&shards) {
        for step in &steps {
            let out = dir.path().join(format!("{what}, {step}"));
            let stop = AtomicBool::new(false);
            let options =
                Options { out: &out, data_dir: None, resume: Resume::Auto, device: Device::flex(), stop: &stop };
            let result = train(&config, &options, &mut |event| {
                if let Event::Step(p) = event
                    && p.step.step == *step
                {
                    change();
                }
            });
            n += 1;
            match result.map_err(|e| e.to_string()) {
                Err(e) if e.contains("replaced, truncated or written to") && e.contains("shard-00000") => refused += 1,
                other => {
                    lost += 1;
                    println!("    {what} after step {step}: {other:?}");
                }
            }
            std::fs::write(&file, &good).unwrap();
            assert!(run(&config, &out, u64::MAX).finished);
            assert!(whole(&out) == expected, "{what} after step {step}: gone on with, it is another run");
        }
    }
    print("R7 a training shard cut, replaced, changed or removed during a run", [n, lost, refused, 0]);
    assert_eq!(lost, 0);
}
