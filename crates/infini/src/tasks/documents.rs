//! Whole documents in order, out of token shards: every row of a batch goes on where it stopped the step before, so that
//! a memory can be carried from step to step.
//!
//! The documents stand in a circle, in an order drawn from `order_seed`; row b of B begins at b/B of the way and reads on
//! for ever. What a row reads at a step is thus a pure function of how many tokens it has read, and a resumed run needs no
//! other state.

use std::path::{Path, PathBuf};

use infini_format::hash::sha256;
use infini_format::shards::{Corpus, TOKENIZER};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Batch, Task};
use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::text::tokenizer::MAX_FILE;

/// The `[data]` section with `task = "documents"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DocumentsConfig {
    /// Folder that `infini data prepare` made; a relative one is below `--data`, if that is given.
    pub shards: PathBuf,
    /// Whether what a row has read is carried to the next step (truncated back-propagation: the gradient stops at the
    /// step's beginning).
    pub carry: bool,
    /// Share of the rows that are exercises in recall instead of documents: passages of shuffled tokens, half of which
    /// are copies of earlier ones.
    pub recall: f64,
    /// Draws the order of the documents.
    pub order_seed: u64,
}

impl Default for DocumentsConfig {
    fn default() -> Self {
        DocumentsConfig { shards: "shards".into(), carry: true, recall: 0.0, order_seed: 0 }
    }
}

impl DocumentsConfig {
    /// Refuses values that cannot be, by their dotted name.
    pub(super) fn check(&self) -> Result<()> {
        super::probability("recall", self.recall)
    }

    fn dir(&self, data_dir: Option<&Path>) -> PathBuf {
        data_dir.map_or_else(|| self.shards.clone(), |dir| dir.join(&self.shards))
    }

    /// The tokenizer that the shards were made with.
    ///
    /// # Errors
    /// Shards that are not there, or whose tokenizer is another by now.
    pub(super) fn tokenizer(&self, data_dir: Option<&Path>) -> Result<Tokenizer> {
        let dir = self.dir(data_dir);
        let corpus = Corpus::open(&dir).map_err(|e| Error::File(e.to_string()))?;
        let path = dir.join(TOKENIZER);
        let json = infini_format::io::read(&infini_format::io::RealIo, &path, MAX_FILE as u64);
        let json = json.map_err(|e| Error::File(e.to_string()))?;
        if sha256(&json) != corpus.about().tokenizer {
            let why = format!("{}: is not the one that the shards were made with: prepare them again", path.display());
            return Err(Error::Tokenizer(why));
        }
        Tokenizer::from_bytes(&json)
    }
}

/// The task.
#[derive(Debug)]
pub struct Documents {
    config: DocumentsConfig,
    corpus: Corpus,
    /// Documents in the circle's order, and the tokens of it before each, and of all.
    order: Vec<usize>,
    starts: Vec<u64>,
}

impl Documents {
    /// Opens the shards.
    ///
    /// # Errors
    /// Shards that cannot be read, or were made with another tokenizer.
    pub fn new(config: &DocumentsConfig, data_dir: Option<&Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let dir = config.dir(data_dir);
        let corpus = Corpus::open(&dir).map_err(|e| Error::File(e.to_string()))?;
        if sha256(&tokenizer.to_json()) != corpus.about().tokenizer {
            let why = format!("{}: were made with another tokenizer than the model's", dir.display());
            return Err(Error::Config { field: "data.shards".into(), why });
        }
        let mut order: Vec<usize> = (0..corpus.documents().len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(config.order_seed));
        let mut starts = vec![0];
        for d in &order {
            let tokens = &corpus.documents()[*d].tokens;
            starts.push(starts[starts.len() - 1] + (tokens.end - tokens.start));
        }
        Ok(Documents { config: config.clone(), corpus, order, starts })
    }

    /// Rows of a batch that are exercises; the last ones.
    fn exercises(&self, batch: usize) -> usize {
        (self.config.recall * batch as f64).round() as usize
    }

