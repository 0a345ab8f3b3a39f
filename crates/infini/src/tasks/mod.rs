//! What models are trained on and asked: batches of tokens that are pure functions of a
//! configuration and a random number generator.

pub mod babi;
pub mod documents;
pub mod filler;
pub mod haystack;
pub mod mqar;
pub mod passkey;
pub mod scenario;
pub mod text;
pub mod wording;

use std::fs;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prose::Prose;
use crate::text::Tokenizer;

pub use documents::DocumentsConfig;
pub use mqar::MqarConfig;
pub use passkey::PasskeyConfig;
pub use text::TextConfig;

/// Rows for one training step: B rows of T+1 tokens, of which the first T are the inputs and the
/// last T the targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids [B, T+1], row after row.
    pub tokens: Vec<u32>,
    /// [B, T+1]: the token answers a question (as a target it is what the task scores).
    pub answer: Vec<bool>,
    /// [B, T+1]: the token need not be remembered: all but the keys, the questions and the answers.
    pub filler: Vec<bool>,
    /// [B, T]: 1 where an input token begins a new document; None if there is none in the batch.
    pub reset: Option<Vec<u8>>,
}

/// Something that a model can be trained on.
pub trait Task: Send + Sync {
    /// Its name in `data.task`.
    fn name(&self) -> &'static str;

    /// The smallest T that [`Task::batch`] takes.
    fn min_tokens(&self) -> usize;

    /// Ids of tokens are below this.
    fn vocab_size(&self) -> usize;

    /// `batch` rows of `tokens` + 1 tokens. The same state of `rng` gives the same rows.
    ///
    /// # Panics
    /// If `tokens` is below [`Task::min_tokens`].
    fn batch(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize) -> Batch;

    /// [`Task::batch`] for a run whose rows have read `read` tokens before: a task that reads on has a place for that.
    ///
    /// # Errors
    /// Data that cannot be read, or has changed.
    fn draw(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize, read: u64) -> Result<Batch> {
        let _ = read;
        Ok(self.batch(rng, batch, tokens))
    }

    /// Whether what a row has read is carried to its next step.
    fn carries(&self) -> bool {
        false
    }

    /// What stands for the data: a run is not gone on with on other data. `None` where the configuration says all.
    fn identity(&self) -> Option<String> {
        None
    }
}

/// The `[data]` section of a training configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum DataConfig {
    /// Numbers hidden in filler.
    Passkey(PasskeyConfig),
    /// Pairs of tokens, then questions.
    Mqar(MqarConfig),
    /// Running text.
    Text(TextConfig),
    /// Whole documents in order, from token shards.
    Documents(DocumentsConfig),
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig::Passkey(PasskeyConfig::default())
    }
}

impl DataConfig {
    /// Refuses values that cannot be, by their dotted name.
    ///
    /// # Errors
    /// The first such value.
    pub fn check(&self) -> Result<()> {
        match self {
            DataConfig::Passkey(c) => c.check(),
            DataConfig::Mqar(c) => c.check(),
            DataConfig::Text(_) => Ok(()),
            DataConfig::Documents(c) => c.check(),
        }
    }

    /// The tokenizer of a run: that of the shards, the file that `data.tokenizer` names, or a byte-level BPE of
    /// `vocab_size` entries with digits apart, learned from generated prose, the prompts and, if
    /// there are books, an excerpt of each. The same configuration and books give the same bytes.
    ///
    /// # Errors
    /// A file that cannot be read or used; books that cannot be read; a size below 256.
    pub fn tokenizer(&self, data_dir: Option<&Path>, vocab_size: usize) -> Result<Tokenizer> {
        let file: Option<&PathBuf> = match self {
            DataConfig::Passkey(c) => c.tokenizer.as_ref(),
            DataConfig::Text(c) => c.tokenizer.as_ref(),
            DataConfig::Mqar(_) => return Tokenizer::train(std::iter::empty(), 256),
            DataConfig::Documents(c) => return c.tokenizer(data_dir),
        };
        if let Some(path) = file {
            let io = |e| Error::io("cannot read data.tokenizer", path, e);
            return Tokenizer::from_bytes(&fs::read(path).map_err(io)?);
        }
        let mut texts = corpus();
        if let Some(dir) = data_dir {
            for book in filler::book_files(&dir.join("train"))? {
                let text = filler::unwrapped(&book)?;
                // Past the title page and the contents.
                let from = text.ceil_char_boundary(text.len() / 3);
                let to = text.ceil_char_boundary(text.len().min(from + EXCERPT));
                texts.push(text[from..to].into());
            }
        }
        Tokenizer::train(texts.into_iter(), vocab_size)
    }
}

/// Bytes of every book, and of generated prose per book when there is none, that a tokenizer learns from.
const EXCERPT: usize = 40_000;

/// What every tokenizer of this project learns from: prose and prompts.
fn corpus() -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut prose = Prose::new(0);
    let mut texts: Vec<String> = (0..20).map(|_| prose.text(EXCERPT)).collect();
    let prompt =
        [wording::INTRO, wording::FILLER, &wording::KEY.replace("{k}", "12345"), wording::FILLER, wording::QUESTION];
    texts.extend(std::iter::repeat_n(prompt.concat(), 2500));
    for _ in 0..4 {
        texts.extend(wording::examples(&mut rng));
    }
    texts.extend(std::iter::repeat_n(wording::answer(None), 200));
    texts
}

