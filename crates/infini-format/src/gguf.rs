//! GGUF files (versions 2 and 3, little endian): the format of llama.cpp, read only.
//!
//! ```text
//! magic, version, tensors, keys │ keys and values │ names, shapes, types, offsets │ padding │ data
//! ```
//!
//! A file is held in memory as it is; tensors are views into it, and are dequantised one by one
//! ([`Tensor::to_f32`]). Every count is compared with the bytes that are left before anything is
//! allocated for it, and tensors may not overlap: what a file can make us allocate is bounded by its
//! length.

mod quant;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

pub use quant::Quant;

use crate::error::explained;
use crate::io::{self, Io, IoError};
use crate::{At, Explain, limits};

/// A parsed file.
#[derive(Clone)]
pub struct Gguf {
    /// Keys and values, sorted.
    pub metadata: BTreeMap<String, Value>,
    bytes: Vec<u8>,
    index: BTreeMap<String, Entry>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf").field("keys", &self.metadata.len()).field("tensors", &self.index.len()).finish()
    }
}

/// A value of the metadata; integers and floats of all widths are one kind each.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned or a non-negative signed integer.
    Unsigned(u64),
    /// A negative integer.
    Negative(i64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of integers or truth values.
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f64>),
}

impl Value {
    /// An integer of at least 0.
    pub fn as_u64(&self) -> Option<u64> {
        if let Value::Unsigned(n) = self { Some(*n) } else { None }
    }

    /// A float.
    pub fn as_f64(&self) -> Option<f64> {
        if let Value::Float(x) = self { Some(*x) } else { None }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    /// A text.
    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(s) = self { Some(s) } else { None }
    }

    /// An array of texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        if let Value::Texts(a) = self { Some(a) } else { None }
    }

    /// An array of integers.
    pub fn as_integers(&self) -> Option<&[i64]> {
        if let Value::Integers(a) = self { Some(a) } else { None }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    quant: Quant,
    /// Outermost first.
    shape: Vec<usize>,
    start: usize,
    len: usize,
}

/// A tensor inside a file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// How the elements are stored.
    pub quant: Quant,
    /// Sizes, outermost first (the file has them the other way round).
    pub shape: &'a [usize],
    /// The blocks, row-major.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// The elements, dequantised.
    pub fn to_f32(&self) -> Vec<f32> {
        self.quant.to_f32(self.bytes)
    }
}

impl Gguf {
    /// Parses a whole file.
    ///
    /// # Errors
    /// The first lie found in the file, or an element type that is not one of [`Quant`].
    pub fn parse(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        let mut r = Cursor { bytes: &bytes, at: 0 };
        if r.take(4)? != b"GGUF" {
            return Err(GgufError::NoGguf);
        }
        let version = r.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version { version });
        }
        let (tensors, keys) = (r.u64()?, r.u64()?);
        // name, dimensions, type, offset; name, type, value: no entry is shorter
        let tensors = r.count("tensors", tensors, 24, limits::TENSOR_COUNT)?;
        let keys = r.count("keys", keys, 13, limits::GGUF_KEYS)?;
        let mut metadata = BTreeMap::new();
        let mut elements = limits::GGUF_ARRAYS;
        for _ in 0..keys {
            let key = r.text("a key", limits::NAME_BYTES)?;
            let value = r.value(&key, &mut elements)?;
            if metadata.contains_key(&key) {
                return Err(GgufError::Duplicate { name: key });
            }
            metadata.insert(key, value);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(v) => match v.as_u64().and_then(|a| usize::try_from(a).ok()) {
                Some(a) if a.is_power_of_two() && (8..=1 << 16).contains(&a) => a,
                _ => return Err(GgufError::Alignment { found: format!("{v:?}") }),
            },
        };
        let mut entries = Vec::with_capacity(tensors);
        for _ in 0..tensors {
            entries.push(r.tensor()?);
        }
        let data = r.at.next_multiple_of(alignment);
        let index = place(entries, data, alignment, bytes.len())?;
        Ok(Gguf { metadata, bytes, index })
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`GgufError::Io`] for the disk's errors, else as [`Gguf::parse`].
    pub fn read(io: &dyn Io, path: &Path) -> Result<Gguf, At<GgufError>> {
        let bytes = io::read(io, path, limits::TENSORS.file_bytes).map_err(|e| e.map(GgufError::Io))?;
        Gguf::parse(bytes).map_err(|e| e.at(path))
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.index.get(name).map(|e| self.view(e))
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor<'_>)> {
        self.index.iter().map(|(name, e)| (name.as_str(), self.view(e)))
    }

    /// The file as it is.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn view<'a>(&'a self, e: &'a Entry) -> Tensor<'a> {
        Tensor { quant: e.quant, shape: &e.shape, bytes: &self.bytes[e.start..e.start + e.len] }
    }
}

