//! Element types, and tensors as numbers.

use half::{bf16, f16};
use safetensors::Dtype as CrateDtype;

use super::TensorError;

/// Element types that this project reads and writes, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754, 32 bits.
    F32,
    /// IEEE 754, 16 bits.
    F16,
    /// The upper half of an F32.
    BF16,
    /// IEEE 754, 64 bits.
    F64,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 8 bits.
    U8,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::U8 => 1,
        }
    }

    /// Whether elements can be NaN or infinite.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
    }

    pub(super) fn from_crate(dtype: CrateDtype) -> Option<Dtype> {
        Some(match dtype {
            CrateDtype::F32 => Dtype::F32,
            CrateDtype::F16 => Dtype::F16,
            CrateDtype::BF16 => Dtype::BF16,
            CrateDtype::F64 => Dtype::F64,
            CrateDtype::I64 => Dtype::I64,
            CrateDtype::I32 => Dtype::I32,
            CrateDtype::U8 => Dtype::U8,
            _ => return None,
        })
    }
}

/// A tensor inside a file or a buffer. Its bytes fill its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// The elements, row-major, little endian.
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The elements of an F32, F16 or BF16 tensor; all convert exactly.
    ///
    /// # Errors
    /// [`TensorError::WrongDtype`] for other types: F64 would be rounded.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        Ok(match self.dtype {
            Dtype::F32 => self.map(f32::from_le_bytes),
            Dtype::F16 => self.map(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => self.map(|b| bf16::from_le_bytes(b).to_f32()),
            found => return Err(TensorError::WrongDtype { found, wanted: "F32, F16 or BF16" }),
        })
    }

    /// The elements of a tensor of any float type; all convert exactly.
    ///
    /// # Errors
    /// [`TensorError::WrongDtype`] for integers.
    pub fn to_f64(&self) -> Result<Vec<f64>, TensorError> {
        Ok(match self.dtype {
            Dtype::F64 => self.map(f64::from_le_bytes),
            Dtype::F32 => self.map(|b| f64::from(f32::from_le_bytes(b))),
            Dtype::F16 => self.map(|b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => self.map(|b| bf16::from_le_bytes(b).to_f64()),
            found => return Err(TensorError::WrongDtype { found, wanted: "a float type" }),
        })
    }

    /// The elements of a tensor of any integer type.
    ///
    /// # Errors
    /// [`TensorError::WrongDtype`] for floats.
    pub fn to_i64(&self) -> Result<Vec<i64>, TensorError> {
        Ok(match self.dtype {
            Dtype::I64 => self.map(i64::from_le_bytes),
            Dtype::I32 => self.map(|b| i64::from(i32::from_le_bytes(b))),
            Dtype::U8 => self.bytes.iter().map(|b| i64::from(*b)).collect(),
            found => return Err(TensorError::WrongDtype { found, wanted: "I64, I32 or U8" }),
        })
    }

    /// The elements of an I32 or U8 tensor.
    ///
    /// # Errors
    /// [`TensorError::WrongDtype`] for other types.
    pub fn to_i32(&self) -> Result<Vec<i32>, TensorError> {
        Ok(match self.dtype {
            Dtype::I32 => self.map(i32::from_le_bytes),
            Dtype::U8 => self.bytes.iter().map(|b| i32::from(*b)).collect(),
            found => return Err(TensorError::WrongDtype { found, wanted: "I32 or U8" }),
        })
    }

    /// The elements of a U8 tensor.
    ///
    /// # Errors
    /// [`TensorError::WrongDtype`] for other types.
    pub fn to_u8(&self) -> Result<Vec<u8>, TensorError> {
        match self.dtype {
            Dtype::U8 => Ok(self.bytes.to_vec()),
            found => Err(TensorError::WrongDtype { found, wanted: "U8" }),
        }
    }

    /// The index of the first NaN or infinity among the elements of a float tensor, without converting them.
    pub(crate) fn first_not_finite(&self) -> Option<usize> {
        // All exponent bits set, in the bytes that hold them.
        fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
            let (elements, _) = bytes.as_chunks::<N>();
            // Without an early exit the compiler can look at many elements at once.
            let any = elements.iter().fold(false, |any, e| any | bad(*e));
            any.then(|| elements.iter().position(|e| bad(*e))).flatten()
        }
        match self.dtype {
            Dtype::F32 => find(self.bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            Dtype::F16 => find(self.bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            Dtype::BF16 => find(self.bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            Dtype::F64 => find(self.bytes, |b| u64::from_le_bytes(b) & (0x7ff << 52) == 0x7ff << 52),
            Dtype::I64 | Dtype::I32 | Dtype::U8 => None,
        }
    }

    fn map<const N: usize, T>(&self, from: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.as_chunks::<N>().0.iter().map(|bytes| from(*bytes)).collect()
    }
}

/// A tensor that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, row-major, little endian.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// An F32 tensor.
    ///
    /// # Errors
    /// [`TensorError::WrongLength`] unless `values` fill `shape`.
    pub fn f32(shape: &[usize], values: &[f32]) -> Result<Tensor, TensorError> {
        Tensor::new(Dtype::F32, shape, values, f32::to_le_bytes)
    }

    /// An F64 tensor.
    ///
    /// # Errors
    /// As [`Tensor::f32`].
    pub fn f64(shape: &[usize], values: &[f64]) -> Result<Tensor, TensorError> {
        Tensor::new(Dtype::F64, shape, values, f64::to_le_bytes)
    }

    /// A BF16 tensor; the values are rounded to nearest, ties to even.
    ///
    /// # Errors
    /// As [`Tensor::f32`].
    pub fn bf16(shape: &[usize], values: &[f32]) -> Result<Tensor, TensorError> {
        Tensor::new(Dtype::BF16, shape, values, |v| bf16::from_f32(v).to_le_bytes())
    }

    /// An F16 tensor; the values are rounded to nearest, ties to even.
    ///
    /// # Errors
    /// As [`Tensor::f32`].
    pub fn f16(shape: &[usize], values: &[f32]) -> Result<Tensor, TensorError> {
        Tensor::new(Dtype::F16, shape, values, |v| f16::from_f32(v).to_le_bytes())
    }

    /// An I64 tensor.
    ///
    /// # Errors
    /// As [`Tensor::f32`].
    pub fn i64(shape: &[usize], values: &[i64]) -> Result<Tensor, TensorError> {
        Tensor::new(Dtype::I64, shape, values, i64::to_le_bytes)
    }

    /// An I32 tensor.
    ///
    /// # Errors
    /// As [`Tensor::f32`].
    pub fn i32(shape: &[usize], values: &[i32]) -> Result<Tensor, TensorError> {
        Tensor::new(Dtype::I32, shape, values, i32::to_le_bytes)
    }

    /// A U8 tensor.
    ///
    /// # Errors
    /// As [`Tensor::f32`].
    pub fn u8(shape: &[usize], values: &[u8]) -> Result<Tensor, TensorError> {
        Tensor::new(Dtype::U8, shape, values, |v| [v])
    }

    /// The tensor as a view.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: &self.shape, bytes: &self.bytes }
    }

    fn new<T: Copy, const N: usize>(
        dtype: Dtype,
        shape: &[usize],
        values: &[T],
        to: impl Fn(T) -> [u8; N],
    ) -> Result<Tensor, TensorError> {
        if elements(shape) != Some(values.len()) {
            return Err(TensorError::WrongLength { shape: shape.to_vec(), len: values.len() });
        }
        let bytes = values.iter().flat_map(|v| to(*v)).collect();
        Ok(Tensor { dtype, shape: shape.to_vec(), bytes })
    }
}

