//! Each limit: the last value that is allowed, and the first that is not.

use std::collections::BTreeMap;

use infini_format::checkpoint::{self, CheckpointError, MANIFEST};
use infini_format::io::{IoError, RealIo};
use infini_format::limits::*;
use infini_format::memory::{self, MemoryError};
use infini_format::tensors::{Tensor, TensorError, TensorFile, serialize};

use crate::{header, tensors, views};

/// A file with this header and `data` zeros behind it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(header: &str, data: usize) -> Result<usize, TensorError> {
    TensorFile::parse(file(header, data)).map(|f| f.len())
}

fn empty_tensor(name: &str, shape: &str) -> String {
    format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,0]}}"#)
}

#[test]
fn tensors_in_a_file() {
    let header = |n: usize| {
        let all: Vec<String> = (0..n).map(|i| empty_tensor(&i.to_string(), "[0]")).collect();
        format!("{{{}}}", all.join(","))
    };
    assert_eq!(parse(&header(TENSOR_COUNT), 0).unwrap(), TENSOR_COUNT);
    assert!(matches!(parse(&header(TENSOR_COUNT + 1), 0), Err(TensorError::TooManyTensors { .. })));

    let empty = Tensor::u8(&[0], &[]).unwrap();
    let names: Vec<String> = (0..=TENSOR_COUNT).map(|i| i.to_string()).collect();
    let mut all: Vec<_> = names.iter().map(|n| (n.as_str(), empty.view())).collect();
    assert!(matches!(serialize(&all, &BTreeMap::new()), Err(TensorError::TooManyTensors { .. })));
    all.pop();
    assert!(serialize(&all, &BTreeMap::new()).is_ok());
}

#[test]
fn dimensions_of_a_tensor() {
    let shape = |n: usize| format!("[{}]", vec!["0"; n].join(","));
    let header = |n: usize| format!("{{{}}}", empty_tensor("a", &shape(n)));
    assert!(parse(&header(TENSORS.dims), 0).is_ok());
    assert!(matches!(parse(&header(TENSORS.dims + 1), 0), Err(TensorError::TooManyDims { .. })));
    let deep = Tensor::u8(&[1; 9], &[1]).unwrap();
    assert!(matches!(serialize(&[("a", deep.view())], &BTreeMap::new()), Err(TensorError::TooManyDims { .. })));

    let four = Tensor::u8(&[1; 4], &[1]).unwrap();
    let five = Tensor::u8(&[1; 5], &[1]).unwrap();
    assert!(memory::decode(memory::encode(&header_(), &[("a", four.view())]).unwrap()).is_ok());
    let error = memory::encode(&header_(), &[("a", five.view())]).unwrap_err();
    assert!(matches!(error, MemoryError::Tensors(TensorError::TooManyDims { max: 4, .. })), "{error}");
    assert_eq!(MEMORY.dims, 4);
}

fn header_() -> memory::MemoryHeader {
    header(1)
}

#[test]
fn names_of_tensors() {
    let header = |n: usize| format!("{{{}}}", empty_tensor(&"a".repeat(n), "[0]"));
    assert!(parse(&header(NAME_BYTES), 0).is_ok());
    assert!(matches!(parse(&header(NAME_BYTES + 1), 0), Err(TensorError::NameTooLong { .. })));
    let t = Tensor::u8(&[], &[1]).unwrap();
    let write = |name: &str| serialize(&[(name, t.view())], &BTreeMap::new());
    assert!(matches!(write(&"é".repeat(129)), Err(TensorError::NameTooLong { len: 258, .. })));
    assert!(matches!(write("__metadata__"), Err(TensorError::ReservedName)));
    let twice = serialize(&[("a", t.view()), ("a", t.view())], &BTreeMap::new());
    assert!(matches!(twice, Err(TensorError::DuplicateName { .. })));
}