/// A tensor as the file announces it: its `start` is still relative to the data.
struct Announced {
    name: String,
    entry: Entry,
    offset: u64,
}

/// Turns offsets into places in the file: aligned, inside it, and none on top of another.
fn place(
    entries: Vec<Announced>,
    data: usize,
    alignment: usize,
    file: usize,
) -> Result<BTreeMap<String, Entry>, GgufError> {
    let mut index = BTreeMap::new();
    let mut places = Vec::with_capacity(entries.len());
    for Announced { name, mut entry, offset } in entries {
        if !offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::Misplaced { name, why: "its offset is not aligned" });
        }
        let start = usize::try_from(offset).ok().and_then(|o| o.checked_add(data));
        let end = start.and_then(|s| s.checked_add(entry.len)).filter(|e| *e <= file);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(GgufError::Misplaced { name, why: "it ends behind the end of the file" });
        };
        entry.start = start;
        if index.contains_key(&name) {
            return Err(GgufError::Duplicate { name });
        }
        if entry.len > 0 {
            places.push((start, end, name.clone()));
        }
        index.insert(name, entry);
    }
    places.sort();
    match places.windows(2).find(|w| w[1].0 < w[0].1) {
        Some(w) => Err(GgufError::Misplaced { name: w[1].2.clone(), why: "it overlaps another tensor" }),
        None => Ok(index),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], GgufError> {
        if n > self.left() {
            return Err(GgufError::Truncated { offset: self.bytes.len() });
        }
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        Ok(self.take(N)?.try_into().expect("as many as were taken"))
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// `n` things of at least `size` bytes each: as many as the file can hold, and at most `max`.
    fn count(&self, what: &'static str, n: u64, size: usize, max: usize) -> Result<usize, GgufError> {
        if n > max as u64 {
            return Err(GgufError::TooMany { what, count: n, max });
        }
        let n = n as usize;
        if n.checked_mul(size).is_none_or(|bytes| bytes > self.left()) {
            return Err(GgufError::Truncated { offset: self.bytes.len() });
        }
        Ok(n)
    }

    fn text(&mut self, what: &'static str, max: usize) -> Result<String, GgufError> {
        let n = self.u64()?;
        let offset = self.at;
        let n = self.count(what, n, 1, max)?;
        match std::str::from_utf8(self.take(n)?) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(GgufError::NotText { offset }),
        }
    }

    fn value(&mut self, key: &str, elements: &mut usize) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        if kind != ARRAY {
            return self.scalar(key, kind);
        }
        let kind = self.u32()?;
        let n = self.u64()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => return Err(GgufError::Kind { key: key.into(), kind }),
        };
        let n = self.count("array elements", n, size, *elements)?;
        *elements -= n;
        if kind == 8 {
            let mut texts = Vec::with_capacity(n);
            for _ in 0..n {
                texts.push(self.text("a text", limits::GGUF_TEXT)?);
            }
            return Ok(Value::Texts(texts));
        }
        if matches!(kind, 6 | 12) {
            let mut floats = Vec::with_capacity(n);
            for _ in 0..n {
                floats.push(self.scalar(key, kind)?.as_f64().expect("a float"));
            }
            return Ok(Value::Floats(floats));
        }
        let mut integers = Vec::with_capacity(n);
        for _ in 0..n {
            integers.push(match self.scalar(key, kind)? {
                Value::Unsigned(n) => i64::try_from(n).map_err(|_| GgufError::Kind { key: key.into(), kind })?,
                Value::Negative(n) => n,
                Value::Bool(b) => i64::from(b),
                _ => unreachable!("the kinds left are integers"),
            });
        }
        Ok(Value::Integers(integers))
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Result<Value, GgufError> {
        let signed = |n: i64| if n < 0 { Value::Negative(n) } else { Value::Unsigned(n as u64) };
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.take(1)?[0])),
            1 => signed(i64::from(self.take(1)?[0] as i8)),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.take(1)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(GgufError::Kind { key: key.into(), kind }),
            },
            8 => Value::Text(self.text("a text", limits::GGUF_TEXT)?),
            10 => Value::Unsigned(self.u64()?),
            11 => signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(GgufError::Kind { key: key.into(), kind }),
        })
    }

    fn tensor(&mut self) -> Result<Announced, GgufError> {
        let name = self.text("a tensor name", limits::NAME_BYTES)?;
        let dims = self.u32()?;
        if dims > 4 {
            return Err(GgufError::Shape { name, why: format!("{dims} dimensions, at most 4 are allowed") });
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            shape.push(self.u64()?);
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let Some(quant) = Quant::from_code(kind) else {
            return Err(GgufError::Quant { name, kind });
        };
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let block = quant.block_len() as u64;
        let row = shape.first().copied().unwrap_or(1);
        let bytes = elements.and_then(|n| (n / block).checked_mul(quant.block_bytes() as u64));
        let Some(len) = bytes.and_then(|b| usize::try_from(b).ok()) else {
            return Err(GgufError::Shape { name, why: "its sizes multiply to more than any file".into() });
        };
        if !row.is_multiple_of(block) {
            return Err(GgufError::Shape { name, why: format!("rows of {row} are no whole blocks of {block}") });
        }
        // they fit: the product does
        let shape = shape.iter().rev().map(|d| *d as usize).collect();
        Ok(Announced { name, entry: Entry { quant, shape, start: 0, len }, offset })
    }
}

