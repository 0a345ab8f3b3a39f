//! What a step leaves for the next one: truncated back-propagation through time over documents of any length.
//!
//! Rows that read on ([`Task::carries`](infini::tasks::Task::carries)) begin a step with the memory, the window and the
//! convolutions' inputs that the step before ended with, as a stream would; the gradient stops there. The last segments of
//! the window stand before the new tokens as keys and values without queries, so that they are seen and, when they leave
//! the window, written like any other.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use infini::config::{Attention, LayerKind, ModelConfig};
use infini_format::tensors::{Tensor as Stored, TensorError, TensorFile, serialize};

use crate::ops::Tokens;

/// The state of a batch of rows between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carry {
    batch: usize,
    /// Values by layer and name, `[B, …]`.
    parts: BTreeMap<String, Vec<f32>>,
    /// 1 where one of the last tokens began a document, `[B, n]`.
    reset: Vec<u8>,
}

impl Carry {
    /// Of rows that have read `t`, where documents began; the layers are still to come.
    pub(crate) fn new(c: &ModelConfig, t: &Tokens) -> Self {
        Carry { batch: t.batch, reset: last_resets(t, remembered(c)), ..Carry::default() }
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    pub(crate) fn put(&mut self, layer: usize, name: &str, values: Vec<f32>) {
        if !values.is_empty() {
            self.parts.insert(format!("layers.{layer}.{name}"), values);
        }
    }

    pub(crate) fn get(&self, layer: usize, name: &str) -> Option<&[f32]> {
        self.parts.get(&format!("layers.{layer}.{name}")).map(Vec::as_slice)
    }

    /// Flags of the last `n` tokens of each row that were carried.
    pub(crate) fn resets(&self, n: usize) -> Vec<u8> {
        let have = self.reset.len() / self.batch.max(1);
        self.reset.chunks(have.max(1)).flat_map(|row| row[have - n..].iter().copied()).collect()
    }

    /// The state as a safetensors file, for a checkpoint.
    ///
    /// # Errors
    /// What the format refuses.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TensorError> {
        let mut tensors =
            vec![("reset".to_string(), Stored::u8(&[self.batch, self.reset.len() / self.batch.max(1)], &self.reset)?)];
        for (name, values) in &self.parts {
            tensors.push((name.clone(), Stored::f32(&[self.batch, values.len() / self.batch.max(1)], values)?));
        }
        let views: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        serialize(&views, &BTreeMap::new())
    }

    /// Reads [`Carry::to_bytes`] back, for a model of `config` whose steps are longer than its window.
    ///
    /// # Errors
    /// What is no such file, or of another model.
    pub fn from_bytes(config: &ModelConfig, bytes: Vec<u8>) -> Result<Carry, String> {
        let file = TensorFile::parse(bytes).map_err(|e| e.to_string())?;
        let reset = file.get("reset").map_err(|e| e.to_string())?;
        let batch = reset.shape.first().copied().filter(|b| (1..=1 << 16).contains(b)).ok_or("no rows")?;
        let mut carry = Carry { batch, reset: reset.to_u8().map_err(|e| e.to_string())?, ..Carry::default() };
        for l in (0..config.num_hidden_layers).filter(|l| config.layer_kind(*l) == LayerKind::Memorizing) {
            carry.read_store(config, l, &file)?;
        }
        for (layer, name, len) in layout(config) {
            let name = format!("layers.{layer}.{name}");
            let view = file.get(&name).map_err(|e| e.to_string())?;
            if view.shape != [batch, len] {
                return Err(format!("{name} has shape {:?}, not {:?}", view.shape, [batch, len]));
            }
            carry.parts.insert(name, view.to_f32().map_err(|e| e.to_string())?);
        }
        if carry.reset.len() != batch * remembered(config) || file.len() != carry.parts.len() + 1 {
            return Err("the carried state is of another model".into());
        }
        Ok(carry)
    }
}

impl Carry {
    /// The store of a memorizing layer, which is as long as what was read, up to its bound.
    fn read_store(&mut self, c: &ModelConfig, l: usize, file: &TensorFile) -> Result<(), String> {
        let width = c.kv_heads() * c.head_width();
        for name in ["store.k", "store.v", "store.own"] {
            let full = format!("layers.{l}.{name}");
            // nothing has left the window yet
            if name != "store.own" && !file.contains(&full) {
                continue;
            }
            let view = file.get(&full).map_err(|e| e.to_string())?;
            let fits = match *view.shape {
                [batch, len] if name == "store.own" => (batch, len) == (self.batch, 1),
                [batch, len] => batch == self.batch && len.is_multiple_of(width) && len / width <= c.store().0,
                _ => false,
            };
            if !fits {
                return Err(format!("{full} has shape {:?}, which is no store of this model", view.shape));
            }
            self.parts.insert(full, view.to_f32().map_err(|e| e.to_string())?);
        }
        let len = |name: &str| self.get(l, name).map_or(0, <[f32]>::len);
        let most = len("store.k") / (self.batch * width);
        let own = self.get(l, "store.own").unwrap_or(&[]);
        if len("store.k") != len("store.v") || own.iter().any(|x| !(0.0..=most as f32).contains(x)) {
            return Err(format!("layers.{l}: keys, values and documents of the store do not fit together"));
        }
        Ok(())
    }
}

