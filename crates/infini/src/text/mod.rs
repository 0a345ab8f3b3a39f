//! Text to token ids and back; documents to text.

pub mod tokenizer;

pub use tokenizer::{EncodeStream, Tokenizer};
