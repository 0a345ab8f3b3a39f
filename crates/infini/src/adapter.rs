//! A memory for a pretrained decoder: what is new in a small file, the base as it is.
//!
//! The base attends inside a window of two segments with attention sinks. One of its layers also writes tokens into a memory
//! of fixed size, as soon as the words that follow them are known, and reads from it; what is read is added to the residual stream
//! behind a gate per token. An address is the outer product of a place (where in a number or phrase a token
//! stands, from the layer's input one token earlier) and of the words around it (a pool of token embeddings), so
//! that facts with different names do not mix. Equations (29)–(32) of `docs/math.md`.
//!
//! While nothing has left the window nothing is read: an input that fits the first span, read in the same calls, has the
//! base's own logits, bit by bit, with that window and with full attention. Of a longer input the first span's are the
//! window's, bit by bit, and full attention's but for the order of sums where few queries are computed otherwise than many.

pub mod paper;

use std::collections::BTreeMap;
use std::path::Path;

use infini_format::hash::sha256;
use infini_format::io::{self, PUBLIC, RealIo};
use infini_format::tensors::{Dtype, Tensor, TensorFile, TensorView, serialize};
use serde::{Deserialize, Serialize};

use self::paper::Paper;
use crate::bound;
use crate::config::{InfiniConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::folder::{self, Loaded};
use crate::tally::{self, Tally};

/// `format` of an adapter file's metadata.
const FORMAT: &str = "infini-adapter";
const VERSION: &str = "4";
/// Largest adapter file that is read.
const MAX_FILE: u64 = 256 << 20;

/// Sizes of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// The layer whose input is remembered, from 0.
    pub layer: usize,
    /// Tokens of a segment; the window spans two.
    pub segment_len: usize,
    /// First tokens of a document that every window keeps.
    pub sink: usize,
    /// Memories side by side.
    pub heads: usize,
    /// Width of a value in each.
    pub value_width: usize,
    /// Width of the place part of an address (its cells are twice as many).
    pub place_width: usize,
    /// Width of the word part.
    pub word_width: usize,
    /// Signals in each from which the write gate judges a token by its neighbours.
    pub gate_width: usize,
    /// Tokens before a token, whose words make its address and whose signals its gate.
    pub before: usize,
    /// Tokens from a written token on, itself the first, that do so too: it is written when the last of them is read.
    pub after: usize,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        AdapterConfig {
            layer: 17,
            segment_len: 256,
            sink: 1,
            heads: 4,
            value_width: 64,
            place_width: 8,
            word_width: 32,
            gate_width: 4,
            before: 24,
            after: 24,
        }
    }
}

impl AdapterConfig {
    /// Cells of a memory: φ's width.
    pub fn cells(&self) -> usize {
        4 * self.place_width * self.word_width
    }

    /// Tokens that wait for the words behind them: token `t` is written before token `t + delay` reads.
    pub fn delay(&self) -> usize {
        self.after.max(1) - 1
    }

    /// Tokens by whose signals a write gate judges: `before` a token, itself and those it waits for.
    pub fn taps(&self) -> usize {
        self.before + self.delay() + 1
    }

    /// Names and shapes of the tensors, for a base of width `d`.
    pub fn parameters(&self, d: usize) -> Vec<(&'static str, Vec<usize>)> {
        let (h, p, u, v) = (self.heads, self.place_width, self.word_width, self.value_width);
        vec![
            ("query.weight", vec![h * p, d]),
            ("query.bias", vec![h * p]),
            ("key.weight", vec![h * p, d]),
            ("key.bias", vec![h * p]),
            ("word.weight", vec![h * u, d]),
            ("word.bias", vec![h * u]),
            ("salience.weight", vec![h, d]),
            ("salience.bias", vec![h]),
            ("offset", vec![h, self.before + self.after]),
            ("sharpness", vec![2, h]),
            ("value.weight", vec![h * v, d]),
            ("value.bias", vec![h * v]),
            ("write.weight", vec![h * self.gate_width, d]),
            ("write.kernel", vec![self.taps(), h * self.gate_width]),
            ("write.bias", vec![h]),
            ("read.weight", vec![h, d]),
            ("read.bias", vec![h]),
            ("null.weight", vec![h, d]),
            ("null.bias", vec![h]),
            ("doubt", vec![h]),
            ("nothing", vec![h * v]),
            ("output.weight", vec![d, h * v]),
        ]
    }

