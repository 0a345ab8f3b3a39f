//! A training run's checkpoint folder: the newest complete state loads, or the one before it; never a mixture.
//!
//! Each part of a checkpoint is a file of its own, `step-STEP.GENERATION.NAME`, that is never written twice.
//! `manifest.json`, replaced atomically once all parts are safe on disk, names the parts of the newest checkpoint and of
//! the one before it with their sizes and SHA-256. What the manifest does not name does not exist for a reader and is
//! removed by the next save.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::explained;
use crate::io::{self, Io, IoError, Lock, PUBLIC, create_synced, parent, remove_if_there};
use crate::{At, Explain, hash, limits, seal};

/// The name of the file that makes a checkpoint valid.
pub const MANIFEST: &str = "manifest.json";

const FORMAT: &str = "infini-checkpoint";
const VERSION: u32 = 1;

/// A checkpoint as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The step it was saved at.
    pub step: u64,
    /// Its parts by name.
    pub parts: BTreeMap<String, Vec<u8>>,
    /// Why this is the previous checkpoint and not the newest, if so.
    pub warning: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    newest: Entry,
    previous: Option<Entry>,
    seal: String,
}

impl Manifest {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.newest).chain(&self.previous)
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    step: u64,
    // Tells a checkpoint from an earlier one of the same step: a run that is resumed and stopped at once saves again.
    generation: u64,
    parts: BTreeMap<String, Part>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    size: u64,
    sha256: String,
}

impl Entry {
    fn file(&self, part: &str) -> String {
        format!("step-{}.{}.{part}", self.step, self.generation)
    }

    fn files(&self) -> impl Iterator<Item = String> {
        self.parts.keys().map(|name| self.file(name))
    }
}

/// Saves a checkpoint of `parts` (names and bytes) into `dir`, which is made if it is not there; its parent must be.
///
/// The previous checkpoint is kept, older ones are removed. Names have 1 to 128 characters of `[A-Za-z0-9_.-]` and do
/// not start with a dot.
///
/// # Errors
/// [`CheckpointError::BadPart`] for names; [`CheckpointError::Io`] for the disk's errors and while another process
/// saves into the folder; [`CheckpointError::ManifestDamaged`] and [`CheckpointError::NewerVersion`] for a folder that
/// cannot be read. After an error the checkpoints that were there still load.
pub fn save(io: &dyn Io, dir: &Path, step: u64, parts: &[(&str, &[u8])]) -> Result<(), At<CheckpointError>> {
    let mut newest = Entry { step, generation: 1, parts: check_parts(parts).map_err(|e| e.at(dir))? };
    make_dir(io, dir)?;
    let lock = Lock::acquire(&dir.join(MANIFEST)).map_err(|e| e.map(CheckpointError::Io))?;
    let mut previous = None;
    if let Some(old) = read_manifest(io, dir)? {
        newest.generation = old.newest.generation + 1;
        // What cannot be whole would push a whole one out.
        previous = [Some(old.newest), old.previous].into_iter().flatten().find(|entry| has_files(io, dir, entry));
    }

    write_parts(io, dir, &newest, parts)?;
    let manifest = Manifest { format: FORMAT.into(), version: VERSION, newest, previous, seal: seal::BLANK.into() };
    let mut text = serde_json::to_vec(&manifest).expect("texts and numbers always serialise");
    seal::close(&mut text);
    lock.atomic_write(io, PUBLIC, &text)
        .inspect_err(|e| match e.error {
            IoError::InPlace { .. } => {}
            _ => remove_parts(io, dir, &manifest.newest),
        })
        .map_err(|e| e.map(CheckpointError::Io))?;
    // The new checkpoint is safe: what cannot be removed now is removed by the next save.
    sweep(io, dir, &manifest);
    Ok(())
}

