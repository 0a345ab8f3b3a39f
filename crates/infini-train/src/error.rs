//! What can go wrong in a run.

use std::fmt::Display;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration, tokenizer, task or model folder that was refused.
    #[error(transparent)]
    Infini(#[from] infini::Error),
    /// A file of the run that could not be written or read back.
    #[error("{0}")]
    File(String),
    /// A checkpoint that belongs to another run.
    #[error("cannot resume: {path}: {why}")]
    Resume {
        /// The run folder.
        path: String,
        /// What does not fit, and how to mend it.
        why: String,
    },
    /// Too many steps in a row had a loss or gradient that is no number.
    #[error(
        "training stopped: step {step}: {what} was not finite for {count} steps in a row; the checkpoint before them is \
         kept: lower train.lr or raise train.warmup and start again"
    )]
    NotFinite {
        /// The last of them.
        step: u64,
        /// The loss, or the first parameter whose gradient was not finite.
        what: String,
        /// How many.
        count: u32,
    },
}

impl Error {
    /// A failure of a file, whose own message says what, where and how to mend.
    pub fn file(e: impl Display) -> Self {
        Error::File(e.to_string())
    }
}
