//! The paper's form in training: equations (3), (4) and (10) of `docs/math.md` for one layer whose inputs are cached.
//!
//! Writes are sums, so every segment's is computed once in a step, and the memory of a document is the sum of those it
//! holds: its own but the last, which its window still shows, those of documents with other names, and segments of others
//! without a key. The tail reads it; then come the frozen layers above.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, activation};
use infini::adapter::paper::{Paper, PaperConfig};
use infini::model::Model;
use infini_kernels::Features;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batch::{Batch, together};
use super::config::AdaptConfig;
use super::leaves::{Leaves, host};
use super::pool::{Document, Tail};
use super::stages::{Report, Stages, held_out, upper};
use super::upper::{Upper, constant};
use super::whiten::Whitening;
use crate::error::Result;
use crate::ops::composed_attention::phi;
use crate::ops::{Body, HeadShape};

/// The gates' logits β, one for each query head.
pub const GATES: &str = "infini.beta";
/// The layer's tensors, named as in [`Paper`].
const LEARNED: [&str; 8] = [
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "o_proj.weight",
    "q_proj.bias",
    "k_proj.bias",
    "v_proj.bias",
    GATES,
];

/// Where an adaptation puts the memory.
fn sizes(config: &AdaptConfig) -> PaperConfig {
    let a = &config.adapter;
    PaperConfig { layer: a.layer, segment_len: a.segment_len, sink: a.sink }
}

impl<'a> Stages<'a> {
    /// The paper's form on `model`: the layer begins as the base's, its gates nearly shut.
    ///
    /// # Panics
    /// If the configuration is of the other form.
    pub fn paper_form(config: &'a AdaptConfig, model: &'a Model, documents: Vec<Document>, device: &Device) -> Self {
        let device = device.clone().autodiff();
        let gate = config.paper.as_ref().expect("the configuration has a section [paper]").gate;
        Stages {
            held_out: held_out(documents.len()),
            class: Vec::new(),
            body: Body::of(&device),
            upper: upper(config, model, &device),
            leaves: Leaves::new(start(&sizes(config), model, gate as f32), &device),
            documents,
            words: Whitening::default(),
            scale: 0.0,
            width: model.config().hidden_size,
            embedding: Vec::new(),
            config,
            model,
            device,
        }
    }

    /// The adapter as it is, bound to the base of hash `base`.
    pub(super) fn paper(&self, base: &str) -> Result<Paper> {
        let sizes = sizes(self.config);
        let parameters = sizes.parameters(self.model.config()).into_iter();
        let tensors: BTreeMap<_, _> = parameters
            .map(|(name, shape)| {
                let x = self.leaves.values(&name);
                (name, (shape, x))
            })
            .collect();
        Ok(Paper::new(sizes, base.to_string(), tensors)?)
    }

    /// The loss over documents, each with one of its tails.
    pub(super) fn paper_loss(&self, docs: Vec<(&Document, &Tail)>, rng: &mut ChaCha8Rng) -> (Tensor<1>, Report) {
        let t = &self.config.train;
        let layer = Layer { shape: shape(self.model), leaves: &self.leaves, body: self.body };
        let (b, len, d) = (docs.len(), 1 + self.config.data.tail, self.width);
        let (joined, filler) = together(&docs, t.together * rng.random::<f64>(), rng);
        let held = held(&docs, self.config.adapter.segment_len, &joined, &filler);
        let x: Vec<f32> = docs.iter().flat_map(|(doc, _)| &doc.x).copied().collect();
        let x = constant(x, [held.len() / b * self.config.adapter.segment_len, d], &self.device);
        let residual = docs.iter().flat_map(|(_, tail)| &tail.residual).copied().collect();
        let residual = constant(residual, [b * len, d], &self.device);
        let written = layer.written(x, self.config.adapter.segment_len);
        let hidden = self.upper.hidden(self.upper.above(layer.forward(&self.upper, residual, &written, held)));

        // which tokens answer, all tokens of tails being queries; what the other form would write is of no use here
        let batch = Batch::new(t, 2, docs, 0, &|_, _| false, rng);
        let gates = host(activation::sigmoid(self.leaves.get::<1>(GATES)));
        let open = gates.iter().map(|g| f64::from(*g)).sum::<f64>() / gates.len() as f64;
        let mut report = Report {
            stage: 2,
            together: joined.iter().flatten().filter(|j| **j).count() as f64 / b as f64,
            written: [1.0; 2],
            read: [open; 2],
            ..Report::default()
        };
        let tails = hidden.reshape([b, len, d]).narrow(1, 1, len - 1).reshape([b * (len - 1), d]);
        (self.spoken(&batch, tails, &mut report), report)
    }
}

