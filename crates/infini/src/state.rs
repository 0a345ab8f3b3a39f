//! Everything a model has read: a memory of fixed size, the window, and where it stands.
//!
//! A [`State`] holds `batch` rows that read in lockstep. Its size does not depend on how much was
//! read (with [`LayerKind::Full`] layers it does: they keep every key and value).

use std::path::Path;

use infini_format::io::{Io, Lock};
use infini_format::memory::{self, MemoryHeader, Partner};
use infini_format::tensors::{Tensor, TensorFile, TensorView};

use crate::adapter::AdapterConfig;
use crate::config::{Attention, LayerKind, ModelConfig, RuleName};
use crate::error::{Error, Result};
use crate::layers::recall::RecallState;
use crate::layers::tally::TallyState;
use crate::model::Model;
use crate::tally::TallyConfig;

/// One row of a batch, or all of them: see the module's page.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) batch: usize,
    pub(crate) position: u64,
    /// Position at which each row's document began.
    pub(crate) doc_start: Vec<u64>,
    pub(crate) layers: Vec<LayerState>,
    /// What the last whole segment left, `[B, summaries, hidden]`, of a recurrent memory transformer.
    pub(crate) summaries: Vec<f32>,
    pub(crate) logits: Option<Vec<f32>>,
    pub(crate) reads: Reads,
}

/// What reads of the memory give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// What the memory holds.
    Own,
    /// Exactly zero.
    Nothing,
    /// What the memory of the next row holds (of the first, for the last): what a memory's content is worth, and not
    /// its presence.
    Swapped,
}

/// Memories that were put beside a plain decoder.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extra<'a> {
    pub recall: Option<&'a AdapterConfig>,
    pub tally: Option<&'a TallyConfig>,
}

/// What one layer keeps. Every buffer leads with the batch row.
#[derive(Clone, Debug)]
pub(crate) struct LayerState {
    pub kind: LayerKind,
    /// `[B, Hkv, F, Dv]`, empty without a memory.
    pub m: Vec<f32>,
    /// `[B, Hkv, F]`, empty without a memory or with the gated delta rule.
    pub z: Vec<f32>,
    /// Keys and values of the window, un-rotated: `[B, capacity, Hkv · D]`.
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// Write strengths of the window (with a memory) and decays (gated delta rule), `[B, capacity, Hkv]`.
    pub w: Vec<f32>,
    pub a: Vec<f32>,
    /// Positions that k, v, w and a have room for, per row.
    pub capacity: usize,
    /// Keys and values of the document's first tokens, un-rotated: `[B, sink, Hkv · D]`.
    pub sink_k: Vec<f32>,
    pub sink_v: Vec<f32>,
    /// Last `conv - 1` inputs of the convolution, oldest first: `[B, conv − 1, hidden]`.
    pub conv: Vec<f32>,
    /// Last `kv_conv - 1` inputs of the convolutions on keys and values: `[B, kv_conv − 1, Hkv · D]`.
    pub k_tail: Vec<f32>,
    pub v_tail: Vec<f32>,
    /// Of a memory with projections of its own: keys and values of the window, `[B, capacity, heads · width]`, and the last
    /// inputs of their convolutions.
    pub own_k: Vec<f32>,
    pub own_v: Vec<f32>,
    pub own_k_tail: Vec<f32>,
    pub own_v_tail: Vec<f32>,
    /// Of a memorizing layer: keys and values that have left the window, that of position p at place p modulo the store's
    /// size: `[B, store, Hkv · D]`.
    pub store_k: Vec<f32>,
    pub store_v: Vec<f32>,
    /// Of an adapter, in its layer.
    pub recall: RecallState,
    /// Of a counting memory, in the last layer.
    pub tally: TallyState,
    pub writes: LayerWrites,
}

/// How much a layer has written, per key/value head, over all rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerWrites {
    /// Index of the layer.
    pub layer: usize,
    /// Tokens that passed the write gate (rows × positions).
    pub tokens: u64,
    /// Of these, how many had a strength above 0, per key/value head.
    pub open: Vec<u64>,
    /// Sum of the strengths, per key/value head.
    pub strength: Vec<f64>,
}

impl LayerWrites {
    fn new(layer: usize, heads: usize) -> Self {
        LayerWrites { layer, tokens: 0, open: vec![0; heads], strength: vec![0.0; heads] }
    }

