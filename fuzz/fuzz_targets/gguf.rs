//! No bytes crash the GGUF reader, and what it accepts is what its shapes say.
#![no_main]

use infini_format::gguf::Gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = Gguf::parse(data.to_vec()) {
        for (_, tensor) in file.iter() {
            assert_eq!(tensor.to_f32().len(), tensor.shape.iter().product::<usize>());
        }
    }
});
