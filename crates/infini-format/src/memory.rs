//! Memory files (`.mem`): what a reader knows after a document, bound to the model that made it.
//!
//! A memory file is a safetensors file whose `__metadata__` holds, as texts:
//!
//! | key | value |
//! |---|---|
//! | `format`, `version` | `infini-memory`, `1` |
//! | `weights`, `adapter`, `tokenizer`, `config` | SHA-256 of what made the memory; no `adapter` without one |
//! | `segment_len`, `position`, `generation` | decimal numbers |
//! | `sources` | JSON list of the names of what was read |
//! | `settings` | JSON: how the memory was made |
//! | `tensors` | JSON map from each tensor's name to the SHA-256 of its bytes |
//! | `seal` | SHA-256 of the header (all of the above, shapes, types, offsets, padding), the seal itself as zeros |
//!
//! Every byte of the file is thus covered. A memory is as private as the document, so files have mode 0600.

mod error;

use std::collections::BTreeMap;
use std::path::Path;

pub use error::MemoryError;
use serde::de::DeserializeOwned;

use crate::io::{self, Io, Lock, PRIVATE};
use crate::tensors::{Plan, TensorFile, TensorView};
use crate::{At, Explain, hash, limits, seal};

/// The value of `format`.
pub const FORMAT: &str = "infini-memory";

/// The version that is written. Versions up to it are read.
pub const VERSION: u32 = 1;

/// What a memory belongs to: it means nothing to any other model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    /// SHA-256 of the weights.
    pub weights: String,
    /// SHA-256 of the adapter, if there is one.
    pub adapter: Option<String>,
    /// SHA-256 of the tokenizer.
    pub tokenizer: String,
    /// SHA-256 of the resolved configuration.
    pub config: String,
    /// Tokens of a segment.
    pub segment_len: usize,
}

/// What a memory file says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryHeader {
    /// The model it belongs to.
    pub partner: Partner,
    /// Counts the writes of this memory; the writer raises it.
    pub generation: u64,
    /// Tokens read so far.
    pub position: u64,
    /// Names of what was read, in order.
    pub sources: Vec<String>,
    /// How the memory was made: any JSON.
    pub settings: serde_json::Value,
}

impl MemoryHeader {
    /// Refuses the memory of another model than `expected`.
    ///
    /// # Errors
    /// The first of weights, adapter, tokenizer, configuration and segment length that differs, with both values.
    pub fn check_partner(&self, expected: &Partner) -> Result<(), MemoryError> {
        let (file, model) = (&self.partner, expected);
        let both = |file: &String, model: &String| (file.clone(), model.clone());
        if file.weights != model.weights {
            let (file, model) = both(&file.weights, &model.weights);
            return Err(MemoryError::OtherWeights { file, model });
        }
        if file.adapter != model.adapter {
            return Err(MemoryError::OtherAdapter { file: file.adapter.clone(), model: model.adapter.clone() });
        }
        if file.tokenizer != model.tokenizer {
            let (file, model) = both(&file.tokenizer, &model.tokenizer);
            return Err(MemoryError::OtherTokenizer { file, model });
        }
        if file.segment_len != model.segment_len {
            return Err(MemoryError::OtherSegmentLen { file: file.segment_len, model: model.segment_len });
        }
        if file.config != model.config {
            let (file, model) = both(&file.config, &model.config);
            return Err(MemoryError::OtherConfig { file, model });
        }
        Ok(())
    }

