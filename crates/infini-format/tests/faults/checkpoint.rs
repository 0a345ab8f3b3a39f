//! The checkpoint folder: what is kept, what is fallen back to, what is refused.

use std::path::Path;

use infini_format::checkpoint::{CheckpointError, MANIFEST, load, save};
use infini_format::io::{Io, IoError, Lock, RealIo};

use crate::{Count, Rng};

fn state(step: u64) -> [(&'static str, Vec<u8>); 2] {
    [("weights", format!("weights of {step}").into_bytes()), ("optimiser", format!("optimiser of {step}").into_bytes())]
}

fn put(dir: &Path, step: u64) {
    let state = state(step);
    let parts: Vec<(&str, &[u8])> = state.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    save(&RealIo, dir, step, &parts).unwrap();
}

fn put_all(dir: &Path, steps: &[u64]) {
    steps.iter().for_each(|step| put(dir, *step));
}

/// The step that loads, and whether with a warning; its parts must be its own.
fn get(dir: &Path) -> (u64, bool) {
    let loaded = load(&RealIo, dir).unwrap().unwrap();
    for (name, bytes) in state(loaded.step) {
        assert_eq!(loaded.parts[name], bytes);
    }
    (loaded.step, loaded.warning.is_some())
}

fn file_of(dir: &Path, start: &str) -> std::path::PathBuf {
    let name = RealIo.list(dir).unwrap().into_iter().find(|name| name.starts_with(start)).unwrap();
    dir.join(name)
}

#[test]
fn two_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("checkpoint");
    assert_eq!(load(&RealIo, dir).unwrap(), None);
    for step in [10, 20, 30] {
        put(dir, step);
        assert_eq!(get(dir), (step, false));
    }
    let names = RealIo.list(dir).unwrap();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(names.iter().all(|n| n == MANIFEST || n.starts_with("step-20.") || n.starts_with("step-30.")));
}

#[test]
fn the_same_step_can_be_saved_again() {
    let dir = tempfile::tempdir().unwrap();
    for step in [10, 10, 10, 7] {
        put(dir.path(), step);
        assert_eq!(get(dir.path()), (step, false));
    }
    std::fs::remove_file(file_of(dir.path(), "step-7.")).unwrap();
    assert_eq!(get(dir.path()), (10, true));
}

#[test]
fn what_the_manifest_does_not_name_is_not_read_and_only_parts_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put(dir, 10);
    for name in ["step-99.9.weights", "step-11.2.weights", "notes.txt"] {
        std::fs::write(dir.join(name), "left").unwrap();
    }
    assert_eq!(get(dir), (10, false));
    put(dir, 11);
    assert_eq!(get(dir), (11, false));
    let names = RealIo.list(dir).unwrap();
    assert!(names.contains(&"notes.txt".into()) && !names.contains(&"step-99.9.weights".into()), "{names:?}");
}

#[test]
fn a_damaged_newest_gives_the_previous_with_a_warning() {
    type Damage = fn(&Path);
    let damages: [Damage; 4] = [
        |file| std::fs::remove_file(file).unwrap(),
        |file| std::fs::write(file, "short").unwrap(),
        |file| std::fs::write(file, vec![b'x'; std::fs::read(file).unwrap().len()]).unwrap(),
        |file| {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir(file).unwrap();
        },
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        put_all(dir, &[10, 20]);
        damage(&file_of(dir, "step-20."));
        assert_eq!(get(dir), (10, true));
        let warning = load(&RealIo, dir).unwrap().unwrap().warning.unwrap();
        assert!(warning.contains("step 20") && warning.ends_with("going on from step 10"), "{warning}");
        let only_previous = file_of(dir, "step-10.");
        damage(&only_previous);
        let error = load(&RealIo, dir).unwrap_err();
        assert!(matches!(error.error, CheckpointError::Damaged { previous: Some(_), .. }), "{error}");
    }
}

#[test]
fn what_is_not_whole_does_not_push_out_what_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put_all(dir, &[10, 20]);
    std::fs::remove_file(file_of(dir, "step-20.")).unwrap();
    put(dir, 15);
    assert_eq!(get(dir), (15, false));
    std::fs::remove_file(file_of(dir, "step-15.")).unwrap();
    assert_eq!(get(dir), (10, true));
}

#[test]
fn parts_of_another_checkpoint_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put_all(dir, &[10, 20]);
    let of = |step: &str| {
        let names = RealIo.list(dir).unwrap();
        dir.join(names.iter().find(|n| n.starts_with(step) && n.ends_with("weights")).unwrap())
    };
    std::fs::copy(of("step-10."), of("step-20.")).unwrap();
    assert_eq!(get(dir), (10, true));
}

