//! R9, R11: malformed safetensors and memory files.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use infini_format::limits::{HEADER_VALUES, NAME_BYTES, TENSOR_COUNT, TENSORS};
use infini_format::memory::{decode, encode};
use infini_format::shards::Shard;
use infini_format::tensors::{Tensor, TensorError, TensorFile, serialize};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use safetensors::{Dtype, SafeTensors};

use crate::{Count, Rng, cases, forge, small_file, tensors, views};

/// Whether the crate accepts the bytes and the result is within our limits: the rule, written a second time.
fn should_accept(bytes: &[u8]) -> bool {
    // The crate adds three sizes without a check: built with overflow checks, a sum above 2^64 panics.
    let Ok(Ok(file)) = catch_unwind(AssertUnwindSafe(|| SafeTensors::deserialize(bytes))) else { return false };
    let known = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I64, Dtype::I32, Dtype::U8];
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    file.len() <= TENSOR_COUNT
        && values(&header) <= HEADER_VALUES
        && file
            .iter()
            .all(|(name, t)| name.len() <= NAME_BYTES && t.shape().len() <= TENSORS.dims && known.contains(&t.dtype()))
}

fn values(value: &serde_json::Value) -> usize {
    1 + match value {
        serde_json::Value::Array(all) => all.iter().map(values).sum(),
        serde_json::Value::Object(all) => all.values().map(|v| 1 + values(v)).sum(),
        _ => 0,
    }
}