/// The number of elements of a shape, unless it overflows.
pub(super) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive() {
        let f = [0.0, -1.5, f32::MAX, f32::MIN_POSITIVE];
        let t = Tensor::f32(&[2, 2], &f).unwrap();
        assert_eq!(t.view().to_f32().unwrap(), f);
        assert_eq!(t.view().to_f64().unwrap(), f.map(f64::from));
        assert_eq!(Tensor::f64(&[1], &[0.1]).unwrap().view().to_f64().unwrap(), [0.1]);
        assert_eq!(Tensor::i64(&[1], &[-5]).unwrap().view().to_i64().unwrap(), [-5]);
        assert_eq!(Tensor::i32(&[1], &[-5]).unwrap().view().to_i64().unwrap(), [-5]);
        assert_eq!(Tensor::i32(&[1], &[-5]).unwrap().view().to_i32().unwrap(), [-5]);
        assert_eq!(Tensor::u8(&[1], &[255]).unwrap().view().to_i32().unwrap(), [255]);
        assert_eq!(Tensor::u8(&[1], &[255]).unwrap().view().to_i64().unwrap(), [255]);
        assert_eq!(Tensor::u8(&[], &[255]).unwrap().view().to_u8().unwrap(), [255]);
        assert_eq!(Tensor::f32(&[0, 3], &[]).unwrap().view().elements(), 0);
    }

    #[test]
    fn halves_widen_exactly_and_round_to_nearest_even() {
        let b = Tensor::bf16(&[3], &[1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]).unwrap();
        assert_eq!(b.view().to_f32().unwrap(), [1.0, 1.0, 1.0 + 4.0 / 256.0]);
        assert_eq!(b.view().to_f64().unwrap()[2], 1.0 + 4.0 / 256.0);
        let h = Tensor::f16(&[2], &[65504.0, 1.0 + 1.0 / 2048.0]).unwrap();
        assert_eq!(h.view().to_f32().unwrap(), [65504.0, 1.0]);
        assert_eq!(h.view().to_f64().unwrap(), [65504.0, 1.0]);
    }

    #[test]
    fn nothing_is_rounded_or_reinterpreted_in_silence() {
        let f64s = Tensor::f64(&[1], &[1.0]).unwrap();
        let i64s = Tensor::i64(&[1], &[1]).unwrap();
        let wrong = |r: Result<(), TensorError>| matches!(r, Err(TensorError::WrongDtype { .. }));
        assert!(wrong(f64s.view().to_f32().map(drop)) && wrong(f64s.view().to_i64().map(drop)));
        assert!(wrong(i64s.view().to_f64().map(drop)) && wrong(i64s.view().to_i32().map(drop)));
        assert!(wrong(i64s.view().to_u8().map(drop)));
        assert!(matches!(Tensor::f32(&[2], &[1.0]), Err(TensorError::WrongLength { .. })));
        assert!(matches!(Tensor::u8(&[usize::MAX, 2], &[]), Err(TensorError::WrongLength { .. })));
    }

    #[test]
    fn finds_the_first_value_that_is_not_finite() {
        let first = |t: Tensor| t.view().first_not_finite();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let values = [f32::MAX, -0.0, bad, 1.0, bad];
            assert_eq!(first(Tensor::f32(&[5], &values).unwrap()), Some(2));
            assert_eq!(first(Tensor::bf16(&[3], &[1.0, bad, 0.0]).unwrap()), Some(1));
            assert_eq!(first(Tensor::f16(&[3], &[1.0, bad, 0.0]).unwrap()), Some(1));
            assert_eq!(first(Tensor::f64(&[2], &[f64::MAX, f64::from(bad)]).unwrap()), Some(1));
        }
        assert_eq!(first(Tensor::f32(&[2], &[f32::MAX, f32::MIN]).unwrap()), None);
        assert_eq!(first(Tensor::i32(&[1], &[-1]).unwrap()), None);
    }
}
