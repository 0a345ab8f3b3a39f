//! Recall of keys hidden at any depth of an input of any length.
//!
//! Inputs are streamed: rows of a batch in lockstep, in pieces, never the whole input's activations.
//! What several inputs share is read once: rows with the same key at the same place go on from
//! shorter lengths to longer ones, and all depths branch off one stream of bare filler.
//!
//! So that the question does not always stand at the same place of its segment, a batch's input of
//! length L is shortened by a random 0..segment_len tokens (seeded, the same for all depths).

mod input;
mod options;
mod report;

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::skim::Pieces;
use super::{Count, rss, score};
use crate::error::Result;
use crate::generate;
use crate::model::{Model, Want};
use crate::state::{LayerWrites, State};
use crate::tasks::filler::{Filler, PROSE_TOKENS};
use crate::text::Tokenizer;
use input::{Asked, Batch, Cell, Input, Place};
use options::check;
pub use options::{Options, Wording};
pub use report::{Part, Report, Row, Said, WriteRate};
use report::{add_writes, rates};

/// Evaluates. `progress` is told the tokens read and to be read.
///
/// # Errors
/// Options that cannot be, a length that does not hold the prompt or that full attention has no room for, filler that
/// cannot be had.
pub fn run(
    model: &Model,
    tokenizer: &Tokenizer,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    let longest = options.lengths.iter().max().map_or(0, |n| n + options.digits[1] + SPARE);
    model.check_room(&model.state(1), longest)?;
    let segment = if model.grows() { FULL_SEGMENT } else { model.config().infini.segment_len };
    evaluate(model, segment, tokenizer, options, progress)
}

/// What is evaluated: something that reads tokens and answers. The model, or a test's stand-in.
trait Reader {
    type State: Clone;
    fn fresh(&self, rows: usize, knock_out: bool) -> Self::State;
    /// Reads `[rows, T]` tokens.
    fn read(&self, state: &mut Self::State, tokens: &[u32]);
    /// Reads `[rows, T]` tokens that only the memory has to keep.
    fn skim(&self, state: &mut Self::State, tokens: &[u32]) {
        self.read(state, tokens);
    }
    /// Segments that have to be read in full before an answer; None: what is before them cannot be skimmed.
    fn full_segments(&self) -> Option<usize> {
        None
    }
    /// Reads `[rows, T]` tokens, the ends of the questions, and answers each row in `max` tokens.
    fn answer(&self, state: Self::State, tokens: &[u32], max: usize) -> Vec<Vec<u32>>;
    /// Bytes of a state, and its write statistics: layer, tokens, open and strength per head.
    fn measure(&self, state: &Self::State) -> (usize, Vec<LayerWrites>);
}

impl Reader for Model {
    type State = State;

    fn fresh(&self, rows: usize, knock_out: bool) -> State {
        let mut state = self.state(rows);
        state.set_knock_out(knock_out);
        state
    }

    fn read(&self, state: &mut State, tokens: &[u32]) {
        self.forward(state, tokens, Want::Nothing);
    }

    fn skim(&self, state: &mut State, tokens: &[u32]) {
        Model::skim(self, state, tokens);
    }

    fn full_segments(&self) -> Option<usize> {
        self.layers_above_memory()
    }

    fn answer(&self, mut state: State, tokens: &[u32], max: usize) -> Vec<Vec<u32>> {
        self.forward(&mut state, tokens, Want::Last);
        generate::greedy(self, &mut state, max, &|_| false)
    }

    fn measure(&self, state: &State) -> (usize, Vec<LayerWrites>) {
        (state.size_bytes(), state.write_stats())
    }
}

/// Tokens of all rows that are read at once.
const PIECE: usize = 4096;
/// Full attention knows no segments: its inputs are drawn with those that adapters have.
const FULL_SEGMENT: usize = 256;
/// Tokens of an answer beyond the digits: a blank, a full stop, one to spare.
const SPARE: usize = 3;
/// Generated prose of evaluations begins at this seed; training takes 0.
const PROSE_SEED: u64 = 1 << 32;

#[derive(Clone, Debug, Default)]
struct Tally {
    exact: Count,
    digit: Count,
    invented: Count,
    another_key: Count,
    other_number: Count,
    stale: Count,
    name_first: Count,
    number_first: Count,
}

