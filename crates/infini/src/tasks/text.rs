//! Running text: windows at random places of documents, for language modelling and benchmarks.

use std::path::{Path, PathBuf};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::filler::{Filler, PROSE_TOKENS, Source, book_files};
use super::{Batch, Task};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// The `[data]` section with `task = "text"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// A `tokenizer.json`; without it one is learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// `prose`, `books` (each file of `--data DIR`, `DIR/train/*.txt`, is a document) or the path of
    /// a text file.
    pub source: String,
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig { tokenizer: None, source: "prose".into() }
    }
}

/// The task: documents one after the other, as if in a circle.
#[derive(Clone, Debug)]
pub struct Text {
    documents: Vec<Filler>,
    /// Tokens before each document, and of all.
    starts: Vec<usize>,
    vocab_size: usize,
}

impl Text {
    /// Reads and encodes the documents.
    ///
    /// # Errors
    /// Text that cannot be had.
    pub fn new(config: &TextConfig, data_dir: Option<&Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let Ok(source) = config.source.parse::<Source>();
        let sources = match source {
            Source::Books => {
                let dir = data_dir.ok_or_else(|| {
                    Error::Input("data.source = \"books\": no folder of books: give one with --data DIR".into())
                })?;
                book_files(&dir.join("train"))?.into_iter().map(Source::File).collect()
            }
            other => vec![other],
        };
        let documents: Vec<Filler> =
            sources.iter().map(|s| Filler::new(s, tokenizer, None, 0, PROSE_TOKENS)).collect::<Result<_>>()?;
        Ok(Self::of(documents, tokenizer.vocab_size()))
    }

    fn of(documents: Vec<Filler>, vocab_size: usize) -> Self {
        let mut starts = vec![0];
        for d in &documents {
            starts.push(starts[starts.len() - 1] + d.len());
        }
        Text { documents, starts, vocab_size }
    }

    /// Tokens of all documents.
    pub fn len(&self) -> usize {
        self.starts[self.documents.len()]
    }

    /// Never: every document holds tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Task for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn min_tokens(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn batch(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize) -> Batch {
        let row = tokens + 1;
        let mut out = Vec::with_capacity(batch * row);
        let mut reset = vec![0; batch * tokens];
        for b in 0..batch {
            let mut at = rng.random_range(0..self.len());
            let end = out.len() + row;
            while out.len() < end {
                let d = self.starts.partition_point(|s| *s <= at) - 1;
                let offset = at - self.starts[d];
                let column = row - (end - out.len());
                if offset == 0 && column < tokens {
                    reset[b * tokens + column] = 1;
                }
                let n = (self.documents[d].len() - offset).min(end - out.len());
                self.documents[d].copy(offset as u64, n, &mut out);
                at = (at + n) % self.len();
            }
        }
        let reset = reset.contains(&1).then_some(reset);
        Batch { answer: vec![false; out.len()], filler: vec![true; out.len()], tokens: out, reset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::tokenizer;
    use rand::SeedableRng;

    #[test]
    fn windows_run_on_and_mark_new_documents() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Filler::new(&Source::File(path), tokenizer(), None, 0, 0).unwrap()
        };
        let documents = vec![write("a", "1".repeat(30)), write("b", "2".repeat(50))];
        let task = Text::of(documents, 512);
        assert_eq!(task.len(), 80);
        let (one, two) = (tokenizer().encode("1")[0], tokenizer().encode("2")[0]);
        let b = task.batch(&mut ChaCha8Rng::seed_from_u64(0), 50, 200);
        let reset = b.reset.unwrap();
        for (row, reset) in b.tokens.chunks(201).zip(reset.chunks(200)) {
            for j in 1..200 {
                assert_eq!(reset[j] == 1, row[j] != row[j - 1]);
            }
            let ones = row.iter().filter(|t| **t == one).count();
            assert!(row.iter().all(|t| [one, two].contains(t)) && (60..=100).contains(&ones), "{ones}");
        }
        assert!(task.batch(&mut ChaCha8Rng::seed_from_u64(0), 1, 10).reset.is_none());
        assert!(Text::new(&TextConfig { source: "books".into(), ..TextConfig::default() }, None, tokenizer()).is_err());
    }
}
