//! The paper's form as an adapter: the same model as one that has had such a layer all along.

use std::collections::BTreeMap;

use infini::adapter::paper::{Paper, PaperConfig};
use infini::config::Attention;
use infini::folder;
use infini::model::{Model, Want};
use infini::tally::{Tally, TallyConfig};
use infini::text::Tokenizer;
use infini::{Adapter, AdapterConfig, ModelConfig, Weights};
use infini_format::tensors::Dtype;

const V: usize = 256;
const SIZES: PaperConfig = PaperConfig { layer: 1, segment_len: 8, sink: 2 };

fn base() -> ModelConfig {
    toml::from_str(&format!(
        "vocab_size = {V}\nhidden_size = 24\nnum_hidden_layers = 3\nnum_attention_heads = 4\nnum_key_value_heads = 2\n\
         head_dim = 8\nintermediate_size = 20\ntie_word_embeddings = true\nqkv_bias = true\nattention = \"full\""
    ))
    .unwrap()
}

fn plain() -> Model {
    Model::new(base(), Weights::init(&base(), 3)).unwrap()
}

fn numbers(n: usize, seed: f64) -> Vec<f32> {
    (0..n).map(|i| ((i as f64 + 1.0) * seed).sin() as f32 * 0.5).collect()
}

/// With gates of `beta`.
fn paper(base_hash: &str, beta: f32) -> Paper {
    let tensor = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let n = shape.iter().product();
        let x = if name == "infini.beta" { vec![beta; n] } else { numbers(n, 0.37 + 0.61 * i as f64) };
        (name, (shape, x))
    };
    let tensors = SIZES.parameters(&base()).into_iter().enumerate().map(tensor).collect();
    Paper::new(SIZES, base_hash.into(), tensors).unwrap()
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) % V as u32).collect()
}

fn error(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).fold(0f32, |m, (x, y)| m.max((x - y).abs()))
}

fn run(model: &Model, x: &[u32]) -> Vec<f32> {
    model.forward(&mut model.state(1), x, Want::All)
}

#[test]
fn the_layer_becomes_one_with_a_memory() {
    let paper = paper(&"0".repeat(64), -0.5);
    let mut adapted = plain();
    adapted.attach_paper(&paper).unwrap();
    // the same put together by hand
    let config = SIZES.model(&base());
    let base = Weights::init(&base(), 3);
    let weight = |p: infini::config::Parameter| {
        let learned = p.name.strip_prefix("model.layers.1.self_attn.");
        let x = learned.map_or_else(|| base.get(&p.name).to_vec(), |name| paper.get(name).to_vec());
        (p.name, (p.shape, x))
    };
    let weights: BTreeMap<_, _> = config.parameters().into_iter().map(weight).collect();
    let whole = Model::new(config.clone(), Weights::new(&config, weights).unwrap()).unwrap();
    let x = tokens(60);
    assert_eq!((adapted.config(), adapted.config().attention), (&config, Attention::Infini));
    assert!(run(&adapted, &x) == run(&whole, &x));

    let mut silent = adapted.state(1);
    silent.set_knock_out(true);
    let silent = adapted.forward(&mut silent, &x, Want::All);
    let heard = run(&adapted, &x);
    assert!(heard[..16 * V] == silent[..16 * V], "something is read inside the first span");
    assert!(error(&heard[16 * V..], &silent[16 * V..]) > 1e-3, "the memory is never felt");
}

/// The gate scales the window beside an empty memory, too: the base's logits are kept only by a gate that is shut.
#[test]
fn the_first_span_is_the_windows_as_far_as_the_gate_is_shut() {
    let x = tokens(16);
    let window = {
        let mut model = plain();
        model.narrow(SIZES.model(&base()).infini).unwrap();
        run(&model, &x)
    };
    let untrained = |beta: f32| {
        let model = plain();
        let w = model.layer(1);
        let [q, k, v] = w.bias.unwrap().map(<[f32]>::to_vec);
        let named = [
            ("q_proj.weight", w.q),
            ("k_proj.weight", w.k),
            ("v_proj.weight", w.v),
            ("o_proj.weight", w.o),
            ("q_proj.bias", q),
            ("k_proj.bias", k),
            ("v_proj.bias", v),
            ("infini.beta", vec![beta; 4]),
        ];
        let mut named: BTreeMap<_, _> = named.into_iter().collect();
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let x = named.remove(name.as_str()).unwrap();
            (name, (shape, x))
        };
        let tensors = SIZES.parameters(&base()).into_iter().map(tensor).collect();
        let mut model = plain();
        model.attach_paper(&Paper::new(SIZES, "0".repeat(64), tensors).unwrap()).unwrap();
        run(&model, &x)
    };
    assert!(untrained(-200.0) == window);
    assert!(untrained(-4.0) != window && untrained(0.0) != window);
    assert!(error(&untrained(-4.0), &window) < error(&untrained(0.0), &window));
}

