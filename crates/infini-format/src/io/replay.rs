//! What a disk may hold after a power loss.
//!
//! The model: bytes written to a file are sure once that file is synced; names (created, renamed, removed) are sure
//! once their folder is synced; whatever is not sure may be there or not, each piece for itself, and of a write only a
//! part may be there. Renames are atomic: the new name appears as the old one goes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::parent;

/// Something that reached the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new, empty file.
    Create {
        /// The file's number, which stays with it when it is renamed.
        file: usize,
        /// Its name.
        path: PathBuf,
    },
    /// Bytes in a file.
    Write {
        /// The file's number.
        file: usize,
        /// Where in the file, in bytes.
        at: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A file's bytes were made sure.
    Sync {
        /// The file's number.
        file: usize,
    },
    /// A file has a new name.
    Rename {
        /// The old name.
        from: PathBuf,
        /// The new name, in the same folder.
        to: PathBuf,
    },
    /// A name is gone.
    Remove {
        /// The name.
        path: PathBuf,
    },
    /// A new folder.
    CreateDir {
        /// Its name.
        dir: PathBuf,
    },
    /// The names in a folder were made sure.
    SyncDir {
        /// The folder.
        dir: PathBuf,
    },
}

/// How much of an op that was not sure is there after the power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All of it.
    All,
    /// The first half of a write; other ops have no halves and are there.
    Half,
    /// Nothing.
    Nothing,
}

/// The files on a disk: names and bytes.
pub type Disk = BTreeMap<PathBuf, Vec<u8>>;

/// The ops that a power loss at the end of `ops` may undo, by index.
pub fn unsure(ops: &[Op]) -> Vec<usize> {
    (0..ops.len())
        .filter(|&i| {
            let later = &ops[i + 1..];
            let dir_synced =
                |path: &Path| later.iter().any(|o| matches!(o, Op::SyncDir { dir } if dir == parent(path)));
            match &ops[i] {
                Op::Write { file, .. } => !later.contains(&Op::Sync { file: *file }),
                Op::Create { path, .. } | Op::Remove { path } | Op::Rename { to: path, .. } => !dir_synced(path),
                Op::CreateDir { dir } => !dir_synced(dir),
                Op::Sync { .. } | Op::SyncDir { .. } => false,
            }
        })
        .collect()
}

/// The disk after a power loss at the end of `ops`. `kept` is asked for every index; it must say [`Kept::All`] for
/// those that are not [`unsure`].
pub fn after_power_loss(ops: &[Op], kept: impl Fn(usize) -> Kept) -> Disk {
    let mut contents: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    // What running programs saw, and what the disk has: a rename carries the file that programs saw.
    let (mut seen, mut sure) = (BTreeMap::new(), BTreeMap::new());
    let mut lost_dirs = Vec::new();
    for (i, op) in ops.iter().enumerate() {
        let keep = kept(i);
        let there = keep != Kept::Nothing;
        match op {
            Op::Create { file, path } => {
                contents.insert(*file, Vec::new());
                seen.insert(path, *file);
                if there {
                    sure.insert(path, *file);
                }
            }
            Op::Write { file, at, bytes } => {
                let part = match keep {
                    Kept::All => bytes.len(),
                    Kept::Half => bytes.len() / 2,
                    Kept::Nothing => 0,
                };
                let content = contents.entry(*file).or_default();
                let at = usize::try_from(*at).expect("test files are small");
                if part > 0 {
                    // What an undone earlier write would have filled reads as zeros.
                    content.resize(content.len().max(at + part), 0);
                    content[at..at + part].copy_from_slice(&bytes[..part]);
                }
            }
            Op::Rename { from, to } => {
                if let Some(file) = seen.remove(from) {
                    seen.insert(to, file);
                    if there {
                        sure.remove(from);
                        sure.insert(to, file);
                    }
                }
            }
            Op::Remove { path } => {
                seen.remove(path);
                if there {
                    sure.remove(path);
                }
            }
            Op::CreateDir { dir } if !there => lost_dirs.push(dir),
            Op::CreateDir { .. } | Op::Sync { .. } | Op::SyncDir { .. } => {}
        }
    }
    sure.into_iter()
        .filter(|(path, _)| !lost_dirs.iter().any(|dir| path.starts_with(dir)))
        .map(|(path, file)| (path.clone(), contents[&file].clone()))
        .collect()
}

