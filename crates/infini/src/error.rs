//! One error type: what happened, where, how to mend it.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{what}: {path}: {reason}")]
    Io {
        /// What was attempted.
        what: String,
        /// Which file.
        path: PathBuf,
        /// Why it failed. The message says it already, so that it is no `source`: a chain would say it twice.
        reason: std::io::Error,
    },
    /// A configuration value that cannot be.
    #[error("bad configuration: {field}: {why}")]
    Config {
        /// Dotted name of the field.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A name that is not known; the nearest known one is suggested.
    #[error("unknown {kind}: {name}: {hint}")]
    Unknown {
        /// What kind of thing was named.
        kind: String,
        /// The unknown name.
        name: String,
        /// The nearest name, or the list.
        hint: String,
    },
    /// A model folder or weight file that does not fit its configuration.
    #[error("bad model: {0}")]
    Model(String),
    /// A tokenizer that could not be read or made.
    #[error("bad tokenizer: {0}")]
    Tokenizer(String),
    /// Full attention has come to the positions the model was made for.
    #[error(
        "no room for {tokens} tokens after {after}: full attention has {room} left: give less text, or an adapter with a \
         memory"
    )]
    Room {
        /// Tokens to be read.
        tokens: usize,
        /// Tokens read before.
        after: u64,
        /// Tokens there is room for.
        room: u64,
    },
    /// A chat template that could not be used.
    #[error("bad chat template: {0}")]
    Template(String),
    /// A text that could not be used.
    #[error("bad input: {0}")]
    Input(String),
    /// A file whose reader or writer says what happened, where, and how to mend it.
    #[error("{0}")]
    File(String),
    /// A memory file that was refused.
    #[error("{0}")]
    Memory(String),
}

impl Error {
    /// An I/O failure at `path`.
    pub fn io(what: impl Into<String>, path: impl Into<PathBuf>, reason: std::io::Error) -> Self {
        Error::Io { what: what.into(), path: path.into(), reason }
    }

    /// An unknown `name`, with the nearest of `known`.
    pub fn unknown<'a>(kind: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let near = known.iter().map(|k| (strsim::jaro_winkler(name, k), *k)).max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = match near {
            Some((score, k)) if score > 0.75 => format!("did you mean {k}?"),
            _ => format!("one of {}", known.join(", ")),
        };
        Error::Unknown { kind: kind.into(), name: name.into(), hint }
    }
}
