//! How well a model does: streams of any length in constant memory, counts with their uncertainty.

pub mod babi;
pub mod copy;
pub mod live;
pub mod long;
pub mod mqar;
pub mod passkey;
pub mod perplexity;
pub mod probe;
pub mod recurrence;
pub mod rouge;
pub mod rss;
pub mod ruler;
pub mod score;
mod skim;
pub mod stats;
pub mod template;

pub use stats::Count;
pub use template::Template;
