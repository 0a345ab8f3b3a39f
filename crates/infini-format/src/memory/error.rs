//! The lies a memory file can tell.

use crate::Explain;
use crate::error::explained;
use crate::hash::short;
use crate::io::IoError;
use crate::tensors::TensorError;

/// Why a memory file is refused.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named in the message of their variant")]
pub enum MemoryError {
    /// The disk failed, or another writer holds the file.
    Io(IoError),
    /// It is no well-formed safetensors file within the limits: truncated, for one.
    Tensors(TensorError),
    /// It is a safetensors file of another kind.
    NotAMemory { found: Option<String> },
    /// It was written by a newer Infini.
    NewerVersion { found: u32, known: u32 },
    /// The header is not what was written.
    HeaderDamaged,
    /// The header lacks a field.
    FieldMissing { field: &'static str },
    /// A field has a value of the wrong form.
    BadField { field: &'static str, value: String },
    /// The header lists a tensor that is not there.
    TensorMissing { name: String },
    /// There is a tensor that the header does not list.
    TensorUnlisted { name: String },
    /// A tensor's bytes are not what was written.
    TensorDamaged { name: String, expected: String, found: String },
    /// A float tensor holds a NaN or an infinity.
    NotFinite { name: String, index: usize },
    /// It belongs to other weights.
    OtherWeights { file: String, model: String },
    /// It belongs to another adapter, or to the model with or without one.
    OtherAdapter { file: Option<String>, model: Option<String> },
    /// It belongs to another tokenizer.
    OtherTokenizer { file: String, model: String },
    /// It belongs to another configuration.
    OtherConfig { file: String, model: String },
    /// It belongs to another length of segments.
    OtherSegmentLen { file: usize, model: usize },
}

impl Explain for MemoryError {
    fn what(&self) -> String {
        use MemoryError::*;
        let other = |what: &str, file: &str, model: &str| {
            format!("memory was made with other {what} (memory: {}, now: {})", short(file), short(model))
        };
        let or_none = |hash: &Option<String>| hash.clone().unwrap_or("none".into());
        match self {
            Io(error) => error.what(),
            Tensors(error) => error.what(),
            NotAMemory { found: Some(found) } => format!("not a memory file but `{found}`"),
            NotAMemory { found: None } => "not a memory file".into(),
            NewerVersion { found, known } => format!("memory file of version {found}, newest known is {known}"),
            HeaderDamaged => "header is damaged (its checksum differs)".into(),
            FieldMissing { field } => format!("header has no `{field}`"),
            BadField { field, value } => format!("header has a bad `{field}`: `{value}`"),
            TensorMissing { name } => format!("tensor `{name}` is missing"),
            TensorUnlisted { name } => format!("tensor `{name}` has no checksum"),
            TensorDamaged { name, expected, found } => {
                format!("tensor `{name}` is damaged (checksum {}, not {})", short(found), short(expected))
            }
            NotFinite { name, index } => format!("tensor `{name}` holds a NaN or infinity at element {index}"),
            OtherWeights { file, model } => other("weights", file, model),
            OtherAdapter { file, model } => other("adapter", &or_none(file), &or_none(model)),
            OtherTokenizer { file, model } => other("tokenizer", file, model),
            OtherConfig { file, model } => other("configuration", file, model),
            OtherSegmentLen { file, model } => {
                format!("memory was made with segments of another length (memory: {file}, now: {model})")
            }
        }
    }

    fn mend(&self) -> String {
        use MemoryError::*;
        match self {
            Io(error) => return error.mend(),
            Tensors(error) => return error.mend(),
            NotAMemory { .. } => "name a file that `infini read` wrote",
            NewerVersion { .. } => "use a newer infini, or read the document again",
            HeaderDamaged | FieldMissing { .. } | BadField { .. } => "restore a copy, or read the document again",
            TensorMissing { .. } | TensorUnlisted { .. } | TensorDamaged { .. } => {
                "restore a copy, or read the document again"
            }
            NotFinite { .. } => "read the document again; if it happens again, the model is at fault",
            OtherWeights { .. } => "use the model that made it, or read the document again with this one",
            OtherAdapter { .. } => "use the adapter that made it, or read the document again with this one",
            OtherTokenizer { .. } => "use the tokenizer that made it, or read the document again with this one",
            OtherConfig { .. } | OtherSegmentLen { .. } => {
                "use the configuration that made it, or read the document again with this one"
            }
        }
        .into()
    }
}

explained!(MemoryError);