#[test]
fn files_know_whose_they_are_and_what_they_go_with() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("model");
    let tokenizer = Tokenizer::train(std::iter::empty(), V).unwrap();
    folder::save(&home, &base(), &Weights::init(&base(), 3), &tokenizer.to_json(), Dtype::F32).unwrap();
    let load = || folder::load(&home).unwrap();
    let hash = load().identity.weights;
    let [ours, foreign, counts, keys] = ["ours", "foreign", "counts", "keys"].map(|n| dir.path().join(n));
    paper(&hash, -1.0).save(&ours).unwrap();
    paper(&"1".repeat(64), -1.0).save(&foreign).unwrap();
    let e = load().attach(&foreign).unwrap_err().to_string();
    assert!(e.contains("belongs to another model") && e.contains(&hash[..8]), "{e}");

    let mut alone = load();
    alone.attach(&ours).unwrap();
    assert!(alone.identity != load().identity);
    let e = alone.attach(&ours).unwrap_err().to_string();
    assert!(e.contains("a memory"), "two memories in one layer: {e}");

    let sizes = TallyConfig { segment_len: 8, sink: 2, orders: 1, cells: 64, hidden: 2 };
    let network = [numbers(2 * sizes.features(), 1.3), numbers(2, 1.7), vec![0.7, 0.4], vec![0.3]];
    Tally::new(sizes, hash.clone(), vec![-6.0; V], network).unwrap().save(&counts).unwrap();
    let both = [[&ours, &counts], [&counts, &ours]].map(|files| {
        let mut loaded = load();
        files.iter().for_each(|file| loaded.attach(file).unwrap());
        (run(&loaded.model, &tokens(60)), loaded.identity)
    });
    assert!(both[0] == both[1], "the order matters");
    assert!(both[0].0 != run(&alone.model, &tokens(60)), "the counts are not felt");

    let sizes = AdapterConfig { segment_len: 8, sink: 2, after: 4, ..AdapterConfig { layer: 1, ..Default::default() } };
    let zero = |(name, shape): (&str, Vec<usize>)| (name.to_string(), vec![0.0; shape.iter().product()]);
    let tensors = sizes.parameters(24).into_iter().map(zero).collect();
    Adapter::new(sizes, hash, 24, tensors).unwrap().save(&keys, Dtype::F32).unwrap();
    for files in [[&ours, &keys], [&keys, &ours]] {
        let mut loaded = load();
        loaded.attach(files[0]).unwrap();
        assert!(loaded.attach(files[1]).unwrap_err().to_string().contains("memory"));
    }
}

#[test]
fn damaged_files_and_other_layers_are_refused() {
    let p = paper(&"0".repeat(64), -1.0);
    let bytes = p.to_bytes().unwrap();
    assert_eq!(Paper::parse(bytes.clone()).unwrap(), p);
    assert!(Paper::parse(bytes[..bytes.len() - 4].to_vec()).is_err());
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let change = |needle: &str, new: &str| {
        let (mut bad, at) = (bytes.clone(), 8 + text.find(needle).unwrap());
        bad[at..][..new.len()].copy_from_slice(new.as_bytes());
        Paper::parse(bad)
    };
    assert!(change("infini-paper", "infini-piper").is_err());
    assert!(change("\\\"layer\\\":1", "\\\"lager\\\":1").is_err());
    assert!(change("00000000", "0000000x").is_err());
    let refused = |p: &Paper| plain().attach_paper(p).unwrap_err().to_string();
    let layer = change("\\\"layer\\\":1", "\\\"layer\\\":3").unwrap();
    assert!(refused(&layer).contains("layer 3 of 3"), "{}", refused(&layer));
    let renamed = change("infini.beta", "infini.bets").unwrap();
    assert!(refused(&renamed).contains("infini.beta is missing"), "{}", refused(&renamed));
    let mut other = base();
    other.num_key_value_heads = 4;
    let e = Model::new(other.clone(), Weights::init(&other, 3)).unwrap().attach_paper(&p).unwrap_err().to_string();
    assert!(e.contains("k_proj.weight has shape"), "{e}");
    let nan = Paper::new(SIZES, "0".repeat(64), [("infini.beta".into(), (vec![1], vec![f32::NAN]))].into());
    assert!(nan.unwrap_err().to_string().contains("NaN"));
}
