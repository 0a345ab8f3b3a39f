//! A long session written to a memory file and restored from it.

use std::time::Instant;

use anyhow::{Result, ensure};
use infini::model::{Model, Want};
use infini::state::State;
use infini_format::hash::sha256;
use infini_format::io::RealIo;
use infini_format::memory::{MemoryHeader, Partner};
use serde_json::{Value, json};

use super::clock::Times;
use super::steps::tokens;
use super::stream::read;
use crate::console::{Table, bytes, commas};
use crate::progress::Progress;

const REPETITIONS: usize = 21;

/// Saves and restores after `total` tokens, in the folder for temporary files. The restored session must go on as
/// the saved one does, to the last bit.
pub fn run(model: &Model, total: u64) -> Result<(Table, Vec<Value>)> {
    let mut progress = Progress::new("reading", "tokens", Some(total));
    let mut state = model.state(1);
    read(model, &mut state, total, &mut |_, piece| progress.set(piece.end));
    drop(progress);

    let config = serde_json::to_vec(model.config())?;
    let partner = Partner {
        weights: sha256(b"bench"),
        adapter: None,
        tokenizer: sha256(b"bench"),
        config: sha256(&config),
        segment_len: model.config().infini.segment_len,
    };
    let header = MemoryHeader {
        partner: partner.clone(),
        generation: 1,
        position: state.position(),
        sources: vec!["bench".into()],
        settings: Value::Null,
    };
    let path = std::env::temp_dir().join(format!("infini-bench-{}.mem", std::process::id()));
    let timed = times(model, &state, &header, &partner, &path);
    let size = std::fs::metadata(&path).map(|m| m.len());
    let _ = std::fs::remove_file(&path);
    let ((save, load), size) = (timed?, size?);

    let mut table = Table::new(&["tokens read", "file", "save ms", "best", "restore ms", "best"]);
    let ms = |s: f64| format!("{:.2}", s * 1e3);
    table.row(&[commas(total), bytes(size), ms(save.median), ms(save.best), ms(load.median), ms(load.best)]);
    let row = json!({
        "tokens": total, "file_bytes": size, "save_seconds": save.median, "save_seconds_best": save.best,
        "restore_seconds": load.median, "restore_seconds_best": load.best,
    });
    Ok((table, vec![row]))
}

fn times(
    model: &Model,
    state: &State,
    header: &MemoryHeader,
    partner: &Partner,
    path: &std::path::Path,
) -> Result<(Times, Times)> {
    let go_on = |state: &State| {
        let ids = tokens(model.config().vocab_size, state.position(), 100);
        model.forward(&mut state.fork(), &ids, Want::All)
    };
    let expected = go_on(state);
    let (mut save, mut load) = (Vec::new(), Vec::new());
    for i in 0..REPETITIONS {
        let clock = Instant::now();
        state.save(&RealIo, path, header, None)?;
        save.push(clock.elapsed().as_secs_f64());
        let clock = Instant::now();
        let (restored, _) = State::load(model, partner, &RealIo, path)?;
        load.push(clock.elapsed().as_secs_f64());
        if i == 0 {
            ensure!(go_on(&restored) == expected, "a restored session goes on differently: nothing was timed");
        }
    }
    Ok((Times::of(save), Times::of(load)))
}
