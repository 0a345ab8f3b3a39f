//! Recall of keys hidden at any depth of an input of any length.
//!
//! Inputs are streamed: rows of a batch in lockstep, in pieces, never the whole input's activations.
//! What several inputs share is read once: rows with the same key at the same place go on from
//! shorter lengths to longer ones, and all depths branch off one stream of bare filler.
//!
//! So that the question does not always stand at the same place of its segment, a batch's input of
//! length L is shortened by a random 0..segment_len tokens (seeded, the same for all depths).

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::template::Template;
use super::{Count, rss, score};
use crate::error::{Error, Result};
use crate::generate;
use crate::model::{Model, Want};
use crate::state::State;
use crate::tasks::filler::{Filler, PROSE_TOKENS, Source};
use crate::tasks::scenario::{Plan, Scenario, digits};
use crate::tasks::wording::{self, Split};
use crate::text::Tokenizer;

/// How keys are told and asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// The paper's words.
    Paper,
    /// The wordings that training draws from.
    Trained,
    /// Wordings and names that training never sees.
    HeldOut,
}

impl FromStr for Wording {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "paper" => Ok(Wording::Paper),
            "trained" => Ok(Wording::Trained),
            "held-out" => Ok(Wording::HeldOut),
            _ => Err(Error::unknown("wording", s, ["paper", "trained", "held-out"])),
        }
    }
}

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of the inputs, question included.
    pub lengths: Vec<usize>,
    /// Where keys stand: 0 before the filler, 1 right before the question.
    pub depths: Vec<f64>,
    /// Inputs per length and depth.
    pub samples: usize,
    /// Keys in an input; with several each has an owner and each is asked for.
    pub keys: usize,
    /// What the keys are hidden in.
    pub filler: Source,
    /// How keys are told and asked for.
    pub wording: Wording,
    /// Own words instead.
    pub prompt: Option<Template>,
    /// Ask for a key that was not told: none at all with `keys` 1, somebody else's with more.
    pub absent: bool,
    /// Memory reads give zero.
    pub knock_out: bool,
    /// Fewest and most digits of a key.
    pub digits: [usize; 2],
    /// Folder of the books for [`Source::Books`].
    pub books: Option<PathBuf>,
    /// Inputs that are read in lockstep.
    pub batch: usize,
    /// Seed of keys, wordings and fillers.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lengths: vec![4096, 32768],
            depths: vec![0.0, 0.5, 1.0],
            samples: 20,
            keys: 1,
            filler: Source::Paper,
            wording: Wording::Paper,
            prompt: None,
            absent: false,
            knock_out: false,
            digits: [4, 7],
            books: None,
            batch: 8,
            seed: 0,
        }
    }
}

/// One length and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Tokens.
    pub length: usize,
    /// 0 to 1.
    pub depth: f64,
    /// Questions asked.
    pub n: u64,
    /// Fraction answered exactly.
    pub exact: f64,
    /// Fraction of the keys' digits in their place; 0 when none was to be told.
    pub digit: f64,
    /// Whether memory reads were zero.
    pub knock_out: bool,
    /// 95 % interval of `exact` (Wilson).
    pub interval: [f64; 2],
    /// With absent keys: fraction of the answers that name a number all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invented: Option<f64>,
}

/// How much a head wrote of the longest inputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WriteRate {
    /// Layer, from 0.
    pub layer: usize,
    /// Key/value head, from 0.
    pub head: usize,
    /// Fraction of tokens written with a strength above 0.
    pub open: f64,
    /// Mean strength.
    pub strength: f64,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// By length, then depth.
    pub rows: Vec<Row>,
    /// Tokens read, over all inputs (what is shared counts once).
    pub tokens: u64,
    /// Seconds that took.
    pub seconds: f64,
    /// Tokens read per second.
    pub tokens_per_second: f64,
    /// Most memory the process ever had, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Bytes of the state of one input.
    pub state_bytes: usize,
    /// Write statistics.
    pub writes: Vec<WriteRate>,
}

