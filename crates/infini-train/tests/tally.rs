//! A counting memory is learned for a tiny base: what recurs becomes likelier, what is foreign does no harm.

use infini::config::ModelConfig;
use infini::folder;
use infini::tasks::DataConfig;
use infini::weights::Weights;
use infini_format::tensors::Dtype;
use infini_train::tally::{Before, TallyRun, learn};

#[test]
fn what_recurs_becomes_likelier() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("base");
    let tokenizer = DataConfig::default().tokenizer(None, 512).unwrap();
    let config: ModelConfig = toml::from_str(
        "vocab_size = 512\nhidden_size = 32\nnum_hidden_layers = 2\nnum_attention_heads = 2\nintermediate_size = 48\n\
         tie_word_embeddings = true\nattention = \"full\"",
    )
    .unwrap();
    let weights = Weights::init(&config, 1);
    folder::save(&home, &config, &weights, &tokenizer.to_json(), Dtype::F32).unwrap();
    std::fs::create_dir(dir.path().join("train")).unwrap();
    for (name, words) in
        [("a", "the red fox ran home. "), ("b", "under old stones it slept; "), ("c", "We sail at dawn! ")]
    {
        std::fs::write(dir.path().join(format!("train/{name}.txt")), words.repeat(150)).unwrap();
    }
    let run = TallyRun::parse(
        "[tally]\nsegment_len = 32\ncells = 4096\n[data]\nexcerpts = 36\nheld_out = 12\ntokens = 160\nbefore = 500",
    )
    .unwrap();
    let learned = |stop: bool| {
        let mut all = Vec::new();
        let tally = learn(&run, folder::load(&home).unwrap(), dir.path(), &|| stop, &mut |e| all.push(e)).unwrap();
        (tally, all)
    };
    let (tally, all) = learned(false);
    assert!(all.len() == 36 && all.iter().all(|e| e.loss > 5.0));
    let mean = |before: Before| {
        let of: Vec<f64> = all[24..].iter().filter(|e| e.before == before).map(|e| e.gain).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    assert!(mean(Before::Own) > 1.0, "{all:?}");
    let file = dir.path().join("adapter.safetensors");
    tally.clone().unwrap().save(&file).unwrap();
    folder::load(&home).unwrap().attach(&file).unwrap();
    assert_eq!(learned(false).0, tally, "another run learns something else");
    assert!(learned(true).0.is_none());
    assert!(TallyRun::parse("[tally]\ncells = 3").unwrap_err().to_string().contains("power of two"));
    assert!(TallyRun::parse("[tally]\n[data]\ntokens = 600").unwrap_err().to_string().contains("data.tokens"));
}