const ARRAY: u32 = 9;

/// What a GGUF file can get wrong.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named in the message of their variant")]
pub enum GgufError {
    /// The disk failed.
    Io(IoError),
    /// It does not begin with `GGUF`.
    NoGguf,
    /// A version other than 2 and 3 (a big-endian file shows as a huge one).
    Version { version: u32 },
    /// The file ends before what it promises.
    Truncated { offset: usize },
    /// A count above the limit.
    TooMany { what: &'static str, count: u64, max: usize },
    /// A text is no UTF-8.
    NotText { offset: usize },
    /// A value of an unknown type, a nested array, or a value outside its type.
    Kind { key: String, kind: u32 },
    /// A key, or a tensor, twice.
    Duplicate { name: String },
    /// `general.alignment` is no power of two from 8 to 65,536.
    Alignment { found: String },
    /// A shape that cannot be.
    Shape { name: String, why: String },
    /// An element type that is not one of [`Quant`].
    Quant { name: String, kind: u32 },
    /// A tensor outside the file, unaligned, or on top of another.
    Misplaced { name: String, why: &'static str },
}

impl Explain for GgufError {
    fn what(&self) -> String {
        use GgufError::*;
        match self {
            Io(error) => error.what(),
            NoGguf => "not a GGUF file".into(),
            Version { version } if version.swap_bytes() < 16 => "a big-endian GGUF file".into(),
            Version { version } => format!("GGUF version {version}; 2 and 3 are read"),
            Truncated { offset } => format!("file ends at byte {offset}, more was promised"),
            TooMany { what, count, max } => format!("{count} {what}, at most {max} are allowed"),
            NotText { offset } => format!("text is no UTF-8 at byte {offset}"),
            Kind { key, kind } => format!("`{key}` has a value of type {kind} that cannot be read"),
            Duplicate { name } => format!("`{name}` is there twice"),
            Alignment { found } => format!("general.alignment is {found}, no power of two from 8 to 65536"),
            Shape { name, why } => format!("tensor `{name}`: {why}"),
            Quant { name, kind } => format!("tensor `{name}` has elements of type {}", quant::name_of(*kind)),
            Misplaced { name, why } => format!("tensor `{name}` is misplaced: {why}"),
        }
    }

    fn mend(&self) -> String {
        use GgufError::*;
        match self {
            Io(error) => return error.mend(),
            NoGguf | TooMany { .. } => "check that it is the file you meant",
            Version { .. } => "convert it with a newer llama.cpp, on a little-endian machine",
            Quant { .. } => "convert it to F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K or Q6_K",
            Kind { .. } => "leave that key out when converting the model",
            Truncated { .. }
            | NotText { .. }
            | Duplicate { .. }
            | Alignment { .. }
            | Shape { .. }
            | Misplaced { .. } => "copy or download the file again",
        }
        .into()
    }
}

explained!(GgufError);

#[cfg(test)]
mod tests;