    /// The window that the base gets: two segments with attention sinks.
    pub fn window(&self) -> InfiniConfig {
        InfiniConfig { segment_len: self.segment_len, span: 2, lag: 1, sink: self.sink, ..InfiniConfig::default() }
    }

    /// Refuses sizes that cannot be, or that do not fit `base`.
    ///
    /// # Errors
    /// The first such value, by name.
    pub fn check(&self, base: &ModelConfig) -> Result<()> {
        self.check_sizes()?;
        if self.layer >= base.num_hidden_layers {
            let why = format!("layer {} of {}", self.layer, base.num_hidden_layers);
            return Err(Error::Config { field: "adapter.layer".into(), why });
        }
        Ok(())
    }

    /// Refuses sizes that no base could have: before shapes are computed from them.
    fn check_sizes(&self) -> Result<()> {
        let sizes = [
            ("segment_len", self.segment_len, 1 << 16),
            ("heads", self.heads, 64),
            ("value_width", self.value_width, 1024),
            ("place_width", self.place_width, 256),
            ("word_width", self.word_width, 256),
            ("gate_width", self.gate_width, 64),
            ("before", self.before, 256),
        ];
        let bad = |field: &str, why: String| Err(Error::Config { field: format!("adapter.{field}"), why });
        for (field, n, max) in sizes {
            if n == 0 || n > max {
                return bad(field, format!("{n} is outside 1..={max}"));
            }
        }
        if self.after > self.segment_len.min(256) {
            return bad("after", format!("{} is above 256 or the segment's {}", self.after, self.segment_len));
        }
        if self.cells() > 1 << 16 {
            return bad("word_width", format!("{} cells are above 65536", self.cells()));
        }
        if self.sink > self.segment_len.min(64) {
            return bad("sink", format!("{} is above 64 or the segment's {}", self.sink, self.segment_len));
        }
        Ok(())
    }
}

