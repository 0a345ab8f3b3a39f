//! RULER's needles (Hsieh et al. 2024, arXiv 2404.06654): one or many "magic numbers" with names, in repeated sentences, in
//! a text, or among other needles. Names and numbers are drawn here; the text is the caller's.

use std::collections::HashSet;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Count;
use super::long::{Cell, Input, Inputs};
use crate::error::{Error, Result};
use crate::prose::list;
use crate::prose::words::{ADJECTIVES, NOUNS};
use crate::tasks::filler::{Filler, Source};
use crate::tasks::haystack::{hide, sentence_ends};
use crate::text::Tokenizer;

/// The names of the tasks, as in RULER.
pub const TASKS: [&str; 8] = [
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
];
/// Tokens of an answer beyond those of its values.
const SPARE: usize = 24;

/// What needles are hidden in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hay {
    /// The paper's sentences over and over.
    Noise,
    /// The caller's text.
    Text,
    /// Needles that nobody asks for.
    Needles,
}

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    hay: Hay,
    /// Names and values are 32 hexadecimal digits; else only the values are of that kind.
    hex_names: bool,
    hex_values: bool,
    names: usize,
    values: usize,
    asked: usize,
}

fn kind(task: &str) -> Option<Kind> {
    let one = Kind { hay: Hay::Text, hex_names: false, hex_values: false, names: 1, values: 1, asked: 1 };
    Some(match task {
        "niah_single_1" => Kind { hay: Hay::Noise, ..one },
        "niah_single_2" => one,
        "niah_single_3" => Kind { hex_values: true, ..one },
        "niah_multikey_1" => Kind { names: 4, ..one },
        "niah_multikey_2" => Kind { hay: Hay::Needles, ..one },
        "niah_multikey_3" => Kind { hay: Hay::Needles, hex_names: true, hex_values: true, ..one },
        "niah_multivalue" => Kind { values: 4, ..one },
        "niah_multiquery" => Kind { names: 4, asked: 4, ..one },
        _ => return None,
    })
}

/// The generator of all tasks.
#[derive(Debug)]
pub struct Ruler<'a> {
    tokenizer: &'a Tokenizer,
    noise: Filler,
    text: &'a Filler,
    ends: Vec<bool>,
    adjectives: Vec<&'static str>,
    nouns: Vec<&'static str>,
}

impl<'a> Ruler<'a> {
    /// Hides needles in `text`, where a task wants one.
    ///
    /// # Errors
    /// A tokenizer that makes nothing of the paper's sentences.
    pub fn new(tokenizer: &'a Tokenizer, text: &'a Filler) -> Result<Self> {
        let noise = Filler::new(&Source::Paper, tokenizer, None, 0, 0)?;
        let ends = sentence_ends(tokenizer);
        Ok(Ruler { tokenizer, noise, text, ends, adjectives: list(ADJECTIVES), nouns: list(NOUNS) })
    }

