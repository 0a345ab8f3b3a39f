//! A model on the disk: a folder with `config.json`, `model.safetensors` and `tokenizer.json`, ours or
//! Hugging Face's, or a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use infini_format::hash::sha256;
use infini_format::io::{self, Io, PUBLIC, RealIo};
use infini_format::memory::Partner;
use infini_format::tensors::{Dtype, Tensor, TensorFile, TensorView, serialize};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pretrained;
use crate::text::Tokenizer;
use crate::text::chat::TemplateSource;
use crate::weights::{Source, Weights};

/// Name of an adapter's file in the folder of its model.
pub const ADAPTER: &str = "adapter.safetensors";
/// Name of the file with all weights.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the file that says which of several files has which weight.
pub const INDEX: &str = "model.safetensors.index.json";
/// Largest `config.json` and `tokenizer.json` that are read.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;
const MAX_TOKENIZER: u64 = 64 << 20;
/// Largest weight file that is read.
pub(crate) const MAX_WEIGHTS: u64 = 16 << 30;

/// What a model consists of, before it is put together.
#[derive(Debug)]
pub struct Parts<W = Weights> {
    /// What it is.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: W,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Hashes that a memory file of this model carries.
    pub identity: Partner,
    /// Strings that end an answer (`stop_strings` of `generation_config.json`, if there is one).
    pub stop: Vec<String>,
    /// Tokens that end a text (`eos_token_id`).
    pub end: Vec<u32>,
    /// The chat template, if there is one.
    pub template: Option<TemplateSource>,
}

impl Parts {
    /// Puts the model together.
    ///
    /// # Errors
    /// A configuration that cannot be.
    pub fn build(self) -> Result<Loaded> {
        self.put_together(Model::new)
    }
}

/// The parts of a model whose weights still lie in their file.
pub(crate) type Unread = Parts<Source>;

impl Unread {
    /// All weights in f32.
    fn parts(self) -> Result<Parts> {
        let Parts { config, weights, tokenizer, identity, stop, end, template } = self;
        Ok(Parts { weights: weights.weights()?, config, tokenizer, identity, stop, end, template })
    }

    /// The model, its weights in the fewest bits that hold them.
    fn build(self) -> Result<Loaded> {
        self.put_together(|config, source| Model::from_source(config, &source))
    }
}

impl<W> Parts<W> {
    fn put_together(self, model: impl FnOnce(ModelConfig, W) -> Result<Model>) -> Result<Loaded> {
        let Parts { config, weights, tokenizer, identity, stop, end, template } = self;
        Ok(Loaded { model: model(config, weights)?, tokenizer, identity, stop, end, template })
    }
}

/// A model with its tokenizer, and who they are.
#[derive(Debug)]
pub struct Loaded {
    /// The decoder.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Hashes that a memory file of this model carries.
    pub identity: Partner,
    /// Strings that end an answer (`stop_strings` of `generation_config.json`, if there is one).
    pub stop: Vec<String>,
    /// Tokens that end a text (`eos_token_id`).
    pub end: Vec<u32>,
    /// The chat template, if there is one.
    pub template: Option<TemplateSource>,
}

/// `generation_config.json`: what of Hugging Face's file is honoured.
#[derive(serde::Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    stop_strings: Vec<String>,
}

/// Loads a model: a folder of this project, a Hugging Face folder, or a GGUF file. A folder that holds an adapter beside the
/// model ([`ADAPTER`]) is both.
///
/// # Errors
/// A missing or damaged file, or weights that do not fit the configuration.
pub fn load(path: &Path) -> Result<Loaded> {
    let mut loaded = unread(path)?.build()?;
    let adapter = path.join(ADAPTER);
    if adapter.is_file() {
        loaded.attach(&adapter)?;
    }
    Ok(loaded)
}

/// Reads the parts of a model as [`load`] does, but for an adapter.
///
/// # Errors
/// As [`load`].
pub fn parts(path: &Path) -> Result<Parts> {
    unread(path)?.parts()
}

fn unread(path: &Path) -> Result<Unread> {
    if path.is_file() {
        return pretrained::read_gguf(path);
    }
    if !path.is_dir() {
        return Err(Error::Model(format!(
            "{} is no model: give a folder that holds config.json, or a GGUF file",
            path.display()
        )));
    }
    let dir = path;
    let (bytes, json) = config_json(dir)?;
    if pretrained::is_huggingface(&json) {
        return pretrained::read_huggingface(dir, &json);
    }
    let config = own_config(dir, &bytes)?;
    let path = dir.join(WEIGHTS);
    let weight_bytes = read(&path, MAX_WEIGHTS)?;
    let (tokenizer, tokenizer_bytes) = read_tokenizer(dir, &config)?;
    let identity = identity(&config, sha256(&weight_bytes), &tokenizer_bytes);
    let file = TensorFile::parse(weight_bytes).map_err(|e| at(&path, Error::Model(e.to_string())))?;
    let source = Source::of_files(&config, path, vec![file], &|_| true)?;
    let path = dir.join("generation_config.json");
    let mut stop = Vec::new();
    if path.exists() {
        let generation: GenerationConfig = serde_json::from_slice(&read(&path, MAX_CONFIG)?)
            .map_err(|e| Error::Model(format!("{}: {e}", path.display())))?;
        stop = generation.stop_strings;
    }
    Ok(Unread { config, weights: source, tokenizer, identity, stop, end: Vec::new(), template: None })
}

