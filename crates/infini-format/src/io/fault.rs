//! A disk that fails on demand and remembers what was asked of it.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::replay::Op;
use super::{Io, RealIo, SyncWrite};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device reports an error (EIO).
    Eio,
    /// The disk is full (ENOSPC); of a write the first half arrives.
    Enospc,
    /// A signal came (EINTR).
    Eintr,
    /// A write takes half of the bytes and says so, which is no error; other calls fail as with EIO.
    ShortWrite,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 4] = [Fault::Eio, Fault::Enospc, Fault::Eintr, Fault::ShortWrite];

    fn error(self) -> io::Error {
        match self {
            Fault::Eio | Fault::ShortWrite => io::Error::other("input/output error (injected)"),
            Fault::Enospc => io::Error::new(io::ErrorKind::StorageFull, "no space left on device (injected)"),
            Fault::Eintr => io::Error::new(io::ErrorKind::Interrupted, "interrupted (injected)"),
        }
    }
}

/// A call to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Io::create`]
    Create,
    /// `write` of a file
    Write,
    /// `flush` of a file
    Flush,
    /// [`SyncWrite::sync`]
    Sync,
    /// [`Io::rename`]
    Rename,
    /// [`Io::remove`]
    Remove,
    /// [`Io::create_dir`]
    CreateDir,
    /// [`Io::sync_dir`]
    SyncDir,
    /// [`Io::read`]
    Read,
    /// [`Io::list`]
    List,
    /// [`Io::len`]
    Len,
}

/// The disk, with one fault (or none) and a log for [`replay`](super::replay).
///
/// Clones share the count and the log.
#[derive(Clone, Debug)]
pub struct FaultIo(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    calls: u64,
    fault: Option<(u64, Fault)>,
    lasting: bool,
    failed: Option<Call>,
    files: usize,
    log: Vec<Op>,
}

impl FaultIo {
    /// A disk without a fault: every call goes through and into the log.
    pub fn recording() -> FaultIo {
        FaultIo::new(None)
    }

    /// A disk whose `nth` call fails; the first is 1.
    pub fn failing(nth: u64, fault: Fault) -> FaultIo {
        FaultIo::new(Some((nth, fault)))
    }

    fn new(fault: Option<(u64, Fault)>) -> FaultIo {
        FaultIo(Arc::new(Mutex::new(State { calls: 0, fault, lasting: false, failed: None, files: 0, log: vec![] })))
    }

    /// Makes every call after the failing one fail too: the disk is gone for good. Not for [`Fault::Eintr`] in a write:
    /// writers rightly try again, and would for ever.
    pub fn lasting(self) -> FaultIo {
        self.state().lasting = true;
        self
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// The first call that failed; `None` while the fault was not reached.
    pub fn failed(&self) -> Option<Call> {
        self.state().failed
    }

    /// What reached the disk so far, in order.
    pub fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic of another holder cannot leave the state half changed.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts a call; the fault it meets, if any.
    fn count(&self, call: Call) -> Option<Fault> {
        let mut state = self.state();
        state.calls += 1;
        let (nth, fault) = state.fault?;
        let meets = state.calls == nth || state.lasting && state.calls > nth;
        if meets {
            state.failed.get_or_insert(call);
        }
        meets.then_some(fault)
    }

    fn run<T>(&self, call: Call, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.count(call) {
            Some(fault) => Err(fault.error()),
            None => run(),
        }
    }

    fn logged(&self, call: Call, op: Op, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.run(call, run)?;
        self.state().log.push(op);
        Ok(())
    }
}

impl Io for FaultIo {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn SyncWrite>> {
        let inner = self.run(Call::Create, || RealIo.create(path, mode))?;
        let mut state = self.state();
        let file = state.files;
        state.files += 1;
        state.log.push(Op::Create { file, path: path.into() });
        Ok(Box::new(FaultFile { io: self.clone(), inner, file, at: 0 }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let op = Op::Rename { from: from.into(), to: to.into() };
        self.logged(Call::Rename, op, || RealIo.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.logged(Call::Remove, Op::Remove { path: path.into() }, || RealIo.remove(path))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.logged(Call::CreateDir, Op::CreateDir { dir: dir.into() }, || RealIo.create_dir(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.logged(Call::SyncDir, Op::SyncDir { dir: dir.into() }, || RealIo.sync_dir(dir))
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        self.run(Call::Read, || RealIo.read(path, max))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.run(Call::List, || RealIo.list(dir))
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.run(Call::Len, || RealIo.len(path))
    }
}

struct FaultFile {
    io: FaultIo,
    inner: Box<dyn SyncWrite>,
    file: usize,
    at: u64,
}

impl FaultFile {
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(bytes)?;
        self.io.state().log.push(Op::Write { file: self.file, at: self.at, bytes: bytes.to_vec() });
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Write for FaultFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let half = &bytes[..bytes.len() / 2];
        match self.io.count(Call::Write) {
            None => self.put(bytes),
            Some(Fault::ShortWrite) => self.put(half),
            Some(Fault::Enospc) => self.put(half).and(Err(Fault::Enospc.error())),
            Some(fault) => Err(fault.error()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.io.run(Call::Flush, || self.inner.flush())
    }
}

impl SyncWrite for FaultFile {
    fn sync(&mut self) -> io::Result<()> {
        self.io.run(Call::Sync, || self.inner.sync())?;
        self.io.state().log.push(Op::Sync { file: self.file });
        Ok(())
    }
}
