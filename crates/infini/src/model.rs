//! The decoder as a stream: tokens in, logits out, everything read is in the [`State`].
//!
//! ```text
//! embed ─► [ norm ► attention ► + ► norm ► mlp ► + ] × L ─► norm ─► head
//! ```
//!
//! The same computation whatever the calls: a row may be read in one call or token by token.
//! Projections run over pieces of several segments (big products), attention segment by segment.

mod rmt;

use std::collections::BTreeMap;

use infini_kernels::{norm, rope};

use crate::adapter::Adapter;
use crate::adapter::paper::Paper;
use crate::config::{Activation, Attention as Kind, InfiniConfig, ModelConfig, SUMMARIES};
use crate::error::{Error, Result};
use crate::layers::attention::{Attention, Place};
use crate::layers::matrix::Matrix;
use crate::layers::mlp::Mlp;
use crate::layers::recall::Recall;
use crate::state::{Extra, State};
use crate::tally::Tally;
use crate::weights::{Source, Weights};

/// Which logits a call computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the input is only read.
    Nothing,
    /// Of the last token: `[B, V]`, also kept in the state.
    Last,
    /// Of every token: `[B, T, V]`; those of the last are kept in the state.
    All,
}

/// Rows of a piece (batch × tokens): enough for large products, little memory.
const PIECE: usize = 1024;

/// Rows whose logits are there at a time where all are needed and none was asked for.
const HEAD_ROWS: usize = 128;

/// Positions for which full attention keeps angles; beyond, a call makes its own.
const FULL_ANGLES: usize = 8192;

