//! Safetensors files: named tensors and a map of texts.
//!
//! The layout is that of the `safetensors` crate, whose parser decides what is well formed; this module adds the limits
//! of [`limits`] and refuses element types this project has no use for. A file is held in memory as it
//! is; tensors are views into it, in row-major order, little endian.

mod values;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Metadata;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

pub use values::{Dtype, Tensor, TensorView};
pub(crate) use write::Plan;
pub use write::{serialize, write_tensors};

use crate::error::explained;
use crate::io::{self, Io, IoError};
use crate::limits::{self, Limits};
use crate::{At, Explain};

/// Length of the number in front of the header, in bytes.
pub(crate) const PREFIX: usize = 8;

/// A parsed file.
#[derive(Clone, Debug, Default)]
pub struct TensorFile {
    /// The texts of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    bytes: Vec<u8>,
    header: Range<usize>,
    index: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl TensorFile {
    /// Parses a whole file. Accepts what the `safetensors` crate accepts and [`limits::TENSORS`] allows.
    ///
    /// # Errors
    /// The first lie found in the file.
    pub fn parse(bytes: Vec<u8>) -> Result<TensorFile, TensorError> {
        TensorFile::parse_within(bytes, &limits::TENSORS)
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`TensorError::Io`] for the disk's errors, else as [`TensorFile::parse`].
    pub fn read(io: &dyn Io, path: &Path) -> Result<TensorFile, At<TensorError>> {
        let bytes = io::read(io, path, limits::TENSORS.file_bytes).map_err(|e| e.map(TensorError::Io))?;
        TensorFile::parse(bytes).map_err(|e| e.at(path))
    }

    pub(crate) fn parse_within(bytes: Vec<u8>, limits: &Limits) -> Result<TensorFile, TensorError> {
        let header = header_range(&bytes, limits.header_bytes)?;
        let text = std::str::from_utf8(&bytes[header.clone()])
            .map_err(|e| TensorError::HeaderNotText { offset: header.start + e.valid_up_to() })?;
        // Before the crate's parser allocates for it.
        check_amount(text.as_bytes())?;
        let parsed: Metadata =
            serde_json::from_str(text).map_err(|e| TensorError::HeaderMalformed { why: e.to_string() })?;
        // Not `SafeTensors::deserialize`, whose sum of these three can overflow.
        let data = header.end;
        let end = data
            .checked_add(parsed.data_len())
            .ok_or(TensorError::Truncated { offset: bytes.len(), expected: u64::MAX })?;
        check_end(bytes.len(), end)?;

        let names = parsed.offset_keys();
        if names.len() > limits::TENSOR_COUNT {
            return Err(TensorError::TooManyTensors { count: names.len(), max: limits::TENSOR_COUNT });
        }
        let mut index = BTreeMap::new();
        for name in names {
            let info = parsed.info(&name).expect("the crate lists its own names");
            check_name_and_shape(&name, &info.shape, limits)?;
            let dtype = Dtype::from_crate(info.dtype)
                .ok_or_else(|| TensorError::UnknownDtype { name: name.clone(), dtype: format!("{:?}", info.dtype) })?;
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            index.insert(name, Entry { dtype, shape: info.shape.clone(), range });
        }
        let metadata = parsed.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(TensorFile { metadata, bytes, header, index })
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// [`TensorError::Absent`].
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, TensorError> {
        match self.index.get(name) {
            Some(entry) => Ok(self.view(entry)),
            None => Err(TensorError::Absent { name: name.into() }),
        }
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.index.iter().map(|(name, entry)| (name.as_str(), self.view(entry)))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The JSON header as it stands in the file, padding included.
    pub(crate) fn header(&self) -> &[u8] {
        &self.bytes[self.header.clone()]
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        TensorView { dtype: entry.dtype, shape: &entry.shape, bytes: &self.bytes[entry.range.clone()] }
    }
}

/// Where the header lies, by the number in front of it.
fn header_range(bytes: &[u8], max: usize) -> Result<Range<usize>, TensorError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Err(TensorError::Truncated { offset: bytes.len(), expected: PREFIX as u64 });
    };
    let len = u64::from_le_bytes(*prefix);
    match usize::try_from(len) {
        Ok(n) if n <= max && n <= bytes.len() - PREFIX => Ok(PREFIX..PREFIX + n),
        Ok(n) if n <= max => Err(TensorError::Truncated { offset: bytes.len(), expected: PREFIX as u64 + len }),
        _ => Err(TensorError::HeaderTooLarge { len, max }),
    }
}

/// The file must end where its header says.
fn check_end(len: usize, end: usize) -> Result<(), TensorError> {
    match len.cmp(&end) {
        std::cmp::Ordering::Less => Err(TensorError::Truncated { offset: len, expected: end as u64 }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(TensorError::TrailingBytes { offset: end, count: len - end }),
    }
}

fn check_name_and_shape(name: &str, shape: &[usize], limits: &Limits) -> Result<(), TensorError> {
    if name.len() > limits::NAME_BYTES {
        let start = name.chars().take(32).collect();
        return Err(TensorError::NameTooLong { start, len: name.len(), max: limits::NAME_BYTES });
    }
    if shape.len() > limits.dims {
        return Err(TensorError::TooManyDims { name: name.into(), dims: shape.len(), max: limits.dims });
    }
    Ok(())
}

/// Bounds the JSON values of a header and the length of its texts, and with them what parsing it can allocate; itself
/// it holds one text at a time. A syntax error ends the count: the real parser will stop there too, and name it.
fn check_amount(header: &[u8]) -> Result<(), TensorError> {
    let mut amount = Amount { values: 0, text: 0 };
    // An error is a bound, which the amount shows, or a syntax error.
    let _ = Counter(&mut amount).deserialize(&mut serde_json::Deserializer::from_slice(header));
    match amount {
        Amount { values, .. } if values > limits::HEADER_VALUES => {
            Err(TensorError::TooManyValues { max: limits::HEADER_VALUES })
        }
        Amount { text, .. } if text > limits::TEXT_BYTES => Err(TensorError::TooMuchText { max: limits::TEXT_BYTES }),
        _ => Ok(()),
    }
}

struct Amount {
    values: usize,
    text: usize,
}

struct Counter<'a>(&'a mut Amount);

impl Counter<'_> {
    /// Counts a value with `text` bytes of text.
    fn add<E: serde::de::Error>(&mut self, text: usize) -> Result<(), E> {
        self.0.values += 1;
        self.0.text += text;
        if self.0.values > limits::HEADER_VALUES || self.0.text > limits::TEXT_BYTES {
            return Err(E::custom("over a limit"));
        }
        Ok(())
    }

