//! Kernels of Infini-attention on plain slices: f32 SIMD, forward and backward, each beside a plain
//! f64 reference in [`naive`] that states its equation.
//!
//! This crate knows nothing of tensors, files or text, and is the only one of the workspace with
//! `unsafe`. State is an argument and a result, never hidden. Equation numbers `(1)`–`(12)` refer to
//! `docs/math.md`, which lists the numbers of the paper (Munkhdalai, Faruqui, Gopal 2024,
//! arXiv 2404.07143) beside them.

pub mod activation;
pub mod attention;
mod attention_backward;
pub mod bf16;
mod blocks;
mod cells;
pub mod conformance;
pub mod conv;
pub mod embedding;
pub mod features;
mod few;
mod flash;
pub mod heads;
pub mod heap;
pub mod knn;
mod lanes;
pub mod linear;
pub mod local;
pub mod loss;
pub mod machine;
pub mod math;
pub mod matmul;
pub mod memory;
pub mod naive;
pub mod norm;
pub mod optim;
mod panels;
mod par;
pub mod quant;
pub mod rope;
pub mod schedule;
mod seqdelta;
pub mod settings;
pub mod simd;
pub mod sink;
pub mod tally;
mod tile;

pub use settings::{Features, FinalState, Mix, Rope, Rule, Settings};
