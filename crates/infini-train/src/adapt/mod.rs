//! Adapts a pretrained decoder: learns the memory of [`infini::adapter`] while the base stays as it is.
//!
//! What makes it cheap: the layers below the memory know nothing of it, so what they make of a document is computed
//! once ([`pool`]); memories of several short documents, put together, are the memory of a long one; and
//! the layers above are entered last ([`stages`]): first the memory alone learns to name digits, then it speaks
//! through the output head as if nothing lay between, then through the true layers. The paper's form (`paper`) has
//! the last of these alone.

mod batch;
pub mod config;
mod facts;
mod graph;
mod leaves;
mod objective;
mod paper;
pub mod pool;
mod run;
pub mod stages;
mod upper;
mod whiten;

pub use config::AdaptConfig;
pub use run::{AdaptEvent, AdaptOptions, AdaptSummary, adapt, expected_memory};