/// First values: the base's own layer.
fn start(sizes: &PaperConfig, model: &Model, gate: f32) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
    let w = model.layer(sizes.layer);
    let bias: [Vec<f32>; 3] = w.bias.map(|b| b.map(<[f32]>::to_vec)).unwrap_or_default();
    let mut values: Vec<Vec<f32>> = vec![w.q, w.k, w.v, w.o];
    values.extend(bias);
    values.push(vec![gate; model.config().num_attention_heads]);
    let mut shapes: BTreeMap<String, Vec<usize>> = sizes.parameters(model.config()).into_iter().collect();
    // a base without biases has no shapes for them
    LEARNED.into_iter().zip(values).filter_map(|(name, x)| Some((name, shapes.remove(name)?, x))).collect()
}

fn shape(model: &Model) -> HeadShape {
    let c = model.config();
    HeadShape { heads: c.num_attention_heads, kv_heads: c.kv_heads(), width: c.head_width() }
}

/// Whether each document's memory holds each segment of all, `[B, S]`.
fn held(docs: &[(&Document, &Tail)], segment: usize, joined: &[Vec<bool>], filler: &[Vec<bool>]) -> Vec<f32> {
    let held = move |b: usize| {
        docs.iter().enumerate().flat_map(move |(i, (doc, _))| {
            let last = doc.key.len() / segment - 1;
            doc.key.chunks(segment).enumerate().map(move |(s, key)| match i == b {
                true => s < last,
                false => joined[b][i] || (filler[b][i] && !key.contains(&true)),
            })
        })
    };
    (0..docs.len()).flat_map(held).map(|held| f32::from(u8::from(held))).collect()
}

/// The layer with the memory on one step's tokens.
struct Layer<'a> {
    shape: HeadShape,
    leaves: &'a Leaves,
    body: Body,
}

/// What each of S segments writes: M `[S, Hkv D D]` and z `[S, Hkv D]`.
struct Written {
    m: Tensor<2>,
    z: Tensor<2>,
}

impl Layer<'_> {
    /// Queries, keys or values of normalised inputs, without positions.
    fn project(&self, which: &str, x: Tensor<2>) -> Tensor<2> {
        let y = self.body.linear(x, self.leaves.get(&format!("{which}_proj.weight")));
        let bias = format!("{which}_proj.bias");
        if self.leaves.has(&bias) { y + self.leaves.get::<1>(&bias).unsqueeze() } else { y }
    }

    /// (4) from nothing, each segment by itself; `x [S segment, d]` are normalised inputs.
    fn written(&self, x: Tensor<2>, segment: usize) -> Written {
        let HeadShape { kv_heads: n, width: d, .. } = self.shape;
        let s = x.dims()[0] / segment;
        let split = |y: Tensor<2>| y.reshape([s, segment, n, d]).swap_dims(1, 2);
        let k = phi(split(self.project("k", x.clone())), Features::Elu1, None);
        let v = split(self.project("v", x));
        Written { m: k.clone().swap_dims(2, 3).matmul(v).reshape([s, n * d * d]), z: k.sum_dim(2).reshape([s, n * d]) }
    }

    /// (3): what queries `[B L, H D]` read of memories `[B, S]` of segments. None is empty: there is nothing to guard.
    fn read(&self, q: Tensor<2>, written: &Written, held: Tensor<2>) -> Tensor<2> {
        let HeadShape { heads: h, kv_heads: n, width: d } = self.shape;
        let (b, g) = (held.dims()[0], h / n);
        let len = q.dims()[0] / b;
        // the queries of a group side by side
        let q = q.reshape([b, len, n, g * d]).swap_dims(1, 2).reshape([b, n, len * g, d]);
        let q = phi(q, Features::Elu1, None);
        let m = held.clone().matmul(written.m.clone()).reshape([b, n, d, d]);
        let z = held.matmul(written.z.clone()).reshape([b, n, d, 1]);
        let a = q.clone().matmul(m) / q.matmul(z);
        a.reshape([b, n, len, g * d]).swap_dims(1, 2).reshape([b * len, h * d])
    }

    /// What leaves the layer's attention for a residual stream `[B (1 + U), d]` of first tokens and tails. First tokens
    /// stand before everything that was written: they read zero.
    fn forward(&self, upper: &Upper, residual: Tensor<2>, written: &Written, held: Vec<f32>) -> Tensor<2> {
        let HeadShape { heads: h, width: d, .. } = self.shape;
        let (s, rows, device) = (written.m.dims()[0], residual.dims()[0], residual.device());
        let b = held.len() / s;
        let x = upper.normed(residual.clone());
        let qkv = ["q", "k", "v"].map(|which| self.project(which, x.clone()));
        let read = self.read(qkv[0].clone(), written, constant(held, [b, s], &device)).reshape([b, rows / b, h * d]);
        let first = Tensor::<3>::zeros([b, 1, h * d], (&device, DType::F32));
        let read = Tensor::cat(vec![first, read.narrow(1, 1, rows / b - 1)], 1).reshape([rows, h, d]);
        let window = upper.window(qkv).reshape([rows, h, d]);
        let gate = activation::sigmoid(self.leaves.get::<1>(GATES)).reshape([1, h, 1]);
        let y = (window.clone() + (read - window) * gate).reshape([rows, h * d]);
        residual + self.body.linear(y, self.leaves.get("o_proj.weight"))
    }
}

