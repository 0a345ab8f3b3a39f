//! A memory that counts: against a plain recount in f64, as a stream, as a file.

use std::collections::HashMap;

use infini::config::{Activation, Attention};
use infini::folder;
use infini::model::{Model, Want};
use infini::state::State;
use infini::tally::{LIMIT, Tally, TallyConfig};
use infini::text::Tokenizer;
use infini::{InfiniConfig, ModelConfig, Weights};
use infini_format::io::RealIo;
use infini_format::memory::MemoryHeader;
use infini_format::tensors::Dtype;

const V: usize = 256;
const S: usize = 8;

fn base() -> (ModelConfig, Weights) {
    let config = ModelConfig {
        vocab_size: V,
        hidden_size: 24,
        num_hidden_layers: 2,
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

fn numbers(n: usize, k: f32) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 + 1.0) * k).sin()).collect()
}

fn network() -> [Vec<f32>; 4] {
    [numbers(40, 0.7), numbers(4, 0.3), numbers(4, 1.1), vec![0.2]]
}

fn common() -> Vec<f32> {
    numbers(V, 0.9).iter().map(|x| 3.0 * x - 8.0).collect()
}

/// So many cells that the few tokens of a test do not meet in both rows.
fn tally(base: &str) -> Tally {
    let config = TallyConfig { segment_len: S, sink: 2, orders: 2, cells: 1 << 16, hidden: 4 };
    Tally::new(config, base.into(), common(), network()).unwrap()
}

fn model(with: bool) -> Model {
    let (config, weights) = base();
    let mut model = Model::new(config, weights).unwrap();
    let tally = tally(&"0".repeat(64));
    if with {
        model.attach_tally(tally).unwrap()
    } else {
        model.narrow(tally.config().window()).unwrap()
    }
    model
}

/// Few different ones, so that pairs and triples recur.
fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503) >> 16) % 7 * 31).collect()
}

fn error(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).fold(0f32, |m, (x, y)| m.max((x - y).abs()))
}

/// (33)–(36) by recounting the whole text for every token, in f64, without a sketch.
fn reference(text: &[u32], logits: &[f32]) -> Vec<f32> {
    let [weight, bias, output, shift] = network().map(|x| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>());
    let mut out = logits.to_vec();
    let (mut trust, mut ratio) = (0.5, [1.0; V]);
    for (t, row) in out.chunks_mut(V).enumerate() {
        let r = ratio[text[t] as usize];
        trust = 0.01 + 0.98 * (trust * r / (1.0 - trust + trust * r));
        let start = (t / S).saturating_sub(1) * S;
        let largest = row.iter().fold(f64::MIN, |m, l| m.max(f64::from(*l)));
        let sum = row.iter().map(|l| (f64::from(*l) - largest).exp()).sum::<f64>();
        let lp: Vec<f64> = row.iter().map(|l| f64::from(*l) - largest - sum.ln()).collect();
        let entropy = -lp.iter().map(|l| l.exp() * l).sum::<f64>();
        let mut after: [HashMap<(&[u32], u32), f64>; 3] = Default::default();
        let mut seen: [HashMap<&[u32], f64>; 3] = Default::default();
        for i in 0..start {
            for n in 0..=i.min(2) {
                *after[n].entry((&text[i - n..i], text[i])).or_default() += 1.0;
                *seen[n].entry(&text[i - n..=i]).or_default() += 1.0;
            }
        }
        let context = |n: usize| if t + 1 >= n { &text[t + 1 - n..=t] } else { &[][..] };
        let raised = (0..V as u32).map(|w| {
            let count = *after[0].get(&(&[][..], w))?;
            let window = text[start..=t].iter().filter(|x| **x == w).count() as f64;
            let lp = lp[w as usize].max(-20.0) / 5.0;
            let mut f = vec![lp, count.ln_1p(), f64::from(common()[w as usize]) / 5.0 + 2.0, window.ln_1p()];
            f.extend([1, 2].map(|n| after[n].get(&(context(n), w)).copied().unwrap_or(0.0).ln_1p()));
            f.extend([entropy / 5.0, (start as f64 / 1024.0).ln_1p()]);
            f.extend([1, 2].map(|n| seen[n - 1].get(context(n)).copied().unwrap_or(0.0).ln_1p()));
            let unit =
                |j: usize| (f.iter().enumerate().map(|(i, f)| f * weight[i * 4 + j]).sum::<f64>() + bias[j]).max(0.0);
            let raise = (0..4).map(|j| unit(j) * output[j]).sum::<f64>() + shift[0];
            Some(raise.clamp(-f64::from(LIMIT), f64::from(LIMIT)))
        });
        let raised: Vec<Option<f64>> = raised.collect();
        let p = |w: usize| lp[w].exp();
        let sum = 1.0 + raised.iter().enumerate().map(|(w, b)| b.map_or(0.0, |b| p(w) * b.exp_m1())).sum::<f64>();
        ratio = std::array::from_fn(|w| raised[w].unwrap_or(0.0).exp() / sum);
        for (w, l) in row.iter_mut().enumerate().filter(|(w, _)| raised[*w].is_some()) {
            *l += ((1.0 - trust + trust * ratio[w]) / (1.0 - trust + trust / sum)).ln() as f32;
        }
    }
    out
}