impl Tally {
    /// Counts the answer to a question about one of the keys with these numbers.
    fn add(&mut self, answer: &str, asked: &Asked, numbers: &[String]) {
        let (key, exact) = (asked.key.as_deref(), score::exact(answer, asked.key.as_deref()));
        self.exact.add(exact);
        self.invented.add(score::names_a_number(answer));
        let number = score::first_number(answer).filter(|_| !exact);
        let told = number.is_some_and(|n| numbers.iter().any(|told| told == n));
        self.another_key.add(told);
        self.other_number.add(number.is_some() && !told);
        if let Some(key) = key {
            self.digit.join(score::digits(answer, key));
        }
        if let Some(old) = &asked.old {
            self.stale.add(score::exact(answer, Some(old)));
        }
        match asked.name_first {
            Some(true) => self.name_first.add(exact),
            Some(false) => self.number_first.add(exact),
            None => (),
        }
    }

    /// What was said about a key that was not told.
    fn said(&self) -> Said {
        let (unknown, another_key, other_number) =
            (self.exact.rate(), self.another_key.rate(), self.other_number.rate());
        let no_number = self.exact.n - self.exact.hits - self.another_key.hits - self.other_number.hits;
        Said { unknown, another_key, other_number, no_number: no_number as f64 / self.exact.n.max(1) as f64 }
    }
}

/// A count over all rows.
fn sum(tallies: &[Tally], of: impl Fn(&Tally) -> Count) -> Option<Part> {
    let mut all = Count::default();
    tallies.iter().for_each(|t| all.join(of(t)));
    Part::of(all)
}

fn evaluate<R: Reader>(
    reader: &R,
    segment: usize,
    tokenizer: &Tokenizer,
    o: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    check(o)?;
    let longest = o.lengths.iter().copied().max().unwrap_or(0);
    let least = longest.saturating_mul(4).clamp(1 << 14, PROSE_TOKENS);
    let filler = Filler::new(&o.filler, tokenizer, o.books.as_deref(), PROSE_SEED + o.seed, least)?;

    // Everything is drawn before anything is read: errors come at once, and the work is known.
    let mut rng = ChaCha8Rng::seed_from_u64(o.seed);
    let mut work = Vec::new();
    for first in (0..o.samples).step_by(o.batch) {
        let rows = o.batch.min(o.samples - first);
        let inputs: Vec<Input> = (0..rows).map(|_| Input::draw(&mut rng, tokenizer, &filler, segment, o)).collect();
        let tail = inputs.iter().flat_map(|i| &i.questions).map(|q| q.tokens.len()).max().unwrap_or(0);
        let batch = Batch { filler: &filler, inputs, tail };
        let mut cells = Vec::new();
        for (l, length) in o.lengths.iter().enumerate() {
            let total = length.saturating_sub(rng.random_range(0..segment));
            for (d, depth) in o.depths.iter().enumerate() {
                cells.push(batch.cell(l * o.depths.len() + d, total, *length, *depth)?);
            }
        }
        // Groups of the same places, nearest first, in each the shortest first.
        cells.sort_by(|a, b| (batch.branch(a), &a.places, a.read).cmp(&(batch.branch(b), &b.places, b.read)));
        work.push((batch, cells));
    }

    let mut reading = Reading {
        reader,
        tokenizer,
        options: o,
        longest,
        segment,
        done: 0,
        total: work.iter().map(|(b, c)| tokens_to_read(b, c)).sum(),
        progress,
        tallies: vec![Tally::default(); o.lengths.len() * o.depths.len()],
        writes: Vec::new(),
        state_bytes: 0,
    };
    let start = Instant::now();
    (reading.progress)(0, reading.total);
    for (batch, cells) in &work {
        reading.batch(batch, cells);
    }
    let seconds = start.elapsed().as_secs_f64();
    let rows = reading.tallies.iter().enumerate().map(|(i, t)| Row {
        length: o.lengths[i / o.depths.len()],
        depth: o.depths[i % o.depths.len()],
        n: t.exact.n,
        exact: t.exact.rate(),
        digit: t.digit.rate(),
        knock_out: o.knock_out,
        interval: t.exact.interval(),
        invented: o.absent.then(|| t.invented.rate()),
        said: o.absent.then(|| t.said()),
        stale: o.changed.then(|| t.stale.rate()),
    });
    Ok(Report {
        rows: rows.collect(),
        name_first: sum(&reading.tallies, |t| t.name_first),
        number_first: sum(&reading.tallies, |t| t.number_first),
        tokens: reading.done,
        seconds,
        tokens_per_second: reading.done as f64 / seconds.max(1e-9),
        peak_rss_bytes: rss::peak(),
        state_bytes: reading.state_bytes,
        writes: rates(&reading.writes),
    })
}