/// An adapter's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    config: AdapterConfig,
    base: String,
    width: usize,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Adapter {
    /// Takes exactly the tensors of `config`. `base` is the SHA-256 of the base's weights, `width` its hidden size.
    ///
    /// # Errors
    /// Sizes that cannot be; a tensor that is missing, surplus, of another length or not finite, by name.
    pub fn new(config: AdapterConfig, base: String, width: usize, tensors: BTreeMap<String, Vec<f32>>) -> Result<Self> {
        config.check_sizes()?;
        let parameters = config.parameters(width);
        for (name, shape) in &parameters {
            let data = tensors.get(*name).ok_or_else(|| Error::Model(format!("{name} is missing from the adapter")))?;
            let n: usize = shape.iter().product();
            if data.len() != n {
                return Err(Error::Model(format!("{name} has {} values, the adapter's sizes say {n}", data.len())));
            }
            if let Some(i) = data.iter().position(|x| !x.is_finite()) {
                return Err(Error::Model(format!("{name} holds {} at element {i}", data[i])));
            }
        }
        if let Some(name) = tensors.keys().find(|n| !parameters.iter().any(|(p, _)| p == *n)) {
            return Err(Error::Model(format!("{name} is no tensor of an adapter")));
        }
        Ok(Adapter { config, base, width, tensors })
    }

    /// Its sizes.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// SHA-256 of the weights it belongs to.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Hidden size of the base.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The values of a tensor.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> &[f32] {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name} in an adapter"))
    }

    /// The bytes of an adapter file; `dtype` is [`Dtype::F32`] or [`Dtype::BF16`].
    ///
    /// # Errors
    /// Values that the format refuses.
    pub fn to_bytes(&self, dtype: Dtype) -> Result<Vec<u8>> {
        let fail = |e: infini_format::tensors::TensorError| Error::Model(e.to_string());
        let mut tensors = Vec::new();
        for (name, shape) in self.config.parameters(self.width) {
            let data = self.get(name);
            let t = if dtype == Dtype::BF16 { Tensor::bf16(&shape, data) } else { Tensor::f32(&shape, data) };
            tensors.push((name, t.map_err(fail)?));
        }
        let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (*n, t.view())).collect();
        let mut metadata = bound::metadata(FORMAT, VERSION, &self.base, &self.config);
        metadata.insert("hidden_size".into(), self.width.to_string());
        serialize(&views, &metadata).map_err(fail)
    }

    /// Reads the bytes of an adapter file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        Adapter::from_file(&TensorFile::parse(bytes).map_err(|e| Error::Model(e.to_string()))?)
    }

    fn from_file(file: &TensorFile) -> Result<Self> {
        let (base, config) = bound::header::<AdapterConfig>(file, FORMAT, VERSION)?;
        let width = file
            .metadata
            .get("hidden_size")
            .and_then(|d| d.parse::<usize>().ok())
            .filter(|d| (1..=1 << 16).contains(d));
        let width = width.ok_or_else(|| Error::Model("hidden_size is no width".into()))?;
        let mut tensors = BTreeMap::new();
        for (name, t) in file.iter() {
            let data = t.to_f32().map_err(|e| Error::Model(format!("{name}: {e}")))?;
            tensors.insert(name.to_string(), data);
        }
        Adapter::new(config, base, width, tensors)
    }

    /// Writes an adapter file atomically.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, path: &Path, dtype: Dtype) -> Result<()> {
        io::atomic_write(&RealIo, path, PUBLIC, &self.to_bytes(dtype)?).map_err(|e| Error::Model(e.to_string()))
    }
}

impl Loaded {
    /// Puts the adapter of a file ([`Adapter`], [`Paper`]), or its counting memory ([`Tally`]), onto the model; a counting memory
    /// and one of the adapters go together. Memory files then belong to all of them.
    ///
    /// # Errors
    /// A file that is damaged or no adapter; one of another base.
    pub fn attach(&mut self, path: &Path) -> Result<()> {
        let at = |e: Error| {
            let why = match e {
                Error::Model(why) => why,
                other => other.to_string(),
            };
            Error::File(format!("bad adapter: {}: {why}", path.display()))
        };
        let bytes = io::read(&RealIo, path, MAX_FILE).map_err(|e| Error::Model(e.to_string()))?;
        let hash = sha256(&bytes);
        let file = TensorFile::parse(bytes).map_err(|e| at(Error::Model(e.to_string())))?;
        let mine = |base: &str| {
            if base == self.identity.weights {
                return Ok(());
            }
            Err(Error::File(format!(
                "this adapter belongs to another model: {}: it was made for weights {}, these are {}",
                path.display(),
                infini_format::hash::short(base),
                infini_format::hash::short(&self.identity.weights)
            )))
        };
        match file.metadata.get("format").map(String::as_str) {
            Some(tally::FORMAT) => {
                let tally = Tally::from_file(&file).map_err(at)?;
                mine(tally.base())?;
                self.model.attach_tally(tally).map_err(at)?;
            }
            Some(paper::FORMAT) => {
                let paper = Paper::from_file(&file).map_err(at)?;
                mine(paper.base())?;
                self.model.attach_paper(&paper).map_err(at)?;
            }
            _ => {
                let adapter = Adapter::from_file(&file).map_err(at)?;
                mine(&adapter.base)?;
                self.model.attach(adapter).map_err(at)?;
            }
        }
        // two adapters in either order are the same pair
        self.identity.adapter = Some(match self.identity.adapter.take() {
            Some(old) => sha256([old.as_str().min(&hash), old.as_str().max(&hash)].concat().as_bytes()),
            None => hash,
        });
        self.identity.config = sha256(&folder::canonical(self.model.config()));
        self.identity.segment_len = self.model.config().infini.segment_len;
        Ok(())
    }
}
