//! Text to token ids and back; documents to text.

pub mod chat;
mod decode;
mod epub;
mod markup;
pub mod reader;
pub mod tokenizer;
pub mod unwrap;

pub use reader::{Piece, Reader};
pub use tokenizer::{EncodeStream, Tokenizer};
