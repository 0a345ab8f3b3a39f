//! No bytes crash the readers of configurations, and one that is accepted has sizes that can be computed with.
#![no_main]

use infini::ModelConfig;
use infini_fuzz::edit;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

// By their files: the crate they belong to brings Burn, which takes longer to build than all else here.
#[allow(dead_code)]
#[path = "../../crates/infini-train/src/adapt/config.rs"]
mod adapt_config;
#[allow(dead_code)]
#[path = "../../crates/infini-train/src/config.rs"]
mod config;

use adapt_config::AdaptConfig;
use config::Config;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        // a whole file, and one setting behind a file that holds
        toml(text, &[]);
        toml(RUN, &[text.to_string()]);
        let _ = AdaptConfig::parse(text);
    }
    if let Ok(config) = serde_json::from_slice(data) {
        model(config);
    }
    model(edit(serde_json::from_str(MODEL).expect("JSON"), data));
});

const RUN: &str = include_str!("../../configs/passkey/selective-linear.toml");
const MODEL: &str = include_str!("../../models/passkey/config.json");

fn toml(text: &str, set: &[String]) {
    if let Ok(config) = Config::parse(text, set) {
        let again = Config::parse(&config.to_toml(), &[]).expect("what was accepted is accepted again");
        assert!(again == config, "a configuration that is written is another one");
        sizes(&config.model);
    }
}

fn model(json: Value) {
    if let Ok(config) = serde_json::from_value::<ModelConfig>(json)
        && config.check().is_ok()
    {
        sizes(&config);
    }
}

fn sizes(config: &ModelConfig) {
    for p in config.parameters() {
        let n = p.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        assert!(n.is_some(), "{} has more numbers than can be counted", p.name);
    }
    (0..config.num_hidden_layers).for_each(|l| drop(config.kernel_settings(l)));
}
