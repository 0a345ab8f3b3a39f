//! Recurrent Memory Transformer (Bulatov, Kuratov, Burtsev 2022, arXiv 2207.06881): segments pass through all layers one
//! after the other, each with the summaries that the one before left in front and behind. The gradient reaches back through
//! every segment of the step. `infini::model` says what exactly is computed.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Forward, Layer};
use crate::carry::Carry;
use crate::ops::{Body, Tokens};
use crate::parameters::Parameters;
use infini::config::{ModelConfig, SUMMARIES};

/// [`super::forward_carried`] of such a decoder.
pub(super) fn forward(
    body: Body,
    c: &ModelConfig,
    p: &Parameters,
    t: &Tokens,
    before: Option<&Carry>,
    keep: bool,
) -> (Forward, Option<Carry>) {
    let layout = c.layout();
    let (b, d, n, segment) = (t.batch, c.hidden_size, c.summaries(), c.infini.segment_len);
    let x = body.embedding(p.get("model.embed_tokens.weight"), t).reshape([b, t.len, d]);
    let first = p.get::<2>(SUMMARIES).unsqueeze::<3>().repeat_dim(0, b);
    let mut summaries = match before.and_then(|before| before.get(0, "summaries")) {
        None => first.clone(),
        Some(values) => {
            Tensor::from_data(TensorData::new(values.to_vec(), [b, n, d]), (&first.device(), first.dtype()))
        }
    };
    let begins = |row: usize, i: usize| t.reset.is_some_and(|r| r[row * t.len + i] != 0);
    let mut hidden = Vec::new();
    for from in (0..t.len).step_by(segment) {
        let len = segment.min(t.len - from);
        let whole = len == segment;
        // a document that begins with the segment reads the first summaries, one that begins inside passes them on
        let read = choose(&summaries, &first, |row| begins(row, from));
        let passed = choose(&summaries, &first, |row| (from..from + len).any(|i| begins(row, i)));
        let mut parts = vec![read, x.clone().narrow(1, from, len)];
        parts.extend(whole.then_some(passed));
        let longer = n + len + if whole { n } else { 0 };
        let mut y = Tensor::cat(parts, 1).reshape([b * longer, d]);
        let flag = |row: usize, i: usize| i > n && i < n + len && begins(row, from + i - n);
        let reset: Vec<u8> = (0..b * longer).map(|i| u8::from(flag(i / longer, i % longer))).collect();
        let reset = reset.contains(&1).then_some(&reset[..]);
        let tokens = Tokens { ids: t.ids, reset, batch: b, len: longer };
        for l in 0..c.num_hidden_layers {
            let layer = Layer { body, c: &layout, p, l, before: None };
            let h = layer.norm("input_layernorm", y.clone());
            y = layer.mlp(y + layer.attention(h, &tokens, &mut Vec::new(), &mut None));
        }
        let y = body.rms_norm(y, p.get("model.norm.weight"), c.rms_norm_eps).reshape([b, longer, d]);
        if whole {
            summaries = y.clone().narrow(1, n + len, n);
        }
        hidden.push(y.narrow(1, n, len));
    }
    let after = keep.then(|| {
        let mut after = Carry::new(c, t);
        let values = summaries.detach().into_data_dtype(DType::F32).try_into_vec::<f32>();
        after.put(0, "summaries", values.expect("f32 was asked for"));
        after
    });
    let hidden = Tensor::cat(hidden, 1).reshape([b * t.len, d]);
    (Forward { hidden, gates: Vec::new() }, after)
}

/// `[B, n, d]`: `first` in the rows that say so, `x` in the others.
fn choose(x: &Tensor<3>, first: &Tensor<3>, fresh: impl Fn(usize) -> bool) -> Tensor<3> {
    let b = x.dims()[0];
    let mask: Vec<f32> = (0..b).map(|row| f32::from(u8::from(fresh(row)))).collect();
    if mask.iter().all(|m| *m == 0.0) {
        return x.clone();
    }
    let mask = Tensor::<3>::from_data(TensorData::new(mask, [b, 1, 1]), (&x.device(), x.dtype()));
    x.clone() * (mask.clone() * -1.0 + 1.0) + first.clone() * mask
}
