//! R1, R2: a writer is killed at a random moment, again and again.
//!
//! The child is this test binary itself, started with an environment variable that names its folder.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use infini_format::io::RealIo;
use infini_format::{checkpoint, memory};

use crate::{Count, Rng, cases, header, tensors, views};

const CHILD: &str = "INFINI_FAULTS_CHILD";

/// One part of a checkpoint: its step, over and over.
fn part(step: u64, name: &str) -> Vec<u8> {
    step.to_le_bytes().repeat(if name == "weights" { 8_000 } else { 500 })
}

const PARTS: [&str; 3] = ["weights", "optimiser", "sampler"];

fn save_checkpoint(dir: &Path, step: u64) {
    let parts = PARTS.map(|name| (name, part(step, name)));
    let parts: Vec<(&str, &[u8])> = parts.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    checkpoint::save(&RealIo, &dir.join("checkpoint"), step, &parts).unwrap();
}

/// The step that loads, every part of which must be of that step; 0 when nothing was saved.
fn load_checkpoint(dir: &Path) -> Result<u64, String> {
    let Some(loaded) = checkpoint::load(&RealIo, &dir.join("checkpoint")).map_err(|e| e.to_string())? else {
        return Ok(0);
    };
    if let Some(warning) = loaded.warning {
        return Err(warning);
    }
    match PARTS.iter().all(|name| loaded.parts.get(*name) == Some(&part(loaded.step, name))) {
        true => Ok(loaded.step),
        false => Err(format!("mixed parts at step {}", loaded.step)),
    }
}

fn save_memory(dir: &Path, generation: u64) {
    let tensors = tensors(generation, 4_000);
    memory::write_memory(&RealIo, &dir.join("a.mem"), &header(generation), &views(&tensors)).unwrap();
}

fn load_memory(dir: &Path) -> Result<u64, String> {
    if !dir.join("a.mem").exists() {
        return Ok(0);
    }
    let (header, file) = memory::read_memory(&RealIo, &dir.join("a.mem")).map_err(|e| e.to_string())?;
    match file.get("ids").unwrap().to_i64().unwrap()[0] as u64 == header.generation {
        true => Ok(header.generation),
        false => Err(format!("mixed tensors at generation {}", header.generation)),
    }
}

/// What is tested: how to save state number n, and which number loads.
struct Subject {
    what: &'static str,
    test: &'static str,
    save: fn(&Path, u64),
    load: fn(&Path) -> Result<u64, String>,
}

/// The child: goes on from what loads, and tells each save once it has returned.
fn child(subject: &Subject, dir: &Path) -> ! {
    let mut last = (subject.load)(dir).unwrap();
    let mut out = std::io::stdout();
    loop {
        // Behind a line end: the test harness has written the test's name.
        writeln!(out, "\nsaved {last}").and_then(|()| out.flush()).unwrap();
        last += 1;
        (subject.save)(dir, last);
    }
}

fn kill_again_and_again(subject: &Subject) -> std::path::PathBuf {
    if let Some(dir) = std::env::var_os(CHILD) {
        child(subject, Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap().keep();
    let mut count = Count::default();
    let mut rng = Rng(1);
    let mut last = 0;
    for _ in 0..cases(200, 10_000) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([subject.test, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, &dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut saved =
            lines.by_ref().filter_map(|line| line.strip_prefix("saved ").map(|n| n.parse::<u64>().unwrap()));
        let first = saved.next().expect("the child has started");
        std::thread::sleep(Duration::from_micros(rng.next() % 50_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let told = saved.last().unwrap_or(first);

        count.run += 1;
        match (subject.load)(&dir) {
            // The save that was under way may have been done and not yet told.
            Ok(n) if n == told || n == told + 1 => {}
            Ok(n) => {
                println!("{}: {told} was saved, {n} loads", subject.test);
                count.lost += 1;
            }
            Err(error) => {
                println!("{}: {error}", subject.test);
                count.refused += 1;
            }
        }
        last = told;
    }
    count.print(&format!("{} (saved {last})", subject.what));
    assert_eq!((count.lost, count.refused), (0, 0));
    assert!(last > 0, "no child lived to save anything");
    // The next writer clears away what the killed ones left.
    (subject.save)(&dir, last + 2);
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn r1_kill_while_a_checkpoint_is_written() {
    let test = "kill::r1_kill_while_a_checkpoint_is_written";
    let dir = kill_again_and_again(&Subject {
        what: "R1 checkpoint, kill -9",
        test,
        save: save_checkpoint,
        load: load_checkpoint,
    });
    let names = names(&dir.join("checkpoint"));
    // the manifest, and two checkpoints of three parts
    assert_eq!(names.len(), 7, "{names:?}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn r2_kill_while_a_memory_file_is_written() {
    let test = "kill::r2_kill_while_a_memory_file_is_written";
    let dir = kill_again_and_again(&Subject { what: "R2 memory, kill -9", test, save: save_memory, load: load_memory });
    assert_eq!(names(&dir), ["a.mem"]);
    std::fs::remove_dir_all(dir).unwrap();
}