/// Both must say the same, and what is accepted must hold the same.
fn agree(count: &mut Count, bytes: &[u8]) -> Result<(), TestCaseError> {
    let ours = count.read(|| TensorFile::parse(bytes.to_vec()));
    let Some(ours) = ours else { return Err(TestCaseError::fail("panicked")) };
    prop_assert_eq!(ours.is_ok(), should_accept(bytes), "{:?}: {:?}", ours.err(), String::from_utf8_lossy(bytes));
    if let Ok(file) = ours {
        let theirs = SafeTensors::deserialize(bytes).unwrap();
        prop_assert_eq!(file.len(), theirs.len());
        for (name, t) in file.iter() {
            let other = theirs.tensor(name).unwrap();
            prop_assert_eq!((t.shape, t.bytes), (other.shape(), other.data()));
        }
    }
    Ok(())
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

/// Pieces of headers: what is right, what is nearly right, and what was an attack on some reader.
const PIECES: &[&str] = &[
    r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
    r#""b":{"dtype":"U8","shape":[2,2],"data_offsets":[8,12]}"#,
    r#""c":{"dtype":"F64","shape":[],"data_offsets":[12,20]}"#,
    r#""a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}"#,
    r#""b":{"dtype":"BOOL","shape":[4],"data_offsets":[8,12]}"#,
    r#""b":{"dtype":"F4","shape":[8],"data_offsets":[8,12]}"#,
    r#""b":{"dtype":"I32","shape":[1],"data_offsets":[8,12],"more":null}"#,
    r#""d":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[20,20]}"#,
    r#""d":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[20,20]}"#,
    r#""d":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#,
    r#""d":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#,
    r#""d":{"dtype":"F32","shape":[1],"data_offsets":[16,20]}"#,
    r#""d":{"dtype":"F32","shape":[-1],"data_offsets":[20,24]}"#,
    r#""d":{"dtype":"F32","shape":[1e0],"data_offsets":[20,24]}"#,
    r#""d":["F32",[1],[20,24]]"#,
    r#""d":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[20,24]}"#,
    r#""\u0064":{"dtype":"F32","shape":[1],"data_offsets":[20,24]}"#,
    r#""\ud800":{"dtype":"F32","shape":[1],"data_offsets":[20,24]}"#,
    r#""d":{"dtype":"F32","shape":[1],"data_offsets":[20,24]}"#,
    r#""d":{"dtype":"I64","shape":[0],"data_offsets":[20,20]}"#,
    r#""d":{"dtype":"I64","shape":[0],"data_offsets":[0,0]}"#,
    r#""__metadata__":{"k":"v"}"#,
    r#""__metadata__":{"k":1}"#,
    r#""__metadata__":null"#,
    r#""__metadata__":{}"#,
    r#""e":[[[[[[[[]]]]]]]]"#,
    r#""e":1e999"#,
    "",
];

/// A header that begins well, maybe with other pieces behind, then maybe some edits of the bytes.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    const GOOD: [usize; 4] = [0, 8, 12, 20];
    let more = prop_oneof![
        1 => Just(vec![]),
        2 => proptest::collection::vec(proptest::sample::select(PIECES), 1..4),
    ];
    let start =
        (0..GOOD.len(), more).prop_map(|(good, more)| ([&PIECES[..good], &more].concat().join(","), GOOD[good]));
    let edit = (any::<proptest::sample::Index>(), any::<u8>(), 0..4u8);
    let edits = prop_oneof![2 => Just(vec![]), 1 => proptest::collection::vec(edit, 1..4)];
    let other = prop_oneof![4 => Just(0usize), 1 => 1..32usize];
    (start, other, edits, 0..3usize).prop_map(|((header, data), other, edits, blanks)| {
        let mut bytes = file(&format!("{{{header}}}{}", " ".repeat(blanks)), data + other);
        for (at, value, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

#[test]
fn r9_malformed_safetensors() {
    let config = Config { cases: cases(20_000, 3_000_000) as u32, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let count = std::cell::RefCell::new(Count::default());
    runner.run(&mutated(), |bytes| agree(&mut count.borrow_mut(), &bytes)).unwrap();
    let mut count = count.into_inner();

    // Every flipped bit of a file of ours.
    let good = serialize(&views(&tensors(1, 3)), &BTreeMap::from([("k".into(), "v".into())])).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        agree(&mut count, &bad).unwrap();
    }
    count.print("R9 malformed safetensors (lost = disagreements with the safetensors crate)");
    let accepted = count.run - count.refused;
    assert!(accepted > count.run / 10 && count.refused > count.run / 4, "{count:?}");
    assert_eq!(count.panicked, 0);
}

/// Sizes whose sum leaves 64 bits: refused by us, where the crate's own `deserialize` panics under overflow checks.
#[test]
fn sizes_that_overflow_are_refused() {
    let step = (1u64 << 61) - 1;
    let tensor = |i: u64| {
        let (start, end) = (i * step, (i + 1) * step);
        format!(r#""{i}":{{"dtype":"U8","shape":[{step}],"data_offsets":[{start},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..8).map(tensor).collect::<Vec<_>>().join(","));
    let error = TensorFile::parse(file(&header, 0)).unwrap_err();
    assert!(matches!(error, TensorError::Truncated { expected: u64::MAX, .. }), "{error}");
}

/// Nesting is refused, not followed onto the stack's end.
#[test]
fn deep_nesting_is_refused() {
    for open in ["[", r#"{"a":"#] {
        let header = format!(r#"{{"a":{}"#, open.repeat(100_000));
        let error = TensorFile::parse(file(&header, 0)).unwrap_err();
        assert!(matches!(error, TensorError::HeaderMalformed { .. }), "{error}");
    }
}

/// One change of a memory file's structure; seal and checksums are made to hold again afterwards.
fn change(rng: &mut Rng, texts: &mut BTreeMap<String, String>, tensors: &mut BTreeMap<String, Tensor>) {
    const TEXTS: [&str; 16] = [
        "",
        "0",
        "1",
        "2",
        "-1",
        "18446744073709551615",
        "18446744073709551616",
        "1e3",
        "null",
        "[]",
        "{}",
        "[\"a\"]",
        "{\"a\":\"b\"}",
        "\"",
        "\u{0}",
        "infini-memory",
    ];
    fn pick<T>(rng: &mut Rng, map: &BTreeMap<String, T>) -> String {
        map.keys().nth(rng.below(map.len().max(1))).cloned().unwrap_or_default()
    }
    let (text, tensor) = (pick(rng, texts), pick(rng, tensors));
    match rng.below(10) {
        0 => drop(texts.remove(&text)),
        1 => drop(texts.insert(text, TEXTS[rng.below(TEXTS.len())].into())),
        2 => drop(texts.insert(text, "[".repeat(rng.below(300)))),
        3 => drop(texts.insert(TEXTS[rng.below(TEXTS.len())].into(), "more".into())),
        4 => {
            // two texts change places
            let other = pick(rng, texts);
            if let (Some(a), Some(b)) = (texts.remove(&text), texts.remove(&other)) {
                texts.extend([(text, b), (other, a)]);
            }
        }
        5 => drop(tensors.remove(&tensor)),
        6 => drop(tensors.insert(TEXTS[rng.below(TEXTS.len())].into(), Tensor::u8(&[1], &[1]).unwrap())),
        7 => {
            if let Some(t) = tensors.get_mut(&tensor)
                && !t.bytes.is_empty()
            {
                let at = rng.below(t.bytes.len());
                t.bytes[at] = rng.next() as u8;
            }
        }
        8 => {
            if let Some(t) = tensors.get_mut(&tensor) {
                t.shape.insert(rng.below(t.shape.len() + 1), 1);
            }
        }
        _ => {
            // the list of checksums, changed as JSON
            let list = texts.get("tensors").and_then(|l| serde_json::from_str::<serde_json::Value>(l).ok());
            if let Some(serde_json::Value::Object(mut list)) = list {
                match rng.below(3) {
                    0 => drop(list.remove(&tensor)),
                    1 => drop(list.insert(tensor, serde_json::json!([1]))),
                    _ => drop(list.insert("ghost".into(), "0".repeat(64).into())),
                }
                texts.insert("tensors".into(), serde_json::to_string(&list).unwrap());
            }
        }
    }
}

#[test]
fn r11_malformed_memory_files() {
    let good = small_file();
    let mut rng = Rng(11);
    let mut count = Count::default();
    let mut accepted = 0;
    for case in 0..cases(10_000, 2_000_000) {
        let forged = forge(&good, |texts, tensors| {
            for _ in 0..=rng.below(3) {
                change(&mut rng, texts, tensors);
            }
        });
        // What breaks a limit of every safetensors file cannot be forged.
        let Ok(mut bytes) = forged else { continue };
        // Some are damaged besides.
        if case % 4 == 0 {
            let at = rng.below(bytes.len());
            bytes[at] = rng.next() as u8;
        }
        if let Some(Ok((header, file))) = count.read(|| decode(bytes)) {
            // What is accepted has a meaning: it is written and read back as the same.
            let views: Vec<_> = file.iter().collect();
            let (again, file_again) = decode(encode(&header, &views).unwrap()).unwrap();
            assert_eq!(again, header);
            assert!(file.iter().eq(file_again.iter()));
            accepted += 1;
        }
    }
    count.print(&format!("R11 malformed memory files (accepted, and written back the same: {accepted})"));
    assert!(accepted > 100 && count.refused > count.run / 2, "{count:?}");
    assert_eq!(count.panicked, 0);
}

/// The fuzzer's seeds, among them every input that once crashed a reader.
#[test]
fn seeds_of_the_fuzzer() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let read = |target: &str| -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(seeds.join(target)).unwrap();
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    };
    let mut count = Count::default();
    let (tensors, memories, shards) = (read("tensors"), read("memory"), read("shards"));
    tensors.iter().for_each(|bytes| agree(&mut count, bytes).unwrap());
    memories.iter().for_each(|bytes| drop(count.read(|| decode(bytes.clone()))));
    shards.iter().for_each(|bytes| drop(count.read(|| Shard::parse(bytes.clone()))));
    count.print("R9, R11 seeds of the fuzzer");
    assert!(tensors.len() > 3 && !memories.is_empty() && !shards.is_empty());
    assert!(count.panicked == 0 && count.refused > 0 && count.refused < count.run);
}
