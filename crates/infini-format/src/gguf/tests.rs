use super::*;

/// Writes GGUF files, right and wrong ones.
struct Builder {
    keys: u64,
    tensors: u64,
    head: Vec<u8>,
    infos: Vec<u8>,
    data: Vec<u8>,
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

impl Builder {
    fn new() -> Builder {
        Builder { keys: 0, tensors: 0, head: Vec::new(), infos: Vec::new(), data: Vec::new() }
    }

    fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Builder {
        self.keys += 1;
        self.head.extend([&text(name)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Builder {
        self.tensors += 1;
        self.infos.extend([&text(name)[..], &(dims.len() as u32).to_le_bytes()].concat());
        self.infos.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        self.infos.extend([&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat());
        self
    }

    fn data(mut self, bytes: &[u8]) -> Builder {
        self.data.extend(bytes);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.to_le_bytes(), self.keys.to_le_bytes()].concat();
        let mut out = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &self.head, &self.infos].concat();
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn error(&self) -> GgufError {
        Gguf::parse(self.bytes()).unwrap_err()
    }
}

fn array(kind: u32, n: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &n.to_le_bytes(), elements].concat()
}

fn f32s(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn keys_and_tensors_come_back() {
    let file = Builder::new()
        .key("general.architecture", 8, &text("llama"))
        .key("a.u8", 0, &[200])
        .key("a.i32", 5, &(-7i32).to_le_bytes())
        .key("a.i64", 11, &7i64.to_le_bytes())
        .key("a.f32", 6, &1.5f32.to_le_bytes())
        .key("a.bool", 7, &[1])
        .key("a.texts", 9, &array(8, 2, &[text("x"), text("")].concat()))
        .key("a.ints", 9, &array(5, 2, &[(-1i32).to_le_bytes(), 3i32.to_le_bytes()].concat()))
        .key("a.floats", 9, &array(6, 1, &f32s(&[0.25])))
        .tensor("m", &[3, 2], 0, 0)
        .tensor("h", &[2], 1, 32)
        .data(&f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        .data(&[0; 8])
        .data(&[0x00, 0x3c, 0x00, 0xc0])
        .bytes();
    let g = Gguf::parse(file).unwrap();
    let value = |k: &str| g.metadata[k].clone();
    assert_eq!(value("general.architecture").as_text(), Some("llama"));
    assert_eq!((value("a.u8"), value("a.i32")), (Value::Unsigned(200), Value::Negative(-7)));
    assert_eq!((value("a.i64").as_u64(), value("a.f32").as_f64()), (Some(7), Some(1.5)));
    assert_eq!(value("a.bool").as_bool(), Some(true));
    assert_eq!(value("a.texts").as_texts().unwrap(), ["x", ""]);
    assert_eq!(value("a.ints").as_integers().unwrap(), [-1, 3]);
    assert_eq!(value("a.floats"), Value::Floats(vec![0.25]));
    let m = g.get("m").unwrap();
    assert_eq!((m.shape, m.to_f32()), (&[2, 3][..], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    assert_eq!(g.get("h").unwrap().to_f32(), [1.0, -2.0]);
    assert_eq!(g.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["h", "m"]);
    assert!(g.get("none").is_none());
}

#[test]
fn every_cut_is_refused() {
    let file = Builder::new()
        .key("k", 9, &array(8, 2, &[text("ab"), text("c")].concat()))
        .tensor("m", &[4], 0, 0)
        .data(&f32s(&[1.0; 4]))
        .bytes();
    Gguf::parse(file.clone()).unwrap();
    for n in 0..file.len() {
        assert!(Gguf::parse(file[..n].to_vec()).is_err(), "cut at {n}");
    }
}

#[test]
fn counts_are_compared_with_the_file_before_anything_is_allocated() {
    let mut file = Builder::new().bytes();
    for (at, n) in [(8, 1u64 << 32), (8, u64::MAX), (16, 1 << 32), (16, u64::MAX), (8, 4000), (16, 4000)] {
        let mut f = file.clone();
        f[at..at + 8].copy_from_slice(&n.to_le_bytes());
        let e = Gguf::parse(f).unwrap_err();
        assert!(matches!(e, GgufError::TooMany { .. } | GgufError::Truncated { .. }), "{e}");
    }
    file[4] = 1;
    assert!(matches!(Gguf::parse(file).unwrap_err(), GgufError::Version { version: 1 }));
    let big = [&b"GGUF"[..], &3u32.to_be_bytes(), &[0; 24]].concat();
    assert!(Gguf::parse(big).unwrap_err().to_string().contains("big-endian"));
    assert!(matches!(Gguf::parse(b"GGML1234".to_vec()).unwrap_err(), GgufError::NoGguf));
    // a text, and an array, of more than there is
    let long = |n: u64| Builder::new().key("k", 8, &n.to_le_bytes()).error();
    assert!(matches!(long(1 << 16), GgufError::Truncated { .. }));
    assert!(matches!(long(u64::MAX), GgufError::TooMany { .. }));
    let many = |n: u64| Builder::new().key("k", 9, &array(8, n, &[])).error();
    assert!(matches!(many(1 << 19), GgufError::Truncated { .. }));
    assert!(matches!(many(1 << 40), GgufError::TooMany { .. }));
}

#[test]
fn every_lie_of_the_keys_has_its_name() {
    let one = |kind: u32, value: &[u8]| Builder::new().key("k", kind, value).error();
    assert!(matches!(one(13, &[0; 8]), GgufError::Kind { kind: 13, .. }));
    assert!(matches!(one(7, &[2]), GgufError::Kind { kind: 7, .. }));
    assert!(matches!(one(9, &array(9, 1, &array(0, 1, &[1]))), GgufError::Kind { kind: 9, .. }), "nested array");
    assert!(matches!(one(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), GgufError::NotText { .. }));
    let twice = Builder::new().key("k", 0, &[1]).key("k", 0, &[1]).error();
    assert!(matches!(twice, GgufError::Duplicate { .. }));
    for bad in [0u32, 3, 4, 1 << 20] {
        let e = Builder::new().key("general.alignment", 4, &bad.to_le_bytes()).error();
        assert!(matches!(e, GgufError::Alignment { .. }), "{bad}: {e}");
    }
}

#[test]
fn every_lie_of_the_tensors_has_its_name() {
    let one =
        |dims: &[u64], kind: u32, offset: u64| Builder::new().tensor("t", dims, kind, offset).data(&[0; 64]).error();
    assert!(matches!(one(&[1; 5], 0, 0), GgufError::Shape { .. }));
    assert!(matches!(one(&[1 << 32, 1 << 32], 0, 0), GgufError::Shape { .. }), "a product that wraps to 0");
    assert!(matches!(one(&[u64::MAX], 0, 0), GgufError::Shape { .. }));
    assert!(matches!(one(&[33], 8, 0), GgufError::Shape { .. }), "no whole block");
    assert!(matches!(one(&[4], 0, 4), GgufError::Misplaced { .. }), "unaligned");
    assert!(matches!(one(&[17], 0, 0), GgufError::Misplaced { .. }), "longer than the file");
    assert!(matches!(one(&[1], 0, u64::MAX - 31), GgufError::Misplaced { .. }));
    let e = one(&[32], 20, 0);
    assert!(e.to_string().contains("IQ4_NL") && matches!(e, GgufError::Quant { kind: 20, .. }), "{e}");
    assert!(one(&[32], 4000, 0).to_string().contains("4000"));
    let two = |name: &str, offset| Builder::new().tensor("t", &[16], 0, 0).tensor(name, &[1], 0, offset).data(&[0; 96]);
    assert!(matches!(two("u", 32).error(), GgufError::Misplaced { .. }), "overlap");
    assert!(matches!(two("t", 64).error(), GgufError::Duplicate { .. }));
    Gguf::parse(two("u", 64).bytes()).unwrap();
}

/// Blocks of every type with the values that llama.cpp's own Python package gives them.
#[test]
fn blocks_mean_what_llama_cpp_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/pretrained/quants.gguf");
    let file = Gguf::read(&crate::io::RealIo, &path).unwrap();
    let mut kinds = Vec::new();
    for (name, t) in file.iter().filter(|(name, _)| !name.ends_with(".values")) {
        let expected = file.get(&format!("{name}.values")).unwrap().to_f32();
        let got = t.to_f32();
        assert_eq!(got.len(), expected.len());
        for (i, (x, y)) in got.iter().zip(&expected).enumerate() {
            assert!((x - y).abs() <= 1e-6 * y.abs().max(1e-3), "{name}[{i}] is {x}, not {y}");
        }
        kinds.push(format!("{:?}", t.quant));
    }
    kinds.sort();
    assert_eq!(kinds, ["BF16", "F16", "F32", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "Q8_0"]);
}

/// Every input of the fuzz target's seeds and of its findings.
#[test]
fn seeds_do_not_crash() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/gguf");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let parsed = Gguf::parse(std::fs::read(entry.unwrap().path()).unwrap());
        if let Ok(file) = parsed {
            file.iter().for_each(|(_, t)| assert_eq!(t.to_f32().len(), t.shape.iter().product::<usize>()));
        }
        seen += 1;
    }
    assert!(seen >= 8, "{seen} seeds");
}