    /// `n` tokens of the circle from `at` on; `begins` is told the column of every document's first token.
    fn copy(&self, at: u64, n: usize, out: &mut Vec<u32>, begins: &mut dyn FnMut(usize)) -> Result<()> {
        let len = self.corpus.len();
        let (mut at, end) = (at % len, out.len() + n);
        while out.len() < end {
            let i = self.starts.partition_point(|s| *s <= at) - 1;
            let offset = at - self.starts[i];
            if offset == 0 {
                begins(n - (end - out.len()));
            }
            let tokens = &self.corpus.documents()[self.order[i]].tokens;
            let from = tokens.start + offset;
            let take = (tokens.end - from).min((end - out.len()) as u64);
            self.corpus.read(from..from + take, out).map_err(|e| Error::File(e.to_string()))?;
            at = (at + take) % len;
        }
        Ok(())
    }

    /// An exercise: passages of 8 to 32 shuffled tokens of the corpus, every second one on average a copy of what stood
    /// at a distance drawn evenly in its logarithm. All tokens of a copy but its first two are answers.
    fn exercise(&self, rng: &mut ChaCha8Rng, n: usize, out: &mut Batch) -> Result<()> {
        let mut material = Vec::with_capacity(n);
        self.copy(rng.random_range(0..self.corpus.len()), n, &mut material, &mut |_| {})?;
        material.shuffle(rng);
        let start = out.tokens.len();
        while out.tokens.len() < start + n {
            let done = out.tokens.len() - start;
            let len = rng.random_range(8..=32).min(n - done);
            let copy = done > 32 && rng.random_bool(0.5);
            if copy {
                let (near, far) = (32f64.ln(), (done as f64).ln());
                let distance = rng.random_range(near..=far).exp() as usize;
                let from = out.tokens.len() - distance.clamp(32, done);
                out.tokens.extend_from_within(from..from + len);
            } else {
                out.tokens.extend(&material[done..done + len]);
            }
            out.answer.extend((0..len).map(|i| copy && i >= 2));
            out.filler.extend((0..len).map(|_| !copy));
        }
        Ok(())
    }
}

