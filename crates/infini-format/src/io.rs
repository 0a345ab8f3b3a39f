//! The disk behind a small trait, so that tests can make every call of it fail.
//!
//! [`RealIo`] is the disk; [`FaultIo`] is the disk with a fault; [`replay`] is what a disk may hold after a power
//! loss. [`atomic_write`] and [`Lock`] are the only ways in which this crate replaces a file.

mod atomic;
mod fault;
pub mod replay;

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

pub use atomic::{Lock, atomic_write, atomic_write_with};
pub(crate) use atomic::{create_synced, parent, remove_if_there};
pub use fault::{Call, Fault, FaultIo};

use crate::error::explained;
use crate::{At, Explain};

/// Mode of files that are as private as the document they were made from (memory files).
pub const PRIVATE: u32 = 0o600;

/// Mode of other files.
pub const PUBLIC: u32 = 0o644;

/// What this crate asks of a disk.
pub trait Io: Send + Sync {
    /// Creates a new file for writing; one that exists is an error. `mode` is the Unix permission, ignored elsewhere.
    ///
    /// # Errors
    /// The disk's.
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn SyncWrite>>;

    /// Gives a file another name in one step, replacing what had that name.
    ///
    /// # Errors
    /// The disk's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The disk's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates a folder; its parent must exist.
    ///
    /// # Errors
    /// The disk's.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a folder survive a power loss.
    ///
    /// # Errors
    /// The disk's.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Reads a whole regular file of at most `max` bytes.
    ///
    /// # Errors
    /// `FileTooLarge` above `max` (before anything is allocated), `OutOfMemory`, and the disk's.
    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>>;

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// The disk's.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// The size of a regular file, in bytes.
    ///
    /// # Errors
    /// The disk's, and `InvalidInput` for what is no regular file.
    fn len(&self, path: &Path) -> io::Result<u64>;
}

/// A file being written.
pub trait SyncWrite: Write + Send {
    /// Makes what was written survive a power loss.
    ///
    /// # Errors
    /// The disk's.
    fn sync(&mut self) -> io::Result<()>;
}

/// The disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealIo;

impl Io for RealIo {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn SyncWrite>> {
        Ok(Box::new(RealFile(options(mode).create_new(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Only Unix can open a folder; elsewhere the file system orders renames by itself.
        if cfg!(unix) { fs::File::open(dir)?.sync_all() } else { Ok(()) }
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        // Looked at before it is opened: opening a pipe would wait for its writer.
        let len = self.len(path)?;
        if len > max {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        let capacity = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // A file that grows while it is read stays within the bound.
        fs::File::open(path)?.take(max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // No file of ours has a name outside UTF-8.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let metadata = fs::metadata(path)?;
        match metadata.is_file() {
            true => Ok(metadata.len()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }
}

struct RealFile(fs::File);

impl Write for RealFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl SyncWrite for RealFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// Options to write a file that, where it is created, gets the Unix permission `mode`.
fn options(mode: u32) -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    options
}

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// [`IoError::TooLarge`] above `max`, [`IoError::Failed`] for the disk's errors.
pub fn read(io: &dyn Io, path: &Path, max: u64) -> Result<Vec<u8>, At<IoError>> {
    io.read(path, max).map_err(|error| {
        match error.kind() {
            io::ErrorKind::FileTooLarge => IoError::TooLarge { max },
            _ => IoError::Failed { action: "read", error },
        }
        .at(path)
    })
}

/// What can go wrong with the disk.
#[derive(Debug)]
pub enum IoError {
    /// A call failed.
    Failed {
        /// What was being done, as in "cannot …".
        action: &'static str,
        /// The disk's answer.
        error: io::Error,
    },
    /// The new file has replaced the old one, but making sure of that failed: a power loss may still undo it.
    InPlace {
        /// The disk's answer.
        error: io::Error,
    },
    /// The file is larger than its kind may be.
    TooLarge {
        /// The limit, in bytes.
        max: u64,
    },
    /// Another process, or another part of this one, is writing the file.
    Locked,
}

impl Explain for IoError {
    fn what(&self) -> String {
        match self {
            IoError::Failed { action, error } => format!("cannot {action}: {error}"),
            IoError::InPlace { error } => format!("written, but a power loss may undo it: {error}"),
            IoError::TooLarge { max } => format!("file larger than {max} bytes"),
            IoError::Locked => "another writer holds the file".into(),
        }
    }

    fn mend(&self) -> String {
        match self {
            IoError::Failed { error, .. } | IoError::InPlace { error } => match error.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space and try again",
                io::ErrorKind::OutOfMemory => "free some memory and try again",
                io::ErrorKind::InvalidInput => "name a file",
                _ => "try again; if it happens again, check the disk",
            },
            IoError::TooLarge { .. } => "check that it is the file you meant",
            IoError::Locked => "wait until it has ended, or write to another file",
        }
        .into()
    }
}

explained!(IoError);
