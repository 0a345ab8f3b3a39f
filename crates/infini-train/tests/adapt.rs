//! A whole adaptation of a tiny base: it learns, stops and goes on bit by bit, and its file fits the base.

use std::cell::Cell;
use std::path::Path;

use infini::adapter::paper::Paper;
use infini::config::ModelConfig;
use infini::folder;
use infini::model::Want;
use infini::tasks::DataConfig;
use infini::weights::Weights;
use infini_format::tensors::Dtype;
use infini_train::Device;
use infini_train::adapt::{AdaptConfig, AdaptEvent, AdaptOptions, AdaptSummary, adapt};

fn base(dir: &Path) {
    let tokenizer = DataConfig::default().tokenizer(None, 512).unwrap();
    let config: ModelConfig = toml::from_str(
        "vocab_size = 512\nhidden_size = 32\nnum_hidden_layers = 3\nnum_attention_heads = 2\nintermediate_size = 48\n\
         tie_word_embeddings = true\nattention = \"full\"",
    )
    .unwrap();
    let weights = Weights::init(&config, 1);
    folder::save(dir, &config, &weights, &tokenizer.to_json(), Dtype::F32).unwrap();
}

fn config() -> AdaptConfig {
    AdaptConfig::parse(
        "[adapter]\nlayer = 1\nsegment_len = 96\nheads = 2\nvalue_width = 8\nword_width = 8\nplace_width = 4\n\
         [data]\ndocuments = 32\nsegments = 1\ntail = 72\ntails = 2\nnear = 0.2\nkeys = 1\nquestions = 1\nnamed = 0.5\npaper = 1\nabsent = 0\n\
         filler = { paper = 1 }\n[train]\nsteps = [24, 3, 3]\nbatch = [6, 4, 4]\nlog_every = 1\ncheckpoint_every = 5",
    )
    .unwrap()
}

/// The paper's form on the same base and documents.
fn paper() -> AdaptConfig {
    AdaptConfig::parse(
        "[adapter]\nlayer = 1\nsegment_len = 96\n[paper]\ngate = -1.0\n\
         [data]\ndocuments = 32\nsegments = 1\ntail = 72\ntails = 2\nnear = 0.2\nkeys = 1\nquestions = 1\nnamed = 0.5\npaper = 1\nabsent = 0\n\
         filler = { paper = 1 }\n[train]\nsteps = [0, 0, 16]\nlr = [0, 0, 5e-3]\nbatch = [4, 4, 4]\nwarmup = 2\ncheckpoint_every = 5\n\
         divergence = 0.1",
    )
    .unwrap()
}

/// Runs until `stop` steps are taken; the loss of every step.
fn run(config: &AdaptConfig, home: &Path, out: &Path, stop: u64) -> (AdaptSummary, Vec<f64>) {
    let taken = Cell::new(0);
    let options = AdaptOptions { out, data_dir: None, device: Device::flex(), stop: &|| taken.get() >= stop };
    let mut losses = Vec::new();
    let summary = adapt(config, folder::load(home).unwrap(), &options, &mut |event| {
        if let AdaptEvent::Step { report } = event {
            assert!(report.skipped.is_none());
            losses.push(report.answer_loss);
            taken.set(report.step + 1);
        }
    });
    (summary.unwrap(), losses)
}

#[test]
fn an_adaptation_learns_resumes_bit_by_bit_and_fits_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let [home, whole, parts] = ["home", "whole", "parts"].map(|n| dir.path().join(n));
    base(&home);
    let (summary, losses) = run(&config(), &home, &whole, u64::MAX);
    assert!(summary.finished && summary.steps == 30 && summary.held_out["answers"].n > 0);
    assert!(losses[23] < 0.96 * losses[0], "the first stage does not learn: {losses:?}");
    let adapter = std::fs::read(whole.join("adapter.safetensors")).unwrap();
    for stop in [7, 25, u64::MAX] {
        let (summary, _) = run(&config(), &home, &parts, stop);
        assert_eq!(summary.finished, stop == u64::MAX);
    }
    assert!(adapter == std::fs::read(parts.join("adapter.safetensors")).unwrap(), "going on is another computation");
    let resolved = std::fs::read_to_string(whole.join("config.toml")).unwrap();
    assert_eq!(AdaptConfig::parse(&resolved).unwrap(), config());
    let (tokens, answers) = (summary.held_out["tokens"], summary.held_out["answers"]);
    assert!(tokens.n > answers.n && answers.n == summary.held_out["ends"].n, "{:?}", summary.held_out);
    assert_eq!(std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap().lines().count(), 30);

    let mut loaded = folder::load(&home).unwrap();
    loaded.attach(&whole.join("adapter.safetensors")).unwrap();
    let ids: Vec<u32> = (0..400).map(|i| i * 7 % 512).collect();
    let logits = loaded.model.forward(&mut loaded.model.state(1), &ids, Want::Last);
    assert!(logits.iter().all(|x| x.is_finite()));
    let config = AdaptConfig { train: Default::default(), ..config() };
    let options = AdaptOptions { out: &whole, data_dir: None, device: Device::flex(), stop: &|| false };
    let refused = adapt(&config, folder::load(&home).unwrap(), &options, &mut |_| ()).unwrap_err().to_string();
    assert!(refused.contains("another configuration"), "{refused}");
}

#[test]
fn the_papers_form_learns_resumes_bit_by_bit_and_fits_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let [home, whole, parts] = ["home", "whole", "parts"].map(|n| dir.path().join(n));
    base(&home);
    let (summary, losses) = run(&paper(), &home, &whole, u64::MAX);
    assert!(summary.finished && summary.steps == 16 && summary.held_out["answers"].n > 0);
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    assert!(mean(&losses[12..]) < 0.96 * mean(&losses[..4]), "it does not learn: {losses:?}");
    for stop in [7, u64::MAX] {
        run(&paper(), &home, &parts, stop);
    }
    let file = |out: &Path| std::fs::read(out.join("adapter.safetensors")).unwrap();
    assert!(file(&whole) == file(&parts), "going on is another computation");

    let load = || folder::load(&home).unwrap();
    let mut loaded = load();
    loaded.attach(&whole.join("adapter.safetensors")).unwrap();
    let learned = Paper::parse(file(&whole)).unwrap();
    assert_eq!(learned.base(), load().identity.weights);
    assert!(learned.get("infini.beta").iter().all(|b| *b != -1.0), "a gate was not learned");
    let (before, after) = (load(), loaded.model.layer(1));
    let before = before.model.layer(1);
    assert!(before.q != after.q && before.k != after.k && before.v != after.v && before.o != after.o);
    assert!(before.up == after.up && load().model.embedding() == loaded.model.embedding(), "the base has changed");
    let ids: Vec<u32> = (0..400).map(|i| i * 7 % 512).collect();
    let mut deaf = loaded.model.state(1);
    deaf.set_knock_out(true);
    let [heard, deaf] =
        [loaded.model.state(1), deaf].map(|mut state| loaded.model.forward(&mut state, &ids, Want::Last));
    assert!(heard.iter().all(|x| x.is_finite()) && heard != deaf);
}