/// Tokens before a step that its first ones see exactly.
pub(crate) fn window(c: &ModelConfig) -> usize {
    (c.infini.span - 1) * c.infini.segment_len
}

/// Tokens whose document borders are carried.
fn remembered(c: &ModelConfig) -> usize {
    if c.attention == Attention::Rmt {
        return 0;
    }
    let i = &c.infini;
    window(c).max(i.conv.max(i.kv_conv).max(i.memory_conv).saturating_sub(1))
}

/// Everything that is carried: layer, name, values of a row.
fn layout(c: &ModelConfig) -> Vec<(usize, &'static str, usize)> {
    let (n, d, r) = (c.kv_heads(), c.head_width(), window(c));
    let (_, mn, md) = c.memory_shape();
    let i = &c.infini;
    if c.attention == Attention::Rmt {
        return vec![(0, "summaries", c.summaries() * c.hidden_size)];
    }
    let mut out = Vec::new();
    for l in (0..c.num_hidden_layers).filter(|l| c.layer_kind(*l) != LayerKind::Full) {
        let memory = c.layer_kind(l) == LayerKind::Infini;
        let sinks = c.attention == Attention::Local;
        let own = c.own_memory(l);
        let gated = i.rule == infini::config::RuleName::GatedDelta;
        let seen = [
            ("conv", i.conv.saturating_sub(1) * c.hidden_size, true),
            ("k_conv", i.kv_conv.saturating_sub(1) * n * d, true),
            ("v_conv", i.kv_conv.saturating_sub(1) * n * d, true),
            ("k", r * n * d, true),
            ("v", r * n * d, true),
            ("sink.k", i.sink * n * d, sinks),
            ("sink.v", i.sink * n * d, sinks),
            ("sink.age", usize::from(i.sink > 0), sinks),
            ("memory.k", r * mn * md, own),
            ("memory.v", r * mn * md, own),
            ("memory.k_conv", i.memory_conv.saturating_sub(1) * mn * md, own),
            ("memory.v_conv", i.memory_conv.saturating_sub(1) * mn * md, own),
            ("w", r * mn, memory && i.write != infini::config::Write::All),
            ("a", r * mn, memory && gated),
            ("m", mn * c.feature_dim() * md, memory),
            ("z", mn * c.feature_dim(), memory && !gated),
        ];
        out.extend(seen.into_iter().filter(|(_, len, there)| *there && *len > 0).map(|(name, len, _)| (l, name, len)));
    }
    out
}

/// `x [B T, width]` with the `n` carried tokens of each row before it, `None`: zeros.
pub(crate) fn prepend(before: Option<&[f32]>, n: usize, x: Tensor<2>, t: &Tokens) -> Tensor<2> {
    if n == 0 {
        return x;
    }
    let width = x.dims()[1];
    let values = before.map_or_else(|| vec![0.0; t.batch * n * width], <[f32]>::to_vec);
    let before = Tensor::<3>::from_data(TensorData::new(values, [t.batch, n, width]), (&x.device(), x.dtype()));
    Tensor::cat(vec![before, x.reshape([t.batch, t.len, width])], 1).reshape([t.batch * (n + t.len), width])
}

/// `x [B (n + T), width]` without the first `n` tokens of each row.
pub(crate) fn drop_first(x: Tensor<2>, n: usize, t: &Tokens) -> Tensor<2> {
    if n == 0 {
        return x;
    }
    let width = x.dims()[1];
    x.reshape([t.batch, n + t.len, width]).narrow(1, n, t.len).reshape([t.batch * t.len, width])
}

/// The values of the last `n` tokens of each row of `x [B T, width]`.
pub(crate) fn last(x: &Tensor<2>, n: usize, t: &Tokens) -> Vec<f32> {
    let width = x.dims()[1];
    let x = x.clone().detach().reshape([t.batch, t.len, width]).narrow(1, t.len - n, n);
    x.into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for")
}

fn last_resets(t: &Tokens, n: usize) -> Vec<u8> {
    match t.reset {
        Some(reset) => reset.chunks(t.len).flat_map(|row| row[t.len - n..].iter().copied()).collect(),
        None => vec![0; t.batch * n],
    }
}

/// The resets of the `n` carried tokens of each row and of the new ones, `[B, n + T]`.
pub(crate) fn resets(carry: Option<&Carry>, n: usize, t: &Tokens) -> Option<Vec<u8>> {
    let Some(before) = carry.filter(|_| n > 0).map(|c| c.resets(n)) else { return t.reset.map(<[u8]>::to_vec) };
    let none = vec![0; t.batch * t.len];
    let rows = before.chunks(n).zip(t.reset.unwrap_or(&none).chunks(t.len));
    let out: Vec<u8> = rows.flat_map(|(a, b)| [a, b].concat()).collect();
    out.contains(&1).then_some(out)
}
