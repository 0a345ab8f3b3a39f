//! Fault tests: killed writers, failing disks, power loss, damaged and hostile files.
//!
//! Each prints one line of counts. `INFINI_FAULTS_LONG=1` runs the long forms.

mod checkpoint;
mod damage;
mod disk;
mod gguf;
mod hostile;
mod kill;
mod limits;
mod shards;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use infini_format::hash::sha256;
use infini_format::memory::{MemoryHeader, Partner};
use infini_format::tensors::{Tensor, TensorFile, TensorView, serialize};

/// Whether the long forms were asked for.
fn long() -> bool {
    std::env::var_os("INFINI_FAULTS_LONG").is_some_and(|v| v == "1")
}

/// `short` cases in a test, `long` when asked for.
fn cases(short: u64, long_form: u64) -> u64 {
    if long() { long_form } else { short }
}

/// What became of the cases of a test.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    run: u64,
    lost: u64,
    refused: u64,
    panicked: u64,
}

impl Count {
    fn print(&self, what: &str) {
        let Count { run, lost, refused, panicked } = self;
        println!("{what}: run {run}, lost {lost}, refused {refused}, panicked {panicked}");
    }

    /// Counts what a reader made of a damaged file; what it accepted is returned.
    fn read<T, E>(&mut self, read: impl FnOnce() -> Result<T, E>) -> Option<Result<T, E>> {
        self.run += 1;
        let result = catch_unwind(AssertUnwindSafe(read)).ok();
        match &result {
            None => self.panicked += 1,
            Some(Err(_)) => self.refused += 1,
            Some(Ok(_)) => {}
        }
        result
    }
}

/// SplitMix64: random enough for faults, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn partner() -> Partner {
    Partner {
        weights: sha256(b"weights"),
        adapter: Some(sha256(b"adapter")),
        tokenizer: sha256(b"tokenizer"),
        config: sha256(b"config"),
        segment_len: 64,
    }
}

fn header(generation: u64) -> MemoryHeader {
    MemoryHeader {
        partner: partner(),
        generation,
        position: 1_000 * generation,
        sources: vec!["a.txt".into(), "the \"seal\":\"of\" b.txt".into()],
        settings: serde_json::json!({"span": 2, "rule": "linear"}),
    }
}

/// One tensor of each type; the floats hold `n` values each, which depend on `seed` and are within what an F16 can hold.
fn tensors(seed: u64, n: usize) -> Vec<(&'static str, Tensor)> {
    let floats: Vec<f32> = (0..n).map(|i| (seed % 1_000) as f32 + (i % 10_000) as f32 / 7.0).collect();
    let doubles: Vec<f64> = floats.iter().map(|v| f64::from(*v)).collect();
    vec![
        ("layers.0.M", Tensor::f32(&[1, n], &floats).unwrap()),
        ("layers.0.z", Tensor::f64(&[n], &doubles).unwrap()),
        ("layers.0.k", Tensor::bf16(&[n, 1], &floats).unwrap()),
        ("layers.0.v", Tensor::f16(&[n], &floats).unwrap()),
        ("ids", Tensor::i64(&[2], &[seed as i64, -1]).unwrap()),
        ("count", Tensor::i32(&[], &[7]).unwrap()),
        ("resets", Tensor::u8(&[3], &[0, 1, 0]).unwrap()),
    ]
}

fn views<'a>(tensors: &'a [(&'static str, Tensor)]) -> Vec<(&'a str, TensorView<'a>)> {
    tensors.iter().map(|(name, t)| (*name, t.view())).collect()
}

/// A small memory file.
fn small_file() -> Vec<u8> {
    infini_format::memory::encode(&header(1), &views(&tensors(1, 5))).unwrap()
}

/// Rewrites a memory file after `change` altered its texts and tensors, with a seal and checksums that hold: the work of
/// a forger, or of a writer with a fault of its own.
fn forge(
    bytes: &[u8],
    change: impl FnOnce(&mut BTreeMap<String, String>, &mut BTreeMap<String, Tensor>),
) -> Result<Vec<u8>, infini_format::tensors::TensorError> {
    let file = TensorFile::parse(bytes.to_vec())?;
    let mut texts = file.metadata.clone();
    let mut tensors: BTreeMap<String, Tensor> = file
        .iter()
        .map(|(name, t)| (name.into(), Tensor { dtype: t.dtype, shape: t.shape.to_vec(), bytes: t.bytes.to_vec() }))
        .collect();
    let hashes = |tensors: &BTreeMap<String, Tensor>| -> BTreeMap<String, String> {
        tensors.iter().map(|(name, t)| (name.clone(), sha256(&t.bytes))).collect()
    };
    let listed = texts.get("tensors").cloned();
    change(&mut texts, &mut tensors);
    // A change of the list itself stays.
    if texts.get("tensors") == listed.as_ref() {
        texts.insert("tensors".into(), serde_json::to_string(&hashes(&tensors)).unwrap());
    }
    texts.insert("seal".into(), "0".repeat(64));
    let views: Vec<_> = tensors.iter().map(|(name, t)| (name.as_str(), t.view())).collect();
    Ok(seal(serialize(&views, &texts)?))
}

/// Closes the seal of a file whose seal is zeros: the documented format, written a second time.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let marker = b"\"seal\":\"";
    let at = 8 + bytes[8..end].windows(marker.len()).position(|w| w == marker).unwrap() + marker.len();
    let digest = sha256(&bytes[8..end]);
    bytes[at..at + 64].copy_from_slice(digest.as_bytes());
    bytes
}