impl Report {
    /// The rows as CSV with a header.
    pub fn to_csv(&self) -> String {
        let mut csv = String::from("length,depth,n,exact,digit,knock_out,low,high\n");
        for r in &self.rows {
            let [low, high] = r.interval;
            csv += &format!(
                "{},{},{},{},{},{},{low:.4},{high:.4}\n",
                r.length, r.depth, r.n, r.exact, r.digit, r.knock_out
            );
        }
        csv
    }
}

/// Evaluates. `progress` is told the tokens read and to be read.
///
/// # Errors
/// Options that cannot be, a length that does not hold the prompt, filler that cannot be had.
pub fn run(
    model: &Model,
    tokenizer: &Tokenizer,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    evaluate(model, model.config().infini.segment_len, tokenizer, options, progress)
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
    fn measure(&self, state: &Self::State) -> (usize, Vec<crate::state::LayerWrites>);
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

    fn measure(&self, state: &State) -> (usize, Vec<crate::state::LayerWrites>) {
        (state.size_bytes(), state.write_stats())
    }
}

/// One input without its length: what is told, where its filler begins, what is asked.
struct Input {
    head: Vec<u32>,
    needle: Vec<u32>,
    filler_at: u64,
    questions: Vec<Asked>,
}

struct Asked {
    tokens: Vec<u32>,
    /// None: the answer is "unknown".
    key: Option<String>,
}

impl Input {
    fn draw(rng: &mut ChaCha8Rng, tokenizer: &Tokenizer, filler: &Filler, segment: usize, o: &Options) -> Self {
        let encode = |text: &str| tokenizer.encode(text);
        if let Some(t) = &o.prompt {
            let key = digits(rng, o.digits, 0.0);
            let needle = encode(&t.with_key(&key));
            let questions = vec![Asked { tokens: encode(&t.question), key: Some(key) }];
            return Input { head: encode(&t.head), needle, filler_at: filler.anywhere(rng), questions };
        }
        let named = o.keys > 1;
        let plan = Plan {
            split: if o.wording == Wording::HeldOut { Split::HeldOut } else { Split::Trained },
            paper: o.wording == Wording::Paper,
            keys: if o.absent && !named { 0 } else { o.keys },
            named,
            questions: if o.absent { 1 } else { o.keys },
            absent: o.absent,
            digits: o.digits,
            few_digits: 0.0,
            key_first: 0.0,
        };
        let scenario = Scenario::draw(rng, &plan);
        // Several keys stand one after the other with up to a segment of filler between.
        let mut needle = Vec::new();
        for (i, key) in scenario.keys.iter().enumerate() {
            if i > 0 {
                filler.copy(filler.anywhere(rng), rng.random_range(0..segment), &mut needle);
            }
            needle.extend(encode(&key.text));
        }
        let questions = scenario.questions.into_iter();
        Input {
            head: encode(wording::INTRO),
            needle,
            filler_at: filler.anywhere(rng),
            questions: questions.map(|q| Asked { tokens: encode(&q.text), key: q.digits }).collect(),
        }
    }
}

/// Inputs read in lockstep.
struct Batch<'a> {
    filler: &'a Filler,
    inputs: Vec<Input>,
    /// Tokens of the longest question.
    tail: usize,
}

/// One length and depth of a batch.
#[derive(Clone, Debug)]
struct Cell {
    /// Which row of the report.
    row: usize,
    /// Tokens before the last `tail` ones, which hold the question.
    read: usize,
    /// Tokens of filler before the needle, per input.
    before: Vec<usize>,
}

