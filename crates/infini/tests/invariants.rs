//! The invariants of a stream, as properties over every kind of layer.

use infini::config::{
    Activation, Attention, FeatureName, Layers, LayersName, Learned, MixName, NullSlot, RuleName, Write,
};
use infini::model::{Model, Want};
use infini::{InfiniConfig, ModelConfig, Weights};
use proptest::prelude::*;

const V: usize = 23;

fn config(attention: Attention, infini: InfiniConfig) -> ModelConfig {
    ModelConfig {
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
        tie_word_embeddings: false,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention,
        infini,
    }
}

/// One model of every kind, by name.
fn models() -> Vec<(&'static str, Model)> {
    let base = InfiniConfig { segment_len: 8, ..InfiniConfig::default() };
    let all = Layers::Named(LayersName::All);
    let selective = InfiniConfig {
        span: 2,
        lag: 1,
        write: Write::Clip,
        null_slot: NullSlot::Fixed(1.0),
        conv: 4,
        layers: all.clone(),
        ..base.clone()
    };
    let kinds = [
        ("full", Attention::Full, base.clone()),
        ("local", Attention::Local, InfiniConfig { span: 2, conv: 3, ..base.clone() }),
        ("local with sinks", Attention::Local, InfiniConfig { span: 2, sink: 3, ..base.clone() }),
        ("infini with sinks", Attention::Infini, InfiniConfig { sink: 1, conv: 3, ..base.clone() }),
        (
            "memorizing",
            Attention::Memorizing,
            InfiniConfig {
                span: 2,
                conv: 3,
                store: 16,
                top: 3,
                layers: Layers::Named(LayersName::Last),
                ..base.clone()
            },
        ),
        (
            "added-linear",
            Attention::Infini,
            InfiniConfig { segment_len: 8, ..InfiniConfig::preset("added-linear").unwrap() },
        ),
        ("rmt", Attention::Rmt, InfiniConfig { summaries: 3, conv: 3, kv_conv: 3, ..base.clone() }),
        ("convolved", Attention::Infini, InfiniConfig { kv_conv: 4, ..base.clone() }),
        ("paper-linear", Attention::Infini, base.clone()),
        ("paper-delta", Attention::Infini, InfiniConfig { rule: RuleName::Delta, ..base.clone() }),
        ("selective-linear", Attention::Infini, selective.clone()),
        (
            "overlapping",
            Attention::Infini,
            InfiniConfig { lag: 0, layers: Layers::Named(LayersName::Last), ..selective.clone() },
        ),
        (
            "selective-delta",
            Attention::Infini,
            InfiniConfig {
                rule: RuleName::Delta,
                mix: MixName::Token,
                null_slot: NullSlot::Learned(Learned::Learned),
                features: FeatureName::SoftmaxPair,
                feature_width: 6,
                ..selective.clone()
            },
        ),
        (
            "gated-delta",
            Attention::Infini,
            InfiniConfig {
                rule: RuleName::GatedDelta,
                mix: MixName::Add,
                write: Write::Soft,
                null_slot: NullSlot::Fixed(0.0),
                ..selective
            },
        ),
    ];
    let make = |(name, attention, infini)| {
        let c = config(attention, infini);
        let w = Weights::init(&c, 5);
        (name, Model::new(c, w).unwrap())
    };
    kinds.into_iter().map(make).collect()
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503) >> 16) % V as u32).collect()
}

fn run(model: &Model, x: &[u32]) -> Vec<f32> {
    model.forward(&mut model.state(1), x, Want::All)
}

/// math.md §11: max |x − y| / max(1, max |y|).
fn error(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let scale = y.iter().fold(1f32, |m, v| m.max(v.abs()));
    x.iter().zip(y).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / scale
}

