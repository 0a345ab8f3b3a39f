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
use infini_train::adapt::AdaptConfig;

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

/// Dotted names and values of a table's leaves.
fn leaves(table: &toml::Table, prefix: &str, out: &mut Vec<(String, toml::Value)>) {
    for (name, value) in table {
        let name = format!("{prefix}{name}");
        match value {
            toml::Value::Table(t) => leaves(t, &format!("{name}."), out),
            value => out.push((name, value.clone())),
        }
    }
}

/// Most bytes that this process ever had addresses for: what is allocated and not touched counts too. None where the
/// system does not tell.
fn addresses() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmPeak:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

const CHILD: &str = "INFINI_FAULTS_CONFIG";

/// R14: every value of a configuration, hostile: a named error, before anything is allocated. In a process of its own, so
/// that what it allocates is its own.
#[test]
fn r14_hostile_configurations_are_refused_by_name() {
    if std::env::var_os(CHILD).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["r14_hostile_configurations_are_refused_by_name", "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let out = text(&output.stdout);
        print!("{}", out.lines().filter(|l| l.contains("R14") || l.starts_with("    ")).collect::<Vec<_>>().join("\n"));
        println!();
        return assert!(output.status.success(), "{out}{}", text(&output.stderr));
    }
    println!();
    let run = include_str!("../../../configs/passkey/selective-linear.toml");
    // what says nothing when it is 0 is not written out
    let zeros = ["sink", "kv_conv", "memory_heads", "memory_dim", "memory_conv", "top", "summaries"];
    let mut fields = Vec::new();
    leaves(&Config::parse(run, &[]).unwrap().to_toml().parse().unwrap(), "", &mut fields);
    fields.extend(zeros.map(|z| (format!("infini.{z}"), toml::Value::Integer(0))));
    let mut adapt_fields = Vec::new();
    let adapt = toml::to_string(&AdaptConfig::default()).unwrap();
    leaves(&adapt.parse().unwrap(), "", &mut adapt_fields);

    let home = Home::new();
    let mut base = folder::parts(&home.path("models/passkey")).unwrap().config;
    base.num_hidden_layers = 32;
    let train = |field: &str, value: &str| Config::parse(run, &[format!("{field}={value}")]).map(|_| ());
    let adapt = |field: &str, value: &str| {
        let (section, key) = field.split_once('.').unwrap();
        let c = AdaptConfig::parse(&format!("[{section}]\n{key} = {value}"))?;
        c.adapter.check(&base)
    };
    type Parse<'a> = &'a dyn Fn(&str, &str) -> infini::Result<()>;
    let readers = [("run", &fields, &train as Parse), ("adaptation", &adapt_fields, &adapt as Parse)];
    let (mut run, mut lost, mut refused, mut panicked) = (0, 0, 0, 0);
    let _ = train("train.steps", "-1");
    let before = addresses();
    for (what, fields, parse) in readers {
        for (field, value) in fields {
            // any number will do for these
            let free = ["seed", "_every", "warmup", ".end"].iter().any(|end| field.ends_with(end));
            let hostile: &[&str] = match value {
                toml::Value::Integer(_) if free => &["-1", "9223372036854775808", "nan", "\"many\"", "[]"],
                toml::Value::Integer(_) => {
                    &["-1", "9223372036854775807", "9223372036854775808", "nan", "\"many\"", "[]", "{}"]
                }
                toml::Value::Float(_) => &["nan", "inf", "-inf", "-1e300", "\"many\"", "[]"],
                toml::Value::Boolean(_) => &["2", "\"yes\"", "[]"],
                toml::Value::Array(_) => &["[-1]", "[nan]", "[9223372036854775807]", "[[]]", "-1"],
                _ => &["-1", "{}"],
            };
            for value in hostile {
                run += 1;
                let named = |e: &infini::Error| field.split('.').any(|part| e.to_string().contains(part));
                match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parse(field, value))) {
                    Ok(Err(e)) if named(&e) => refused += 1,
                    Ok(other) => {
                        lost += 1;
                        println!("    {what}: {field} = {value}: {other:?}");
                    }
                    Err(_) => panicked += 1,
                }
            }
        }
    }
    for unknown in ["model.layers=2", "infini.memory=1", "train.epochs=1", "data.books=1", "extra.x=1"] {
        run += 1;
        match Config::parse(include_str!("../../../configs/passkey/selective-linear.toml"), &[unknown.to_string()]) {
            Err(_) => refused += 1,
            Ok(_) => lost += 1,
        }
    }
    let grown = before.zip(addresses()).map(|(a, b)| b - a);
    print("R14 hostile configuration values, of runs and of adaptations", [run, lost, refused, panicked]);
    assert_eq!((lost, panicked), (0, 0));
    assert!(grown.is_none_or(|g| g <= 1 << 20), "{grown:?} bytes were allocated");
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

/// A disk that is full.
#[cfg(unix)]
mod full {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::process::Output;

    use super::*;