#[test]
fn streamed_counts_equal_a_recount() {
    let (with, window) = (model(true), model(false));
    let x = tokens(75, 1);
    let plain = window.forward(&mut window.state(1), &x, Want::All);
    let expected = reference(&x, &plain);
    assert!(error(&expected, &plain) > 0.1, "the memory is never felt");
    let whole = with.forward(&mut with.state(1), &x, Want::All);
    assert!(error(&whole, &expected) < 1e-4, "{}", error(&whole, &expected));
    assert!(whole[..2 * S * V] == plain[..2 * S * V], "felt inside the first span");
    for cuts in [&[1, 2, 30, 33, 64][..], &[8, 16, 24], &[70, 71, 72, 73, 74]] {
        let (mut state, mut parts, mut from) = (with.state(1), Vec::new(), 0);
        for to in cuts.iter().copied().chain([75]) {
            parts.extend(with.forward(&mut state, &x[from..to], Want::All));
            from = to;
        }
        assert!(error(&parts, &expected) < 1e-4, "{cuts:?}: {}", error(&parts, &expected));
    }
    let mut state = with.state(1);
    with.forward(&mut state, &x[..40], Want::Nothing);
    let last = with.forward(&mut state, &x[40..], Want::Last);
    assert!(error(&last, &expected[74 * V..]) < 1e-4 && state.logits() == Some(&last[..]));
    let mut state = with.state(1);
    state.set_knock_out(true);
    assert!(with.forward(&mut state, &x, Want::All) == plain, "knocked out, but not silent");
}

#[test]
fn rows_and_documents_keep_apart() {
    let (with, window) = (model(true), model(false));
    let (x, y) = (tokens(60, 2), tokens(60, 3));
    let mut state = with.state(2);
    let both = with.forward(&mut state, &[y.clone(), x.clone()].concat(), Want::All);
    let alone = with.forward(&mut with.state(1), &x, Want::All);
    assert!(error(&both[60 * V..], &alone) < 1e-4);
    let run = |m: &Model, old: u32| {
        let mut state = m.state(1);
        m.forward(&mut state, &tokens(21, old), Want::Nothing);
        state.start_document(0);
        m.forward(&mut state, &x, Want::All)
    };
    assert!(error(&run(&with, 4), &run(&with, 5)) < 1e-5, "an old document is felt");
    assert!(error(&run(&with, 4), &run(&window, 4)) > 0.1);
}

#[test]
fn files_know_whose_they_are_and_memories_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("model");
    let (config, weights) = base();
    let tokenizer = Tokenizer::train(std::iter::empty(), V).unwrap();
    folder::save(&home, &config, &weights, &tokenizer.to_json(), Dtype::F32).unwrap();
    let mut loaded = folder::load(&home).unwrap();
    let [ours, foreign, memory] = ["ours", "foreign", "a.mem"].map(|n| dir.path().join(n));
    tally(&"1".repeat(64)).save(&foreign).unwrap();
    let e = loaded.attach(&foreign).unwrap_err().to_string();
    assert!(e.contains("belongs to another model"), "{e}");
    tally(&loaded.identity.weights).save(&ours).unwrap();
    loaded.attach(&ours).unwrap();
    let mut state = loaded.model.state(1);
    assert_eq!(state.memory_bytes(), 4 * (V + 2 * (1 << 16)));
    loaded.model.forward(&mut state, &tokens(53, 6), Want::Last);
    let header = MemoryHeader {
        partner: loaded.identity.clone(),
        generation: 1,
        position: 53,
        sources: Vec::new(),
        settings: serde_json::Value::Null,
    };
    state.save(&RealIo, &memory, &header, None).unwrap();
    let (mut restored, _) = State::load(&loaded.model, &loaded.identity, &RealIo, &memory).unwrap();
    let go_on = |s: &mut State| loaded.model.forward(s, &tokens(40, 7), Want::All);
    assert!(go_on(&mut restored) == go_on(&mut state), "a restored memory goes on differently");
}

#[test]
fn damaged_files_are_refused() {
    let t = tally(&"0".repeat(64));
    let bytes = t.to_bytes().unwrap();
    assert_eq!(Tally::parse(bytes.clone()).unwrap(), t);
    assert!(Tally::parse(bytes[..bytes.len() - 4].to_vec()).is_err());
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let at = |needle: &str| 8 + text.find(needle).unwrap();
    for (needle, new) in [
        ("infini-tally", "infini-tilly"),
        ("\\\"hidden\\\":4", "\\\"hidden\\\":5"),
        ("\\\"cells\\\":65536", "\\\"cells\\\":65537"),
        ("\\\"orders\\\":2", "\\\"orders\\\":0"),
        ("00000000", "0000000x"),
    ] {
        let mut bad = bytes.clone();
        bad[at(needle)..][..new.len()].copy_from_slice(new.as_bytes());
        assert!(Tally::parse(bad).is_err(), "{needle}");
    }
    let mut nan = bytes.clone();
    let n = nan.len();
    nan[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(Tally::parse(nan).unwrap_err().to_string().contains("NaN"));
}

#[test]
fn the_shipped_memories_are_whole() {
    let models = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models"));
    let tally = Tally::parse(std::fs::read(models.join("smollm2-books/adapter.safetensors")).unwrap()).unwrap();
    assert_eq!((tally.vocab(), tally.config()), (49_152, &TallyConfig { hidden: 32, ..TallyConfig::default() }));
    let books = folder::load(&models.join("books")).unwrap();
    assert_eq!(books.model.state(1).memory_bytes(), 4 * (4096 + 2 * 131_072));
    assert!(books.identity.adapter.is_some());
}