    /// Counts the strengths of some tokens of one row, `[n, heads]`.
    pub(crate) fn count(&mut self, strengths: &[f32]) {
        let heads = self.open.len();
        self.tokens += (strengths.len() / heads) as u64;
        for strengths in strengths.chunks_exact(heads) {
            for (head, s) in strengths.iter().enumerate() {
                self.open[head] += u64::from(*s > 0.0);
                self.strength[head] += f64::from(*s);
            }
        }
    }
}

/// First position of the window at `position`.
pub(crate) fn window_start(config: &ModelConfig, kind: LayerKind, position: u64) -> u64 {
    if kind == LayerKind::Full {
        return 0;
    }
    let s = config.infini.segment_len as u64;
    (position / s).saturating_sub(config.infini.span as u64 - 1) * s
}

/// Every buffer of a layer in the order of [`NAMES`]: one list for both ways to borrow them.
macro_rules! buffers {
    ($layer:ident, $recall:ident, $($borrow:tt)+) => {{
        let own = [
            $($borrow)+ $layer.m,
            $($borrow)+ $layer.z,
            $($borrow)+ $layer.k,
            $($borrow)+ $layer.v,
            $($borrow)+ $layer.w,
            $($borrow)+ $layer.a,
            $($borrow)+ $layer.conv,
            $($borrow)+ $layer.k_tail,
            $($borrow)+ $layer.v_tail,
            $($borrow)+ $layer.sink_k,
            $($borrow)+ $layer.sink_v,
            $($borrow)+ $layer.own_k,
            $($borrow)+ $layer.own_v,
            $($borrow)+ $layer.own_k_tail,
            $($borrow)+ $layer.own_v_tail,
            $($borrow)+ $layer.store_k,
            $($borrow)+ $layer.store_v,
        ];
        own.into_iter().chain($layer.recall.$recall()).chain($layer.tally.$recall()).collect()
    }};
}

impl LayerState {
    fn new(config: &ModelConfig, extra: Extra, l: usize, batch: usize) -> Self {
        let adapter = extra.recall.filter(|a| a.layer == l);
        let tally = extra.tally.filter(|_| l + 1 == config.num_hidden_layers);
        let kind = config.layer_kind(l);
        let (n, d, i) = (config.kv_heads(), config.head_width(), &config.infini);
        let memory = kind == LayerKind::Infini;
        let capacity = if kind == LayerKind::Full { 256 } else { i.segment_len * i.span };
        let f = if memory { config.feature_dim() } else { 0 };
        let (_, mn, md) = config.memory_shape();
        let own = config.own_memory(l);
        let tail = i.memory_conv.saturating_sub(1) * mn * md;
        let has_z = memory && i.rule != RuleName::GatedDelta;
        let has_a = memory && i.rule == RuleName::GatedDelta;
        let conv = i.conv.saturating_sub(1);
        let store = if kind == LayerKind::Memorizing { config.store().0 } else { 0 };
        let sink = if kind == LayerKind::Full { 0 } else { i.sink };
        let zeros = |on: bool, len: usize| vec![0.0; if on { batch * len } else { 0 }];
        LayerState {
            kind,
            m: zeros(memory, mn * f * md),
            z: zeros(has_z, mn * f),
            k: zeros(true, capacity * n * d),
            v: zeros(true, capacity * n * d),
            w: zeros(memory, capacity * mn),
            a: zeros(has_a, capacity * mn),
            capacity,
            sink_k: zeros(true, sink * n * d),
            sink_v: zeros(true, sink * n * d),
            conv: zeros(true, conv * config.hidden_size),
            k_tail: zeros(true, i.kv_conv.saturating_sub(1) * n * d),
            v_tail: zeros(true, i.kv_conv.saturating_sub(1) * n * d),
            own_k: zeros(own, capacity * mn * md),
            own_v: zeros(own, capacity * mn * md),
            own_k_tail: zeros(own, tail),
            own_v_tail: zeros(own, tail),
            store_k: zeros(true, store * n * d),
            store_v: zeros(true, store * n * d),
            recall: adapter.map_or_else(RecallState::default, |a| RecallState::new(a, batch)),
            tally: tally.map_or_else(TallyState::default, |c| TallyState::new(c, config.vocab_size, batch)),
            writes: LayerWrites::new(l, adapter.map_or(mn, |a| a.heads)),
        }
    }

