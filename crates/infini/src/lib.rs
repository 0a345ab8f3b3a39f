//! Infini-attention to embed: input without end, memory that never grows.
//!
//! State is an argument and a result: a [`model::Model`] never changes while it reads, everything it
//! has read is in a [`state::State`].

pub mod config;
pub mod error;
pub mod state;
pub mod model;
pub mod session;
pub mod generate;
pub mod folder;
pub mod plot;
pub mod prose;
pub mod eval;
pub mod tasks;
pub mod text;
pub mod weights;
mod layers;

pub use config::{InfiniConfig, ModelConfig};
pub use error::{Error, Result};
pub use weights::Weights;