impl Batch<'_> {
    /// Where everything stands in an input of `total` tokens.
    fn cell(&self, row: usize, total: usize, length: usize, depth: f64) -> Result<Cell> {
        let read = total.saturating_sub(self.tail);
        let before = self.inputs.iter().map(|i| {
            let room = read.checked_sub(i.head.len() + i.needle.len());
            room.map(|room| (depth * room as f64).round() as usize)
        });
        match before.collect() {
            Some(before) => Ok(Cell { row, read, before }),
            None => {
                let longest = self.inputs.iter().map(|i| i.head.len() + i.needle.len()).max().unwrap_or(0);
                let least = longest + self.tail + length - total;
                Err(Error::Input(format!("length {length}: does not hold the prompt: choose {least} tokens or more")))
            }
        }
    }

    /// Where the first needle of a cell begins: up to there everything is the same in all cells.
    fn branch(&self, cell: &Cell) -> usize {
        self.inputs.iter().zip(&cell.before).map(|(i, b)| i.head.len() + b).min().unwrap_or(0)
    }

    /// Tokens `from..to` of input `i`; `before`: tokens of filler before the needle (None: no needle).
    fn copy(&self, i: usize, before: Option<usize>, from: usize, to: usize, out: &mut Vec<u32>) {
        let input = &self.inputs[i];
        let needle = before.map_or(usize::MAX, |b| input.head.len() + b);
        let rest = needle.saturating_add(input.needle.len());
        let mut at = from;
        while at < to {
            let (end, part): (usize, Option<&[u32]>) = match at {
                _ if at < input.head.len() => (input.head.len(), Some(&input.head[at..])),
                _ if at < needle => (needle, None),
                _ if at < rest => (rest, Some(&input.needle[at - needle..])),
                _ => (usize::MAX, None),
            };
            let n = end.min(to) - at;
            match part {
                Some(part) => out.extend_from_slice(&part[..n]),
                None => {
                    let skipped = input.head.len() + if at >= rest { input.needle.len() } else { 0 };
                    self.filler.copy(input.filler_at + (at - skipped) as u64, n, out);
                }
            }
            at += n;
        }
    }

    /// The last `tail` tokens of an input with question `q`, filler before it where it is shorter.
    fn question(&self, i: usize, cell: &Cell, q: usize, out: &mut Vec<u32>) {
        let question = &self.inputs[i].questions[q].tokens;
        self.copy(i, Some(cell.before[i]), cell.read, cell.read + self.tail - question.len(), out);
        out.extend_from_slice(question);
    }
}

/// Tokens of all rows that are read at once.
const PIECE: usize = 4096;
/// Tokens of an answer beyond the digits: a blank, a full stop, one to spare.
const SPARE: usize = 3;
/// Generated prose of evaluations begins at this seed; training takes 0.
const PROSE_SEED: u64 = 1 << 32;

#[derive(Clone, Debug, Default)]
struct Tally {
    exact: Count,
    digit: Count,
    invented: Count,
}

