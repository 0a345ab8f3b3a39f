//! R3, R4: every call to the disk fails in turn; the power goes at every moment.

use std::path::Path;

use infini_format::io::replay::{each_disk, lay_out};
use infini_format::io::{Call, Fault, FaultIo, Io, RealIo};
use infini_format::{checkpoint, memory};

use crate::{Count, cases, header, tensors, views};

/// Something that saves numbered states, and tells which of them loads.
trait Subject {
    fn save(&self, io: &dyn Io, dir: &Path, n: u64) -> Result<(), String>;
    fn load(&self, dir: &Path) -> u64;
    /// Every file, byte for byte.
    fn bytes(&self, dir: &Path) -> Vec<(String, Vec<u8>)>;
}

struct Memory;

impl Subject for Memory {
    fn save(&self, io: &dyn Io, dir: &Path, n: u64) -> Result<(), String> {
        let tensors = tensors(n, 100);
        memory::write_memory(io, &dir.join("a.mem"), &header(n), &views(&tensors)).map_err(|e| e.to_string())
    }

    fn load(&self, dir: &Path) -> u64 {
        if !dir.join("a.mem").exists() {
            return 0;
        }
        let (header, file) = memory::read_memory(&RealIo, &dir.join("a.mem")).unwrap();
        assert_eq!(file.get("ids").unwrap().to_i64().unwrap()[0] as u64, header.generation);
        header.generation
    }

    fn bytes(&self, dir: &Path) -> Vec<(String, Vec<u8>)> {
        files(dir)
    }
}

struct Checkpoint;

impl Subject for Checkpoint {
    fn save(&self, io: &dyn Io, dir: &Path, n: u64) -> Result<(), String> {
        let (weights, sampler) = (n.to_le_bytes().repeat(200), n.to_le_bytes());
        let parts: [(&str, &[u8]); 2] = [("weights", &weights), ("sampler", &sampler)];
        checkpoint::save(io, &dir.join("checkpoint"), n, &parts).map_err(|e| e.to_string())
    }

    fn load(&self, dir: &Path) -> u64 {
        let Some(loaded) = checkpoint::load(&RealIo, &dir.join("checkpoint")).unwrap() else { return 0 };
        assert_eq!(loaded.warning, None);
        assert_eq!(loaded.parts["weights"], loaded.step.to_le_bytes().repeat(200));
        assert_eq!(loaded.parts["sampler"], loaded.step.to_le_bytes());
        loaded.step
    }

    fn bytes(&self, dir: &Path) -> Vec<(String, Vec<u8>)> {
        files(&dir.join("checkpoint"))
    }
}

/// The files of a folder, those that a writer left beside included.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let names = RealIo.list(dir).unwrap();
    names.into_iter().map(|name| (name.clone(), std::fs::read(dir.join(name)).unwrap())).collect()
}

/// The calls of a save, each failing in turn until a save meets no fault. `tidy` calls may fail without the save
/// failing: they only clear away what is no longer needed.
fn every_call_fails(what: &str, subject: &dyn Subject, tidy: &[Call]) {
    let mut count = Count::default();
    let (mut in_place, mut went_on) = (0, 0);
    for fault in Fault::ALL {
        for lasting in [false, true] {
            if lasting && fault == Fault::Eintr {
                continue;
            }
            for nth in 1.. {
                let dir = tempfile::tempdir().unwrap();
                let dir = dir.path();
                // Two, so that the third save of a checkpoint has an old one to remove.
                (1..=2).for_each(|n| subject.save(&RealIo, dir, n).unwrap());
                let before = subject.bytes(dir);
                let io = FaultIo::failing(nth, fault);
                let io = if lasting { io.lasting() } else { io };
                let result = subject.save(&io, dir, 3);
                let Some(call) = io.failed() else {
                    result.unwrap();
                    assert_eq!(subject.load(dir), 3);
                    break;
                };
                count.run += 1;
                let now = subject.load(dir);
                let context = format!("{what}: call {nth} ({call:?}), {fault:?}, lasting {lasting}: {result:?}, {now}");
                match &result {
                    Err(_) if now == 2 => {
                        count.refused += 1;
                        let after = subject.bytes(dir);
                        // When the disk is gone for good, nobody can clear away the temporary.
                        let whole = if lasting { before.iter().all(|f| after.contains(f)) } else { before == after };
                        count.lost += u64::from(!whole);
                        assert!(whole, "{context}: files changed");
                    }
                    // Only the folder's sync after the rename failed, and the caller was told.
                    Err(error) if now == 3 && call == Call::SyncDir && error.starts_with("written, but") => {
                        count.refused += 1;
                        in_place += 1;
                    }
                    // A write that was cut short, or interrupted, was gone on with.
                    Ok(()) if now == 3 && call == Call::Write && matches!(fault, Fault::Eintr | Fault::ShortWrite) => {
                        went_on += 1;
                    }
                    Ok(()) if now == 3 && tidy.contains(&call) => went_on += 1,
                    _ => panic!("{context}"),
                }
                // The next save works, and leaves nothing behind.
                subject.save(&RealIo, dir, 4).unwrap();
                assert_eq!(subject.load(dir), 4, "{context}");
                let stray = RealIo.list(dir).unwrap().into_iter().find(|name| name.starts_with('.'));
                assert_eq!(stray, None, "{context}");
            }
        }
    }
    let outcomes = format!("new in place and said so {in_place}, saved all the same {went_on}");
    count.print(&format!("R3 {what}, nth call fails ({outcomes})"));
    assert!(count.refused > 0 && count.refused < count.run);
}

#[test]
fn r3_every_disk_call_of_a_memory_write_fails() {
    every_call_fails("memory", &Memory, &[]);
}

#[test]
fn r3_every_disk_call_of_a_checkpoint_fails() {
    // Len: the previous checkpoint is looked at, and not kept if it seems not whole.
    every_call_fails("checkpoint", &Checkpoint, &[Call::List, Call::Remove, Call::Len]);
}

/// After `n` saves returned, what loads is `n`, or `n + 1` if that save was under way.
fn power_goes_at_every_moment(what: &str, subject: &dyn Subject) {
    let dir = tempfile::tempdir().unwrap();
    let io = FaultIo::recording();
    let mut done = vec![];
    for n in 1..=4 {
        subject.save(&io, dir.path(), n).unwrap();
        done.push(io.log().len());
    }
    let mut count = Count::default();
    count.run = each_disk(&io.log(), cases(64, 5_000), |end, disk| {
        let saved = done.iter().filter(|at| **at <= end).count() as u64;
        let after = tempfile::tempdir().unwrap();
        lay_out(disk, dir.path(), after.path()).unwrap();
        let loaded = subject.load(after.path());
        if !(saved..=saved + 1).contains(&loaded) {
            println!("{what}: {saved} saved, {loaded} loads, after {:?}", &io.log()[..end].last());
            count.lost += 1;
        }
    });
    count.print(&format!("R4 {what}, power loss"));
    assert_eq!(count.lost, 0);
}

#[test]
fn r4_power_loss_while_a_memory_file_is_written() {
    power_goes_at_every_moment("memory", &Memory);
}

#[test]
fn r4_power_loss_while_a_checkpoint_is_written() {
    power_goes_at_every_moment("checkpoint", &Checkpoint);
}
