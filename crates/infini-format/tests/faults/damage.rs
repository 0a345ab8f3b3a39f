//! R6, R7, R8, R15: flipped bits, cut files, values that are no numbers, memories of other models.

use infini_format::hash::{sha256, short};
use infini_format::io::RealIo;
use infini_format::memory::{self, MemoryError, Partner, decode, encode};
use infini_format::tensors::{Tensor, TensorError, TensorFile};

use crate::{Count, Rng, cases, forge, header, partner, small_file, tensors, views};

fn large_file() -> Vec<u8> {
    let values = cases(8_000, 1_000_000) as usize;
    encode(&header(1), &views(&tensors(1, values))).unwrap()
}

#[test]
fn a_memory_file_comes_back_as_it_was() {
    let tensors = tensors(3, 100);
    let bytes = encode(&header(3), &views(&tensors)).unwrap();
    assert_eq!(bytes, encode(&header(3), &views(&tensors)).unwrap(), "same state, same bytes");
    let (read, file) = decode(bytes).unwrap();
    assert_eq!(read, header(3));
    assert_eq!(file.len(), tensors.len());
    for (name, tensor) in &tensors {
        assert_eq!(file.get(name).unwrap(), tensor.view());
    }
    let bare = memory::MemoryHeader { partner: Partner { adapter: None, ..partner() }, ..header(1) };
    assert_eq!(decode(encode(&bare, &[]).unwrap()).unwrap().0, bare);
}

#[cfg(unix)]
#[test]
fn a_memory_file_is_as_private_as_the_document() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mem");
    memory::write_memory(&RealIo, &path, &header(1), &[]).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn r6_every_bit_of_a_small_file() {
    let bytes = small_file();
    let mut count = Count::default();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        count.read(|| decode(bad));
    }
    count.lost = count.run - count.refused;
    count.print("R6 flipped bits, small memory file");
    assert_eq!((count.refused, count.panicked), (count.run, 0));
}

#[test]
fn r6_random_bits_of_a_large_file() {
    let bytes = large_file();
    let mut rng = Rng(6);
    let mut count = Count::default();
    for _ in 0..10_000 {
        let mut bad = bytes.clone();
        bad[rng.below(bytes.len())] ^= 1 << rng.below(8);
        count.read(|| decode(bad));
    }
    count.lost = count.run - count.refused;
    count.print(&format!("R6 flipped bits, memory file of {} bytes", bytes.len()));
    assert_eq!((count.refused, count.panicked), (10_000, 0));
}

/// A cut file is refused with the place of the cut.
fn names_the_cut(error: &MemoryError, at: usize) -> bool {
    matches!(error, MemoryError::Tensors(TensorError::Truncated { offset, .. }) if *offset == at)
        && error.to_string().contains(&format!("ends at byte {at},"))
}

#[test]
fn r7_cut_files() {
    let small = encode(&header(1), &views(&tensors(1, 160))).unwrap();
    let large = large_file();
    let mut rng = Rng(7);
    let every = (0..small.len()).map(|cut| &small[..cut]);
    let random: Vec<usize> = (0..1_000).map(|_| rng.below(large.len())).collect();
    let mut count = Count::default();
    for bytes in every.chain(random.iter().map(|cut| &large[..*cut])) {
        let error = count.read(|| decode(bytes.to_vec())).expect("no panic").expect_err("refused");
        assert!(names_the_cut(&error, bytes.len()), "{error}");
    }
    count.lost = count.run - count.refused;
    count.print(&format!("R7 cut memory files ({} and {} bytes)", small.len(), large.len()));
    assert!(small.len() >= 4_096);

    let longer = [small.as_slice(), b"x"].concat();
    let error = decode(longer).unwrap_err();
    assert!(matches!(error, MemoryError::Tensors(TensorError::TrailingBytes { count: 1, .. })), "{error}");
}

#[test]
fn r8_values_that_are_no_numbers() {
    let mut count = Count::default();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mem");
    memory::write_memory(&RealIo, &path, &header(1), &views(&tensors(1, 5))).unwrap();
    let good = std::fs::read(&path).unwrap();
    for (poisoned, (name, tensor)) in tensors(1, 5).iter().enumerate() {
        if !tensor.dtype.is_float() {
            continue;
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = tensor.view().to_f64().unwrap();
            values[3] = f64::from(bad);
            let floats: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            let shape = tensor.shape.as_slice();
            let poison = match tensor.dtype {
                infini_format::tensors::Dtype::F64 => Tensor::f64(shape, &values),
                infini_format::tensors::Dtype::F32 => Tensor::f32(shape, &floats),
                infini_format::tensors::Dtype::F16 => Tensor::f16(shape, &floats),
                _ => Tensor::bf16(shape, &floats),
            }
            .unwrap();
            let names_it = |error: &MemoryError| {
                matches!(error, MemoryError::NotFinite { name: n, index: 3 } if n == name)
                    && error.to_string().contains(name)
            };

            let mut set = tensors(1, 5);
            set[poisoned].1 = poison.clone();
            let error =
                count.read(|| memory::write_memory(&RealIo, &path, &header(2), &views(&set))).unwrap().unwrap_err();
            assert!(names_it(&error.error), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), good);

            let forged = forge(&good, |_, tensors| drop(tensors.insert((*name).into(), poison))).unwrap();
            let error = count.read(|| decode(forged)).unwrap().unwrap_err();
            assert!(names_it(&error), "{error}");
        }
    }
    count.print("R8 NaN and infinities");
    assert_eq!((count.run, count.refused, count.panicked), (24, 24, 0));
}

