//! Reading without end: does it slow down, does it take memory?

use std::time::Instant;

use anyhow::Result;
use infini::eval::rss;
use infini::model::{Model, Want};
use infini::state::State;
use serde_json::{Value, json};

use super::clock::Times;
use super::steps::tokens;
use crate::console::{Table, bytes, commas};
use crate::progress::Progress;

/// Tokens of one call, as `infini read` reads them.
const CHUNK: u64 = 4096;
const PARTS: usize = 10;

/// One call's tokens, and how long they took.
pub struct Piece {
    /// Where it began.
    pub start: u64,
    /// Where it ended.
    pub end: u64,
    /// Seconds.
    pub seconds: f64,
}

/// Reads random tokens, none of them kept; `after` sees every call's piece.
pub fn read(model: &Model, state: &mut State, total: u64, after: &mut dyn FnMut(&State, Piece)) {
    let mut start = 0;
    while start < total {
        let end = total.min(start + CHUNK);
        let ids = tokens(model.config().vocab_size, start, (end - start) as usize);
        let clock = Instant::now();
        model.forward(state, &ids, Want::Last);
        after(state, Piece { start, end, seconds: clock.elapsed().as_secs_f64() });
        start = end;
    }
}

/// Tokens a second within one tenth of the input.
#[derive(Default)]
struct Tenth {
    tokens: u64,
    seconds: f64,
    /// Seconds a token of each call.
    calls: Vec<f64>,
}

/// What the process and the state held at one moment.
#[derive(Clone, Copy, Default)]
struct Held {
    rss: Option<u64>,
    state: usize,
}

/// Inputs of several lengths, each from an empty state.
pub fn run(model: &Model, lengths: &[u64]) -> Result<(Table, Vec<Value>)> {
    let mut table = Table::new(&[
        "tokens read",
        "tok/s",
        "last tenth / first",
        "by median calls",
        "RSS at 10 %",
        "rise to 100 %",
        "state at 10 %",
        "at 100 %",
    ]);
    let mut rows = Vec::new();
    for total in lengths.iter().copied() {
        let mut progress = Progress::new("reading", "tokens", Some(total));
        let mut tenths: [Tenth; PARTS] = Default::default();
        let (mut early, mut late) = (None, Held::default());
        read(model, &mut model.state(1), total, &mut |state, piece| {
            let part = (piece.start as usize * PARTS / total as usize).min(PARTS - 1);
            let tenth = &mut tenths[part];
            tenth.tokens += piece.end - piece.start;
            tenth.seconds += piece.seconds;
            tenth.calls.push(piece.seconds / (piece.end - piece.start) as f64);
            progress.set(piece.end);
            if piece.end * PARTS as u64 >= total && (early.is_none() || piece.end == total) {
                late = Held { rss: rss::current(), state: state.size_bytes() };
                early.get_or_insert(late);
            }
        });
        let early = early.unwrap_or_default();
        let speed = total as f64 / tenths.iter().map(|t| t.seconds).sum::<f64>();
        let (first, last) = (&tenths[0], &tenths[PARTS - 1]);
        let rate = |t: &Tenth| t.tokens as f64 / t.seconds;
        let (ratio, calm) = (rate(last) / rate(first), median(first) / median(last));
        let rise = early.rss.zip(late.rss).map(|(a, b)| b as i64 - a as i64);
        let rise_text =
            rise.map_or("-".into(), |r| format!("{}{}", if r < 0 { "-" } else { "" }, bytes(r.unsigned_abs())));
        table.row(&[
            commas(total),
            format!("{speed:.0}"),
            format!("{:.1} %", ratio * 100.0),
            format!("{:.1} %", calm * 100.0),
            early.rss.map_or("-".into(), bytes),
            rise_text,
            bytes(early.state as u64),
            bytes(late.state as u64),
        ]);
        rows.push(json!({
            "tokens": total, "tokens_per_second": speed, "last_tenth_over_first": ratio,
            "last_tenth_over_first_median_calls": calm, "rss_bytes_at_10_percent": early.rss, "rss_rise_bytes": rise,
            "state_bytes_at_10_percent": early.state, "state_bytes": late.state,
        }));
    }
    Ok((table, rows))
}

fn median(tenth: &Tenth) -> f64 {
    Times::of(tenth.calls.clone()).median
}
