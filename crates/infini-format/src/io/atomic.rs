//! Replacing a file so that every reader, and every crash, sees the old file or the new one.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Io, IoError, options};
use crate::{At, Explain};

/// Replaces the file at `path` by `bytes`: a temporary sibling is written and synced, renamed over the file, and the
/// folder synced. `mode` is the Unix permission of the new file.
///
/// # Errors
/// [`IoError::Locked`] while another writer holds the file; [`IoError::Failed`] for the disk's errors: the old file is
/// as it was and the temporary is gone. [`IoError::InPlace`] if only the last step, the folder's sync, failed.
pub fn atomic_write(io: &dyn Io, path: &Path, mode: u32, bytes: &[u8]) -> Result<(), At<IoError>> {
    Lock::acquire(path)?.atomic_write(io, mode, bytes)
}

/// As [`atomic_write`], with the bytes coming from `write`, through a buffer.
///
/// # Errors
/// As [`atomic_write`], and what `write` returns.
pub fn atomic_write_with(
    io: &dyn Io,
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), At<IoError>> {
    Lock::acquire(path)?.atomic_write_with(io, mode, write)
}

/// The right to write one file, from [`Lock::acquire`] until it is dropped.
///
/// It is a lock of the operating system on a hidden sibling, so it ends with the process, however that ends: a stale
/// one never blocks. A session that loads, changes and saves a file holds it all the while.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    sibling: PathBuf,
    // Kept open: closing it ends the lock.
    _file: File,
}

impl Lock {
    /// Takes the right to write the file at `path`, which need not exist; its folder must.
    ///
    /// # Errors
    /// [`IoError::Locked`] while another holds it, [`IoError::Failed`] for the disk's errors.
    pub fn acquire(path: &Path) -> Result<Lock, At<IoError>> {
        let failed = |error| IoError::Failed { action: "lock for writing", error }.at(path);
        let sibling = sibling(path, "lock").map_err(failed)?;
        loop {
            let file = options(0o600).create(true).truncate(false).open(&sibling).map_err(failed)?;
            match file.try_lock() {
                Ok(()) if has_name(&file, &sibling) => return Ok(Lock { path: path.into(), sibling, _file: file }),
                // The last holder removed the sibling between our opening it and our locking it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(IoError::Locked.at(path)),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    /// The file that may be written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// [`atomic_write`] under this lock.
    ///
    /// # Errors
    /// As [`atomic_write`].
    pub fn atomic_write(&self, io: &dyn Io, mode: u32, bytes: &[u8]) -> Result<(), At<IoError>> {
        self.atomic_write_with(io, mode, |file| file.write_all(bytes))
    }

    /// [`atomic_write_with`] under this lock.
    ///
    /// # Errors
    /// As [`atomic_write_with`].
    pub fn atomic_write_with(
        &self,
        io: &dyn Io,
        mode: u32,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), At<IoError>> {
        let failed = |action| move |error| IoError::Failed { action, error }.at(&self.path);
        // One name per file: under the lock, whatever bears it was left by a writer that died.
        let temporary = sibling(&self.path, "tmp").map_err(failed("write"))?;
        remove_if_there(io, &temporary).map_err(failed("remove what a crashed writer left beside"))?;
        create_synced(io, &temporary, mode, write)
            .and_then(|()| io.rename(&temporary, &self.path))
            .inspect_err(|_| drop(io.remove(&temporary)))
            .map_err(failed("write"))?;
        io.sync_dir(parent(&self.path)).map_err(|error| IoError::InPlace { error }.at(&self.path))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked, and only where `has_name` can tell others that it is gone.
        if cfg!(unix) {
            let _ = std::fs::remove_file(&self.sibling);
        }
    }
}

/// Creates a file, writes it through a buffer and syncs it; the caller removes what an error leaves.
pub(crate) fn create_synced(
    io: &dyn Io,
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = io.create(path, mode)?;
    let mut buffer = BufWriter::with_capacity(1 << 18, &mut file);
    write(&mut buffer)?;
    buffer.flush()?;
    drop(buffer);
    file.sync()
}

pub(crate) fn remove_if_there(io: &dyn Io, path: &Path) -> io::Result<()> {
    match io.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The folder of `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// `.NAME.SUFFIX` in the folder of `path`.
fn sibling(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(suffix);
    Ok(path.with_file_name(hidden))
}

#[cfg(unix)]
fn has_name(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

#[cfg(not(unix))]
fn has_name(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::io::{PRIVATE, PUBLIC, RealIo};

    fn names(dir: &Path) -> Vec<String> {
        RealIo.list(dir).unwrap()
    }

    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for bytes in [&b"one"[..], b"", &[7; 1_000_000]] {
            atomic_write(&RealIo, &path, PUBLIC, bytes).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            assert_eq!(names(dir.path()), ["a"]);
        }
    }

    #[cfg(unix)]
    #[test]
    fn has_the_asked_mode_even_over_a_stray_of_another() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mem");
        std::fs::write(dir.path().join(".a.mem.tmp"), "left by a crash").unwrap();
        atomic_write(&RealIo, &path, PRIVATE, b"x").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["a.mem"]);
    }

    #[cfg(unix)]
    #[test]
    fn does_not_write_through_a_link_planted_as_its_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "whole").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(".a.tmp")).unwrap();
        atomic_write(&RealIo, &dir.path().join("a"), PUBLIC, b"new").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"whole");
    }

    #[test]
    fn an_error_of_the_closure_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        atomic_write(&RealIo, &path, PUBLIC, b"old").unwrap();
        let error = atomic_write_with(&RealIo, &path, PUBLIC, |w| {
            w.write_all(b"half")?;
            Err(io::Error::other("no more"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("no more"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_second_writer_is_refused_until_the_first_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let first = Lock::acquire(&path).unwrap();
        first.atomic_write(&RealIo, PUBLIC, b"first").unwrap();
        let error = atomic_write(&RealIo, &path, PUBLIC, b"second").unwrap_err();
        assert!(matches!(error.error, IoError::Locked));
        assert!(error.to_string().starts_with("another writer holds the file: "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        drop(first);
        atomic_write(&RealIo, &path, PUBLIC, b"second").unwrap();
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_stale_lock_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".a.lock"), "").unwrap();
        atomic_write(&RealIo, &dir.path().join("a"), PUBLIC, b"x").unwrap();
        assert_eq!(names(dir.path()), ["a"]);
    }

    /// Holders come and go, each removing the sibling that others are about to lock.
    #[test]
    fn never_two_holders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let (holders, taken, together) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Ok(_lock) = Lock::acquire(&path) {
                            together.fetch_add(holders.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                            taken.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_micros(100));
                            holders.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
        assert_eq!(together.into_inner(), 0);
    }

    #[test]
    fn paths_without_a_file_name_are_refused() {
        assert!(Lock::acquire(Path::new("/")).is_err());
        assert_eq!(parent(Path::new("a")), Path::new("."));
    }
}
