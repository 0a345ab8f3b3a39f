//! Errors that say what happened, where, and how to mend it.

use std::fmt;
use std::path::{Path, PathBuf};

/// What every error of this crate can tell about itself.
///
/// An error alone prints `what: how to mend`; with the file it is about ([`At`]) it prints `what: where: how to mend`.
pub trait Explain: fmt::Debug {
    /// What happened, without the place.
    fn what(&self) -> String;

    /// What the user can do about it.
    fn mend(&self) -> String;

    /// Adds the file that the error is about.
    fn at(self, path: &Path) -> At<Self>
    where
        Self: Sized,
    {
        At { path: path.to_path_buf(), error: self }
    }
}

/// An error and the file or folder it is about.
#[derive(Debug)]
pub struct At<E> {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: E,
}

impl<E> At<E> {
    /// The same place, the error converted.
    pub fn map<F>(self, convert: impl FnOnce(E) -> F) -> At<F> {
        At { path: self.path, error: convert(self.error) }
    }
}

impl<E: Explain> fmt::Display for At<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.error.what(), self.path.display(), self.error.mend())
    }
}

impl<E: Explain> std::error::Error for At<E> {}

/// `Display` and `Error` for error enums that implement [`Explain`].
macro_rules! explained {
    ($name:ty) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                use $crate::Explain;
                write!(f, "{}: {}", self.what(), self.mend())
            }
        }

        impl std::error::Error for $name {}
    };
}
pub(crate) use explained;