#[test]
fn r15_memories_of_other_models() {
    let other = sha256(b"other");
    let mut count = Count::default();
    let (read, _) = decode(small_file()).unwrap();
    read.check_partner(&partner()).unwrap();
    let mut refuse = |expected: Partner, file: &str, model: &str| {
        let error = count.read(|| read.check_partner(&expected)).expect("no panic").expect_err("refused");
        let text = error.to_string();
        assert!(text.contains(&format!("memory: {file}, now: {model}")), "{text}");
        error
    };
    let Partner { weights, adapter, tokenizer, config, .. } = partner();
    let (adapter, new) = (adapter.unwrap(), short(&other));
    let error = refuse(Partner { weights: other.clone(), ..partner() }, short(&weights), new);
    assert!(matches!(error, MemoryError::OtherWeights { .. }));
    let error = refuse(Partner { adapter: Some(other.clone()), ..partner() }, short(&adapter), new);
    assert!(matches!(error, MemoryError::OtherAdapter { .. }));
    let error = refuse(Partner { adapter: None, ..partner() }, short(&adapter), "none");
    assert!(matches!(error, MemoryError::OtherAdapter { model: None, .. }));
    let error = refuse(Partner { tokenizer: other.clone(), ..partner() }, short(&tokenizer), new);
    assert!(matches!(error, MemoryError::OtherTokenizer { .. }));
    let error = refuse(Partner { config: other.clone(), ..partner() }, short(&config), new);
    assert!(matches!(error, MemoryError::OtherConfig { .. }));
    let error = refuse(Partner { segment_len: 128, ..partner() }, "64", "128");
    assert!(matches!(error, MemoryError::OtherSegmentLen { .. }));

    let newer = forge(&small_file(), |texts, _| drop(texts.insert("version".into(), "2".into()))).unwrap();
    let error = count.read(|| decode(newer)).unwrap().unwrap_err();
    assert!(matches!(error, MemoryError::NewerVersion { found: 2, known: 1 }), "{error}");
    count.print("R15 memories of other models and versions");
    assert_eq!((count.run, count.refused, count.panicked), (7, 7, 0));
}

/// One lie, one variant: each on a file whose seal and checksums hold otherwise.
#[test]
fn each_lie_has_its_name() {
    let lie = |change: &dyn Fn(&mut std::collections::BTreeMap<String, String>)| {
        decode(forge(&small_file(), |texts, _| change(texts)).unwrap()).unwrap_err()
    };
    let set = |key: &'static str, value: &'static str| lie(&move |t| drop(t.insert(key.into(), value.into())));

    assert!(matches!(set("format", "pt"), MemoryError::NotAMemory { found: Some(f) } if f == "pt"));
    assert!(matches!(lie(&|t| drop(t.remove("format"))), MemoryError::NotAMemory { found: None }));
    assert!(matches!(set("version", "0"), MemoryError::BadField { field: "version", .. }));
    for field in ["weights", "tokenizer", "config", "segment_len", "generation", "position", "sources", "settings"] {
        assert!(matches!(lie(&|t| drop(t.remove(field))), MemoryError::FieldMissing { field: f } if f == field));
        assert!(matches!(set(field, "{"), MemoryError::BadField { field: f, .. } if f == field));
    }
    assert!(matches!(set("adapter", "none"), MemoryError::BadField { field: "adapter", .. }));
    for number in ["-1", "+1", "01", "1.0", "18446744073709551616", " 1", ""] {
        assert!(matches!(set("position", number), MemoryError::BadField { .. }), "{number}");
    }
    assert!(matches!(set("tensors", "{}"), MemoryError::TensorUnlisted { name } if name == "count"));
    let swapped = lie(&|t| {
        let mut map: serde_json::Map<_, _> = serde_json::from_str(&t["tensors"]).unwrap();
        map.insert("ids".into(), sha256(b"else").into());
        t.insert("tensors".into(), serde_json::to_string(&map).unwrap());
    });
    assert!(matches!(swapped, MemoryError::TensorDamaged { name, .. } if name == "ids"));
    let invented = lie(&|t| {
        let mut map: serde_json::Map<_, _> = serde_json::from_str(&t["tensors"]).unwrap();
        map.insert("ghost".into(), sha256(b"").into());
        t.insert("tensors".into(), serde_json::to_string(&map).unwrap());
    });
    assert!(matches!(invented, MemoryError::TensorMissing { name } if name == "ghost"));

    // A header that was changed without the seal, and a tensor without its checksum.
    let file = TensorFile::parse(small_file()).unwrap();
    let views: Vec<_> = file.iter().collect();
    let mut texts = file.metadata.clone();
    texts.insert("position".into(), "5".into());
    let unsealed = infini_format::tensors::serialize(&views, &texts).unwrap();
    assert!(matches!(decode(unsealed).unwrap_err(), MemoryError::HeaderDamaged));

    let error = memory::read_memory(&RealIo, std::path::Path::new("/nowhere/a.mem")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read: ") && error.ends_with(": /nowhere/a.mem: check the path"), "{error}");
    let partner = Partner { config: "short".into(), ..partner() };
    let header = memory::MemoryHeader { partner, ..header(1) };
    assert!(matches!(encode(&header, &[]).unwrap_err(), MemoryError::BadField { field: "config", .. }));
}
