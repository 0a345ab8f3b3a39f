//! Files of Infini: bytes in, values out.
//!
//! Readers are bounded ([`limits`]) and refuse every damaged file with an error that names what is wrong; writers
//! are atomic ([`io`]): after a crash a file is the old one or the new one, never a mixture. This crate knows nothing
//! of kernels, models, or the network.
//!
//! | module | what |
//! |---|---|
//! | [`io`] | the disk behind a small trait, atomic writes, one writer per file, a disk that fails on demand |
//! | [`hash`] | SHA-256 of bytes and files |
//! | [`tensors`] | safetensors files |
//! | [`gguf`] | GGUF files, read only |
//! | [`memory`] | memory files (`.mem`): a reader's state, bound to the model that made it |
//! | [`checkpoint`] | a training run's checkpoint folder |
//! | [`shards`] | the token shards of a training corpus |
//!
//! ```
//! use infini_format::{io::RealIo, memory, tensors::Tensor};
//!
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("book.mem");
//! let partner = memory::Partner {
//!     weights: infini_format::hash::sha256(b"weights"),
//!     adapter: None,
//!     tokenizer: infini_format::hash::sha256(b"tokenizer"),
//!     config: infini_format::hash::sha256(b"config"),
//!     segment_len: 64,
//! };
//! let header = memory::MemoryHeader {
//!     partner: partner.clone(),
//!     generation: 1,
//!     position: 128,
//!     sources: vec!["book.txt".into()],
//!     settings: serde_json::json!({}),
//! };
//! let m = Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0])?;
//! memory::write_memory(&RealIo, &path, &header, &[("layers.0.M", m.view())])?;
//!
//! let (read, tensors) = memory::read_memory(&RealIo, &path)?;
//! read.check_partner(&partner)?;
//! assert_eq!(tensors.get("layers.0.M")?.to_f32()?, [1.0, 2.0, 3.0, 4.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod checkpoint;
pub mod gguf;
pub mod hash;
pub mod io;
pub mod limits;
pub mod memory;
pub mod shards;
pub mod tensors;

mod error;
mod seal;

pub use error::{At, Explain};
