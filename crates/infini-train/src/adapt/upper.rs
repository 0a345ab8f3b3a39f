//! The frozen layers from the memory on, over the first token and the tail of each document.
//!
//! A tail sees itself and the document's first token (the attention sink), at the distance that the end of a window
//! has from it. What the rest of the window would add is left out: it is the same with and without a memory.

use burn::tensor::{DType, Device, Tensor, TensorData};
use infini::model::Model;
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings, rope};

use crate::ops::{AttentionInputs, Body, HeadShape, Tokens};

/// Frozen weights as untracked tensors.
#[derive(Debug)]
struct Layer {
    attention_norm: Tensor<1>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    /// Of q, k and v.
    bias: Option<[Tensor<1>; 3]>,
    o: Tensor<2>,
    mlp_norm: Tensor<1>,
    gate: Option<Tensor<2>>,
    up: Tensor<2>,
    down: Tensor<2>,
}

/// The layers, the final norm and the head.
#[derive(Debug)]
pub struct Upper {
    body: Body,
    layers: Vec<Layer>,
    norm: Tensor<1>,
    head: Tensor<2>,
    shape: HeadShape,
    settings: Settings,
    eps: f64,
    /// Cosines and sines that move the tail away from the first token, `[1, 1 + U, 1, 1, D/2]`.
    away: [Tensor<5>; 2],
    tail: usize,
}

/// An untracked tensor.
pub fn constant<const D: usize>(x: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(x, shape), (device, DType::F32))
}

impl Upper {
    /// The layers from `first` on. The last token of the tail stands at `end` in its window.
    pub fn new(model: &Model, first: usize, tail: usize, end: usize, device: &Device) -> Self {
        let c = model.config();
        let (d, width) = (c.hidden_size, c.head_width());
        let vector = |x: &[f32]| constant(x.to_vec(), [x.len()], device);
        let matrix = |x: Vec<f32>, inp: usize| {
            let out = x.len() / inp;
            constant(x, [out, inp], device)
        };
        let layers = (first..c.num_hidden_layers).map(|l| {
            let w = model.layer(l);
            Layer {
                attention_norm: vector(w.attention_norm),
                q: matrix(w.q, d),
                k: matrix(w.k, d),
                v: matrix(w.v, d),
                bias: w.bias.map(|b| b.map(vector)),
                o: matrix(w.o, c.num_attention_heads * width),
                mlp_norm: vector(w.mlp_norm),
                gate: w.gate.map(|g| matrix(g, d)),
                up: matrix(w.up, d),
                down: matrix(w.down, c.intermediate_size),
            }
        });
        // the operation counts 0, 1, .. over first token and tail
        let away = end.saturating_sub(tail) as f64;
        let angles: Vec<f64> = rope::frequencies(c.rope_theta, width).iter().map(|f| away * f).collect();
        let table = |f: fn(f64) -> f64, first: f32| {
            let row: Vec<f32> = angles.iter().map(|a| f(*a) as f32).collect();
            let x = [vec![first; width / 2], row.repeat(tail)].concat();
            constant(x, [1, 1 + tail, 1, 1, width / 2], device)
        };
        Upper {
            body: Body::of(device),
            layers: layers.collect(),
            norm: vector(model.final_norm()),
            head: matrix(model.head(), d),
            shape: HeadShape { heads: c.num_attention_heads, kv_heads: c.kv_heads(), width },
            settings: Settings {
                rule: Rule::Linear,
                features: Features::Elu1,
                mix: Mix::Add,
                rope: Rope::Half,
                theta: c.rope_theta,
                segment_len: 1 << 40,
                span: 1,
                lag: 0,
                final_state: FinalState::Closed,
            },
            eps: c.rms_norm_eps,
            away: [table(f64::cos, 1.0), table(f64::sin, 0.0)],
            tail,
        }
    }

    /// The normalised input of the first layer's attention.
    pub fn normed(&self, x: Tensor<2>) -> Tensor<2> {
        self.body.rms_norm(x, self.layers[0].attention_norm.clone(), self.eps)
    }

    /// The output of the last layer `[B (1 + U), d]` for the residual stream that enters the first; `added` joins
    /// its attention's output.
    pub fn forward(&self, mut x: Tensor<2>, added: Option<Tensor<2>>) -> Tensor<2> {
        x = x.clone() + self.attention(&self.layers[0], x);
        if let Some(added) = added {
            x = x + added;
        }
        self.above(x)
    }

    /// The output of the last layer for what leaves the first one's attention.
    pub fn above(&self, mut x: Tensor<2>) -> Tensor<2> {
        for (i, l) in self.layers.iter().enumerate() {
            if i > 0 {
                x = x.clone() + self.attention(l, x);
            }
            let h = self.body.rms_norm(x.clone(), l.mlp_norm.clone(), self.eps);
            let up = self.body.linear(h.clone(), l.up.clone());
            let inner = match &l.gate {
                Some(gate) => self.body.swiglu(self.body.linear(h, gate.clone()), up),
                None => self.body.gelu(up),
            };
            x = x + self.body.linear(inner, l.down.clone());
        }
        x
    }

    /// What a layer's attention adds to `x`.
    fn attention(&self, l: &Layer, x: Tensor<2>) -> Tensor<2> {
        let h = self.body.rms_norm(x, l.attention_norm.clone(), self.eps);
        let mut qkv = [&l.q, &l.k, &l.v].map(|w| self.body.linear(h.clone(), w.clone()));
        if let Some(bias) = &l.bias {
            for (y, bias) in qkv.iter_mut().zip(bias) {
                *y = y.clone() + bias.clone().unsqueeze();
            }
        }
        self.body.linear(self.window(qkv), l.o.clone())
    }

    /// Queries, keys and values `[B (1 + U), H D]` without positions: what the window gives each query.
    pub fn window(&self, [q, k, v]: [Tensor<2>; 3]) -> Tensor<2> {
        let (b, len) = (q.dims()[0] / (1 + self.tail), 1 + self.tail);
        let ids = vec![0; b * len];
        let t = Tokens { ids: &ids, reset: None, batch: b, len };
        let (q, k) = (self.turn(q, b, self.shape.heads), self.turn(k, b, self.shape.kv_heads));
        self.body.window(&self.settings, self.shape, &AttentionInputs::new(q, k, v), &t)
    }

    /// The final norm.
    pub fn hidden(&self, x: Tensor<2>) -> Tensor<2> {
        self.body.rms_norm(x, self.norm.clone(), self.eps)
    }

    /// The final norm's gain `[1, d]`.
    pub fn gain(&self) -> Tensor<2> {
        self.norm.clone().unsqueeze()
    }

    /// Logits of normalised rows.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.body.linear(hidden, self.head.clone())
    }

    /// Turns the heads of the tail by the distance that it is moved.
    fn turn(&self, x: Tensor<2>, b: usize, heads: usize) -> Tensor<2> {
        let (len, half) = (1 + self.tail, self.shape.width / 2);
        let x = x.reshape([b, len, heads, 2, half]);
        let (x0, x1) = (x.clone().narrow(3, 0, 1), x.narrow(3, 1, 1));
        let [cos, sin] = self.away.clone();
        let y0 = x0.clone() * cos.clone() - x1.clone() * sin.clone();
        let y1 = x0 * sin + x1 * cos;
        Tensor::cat(vec![y0, y1], 3).reshape([b * len, heads * 2 * half])
    }
}