    /// Makes room for `need` positions (full attention only), keeping what is there.
    pub fn grow(&mut self, batch: usize, need: usize) {
        if need <= self.capacity {
            return;
        }
        let capacity = need.max(self.capacity * 2);
        for buffer in [&mut self.k, &mut self.v] {
            let width = buffer.len() / (batch * self.capacity);
            let mut wide = vec![0.0; batch * capacity * width];
            for (old, new) in buffer.chunks(self.capacity * width).zip(wide.chunks_mut(capacity * width)) {
                new[..old.len()].copy_from_slice(old);
            }
            *buffer = wide;
        }
        self.capacity = capacity;
    }

    /// Memory and normaliser with every row's in the place of the row before.
    pub fn swapped(&self, batch: usize) -> [Vec<f32>; 2] {
        [&self.m, &self.z].map(|x| {
            let mut x = x.clone();
            let row = x.len() / batch;
            x.rotate_left(row);
            x
        })
    }

    /// Drops the first `n` of `len` positions of the window.
    pub fn drop_front(&mut self, batch: usize, n: usize, len: usize) {
        for buffer in [&mut self.k, &mut self.v, &mut self.w, &mut self.a, &mut self.own_k, &mut self.own_v] {
            let width = buffer.len() / (batch * self.capacity);
            if width > 0 {
                for row in buffer.chunks_mut(self.capacity * width) {
                    row.copy_within(n * width..len * width, 0);
                }
            }
        }
    }

    /// Whether something is remembered beyond the window.
    fn remembers(&self) -> bool {
        !self.m.is_empty() || !self.recall.m.is_empty()
    }

    fn buffers(&self) -> Vec<&Vec<f32>> {
        buffers!(self, buffers, &)
    }

    fn buffers_mut(&mut self) -> Vec<&mut Vec<f32>> {
        buffers!(self, buffers_mut, &mut)
    }
}

impl State {
    /// A state that has read nothing.
    ///
    /// # Panics
    /// If `batch` is 0.
    pub(crate) fn new(config: &ModelConfig, extra: Extra, batch: usize) -> Self {
        assert!(batch > 0, "a state needs a row");
        let layout = config.layout();
        let recurrent = config.attention == Attention::Rmt;
        let summaries = if recurrent { config.summaries() * config.hidden_size } else { 0 };
        State {
            batch,
            position: 0,
            doc_start: vec![0; batch],
            layers: (0..config.num_hidden_layers).map(|l| LayerState::new(&layout, extra, l, batch)).collect(),
            summaries: vec![0.0; batch * summaries],
            logits: None,
            reads: Reads::Own,
        }
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens read by each row.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of what is kept: memory, window, convolution tails and next-token logits. Constant in
    /// the length of the input, but for layers of full attention.
    pub fn size_bytes(&self) -> usize {
        let floats = |l: &LayerState| l.buffers().iter().map(|b| b.len()).sum::<usize>();
        let logits = self.logits.as_ref().map_or(0, Vec::len);
        4 * (self.layers.iter().map(floats).sum::<usize>() + self.summaries.len() + logits)
    }

    /// Next-token logits `[B, V]` of the last call that asked for them.
    pub fn logits(&self) -> Option<&[f32]> {
        self.logits.as_deref()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.position = 0;
        self.doc_start.fill(0);
        self.summaries.fill(0.0);
        self.logits = None;
        for l in &mut self.layers {
            l.buffers_mut().into_iter().for_each(|b| b.fill(0.0));
            l.writes = LayerWrites::new(l.writes.layer, l.writes.open.len());
        }
    }

    /// A copy that goes its own way.
    pub fn fork(&self) -> State {
        self.clone()
    }

    /// The next token of `row` begins a new document: nothing of the old one reaches it
    /// (math.md §7). Segment borders stay where they are.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn start_document(&mut self, row: usize) {
        assert!(row < self.batch, "row {row} of {}", self.batch);
        self.doc_start[row] = self.position;
        for l in &mut self.layers {
            let tails = [&mut l.conv, &mut l.k_tail, &mut l.v_tail, &mut l.own_k_tail, &mut l.own_v_tail];
            for buffer in [&mut l.m, &mut l.z, &mut l.w].into_iter().chain(tails) {
                let len = buffer.len() / self.batch;
                buffer[row * len..(row + 1) * len].fill(0.0);
            }
            // w = 0 writes nothing, a = 1 decays nothing
            let len = l.a.len() / self.batch;
            l.a[row * len..(row + 1) * len].fill(1.0);
            l.recall.forget(row, self.batch);
            l.tally.forget(row, self.batch);
        }
    }

    /// With `on`, reads of the memory give exactly zero; writes go on.
    pub fn set_knock_out(&mut self, on: bool) {
        self.set_reads(if on { Reads::Nothing } else { Reads::Own });
    }