/// The bytes of a folder's `config.json`, and what they say.
fn config_json(dir: &Path) -> Result<(Vec<u8>, serde_json::Value)> {
    let path = dir.join("config.json");
    let bytes = read(&path, MAX_CONFIG)?;
    let json = serde_json::from_slice(&bytes).map_err(|e| at(&path, Error::Model(e.to_string())))?;
    Ok((bytes, json))
}

/// Out of a `config.json` of this project.
fn own_config(dir: &Path, bytes: &[u8]) -> Result<ModelConfig> {
    let fail = |e: serde_json::Error| at(&dir.join("config.json"), Error::Model(e.to_string()));
    let config: ModelConfig = serde_json::from_slice(bytes).map_err(fail)?;
    config.check()?;
    Ok(config)
}

/// What the model in a folder is, by its `config.json` alone: whether it can be read at all, before its weights are there.
///
/// # Errors
/// A missing or damaged file, or a model that is not read.
pub fn config(dir: &Path) -> Result<ModelConfig> {
    let (bytes, json) = config_json(dir)?;
    if pretrained::is_huggingface(&json) {
        return pretrained::config(&json).map_err(|e| at(&dir.join("config.json"), e));
    }
    own_config(dir, &bytes)
}

/// Names of the files in which the weights of the model in a folder lie: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names if that is there alone. They themselves need not be there.
///
/// # Errors
/// A damaged index, or one of files that are not beside it.
pub fn weight_files(dir: &Path) -> Result<Vec<String>> {
    let index = dir.join(INDEX);
    if dir.join(WEIGHTS).exists() || !index.exists() {
        return Ok(vec![WEIGHTS.into()]);
    }
    pretrained::shards(&index)
}

/// Who a model of these parts is.
pub(crate) fn identity(config: &ModelConfig, weights: String, tokenizer: &[u8]) -> Partner {
    Partner {
        weights,
        adapter: None,
        tokenizer: sha256(tokenizer),
        config: sha256(&canonical(config)),
        segment_len: config.infini.segment_len,
    }
}

/// The tokenizer of a folder and its bytes; its ids fit the model.
pub(crate) fn read_tokenizer(dir: &Path, config: &ModelConfig) -> Result<(Tokenizer, Vec<u8>)> {
    let path = dir.join("tokenizer.json");
    let bytes = read(&path, MAX_TOKENIZER)?;
    let tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| at(&path, e))?;
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(Error::Model(format!(
            "{}: the tokenizer has {} entries, the model {}",
            dir.display(),
            tokenizer.vocab_size(),
            config.vocab_size
        )));
    }
    Ok((tokenizer, bytes))
}

/// Weights out of the bytes of a safetensors file (F32, F16 or BF16).
///
/// # Errors
/// What is wrong with the bytes, or with their fit to `config`.
pub fn parse_weights(config: &ModelConfig, bytes: Vec<u8>) -> Result<Weights> {
    parse_weights_with(config, bytes, &mut |_| None)
}

/// [`parse_weights`] of a file that may lack what a memory adds to a decoder: `missing` gives the values of such a
/// parameter by its name, `None` if it has to be in the file.
///
/// # Errors
/// As [`parse_weights`].
pub fn parse_weights_with(
    config: &ModelConfig,
    bytes: Vec<u8>,
    missing: &mut dyn FnMut(&str) -> Option<Vec<f32>>,
) -> Result<Weights> {
    let file = TensorFile::parse(bytes).map_err(|e| Error::Model(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, t) in file.iter() {
        let data = t.to_f32().map_err(|e| Error::Model(format!("{name}: {e}")))?;
        tensors.insert(name.to_string(), (t.shape.to_vec(), data));
    }
    for p in config.parameters() {
        if !tensors.contains_key(&p.name)
            && let Some(data) = missing(&p.name)
        {
            tensors.insert(p.name, (p.shape, data));
        }
    }
    Weights::new(config, tensors)
}

/// The bytes of a weight file; `dtype` is [`Dtype::F32`] or [`Dtype::BF16`].
///
/// # Errors
/// Values that the format refuses.
pub fn weight_bytes(config: &ModelConfig, weights: &Weights, dtype: Dtype) -> Result<Vec<u8>> {
    let fail = |e: infini_format::tensors::TensorError| Error::Model(e.to_string());
    let mut tensors = Vec::new();
    for p in config.parameters() {
        let data = weights.get(&p.name);
        let t = if dtype == Dtype::BF16 { Tensor::bf16(&p.shape, data) } else { Tensor::f32(&p.shape, data) };
        tensors.push((p.name, t.map_err(fail)?));
    }
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    serialize(&views, &BTreeMap::from([("format".to_string(), "pt".to_string())])).map_err(fail)
}

/// Writes a model folder, each file atomically, the weights last.
///
/// # Errors
/// The disk's.
pub fn save(dir: &Path, config: &ModelConfig, weights: &Weights, tokenizer_json: &[u8], dtype: Dtype) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("cannot make the folder", dir, e))?;
    write(&dir.join("config.json"), &canonical(config))?;
    write(&dir.join("tokenizer.json"), tokenizer_json)?;
    write(&dir.join("model.safetensors"), &weight_bytes(config, weights, dtype)?)
}

pub(crate) fn canonical(config: &ModelConfig) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(config).expect("a configuration is plain data");
    text.push('\n');
    text.into_bytes()
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    io::atomic_write(&RealIo, path, PUBLIC, bytes).map_err(|e| Error::Model(e.to_string()))
}

pub(crate) fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    RealIo.read(path, max).map_err(|e| Error::io("cannot read", path, e))
}

pub(crate) fn at(path: &Path, e: Error) -> Error {
    Error::Model(format!("{}: {e}", path.display()))
}
