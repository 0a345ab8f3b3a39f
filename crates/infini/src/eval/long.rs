//! Long inputs with a question each: drawn, read in constant memory, answered greedily, counted by task and length.

use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Count;
use super::skim::Pieces;
use crate::error::{Error, Result};
use crate::generate;
use crate::model::{Model, Want};
use crate::state::Reads;
use crate::text::Tokenizer;

/// Tokens of all rows that are read at once.
const PIECE: usize = 4096;
/// Answers that a row of results shows.
const SHOWN: usize = 3;

/// An input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Everything up to where the answer begins.
    pub tokens: Vec<u32>,
    /// What the answer has to say.
    pub expected: Vec<String>,
    /// Tokens of the longest answer.
    pub max_tokens: usize,
}

/// A task at one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its name.
    pub task: String,
    /// Tokens of the inputs.
    pub length: usize,
}

/// How many, and how they are read.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Inputs per task and length.
    pub samples: usize,
    /// Inputs of the same length that are read in lockstep.
    pub batch: usize,
    /// What reads of the memory give.
    pub reads: Reads,
    /// Seed of the inputs.
    pub seed: u64,
}

/// Where inputs come from and which answers are right.
pub trait Inputs {
    /// An input of a task; `rng` is the only source of chance.
    ///
    /// # Errors
    /// A length that does not hold it.
    fn draw(&self, rng: &mut ChaCha8Rng, cell: &Cell) -> Result<Input>;

    /// What is right in an answer.
    fn score(&self, answer: &str, expected: &[String]) -> Count;
}

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What it had to say.
    pub expected: Vec<String>,
    /// What it said.
    pub answered: String,
}

/// One task at one length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub task: String,
    /// Tokens of the inputs.
    pub length: usize,
    /// Things asked for.
    pub n: u64,
    /// Fraction of them that were answered.
    pub exact: f64,
    /// 95 % interval of `exact` (Wilson); what one input asks for together is taken as independent.
    pub interval: [f64; 2],
    /// Tokens read.
    pub tokens: u64,
    /// Seconds that took, answers included.
    pub seconds: f64,
    /// The first answers.
    pub examples: Vec<Answer>,
}

/// Evaluates. The inputs of a cell depend on the seed and the cell alone, so that they are the same for every model of
/// one tokenizer. `progress` is told the tokens read and to be read.
///
/// # Errors
/// Nothing to evaluate, a length that does not hold its inputs or that full attention has no room for.
pub fn run(
    model: &Model,
    tokenizer: &Tokenizer,
    inputs: &dyn Inputs,
    cells: &[Cell],
    o: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Row>> {
    if cells.is_empty() || o.samples == 0 || o.batch == 0 {
        return Err(Error::Input("nothing to evaluate: give a task, a length, one sample and a batch of 1".into()));
    }
    // errors come before hours of reading
    let (mut total, mut done) = (0, 0);
    for cell in cells {
        let first = inputs.draw(&mut generator(o.seed, cell), cell)?;
        model.check_room(&model.state(1), first.tokens.len().max(cell.length) + first.max_tokens)?;
        total += (first.tokens.len() * o.samples) as u64;
    }
    cells
        .iter()
        .map(|cell| {
            let (mut rng, start) = (generator(o.seed, cell), Instant::now());
            let (mut count, mut tokens, mut examples) = (Count::default(), 0, Vec::new());
            for first in (0..o.samples).step_by(o.batch) {
                let n = o.batch.min(o.samples - first);
                let batch: Vec<Input> = (0..n).map(|_| inputs.draw(&mut rng, cell)).collect::<Result<_>>()?;
                for rows in batch.chunk_by(|a, b| a.tokens.len() == b.tokens.len()) {
                    let answers = answer(model, o.reads, rows, &mut |n| progress((done + n).min(total), total));
                    let read = (rows.len() * rows[0].tokens.len()) as u64;
                    (done, tokens) = (done + read, tokens + read);
                    for (input, answer) in rows.iter().zip(answers) {
                        let answered = tokenizer.decode(&answer);
                        count.join(inputs.score(&answered, &input.expected));
                        if examples.len() < SHOWN {
                            examples.push(Answer { expected: input.expected.clone(), answered });
                        }
                    }
                }
            }
            Ok(Row {
                task: cell.task.clone(),
                length: cell.length,
                n: count.n,
                exact: count.rate(),
                interval: count.interval(),
                tokens,
                seconds: start.elapsed().as_secs_f64(),
                examples,
            })
        })
        .collect()
}

/// A cell's own source of chance.
fn generator(seed: u64, cell: &Cell) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let task = cell.task.bytes().fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    rng.set_stream(task.wrapping_mul(1 << 24).wrapping_add(cell.length as u64));
    rng
}