/// A decoder with its weights. It never changes while it reads.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    /// What the layers are: [`ModelConfig::layout`].
    layout: ModelConfig,
    embed: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None`: tied to the embedding.
    head: Option<Matrix>,
    /// Angles of the positions inside a window.
    angles: rope::Table,
    /// An adapter's memory.
    recall: Option<Recall>,
    /// A memory that counts.
    tally: Option<Tally>,
    /// What a recurrent memory transformer begins a document with, `[summaries, d]`.
    summaries: Option<Vec<f32>>,
}

/// How far a token goes through the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// All of them.
    Full,
    /// The first so many.
    Layers(usize),
    /// Up to the writes of the adapter's memory.
    Skim,
}

/// Some columns of a call.
struct Piece<'a> {
    /// The first.
    start: usize,
    /// How many.
    tokens: usize,
    /// Their tokens, `[B, T]`.
    ids: &'a [u32],
    /// Their residual stream, `[B, T, d]`.
    x: &'a [f32],
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    attention: Attention,
    mlp_norm: Vec<f32>,
    mlp: Mlp,
}

/// The weights of one layer; matrices are copies `[out, in]`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct LayerWeights<'a> {
    pub attention_norm: &'a [f32],
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// Of q, k and v.
    pub bias: Option<[&'a [f32]; 3]>,
    pub o: Vec<f32>,
    pub mlp_norm: &'a [f32],
    /// `None`: GELU on `up` alone.
    pub gate: Option<Vec<f32>>,
    pub up: Vec<f32>,
    pub down: Vec<f32>,
}

impl Model {
    /// Puts weights in place.
    ///
    /// # Errors
    /// A configuration that cannot be.
    pub fn new(config: ModelConfig, mut weights: Weights) -> Result<Model> {
        config.check()?;
        Ok(Model::build(config, &mut |name| weights.take(name)))
    }

    /// Takes weights from where they lie, one at a time.
    pub(crate) fn from_source(config: ModelConfig, source: &Source) -> Result<Model> {
        config.check()?;
        let mut failed = None;
        let lengths: BTreeMap<_, usize> =
            config.parameters().into_iter().map(|p| (p.name, p.shape.iter().product())).collect();
        let model = Model::build(config, &mut |name| {
            source.get(name).unwrap_or_else(|e| {
                failed.get_or_insert(e);
                vec![0.0; lengths[name]]
            })
        });
        failed.map_or(Ok(model), Err)
    }

    fn build(config: ModelConfig, take: &mut dyn FnMut(&str) -> Vec<f32>) -> Model {
        let (d, layout) = (config.hidden_size, config.layout());
        // the largest first, when nothing else is there
        let embed = Matrix::new(take("model.embed_tokens.weight"), d);
        let head = (!config.tie_word_embeddings).then(|| Matrix::new(take("lm_head.weight"), d));
        let layers = (0..config.num_hidden_layers).map(|l| {
            let mut take = |s: &str| take(&format!("model.layers.{l}.{s}"));
            Layer {
                attention_norm: take("input_layernorm.weight"),
                attention: Attention::new(&layout, l, &mut |s| take(&format!("self_attn.{s}"))),
                mlp_norm: take("post_attention_layernorm.weight"),
                mlp: Mlp {
                    gate: (config.hidden_act == Activation::Silu).then(|| Matrix::new(take("mlp.gate_proj.weight"), d)),
                    up: Matrix::new(take("mlp.up_proj.weight"), d),
                    down: Matrix::new(take("mlp.down_proj.weight"), config.intermediate_size),
                },
            }
        });
        let layers = layers.collect();
        Model {
            layers,
            embed,
            norm: take("model.norm.weight"),
            head,
            summaries: (config.attention == Kind::Rmt).then(|| take(SUMMARIES)),
            angles: window_angles(&layout),
            recall: None,
            tally: None,
            layout,
            config,
        }
    }

    /// Gives every layer this window instead of full attention.
    ///
    /// # Errors
    /// A model that has a memory or a convolution of its own; sizes that cannot be.
    pub fn narrow(&mut self, window: InfiniConfig) -> Result<()> {
        if matches!(self.config.attention, Kind::Infini | Kind::Rmt) || self.config.infini.conv > 0 {
            return Err(Error::Model("has a memory of its own: only a plain decoder can be given a window".into()));
        }
        let config = ModelConfig { attention: Kind::Local, infini: window, ..self.config.clone() };
        config.check()?;
        for (l, layer) in self.layers.iter_mut().enumerate() {
            layer.attention.become_local(&config, l);
        }
        (self.angles, self.layout, self.config) = (window_angles(&config), config.clone(), config);
        (self.recall, self.tally) = (None, None);
        Ok(())
    }

    /// Narrows a plain decoder to `window`; one that has a window of these sizes stays as it is.
    ///
    /// # Errors
    /// A window of other sizes; a model that cannot have one ([`Model::narrow`]).
    pub fn fit_window(&mut self, window: InfiniConfig) -> Result<()> {
        let InfiniConfig { segment_len, span, sink, .. } = self.config.infini;
        if self.config.attention == Kind::Full {
            return self.narrow(window);
        }
        if self.config.attention == Kind::Rmt
            || (segment_len, span, sink) != (window.segment_len, window.span, window.sink)
        {
            return Err(Error::Model(format!(
                "the memory is for a window of {} segments of {} tokens with {} attention sinks, the model has {span} of \
                 {segment_len} with {sink}",
                window.span, window.segment_len, window.sink
            )));
        }
        Ok(())
    }

    /// Narrows the model to the adapter's window and puts its memory into its layer; a counting memory stays.
    ///
    /// # Errors
    /// An adapter that does not fit, a model that cannot have one ([`Model::fit_window`]).
    pub fn attach(&mut self, adapter: Adapter) -> Result<()> {
        let c = adapter.config();
        c.check(&self.config)?;
        if adapter.width() != self.config.hidden_size {
            let (d, width) = (self.config.hidden_size, adapter.width());
            return Err(Error::Model(format!("the adapter is for a hidden size of {width}, the model's is {d}")));
        }
        self.check_plain()?;
        self.fit_window(c.window())?;
        self.recall = Some(Recall::new(&adapter));
        Ok(())
    }

    /// Narrows the model to the window of the paper's form and makes its layer one with a memory, of the learned weights; a
    /// counting memory stays.
    ///
    /// # Errors
    /// Tensors that are not the layer's, a model that cannot have a memory ([`Model::fit_window`]).
    pub fn attach_paper(&mut self, paper: &Paper) -> Result<()> {
        paper.check(&self.config)?;
        self.check_plain()?;
        if self.recall.is_some() {
            return Err(Error::Model("the model has an adapter with a memory already: use one of the two".into()));
        }
        let (l, config) = (paper.config().layer, paper.config().model(&self.config));
        self.fit_window(config.infini.clone())?;
        self.layers[l].attention = Attention::new(&config, l, &mut |name| paper.get(name).to_vec());
        (self.layout, self.config) = (config.clone(), config);
        Ok(())
    }

    /// Refuses a model whose layers have a memory or convolutions of their own.
    fn check_plain(&self) -> Result<()> {
        let plain = self.config.infini.conv == 0 && self.config.infini.kv_conv == 0;
        if plain && matches!(self.config.attention, Kind::Full | Kind::Local) {
            return Ok(());
        }
        Err(Error::Model("has a memory or convolutions of its own: only a plain decoder takes this adapter".into()))
    }

    /// Gives the model the window of a counting memory and puts that memory behind its head; an adapter's memory stays.
    ///
    /// # Errors
    /// Another vocabulary, a model that cannot have one ([`Model::fit_window`]).
    pub fn attach_tally(&mut self, tally: Tally) -> Result<()> {
        if tally.vocab() != self.config.vocab_size {
            let (v, vocab) = (self.config.vocab_size, tally.vocab());
            return Err(Error::Model(format!("the memory counts {vocab} tokens, the model's vocabulary has {v}")));
        }
        self.fit_window(tally.config().window())?;
        self.tally = Some(tally);
        Ok(())
    }

    /// The weights of layer `l`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&self, l: usize) -> LayerWeights<'_> {
        let Layer { attention_norm, attention, mlp_norm, mlp } = &self.layers[l];
        let [q, k, v, o] = attention.projections().map(Matrix::to_vec);
        let (gate, up, down) = (mlp.gate.as_ref().map(Matrix::to_vec), mlp.up.to_vec(), mlp.down.to_vec());
        let bias = attention.biases();
        LayerWeights { attention_norm, q, k, v, bias, o, mlp_norm, gate, up, down }
    }

    /// A copy of the embedding `[V, d]`.
    pub fn embedding(&self) -> Vec<f32> {
        self.embed.to_vec()
    }

    /// The final norm's gain `[d]`.
    pub fn final_norm(&self) -> &[f32] {
        &self.norm
    }

    /// A copy of the head `[V, d]`: the embedding if they are tied.
    pub fn head(&self) -> Vec<f32> {
        self.head.as_ref().unwrap_or(&self.embed).to_vec()
    }

    /// Layers above the adapter's memory, if there is one and nothing above it has to read everything
    /// (a counting memory does).
    pub fn layers_above_memory(&self) -> Option<usize> {
        let recall = self.recall.as_ref().filter(|_| self.tally.is_none());
        recall.map(|r| self.config.num_hidden_layers - 1 - r.config.layer)
    }

    /// What it is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A state of `batch` rows that has read nothing.
    ///
    /// # Panics
    /// If `batch` is 0.
    pub fn state(&self, batch: usize) -> State {
        let (recall, tally) = (self.recall.as_ref().map(|r| &r.config), self.tally.as_ref().map(Tally::config));
        State::new(&self.config, Extra { recall, tally }, batch)
    }

    /// Reads `tokens` into an adapter's memory and the windows below it: the layers above do not read, so logits are
    /// right again only after [`Model::layers_above_memory`] whole segments of [`Model::forward`]. What is skimmed
    /// must begin with a segment and come after the document's attention sinks.
    ///
    /// # Panics
    /// As [`Model::forward`]; if there is no adapter, or `state` stands inside a segment.
    pub fn skim(&self, state: &mut State, tokens: &[u32]) {
        assert!(self.layers_above_memory().is_some(), "only a model whose one memory is an adapter's can skim");
        assert!(state.position.is_multiple_of(self.config.infini.segment_len as u64), "skimming begins with a segment");
        self.pieces(state, tokens, Depth::Skim, &mut |_, _| ());
    }

    /// The residual stream that enters layer `layers`, `[B, T, d]`; that layer and those above do not read.
    ///
    /// # Panics
    /// As [`Model::forward`]; with a recurrent memory transformer, whose summaries leave the last layer.
    pub fn trunk(&self, state: &mut State, tokens: &[u32], layers: usize) -> Vec<f32> {
        let (b, d) = (state.batch, self.config.hidden_size);
        let total = tokens.len() / b;
        let mut out = vec![0.0; tokens.len() * d];
        self.pieces(state, tokens, Depth::Layers(layers), &mut |_, p| {
            for (row, x) in p.x.chunks(p.tokens * d).enumerate() {
                out[(row * total + p.start) * d..][..p.tokens * d].copy_from_slice(x);
            }
        });
        out
    }

    /// Reads `tokens` (`[B, T]`, row by row) and returns the logits that were asked for.
    ///
    /// # Panics
    /// If `tokens` is not a whole number of columns, holds an id outside the vocabulary, or is more than
    /// there is [room](Model::room) for.
    pub fn forward(&self, state: &mut State, tokens: &[u32], want: Want) -> Vec<f32> {
        let total = tokens.len() / state.batch;
        assert!(
            self.room(state).is_none_or(|n| total as u64 <= n),
            "{total} tokens after {}: full attention ends at {}",
            state.position,
            self.config.max_position_embeddings
        );
        // A product forked from outside the pool waits for a worker to wake; from inside, the caller computes meanwhile.
        if rayon::current_num_threads() == 1 {
            self.read(state, tokens, want)
        } else {
            rayon::scope(|_| self.read(state, tokens, want))
        }
    }

    /// [`Model::forward`] on a thread of the pool.
    fn read(&self, state: &mut State, tokens: &[u32], want: Want) -> Vec<f32> {
        let (b, d, v) = (state.batch, self.config.hidden_size, self.config.vocab_size);
        let total = tokens.len() / b;
        let mut all = vec![0.0; if want == Want::All { b * total * v } else { 0 }];
        let mut last = Vec::new();
        self.pieces(state, tokens, Depth::Full, &mut |state, p| {
            // a counting memory learns from every token how far to trust it: the head cannot be spared
            let block = if self.tally.is_some() { HEAD_ROWS.div_ceil(b) } else { p.tokens };
            for from in (0..p.tokens).step_by(block) {
                let t = block.min(p.tokens - from);
                let end = p.start + from + t == total;
                let skipped = match want {
                    _ if self.tally.is_some() => 0,
                    Want::All => 0,
                    Want::Last if end => t - 1,
                    _ => continue,
                };
                let mut logits = self.logits(&columns(p.x, d, p.tokens, from + skipped..from + t));
                if let Some(tally) = &self.tally {
                    self.recollect(tally, state, from, &columns(p.ids, 1, p.tokens, from..from + t), &mut logits);
                }
                let width = logits.len() / b;
                if end && want != Want::Nothing {
                    last = logits.chunks(width).flat_map(|row| row[width - v..].to_vec()).collect();
                }
                if want == Want::All {
                    for (row, logits) in logits.chunks(width).enumerate() {
                        all[(row * total + p.start + from) * v..][..width].copy_from_slice(logits);
                    }
                }
            }
        });
        if total > 0 {
            state.logits = (!last.is_empty()).then(|| last.clone());
        }
        if want == Want::Last { last } else { all }
    }

    /// Mixes what a counting memory says into `logits` (`[B, T, V]`), those of `ids` from column `from` of the piece on,
    /// and lets it count what leaves the window.
    fn recollect(&self, tally: &Tally, state: &mut State, from: usize, ids: &[u32], logits: &mut [f32]) {
        let State { batch, position, doc_start, layers, reads, .. } = state;
        let place = Place {
            config: &self.config,
            angles: &self.angles,
            batch: *batch,
            tokens: ids.len() / *batch,
            position: *position + from as u64,
            doc_start,
            reads: *reads,
        };
        let layer = layers.last_mut().expect("a decoder has layers");
        tally.forward(&place, &mut layer.tally, ids, logits);
    }

    /// Reads `tokens` (`[B, T]`) in pieces and shows each to `each`, with the state standing at its first token.
    fn pieces(&self, state: &mut State, tokens: &[u32], depth: Depth, each: &mut dyn FnMut(&mut State, Piece)) {
        let (b, d) = (state.batch, self.config.hidden_size);
        assert!(tokens.len().is_multiple_of(b), "{} tokens for {b} rows", tokens.len());
        if let Some(first) = &self.summaries {
            assert!(depth == Depth::Full, "summaries leave the last layer: every layer has to read");
            return self.segments(first, state, tokens, each);
        }
        let total = tokens.len() / b;
        let piece = (PIECE / b).max(1);
        for start in (0..total).step_by(piece) {
            let t = piece.min(total - start);
            let ids: Vec<u32> = tokens.chunks(total).flat_map(|row| row[start..start + t].iter().copied()).collect();
            let mut x = vec![0.0; b * t * d];
            self.embed.rows(&ids, &mut x);
            self.blocks(state, &mut x, &ids, t, depth);
            each(state, Piece { start, tokens: t, ids: &ids, x: &x });
            state.position += t as u64;
        }
    }

    /// The layers on `x` (`[B, T, d]`), in place.
    fn blocks(&self, state: &mut State, x: &mut [f32], ids: &[u32], t: usize, depth: Depth) {
        let (d, eps) = (self.config.hidden_size, self.config.rms_norm_eps as f32);
        let rows = x.len() / d;
        let (mut h, mut inv) = (vec![0.0; x.len()], vec![0.0; rows]);
        let end = state.position as usize + t;
        let grown = (self.grows() && end > FULL_ANGLES).then(|| {
            let frequencies = rope::frequencies(self.config.rope_theta, self.config.head_width());
            rope::Table::new(&frequencies, 0, end.next_multiple_of(FULL_ANGLES))
        });
        let State { batch, position, doc_start, layers, reads, .. } = state;
        for (l, (layer, memory)) in self.layers.iter().zip(layers).enumerate() {
            if depth == Depth::Layers(l) {
                return;
            }
            norm::rms_forward(x, &layer.attention_norm, eps, &mut h, &mut inv);
            let place = Place {
                config: &self.layout,
                angles: grown.as_ref().unwrap_or(&self.angles),
                batch: *batch,
                tokens: t,
                position: *position,
                doc_start,
                reads: *reads,
            };
            layer.attention.forward(&place, memory, &mut h, x);
            if let Some(recall) = self.recall.as_ref().filter(|r| r.config.layer == l) {
                let (embed, skim) = (&self.embed, depth == Depth::Skim);
                recall.forward(&place, embed, &mut memory.recall, &mut memory.writes, ids, &h, x, skim);
                if skim {
                    return;
                }
            }
            norm::rms_forward(x, &layer.mlp_norm, eps, &mut h, &mut inv);
            layer.mlp.forward(&h, x, d);
        }
    }

    /// Final norm and head on rows of `x`.
    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let (d, v) = (self.config.hidden_size, self.config.vocab_size);
        let n = x.len() / d;
        let (mut h, mut inv, mut out) = (vec![0.0; x.len()], vec![0.0; n], vec![0.0; n * v]);
        norm::rms_forward(x, &self.norm, self.config.rms_norm_eps as f32, &mut h, &mut inv);
        self.head.as_ref().unwrap_or(&self.embed).forward(&h, &mut out, false);
        out
    }

    /// Whether some layer keeps every key and value, so that the state grows.
    pub fn grows(&self) -> bool {
        self.config.grows()
    }

    /// Whether `n` more tokens can be read.
    ///
    /// # Errors
    /// [`Error::Room`] if full attention has no [room](Model::room) for them.
    pub fn check_room(&self, state: &State, n: usize) -> Result<()> {
        match self.room(state) {
            Some(room) if (n as u64) > room => Err(Error::Room { tokens: n, after: state.position, room }),
            _ => Ok(()),
        }
    }

    /// How many more tokens each row can read: those of full attention that the model was made for
    /// ([`ModelConfig::max_position_embeddings`]); `None` where nothing ends.
    pub fn room(&self, state: &State) -> Option<u64> {
        let max = self.config.max_position_embeddings as u64;
        (max > 0 && self.grows()).then(|| max.saturating_sub(state.position))
    }
}

/// Columns `range` of every row of `x`, `[B, total, width]`.
fn columns<T: Copy>(x: &[T], width: usize, total: usize, range: std::ops::Range<usize>) -> Vec<T> {
    x.chunks(total * width).flat_map(|row| &row[range.start * width..range.end * width]).copied().collect()
}

/// Angles of the positions inside a window, sinks in front.
fn window_angles(c: &ModelConfig) -> rope::Table {
    let i = &c.infini;
    let window = if c.grows() { FULL_ANGLES } else { i.segment_len * i.span + i.sink };
    rope::Table::new(&rope::frequencies(c.rope_theta, c.head_width()), 0, window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_as_sharp_at_position_ten_million() {
        let infini = crate::InfiniConfig { segment_len: 8, span: 2, ..crate::InfiniConfig::default() };
        let config = ModelConfig {
            vocab_size: 23,
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 0,
            head_dim: 0,
            intermediate_size: 24,
            hidden_act: Activation::Silu,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            qkv_bias: false,
            max_position_embeddings: 0,
            attention: Kind::Infini,
            infini,
        };
        let weights = Weights::init(&config, 1);
        let model = Model::new(config, weights).unwrap();
        let tokens: Vec<u32> = (0..50).map(|i| i * 7 % 23).collect();
        let mut near = model.state(1);
        let expected = model.forward(&mut near, &tokens, Want::All);
        for position in [10_000_000, 1 << 40] {
            let mut far = model.state(1);
            // nothing was read, as far as any layer can tell: an old document has just ended
            far.position = position;
            far.start_document(0);
            let got = model.forward(&mut far, &tokens, Want::All);
            let worst = got.iter().zip(&expected).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
            assert!(worst < 1e-5, "{position}: {worst}");
        }
    }
}