/// The newest checkpoint in `dir` that is whole; `None` if nothing was saved there yet.
///
/// If the newest is damaged the previous one is returned, with a warning.
///
/// # Errors
/// [`CheckpointError::Damaged`] if neither is whole; [`CheckpointError::ManifestDamaged`],
/// [`CheckpointError::NewerVersion`], and [`CheckpointError::Io`] for the manifest.
pub fn load(io: &dyn Io, dir: &Path) -> Result<Option<Loaded>, At<CheckpointError>> {
    let Some(manifest) = read_manifest(io, dir)? else { return Ok(None) };
    let newest = match read_entry(io, dir, &manifest.newest) {
        Ok(parts) => return Ok(Some(Loaded { step: manifest.newest.step, parts, warning: None })),
        Err(why) => why,
    };
    let Some(entry) = manifest.previous else {
        return Err(CheckpointError::Damaged { newest, previous: None }.at(dir));
    };
    match read_entry(io, dir, &entry) {
        Ok(parts) => {
            let warning = format!(
                "checkpoint of step {} is damaged ({newest}): {}: going on from step {}",
                manifest.newest.step,
                dir.display(),
                entry.step
            );
            Ok(Some(Loaded { step: entry.step, parts, warning: Some(warning) }))
        }
        Err(previous) => Err(CheckpointError::Damaged { newest, previous: Some(previous) }.at(dir)),
    }
}

fn check_parts(parts: &[(&str, &[u8])]) -> Result<BTreeMap<String, Part>, CheckpointError> {
    let bad = |name: &str, why| Err(CheckpointError::BadPart { name: name.into(), why });
    let mut checked = BTreeMap::new();
    for (name, bytes) in parts {
        if !is_part_name(name) {
            return bad(name, "its name is not of letters, digits, `_`, `.` and `-`");
        }
        let part = Part { size: bytes.len() as u64, sha256: hash::sha256(bytes) };
        if part.size > limits::PART_BYTES {
            return bad(name, "it is too large");
        }
        if checked.insert(String::from(*name), part).is_some() {
            return bad(name, "another part has its name");
        }
    }
    if checked.len() > limits::CHECKPOINT_PARTS {
        return bad(parts[limits::CHECKPOINT_PARTS].0, "it is one too many");
    }
    Ok(checked)
}

fn is_part_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=limits::PART_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

fn make_dir(io: &dyn Io, dir: &Path) -> Result<(), At<CheckpointError>> {
    let made = match io.create_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.and_then(|()| io.sync_dir(parent(dir))),
    };
    made.map_err(|error| failed("make the folder", error).at(dir))
}

fn write_parts(io: &dyn Io, dir: &Path, entry: &Entry, parts: &[(&str, &[u8])]) -> Result<(), At<CheckpointError>> {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(entry.file(name));
        // A save that died may have left one of this name; no manifest names it.
        remove_if_there(io, &path)?;
        create_synced(io, &path, PUBLIC, |w| w.write_all(bytes))
    };
    parts
        .iter()
        .try_for_each(|(name, bytes)| write(name, bytes))
        // The manifest must not become safe before the names that it relies on.
        .and_then(|()| io.sync_dir(dir))
        .map_err(|error| {
            remove_parts(io, dir, entry);
            failed("write a part", error).at(dir)
        })
}

/// Gives back the space of a save that failed; what cannot be removed is removed by the next save.
fn remove_parts(io: &dyn Io, dir: &Path, entry: &Entry) {
    for file in entry.files() {
        let _ = io.remove(&dir.join(file));
    }
}

fn has_files(io: &dyn Io, dir: &Path, entry: &Entry) -> bool {
    entry.parts.iter().all(|(name, part)| io.len(&dir.join(entry.file(name))).is_ok_and(|len| len == part.size))
}

/// Removes the parts that the manifest does not name.
fn sweep(io: &dyn Io, dir: &Path, manifest: &Manifest) {
    let named: BTreeSet<String> = manifest.entries().flat_map(Entry::files).collect();
    for name in io.list(dir).unwrap_or_default() {
        if name.starts_with("step-") && !named.contains(&name) {
            let _ = io.remove(&dir.join(name));
        }
    }
}

