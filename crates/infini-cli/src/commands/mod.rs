//! One module per command.

pub mod adapt;
pub mod ask;
pub mod chat;
pub mod check;
pub mod convert;
pub mod data;
pub mod demo;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod memory;
pub mod probe;
pub mod pull;
pub mod read;
pub mod report;
pub mod shell;
pub mod tokenizer;
pub mod train;