#[cfg(test)]
mod tests {
    use infini::config::ModelConfig;
    use infini::model::Want;
    use infini::weights::Weights;

    use super::*;

    /// The last segment of a document whose tail is the whole window: the graph's logits are the stream's.
    #[test]
    fn the_streaming_layer_computes_the_same() {
        const SEGMENT: usize = 6;
        const V: usize = 29;
        let base: ModelConfig = toml::from_str(&format!(
            "vocab_size = {V}\nhidden_size = 24\nnum_hidden_layers = 1\nnum_attention_heads = 4\n\
             num_key_value_heads = 2\nhead_dim = 6\nintermediate_size = 8\ntie_word_embeddings = true\n\
             qkv_bias = true\nattention = \"full\""
        ))
        .unwrap();
        let model = Model::new(base.clone(), Weights::init(&base, 5)).unwrap();
        let sizes = PaperConfig { layer: 0, segment_len: SEGMENT, sink: 1 };
        let device = Device::flex().autodiff();
        let mut values = start(&sizes, &model, -0.4);
        assert_eq!(values.iter().map(|v| v.0).collect::<Vec<_>>(), LEARNED);
        // as if learned, biases and gates too
        for (i, (_, _, x)) in values.iter_mut().enumerate() {
            x.iter_mut().enumerate().for_each(|(j, x)| *x += 0.2 * ((j as f32 + 1.0) * (0.3 + i as f32)).sin());
        }
        let tensors = values.iter().map(|(name, shape, x)| (name.to_string(), (shape.clone(), x.clone())));
        let paper = Paper::new(sizes, "0".repeat(64), tensors.collect()).unwrap();
        let mut streaming = Model::new(base.clone(), Weights::init(&base, 5)).unwrap();
        streaming.attach_paper(&paper).unwrap();
        let ids: Vec<u32> = (0..5 * SEGMENT as u32).map(|i| i * 11 % V as u32).collect();
        let streamed = streaming.forward(&mut streaming.state(1), &ids, Want::All);

        let (tail, d) = (2 * SEGMENT, base.hidden_size);
        let embedding = model.embedding();
        let rows = |ids: &[u32]| ids.iter().flat_map(|i| &embedding[*i as usize * d..][..d]).copied().collect();
        let upper = Upper::new(&model, 0, tail, tail, &device);
        let leaves = Leaves::new(values, &device);
        let layer = Layer { shape: shape(&model), leaves: &leaves, body: Body::of(&device) };
        let remembered = upper.normed(constant(rows(&ids[..3 * SEGMENT]), [3 * SEGMENT, d], &device));
        let written = layer.written(remembered, SEGMENT);
        let residual = [&ids[..1], &ids[3 * SEGMENT..]].concat();
        // twice, the second time in a memory that is not the document's
        let residual = constant(rows(&residual.repeat(2)), [2 * (1 + tail), d], &device);
        let y = layer.forward(&upper, residual, &written, vec![1.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
        let logits = host(upper.logits(upper.hidden(upper.above(y))));
        let worst = |row: usize, first: usize, n: usize| {
            let (ours, theirs) = (&logits[row * V..(row + n) * V], &streamed[first * V..(first + n) * V]);
            ours.iter().zip(theirs).fold(0f32, |m, (x, y)| m.max((x - y).abs()))
        };
        assert!(worst(0, 0, 1) < 1e-4, "the first token: {}", worst(0, 0, 1));
        let (row, first) = (1 + SEGMENT, 4 * SEGMENT);
        assert!(worst(row, first, SEGMENT) < 1e-4, "{}", worst(row, first, SEGMENT));
        assert!(worst(1 + tail + row, first, SEGMENT) > 1e-3, "the memory is not felt");
    }

    #[test]
    fn a_memory_holds_its_own_past_and_of_others_what_does_not_answer() {
        let document = |name: &str, segments: usize| {
            let key = (0..4 * segments).map(|j| j == 1).collect();
            let names = vec![name.to_string()];
            Document { ids: vec![7; 4 * segments], key, names, paper: true, x: Vec::new(), tails: Vec::new() }
        };
        let (one, two) = (document("one", 3), document("two", 2));
        let tail = Tail { ids: vec![], answer: vec![], key: vec![], residual: vec![], hidden: vec![] };
        let docs = [(&one, &tail), (&two, &tail)];
        let held = |joined: bool, filler: bool| {
            let square = |x: bool, own| vec![vec![own, x], vec![x, own]];
            held(&docs, 4, &square(joined, true), &square(filler, false))
        };
        assert_eq!(held(false, false), [1., 1., 0., 0., 0., 0., 0., 0., 1., 0.]);
        assert_eq!(held(false, true), [1., 1., 0., 0., 1., 0., 1., 1., 1., 0.]);
        assert_eq!(held(true, false), [1., 1., 0., 1., 1., 1., 1., 1., 1., 0.]);
    }
}