    fn next(&mut self) -> Counter<'_> {
        Counter(self.0)
    }
}

impl<'de> DeserializeSeed<'de> for Counter<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counter<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: serde::de::Error>(mut self, _: bool) -> Result<(), E> {
        self.add(0)
    }

    fn visit_i64<E: serde::de::Error>(mut self, _: i64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_u64<E: serde::de::Error>(mut self, _: u64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_f64<E: serde::de::Error>(mut self, _: f64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<(), E> {
        self.add(text.len())
    }

    fn visit_unit<E: serde::de::Error>(mut self) -> Result<(), E> {
        self.add(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.add(0)?;
        while seq.next_element_seed(self.next())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.add(0)?;
        while map.next_key_seed(self.next())?.is_some() {
            map.next_value_seed(self.next())?;
        }
        Ok(())
    }
}

/// What a safetensors file, or a request to one, can get wrong.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named in the message of their variant")]
pub enum TensorError {
    /// The disk failed.
    Io(IoError),
    /// The file ends before what its header promises; `offset` is its end, in bytes.
    Truncated { offset: usize, expected: u64 },
    /// There are bytes behind the last tensor.
    TrailingBytes { offset: usize, count: usize },
    /// The number in front of the header is above the limit.
    HeaderTooLarge { len: u64, max: usize },
    /// The header is no UTF-8.
    HeaderNotText { offset: usize },
    /// The header is no JSON of the right form, or offsets, shapes and types disagree.
    HeaderMalformed { why: String },
    /// The header has more JSON values than the limit.
    TooManyValues { max: usize },
    /// More tensors than the limit.
    TooManyTensors { count: usize, max: usize },
    /// A tensor has more dimensions than the limit.
    TooManyDims { name: String, dims: usize, max: usize },
    /// A name is longer than the limit.
    NameTooLong { start: String, len: usize, max: usize },
    /// The texts of the header are together longer than the limit.
    TooMuchText { max: usize },
    /// An element type that is not one of [`Dtype`].
    UnknownDtype { name: String, dtype: String },
    /// No tensor has this name.
    Absent { name: String },
    /// The elements have another type than was asked for.
    WrongDtype { found: Dtype, wanted: &'static str },
    /// The number of elements, or bytes, is not that of the shape.
    WrongLength { shape: Vec<usize>, len: usize },
    /// Two tensors of one name were to be written.
    DuplicateName { name: String },
    /// A tensor was to be written under a name that the format reserves.
    ReservedName,
}

impl Explain for TensorError {
    fn what(&self) -> String {
        use TensorError::*;
        match self {
            Io(error) => error.what(),
            Truncated { offset, expected } => format!("file ends at byte {offset}, {expected} bytes were promised"),
            TrailingBytes { offset, count } => format!("{count} bytes too many after byte {offset}"),
            HeaderTooLarge { len, max } => format!("header of {len} bytes, at most {max} are allowed"),
            HeaderNotText { offset } => format!("header is no UTF-8 at byte {offset}"),
            HeaderMalformed { why } => format!("header is malformed ({why})"),
            TooManyValues { max } => format!("header of more than {max} JSON values"),
            TooManyTensors { count, max } => format!("{count} tensors, at most {max} are allowed"),
            TooManyDims { name, dims, max } => {
                format!("tensor `{name}` has {dims} dimensions, at most {max} are allowed")
            }
            NameTooLong { start, len, max } => {
                format!("tensor name `{start}…` has {len} bytes, at most {max} are allowed")
            }
            TooMuchText { max } => format!("header with more than {max} bytes of text"),
            UnknownDtype { name, dtype } => format!("tensor `{name}` has elements of type {dtype}"),
            Absent { name } => format!("there is no tensor `{name}`"),
            WrongDtype { found, wanted } => format!("elements are {found:?}, not {wanted}"),
            WrongLength { shape, len } => format!("{len} bytes or elements do not fill the shape {shape:?}"),
            DuplicateName { name } => format!("two tensors are named `{name}`"),
            ReservedName => "a tensor cannot be named `__metadata__`".into(),
        }
    }

    fn mend(&self) -> String {
        use TensorError::*;
        match self {
            Io(error) => return error.mend(),
            Truncated { .. } | TrailingBytes { .. } => "copy or download the file again",
            HeaderTooLarge { .. } | HeaderNotText { .. } | HeaderMalformed { .. } => {
                "check that it is a safetensors file, and copy or download it again"
            }
            TooManyValues { .. }
            | TooManyTensors { .. }
            | TooManyDims { .. }
            | NameTooLong { .. }
            | TooMuchText { .. } => "check that it is the file you meant",
            UnknownDtype { .. } => "convert it to F32, F16, BF16, F64, I64, I32 or U8",
            Absent { .. } => "check that the file belongs to this model",
            WrongDtype { .. } => "convert the tensor",
            WrongLength { .. } | DuplicateName { .. } | ReservedName => "correct the caller",
        }
        .into()
    }
}

explained!(TensorError);