fn check(o: &Options) -> Result<()> {
    let bad = |why: String| Err(Error::Input(why));
    if o.lengths.is_empty() || o.depths.is_empty() {
        return bad("nothing to evaluate: give at least one length and one depth".into());
    }
    if o.lengths.contains(&0) {
        return bad("length 0: an input needs tokens: choose 1,024 or more".into());
    }
    if let Some(d) = o.depths.iter().find(|d| !(0.0..=1.0).contains(*d)) {
        return bad(format!("depth {d}: is outside 0 to 1: 0 is the start, 1 the end"));
    }
    if o.samples == 0 || o.batch == 0 || o.keys == 0 || o.keys > crate::tasks::passkey::MAX_KEYS {
        let most = crate::tasks::passkey::MAX_KEYS;
        return bad(format!("samples and batch must be at least 1, keys 1 to {most}"));
    }
    if o.digits[0] == 0 || o.digits[0] > o.digits[1] || o.digits[1] > crate::tasks::passkey::MAX_DIGITS {
        return bad(format!("digits {:?}: no range of 1 to {}", o.digits, crate::tasks::passkey::MAX_DIGITS));
    }
    if o.prompt.is_some() && (o.keys > 1 || o.absent || o.wording != Wording::Paper) {
        return bad("a prompt file has its own words and one key: leave out --keys, --absent and --wording".into());
    }
    Ok(())
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
        cells.sort_by(|a, b| (batch.branch(a), &a.before, a.read).cmp(&(batch.branch(b), &b.before, b.read)));
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
    });
    Ok(Report {
        rows: rows.collect(),
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
    for group in cells.chunk_by(|a, b| a.before == b.before) {
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
    writes: Vec<crate::state::LayerWrites>,
    state_bytes: usize,
}

impl<R: Reader> Reading<'_, R> {
    fn batch(&mut self, batch: &Batch, cells: &[Cell]) {
        let rows = batch.inputs.len();
        let mut trunk = self.reader.fresh(rows, self.options.knock_out);
        let mut at = 0;
        for group in cells.chunk_by(|a, b| a.before == b.before) {
            let branch = batch.branch(&group[0]);
            self.read(batch, None, &mut trunk, at, branch, group[0].read);
            at = branch;
            let mut state = trunk.clone();
            let mut from = branch;
            for cell in group {
                self.read(batch, Some(&cell.before), &mut state, from, cell.read, cell.read);
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
        before: Option<&[usize]>,
        state: &mut R::State,
        from: usize,
        to: usize,
        asked: usize,
    ) {
        let rows = batch.inputs.len();
        let s = self.segment;
        // the first segment holds what every window keeps; the last ones must be whole in every layer
        let skimmed = match self.reader.full_segments() {
            Some(n) => s..((asked / s).saturating_sub(n) * s).min(to / s * s).max(s),
            None => 0..0,
        };
        let mut at = from;
        while at < to {
            let skim = skimmed.contains(&at) && at.is_multiple_of(s);
            let border = match skim {
                true => skimmed.end,
                false if at < skimmed.end && !skimmed.is_empty() => (at + 1).next_multiple_of(s),
                false => to,
            };
            let piece = (PIECE / rows).max(1);
            let piece = if skim { piece.next_multiple_of(s) } else { piece };
            let n = piece.min(border - at).min(to - at);
            let mut tokens = Vec::with_capacity(rows * n);
            for i in 0..rows {
                batch.copy(i, before.map(|b| b[i]), at, at + n, &mut tokens);
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
                let (answer, key) = (self.tokenizer.decode(&answer), input.questions[q].key.as_deref());
                tally.exact.add(score::exact(&answer, key));
                tally.invented.add(score::names_a_number(&answer));
                if let Some(key) = key {
                    tally.digit.join(score::digits(&answer, key));
                }
            }
        }
    }

    fn count(&mut self, tokens: usize) {
        self.done += tokens as u64;
        (self.progress)(self.done, self.total);
    }
}

fn add_writes(sum: &mut Vec<crate::state::LayerWrites>, more: Vec<crate::state::LayerWrites>) {
    if sum.is_empty() {
        *sum = more;
        return;
    }
    for (s, m) in sum.iter_mut().zip(more) {
        s.tokens += m.tokens;
        s.open.iter_mut().zip(m.open).for_each(|(a, b)| *a += b);
        s.strength.iter_mut().zip(m.strength).for_each(|(a, b)| *a += b);
    }
}

fn rates(writes: &[crate::state::LayerWrites]) -> Vec<WriteRate> {
    let rate = |w: &crate::state::LayerWrites| {
        let (layer, n) = (w.layer, w.tokens.max(1) as f64);
        let heads = w.open.iter().zip(&w.strength).enumerate();
        heads
            .map(|(head, (open, strength))| WriteRate { layer, head, open: *open as f64 / n, strength: strength / n })
            .collect::<Vec<_>>()
    };
    writes.iter().flat_map(rate).collect()
}

#[cfg(test)]
mod tests;