    /// How the disk is made full.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        /// No file may grow beyond so much (EFBIG): needs no rights.
        Limit,
        /// A file system of its own without room (ENOSPC): needs the right to mount one.
        Mounted,
    }

    /// `full/` in a home; unmounted in the end.
    struct Disk<'a>(&'a Home, Kind);

    impl<'a> Disk<'a> {
        fn new(home: &'a Home, kind: Kind) -> Option<Disk<'a>> {
            let path = home.path("full");
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            if kind == Kind::Mounted {
                let mut mount = std::process::Command::new("mount");
                mount.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&path).stderr(Stdio::null());
                mount.status().ok().filter(std::process::ExitStatus::success)?;
            }
            Some(Disk(home, kind))
        }

        /// Runs a command with room for `room` KiB more, or with files of at most so much.
        fn run(&self, arguments: &[&str], room: u64) -> Output {
            let command = self.0.command(arguments);
            match self.1 {
                Kind::Limit => {
                    // blocks of 512 bytes or of 1024, by the shell; the signal would kill before the error is seen
                    let mut shell = std::process::Command::new("sh");
                    shell.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", &room.to_string()]);
                    shell.arg(command.get_program()).args(command.get_args()).current_dir(self.0.0.path());
                    shell.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?)))).output().unwrap()
                }
                Kind::Mounted => {
                    let filler = self.0.path("full/filler");
                    let mut file = fs::File::create(&filler).unwrap();
                    let block = [0; 1024];
                    while std::io::Write::write_all(&mut file, &block).is_ok() {}
                    let len = file.metadata().unwrap().len();
                    file.set_len(len.saturating_sub(room << 10)).unwrap();
                    let output = { command }.output().unwrap();
                    fs::remove_file(filler).unwrap();
                    output
                }
            }
        }
    }

    impl Drop for Disk<'_> {
        fn drop(&mut self) {
            if self.1 == Kind::Mounted {
                let _ = std::process::Command::new("umount").arg(self.0.path("full")).status();
            }
        }
    }

    /// All files below a folder but those of metrics, which hold the clock.
    fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut out = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                out.extend(files(&path));
            } else if !["metrics", "events", "state.json"].iter().any(|clock| name.contains(clock)) {
                out.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        out
    }

    /// R5: a command that meets a full disk ends with exit code 1 and says so; what was there is as it was; with room again
    /// the same command ends as if the disk had never been full.
    #[test]
    fn r5_a_full_disk() {
        let home = Home::new();
        home.write("a.txt", &TEXT.repeat(40));
        home.write("tiny.toml", common::TRAIN);
        let train = |steps: &'static str| {
            ["train", "--config", "tiny.toml", "--out", "full/run", "--set", "train.checkpoint_every=1", "--set", steps]
        };
        let read = ["read", "a.txt", "--memory", "full/m.mem", "--append"];
        let prepare = ["data", "prepare", "a.txt", "--tokenizer", "models/passkey", "--shard-tokens", "500"];
        let prepare = [&prepare[..], &["--out", "full/shards"]].concat();
        let subjects = [
            ("memory file", Some(read[..4].to_vec()), read.to_vec()),
            ("checkpoints of a run", Some(train("train.steps=2").to_vec()), train("train.steps=4").to_vec()),
            ("token shards", None, prepare),
        ];
        let step = cases(8, 1);
        for (what, before, act) in &subjects {
            for kind in [Kind::Limit, Kind::Mounted] {
                let [mut run, mut lost, mut refused] = [0; 3];
                let mut expected = None;
                // once for what comes out with room enough, then with more and more of it
                for room in std::iter::once(0).chain((0..).step_by(step as usize)) {
                    let Some(disk) = Disk::new(&home, kind) else { break };
                    if let Some(before) = before {
                        home.ok(before);
                    }
                    let dir = home.path("full");
                    let old = files(&dir);
                    if expected.is_none() {
                        home.ok(act);
                        expected = Some(files(&dir));
                        continue;
                    }
                    let output = disk.run(act, room);
                    let complaint = text(&output.stderr);
                    // a checkpoint says how many seconds were computed: of a run its weights are compared
                    let same = || match what.starts_with("checkpoints") {
                        true => {
                            let weights = dir.join("run/model.safetensors");
                            expected.as_ref().unwrap()[&weights] == fs::read(&weights).unwrap()
                        }
                        false => files(&dir) == *expected.as_ref().unwrap(),
                    };
                    if output.status.success() {
                        // there was room enough
                        assert!(run > 0 && same(), "{what}: {complaint}");
                        break;
                    }
                    run += 1;
                    let told = ["No space left on device", "File too large"].iter().any(|m| complaint.contains(m));
                    let told = told && output.status.code() == Some(1) && !complaint.contains("panicked");
                    refused += u64::from(told);
                    // a memory file is one file; a checkpoint of before may have made room for one that was written whole
                    let kept = match *what {
                        "memory file" => files(&dir) == old,
                        "token shards" => true,
                        _ => infini_format::checkpoint::load(&RealIo, &dir.join("run/checkpoint"))
                            .is_ok_and(|c| c.is_some_and(|c| c.step >= 2 && c.warning.is_none())),
                    };
                    home.ok(act);
                    let same = same();
                    if !(told && kept && same) {
                        lost += 1;
                        println!("    {what}, {kind:?}, {room}: kept {kept}, gone on with {same}: {complaint}");
                    }
                }
                if run > 0 {
                    let how = if kind == Kind::Limit { "file size limit" } else { "tmpfs of 8 MiB" };
                    print(&format!("R5 disk full, {what} ({how})"), [run, lost, refused, 0]);
                } else {
                    println!("    {what}: no right to mount a file system that is full");
                }
                assert_eq!(lost, 0);
            }
        }
    }
}
