//! Every limit a reader keeps, in one place. Writers keep them too: nothing is written that would not be read back.

/// Limits of one kind of safetensors file.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest file, in bytes.
    pub file_bytes: u64,
    /// Largest JSON header, in bytes.
    pub header_bytes: usize,
    /// Most dimensions of a tensor.
    pub dims: usize,
}

/// Weights, golden files, adapters. The header bound is the safetensors crate's own.
pub const TENSORS: Limits = Limits { file_bytes: 64 << 30, header_bytes: 100_000_000, dims: 8 };

/// Memory files (`.mem`).
pub const MEMORY: Limits = Limits { file_bytes: 4 << 30, header_bytes: 1 << 20, dims: 4 };

/// Most tensors in a file.
pub const TENSOR_COUNT: usize = 4_096;

/// Longest tensor name, in bytes.
pub const NAME_BYTES: usize = 256;

/// Most JSON values (keys included) in a header: bounds what parsing a hostile header can allocate. A file of
/// [`TENSOR_COUNT`] tensors with [`Limits::dims`] dimensions each has 74 thousand.
pub const HEADER_VALUES: usize = 1 << 17;

/// Most text in a header, names and `__metadata__` together, in bytes: texts are held twice while a file is parsed.
pub const TEXT_BYTES: usize = 16 << 20;

/// Most keys of a GGUF file.
pub const GGUF_KEYS: usize = 4_096;

/// Most array elements of a GGUF file, all arrays together: Llama 3 has 128 thousand entries, as many
/// types and 280 thousand merges.
pub const GGUF_ARRAYS: usize = 1 << 20;

/// Longest text of a GGUF file, in bytes.
pub const GGUF_TEXT: usize = 1 << 20;

/// Largest manifest of a checkpoint folder, in bytes.
pub const MANIFEST_BYTES: u64 = 1 << 20;

/// Most parts of a checkpoint.
pub const CHECKPOINT_PARTS: usize = 64;

/// Longest name of a checkpoint part, in characters.
pub const PART_NAME: usize = 128;

/// Largest part of a checkpoint, in bytes.
pub const PART_BYTES: u64 = 64 << 30;

/// Most documents in one shard of tokens.
pub const SHARD_DOCUMENTS: u64 = 1 << 24;

/// Most text of names in one shard of tokens, in bytes.
pub const SHARD_NAMES: u64 = 1 << 30;