/// Reads rows of the same length in lockstep and answers each. `tell` hears the tokens read so far.
fn answer(model: &Model, reads: Reads, rows: &[Input], tell: &mut dyn FnMut(u64)) -> Vec<Vec<u32>> {
    let (b, t) = (rows.len(), rows[0].tokens.len());
    let mut state = model.state(b);
    state.set_reads(reads);
    let segment = model.config().infini.segment_len;
    // the last token is read in full whatever comes before it
    let pieces = Pieces::new(segment, model.layers_above_memory(), t, t.saturating_sub(1), PIECE / b);
    let mut at = 0;
    while at < t {
        let (n, skim) = pieces.next(at);
        let tokens: Vec<u32> = rows.iter().flat_map(|r| &r.tokens[at..at + n]).copied().collect();
        if skim {
            model.skim(&mut state, &tokens);
        } else {
            model.forward(&mut state, &tokens, if at + n == t { Want::Last } else { Want::Nothing });
        }
        at += n;
        tell((at * b) as u64);
    }
    let max = rows.iter().map(|r| r.max_tokens).max().unwrap_or(0);
    generate::greedy(model, &mut state, max, &|_| false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::tokenizer;
    use crate::{InfiniConfig, ModelConfig, Weights};

    struct Counting;

    impl Inputs for Counting {
        fn draw(&self, rng: &mut ChaCha8Rng, cell: &Cell) -> Result<Input> {
            if cell.length < 4 {
                return Err(Error::Input("too short".into()));
            }
            let n = cell.length - usize::from(cell.task == "ragged" && rand::RngExt::random_bool(rng, 0.5));
            let tokens = (0..n).map(|_| rand::RngExt::random_range(rng, 0..512)).collect();
            Ok(Input { tokens, expected: vec!["a".into(), "zzz".into()], max_tokens: 5 })
        }

        fn score(&self, answer: &str, expected: &[String]) -> Count {
            let hits = expected.iter().filter(|e| !answer.contains(*e)).count();
            Count { hits: hits as u64, n: expected.len() as u64 }
        }
    }

    fn model() -> Model {
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 16, "infini": InfiniConfig { segment_len: 16, ..InfiniConfig::default() },
        }))
        .unwrap();
        Model::new(config.clone(), Weights::init(&config, 0)).unwrap()
    }

    #[test]
    fn batches_answer_as_single_inputs_do() {
        let (model, t) = (model(), tokenizer());
        let cell = |task: &str, length| Cell { task: task.into(), length };
        let cells = [cell("even", 50), cell("ragged", 70), cell("ragged", 71)];
        let of = |batch| {
            let o = Options { samples: 7, batch, reads: Reads::Own, seed: 3 };
            let mut last = (0, 0);
            let mut rows = run(&model, t, &Counting, &cells, &o, &mut |d, n| last = (d, n)).unwrap();
            assert!(last.0 <= last.1 && last.0 > 1000);
            rows.iter_mut().for_each(|r| r.seconds = 0.0);
            rows
        };
        let rows = of(1);
        assert_eq!(rows, of(3));
        assert_eq!(rows.iter().map(|r| (r.n, r.examples.len())).collect::<Vec<_>>(), [(14, 3); 3]);
        assert_eq!(rows[0].tokens, 350);
        assert!(rows[1].tokens < 490 && rows[1].examples != rows[2].examples);
        let o = Options { samples: 1, batch: 1, reads: Reads::Own, seed: 0 };
        assert!(run(&model, t, &Counting, &[cell("even", 3)], &o, &mut |_, _| {}).is_err());
        assert!(run(&model, t, &Counting, &[], &o, &mut |_, _| {}).is_err());
    }
}
