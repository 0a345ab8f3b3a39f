//! How well a model does: streams of any length in constant memory, counts with their uncertainty.

pub mod copy;
pub mod mqar;
pub mod passkey;
pub mod perplexity;
pub mod recurrence;
pub mod rouge;
pub mod rss;
pub mod score;
pub mod stats;
pub mod template;

pub use stats::Count;
pub use template::Template;
