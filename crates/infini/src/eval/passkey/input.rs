//! Inputs: what is told and asked, and where everything stands in one of any length.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::options::{Options, Wording};
use crate::error::{Error, Result};
use crate::tasks::filler::Filler;
use crate::tasks::scenario::{Plan, Scenario, digits};
use crate::tasks::wording::{self, Split};
use crate::text::Tokenizer;

/// One input without its length: what is told, where its filler begins, what is asked.
pub(super) struct Input {
    head: Vec<u32>,
    needle: Vec<u32>,
    filler_at: u64,
    pub questions: Vec<Asked>,
}

/// A question.
pub(super) struct Asked {
    pub tokens: Vec<u32>,
    /// None: the answer is "unknown".
    pub key: Option<String>,
}

impl Input {
    /// Draws what is told, where its filler begins, and what is asked.
    pub fn draw(rng: &mut ChaCha8Rng, tokenizer: &Tokenizer, filler: &Filler, segment: usize, o: &Options) -> Self {
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
            changed: 0.0,
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
    /// Tokens of filler before the needle, per input.
    pub before: Vec<usize>,
}

impl Batch<'_> {
    /// Where everything stands in an input of `total` tokens.
    pub fn cell(&self, row: usize, total: usize, length: usize, depth: f64) -> Result<Cell> {
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
    pub fn branch(&self, cell: &Cell) -> usize {
        self.inputs.iter().zip(&cell.before).map(|(i, b)| i.head.len() + b).min().unwrap_or(0)
    }

    /// Tokens `from..to` of input `i`; `before`: tokens of filler before the needle (None: no needle).
    pub fn copy(&self, i: usize, before: Option<usize>, from: usize, to: usize, out: &mut Vec<u32>) {
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
    pub fn question(&self, i: usize, cell: &Cell, q: usize, out: &mut Vec<u32>) {
        let question = &self.inputs[i].questions[q].tokens;
        self.copy(i, Some(cell.before[i]), cell.read, cell.read + self.tail - question.len(), out);
        out.extend_from_slice(question);
    }
}