    /// What reads of the memory give from now on; writes go on.
    pub fn set_reads(&mut self, reads: Reads) {
        self.reads = reads;
    }

    /// Bytes of the memories alone, compressed ones, stores and summaries, without the window: what the paper counts.
    pub fn memory_bytes(&self) -> usize {
        let counted = |l: &LayerState| l.tally.tokens.len() + l.tally.cells.len();
        let compressed = |l: &LayerState| l.m.len() + l.z.len() + l.recall.m.len() + l.recall.z.len() + counted(l);
        let floats = |l: &LayerState| compressed(l) + l.store_k.len() + l.store_v.len();
        4 * (self.layers.iter().map(floats).sum::<usize>() + self.summaries.len())
    }

    /// What the write gates have let through, one entry per layer with a memory.
    pub fn write_stats(&self) -> Vec<LayerWrites> {
        self.layers.iter().filter(|l| l.remembers()).map(|l| l.writes.clone()).collect()
    }

    /// Row `i` as a state of its own (write statistics stay with the batch).
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> State {
        assert!(i < self.batch, "row {i} of {}", self.batch);
        let cut = |b: &Vec<f32>| b[i * (b.len() / self.batch)..(i + 1) * (b.len() / self.batch)].to_vec();
        self.rebatch(1, vec![self.doc_start[i]], &cut)
    }

    /// A one-row state `n` times.
    ///
    /// # Panics
    /// If this state has more than one row, or `n` is 0.
    pub fn repeat(&self, n: usize) -> State {
        assert!(self.batch == 1 && n > 0, "repeat takes one row, some times");
        self.rebatch(n, vec![self.doc_start[0]; n], &|b: &Vec<f32>| b.repeat(n))
    }

    fn rebatch(&self, batch: usize, doc_start: Vec<u64>, f: &dyn Fn(&Vec<f32>) -> Vec<f32>) -> State {
        let (logits, summaries) = (self.logits.as_ref().map(f), f(&self.summaries));
        let mut out = State { batch, doc_start, logits, summaries, ..self.clone() };
        for l in &mut out.layers {
            for b in l.buffers_mut() {
                *b = f(b);
            }
        }
        out
    }

    /// Writes a memory file: everything needed to go on without reading a single old token again.
    ///
    /// # Errors
    /// The disk's, or another writer holding the file.
    pub fn save(&self, io: &dyn Io, path: &Path, header: &MemoryHeader, lock: Option<&Lock>) -> Result<()> {
        let tensors = self.tensors()?;
        let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        match lock {
            Some(lock) => memory::write_memory_locked(lock, io, header, &views),
            None => memory::write_memory(io, path, header, &views),
        }
        .map_err(|e| Error::Memory(e.to_string()))
    }

    /// Reads a memory file that was made with the same model, adapter, tokenizer and settings.
    ///
    /// # Errors
    /// Whatever is wrong with the file, or which partner differs.
    pub fn load(model: &Model, expected: &Partner, io: &dyn Io, path: &Path) -> Result<(State, MemoryHeader)> {
        let (header, file) = memory::read_memory(io, path).map_err(|e| Error::Memory(e.to_string()))?;
        header
            .check_partner(expected)
            .map_err(|e| Error::Memory(infini_format::At { path: path.into(), error: e }.to_string()))?;
        let state = State::from_tensors(model, header.position, &file)
            .map_err(|e| Error::Memory(format!("memory file does not fit the model: {}: {e}", path.display())))?;
        Ok((state, header))
    }

    fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let fail = |e: infini_format::tensors::TensorError| Error::Memory(e.to_string());
        let mut out = Vec::new();
        let b = self.batch;
        let starts: Vec<i64> = self.doc_start.iter().map(|p| *p as i64).collect();
        out.push(("document_start".to_string(), Tensor::i64(&[b], &starts).map_err(fail)?));
        if let Some(logits) = &self.logits {
            out.push(("logits".into(), Tensor::f32(&[b, logits.len() / b], logits).map_err(fail)?));
        }
        if !self.summaries.is_empty() {
            let summaries = Tensor::f32(&[b, self.summaries.len() / b], &self.summaries).map_err(fail)?;
            out.push(("summaries".into(), summaries));
        }
        for (l, layer) in self.layers.iter().enumerate() {
            for (name, buffer) in NAMES.iter().zip(layer.buffers()) {
                if !buffer.is_empty() {
                    let t = Tensor::f32(&[b, buffer.len() / b], buffer).map_err(fail)?;
                    out.push((format!("layers.{l}.{name}"), t));
                }
            }
            let mut stats = vec![layer.writes.tokens as f64];
            stats.extend(layer.writes.open.iter().map(|n| *n as f64));
            stats.extend(&layer.writes.strength);
            out.push((format!("layers.{l}.writes"), Tensor::f64(&[stats.len()], &stats).map_err(fail)?));
        }
        Ok(out)
    }

    fn from_tensors(model: &Model, position: u64, file: &TensorFile) -> Result<State> {
        let fail = |e: infini_format::tensors::TensorError| Error::Memory(e.to_string());
        let starts = file.get("document_start").and_then(|t| t.to_i64()).map_err(fail)?;
        if starts.is_empty() || starts.len() > 4096 || starts.iter().any(|p| *p < 0 || *p as u64 > position) {
            return Err(Error::Memory("document_start is not a list of positions".into()));
        }
        let config = model.config();
        // nothing is made room for that the file does not hold
        let held: usize = file.iter().map(|(_, t)| t.shape.iter().product::<usize>()).sum();
        let fits = |rows: usize, each: usize| match rows.saturating_mul(each) <= held {
            true => Ok(()),
            false => {
                Err(Error::Memory(format!("its {held} values are too few for {rows} rows at position {position}")))
            }
        };
        fits(starts.len(), model.state(1).size_bytes() / size_of::<f32>())?;
        let mut state = model.state(starts.len());
        state.position = position;
        state.doc_start = starts.iter().map(|p| *p as u64).collect();
        if file.contains("logits") {
            let logits = file.get("logits").and_then(|t| t.to_f32()).map_err(fail)?;
            if logits.len() != state.batch * config.vocab_size {
                return Err(Error::Memory(format!("logits has {} values", logits.len())));
            }
            state.logits = Some(logits);
        }
        let mut known = 1 + usize::from(state.logits.is_some());
        if !state.summaries.is_empty() {
            let summaries = file.get("summaries").and_then(|t| t.to_f32()).map_err(fail)?;
            if summaries.len() != state.summaries.len() {
                let why = format!("summaries has {} values, not {}", summaries.len(), state.summaries.len());
                return Err(Error::Memory(why));
            }
            state.summaries = summaries;
            known += 1;
        }
        let batch = state.batch;
        for (l, layer) in state.layers.iter_mut().enumerate() {
            if layer.kind == LayerKind::Full {
                let len = usize::try_from(position).unwrap_or(usize::MAX);
                fits(batch, len.saturating_mul(2 * config.kv_heads() * config.head_width()))?;
                layer.grow(batch, len);
            }
            for (name, buffer) in NAMES.iter().zip(layer.buffers_mut()) {
                if buffer.is_empty() {
                    continue;
                }
                let name = format!("layers.{l}.{name}");
                let data = file.get(&name).and_then(|t| t.to_f32()).map_err(fail)?;
                if data.len() != buffer.len() {
                    return Err(Error::Memory(format!("{name} has {} values, not {}", data.len(), buffer.len())));
                }
                *buffer = data;
                known += 1;
            }
            let name = format!("layers.{l}.writes");
            let stats = file.get(&name).and_then(|t| t.to_f64()).map_err(fail)?;
            let n = layer.writes.open.len();
            if stats.len() != 1 + 2 * n || stats.iter().any(|x| *x < 0.0) {
                return Err(Error::Memory(format!("{name} is not a list of {} counts", 1 + 2 * n)));
            }
            layer.writes.tokens = stats[0] as u64;
            layer.writes.open = stats[1..=n].iter().map(|x| *x as u64).collect();
            layer.writes.strength = stats[n + 1..].to_vec();
            known += 1;
        }
        if known != file.len() {
            return Err(Error::Memory(format!("{} tensors, {known} expected", file.len())));
        }
        Ok(state)
    }
}

/// Names in a memory file of [`LayerState::buffers`].
const NAMES: [&str; 29] = [
    "m",
    "z",
    "window.k",
    "window.v",
    "window.w",
    "window.a",
    "conv",
    "k_conv",
    "v_conv",
    "sink.k",
    "sink.v",
    "memory.k",
    "memory.v",
    "memory.k_conv",
    "memory.v_conv",
    "store.k",
    "store.v",
    "recall.m",
    "recall.z",
    "recall.place",
    "recall.value",
    "recall.signal",
    "recall.next",
    "recall.ids",
    "tally.tokens",
    "tally.cells",
    "tally.ids",
    "tally.odds",
    "tally.evidence",
];
