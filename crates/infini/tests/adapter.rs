//! A base with an adapter: the base untouched inside the first span, one state for both, bound to each other.

use std::collections::BTreeMap;
use std::path::Path;

use infini::config::{Activation, Attention};
use infini::folder;
use infini::model::{Model, Want};
use infini::state::State;
use infini::tally::{Tally, TallyConfig};
use infini::text::Tokenizer;
use infini::{Adapter, AdapterConfig, InfiniConfig, ModelConfig, Weights};
use infini_format::io::RealIo;
use infini_format::memory::MemoryHeader;
use infini_format::tensors::Dtype;

const V: usize = 256;

fn base() -> (ModelConfig, Weights) {
    let config = ModelConfig {
        vocab_size: V,
        hidden_size: 24,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        intermediate_size: 20,
        hidden_act: Activation::Silu,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention: Attention::Full,
        infini: InfiniConfig::default(),
    };
    let weights = Weights::init(&config, 3);
    (config, weights)
}

fn adapter(base: &str, seed: f64) -> Adapter {
    adapter_of(base, seed, 24, 8)
}

/// For a base of width `d`, with segments of `segment_len` tokens.
fn adapter_of(base: &str, seed: f64, d: usize, segment_len: usize) -> Adapter {
    let config = AdapterConfig {
        layer: 1,
        segment_len,
        sink: 2,
        heads: 2,
        value_width: 6,
        place_width: 3,
        word_width: 4,
        gate_width: 2,
        before: 5,
        after: 4,
    };
    let numbers = |(i, (name, shape)): (usize, (&'static str, Vec<usize>))| {
        let n: usize = shape.iter().product();
        let x = (0..n).map(|j| ((j as f64 + 1.0) * (seed + 0.61 * i as f64)).sin() as f32);
        (name.to_string(), x.collect())
    };
    let tensors: BTreeMap<_, _> = config.parameters(d).into_iter().enumerate().map(numbers).collect();
    Adapter::new(config, base.into(), d, tensors).unwrap()
}

fn adapted() -> Model {
    let (config, weights) = base();
    let mut model = Model::new(config, weights).unwrap();
    model.attach(adapter(&"0".repeat(64), 0.3)).unwrap();
    model
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503) >> 16) % V as u32).collect()
}

fn error(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).fold(0f32, |m, (x, y)| m.max((x - y).abs()))
}

#[test]
fn the_first_span_is_the_bases_own() {
    let (config, weights) = base();
    let plain = Model::new(config, weights).unwrap();
    let adapted = adapted();
    let x = tokens(60, 1);
    let mut narrow = Model::new(base().0, base().1).unwrap();
    narrow.narrow(adapter("", 0.7).config().window()).unwrap();
    let run = |m: &Model| m.forward(&mut m.state(1), &x, Want::All);
    let (with, window, full) = (run(&adapted), run(&narrow), run(&plain));
    assert!(with[..16 * V] == window[..16 * V], "the memory is felt inside the first span");
    assert!(error(&with[..16 * V], &full[..16 * V]) < 1e-5, "the window is felt inside the first span");
    assert!(error(&with[17 * V..], &window[17 * V..]) > 1e-3, "the memory is never felt");
    let mut state = adapted.state(1);
    state.set_knock_out(true);
    assert!(adapted.forward(&mut state, &x, Want::All) == window, "knocked out, but not silent");
}

/// Logits of `x` in calls that end at `cuts` and at its end.
fn read(model: &Model, x: &[u32], cuts: &[usize]) -> Vec<f32> {
    let (mut state, mut from, mut logits) = (model.state(1), 0, Vec::new());
    for to in cuts.iter().copied().filter(|cut| *cut < x.len()).chain([x.len()]) {
        logits.extend(model.forward(&mut state, &x[from..to], Want::All));
        from = to;
    }
    logits
}

/// Random weights in the shapes of Llama, Mistral (wide heads, a head of its own) and Qwen2 (biases at q, k and v): what
/// fits the first span has the very logits of the unadapted model, with that window and with full attention.
#[test]
fn an_input_that_fits_the_first_span_is_the_unadapted_models_bit_by_bit() {
    for family in ["llama", "mistral", "qwen2"] {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/pretrained").join(family);
        let plain = folder::load(&home).unwrap();
        let d = plain.model.config().hidden_size;
        for s in [8, 16] {
            let model = || folder::load(&home).unwrap().model;
            let (mut window, mut keys, mut counts) = (model(), model(), model());
            let recall = adapter_of(&plain.identity.weights, 0.3, d, s);
            window.narrow(recall.config().window()).unwrap();
            keys.attach(recall).unwrap();
            counts.attach_tally(tally_of(&plain.identity.weights, window.config().vocab_size, s)).unwrap();
            for n in [1, s - 1, s, s + 1, 2 * s - 1, 2 * s] {
                let x = tokens(n, 5);
                for cuts in [&[][..], &[3], &[s], &[1, s - 1, s + 2], &[5, s + 5]] {
                    let full = read(&plain.model, &x, cuts);
                    for (what, model) in [("a window", &window), ("keys", &keys), ("counts", &counts)] {
                        assert!(read(model, &x, cuts) == full, "{family}, {n} tokens, cut at {cuts:?}: {what}");
                    }
                }
            }
        }
    }
}

