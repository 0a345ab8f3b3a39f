//! Kernels of Infini-attention on plain slices: f32 SIMD, forward and backward, each beside a plain
//! f64 reference in [`naive`] that states its equation.
//!
//! This crate knows nothing of tensors, files or text, and is the only one of the workspace with
//! `unsafe`. State is an argument and a result, never hidden. Equation numbers `(1)`–`(12)` refer to
//! `docs/math.md`, which lists the numbers of the paper (Munkhdalai, Faruqui, Gopal 2024,
//! arXiv 2404.07143) beside them.

pub mod conformance;
pub mod features;
pub mod math;
pub mod matmul;
pub mod naive;
pub mod schedule;
pub mod settings;
pub mod simd;

pub use settings::{Features, FinalState, Mix, Rope, Rule, Settings};
