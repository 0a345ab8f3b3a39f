//! Golden files of one Infini-attention.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor as Burn, TensorData};

use super::{Row, at_every_level, deviation, number, size, word};
use crate::ops::composed_attention::{State, attention};
use crate::ops::{AttentionInputs, HeadShape, Tokens};
use infini_kernels::conformance::{self, Case, Deviation, F32_BOUND, F64_BOUND, Tensor};
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};

/// The kernel settings in the files' vocabulary.
pub(super) fn settings(s: &serde_json::Value) -> Result<Settings, String> {
    let rule = word(s, "rule", |n| match n {
        "linear" => Some(Rule::Linear),
        "delta" => Some(Rule::Delta),
        "seqdelta" => Some(Rule::SeqDelta),
        _ => None,
    })?;
    let features = word(s, "fmap", |n| match n {
        "elu1" => Some(Features::Elu1),
        "softmax_pair" => Some(Features::SoftmaxPair),
        "l2" => Some(Features::L2),
        _ => None,
    })?;
    let mix = word(s, "mix", |n| match n {
        "head" => Some(Mix::Head),
        "token" => Some(Mix::Token),
        "add" => Some(Mix::Add),
        _ => None,
    })?;
    let rope = word(s, "rope", |n| match n {
        "none" => Some(Rope::None),
        "half" => Some(Rope::Half),
        "interleaved" => Some(Rope::Interleaved),
        _ => None,
    })?;
    let final_state = word(s, "final", |n| match n {
        "closed" => Some(FinalState::Closed),
        "flush" => Some(FinalState::Flush),
        _ => None,
    })?;
    let (segment_len, span, lag) = (size(s, "S")?, size(s, "span")?, size(s, "lag")?);
    Ok(Settings { rule, features, mix, rope, theta: number(s, "theta")?, segment_len, span, lag, final_state })
}

pub(super) fn check(text: &str, tensors: BTreeMap<String, Tensor>) -> Result<Vec<Row>, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("settings: {e}"))?;
    let case = Case { settings: settings(&json)?, tensors, f32_err_grad: number(&json, "f32_err_grad")? };
    let mut rows = vec![Row { executor: "reference f64".into(), tensors: conformance::check_reference(&case)? }];
    for (level, tensors) in at_every_level(|level| (level, conformance::check_kernels(&case))) {
        rows.push(Row { executor: format!("kernels {}", level.name()), tensors: tensors? });
    }
    for dtype in [DType::F32, DType::F64] {
        let executor = format!("composed {}", if dtype == DType::F32 { "f32" } else { "f64" });
        rows.push(Row { executor, tensors: composed(&case, dtype)? });
    }
    Ok(rows)
}

/// The composed body with the loss `Σ up · out` through autodiff.
fn composed(case: &Case, dtype: DType) -> Result<Vec<Deviation>, String> {
    let dims = case.dims()?;
    let s = &case.settings;
    let device = Device::flex().autodiff();
    let (rows, n) = (dims.b * dims.t, dims.hkv);
    let data = |name: &str| case.tensors.get(name).map(|t| t.data.clone());
    let flat = |name: &str| -> Option<Burn<1>> {
        let data = data(&format!("in.{name}"))?;
        Some(Burn::from_data(TensorData::new(data.clone(), [data.len()]), (&device, dtype)).require_grad())
    };
    const NAMES: [&str; 11] = ["q", "k", "v", "w", "a", "c", "beta", "gate", "fmap_w", "M0", "z0"];
    let leaves: BTreeMap<&str, Burn<1>> = NAMES.into_iter().filter_map(|name| Some((name, flat(name)?))).collect();
    let leaf = |name: &str| leaves.get(name).cloned();
    let matrix = |name: &str| {
        leaf(name).map(|x| {
            let c = x.dims()[0] / rows.max(1);
            x.reshape([rows, c])
        })
    };
    let x = AttentionInputs {
        q: matrix("q").ok_or("in.q is missing")?,
        k: matrix("k").ok_or("in.k is missing")?,
        v: matrix("v").ok_or("in.v is missing")?,
        w: matrix("w"),
        a: matrix("a"),
        c: leaf("c"),
        beta: leaf("beta"),
        gate: matrix("gate"),
        fmap: leaf("fmap_w").map(|w| {
            let f = w.dims()[0] / (n * dims.d);
            w.reshape([n, dims.d, f])
        }),
    };
    let start = leaf("M0").map(|m| State {
        m: m.reshape([dims.b, n, dims.f, dims.dv]),
        z: match leaf("z0") {
            Some(z) => z.reshape([dims.b, n, dims.f, 1]),
            None => Burn::zeros([dims.b, n, dims.f, 1], (&device, dtype)),
        },
    });
    let reset: Option<Vec<u8>> = data("in.reset").map(|r| r.iter().map(|x| u8::from(*x != 0.0)).collect());
    let ids = vec![0; rows];
    let tokens = Tokens { ids: &ids, reset: reset.as_deref(), batch: dims.b, len: dims.t };
    let shape = HeadShape { heads: dims.h, kv_heads: n, width: dims.d };
    let (y, state) = attention(s, shape, &x, &tokens, start);
    let outputs = [("y", y.reshape([-1])), ("M", state.m.reshape([-1])), ("z", state.z.reshape([-1]))];

    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut loss = Burn::<1>::zeros([1], (&device, dtype));
    for (name, out) in outputs {
        let Some(up) = data(&format!("up.{name}")) else { continue };
        found.insert(format!("out.{name}"), values(&out)?);
        loss = loss + (out * Burn::from_data(TensorData::new(up.clone(), [up.len()]), (&device, dtype))).sum();
    }
    let grads = loss.backward();
    for (name, leaf) in &leaves {
        // a leaf that nothing depends on has the gradient 0
        let g = leaf.grad(&grads).map_or_else(|| Ok(vec![0.0; leaf.dims()[0]]), |g| values(&g))?;
        found.insert(format!("grad.{name}"), g);
    }
    let (bound, relaxed) = match dtype {
        DType::F64 => (F64_BOUND, 0.0),
        _ => (F32_BOUND, 8.0 * case.f32_err_grad),
    };
    let compared = found.into_iter().filter_map(|(name, x)| {
        let expected = case.tensors.get(&name)?;
        let bound = if name.starts_with("grad.") { bound.max(relaxed) } else { bound };
        Some(deviation(name, &x, &expected.data, bound))
    });
    Ok(compared.collect())
}

/// A tensor's elements in f64.
pub(super) fn values<const D: usize>(x: &Burn<D>) -> Result<Vec<f64>, String> {
    x.clone().detach().into_data_dtype(DType::F64).try_into_vec().map_err(|e| format!("{e:?}"))
}
