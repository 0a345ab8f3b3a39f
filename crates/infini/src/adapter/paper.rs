//! The paper's own form as an adapter: one layer of a pretrained decoder becomes an Infini-attention layer.
//!
//! The layer's queries, keys and values, without their positions, also write and read a memory per key/value head (ELU+1,
//! linear writes, every token), and a gate per query head mixes what is read with the window: equations (3), (4) and
//! (10) of `docs/math.md`, preset `paper-linear`. The file holds what was learned: the layer's projections, in place of
//! the base's, and the gates β.
//!
//! The gate is there whatever the memory holds. An empty memory reads zero, so already inside the first span the
//! window's part is scaled by `1 − σ(β)`: with this form the base's logits are not kept.

use std::collections::BTreeMap;
use std::path::Path;

use infini_format::io::{self, PUBLIC, RealIo};
use infini_format::tensors::{Tensor, TensorFile, TensorView, serialize};
use serde::{Deserialize, Serialize};

use crate::bound;
use crate::config::{Attention, InfiniConfig, Layers, ModelConfig};
use crate::error::{Error, Result};

/// `format` of the file's metadata.
pub(crate) const FORMAT: &str = "infini-paper";
const VERSION: &str = "1";

/// Where the memory stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperConfig {
    /// The layer that becomes one with a memory, from 0.
    pub layer: usize,
    /// Tokens of a segment; the window spans two.
    pub segment_len: usize,
    /// First tokens of a document that every window keeps.
    pub sink: usize,
}

impl PaperConfig {
    /// What `base` is with this memory.
    pub fn model(&self, base: &ModelConfig) -> ModelConfig {
        let PaperConfig { layer, segment_len, sink } = *self;
        let layers = Layers::List(vec![layer]);
        let infini = InfiniConfig { segment_len, span: 2, lag: 1, sink, layers, ..InfiniConfig::default() };
        ModelConfig { attention: Attention::Infini, infini, ..base.clone() }
    }

    /// Names (as in the layer's `self_attn`) and shapes of the tensors for `base`.
    pub fn parameters(&self, base: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let prefix = format!("model.layers.{}.self_attn.", self.layer);
        let all = self.model(base).parameters().into_iter();
        all.filter_map(|p| Some((p.name.strip_prefix(&prefix)?.to_string(), p.shape))).collect()
    }
}

/// What was learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Paper {
    config: PaperConfig,
    base: String,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Paper {
    /// `base` is the SHA-256 of the base's weights; each tensor has its shape and values. Whether they are those of the
    /// layer is known beside the base: [`Model::attach_paper`](crate::model::Model::attach_paper).
    ///
    /// # Errors
    /// A tensor that is not finite or not of its shape, by name.
    pub fn new(config: PaperConfig, base: String, tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Result<Self> {
        for (name, (shape, data)) in &tensors {
            if shape.iter().product::<usize>() != data.len() {
                return Err(Error::Model(format!("{name} has {} values for the shape {shape:?}", data.len())));
            }
            if let Some(i) = data.iter().position(|x| !x.is_finite()) {
                return Err(Error::Model(format!("{name} holds {} at element {i}", data[i])));
            }
        }
        Ok(Paper { config, base, tensors })
    }

    /// Where it stands.
    pub fn config(&self) -> &PaperConfig {
        &self.config
    }

    /// SHA-256 of the weights it belongs to.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The values of a tensor.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> &[f32] {
        self.tensors.get(name).map_or_else(|| panic!("no tensor {name} in the adapter"), |t| &t.1)
    }

    /// Refuses a base whose layer has other tensors.
    ///
    /// # Errors
    /// A size that cannot be; a tensor that is missing, surplus or of another shape, by name.
    pub fn check(&self, base: &ModelConfig) -> Result<()> {
        self.config.model(base).check()?;
        let parameters = self.config.parameters(base);
        for (name, shape) in &parameters {
            let its = self.tensors.get(name).map(|t| &t.0);
            let its = its.ok_or_else(|| Error::Model(format!("{name} is missing from the adapter")))?;
            if its != shape {
                return Err(Error::Model(format!("{name} has shape {its:?}, the layer's is {shape:?}")));
            }
        }
        match self.tensors.keys().find(|n| !parameters.iter().any(|(p, _)| p == *n)) {
            Some(name) => Err(Error::Model(format!("{name} is no tensor of the layer"))),
            None => Ok(()),
        }
    }

    /// The bytes of an adapter file, in f32: what was learned is small beside what it changes.
    ///
    /// # Errors
    /// Values that the format refuses.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let fail = |e: infini_format::tensors::TensorError| Error::Model(e.to_string());
        let mut tensors = Vec::new();
        for (name, (shape, data)) in &self.tensors {
            tensors.push((name.as_str(), Tensor::f32(shape, data).map_err(fail)?));
        }
        let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (*n, t.view())).collect();
        let metadata = bound::metadata(FORMAT, VERSION, &self.base, &self.config);
        serialize(&views, &metadata).map_err(fail)
    }

    /// Reads the bytes of an adapter file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        Paper::from_file(&TensorFile::parse(bytes).map_err(|e| Error::Model(e.to_string()))?)
    }

    pub(crate) fn from_file(file: &TensorFile) -> Result<Self> {
        let (base, config) = bound::header::<PaperConfig>(file, FORMAT, VERSION)?;
        let mut tensors = BTreeMap::new();
        for (name, t) in file.iter() {
            let data = t.to_f32().map_err(|e| Error::Model(format!("{name}: {e}")))?;
            tensors.insert(name.to_string(), (t.shape.to_vec(), data));
        }
        Paper::new(config, base, tensors)
    }

    /// Writes an adapter file atomically.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, path: &Path) -> Result<()> {
        io::atomic_write(&RealIo, path, PUBLIC, &self.to_bytes()?).map_err(|e| Error::Model(e.to_string()))
    }
}
