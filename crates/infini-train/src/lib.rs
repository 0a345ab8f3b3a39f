//! Trains Infini-attention models.
//!
//! The decoder of [`decoder`] is the one of crate `infini` as a differentiable graph: the same
//! configuration, the same parameter names. [`ops`] is the only module that knows both the kernels and
//! the tensor framework's CPU backend.

pub mod check;
pub mod config;
pub mod decoder;
pub mod ops;
pub mod parameters;
pub mod reference;
pub mod schedule;

pub use ops::Body;
pub use parameters::Parameters;