    fn texts(&self, tensors: &[(&str, TensorView<'_>)]) -> BTreeMap<String, String> {
        let hashes: BTreeMap<&str, String> = tensors.iter().map(|(name, t)| (*name, hash::sha256(t.bytes))).collect();
        let mut texts = BTreeMap::from([
            ("format".into(), FORMAT.into()),
            ("version".into(), VERSION.to_string()),
            ("weights".into(), self.partner.weights.clone()),
            ("tokenizer".into(), self.partner.tokenizer.clone()),
            ("config".into(), self.partner.config.clone()),
            ("segment_len".into(), self.partner.segment_len.to_string()),
            ("generation".into(), self.generation.to_string()),
            ("position".into(), self.position.to_string()),
            ("sources".into(), json(&self.sources)),
            ("settings".into(), json(&self.settings)),
            ("tensors".into(), json(&hashes)),
            (seal::KEY.into(), seal::BLANK.into()),
        ]);
        texts.extend(self.partner.adapter.clone().map(|adapter| ("adapter".into(), adapter)));
        texts
    }
}

/// Writes a memory file, replacing an older one atomically.
///
/// # Errors
/// [`MemoryError::Io`], also when another writer holds the file; and all that [`encode`] refuses. After an error the old
/// file is as it was, as [`atomic_write`](io::atomic_write) has it.
pub fn write_memory(
    io: &dyn Io,
    path: &Path,
    header: &MemoryHeader,
    tensors: &[(&str, TensorView<'_>)],
) -> Result<(), At<MemoryError>> {
    let lock = Lock::acquire(path).map_err(|e| e.map(MemoryError::Io))?;
    write_memory_locked(&lock, io, header, tensors)
}

/// [`write_memory`] for a caller that has held the file's lock since it loaded the file.
///
/// # Errors
/// As [`write_memory`].
pub fn write_memory_locked(
    lock: &Lock,
    io: &dyn Io,
    header: &MemoryHeader,
    tensors: &[(&str, TensorView<'_>)],
) -> Result<(), At<MemoryError>> {
    let plan = plan(header, tensors).map_err(|e| e.at(lock.path()))?;
    lock.atomic_write_with(io, PRIVATE, |w| plan.write(w)).map_err(|e| e.map(MemoryError::Io))
}

/// Reads a memory file and checks all of it. Whether it belongs to a model is [`MemoryHeader::check_partner`]'s to say.
///
/// # Errors
/// [`MemoryError::Io`] for the disk's errors, else as [`decode`].
pub fn read_memory(io: &dyn Io, path: &Path) -> Result<(MemoryHeader, TensorFile), At<MemoryError>> {
    let bytes = io::read(io, path, limits::MEMORY.file_bytes).map_err(|e| e.map(MemoryError::Io))?;
    decode(bytes).map_err(|e| e.at(path))
}

/// The bytes of a memory file.
///
/// # Errors
/// [`MemoryError::NotFinite`] for a NaN or infinity in a float tensor; [`MemoryError::BadField`] for a hash that is not
/// 64 lower-case hexadecimal digits; [`MemoryError::Tensors`] for what breaks a limit.
pub fn encode(header: &MemoryHeader, tensors: &[(&str, TensorView<'_>)]) -> Result<Vec<u8>, MemoryError> {
    Ok(plan(header, tensors)?.bytes())
}

fn plan<'a>(header: &MemoryHeader, tensors: &[(&str, TensorView<'a>)]) -> Result<Plan<'a>, MemoryError> {
    for (name, tensor) in tensors {
        check_finite(name, tensor)?;
    }
    let texts = header.texts(tensors);
    read_partner(&Fields(&texts))?;
    let mut plan = Plan::new(tensors, &texts, &limits::MEMORY).map_err(MemoryError::Tensors)?;
    seal::close(plan.header_mut());
    Ok(plan)
}

/// Parses and checks the bytes of a memory file.
///
/// # Errors
/// The first lie found in the file.
pub fn decode(bytes: Vec<u8>) -> Result<(MemoryHeader, TensorFile), MemoryError> {
    let file = TensorFile::parse_within(bytes, &limits::MEMORY).map_err(MemoryError::Tensors)?;
    let fields = Fields(&file.metadata);
    match fields.0.get("format") {
        Some(format) if format == FORMAT => {}
        found => return Err(MemoryError::NotAMemory { found: found.cloned() }),
    }
    // Before the seal: a newer version may seal otherwise.
    match fields.number::<u32>("version")? {
        1..=VERSION => {}
        0 => return Err(fields.bad("version")),
        found => return Err(MemoryError::NewerVersion { found, known: VERSION }),
    }
    if !seal::holds(file.header()) {
        return Err(MemoryError::HeaderDamaged);
    }
    let header = MemoryHeader {
        partner: read_partner(&fields)?,
        generation: fields.number("generation")?,
        position: fields.number("position")?,
        sources: fields.json("sources")?,
        settings: fields.json("settings")?,
    };
    check_tensors(&file, &fields.json("tensors")?)?;
    Ok((header, file))
}

fn read_partner(fields: &Fields<'_>) -> Result<Partner, MemoryError> {
    Ok(Partner {
        weights: fields.hash("weights")?,
        adapter: fields.0.contains_key("adapter").then(|| fields.hash("adapter")).transpose()?,
        tokenizer: fields.hash("tokenizer")?,
        config: fields.hash("config")?,
        segment_len: fields.number("segment_len")?,
    })
}

fn check_tensors(file: &TensorFile, hashes: &BTreeMap<String, String>) -> Result<(), MemoryError> {
    if let Some(name) = hashes.keys().find(|name| !file.contains(name)) {
        return Err(MemoryError::TensorMissing { name: name.clone() });
    }
    for (name, tensor) in file.iter() {
        let expected = hashes.get(name).ok_or_else(|| MemoryError::TensorUnlisted { name: name.into() })?;
        let found = hash::sha256(tensor.bytes);
        if found != *expected {
            return Err(MemoryError::TensorDamaged { name: name.into(), expected: expected.clone(), found });
        }
        check_finite(name, &tensor)?;
    }
    Ok(())
}

fn check_finite(name: &str, tensor: &TensorView<'_>) -> Result<(), MemoryError> {
    match tensor.first_not_finite() {
        Some(index) => Err(MemoryError::NotFinite { name: name.into(), index }),
        None => Ok(()),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("texts and JSON values always serialise")
}

/// The texts of the header, read with their meaning.
struct Fields<'a>(&'a BTreeMap<String, String>);

impl Fields<'_> {
    fn text(&self, field: &'static str) -> Result<&str, MemoryError> {
        self.0.get(field).map(String::as_str).ok_or(MemoryError::FieldMissing { field })
    }

    fn bad(&self, field: &'static str) -> MemoryError {
        let value = self.0.get(field).map_or("", String::as_str).chars().take(80).collect();
        MemoryError::BadField { field, value }
    }

    fn hash(&self, field: &'static str) -> Result<String, MemoryError> {
        let text = self.text(field)?;
        if hash::is_hash(text) { Ok(text.into()) } else { Err(self.bad(field)) }
    }

    fn number<T: std::str::FromStr + ToString>(&self, field: &'static str) -> Result<T, MemoryError> {
        let text = self.text(field)?;
        // One spelling for each number: no sign, no leading zeros.
        text.parse().ok().filter(|n: &T| n.to_string() == text).ok_or_else(|| self.bad(field))
    }

    fn json<T: DeserializeOwned>(&self, field: &'static str) -> Result<T, MemoryError> {
        serde_json::from_str(self.text(field)?).map_err(|_| self.bad(field))
    }
}
