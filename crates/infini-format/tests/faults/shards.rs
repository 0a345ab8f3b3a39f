//! Token shards: what comes back, damage, hostile numbers, a disk that fails, files that change under the reader.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use infini_format::hash::sha256;
use infini_format::io::{Fault, FaultIo, Io, RealIo};
use infini_format::shards::{About, BLOCK, Corpus, MANIFEST, ReadAt, Shard, ShardError, Writer};

use crate::{Count, Rng, cases};

fn about(vocab_size: u64) -> About {
    About { tokenizer: sha256(b"tokenizer"), vocab_size, unwrapped: false }
}

/// Documents of these lengths; token i of document d is (7 d + i) mod 251.
fn document(d: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((7 * d + i) % 251) as u32).collect()
}

fn write(io: &dyn Io, dir: &Path, lens: &[usize], vocab: u64, capacity: u64) -> Result<u64, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (mut w, resumed) =
        Writer::begin(io, dir, &about(vocab), b"tokenizer", &sha256(b"inputs"), capacity).map_err(|e| text(&e))?;
    for (d, len) in lens.iter().enumerate().skip(resumed.done as usize) {
        w.start(&format!("book {d}")).map_err(|e| text(&e))?;
        for part in document(d, *len).chunks(37) {
            w.push(part).map_err(|e| text(&e))?;
        }
        w.end(*len as u64 * 3, *len as u64).map_err(|e| text(&e))?;
    }
    w.finish().map_err(|e| text(&e))
}

fn check(dir: &Path, lens: &[usize]) {
    let corpus = Corpus::open(dir).unwrap();
    let whole: Vec<_> = lens.iter().enumerate().filter(|(_, len)| **len > 0).collect();
    assert_eq!(corpus.documents().len(), whole.len());
    for (found, (d, len)) in corpus.documents().iter().zip(whole) {
        assert_eq!(found.name, format!("book {d}"));
        assert_eq!((found.bytes, found.words), (*len as u64 * 3, *len as u64));
        let mut tokens = Vec::new();
        corpus.read(found.tokens.clone(), &mut tokens).unwrap();
        assert_eq!(tokens, document(d, *len));
    }
    let mut all = Vec::new();
    corpus.read(0..corpus.len(), &mut all).unwrap();
    assert_eq!(all.len(), lens.iter().sum::<usize>());
}

