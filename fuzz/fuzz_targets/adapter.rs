//! No bytes crash the readers of adapters, of the paper's form and of counting memories; what they accept is written and
//! read back as the same.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use infini::adapter::paper::{Paper, PaperConfig};
use infini::tally::{Tally, TallyConfig};
use infini::{Adapter, AdapterConfig};
use infini_format::tensors::{Dtype, TensorFile, serialize};
use infini_fuzz::edit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    if let Some((base, edits)) = data.split_first() {
        read(forge(&FILES[*base as usize % FILES.len()], edits));
    }
});

/// An adapter, the paper's form and a counting memory, small.
static FILES: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    let base = "0".repeat(64);
    let sizes = AdapterConfig {
        layer: 1,
        segment_len: 8,
        heads: 1,
        value_width: 2,
        place_width: 1,
        word_width: 2,
        gate_width: 2,
        before: 2,
        after: 1,
        ..AdapterConfig::default()
    };
    let tensors: BTreeMap<String, Vec<f32>> =
        sizes.parameters(4).into_iter().map(|(n, s)| (n.to_string(), vec![0.5; s.iter().product()])).collect();
    let adapter = Adapter::new(sizes, base.clone(), 4, tensors).expect("an adapter");
    let tensors = [("o_proj.weight".to_string(), (vec![2, 2], vec![0.5; 4]))].into();
    let paper =
        Paper::new(PaperConfig { layer: 1, segment_len: 8, sink: 1 }, base.clone(), tensors).expect("the paper's form");
    let sizes = TallyConfig { segment_len: 8, sink: 1, orders: 1, cells: 64, hidden: 2 };
    let network = [vec![0.5; 2 * sizes.features()], vec![0.5; 2], vec![0.5; 2], vec![0.5]];
    let tally = Tally::new(sizes, base, vec![-1.0; 8], network).expect("a counting memory");
    [adapter.to_bytes(Dtype::F32).expect("bytes"), paper.to_bytes().expect("bytes"), tally.to_bytes().expect("bytes")]
});

/// The same tensors with other texts: the configuration is JSON inside one of them.
fn forge(file: &[u8], edits: &[u8]) -> Vec<u8> {
    let file = TensorFile::parse(file.to_vec()).expect("ours");
    let mut texts = file.metadata.clone();
    let config = serde_json::from_str(&texts["config"]).expect("JSON");
    texts.insert("config".into(), edit(config, edits).to_string());
    let views: Vec<_> = file.iter().collect();
    serialize(&views, &texts).expect("writable")
}

fn read(bytes: Vec<u8>) {
    if let Ok(a) = Adapter::parse(bytes.clone()) {
        let again = Adapter::parse(a.to_bytes(Dtype::F32).expect("writable")).expect("readable");
        assert!(again == a, "an adapter that is written is another one");
    }
    if let Ok(p) = Paper::parse(bytes.clone()) {
        let again = Paper::parse(p.to_bytes().expect("writable")).expect("readable");
        assert!(again == p, "the paper's form that is written is another one");
    }
    if let Ok(t) = Tally::parse(bytes) {
        let again = Tally::parse(t.to_bytes().expect("writable")).expect("readable");
        assert!(again == t, "a counting memory that is written is another one");
    }
}
