//! Writing safetensors files: the same tensors give the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::values::elements;
use super::{Dtype, PREFIX, TensorError, TensorView, check_amount, check_name_and_shape};
use crate::io::{Io, atomic_write_with};
use crate::limits::{self, Limits};
use crate::{At, Explain};

/// The bytes of a file with these tensors and texts.
///
/// Tensors lie in the order of descending element size, then name, so that all are aligned; the header is padded with
/// blanks to a multiple of eight bytes.
///
/// # Errors
/// What [`TensorFile::parse`](super::TensorFile::parse) would refuse, and duplicate or reserved names.
pub fn serialize(
    tensors: &[(&str, TensorView<'_>)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, TensorError> {
    Ok(Plan::new(tensors, metadata, &limits::TENSORS)?.bytes())
}

/// Writes a file with these tensors and texts: [`serialize`] into [`atomic_write_with`], without a copy of the data.
///
/// # Errors
/// As both.
pub fn write_tensors(
    io: &dyn Io,
    path: &Path,
    mode: u32,
    tensors: &[(&str, TensorView<'_>)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), At<TensorError>> {
    let plan = Plan::new(tensors, metadata, &limits::TENSORS).map_err(|e| e.at(path))?;
    atomic_write_with(io, path, mode, |w| plan.write(w)).map_err(|e| e.map(TensorError::Io))
}

/// A file about to be written: its header, and the data in order.
pub(crate) struct Plan<'a> {
    head: Vec<u8>,
    data: Vec<&'a [u8]>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(
        tensors: &[(&str, TensorView<'a>)],
        metadata: &BTreeMap<String, String>,
        limits: &Limits,
    ) -> Result<Plan<'a>, TensorError> {
        let mut order = tensors.to_vec();
        order.sort_by_key(|(name, t)| (std::cmp::Reverse(t.dtype.size()), *name));
        let head = head(&Header { tensors: &order, metadata });
        check(&order, &head[PREFIX..], limits)?;
        Ok(Plan { head, data: order.iter().map(|(_, t)| t.bytes).collect() })
    }

    /// The JSON header, without the number in front of it.
    pub(crate) fn header_mut(&mut self) -> &mut [u8] {
        &mut self.head[PREFIX..]
    }

    pub(crate) fn write(&self, w: &mut dyn Write) -> io::Result<()> {
        w.write_all(&self.head)?;
        self.data.iter().try_for_each(|bytes| w.write_all(bytes))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.head.len() + self.data.iter().map(|b| b.len()).sum::<usize>());
        bytes.extend_from_slice(&self.head);
        self.data.iter().for_each(|b| bytes.extend_from_slice(b));
        bytes
    }
}

fn head(header: &Header<'_>) -> Vec<u8> {
    let mut head = vec![0; PREFIX];
    serde_json::to_writer(&mut head, header).expect("maps of texts and numbers always serialise");
    head.resize(head.len().next_multiple_of(PREFIX), b' ');
    let len = (head.len() - PREFIX) as u64;
    head[..PREFIX].copy_from_slice(&len.to_le_bytes());
    head
}

/// Nothing is written that would not be read back.
fn check(tensors: &[(&str, TensorView<'_>)], header: &[u8], limits: &Limits) -> Result<(), TensorError> {
    if tensors.len() > limits::TENSOR_COUNT {
        return Err(TensorError::TooManyTensors { count: tensors.len(), max: limits::TENSOR_COUNT });
    }
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(TensorError::DuplicateName { name: pair[0].into() });
    }
    for (name, t) in tensors {
        if *name == METADATA {
            return Err(TensorError::ReservedName);
        }
        check_name_and_shape(name, t.shape, limits)?;
        if elements(t.shape).and_then(|n| n.checked_mul(t.dtype.size())) != Some(t.bytes.len()) {
            return Err(TensorError::WrongLength { shape: t.shape.to_vec(), len: t.bytes.len() });
        }
    }
    if header.len() > limits.header_bytes {
        return Err(TensorError::HeaderTooLarge { len: header.len() as u64, max: limits.header_bytes });
    }
    check_amount(header)
}

const METADATA: &str = "__metadata__";

struct Header<'a> {
    tensors: &'a [(&'a str, TensorView<'a>)],
    metadata: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Info<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    data_offsets: (usize, usize),
}

impl Serialize for Dtype {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        let mut start = 0;
        for (name, t) in self.tensors {
            let end = start + t.bytes.len();
            map.serialize_entry(name, &Info { dtype: t.dtype, shape: t.shape, data_offsets: (start, end) })?;
            start = end;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::Tensor;

    #[test]
    fn the_order_of_the_caller_does_not_matter_and_all_elements_are_aligned() {
        let byte = Tensor::u8(&[3], &[1, 2, 3]).unwrap();
        let (double, single) = (Tensor::f64(&[1], &[1.0]).unwrap(), Tensor::f32(&[1], &[1.0]).unwrap());
        let mut tensors = [("a", byte.view()), ("b", single.view()), ("c", double.view()), ("d", single.view())];
        let texts = BTreeMap::from([("k".into(), "v".into())]);
        let bytes = serialize(&tensors, &texts).unwrap();
        tensors.reverse();
        assert_eq!(serialize(&tensors, &texts).unwrap(), bytes);
        let header = r#"{"__metadata__":{"k":"v"},"c":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"b":"#;
        assert!(bytes[PREFIX..].starts_with(header.as_bytes()), "{}", String::from_utf8_lossy(&bytes));
        assert_eq!((bytes.len() - 19) % PREFIX, 0, "the data begin at a multiple of eight");
    }
}