/// Calls `check` with every disk that a power loss at any moment of `ops` may leave: the length of each prefix, with
/// every combination of [`Kept`] for what is unsure there. Above `most` combinations for a prefix, `most` of them, evenly
/// chosen. Returns the number of disks.
pub fn each_disk(ops: &[Op], most: u64, mut check: impl FnMut(usize, &Disk)) -> u64 {
    let mut disks = 0;
    for end in 0..=ops.len() {
        let ops = &ops[..end];
        let unsure = unsure(ops);
        let choices = |i: &usize| if matches!(ops[*i], Op::Write { .. }) { 3 } else { 2 };
        let all = unsure.iter().fold(1u64, |n, i| n.saturating_mul(choices(i)));
        // Odd steps beside all - 1 visit the first and the last combination and mix the digits between.
        let count = all.min(most.max(2));
        for k in 0..count {
            let code =
                if all == count { k } else { (u128::from(all - 1) * u128::from(k) / u128::from(count - 1)) as u64 };
            let mut rest = code;
            let kept: BTreeMap<usize, Kept> = unsure
                .iter()
                .map(|i| {
                    let digit = rest % choices(i);
                    rest /= choices(i);
                    (*i, [Kept::Nothing, Kept::All, Kept::Half][digit as usize])
                })
                .collect();
            check(end, &after_power_loss(ops, |i| kept.get(&i).copied().unwrap_or(Kept::All)));
            disks += 1;
        }
    }
    disks
}

/// Writes `disk` below `to`, with `from` (the folder the log was made in) taken off the names.
///
/// # Errors
/// The real disk's.
pub fn lay_out(disk: &Disk, from: &Path, to: &Path) -> io::Result<()> {
    for (path, bytes) in disk {
        let path = to.join(path.strip_prefix(from).unwrap_or(path));
        std::fs::create_dir_all(parent(&path))?;
        std::fs::write(&path, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(name: &str) -> PathBuf {
        PathBuf::from("d").join(name)
    }

    fn write(file: usize, at: u64, bytes: &[u8]) -> Op {
        Op::Write { file, at, bytes: bytes.to_vec() }
    }

    #[test]
    fn sync_makes_sure_and_only_what_it_names() {
        let ops = [
            Op::Create { file: 0, path: p("t") },
            write(0, 0, b"ab"),
            Op::Create { file: 1, path: p("u") },
            write(1, 0, b"cd"),
            Op::Sync { file: 0 },
            Op::Rename { from: p("t"), to: p("x") },
        ];
        assert_eq!(unsure(&ops), [0, 2, 3, 5]);
        let synced = [&ops[..], &[Op::SyncDir { dir: "d".into() }]].concat();
        assert_eq!(unsure(&synced), [3]);
    }

    #[test]
    fn a_disk_holds_what_was_kept() {
        let ops = [
            Op::Create { file: 0, path: p("t") },
            write(0, 0, b"abcd"),
            write(0, 4, b"efgh"),
            Op::Rename { from: p("t"), to: p("x") },
            Op::Remove { path: p("x") },
        ];
        let disk = |dropped: &[usize], half: &[usize]| {
            after_power_loss(&ops, |i| match i {
                i if dropped.contains(&i) => Kept::Nothing,
                i if half.contains(&i) => Kept::Half,
                _ => Kept::All,
            })
        };
        assert_eq!(disk(&[], &[]), Disk::new());
        assert_eq!(disk(&[4], &[]), Disk::from([(p("x"), b"abcdefgh".to_vec())]));
        assert_eq!(disk(&[3, 4], &[]), Disk::from([(p("t"), b"abcdefgh".to_vec())]));
        assert_eq!(disk(&[0, 1, 4], &[2]), Disk::from([(p("x"), b"\0\0\0\0ef".to_vec())]));
        // each write kept, halved or lost; each of three names kept or lost; 1 + 2 + 6 + 18 + 36 + 72 disks
        assert_eq!(each_disk(&ops, 1_000, |_, _| {}), 1 + 2 + 6 + 18 + 36 + 72);
        assert_eq!(each_disk(&ops, 10, |_, _| {}), 1 + 2 + 6 + 10 + 10 + 10);
    }

    #[test]
    fn an_unsure_folder_takes_its_files_along() {
        let ops = [Op::CreateDir { dir: "d".into() }, Op::Create { file: 0, path: p("a") }];
        assert_eq!(unsure(&ops), [0, 1]);
        assert_eq!(after_power_loss(&ops, |i| if i == 0 { Kept::Nothing } else { Kept::All }), Disk::new());
    }
}