impl Task for Documents {
    fn name(&self) -> &'static str {
        "documents"
    }

    fn min_tokens(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        self.corpus.about().vocab_size as usize
    }

    /// # Panics
    /// If the shards cannot be read: see [`Task::draw`].
    fn batch(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize) -> Batch {
        self.draw(rng, batch, tokens, 0).unwrap_or_else(|e| panic!("{e}"))
    }

    fn draw(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize, read: u64) -> Result<Batch> {
        let rows = batch - self.exercises(batch);
        let row = tokens + 1;
        let mut out = Batch { tokens: Vec::with_capacity(batch * row), answer: vec![], filler: vec![], reset: None };
        let mut reset = vec![0; batch * tokens];
        for b in 0..rows {
            let first = (u128::from(self.corpus.len()) * b as u128 / rows as u128) as u64;
            let reset = &mut reset[b * tokens..(b + 1) * tokens];
            self.copy(first + read % self.corpus.len(), row, &mut out.tokens, &mut |column| {
                if let Some(flag) = reset.get_mut(column) {
                    *flag = 1;
                }
            })?;
        }
        (out.answer, out.filler) = (vec![false; rows * row], vec![true; rows * row]);
        for b in rows..batch {
            reset[b * tokens] = 1;
            self.exercise(rng, row, &mut out)?;
        }
        out.reset = reset.contains(&1).then_some(reset);
        Ok(out)
    }

    fn carries(&self) -> bool {
        self.config.carry
    }

    fn identity(&self) -> Option<String> {
        Some(self.corpus.identity().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{Options, prepare, sources};
    use crate::tasks::tests::tokenizer;
    use std::sync::atomic::AtomicBool;

    fn task(lens: &[usize], config: &DocumentsConfig) -> (tempfile::TempDir, Documents) {
        let dir = tempfile::tempdir().unwrap();
        let books = dir.path().join("books");
        std::fs::create_dir(&books).unwrap();
        for (i, len) in lens.iter().enumerate() {
            // one token a character, another character for every document
            let letter = char::from(b'0' + i as u8).to_string();
            std::fs::write(books.join(format!("{i}.txt")), letter.repeat(*len)).unwrap();
        }
        let stop = AtomicBool::new(false);
        let options = Options { tokenizer: tokenizer(), unwrap: false, shard_tokens: 50, stop: &stop };
        let inputs = sources(&[books]).unwrap();
        prepare(&inputs, &dir.path().join("shards"), &options, &mut |_| {}).unwrap();
        let task = Documents::new(config, Some(dir.path()), &config.tokenizer(Some(dir.path())).unwrap()).unwrap();
        (dir, task)
    }

    #[test]
    fn rows_read_on_and_see_every_token_once_a_round() {
        let (_dir, task) = task(&[30, 50, 1, 19], &DocumentsConfig::default());
        let mut seen = vec![0; 512];
        let mut last: Vec<Option<u32>> = vec![None; 2];
        for step in 0..5 {
            let b = task.draw(&mut ChaCha8Rng::seed_from_u64(step), 2, 10, step * 10).unwrap();
            let reset = b.reset.unwrap_or(vec![0; 20]);
            for row in 0..2 {
                let tokens = &b.tokens[row * 11..][..11];
                if let Some(last) = last[row] {
                    assert_eq!(tokens[0], last, "the last target is the next step's first input");
                }
                last[row] = Some(tokens[10]);
                for j in 1..10 {
                    assert_eq!(reset[row * 10 + j] == 1, tokens[j] != tokens[j - 1]);
                }
                tokens[..10].iter().for_each(|t| seen[*t as usize] += 1);
            }
        }
        let mut counts: Vec<i32> = seen.into_iter().filter(|n| *n > 0).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 19, 30, 50]);
        // far along the same circle
        let a = task.draw(&mut ChaCha8Rng::seed_from_u64(0), 2, 10, 20).unwrap();
        assert_eq!(a, task.draw(&mut ChaCha8Rng::seed_from_u64(9), 2, 10, 20 + 100_000_000_000).unwrap());
        let other = DocumentsConfig { order_seed: 1, ..DocumentsConfig::default() };
        assert_ne!(task.order, super::tests::task(&[30, 50, 1, 19], &other).1.order);
    }

    #[test]
    fn every_answer_of_an_exercise_stood_there_before() {
        let config = DocumentsConfig { recall: 0.5, ..DocumentsConfig::default() };
        let (dir, task) = task(&[300, 500, 200], &config);
        let b = task.draw(&mut ChaCha8Rng::seed_from_u64(1), 4, 600, 0).unwrap();
        assert!(b.answer[..2 * 601].iter().all(|a| !a));
        let reset = b.reset.clone().unwrap();
        for row in 2..4 {
            assert_eq!(reset[row * 600..(row + 1) * 600].iter().position(|r| *r == 1), Some(0));
            let answers = b.answer[row * 601..][..601].iter().filter(|a| **a).count();
            assert!((150..450).contains(&answers), "{answers}");
        }
        assert_eq!(b, task.draw(&mut ChaCha8Rng::seed_from_u64(1), 4, 600, 0).unwrap());
        // a shard that is replaced under the run
        let shard = dir.path().join("shards/shard-00000.tokens");
        std::fs::copy(&shard, dir.path().join("copy")).unwrap();
        std::fs::rename(dir.path().join("copy"), &shard).unwrap();
        let e = task.draw(&mut ChaCha8Rng::seed_from_u64(1), 4, 600, 0).unwrap_err().to_string();
        assert!(e.contains("replaced") && e.contains("shard-00000"), "{e}");
    }
}