/// As above where a span is many tiles of keys and more than one block of the head.
#[test]
fn a_long_first_span_is_full_attentions_bit_by_bit() {
    let (config, weights) = base();
    let plain = Model::new(config, weights).unwrap();
    let make = || Model::new(base().0, base().1).unwrap();
    let (mut keys, mut counts) = (make(), make());
    keys.attach(adapter_of(&"0".repeat(64), 0.3, 24, 150)).unwrap();
    counts.attach_tally(tally_of(&"0".repeat(64), V, 150)).unwrap();
    let x = tokens(300, 8);
    for cuts in [&[][..], &[151], &[70, 290, 299]] {
        let full = read(&plain, &x, cuts);
        assert!(read(&keys, &x, cuts) == full && read(&counts, &x, cuts) == full, "{cuts:?}");
    }
}

#[test]
fn splits_rows_and_documents_change_nothing() {
    let model = adapted();
    let x = tokens(75, 2);
    let whole = model.forward(&mut model.state(1), &x, Want::All);
    for cuts in [&[1, 2, 30, 33, 64][..], &[8, 16, 24], &[70, 71, 72, 73, 74]] {
        let (mut state, mut parts, mut from) = (model.state(1), Vec::new(), 0);
        for to in cuts.iter().copied().chain([75]) {
            parts.extend(model.forward(&mut state, &x[from..to], Want::All));
            from = to;
        }
        assert!(error(&parts, &whole) < 1e-4, "{cuts:?}: {}", error(&parts, &whole));
    }
    let other = tokens(75, 3);
    let mut state = model.state(2);
    let both = model.forward(&mut state, &[other.clone(), x.clone()].concat(), Want::All);
    assert!(error(&both[75 * V..], &whole) < 1e-4);
    let mut state = model.state(1);
    model.forward(&mut state, &other[..21], Want::Nothing);
    state.start_document(0);
    let carried = model.forward(&mut state, &x[..50], Want::All);
    let mut clean = model.state(1);
    model.forward(&mut clean, &tokens(21, 9), Want::Nothing);
    clean.start_document(0);
    assert!(error(&carried, &model.forward(&mut clean, &x[..50], Want::All)) < 1e-5, "an old document is felt");
}

#[test]
fn skimming_is_exact_once_the_layers_above_have_caught_up() {
    let model = adapted();
    let x = tokens(120, 4);
    let mut whole = model.state(1);
    let expected = model.forward(&mut whole, &x, Want::All);
    let above = model.layers_above_memory().unwrap();
    assert_eq!(above, 2);
    let mut state = model.state(1);
    model.forward(&mut state, &x[..8], Want::Nothing);
    model.skim(&mut state, &x[8..88]);
    let got = model.forward(&mut state, &x[88..], Want::All);
    let exact = above * 8;
    assert!(error(&got[exact * V..], &expected[(88 + exact) * V..]) < 1e-4);
    assert!(error(&got[..8 * V], &expected[88 * V..96 * V]) > 1e-4, "nothing was skipped");
    let more = tokens(40, 5);
    let (a, b) = (model.forward(&mut state, &more, Want::All), model.forward(&mut whole, &more, Want::All));
    assert!(error(&a, &b) < 1e-4);
}