#[test]
fn values_in_a_header() {
    // beside the padding: the outer map, the name, the tensor's map, four keys and four values, two offsets, one size
    let beside = 1 + 1 + 1 + 4 + 4 + 2 + 1;
    let header = |n: usize| {
        let zeros = vec!["0"; n - beside].join(",");
        format!(r#"{{"a":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":[{zeros}]}}}}"#)
    };
    assert!(parse(&header(HEADER_VALUES), 0).is_ok());
    assert!(matches!(parse(&header(HEADER_VALUES + 1), 0), Err(TensorError::TooManyValues { .. })));

    let texts = |n: usize| -> BTreeMap<String, String> { (0..n).map(|i| (i.to_string(), String::new())).collect() };
    // the outer map, `__metadata__` and its map; two values for each text
    let most = (HEADER_VALUES - 3) / 2;
    let bytes = serialize(&[], &texts(most)).unwrap();
    assert_eq!(TensorFile::parse(bytes).unwrap().metadata.len(), most);
    assert!(matches!(serialize(&[], &texts(most + 1)), Err(TensorError::TooManyValues { .. })));
}

#[test]
fn bytes_of_texts() {
    let beside = "__metadata__".len() + "k".len();
    let header = |n: usize| format!(r#"{{"__metadata__":{{"k":"{}"}}}}"#, "a".repeat(n - beside));
    assert!(parse(&header(TEXT_BYTES), 0).is_ok());
    assert!(matches!(parse(&header(TEXT_BYTES + 1), 0), Err(TensorError::TooMuchText { .. })));
    let texts = |n: usize| BTreeMap::from([("k".into(), "a".repeat(n - beside))]);
    assert!(serialize(&[], &texts(TEXT_BYTES)).is_ok());
    assert!(matches!(serialize(&[], &texts(TEXT_BYTES + 1)), Err(TensorError::TooMuchText { .. })));
}

#[test]
fn bytes_of_a_header() {
    // The number alone decides: nothing is allocated for it.
    let claim = |n: usize| TensorFile::parse((n as u64).to_le_bytes().to_vec()).unwrap_err();
    assert!(matches!(claim(TENSORS.header_bytes), TensorError::Truncated { .. }));
    assert!(matches!(claim(TENSORS.header_bytes + 1), TensorError::HeaderTooLarge { .. }));
    assert!(matches!(claim(usize::MAX), TensorError::HeaderTooLarge { .. }));

    // The longest list of sources that fits, found by bisection over the writer, is read back.
    let with = |n: usize| memory::MemoryHeader { sources: vec!["a".repeat(n)], ..header(1) };
    let views_of = tensors(1, 1);
    let write = |n: usize| memory::encode(&with(n), &views(&views_of));
    let (mut fits, mut not) = (0, MEMORY.header_bytes);
    while not - fits > 1 {
        let n = usize::midpoint(fits, not);
        if write(n).is_ok() { fits = n } else { not = n }
    }
    let bytes = write(fits).unwrap();
    assert_eq!(bytes[..8], (MEMORY.header_bytes as u64).to_le_bytes());
    assert_eq!(memory::decode(bytes).unwrap().0, with(fits));
    let error = write(not).unwrap_err();
    assert!(matches!(error, MemoryError::Tensors(TensorError::HeaderTooLarge { .. })), "{error}");
    let longer = file(&format!("{{{}}}", " ".repeat(MEMORY.header_bytes - 1)), 0);
    let error = memory::decode(longer).unwrap_err();
    assert!(matches!(error, MemoryError::Tensors(TensorError::HeaderTooLarge { .. })), "{error}");
}

#[test]
fn bytes_of_files() {
    let dir = tempfile::tempdir().unwrap();
    // Holes: they take no space.
    let hole = |name: &str, len: u64| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    };
    let error = TensorFile::read(&RealIo, &hole("a", TENSORS.file_bytes + 1)).unwrap_err();
    assert!(matches!(error.error, TensorError::Io(IoError::TooLarge { max }) if max == TENSORS.file_bytes), "{error}");
    let error = memory::read_memory(&RealIo, &hole("b", MEMORY.file_bytes + 1)).unwrap_err();
    assert!(matches!(error.error, MemoryError::Io(IoError::TooLarge { max }) if max == MEMORY.file_bytes), "{error}");
    let error = memory::read_memory(&RealIo, dir.path()).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");

    hole(MANIFEST, MANIFEST_BYTES + 1);
    let error = checkpoint::load(&RealIo, dir.path()).unwrap_err();
    assert!(matches!(error.error, CheckpointError::Io(IoError::TooLarge { .. })), "{error}");
}

#[test]
fn parts_of_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let save = |names: &[String]| {
        let parts: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"x"[..])).collect();
        checkpoint::save(&RealIo, dir.path(), 1, &parts).map_err(|e| e.error)
    };
    let names = |n: usize| -> Vec<String> { (0..n).map(|i| i.to_string()).collect() };
    save(&names(CHECKPOINT_PARTS)).unwrap();
    assert!(matches!(save(&names(CHECKPOINT_PARTS + 1)), Err(CheckpointError::BadPart { .. })));
    save(&["a".repeat(PART_NAME)]).unwrap();
    assert!(matches!(save(&["a".repeat(PART_NAME + 1)]), Err(CheckpointError::BadPart { .. })));

    // A part that has grown beyond any bound is not read.
    let name = format!("step-1.2.{}", "a".repeat(PART_NAME));
    std::fs::File::options().write(true).open(dir.path().join(name)).unwrap().set_len(PART_BYTES + 1).unwrap();
    let warning = checkpoint::load(&RealIo, dir.path()).unwrap().unwrap().warning.unwrap();
    assert!(warning.contains("larger than 1 bytes"), "{warning}");
}
