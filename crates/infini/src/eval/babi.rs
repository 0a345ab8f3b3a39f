//! bAbI's facts between the sentences of a long text, in the manner of BABILong (Kuratov et al. 2024, arXiv 2406.10149).
//!
//! An input of length 0 holds its facts and nothing else; of any other length it is that many tokens long, examples and
//! question included. Answered examples from the training part stand in front, for models that never saw the task.

use std::path::Path;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Count;
use super::long::{Cell, Input, Inputs};
use crate::error::{Error, Result};
use crate::tasks::babi::{self, Question};
use crate::tasks::filler::Filler;
use crate::tasks::haystack::{hide, sentence_ends};
use crate::text::Tokenizer;

/// What stands in front of everything.
pub const INTRO: &str = "Facts about people, places and things stand between the sentences of other texts. What comes later counts. Every \
                         question is answered with one word.\n\n";
/// Tokens of an answer.
const MAX_TOKENS: usize = 6;
/// An example has at most so many facts, if there are such.
const SHORT: usize = 8;
/// Questions that are drawn before a length is given up as too short.
const TRIES: usize = 200;

/// The questions of some tasks and what they are hidden in.
#[derive(Debug)]
pub struct Babi<'a> {
    tokenizer: &'a Tokenizer,
    filler: &'a Filler,
    ends: Vec<bool>,
    /// Name, questions, examples.
    tasks: Vec<(String, Vec<Question>, Vec<Question>)>,
    shots: usize,
}

impl<'a> Babi<'a> {
    /// Reads the `split` of `tasks` ("qa1" …) from a folder of bAbI; `shots` examples come from the training part.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn new(
        tokenizer: &'a Tokenizer,
        filler: &'a Filler,
        folder: &Path,
        (tasks, split): (&[String], &str),
        shots: usize,
    ) -> Result<Self> {
        let read = |task: &String| {
            let questions = babi::read(&babi::file(folder, task, split)?)?;
            let mut examples = match shots {
                0 => Vec::new(),
                _ => babi::read(&babi::file(folder, task, "train")?)?,
            };
            let least = examples.iter().map(|q| q.facts.len()).min().unwrap_or(0);
            examples.retain(|q| q.facts.len() <= SHORT.max(least));
            Ok((task.clone(), questions, examples))
        };
        let tasks = tasks.iter().map(read).collect::<Result<_>>()?;
        Ok(Babi { tokenizer, filler, ends: sentence_ends(tokenizer), tasks, shots })
    }
}

/// A question in the words of the prompt; the answer comes next, after a blank.
pub fn asked(q: &Question) -> String {
    format!("\nQuestion: {}\nAnswer:", q.text)
}

impl Inputs for Babi<'_> {
    fn draw(&self, rng: &mut ChaCha8Rng, cell: &Cell) -> Result<Input> {
        let known = || Error::unknown("task", &cell.task, self.tasks.iter().map(|t| t.0.as_str()));
        let (_, questions, examples) = self.tasks.iter().find(|t| t.0 == cell.task).ok_or_else(known)?;
        let mut least = usize::MAX;
        for _ in 0..TRIES {
            let mut head = INTRO.to_string();
            for _ in 0..self.shots {
                let q = &examples[rng.random_range(0..examples.len())];
                head += &format!("{}{} {}.\n\n", q.facts.join(" "), asked(q), q.answer);
            }
            let q = &questions[rng.random_range(0..questions.len())];
            let head = self.tokenizer.encode(head.trim_end());
            let begin = self.tokenizer.encode("\n\n");
            let facts: Vec<Vec<u32>> = q.facts.iter().map(|f| self.tokenizer.encode(&format!(" {f}"))).collect();
            let tail = self.tokenizer.encode(&asked(q));
            let told = head.len() + begin.len() + facts.iter().map(Vec::len).sum::<usize>() + tail.len();
            let room = match cell.length {
                0 => Some(0),
                n => n.checked_sub(told),
            };
            least = least.min(told);
            let Some(room) = room else { continue };
            let mut text = Vec::with_capacity(room);
            self.filler.copy(self.filler.anywhere(rng), room, &mut text);
            let tokens = [head, begin, hide(rng, &text, &facts, &self.ends), tail].concat();
            return Ok(Input { tokens, expected: vec![q.answer.clone()], max_tokens: MAX_TOKENS });
        }
        let Cell { task, length } = cell;
        Err(Error::Input(format!("length {length}: {task} does not fit: choose 0, or {least} tokens and more")))
    }

    fn score(&self, answer: &str, expected: &[String]) -> Count {
        Count { hits: expected.iter().filter(|e| says(answer, e)).count() as u64, n: expected.len() as u64 }
    }
}

/// Whether an answer is the word, perhaps with an article in front, and not the beginning of another one.
fn says(answer: &str, word: &str) -> bool {
    let answer = answer.trim_start().to_lowercase();
    let answer = answer.strip_prefix("the ").unwrap_or(&answer);
    answer.strip_prefix(&word.to_lowercase()).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::tasks::filler::Source;
    use crate::tasks::tests::tokenizer;

    #[test]
    fn an_answer_is_the_word() {
        for (answer, right) in [
            (" kitchen.", true),
            ("kitchen\nQuestion", true),
            (" The kitchen", true),
            (" Kitchen", true),
            (" kitchens", false),
            (" in the kitchen", false),
            (" hallway, kitchen", false),
            ("", false),
        ] {
            assert_eq!(says(answer, "kitchen"), right, "{answer:?}");
        }
    }

    #[test]
    fn inputs_hold_their_facts_in_order_and_have_their_length() {
        let home = tempfile::tempdir().unwrap();
        let story = "1 Ann went to the attic.\n2 Bob moved to the cellar.\n3 Where is Ann? \tattic\t1\n\
                     4 Ann went to the cellar.\n5 Where is Ann?\tcellar\t4\n";
        for split in ["train", "test"] {
            std::fs::write(home.path().join(format!("qa1_x_{split}.txt")), story).unwrap();
        }
        let t = tokenizer();
        let filler = Filler::new(&Source::Paper, t, None, 0, 0).unwrap();
        let tasks = ["qa1".to_string()];
        let babi = Babi::new(t, &filler, home.path(), (&tasks, "test"), 2).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut draw = |length| babi.draw(&mut rng, &Cell { task: "qa1".into(), length });
        for length in [0, 1000, 1001, 3000] {
            let input = draw(length).unwrap();
            assert!(length == 0 || input.tokens.len() == length);
            let text = t.decode(&input.tokens);
            let last = text.rsplit_once("Question:").unwrap();
            assert!(last.1 == " Where is Ann?\nAnswer:");
            let context = last.0.rsplit_once("\n\n").unwrap().1;
            let of = |fact: &str| context.find(fact);
            let (a, b) = (of("Ann went to the attic.").unwrap(), of("Bob moved to the cellar.").unwrap());
            let moved = of("Ann went to the cellar.");
            assert!(a < b && moved.is_none_or(|c| b < c));
            assert_eq!(input.expected, [if moved.is_some() { "cellar" } else { "attic" }]);
            assert_eq!(text.matches("Answer:").count(), 3);
        }
        assert!(draw(40).unwrap_err().to_string().contains("does not fit"));
        assert!(Babi::new(t, &filler, home.path(), (&["qa2".to_string()], "test"), 0).is_err());
    }
}