#[test]
fn adapters_and_memories_know_whose_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("model");
    let (config, weights) = base();
    let tokenizer = Tokenizer::train(std::iter::empty(), V).unwrap();
    folder::save(&home, &config, &weights, &tokenizer.to_json(), Dtype::F32).unwrap();
    let load = || folder::load(&home).unwrap();
    let mut loaded = load();
    let weights_hash = loaded.identity.weights.clone();
    let [ours, second, foreign] = ["ours", "second", "foreign"].map(|n| dir.path().join(n));
    adapter(&weights_hash, 0.3).save(&ours, Dtype::F32).unwrap();
    adapter(&weights_hash, 0.4).save(&second, Dtype::BF16).unwrap();
    adapter(&"1".repeat(64), 0.3).save(&foreign, Dtype::F32).unwrap();
    let e = load().attach(&foreign).unwrap_err().to_string();
    assert!(e.contains("belongs to another model") && e.contains(&weights_hash[..8]), "{e}");
    assert!(load().attach(&home.join("config.json")).is_err());

    loaded.attach(&ours).unwrap();
    let mut state = loaded.model.state(1);
    loaded.model.forward(&mut state, &tokens(53, 6), Want::Last);
    let path = dir.path().join("a.mem");
    let header = MemoryHeader {
        partner: loaded.identity.clone(),
        generation: 1,
        position: 53,
        sources: Vec::new(),
        settings: serde_json::Value::Null,
    };
    state.save(&RealIo, &path, &header, None).unwrap();
    let (mut restored, _) = State::load(&loaded.model, &loaded.identity, &RealIo, &path).unwrap();
    let go_on = |s: &mut State| loaded.model.forward(s, &tokens(40, 7), Want::All);
    assert!(go_on(&mut restored) == go_on(&mut state), "a restored memory goes on differently");

    let mut other = load();
    let refused = |l: &folder::Loaded| State::load(&l.model, &l.identity, &RealIo, &path).unwrap_err().to_string();
    assert!(refused(&other).contains("adapter"), "{}", refused(&other));
    other.attach(&second).unwrap();
    assert!(refused(&other).contains("adapter"), "{}", refused(&other));
}

/// That counts, in the same window.
fn tally(base: &str) -> Tally {
    tally_of(base, V, 8)
}

fn tally_of(base: &str, vocab: usize, segment_len: usize) -> Tally {
    let config = TallyConfig { segment_len, sink: 2, orders: 1, cells: 64, hidden: 2 };
    let numbers = |n: usize| (0..n).map(|i| (i as f32 + 0.5).sin()).collect::<Vec<f32>>();
    let network = [numbers(2 * config.features()), numbers(2), vec![0.7, 0.4], vec![0.3]];
    Tally::new(config, base.into(), vec![-6.0; vocab], network).unwrap()
}

#[test]
fn keys_and_counts_go_together() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("model");
    let (config, weights) = base();
    let tokenizer = Tokenizer::train(std::iter::empty(), V).unwrap();
    folder::save(&home, &config, &weights, &tokenizer.to_json(), Dtype::F32).unwrap();
    let hash = folder::load(&home).unwrap().identity.weights;
    let (keys, counts) = (dir.path().join("keys"), home.join(folder::ADAPTER));
    adapter(&hash, 0.3).save(&keys, Dtype::F32).unwrap();
    let x = tokens(60, 6).iter().map(|x| x % 9).collect::<Vec<u32>>();
    let load = |first: &[&std::path::Path]| {
        let mut loaded = folder::load(&home).unwrap();
        first.iter().for_each(|file| loaded.attach(file).unwrap());
        let logits = loaded.model.forward(&mut loaded.model.state(1), &x, Want::All);
        (logits, loaded.identity.adapter, loaded.model.layers_above_memory())
    };
    let alone = load(&[&keys]);
    assert_eq!(alone.2, Some(2));
    // beside the model, so that loading finds it
    tally(&hash).save(&counts).unwrap();
    let counted = load(&[]);
    let both = load(&[&keys]);
    assert!(error(&both.0, &alone.0) > 0.1 && error(&both.0, &counted.0) > 0.1, "one of the two is not felt");
    assert!(both.1 != alone.1 && both.1 != counted.1 && both.2.is_none(), "it could be skimmed past the counts");
    std::fs::rename(&counts, dir.path().join("counts")).unwrap();
    let other_way = load(&[&keys, &dir.path().join("counts")]);
    assert!(other_way == both, "the order matters");
}

#[test]
fn damaged_adapters_are_refused() {
    let a = adapter(&"0".repeat(64), 0.3);
    let bytes = a.to_bytes(Dtype::F32).unwrap();
    assert_eq!(Adapter::parse(bytes.clone()).unwrap(), a);
    assert!(Adapter::parse(bytes[..bytes.len() - 4].to_vec()).is_err());
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let at = |needle: &str| 8 + text.find(needle).unwrap();
    for (needle, new) in [
        ("infini-adapter", "infini-wrapper"),
        ("\\\"heads\\\":2", "\\\"heads\\\":3"),
        ("\\\"layer\\\":1", "\\\"lager\\\":1"),
        ("00000000", "0000000x"),
    ] {
        let mut bad = bytes.clone();
        bad[at(needle)..][..new.len()].copy_from_slice(new.as_bytes());
        assert!(Adapter::parse(bad).is_err(), "{needle}");
    }
    let mut nan = bytes.clone();
    let n = nan.len();
    nan[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(Adapter::parse(nan).unwrap_err().to_string().contains("NaN"));
}
