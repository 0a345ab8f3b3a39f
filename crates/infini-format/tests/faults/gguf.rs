//! R10: malformed GGUF files, those of published attacks on other readers among them.

use std::path::Path;
use std::process::Command;

use infini_format::gguf::Gguf;
use infini_format::limits::{GGUF_ARRAYS, GGUF_KEYS, TENSOR_COUNT};

use crate::{Count, Rng, cases};

fn seeds() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/gguf");
    let files = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    let mut all: Vec<_> =
        files.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap())).collect();
    all.sort();
    all
}

/// Reads every value of a file.
fn read(bytes: Vec<u8>) -> Result<usize, String> {
    let file = Gguf::parse(bytes).map_err(|e| e.to_string())?;
    for (name, t) in file.iter() {
        assert_eq!(t.to_f32().len(), t.shape.iter().product::<usize>(), "{name}");
    }
    Ok(file.iter().count())
}

/// Numbers at which other readers' arithmetic wrapped.
const NUMBERS: [u64; 12] = [0, 1, 3, 31, 1 << 16, 1 << 31, 1 << 32, 1 << 40, 1 << 61, 1 << 63, u64::MAX / 18, u64::MAX];

#[test]
fn r10_malformed_gguf() {
    let seeds = seeds();
    let (mut count, mut accepted) = (Count::default(), 0);
    for (name, bytes) in &seeds {
        let result = count.read(|| read(bytes.clone())).unwrap();
        assert_eq!(result.is_ok(), name == "valid", "{name}: {result:?}");
        accepted += u64::from(result.is_ok());
    }
    let valid = seeds.iter().position(|(name, _)| name == "valid").unwrap();
    let mut rng = Rng(10);
    for _ in 0..cases(20_000, 5_000_000) {
        // half of them begin with a file that holds
        let seed = if rng.below(2) == 0 { valid } else { rng.below(seeds.len()) };
        let mut bytes = seeds[seed].1.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len());
            match rng.below(4) {
                0 => bytes[at] = rng.next() as u8,
                1 => bytes[at] ^= 1 << rng.below(8),
                2 => bytes.truncate(at.max(1)),
                // a count, a length, a size or an offset, wherever it may be
                _ => {
                    let n = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].copy_from_slice(&n[..end - at]);
                }
            }
        }
        if let Some(Ok(_)) = count.read(|| read(bytes)) {
            accepted += 1;
        }
    }
    count.print(&format!(
        "R10 malformed GGUF, a seed for each CVE among them (accepted, and read to the end: {accepted})"
    ));
    assert_eq!((count.panicked, count.refused + accepted), (0, count.run));
    assert!(accepted > count.run / 50 && count.refused > count.run / 2, "{count:?}");
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

/// A file of `tensors` and `keys` as their bytes, and `n` zeros of data.
fn file(tensors: &[Vec<u8>], keys: &[Vec<u8>], n: usize) -> Vec<u8> {
    let counts = [tensors.len() as u64, keys.len() as u64].map(u64::to_le_bytes).concat();
    let mut out = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &keys.concat(), &tensors.concat()].concat();
    out.resize(out.len().next_multiple_of(32) + n, 0);
    out
}

fn array(key: &str, kind: u32, n: usize, element: &[u8]) -> Vec<u8> {
    [&text(key)[..], &9u32.to_le_bytes(), &kind.to_le_bytes(), &(n as u64).to_le_bytes(), &element.repeat(n)].concat()
}

/// Files that hold as much as the limits allow of what takes more room in memory than on the disk, or that promise it.
fn greedy(which: &str) -> Vec<u8> {
    let tensor = |i: usize, dims: &[u64], kind: u32| {
        let dims: Vec<u8> =
            [(dims.len() as u32).to_le_bytes().to_vec(), dims.iter().flat_map(|d| d.to_le_bytes()).collect()].concat();
        [&text(&format!("t{i}"))[..], &dims, &kind.to_le_bytes(), &0u64.to_le_bytes()].concat()
    };
    match which {
        "bytes as integers" => file(&[], &[array("k", 0, GGUF_ARRAYS, &[1])], 0),
        "empty texts" => file(&[], &[array("k", 8, GGUF_ARRAYS, &[0; 8])], 0),
        "texts of a byte" => file(&[], &[array("k", 8, GGUF_ARRAYS, &text("x"))], 0),
        "keys" => {
            let key = |i| [&text(&format!("key {i}"))[..], &0u32.to_le_bytes(), &[1]].concat();
            file(&[], &(0..GGUF_KEYS).map(key).collect::<Vec<_>>(), 0)
        }
        "tensors without elements" => {
            file(&(0..TENSOR_COUNT).map(|i| tensor(i, &[0, 1 << 40], 0)).collect::<Vec<_>>(), &[], 0)
        }
        // CVE-2026-33298: exabytes in the header, nothing behind it
        "exabytes" => file(&[tensor(0, &[1 << 30, 1 << 30], 0)], &[], 0),
        "large" => file(&[tensor(0, &[1 << 23], 0)], &[], 4 << 23),
        _ => unreachable!("{which}"),
    }
}

const GREEDY: [&str; 7] =
    ["bytes as integers", "empty texts", "texts of a byte", "keys", "tensors without elements", "exabytes", "large"];
const CHILD: &str = "INFINI_FAULTS_GGUF";

/// Most bytes that were ever resident; none where the system does not tell.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Each in a process of its own, because a peak never falls.
#[test]
fn r10_parsing_takes_at_most_twice_the_file_and_64_mib() {
    if let Some(path) = std::env::var_os(CHILD) {
        let bytes = std::fs::read(path).unwrap();
        let len = bytes.len() as u64;
        let before = peak().unwrap();
        let _ = std::hint::black_box(Gguf::parse(bytes));
        // the file itself was there before
        println!("\npeak {} of {}", peak().unwrap() - before + len, 2 * len + (64 << 20));
        return;
    }
    if peak().is_none() {
        return println!("the peak of a process's memory is not told here");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut count = Count::default();
    let mut worst = (0.0, "");
    for which in GREEDY {
        let path = dir.path().join("file");
        std::fs::write(&path, greedy(which)).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["gguf::r10_parsing_takes_at_most_twice_the_file_and_64_mib", "--exact", "--nocapture"])
            .env(CHILD, &path)
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = out.lines().find_map(|l| l.strip_prefix("peak ")?.split_once(" of "));
        let Some((peak, limit)) = told else { panic!("{which}: {out}") };
        count.run += 1;
        let share = peak.parse::<f64>().unwrap() / limit.parse::<f64>().unwrap();
        worst = if share > worst.0 { (share, which) } else { worst };
        count.lost += u64::from(share > 1.0);
    }
    let (share, which) = (100.0 * worst.0, worst.1);
    count.print(&format!("R10 GGUF, peak RSS over 2 x file + 64 MiB (lost = above; most {share:.0} %: {which})"));
    assert_eq!(count.lost, 0);
}
