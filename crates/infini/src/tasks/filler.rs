//! The text that keys are hidden in, as tokens in a circle.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::wording::FILLER;
use crate::error::{Error, Result};
use crate::prose::Prose;
use crate::text::Tokenizer;

/// Tokens of generated prose that a filler holds at least, about 4 MB of text.
pub const PROSE_TOKENS: usize = 1 << 20;

/// Where filler comes from. Written `paper`, `prose`, `books` or the path of a text file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The paper's five sentences.
    Paper,
    /// Generated sentences.
    Prose,
    /// The text files of one folder of `--data DIR`.
    Books,
    /// One text file.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = std::convert::Infallible;

    fn from_str(s: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match s {
            "paper" => Source::Paper,
            "prose" => Source::Prose,
            "books" => Source::Books,
            path => Source::File(path.into()),
        })
    }
}

/// Tokens of a text without end: the last is followed by the first.
#[derive(Clone, Debug)]
pub struct Filler {
    tokens: Vec<u32>,
    /// Places of tokens that hold a digit.
    digits: Vec<u32>,
}

impl Filler {
    /// The tokens of a source. `books` is the folder whose `.txt` files are the books, `seed` chooses
    /// the generated prose and `least` how many tokens of it there are at least.
    ///
    /// # Errors
    /// Books without a folder, files that cannot be read, a text without any token.
    pub fn new(source: &Source, tokenizer: &Tokenizer, books: Option<&Path>, seed: u64, least: usize) -> Result<Self> {
        let tokens = match source {
            Source::Paper => tokenizer.encode(FILLER),
            Source::Prose => prose(tokenizer, seed, least),
            Source::Books => {
                let folder = books.ok_or_else(|| {
                    Error::Input("filler books: no folder of books: give one with --data DIR (DIR/train/*.txt)".into())
                })?;
                let books = book_files(folder)?;
                let texts: Vec<Result<String>> = books.par_iter().map(|b| unwrapped(b)).collect();
                let texts: Vec<String> = texts.into_iter().collect::<Result<_>>()?;
                tokenizer.encode(&texts.join(" "))
            }
            Source::File(path) => tokenizer.encode(&unwrapped(path)?),
        };
        if tokens.is_empty() {
            return Err(Error::Input(format!("{source:?}: holds no text: choose another filler")));
        }
        let digit = tokenizer.tokens_with_digits();
        let digits = (0..tokens.len() as u32).filter(|i| digit[tokens[*i as usize] as usize]).collect();
        Ok(Filler { tokens, digits })
    }

    /// A position to begin at, all alike.
    pub fn anywhere(&self, rng: &mut ChaCha8Rng) -> u64 {
        rng.random_range(0..self.tokens.len() as u64)
    }

    /// A position from which the next `n` tokens hold a digit; anywhere if there is none.
    pub fn near_a_digit(&self, rng: &mut ChaCha8Rng, n: usize) -> u64 {
        if self.digits.is_empty() || n == 0 {
            return self.anywhere(rng);
        }
        let digit = u64::from(self.digits[rng.random_range(0..self.digits.len())]);
        let before = rng.random_range(0..n as u64) % self.tokens.len() as u64;
        (digit + self.tokens.len() as u64 - before) % self.tokens.len() as u64
    }

    /// Tokens before the text begins again.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never: a filler holds tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Appends `n` tokens from position `at` of the endless text on.
    pub fn copy(&self, at: u64, n: usize, out: &mut Vec<u32>) {
        let mut at = (at % self.tokens.len() as u64) as usize;
        let end = out.len() + n;
        while out.len() < end {
            let take = (end - out.len()).min(self.tokens.len() - at);
            out.extend_from_slice(&self.tokens[at..at + take]);
            at = 0;
        }
    }
}

/// Generated prose of at least `least` tokens.
fn prose(tokenizer: &Tokenizer, seed: u64, least: usize) -> Vec<u32> {
    let mut prose = Prose::new(seed);
    let mut tokens = Vec::with_capacity(least + 4096);
    while tokens.len() < least {
        // Large parts, so that they are encoded on all threads.
        tokens.extend(tokenizer.encode(&format!(" {}", prose.text((least - tokens.len()).clamp(1 << 12, 1 << 20)))));
    }
    tokens
}