#[test]
fn documents_of_any_length_come_back_from_shards_of_any_size() {
    let lens = [5, 0, 64, 1, 300, 63, 65, 128];
    for vocab in [251, 1 << 16, (1 << 16) + 1] {
        for capacity in [1, 64, 100, 1 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("corpus");
            assert_eq!(write(&RealIo, &dir, &lens, vocab, capacity).unwrap(), 626);
            check(&dir, &lens);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(write(&RealIo, dir.path(), &[0, 0], 251, 64).unwrap_err().contains("hold no token"));
}

#[test]
fn every_call_fails_in_turn_and_the_same_command_ends_the_work() {
    let lens = [5, 0, 64, 70];
    let mut count = Count::default();
    for fault in Fault::ALL {
        for nth in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("corpus");
            let io = FaultIo::failing(nth, fault);
            let result = write(&io, &dir, &lens, 251, 64);
            count.run += 1;
            match result {
                Ok(_) if io.failed().is_none() => break,
                Ok(_) => check(&dir, &lens),
                // what is there so far is gone on with, or was finished already
                Err(_) => {
                    count.refused += 1;
                    match write(&RealIo, &dir, &lens, 251, 64) {
                        Ok(_) => {}
                        Err(e) => assert!(e.contains("finished token shards"), "{e}"),
                    }
                    check(&dir, &lens);
                }
            }
        }
    }
    count.print("R3 shards, nth call of a writer fails");
}

/// A disk whose nth read fails; the calls are counted outside.
struct Failing {
    bytes: Vec<u8>,
    calls: Arc<AtomicU64>,
    nth: u64,
    kind: std::io::ErrorKind,
}

impl ReadAt for Failing {
    fn size(&self) -> std::io::Result<u64> {
        self.bytes.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        if self.calls.fetch_add(1, Ordering::Relaxed) + 1 == self.nth {
            // what arrived before the fault looks like tokens
            buffer.fill(0);
            return Err(self.kind.into());
        }
        self.bytes.read_exact_at(buffer, offset)
    }
}

#[test]
fn r3_every_read_fails_in_turn_and_the_next_one_is_whole() {
    let bytes = file(BLOCK + 5);
    let whole = read_all(bytes.clone()).unwrap();
    let mut count = Count::default();
    for kind in [std::io::ErrorKind::Other, std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::PermissionDenied] {
        for nth in 1.. {
            let calls = Arc::new(AtomicU64::new(0));
            let disk = Failing { bytes: bytes.clone(), calls: calls.clone(), nth, kind };
            let mut again = Vec::new();
            // opened, read in pieces, and after a fault read once more by the same reader
            let result = Shard::parse(disk).and_then(|shard| {
                let (mut out, parts) = (Vec::new(), shard.tokens() / 7 + 1);
                let mut result = Ok(());
                for from in (0..shard.tokens()).step_by(parts as usize) {
                    result = result.and(shard.read(from, shard.tokens().min(from + parts), &mut out));
                }
                shard.read(0, shard.tokens(), &mut again)?;
                result.map(|()| out)
            });
            if calls.load(Ordering::Relaxed) < nth {
                assert!(result.unwrap() == whole);
                break;
            }
            count.run += 1;
            count.refused += u64::from(result.is_err());
            count.lost += u64::from(result.is_ok() || !(again.is_empty() || again == whole));
        }
    }
    count.print("R3 shards, nth read fails");
    assert_eq!((count.lost, count.refused), (0, count.run));
}

const CHILD: &str = "INFINI_FAULTS_SHARDS";

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| {
        let e = e.unwrap();
        (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(entry).collect()
}

#[test]
fn r1_a_killed_writer_is_gone_on_with_to_the_same_bytes() {
    let lens: Vec<usize> = (0..60).map(|d| 40 + d % 7 * 30).collect();
    if let Some(dir) = std::env::var_os(CHILD) {
        // behind a line end: the test harness has written the test's name
        println!("\nready");
        match write(&RealIo, Path::new(&dir), &lens, 251, 64) {
            Ok(_) => return,
            // killed after its last act
            Err(e) => return assert!(e.contains("finished token shards"), "{e}"),
        }
    }
    let whole = tempfile::tempdir().unwrap();
    write(&RealIo, whole.path(), &lens, 251, 64).unwrap();
    let (mut count, mut rng) = (Count::default(), Rng(4));
    while count.run < cases(20, 1000) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("corpus");
        for attempt in 1.. {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["shards::r1_a_killed_writer_is_gone_on_with_to_the_same_bytes", "--exact", "--nocapture"])
                .env(CHILD, &dir)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(lines.any(|line| line == "ready"), "the child has started");
            std::thread::sleep(Duration::from_micros(rng.next() % (5_000 * attempt)));
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "attempt {attempt}: {status}");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            count.run += 1;
        }
        check(&dir, &lens);
        assert!(files(&dir) == files(whole.path()), "other files than an unbroken writer's");
    }
    count.print("R1 shards, kill -9");
}

/// A shard file of more than one block.
fn file(tokens: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    write(&RealIo, dir.path(), &[tokens / 3, tokens - tokens / 3], 251, 1 << 30).unwrap();
    std::fs::read(dir.path().join("shard-00000.tokens")).unwrap()
}

