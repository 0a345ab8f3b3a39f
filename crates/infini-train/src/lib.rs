//! Trains Infini-attention models.
//!
//! The decoder of [`decoder`] is the one of crate `infini` as a differentiable graph: the same
//! configuration, the same parameter names. [`ops`] is the only module that knows both the kernels and
//! the tensor framework's CPU backend. [`train`] runs a [`Config`] in a folder.

pub mod adapt;
pub mod carry;
pub mod check;
pub mod config;
pub mod decoder;
pub mod error;
pub mod memory;
pub mod metrics;
pub mod ops;
pub mod parameters;
pub mod reference;
pub mod run;
pub mod schedule;
pub mod tally;
pub mod tensorboard;
pub mod trainer;

pub use burn::tensor::Device;
pub use config::Config;
pub use error::{Error, Result};
pub use ops::Body;
pub use parameters::Parameters;
pub use run::{Event, Options, Progress, Resume, Summary, train};
pub use trainer::Trainer;
