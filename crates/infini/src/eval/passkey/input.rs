//! Inputs: what is told and asked, and where everything stands in one of any length.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::options::{Options, Wording};
use crate::error::{Error, Result};
use crate::tasks::filler::Filler;
use crate::tasks::scenario::{Plan, Question, Scenario, Told, digits, shuffle};
use crate::tasks::wording::{self, Split};
use crate::text::Tokenizer;

/// One input without its length: what is told, where its filler begins, what is asked.
pub(super) struct Input {
    head: Vec<u32>,
    needle: Vec<u32>,
    /// What is told later: keys that change.
    again: Vec<u32>,
    filler_at: u64,
    pub questions: Vec<Asked>,
    /// The numbers of all keys.
    pub numbers: Vec<String>,
}

/// A question.
pub(super) struct Asked {
    pub tokens: Vec<u32>,
    /// None: the answer is "unknown".
    pub key: Option<String>,
    /// The number that no longer holds.
    pub old: Option<String>,
    /// Whether the key was told with its name before its number, if it has a name.
    pub name_first: Option<bool>,
}

impl Input {
    /// Draws what is told, where its filler begins, and what is asked.
    pub fn draw(rng: &mut ChaCha8Rng, tokenizer: &Tokenizer, filler: &Filler, segment: usize, o: &Options) -> Self {
        let encode = |text: &str| tokenizer.encode(text);
        if let Some(t) = &o.prompt {
            let key = digits(rng, o.digits, 0.0);
            let needle = encode(&t.with_key(&key));
            let numbers = vec![key.clone()];
            let questions = vec![Asked { tokens: encode(&t.question), key: Some(key), old: None, name_first: None }];
            let (head, again, filler_at) = (encode(&t.head), Vec::new(), filler.anywhere(rng));
            return Input { head, needle, again, filler_at, questions, numbers };
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
            changed: f64::from(u8::from(o.changed)),
        };
        let mut scenario = Scenario::draw(rng, &plan);
        let asked = |q: &Question| Asked {
            tokens: encode(&q.text),
            key: q.digits.clone(),
            old: scenario.old(q.key).map(String::from),
            name_first: scenario.name_first(q.key),
        };
        let questions = scenario.questions.iter().map(asked).collect();
        // Several keys stand one after the other with up to a segment of filler between.
        let tell = |rng: &mut ChaCha8Rng, told: &[&Told]| {
            let mut needle = Vec::new();
            for (i, key) in told.iter().enumerate() {
                if i > 0 {
                    filler.copy(filler.anywhere(rng), rng.random_range(0..segment), &mut needle);
                }
                needle.extend(encode(&key.text));
            }
            needle
        };
        let needle = tell(rng, &scenario.keys.iter().collect::<Vec<_>>());
        shuffle(rng, &mut scenario.changes);
        let again = tell(rng, &scenario.changes.iter().map(|c| &c.told).collect::<Vec<_>>());
        let numbers = scenario.numbers().to_vec();
        Input { head: encode(wording::INTRO), needle, again, filler_at: filler.anywhere(rng), questions, numbers }
    }

    /// Tokens that are no filler, the question apart.
    fn fixed(&self) -> usize {
        self.head.len() + self.needle.len() + self.again.len()
    }
}

/// Inputs read in lockstep.
pub(super) struct Batch<'a> {
    pub filler: &'a Filler,
    pub inputs: Vec<Input>,
    /// Tokens of the longest question.
    pub tail: usize,
}

/// One length and depth of a batch.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    /// Which row of the report.
    pub row: usize,
    /// Tokens before the last `tail` ones, which hold the question.
    pub read: usize,
    /// Where the needle stands, per input.
    pub places: Vec<Place>,
}

/// Where the keys of an input stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Tokens of filler before the needle.
    before: usize,
    /// Tokens of filler between it and what is told later, half of those up to the question; 0 if nothing is.
    between: usize,
}

impl Batch<'_> {
    /// Where everything stands in an input of `total` tokens.
    pub fn cell(&self, row: usize, total: usize, length: usize, depth: f64) -> Result<Cell> {
        let read = total.saturating_sub(self.tail);
        let places = self.inputs.iter().map(|i| {
            let room = read.checked_sub(i.fixed())?;
            let before = (depth * room as f64).round() as usize;
            Some(Place { before, between: if i.again.is_empty() { 0 } else { (room - before) / 2 } })
        });
        match places.collect() {
            Some(places) => Ok(Cell { row, read, places }),
            None => {
                let longest = self.inputs.iter().map(Input::fixed).max().unwrap_or(0);
                let least = longest + self.tail + length - total;
                Err(Error::Input(format!("length {length}: does not hold the prompt: choose {least} tokens or more")))
            }
        }
    }

    /// Where the first needle of a cell begins: up to there everything is the same in all cells.
    pub fn branch(&self, cell: &Cell) -> usize {
        self.inputs.iter().zip(&cell.places).map(|(i, p)| i.head.len() + p.before).min().unwrap_or(0)
    }

    /// Tokens `from..to` of input `i`, whose keys stand at `place` (None: nowhere).
    pub fn copy(&self, i: usize, place: Option<Place>, from: usize, to: usize, out: &mut Vec<u32>) {
        let input = &self.inputs[i];
        let Place { before, between } = place.unwrap_or(Place { before: 0, between: 0 });
        // What is told, and the filler before it.
        let told = [(0, &input.head), (before, &input.needle), (between, &input.again)];
        let told = &told[..if place.is_some() { 3 } else { 1 }];
        // Filler up to a token; `skipped` of those before are told.
        let fill = |from: usize, to: usize, skipped: usize, out: &mut Vec<u32>| {
            if from < to {
                self.filler.copy(input.filler_at + (from - skipped) as u64, to - from, out);
            }
        };
        let (mut at, mut skipped) = (0, 0);
        for (gap, part) in told {
            let begin = at + gap;
            fill(from.max(at), to.min(begin), skipped, out);
            at = begin + part.len();
            skipped += part.len();
            if from < at && begin < to {
                out.extend_from_slice(&part[from.max(begin) - begin..to.min(at) - begin]);
            }
        }
        fill(from.max(at), to, skipped, out);
    }

    /// The last `tail` tokens of an input with question `q`, filler before it where it is shorter.
    pub fn question(&self, i: usize, cell: &Cell, q: usize, out: &mut Vec<u32>) {
        let question = &self.inputs[i].questions[q].tokens;
        self.copy(i, Some(cell.places[i]), cell.read, cell.read + self.tail - question.len(), out);
        out.extend_from_slice(question);
    }
}