#[test]
fn changing_a_token_changes_nothing_before_it() {
    for (name, model) in models() {
        let mut x = tokens(45, 1);
        let before = run(&model, &x);
        for at in [0, 7, 8, 30, 44] {
            x[at] = (x[at] + 1) % V as u32;
            let after = run(&model, &x);
            assert!(error(&after[..at * V], &before[..at * V]) < 1e-6, "{name}: token {at} reached back");
            assert!(after[at * V..] != before[at * V..], "{name}: token {at} has no effect");
            x[at] = (x[at] + V as u32 - 1) % V as u32;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_split_reads_the_same(cuts in proptest::collection::vec(0usize..70, 0..6), seed in 0u32..1000) {
        for (name, model) in models() {
            let x = tokens(70, seed);
            let whole = run(&model, &x);
            let mut cuts = cuts.clone();
            cuts.sort_unstable();
            cuts.push(70);
            let (mut state, mut parts, mut from) = (model.state(1), Vec::new(), 0);
            for to in cuts {
                parts.extend(model.forward(&mut state, &x[from..to], Want::All));
                from = to;
            }
            prop_assert!(error(&parts, &whole) < 1e-5, "{name}: {}", error(&parts, &whole));
        }
    }
}

#[test]
fn a_fork_leaves_the_other_branch_alone() {
    for (name, model) in models() {
        let mut a = model.state(1);
        model.forward(&mut a, &tokens(37, 2), Want::Last);
        let untouched = a.clone();
        let mut b = a.fork();
        model.forward(&mut b, &tokens(20, 3), Want::Nothing);
        let x = model.forward(&mut a, &tokens(20, 4), Want::All);
        let y = model.forward(&mut untouched.clone(), &tokens(20, 4), Want::All);
        assert!(x == y, "{name}: the fork was felt");
    }
}

#[test]
fn rows_give_what_they_give_alone() {
    for (name, model) in models() {
        let rows: Vec<Vec<u32>> = (0..3).map(|r| tokens(41, 10 + r)).collect();
        let mut state = model.state(3);
        let joined = model.forward(&mut state, &rows.concat(), Want::All);
        for (r, row) in rows.iter().enumerate() {
            let alone = run(&model, row);
            assert!(error(&joined[r * 41 * V..(r + 1) * 41 * V], &alone) < 1e-5, "{name} row {r}");
        }
        let mut row = state.row(1);
        let x = model.forward(&mut row, &tokens(9, 20), Want::Last);
        let mut again = rows[1].clone();
        again.extend(tokens(9, 20));
        assert!(error(&x, &run(&model, &again)[49 * V..]) < 1e-5, "{name}: a row taken out");
    }
}

#[test]
fn nothing_crosses_the_start_of_a_document() {
    for (name, model) in models() {
        for at in [5, 8, 13, 29, 40] {
            let mut state = model.state(2);
            let (old, new) = (tokens(at, 31), tokens(60, 32));
            model.forward(&mut state, &old.repeat(2), Want::Nothing);
            state.start_document(1);
            let got = model.forward(&mut state, &new.repeat(2), Want::All);
            // alone, but with the segment borders where they are
            let mut alone = model.state(1);
            model.forward(&mut alone, &tokens(at, 77), Want::Nothing);
            alone.start_document(0);
            let expected = model.forward(&mut alone, &new, Want::All);
            assert!(error(&got[60 * V..], &expected) < 1e-5, "{name} at {at}");
            let carried = run(&model, &[old, new].concat());
            assert!(error(&got[..60 * V], &carried[at * V..]) < 1e-5, "{name} at {at}: the other row");
        }
    }
}

#[test]
fn size_is_constant_and_only_full_attention_grows() {
    for (name, model) in models() {
        let mut state = model.state(1);
        model.forward(&mut state, &tokens(10, 1), Want::Last);
        let size = state.size_bytes();
        model.forward(&mut state, &tokens(2000, 1), Want::Last);
        assert_eq!(state.size_bytes() > size, model.grows(), "{name}");
    }
}

#[test]
fn an_empty_memory_reads_zero_and_added_to_nothing_is_nothing() {
    // mix = add: inside the first span the logits are those of the model without a memory, bit by bit
    let infini = InfiniConfig {
        segment_len: 8,
        span: 2,
        lag: 1,
        mix: MixName::Add,
        write: Write::Soft,
        conv: 4,
        ..InfiniConfig::default()
    };
    let with = config(Attention::Infini, infini.clone());
    let without = config(Attention::Local, infini);
    let (a, b) = (Weights::init(&with, 3), Weights::init(&without, 3));
    let (with, without) = (Model::new(with, a).unwrap(), Model::new(without, b).unwrap());
    let x = tokens(40, 9);
    let (y, z) = (run(&with, &x), run(&without, &x));
    assert!(y[..16 * V] == z[..16 * V], "an empty memory changes the logits");
    assert!(y[24 * V..] != z[24 * V..], "the memory is never read");
    let mut state = with.state(1);
    state.set_knock_out(true);
    assert!(with.forward(&mut state, &x, Want::All) == z, "knocked out, but not silent");
}

#[test]
fn a_window_with_sinks_is_full_attention_over_sinks_and_window() {
    // one layer, so that keys and values depend on their token alone
    let make = |attention, sink| {
        let mut c = config(attention, InfiniConfig { segment_len: 8, span: 2, sink, ..InfiniConfig::default() });
        c.num_hidden_layers = 1;
        let w = Weights::init(&c, 4);
        Model::new(c, w).unwrap()
    };
    let (local, full) = (make(Attention::Local, 3), make(Attention::Full, 0));
    let x = tokens(61, 8);
    let y = run(&local, &x);
    for (document, document_start) in [(&x[..], 0), (&x[13..], 13)] {
        let mut state = local.state(1);
        local.forward(&mut state, &x[..document_start], Want::Nothing);
        state.start_document(0);
        let y = if document_start == 0 { y.clone() } else { local.forward(&mut state, document, Want::All) };
        for at in [5, 15, 16, 23, 24, 47] {
            let window = ((document_start + at) / 8).saturating_sub(1) * 8;
            let from = window.saturating_sub(document_start);
            let seen =
                if from == 0 { document[..=at].to_vec() } else { [&document[..3], &document[from..=at]].concat() };
            let expected = run(&full, &seen);
            let (got, expected) = (&y[at * V..(at + 1) * V], &expected[expected.len() - V..]);
            assert!(error(got, expected) < 1e-5, "token {at} of the document at {document_start}");
        }
    }
}

#[test]
fn linear_memory_does_not_care_for_the_order_of_segments() {
    // one layer, so that what a segment writes depends on the segment alone
    let infini = InfiniConfig { segment_len: 8, ..InfiniConfig::default() };
    let mut c = config(Attention::Infini, infini);
    c.num_hidden_layers = 1;
    let w = Weights::init(&c, 1);
    let model = Model::new(c, w).unwrap();
    let parts: Vec<Vec<u32>> = (0..5).map(|s| tokens(8, s)).collect();
    let read = |order: [usize; 5]| {
        let mut state = model.state(1);
        for i in order {
            model.forward(&mut state, &parts[i], Want::Nothing);
        }
        model.forward(&mut state, &tokens(6, 50), Want::All)
    };
    assert!(error(&read([0, 1, 2, 3, 4]), &read([4, 1, 3, 0, 2])) < 1e-5);
}