/// The books that evaluations take of `--data DIR`: `DIR/valid`, which training never sees, or, if
/// there is no such folder, `DIR` itself.
pub fn held_out_books(data_dir: &Path) -> PathBuf {
    let valid = data_dir.join("valid");
    if valid.is_dir() { valid } else { data_dir.to_owned() }
}

/// The `.txt` files of a folder, sorted by name.
///
/// # Errors
/// A folder that cannot be read or holds no such file.
pub fn book_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("cannot list the books", folder, e))?;
    let mut files: Vec<PathBuf> = entries
        .map(|e| e.map(|e| e.path()).map_err(|e| Error::io("cannot list the books", folder, e)))
        .collect::<Result<_>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "txt"));
    files.sort();
    if files.is_empty() {
        return Err(Error::Input(format!("no books: {}: holds no .txt file", folder.display())));
    }
    Ok(files)
}

/// A text file as one line: lines and paragraphs joined with one blank.
///
/// # Errors
/// A file that cannot be read or is not UTF-8.
pub fn unwrapped(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("cannot read the text", path, e))?;
    Ok(join_lines(&text))
}

/// Runs of blanks and line ends as one blank.
fn join_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::tokenizer;

    #[test]
    fn a_filler_is_a_circle() {
        let t = tokenizer();
        let f = Filler::new(&Source::Paper, t, None, 0, 0).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        f.copy(5, 100, &mut a);
        f.copy(5, 40, &mut b);
        f.copy(45 + 3 * f.len() as u64, 60, &mut b);
        assert_eq!(a, b);
        assert_eq!(t.decode(&a[f.len() - 5..2 * f.len() - 5]), FILLER);
    }

    #[test]
    fn prose_is_as_long_as_asked_and_differs_by_seed() {
        let t = tokenizer();
        let new = |seed| Filler::new(&Source::Prose, t, None, seed, 10_000).unwrap();
        assert!(new(1).len() >= 10_000);
        assert_eq!(new(1).tokens, new(1).tokens);
        assert_ne!(new(1).tokens, new(2).tokens);
    }

    #[test]
    fn stretches_with_digits_can_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        fs::write(&path, format!("{}It was 1805. {}", "No number. ".repeat(500), "None here. ".repeat(500))).unwrap();
        let t = tokenizer();
        let f = Filler::new(&Source::File(path), t, None, 0, 0).unwrap();
        assert_eq!(f.digits.len(), 4);
        let mut rng = rand::SeedableRng::seed_from_u64(1);
        let mut found = 0;
        for _ in 0..100 {
            let mut tokens = Vec::new();
            f.copy(f.near_a_digit(&mut rng, 50), 50, &mut tokens);
            assert!(t.decode(&tokens).contains(['1', '8', '0', '5']));
            tokens.clear();
            f.copy(f.anywhere(&mut rng), 50, &mut tokens);
            found += t.decode(&tokens).contains(['1', '8', '0', '5']) as usize;
        }
        assert!(found < 20, "{found}");
        let none = Filler::new(&Source::Paper, t, None, 0, 0).unwrap();
        assert!(none.near_a_digit(&mut rng, 50) < none.len() as u64);
    }

    #[test]
    fn books_are_joined_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.txt"), "Second\nbook.\n").unwrap();
        fs::write(dir.path().join("a.txt"), "First line\nwrapped.\n\n\nNext   paragraph.").unwrap();
        fs::write(dir.path().join("c.md"), "not this").unwrap();
        let t = tokenizer();
        let f = Filler::new(&Source::Books, t, Some(dir.path()), 0, 0).unwrap();
        assert_eq!(t.decode(&f.tokens), "First line wrapped. Next paragraph. Second book.");
        let file = Filler::new(&"b.txt".parse().unwrap(), t, None, 0, 0);
        assert!(file.unwrap_err().to_string().contains("b.txt"));
        assert!(Filler::new(&Source::Books, t, None, 0, 0).unwrap_err().to_string().contains("--data"));
        fs::write(dir.path().join("empty"), " \n").unwrap();
        assert!(Filler::new(&Source::File(dir.path().join("empty")), t, None, 0, 0).is_err());
        assert!(book_files(&dir.path().join("none")).is_err());
    }
}