/// The task of a configuration. `data_dir` is the folder of `--data`; `segment_len` and `span` tell
/// how far back a model sees without its memory.
///
/// # Errors
/// A value that cannot be, text that cannot be read.
pub fn build(
    config: &DataConfig,
    data_dir: Option<&Path>,
    tokenizer: &Tokenizer,
    segment_len: usize,
    span: usize,
) -> Result<Box<dyn Task>> {
    config.check()?;
    Ok(match config {
        DataConfig::Passkey(c) => Box::new(passkey::Passkey::new(c, data_dir, tokenizer, segment_len, span)?),
        DataConfig::Mqar(c) => Box::new(mqar::Mqar::new(c)?),
        DataConfig::Text(c) => Box::new(text::Text::new(c, data_dir, tokenizer)?),
        DataConfig::Documents(c) => Box::new(documents::Documents::new(c, data_dir, tokenizer)?),
    })
}

/// Refuses a value that is no probability.
fn probability(field: &str, p: f64) -> Result<()> {
    if (0.0..=1.0).contains(&p) {
        return Ok(());
    }
    Err(Error::Config { field: format!("data.{field}"), why: format!("{p} is no probability: choose 0 to 1") })
}

/// Refuses a number outside a range.
fn within(field: &str, n: usize, range: std::ops::RangeInclusive<usize>) -> Result<()> {
    if range.contains(&n) {
        return Ok(());
    }
    let why = format!("{n} is outside {}..={}", range.start(), range.end());
    Err(Error::Config { field: format!("data.{field}"), why })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::LazyLock;

    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| DataConfig::default().tokenizer(None, 512).expect("no file is needed"));

    /// The recipe's tokenizer, trained once for all tests.
    pub(crate) fn tokenizer() -> &'static Tokenizer {
        &TOKENIZER
    }

    #[test]
    fn the_tokenizer_of_a_run_is_reproducible_and_fits_the_prompt() {
        let t = tokenizer();
        assert_eq!(t.vocab_size(), 512);
        assert_eq!(t.to_json(), DataConfig::default().tokenizer(None, 512).unwrap().to_json());
        // The lengths that the recipe counts: 24 a round of filler, 29 the opening, 10 the question.
        assert!(t.encode(wording::FILLER).len() <= 26, "{}", t.encode(wording::FILLER).len());
        assert!(t.encode(wording::INTRO).len() <= 33, "{}", t.encode(wording::INTRO).len());
        assert!(t.encode(wording::QUESTION).len() <= 12, "{}", t.encode(wording::QUESTION).len());
        assert!(DataConfig::default().tokenizer(None, 100).is_err());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        fs::write(&path, t.to_json()).unwrap();
        let from_file = DataConfig::Text(TextConfig { tokenizer: Some(path), ..TextConfig::default() });
        assert_eq!(from_file.tokenizer(None, 0).unwrap().to_json(), t.to_json());
    }

    #[test]
    fn sections_are_read_with_defaults_and_unknown_keys_refused() {
        let read = |text: &str| toml::from_str::<DataConfig>(text);
        assert_eq!(read("task = \"passkey\"").unwrap(), DataConfig::default());
        let DataConfig::Passkey(c) = read("task = \"passkey\"\nkeys = 8\nfiller = { books = 1 }").unwrap() else {
            panic!("another task")
        };
        assert_eq!((c.keys, c.filler.len()), (8, 1));
        let e = read("task = \"passkey\"\nfew_digit = 0.3").unwrap_err().to_string();
        assert!(e.contains("few_digit") && e.contains("few_digits"), "{e}");
        assert!(read("task = \"pass\"").is_err());
        assert!(read("task = \"mqar\"\npairs = 4").is_ok());
        let text = toml::to_string(&DataConfig::default()).unwrap();
        assert_eq!(read(&text).unwrap(), DataConfig::default());
    }

    #[test]
    fn hostile_values_are_refused_by_name() {
        for (line, field) in [
            ("few_digits = -0.1", "few_digits"),
            ("near = 1.5", "near"),
            ("absent = nan", "absent"),
            ("keys = 0", "keys"),
            ("keys = 9223372036854775807", "keys"),
            ("paper_keys = 0", "paper_keys"),
            ("numbers = 2", "numbers"),
            ("noise = -1", "noise"),
            ("key_first = 7", "key_first"),
            ("questions = 0", "questions"),
            ("digits = [5, 4]", "digits"),
            ("digits = [0, 4]", "digits"),
            ("digits = [4, 9223372036854775807]", "digits"),
            ("key_skew = inf", "key_skew"),
            ("filler = {}", "filler"),
            ("filler = { paper = -1 }", "filler"),
            ("filler = { paper = 0 }", "filler"),
        ] {
            let c: DataConfig = toml::from_str(&format!("task = \"passkey\"\n{line}")).unwrap();
            let e = c.check().unwrap_err().to_string();
            assert!(e.contains(&format!("data.{field}")), "{line}: {e}");
        }
        for (line, field) in [("vocab_size = 3", "vocab_size"), ("pairs = 0", "pairs"), ("pairs = 400", "pairs")] {
            let c: DataConfig = toml::from_str(&format!("task = \"mqar\"\n{line}")).unwrap();
            assert!(c.check().unwrap_err().to_string().contains(field), "{line}");
        }
    }
}