/// What [`Reading::batch`] will count, answers apart.
fn tokens_to_read(batch: &Batch, cells: &[Cell]) -> u64 {
    let rows = batch.inputs.len() as u64;
    let questions = batch.inputs.first().map_or(0, |i| i.questions.len());
    let trunk = cells.last().map_or(0, |c| batch.branch(c));
    let mut sum = trunk;
    for group in cells.chunk_by(|a, b| a.places == b.places) {
        sum += group.last().map_or(0, |c| c.read - batch.branch(c)) + group.len() * questions * batch.tail;
    }
    sum as u64 * rows
}

/// The state of an evaluation.
struct Reading<'a, R> {
    reader: &'a R,
    tokenizer: &'a Tokenizer,
    options: &'a Options,
    longest: usize,
    segment: usize,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
    tallies: Vec<Tally>,
    writes: Vec<LayerWrites>,
    state_bytes: usize,
}

impl<R: Reader> Reading<'_, R> {
    fn batch(&mut self, batch: &Batch, cells: &[Cell]) {
        let rows = batch.inputs.len();
        let mut trunk = self.reader.fresh(rows, self.options.knock_out);
        let mut at = 0;
        for group in cells.chunk_by(|a, b| a.places == b.places) {
            let branch = batch.branch(&group[0]);
            self.read(batch, None, &mut trunk, at, branch, group[0].read);
            at = branch;
            let mut state = trunk.clone();
            let mut from = branch;
            for cell in group {
                self.read(batch, Some(&cell.places), &mut state, from, cell.read, cell.read);
                from = cell.read;
                self.ask(batch, cell, &state);
            }
            let (bytes, writes) = self.reader.measure(&state);
            self.state_bytes = bytes / rows;
            let cell = &group[group.len() - 1];
            if self.options.lengths[cell.row / self.options.depths.len()] == self.longest {
                add_writes(&mut self.writes, writes);
            }
        }
    }

    /// Reads tokens `from..to` of every row; nothing is asked before token `asked`.
    fn read(
        &mut self,
        batch: &Batch,
        places: Option<&[Place]>,
        state: &mut R::State,
        from: usize,
        to: usize,
        asked: usize,
    ) {
        let rows = batch.inputs.len();
        let pieces = Pieces::new(self.segment, self.reader.full_segments(), to, asked, PIECE / rows);
        let mut at = from;
        while at < to {
            let (n, skim) = pieces.next(at);
            let mut tokens = Vec::with_capacity(rows * n);
            for i in 0..rows {
                batch.copy(i, places.map(|p| p[i]), at, at + n, &mut tokens);
            }
            if skim {
                self.reader.skim(state, &tokens)
            } else {
                self.reader.read(state, &tokens)
            }
            at += n;
            self.count(rows * n);
        }
    }

    fn ask(&mut self, batch: &Batch, cell: &Cell, state: &R::State) {
        let rows = batch.inputs.len();
        for q in 0..batch.inputs[0].questions.len() {
            let mut tokens = Vec::with_capacity(rows * batch.tail);
            for i in 0..rows {
                batch.question(i, cell, q, &mut tokens);
            }
            let answers = self.reader.answer(state.clone(), &tokens, self.options.digits[1] + SPARE);
            self.count(tokens.len());
            let tally = &mut self.tallies[cell.row];
            for (input, answer) in batch.inputs.iter().zip(answers) {
                tally.add(&self.tokenizer.decode(&answer), &input.questions[q], &input.numbers);
            }
        }
    }

    fn count(&mut self, tokens: usize) {
        self.done += tokens as u64;
        (self.progress)(self.done, self.total);
    }
}

#[cfg(test)]
mod tests;
