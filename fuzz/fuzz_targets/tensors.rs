//! The safetensors reader agrees with the `safetensors` crate, within our limits.
#![no_main]

use infini_format::tensors::{TensorError, TensorFile, serialize};
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    match TensorFile::parse(data.to_vec()) {
        Ok(file) => {
            let theirs = SafeTensors::deserialize(data).expect("the crate accepts what we accept");
            assert_eq!(file.len(), theirs.len());
            for (name, tensor) in file.iter() {
                let other = theirs.tensor(name).expect("the same names");
                assert_eq!((tensor.shape, tensor.bytes), (other.shape(), other.data()));
            }
            let views: Vec<_> = file.iter().collect();
            let again = TensorFile::parse(serialize(&views, &file.metadata).expect("writable")).expect("readable");
            assert_eq!(again.metadata, file.metadata);
            assert!(again.iter().eq(file.iter()));
        }
        // Our own limits.
        Err(
            TensorError::TooManyValues { .. }
            | TensorError::TooManyTensors { .. }
            | TensorError::TooManyDims { .. }
            | TensorError::NameTooLong { .. }
            | TensorError::TooMuchText { .. }
            | TensorError::UnknownDtype { .. },
        ) => {}
        // A sum of sizes above 64 bits, at which the crate panics under overflow checks.
        Err(TensorError::Truncated { expected: u64::MAX, .. }) => {}
        Err(error) => assert!(SafeTensors::deserialize(data).is_err(), "{error}"),
    }
});