fn read_manifest(io: &dyn Io, dir: &Path) -> Result<Option<Manifest>, At<CheckpointError>> {
    let path = dir.join(MANIFEST);
    let bytes = match io::read(io, &path, limits::MANIFEST_BYTES) {
        Ok(bytes) => bytes,
        Err(At { error: IoError::Failed { error, .. }, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error.map(CheckpointError::Io)),
    };
    parse_manifest(&bytes).map(Some).map_err(|e| e.at(&path))
}

fn parse_manifest(bytes: &[u8]) -> Result<Manifest, CheckpointError> {
    // A newer version may seal otherwise and have other fields.
    #[derive(Deserialize)]
    struct Kind {
        format: String,
        version: u32,
    }
    match serde_json::from_slice(bytes) {
        Ok(Kind { format, .. }) if format != FORMAT => return Err(CheckpointError::ManifestDamaged),
        Ok(Kind { version: found, .. }) if found > VERSION => {
            return Err(CheckpointError::NewerVersion { found, known: VERSION });
        }
        Ok(_) if seal::holds(bytes) => {}
        _ => return Err(CheckpointError::ManifestDamaged),
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|_| CheckpointError::ManifestDamaged)?;
    // A hostile manifest can be sealed as well as an honest one: no path may leave the folder.
    let sound = manifest.entries().all(|e| e.generation < u64::MAX && e.parts.keys().all(|name| is_part_name(name)));
    if sound { Ok(manifest) } else { Err(CheckpointError::ManifestDamaged) }
}

/// The parts of an entry, or why they are not whole.
fn read_entry(io: &dyn Io, dir: &Path, entry: &Entry) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let read = |(name, part): (&String, &Part)| {
        let file = entry.file(name);
        // No more is read than was written.
        let max = part.size.min(limits::PART_BYTES);
        let bytes = io::read(io, &dir.join(&file), max).map_err(|e| format!("{file}: {}", e.error.what()))?;
        let found = hash::sha256(&bytes);
        if found != part.sha256 {
            return Err(format!("{file} has checksum {}, not {}", hash::short(&found), hash::short(&part.sha256)));
        }
        Ok((name.clone(), bytes))
    };
    entry.parts.iter().map(read).collect()
}

fn failed(action: &'static str, error: std::io::Error) -> CheckpointError {
    CheckpointError::Io(IoError::Failed { action, error })
}

/// What can go wrong with a checkpoint folder.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named in the message of their variant")]
pub enum CheckpointError {
    /// The disk failed, or another process is saving.
    Io(IoError),
    /// A part cannot be saved.
    BadPart { name: String, why: &'static str },
    /// The manifest is not what was written.
    ManifestDamaged,
    /// The manifest was written by a newer Infini.
    NewerVersion { found: u32, known: u32 },
    /// No checkpoint in the folder is whole.
    Damaged { newest: String, previous: Option<String> },
}

impl Explain for CheckpointError {
    fn what(&self) -> String {
        match self {
            CheckpointError::Io(error) => error.what(),
            CheckpointError::BadPart { name, why } => format!("cannot save the part `{name}`: {why}"),
            CheckpointError::ManifestDamaged => "manifest of the checkpoints is damaged".into(),
            CheckpointError::NewerVersion { found, known } => {
                format!("checkpoint of version {found}, newest known is {known}")
            }
            CheckpointError::Damaged { newest, previous: None } => {
                format!("the only checkpoint is damaged ({newest})")
            }
            CheckpointError::Damaged { newest, previous: Some(previous) } => {
                format!("both checkpoints are damaged ({newest}; {previous})")
            }
        }
    }

    fn mend(&self) -> String {
        match self {
            CheckpointError::Io(error) => return error.mend(),
            CheckpointError::BadPart { .. } => "correct the caller",
            CheckpointError::NewerVersion { .. } => "use a newer infini, or train into another folder",
            CheckpointError::ManifestDamaged | CheckpointError::Damaged { .. } => {
                "restore a copy, or remove the folder to start over"
            }
        }
        .into()
    }
}

explained!(CheckpointError);