    fn name(&self, rng: &mut ChaCha8Rng, kind: Kind) -> String {
        let any = |rng: &mut ChaCha8Rng, words: &[&'static str]| words[rng.random_range(0..words.len())];
        match kind.hex_names {
            true => hex(rng),
            false => format!("{}-{}", any(rng, &self.adjectives), any(rng, &self.nouns)),
        }
    }

    fn needle(&self, kind: Kind, name: &str, value: &str) -> Vec<u32> {
        let what = if kind.hex_values { "uuids" } else { "numbers" };
        self.tokenizer.encode(&format!(" One of the special magic {what} for {name} is: {value}."))
    }

    /// `room` tokens, the needles in them.
    fn haystack(
        &self,
        rng: &mut ChaCha8Rng,
        kind: Kind,
        taken: &mut HashSet<String>,
        mut needles: Vec<Vec<u32>>,
        room: usize,
    ) -> Vec<u32> {
        let mut room = room - needles.iter().map(Vec::len).sum::<usize>();
        if kind.hay == Hay::Needles {
            loop {
                let (name, value) = (self.name(rng, kind), value(rng, kind));
                if !taken.insert(name.clone()) {
                    continue;
                }
                let other = self.needle(kind, &name, &value);
                if other.len() > room {
                    break;
                }
                room -= other.len();
                needles.push(other);
            }
            crate::tasks::scenario::shuffle(rng, &mut needles);
        }
        let filler = if kind.hay == Hay::Text { self.text } else { &self.noise };
        let mut text = Vec::with_capacity(room);
        filler.copy(filler.anywhere(rng), room, &mut text);
        hide(rng, &text, &needles, &self.ends)
    }
}

/// 7 digits, or a UUID.
fn value(rng: &mut ChaCha8Rng, kind: Kind) -> String {
    if kind.hex_values { hex(rng) } else { rng.random_range(1_000_000..10_000_000u32).to_string() }
}

/// Hexadecimal digits in groups of 8, 4, 4, 4 and 12.
fn hex(rng: &mut ChaCha8Rng) -> String {
    let x: u128 = rng.random();
    let digits = format!("{x:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// `a, b, and c`.
fn enumerated(names: &[String]) -> String {
    match names {
        [one] => one.clone(),
        [most @ .., last] => format!("{}, and {last}", most.join(", ")),
        [] => String::new(),
    }
}

impl Inputs for Ruler<'_> {
    fn draw(&self, rng: &mut ChaCha8Rng, cell: &Cell) -> Result<Input> {
        let kind = kind(&cell.task).ok_or_else(|| Error::unknown("task", &cell.task, TASKS))?;
        let (mut taken, mut names) = (HashSet::new(), Vec::new());
        while names.len() < kind.names {
            let name = self.name(rng, kind);
            if taken.insert(name.clone()) {
                names.push(name);
            }
        }
        let (mut needles, mut expected) = (Vec::new(), Vec::new());
        for (i, name) in names.iter().enumerate() {
            for _ in 0..kind.values {
                let value = value(rng, kind);
                needles.push(self.needle(kind, name, &value));
                if i < kind.asked {
                    expected.push(value);
                }
            }
        }
        crate::tasks::scenario::shuffle(rng, &mut needles);
        let what = if kind.hex_values { "uuid" } else { "number" };
        let of = enumerated(&names[..kind.asked]);
        let (head, tail) = match expected.len() {
            1 => (
                format!(
                    "A special magic {what} is hidden within the following text. Make sure to memorize it. I will quiz you \
                     about the {what} afterwards.\n"
                ),
                format!(
                    "\nWhat is the special magic {what} for {of} mentioned in the provided text? The special magic {what} \
                     for {of} mentioned in the provided text is"
                ),
            ),
            _ => (
                format!(
                    "Some special magic {what}s are hidden within the following text. Make sure to memorize it. I will \
                     quiz you about the {what}s afterwards.\n"
                ),
                format!(
                    "\nWhat are all the special magic {what}s for {of} mentioned in the provided text? The special magic \
                     {what}s for {of} mentioned in the provided text are"
                ),
            ),
        };
        let (head, tail) = (self.tokenizer.encode(&head), self.tokenizer.encode(&tail));
        let told = head.len() + tail.len() + needles.iter().map(Vec::len).sum::<usize>();
        if cell.length < told {
            let Cell { task, length } = cell;
            return Err(Error::Input(format!("length {length}: {task} does not fit: choose {told} tokens or more")));
        }
        let room = cell.length - head.len() - tail.len();
        let tokens = [head, self.haystack(rng, kind, &mut taken, needles, room), tail].concat();
        let max_tokens = SPARE + expected.iter().map(|v| self.tokenizer.encode(&format!(" {v},")).len()).sum::<usize>();
        Ok(Input { tokens, expected, max_tokens })
    }

    /// RULER's measure: the share of the values that the answer contains.
    fn score(&self, answer: &str, expected: &[String]) -> Count {
        Count { hits: expected.iter().filter(|v| answer.contains(*v)).count() as u64, n: expected.len() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::tasks::tests::tokenizer;

    #[test]
    fn every_task_hides_what_it_asks_for() {
        let t = tokenizer();
        let text = Filler::new(&Source::Prose, t, None, 1, 1 << 14).unwrap();
        let ruler = Ruler::new(t, &text).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for task in TASKS {
            let kind = kind(task).unwrap();
            for length in [1500, 2001] {
                let cell = Cell { task: task.into(), length };
                let input = ruler.draw(&mut rng, &cell).unwrap();
                assert_eq!(input.tokens.len(), length, "{task}");
                assert_eq!(input.expected.len(), kind.asked * kind.values);
                let all = t.decode(&input.tokens);
                let (told, question) = all.split_once("\nWhat ").unwrap();
                for value in &input.expected {
                    assert_eq!(told.matches(value.as_str()).count(), 1, "{task}: {value}");
                    let before = told.split(value.as_str()).next().unwrap();
                    let name = before.rsplit_once(" for ").unwrap().1.strip_suffix(" is: ").unwrap();
                    assert!(question.matches(name).count() == 2, "{task}: {name} {question}");
                }
                let needles = told.matches("One of the special magic ").count();
                match kind.hay {
                    Hay::Needles => assert!(needles > 5, "{task}: {needles}"),
                    _ => assert_eq!(needles, kind.names * kind.values),
                }
                assert_eq!(ruler.score(&input.expected.join(", "), &input.expected).rate(), 1.0);
                assert_eq!(ruler.score("none", &input.expected).hits, 0);
            }
            assert!(ruler.draw(&mut rng, &Cell { task: task.into(), length: 30 }).is_err());
        }
        let e = ruler.draw(&mut rng, &Cell { task: "niah_single_4".into(), length: 500 }).unwrap_err().to_string();
        assert!(e.contains("niah_single"), "{e}");
    }
}
