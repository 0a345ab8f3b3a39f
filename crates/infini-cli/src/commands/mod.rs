//! One module per command.

pub mod ask;
pub mod check;
pub mod data;
pub mod demo;
pub mod eval;
pub mod inspect;
pub mod memory;
pub mod read;
pub mod report;
pub mod shell;
pub mod tokenizer;
pub mod train;