#[test]
fn r6_every_byte_of_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put_all(dir, &[10, 20]);
    let mut count = Count::default();
    let mut rng = Rng(66);
    // The previous is read only while the newest is damaged.
    for name in RealIo.list(dir).unwrap() {
        let path = dir.join(&name);
        let newest = file_of(dir, "step-20.");
        let newest_part = std::fs::read(&newest).unwrap();
        if name.starts_with("step-10.") {
            std::fs::write(&newest, "damaged").unwrap();
        }
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << rng.below(8);
            std::fs::write(&path, bad).unwrap();
            match count.read(|| load(&RealIo, dir).map(|l| l.unwrap())).expect("no panic") {
                Err(_) => assert!(!name.starts_with("step-20.")),
                Ok(loaded) if name.starts_with("step-20.") && loaded.step == 10 && loaded.warning.is_some() => {
                    count.refused += 1;
                }
                Ok(_) => count.lost += 1,
            }
        }
        std::fs::write(&path, good).unwrap();
        std::fs::write(&newest, newest_part).unwrap();
    }
    assert_eq!(get(dir), (20, false));
    count.print("R6 flipped bits, checkpoint folder (refused: an error, or the previous with a warning)");
    assert_eq!((count.lost, count.panicked, count.refused), (0, 0, count.run));
}

#[test]
fn r7_every_cut_of_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put_all(dir, &[10, 20]);
    let mut count = Count::default();
    for name in RealIo.list(dir).unwrap() {
        let path = dir.join(&name);
        let good = std::fs::read(&path).unwrap();
        for len in 0..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            match count.read(|| load(&RealIo, dir).map(|l| l.unwrap())).expect("no panic") {
                // only the manifest's loss leaves nothing to go on from
                Err(_) => count.lost += u64::from(name != MANIFEST),
                // the previous is not read while the newest is whole
                Ok(loaded) if name.starts_with("step-10.") && loaded.step == 20 => count.run -= 1,
                Ok(loaded) if name.starts_with("step-20.") && loaded.step == 10 && loaded.warning.is_some() => {
                    count.refused += 1;
                }
                Ok(_) => count.lost += 1,
            }
        }
        std::fs::write(&path, good).unwrap();
    }
    assert_eq!(get(dir), (20, false));
    count.print("R7 cut checkpoint folder (refused: an error, or the previous with a warning)");
    assert_eq!((count.lost, count.panicked, count.refused), (0, 0, count.run));
}

#[test]
fn a_second_saver_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), 10);
    let lock = Lock::acquire(&dir.path().join(MANIFEST)).unwrap();
    let error = save(&RealIo, dir.path(), 20, &[]).unwrap_err();
    assert!(matches!(error.error, CheckpointError::Io(IoError::Locked)), "{error}");
    drop(lock);
    put(dir.path(), 20);
    assert_eq!(get(dir.path()), (20, false));
}

#[test]
fn bad_names_and_other_formats_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for name in ["", ".hidden", "../up", "a/b", "a b", "é", "nul\0"] {
        let error = save(&RealIo, dir, 1, &[(name, b"")]).unwrap_err();
        assert!(matches!(error.error, CheckpointError::BadPart { .. }), "{error}");
    }
    assert!(save(&RealIo, dir, 1, &[("a", b""), ("a", b"")]).is_err());
    assert!(RealIo.list(dir).unwrap().is_empty());

    let manifest = |text: &str| std::fs::write(dir.join(MANIFEST), text).unwrap();
    manifest(r#"{"format":"infini-checkpoint","version":2}"#);
    let error = load(&RealIo, dir).unwrap_err();
    assert!(matches!(error.error, CheckpointError::NewerVersion { found: 2, known: 1 }), "{error}");
    for text in ["", "{}", r#"{"format":"else","version":1}"#, r#"{"format":"infini-checkpoint","version":1}"#] {
        manifest(text);
        let error = load(&RealIo, dir).unwrap_err();
        assert!(matches!(error.error, CheckpointError::ManifestDamaged), "{error}");
        // Nor is a new one written over what somebody may want to mend.
        assert!(save(&RealIo, dir, 1, &[]).is_err());
    }
}

/// A manifest with a seal that holds and a part name that leaves the folder.
#[test]
fn a_hostile_manifest_reads_no_file_outside() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("checkpoint");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(dir.path().join("secret"), "x").unwrap();
    let sha = infini_format::hash::sha256(b"x");
    let text = format!(
        r#"{{"format":"infini-checkpoint","version":1,"newest":{{"step":1,"generation":1,"parts":{{"/../../secret":{{"size":1,"sha256":"{sha}"}}}}}},"previous":null,"seal":"{}"}}"#,
        "0".repeat(64)
    );
    let sealed = text.replace(&"0".repeat(64), &infini_format::hash::sha256(text.as_bytes()));
    std::fs::write(inside.join(MANIFEST), sealed).unwrap();
    let error = load(&RealIo, &inside).unwrap_err();
    assert!(matches!(error.error, CheckpointError::ManifestDamaged), "{error}");
}
