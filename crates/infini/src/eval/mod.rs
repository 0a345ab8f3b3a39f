//! How well a model does: streams of any length in constant memory, counts with their uncertainty.

pub mod rss;
pub mod stats;

pub use stats::Count;
