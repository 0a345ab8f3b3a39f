//! The golden op files, by the f64 reference and by every f32 path.

use infini_kernels::conformance::{Case, Deviation, Tensor, check_kernels, check_reference};
use infini_kernels::simd::{Level, force};
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

fn settings(j: &Value) -> Settings {
    let text = |k: &str| j[k].as_str().unwrap_or_default();
    let size = |k: &str| j[k].as_u64().unwrap() as usize;
    assert_eq!(size("pos0"), 0);
    Settings {
        rule: match text("rule") {
            "linear" => Rule::Linear,
            "delta" => Rule::Delta,
            "seqdelta" => Rule::SeqDelta,
            x => panic!("rule {x}"),
        },
        features: match text("fmap") {
            "elu1" => Features::Elu1,
            "softmax_pair" => Features::SoftmaxPair,
            "l2" => Features::L2,
            x => panic!("fmap {x}"),
        },
        mix: match text("mix") {
            "head" => Mix::Head,
            "token" => Mix::Token,
            "add" => Mix::Add,
            x => panic!("mix {x}"),
        },
        rope: match text("rope") {
            "none" => Rope::None,
            "half" => Rope::Half,
            "interleaved" => Rope::Interleaved,
            x => panic!("rope {x}"),
        },
        theta: j["theta"].as_f64().unwrap(),
        segment_len: size("S"),
        span: size("span"),
        lag: size("lag"),
        final_state: match text("final") {
            "closed" => FinalState::Closed,
            "flush" => FinalState::Flush,
            x => panic!("final {x}"),
        },
    }
}

/// Every `op_*.safetensors` of the repository, by name.
fn cases() -> Vec<(String, Case)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        if !name.starts_with("op_") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let (_, meta) = SafeTensors::read_metadata(&bytes).unwrap();
        let j: Value = serde_json::from_str(&meta.metadata().as_ref().unwrap()["settings"]).unwrap();
        let tensors: BTreeMap<String, Tensor> = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(n, t)| {
                let data = match t.dtype() {
                    Dtype::F64 => t.data().chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect(),
                    Dtype::U8 => t.data().iter().map(|x| f64::from(*x)).collect(),
                    x => panic!("{n}: {x:?}"),
                };
                (n, Tensor { shape: t.shape().to_vec(), data })
            })
            .collect();
        cases.push((name, Case { settings: settings(&j), tensors, f32_err_grad: j["f32_err_grad"].as_f64().unwrap() }));
    }
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(cases.len(), 30, "golden op files");
    cases
}

/// Every tensor within its bound, else all that are not.
fn assert_passed(what: &str, found: &[(String, Vec<Deviation>)]) {
    let worst = found.iter().flat_map(|(_, d)| d).fold(0.0, |m: f64, d| m.max(d.error));
    let tensors: usize = found.iter().map(|(_, d)| d.len()).sum();
    println!("{what}: {tensors} tensors, worst error {worst:.2e}");
    let failed: Vec<String> =
        found.iter().flat_map(|(n, d)| d.iter().filter(|d| !d.passed()).map(move |d| format!("{n} {d:?}"))).collect();
    assert!(failed.is_empty(), "{what}:\n{}", failed.join("\n"));
    assert!(tensors > 400, "{what}: only {tensors} tensors were compared");
}

#[test]
fn reference() {
    let found: Vec<_> = cases().iter().map(|(n, c)| (n.clone(), check_reference(c).unwrap())).collect();
    assert_passed("f64 reference", &found);
}

/// The one test of this file that forces a level.
#[test]
fn kernels_at_every_level() {
    let cases = cases();
    for level in Level::available() {
        force(Some(level));
        let found: Vec<_> = cases.iter().map(|(n, c)| (n.clone(), check_kernels(c).unwrap())).collect();
        force(None);
        assert_passed(level.name(), &found);
    }
}
