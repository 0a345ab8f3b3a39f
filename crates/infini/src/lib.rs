//! Infini-attention to embed: input without end, memory that never grows.
//!
//! State is an argument and a result: a [`model::Model`] never changes while it reads, everything it
//! has read is in a [`state::State`].

pub mod adapter;
mod bound;
pub mod config;
pub mod conversation;
pub mod corpus;
pub mod error;
pub mod eval;
pub mod folder;
pub mod footprint;
pub mod generate;
mod layers;
pub mod model;
pub mod plot;
pub mod pretrained;
pub mod prose;
pub mod report;
pub mod session;
pub mod state;
pub mod tally;
pub mod tasks;
pub mod text;
pub mod weights;

pub use adapter::{Adapter, AdapterConfig};
pub use config::{InfiniConfig, ModelConfig};
pub use error::{Error, Result};
pub use weights::Weights;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