fn read_all(bytes: Vec<u8>) -> Result<Vec<u32>, ShardError> {
    let shard = Shard::parse(bytes)?;
    let mut out = Vec::new();
    shard.read(0, shard.tokens(), &mut out)?;
    Ok(out)
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let bytes = file(700);
    assert_eq!(read_all(bytes.clone()).unwrap().len(), 700);
    let mut count = Count::default();
    for len in 0..bytes.len() {
        let result = count.read(|| read_all(bytes[..len].to_vec()));
        let error = result.unwrap().unwrap_err();
        // behind the magic an error names the byte at which the file ends
        assert!(len < 8 || error.to_string().contains(&format!("byte {len} ")), "{len}: {error}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(count.read(|| read_all(bad)).unwrap().is_err(), "bit {bit}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(read_all(longer), Err(ShardError::TrailingBytes { .. })));
    count.print("R7 shards, cut at every byte, every bit flipped");
    assert_eq!((count.panicked, count.refused), (0, count.run));

    // a large one: only the block that is read tells
    let large = file(BLOCK + 5);
    let mut rng = Rng(3);
    for _ in 0..cases(5, 1000) {
        let at = 144 + rng.below(large.len() - 400);
        let mut bad = large.clone();
        bad[at] ^= 0x10;
        let e = read_all(bad).unwrap_err();
        assert!(matches!(e, ShardError::BlockDamaged { .. }), "{e}");
    }
}

/// Writes the two digests of a header anew, as a forger would.
fn forge(bytes: &mut [u8], change: impl FnOnce(&mut [u8])) {
    change(bytes);
    let digest = |b: &[u8]| -> Vec<u8> {
        let hex = sha256(b);
        (0..32).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let tokens = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
    let index = tokens.saturating_mul(2).saturating_add(144).min(bytes.len() as u64) as usize;
    let index = digest(&bytes[index..]);
    bytes[80..112].copy_from_slice(&index);
    let header = digest(&bytes[..112]);
    bytes[112..144].copy_from_slice(&header);
}

#[test]
fn hostile_numbers_are_refused_before_anything_is_allocated() {
    let bytes = file(700);
    for value in [0, 1, 2, u64::MAX, u64::MAX / 2, 1 << 40, 1 << 63] {
        // two documents is the truth
        for at in [16, 24, 32, 40].into_iter().filter(|at| (*at, value) != (32, 2)) {
            let mut bad = bytes.clone();
            forge(&mut bad, |b| b[at..at + 8].copy_from_slice(&u64::to_le_bytes(value)));
            assert!(read_all(bad).is_err(), "{value} at {at}");
        }
        // ends and names of the index
        for at in [0, 24, 33, 57] {
            // a first document may be short, and its name too
            if (at == 0 && (1..3).contains(&value)) || (at == 24 && value < 3) {
                continue;
            }
            let mut bad = bytes.clone();
            forge(&mut bad, |b| b[1544 + at..1544 + at + 8].copy_from_slice(&u64::to_le_bytes(value)));
            assert!(read_all(bad).is_err(), "{value} at {at} of the index");
        }
    }
    let refused = |change: &dyn Fn(&mut [u8])| {
        let mut bad = bytes.clone();
        forge(&mut bad, change);
        read_all(bad).unwrap_err().to_string()
    };
    assert!(refused(&|b| b[8] = 2).contains("version 2"));
    assert!(refused(&|b| b[12] = 4).contains("width"));
    assert!(refused(&|b| b[1544 + 32] = 1).contains("goes on"));
    assert!(refused(&|b| b[1544 + 66] = 0xff).contains("UTF-8"));
    // honest in all but the vocabulary
    assert!(refused(&|b| b[16] = 100).contains("vocabulary has 100 entries"));
}

#[test]
fn a_shard_that_changes_under_the_reader_is_noticed() {
    let lens = [500, 500];
    type Change = fn(&Path);
    let changes: [Change; 4] = [
        |file| std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(300).unwrap(),
        |file| {
            let copy = file.with_extension("copy");
            std::fs::copy(file, &copy).unwrap();
            std::fs::rename(copy, file).unwrap();
        },
        |file| std::fs::remove_file(file).unwrap(),
        |file| {
            use std::io::Write;
            std::fs::OpenOptions::new().append(true).open(file).unwrap().write_all(b"x").unwrap();
        },
    ];
    for change in changes {
        let dir = tempfile::tempdir().unwrap();
        write(&RealIo, dir.path(), &lens, 251, 1 << 20).unwrap();
        let corpus = Corpus::open(dir.path()).unwrap();
        let mut tokens = Vec::new();
        corpus.read(0..10, &mut tokens).unwrap();
        change(&dir.path().join("shard-00000.tokens"));
        let e = corpus.read(10..20, &mut tokens).unwrap_err();
        assert!(matches!(e.error, ShardError::Changed) && e.to_string().contains("shard-00000"), "{e}");
    }
}

#[test]
fn the_manifest_is_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Corpus::open(dir.path()).unwrap_err().to_string().contains("no token shards"));
    write(&RealIo, dir.path(), &[500, 500], 251, 300).unwrap();
    let path = dir.path().join(MANIFEST);
    let good = std::fs::read(&path).unwrap();
    for bit in (0..good.len() * 8).step_by(37) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bad).unwrap();
        assert!(Corpus::open(dir.path()).is_err(), "bit {bit}");
    }
    std::fs::write(&path, &good).unwrap();
    check(dir.path(), &[500, 500]);
    // one shard in place of another
    std::fs::copy(dir.path().join("shard-00000.tokens"), dir.path().join("shard-00001.tokens")).unwrap();
    assert!(matches!(Corpus::open(dir.path()).unwrap_err().error, ShardError::OtherShard));
}
