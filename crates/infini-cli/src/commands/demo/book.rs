//! `infini demo --book`: one text, read with the memory and without side by side.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use infini::corpus::sources;
use infini::eval::live::Live;
use infini::eval::rss;
use infini::folder::Loaded;
use infini::state::Reads;
use serde_json::json;

use crate::console::{Outcome, Table, bytes, commas, note, say, usage};
use crate::progress::Progress;
use crate::report::JsonFlag;

/// Tokens of a call of the models.
const PIECE: usize = 1024;
/// Pieces that the loss on display is a mean of.
const RECENT: usize = 16;

/// One of the two readers.
struct Side<'a> {
    name: &'static str,
    live: Live<'a>,
    time: Duration,
    /// Nats and tokens of the last pieces.
    recent: Vec<(f64, u64)>,
    /// The same by position, in powers of four times [`PIECE`].
    positions: Vec<(f64, u64)>,
}

impl<'a> Side<'a> {
    fn new(name: &'static str, loaded: &'a Loaded, reads: Reads) -> Self {
        let live = Live::new(&loaded.model, reads);
        Side { name, live, time: Duration::ZERO, recent: Vec::new(), positions: Vec::new() }
    }

    fn read(&mut self, tokens: &[u32]) {
        let at = self.live.state().position();
        let start = Instant::now();
        let piece = self.live.read(tokens);
        self.time += start.elapsed();
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(piece);
        let bucket = (at / PIECE as u64).checked_ilog(4).map_or(0, |b| b as usize + 1);
        self.positions.resize(self.positions.len().max(bucket + 1), (0.0, 0));
        let (nats, n) = &mut self.positions[bucket];
        *nats += piece.0;
        *n += piece.1;
    }

    fn recent(&self) -> f64 {
        mean(self.recent.iter().fold((0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1)))
    }
}

fn mean((nats, n): (f64, u64)) -> f64 {
    nats / n.max(1) as f64
}

/// Reads `file` with `loaded` and, as a comparison, with `control` or without its own memory.
pub(super) fn run(loaded: &Loaded, control: Option<&Loaded>, file: &Path, json: &JsonFlag) -> Result<Outcome> {
    let memory = loaded.model.state(1).memory_bytes();
    if loaded.model.grows() {
        bail!("this model has no constant memory: it has layers of full attention: choose another with --model");
    }
    if let Some(control) = control
        && control.tokenizer.to_json() != loaded.tokenizer.to_json()
    {
        return Err(usage("--control: has another tokenizer than the model: their losses cannot be compared"));
    }
    if control.is_none() && memory == 0 {
        return Err(usage("--book: this model has no memory to be without: name one that has, or a --control"));
    }
    let without = match control {
        Some(control) => Side::new("control", control, Reads::Own),
        None => Side::new("without the memory", loaded, Reads::Nothing),
    };
    let mut sides = [Side::new("with the memory", loaded, Reads::Own), without];
    let source = sources(&[file.to_path_buf()])?.remove(0);
    let mut progress = Progress::new("reading", "bytes", source.size);
    let (mut waiting, mut tokens, mut early) = (Vec::new(), 0u64, None);
    let mut step = |piece: &[u32], sides: &mut [Side; 2]| {
        sides.iter_mut().for_each(|side| side.read(piece));
        tokens += piece.len() as u64;
        if early.is_none() {
            early = rss::current();
        }
    };
    let read = source.encode(&loaded.tokenizer, true, &mut |ids, bytes| {
        waiting.extend_from_slice(ids);
        let whole = waiting.len() / PIECE * PIECE;
        for piece in waiting[..whole].chunks(PIECE) {
            step(piece, &mut sides);
            let [with, without] = [sides[0].recent(), sides[1].recent()];
            progress.extra(format!("loss {with:.3} {}, {without:.3} {}", sides[0].name, sides[1].name));
            progress.set(bytes);
        }
        waiting.drain(..whole);
        Ok(ControlFlow::Continue(()))
    })?;
    if !waiting.is_empty() {
        step(&waiting, &mut sides);
    }
    drop(progress);
    read.notes.iter().for_each(note);
    let late = rss::current();
    let state = sides[0].live.state().size_bytes() as u64;
    let bits = |side: &Side| side.live.nats() / std::f64::consts::LN_2 / read.bytes.max(1) as f64;
    let rate = |side: &Side| tokens as f64 / side.time.as_secs_f64().max(1e-9);
    if !json.on_stdout() {
        let mut table = Table::new(&["", "loss", "perplexity", "bits/byte", "tokens/s"]);
        for side in &sides {
            let loss = side.live.loss();
            let words = [format!("{loss:.4}"), format!("{:.2}", loss.exp()), format!("{:.4}", bits(side))];
            table.row(&[&[side.name.to_string()], &words[..], &[commas(rate(side) as u64)]].concat());
        }
        let mut positions = Table::new(&["tokens", sides[0].name, sides[1].name, "difference"]);
        for (i, (a, b)) in sides[0].positions.iter().zip(&sides[1].positions).enumerate().filter(|(_, (a, _))| a.1 > 0)
        {
            let (from, to) = range(i);
            let losses =
                [format!("{:.4}", mean(*a)), format!("{:.4}", mean(*b)), format!("{:+.4}", mean(*a) - mean(*b))];
            positions.row(&[&[format!("{} – {}", commas(from), commas(to.min(tokens)))], &losses[..]].concat());
        }
        let rss = |x: Option<u64>| x.map_or("unknown".into(), bytes);
        say(format_args!(
            "{}: {} tokens\n\n{table}\n\n{positions}\n\n\
             process memory     {} after the first {} tokens, {} at the end\n\
             state              {}, {} of it memory, whatever the length",
            source.name,
            commas(tokens),
            rss(early),
            commas(tokens.min(PIECE as u64)),
            rss(late),
            bytes(state),
            bytes(memory as u64),
        ))?;
    }
    let side = |side: &Side| {
        json!({
            "name": side.name, "loss": side.live.loss(), "perplexity": side.live.loss().exp(), "bits_per_byte": bits(side),
            "tokens_per_second": rate(side),
        })
    };
    let buckets = sides[0].positions.iter().zip(&sides[1].positions).enumerate().filter(|(_, (a, _))| a.1 > 0);
    let by_position = buckets.map(|(i, (a, b))| {
        json!({ "from": range(i).0, "to": range(i).1, "tokens": a.1, "with": mean(*a), "without": mean(*b) })
    });
    json.write(json!({
        "book": source.name, "tokens": tokens, "bytes": read.bytes, "with": side(&sides[0]), "without": side(&sides[1]),
        "by_position": by_position.collect::<Vec<_>>(), "rss_bytes_early": early, "rss_bytes_at_the_end": late,
        "state_bytes": state, "memory_bytes": memory, "writes": sides[0].live.writes(),
    }))?;
    Ok(Outcome::Done)
}

/// First position of a bucket, and the first behind it.
fn range(bucket: usize) -> (u64, u64) {
    let first = |b: usize| if b == 0 { 0 } else { (PIECE as u64) << (2 * (b - 1)) };
    (first(bucket), first(bucket + 1))
}
