//! Token ids of a text, through the `tokenizers` crate: this is the one file that names it.
//!
//! **Pieces.** A text is encoded in pieces, so that time is linear and memory constant whatever the
//! text or the tokenizer. A piece ends at the first safe border after 4 KiB, or, when 16 KiB hold
//! none, at the last whole character (a "word" of that length is no language). A border is safe
//! before a blank that stands between two letters or digits. No pattern of the GPT-2 family of
//! tokenizers matches across it: pieces begin with at most one blank and go on with one class of
//! characters. So with these, and with our own, the pieces' ids are those of the whole text.
//! Tokenizers that put a blank before every text (SentencePiece) get the later pieces without
//! their first blank, which gives the same again. Which of the two holds is tried out when a
//! tokenizer is made. An added token with a blank inside can be cut in two.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rayon::prelude::*;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::error::{Error, Result};

/// Pieces end at a safe border after this many bytes,
const SOFT: usize = 4 << 10;
/// and at any character after this many.
const HARD: usize = 16 << 10;

/// Largest `tokenizer.json` that is read; the largest in use are about 35 MB.
pub const MAX_FILE: usize = 64 << 20;
/// Most added tokens of a `tokenizer.json`.
pub const MAX_ADDED: usize = 1 << 16;
/// Most tokens for each byte of a text: a byte is a token at the least, and a normalizer may lengthen a little.
const MAX_GROWTH: usize = 32;
/// Ids are below this.
pub const MAX_VOCABULARY: usize = 1 << 22;
/// Longest regular expression of a `tokenizer.json`, in bytes.
pub const MAX_PATTERN: usize = 4 << 10;
/// A tokenizer that computes longer than this on texts of a few KiB is refused.
const PATIENCE: Duration = Duration::from_secs(3);

/// A vocabulary and its rules.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    vocab_size: usize,
    /// Whether later pieces lose their first blank, because the tokenizer adds one.
    drop_blank: bool,
    /// Special tokens by spelling, and the lengths of these, the longest first.
    special: HashMap<String, u32>,
    special_lengths: Vec<usize>,
    /// Tokens that every text begins with.
    begin: Vec<u32>,
}

/// How long this thread has computed so far: what others do on a busy machine is not held against a tokenizer.
#[cfg(unix)]
fn worked() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// Where no such clock is known: how long the process has run.
#[cfg(not(unix))]
fn worked() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is too large, no tokenizer, has too many added tokens, ids of
    /// [`MAX_VOCABULARY`] and more, no ids at all, patterns that take very long, or that cannot
    /// encode some text.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let bad = |why: String| Error::Tokenizer(format!("tokenizer.json: {why}"));
        if json.len() > MAX_FILE {
            return Err(bad(format!("{} bytes, at most {MAX_FILE} are read", json.len())));
        }
        check_structure(json).map_err(bad)?;
        // The parser indexes strings of the file; a panic there is a refusal like any other.
        let inner = quietly(|| tokenizers::Tokenizer::from_bytes(json))
            .ok_or_else(|| bad("contradicts itself".into()))?
            .map_err(|e| bad(e.to_string()))?;
        Self::new(inner, json.to_vec())
    }

    /// Learns a byte-level BPE of `vocab_size` entries: every digit is a token of its own, words are
    /// split as GPT-2 does, any UTF-8 text can be encoded. The same texts give the same bytes.
    ///
    /// # Errors
    /// A size that does not hold the 256 bytes, or is beyond [`MAX_VOCABULARY`].
    pub fn train(texts: impl Iterator<Item = String> + Send, vocab_size: usize) -> Result<Self> {
        if !(256..=MAX_VOCABULARY).contains(&vocab_size) {
            return Err(Error::Tokenizer(format!(
                "a byte-level vocabulary of {vocab_size} entries: choose 256 (the bytes) to {MAX_VOCABULARY}"
            )));
        }
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])));
        inner.with_decoder(Some(ByteLevel::default()));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build()
            .into();
        let failed = |e: tokenizers::Error| Error::Tokenizer(format!("training: {e}"));
        // Long texts in pieces: the trainer splits them by the same patterns as the encoder does.
        let pieces = texts.flat_map(|t| Pieces(&t).map(str::to_owned).collect::<Vec<_>>());
        inner.train(&mut trainer, pieces).map_err(failed)?;
        let json = inner.to_string(false).map_err(failed)?.into_bytes();
        Self::new(inner, json)
    }

    fn new(mut inner: tokenizers::Tokenizer, json: Vec<u8>) -> Result<Self> {
        // Some files cut or fill every text to a length.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::Tokenizer(format!("tokenizer.json: {e}")))?;
        // the spelling of a special token in a text is text
        inner.set_encode_special_tokens(true);
        let special: HashMap<String, u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        let lengths: BTreeSet<usize> = special.keys().map(String::len).collect();
        let special_lengths = lengths.into_iter().rev().collect();
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let mut tokenizer =
            Tokenizer { inner, json, vocab_size, drop_blank: false, special, special_lengths, begin: Vec::new() };
        let why = if vocab_size == 0 {
            "has no tokens".into()
        } else if vocab_size > MAX_VOCABULARY {
            format!("has the id {}, ids are below {MAX_VOCABULARY}", vocab_size - 1)
        } else if let Err(why) = tokenizer.try_out() {
            why
        } else {
            let joined = |right| [tokenizer.piece("every word"), tokenizer.piece(right)].concat();
            let whole = tokenizer.piece("every word and more");
            tokenizer.drop_blank = joined(" and more") != whole && joined("and more") == whole;
            let plain = tokenizer.piece("a");
            let marked = quietly(|| tokenizer.inner.encode_fast("a", true)).and_then(|e| e.ok());
            let marked = marked.map_or_else(Vec::new, |e| e.get_ids().to_vec());
            let before = marked.windows(plain.len().max(1)).position(|w| w == plain);
            tokenizer.begin = marked[..before.unwrap_or(0)].to_vec();
            return Ok(tokenizer);
        };
        Err(Error::Tokenizer(format!("tokenizer.json: {why}")))
    }

    /// Encodes texts that make hostile patterns backtrack, each longer than the last, and gives up in time.
    fn try_out(&self) -> Result<(), String> {
        let start = worked();
        for unit in ["a", " ", "0", "\n", "-", "aB1 .", "é", "\u{1f600}\u{e000}"] {
            for n in [1, 8, 16, 24, 32, 64, 256, 1024, HARD / unit.len()] {
                // A last character of another kind makes a pattern that is anchored there fail late.
                let text = unit.repeat(n) + "!";
                let most = MAX_GROWTH * (text.len() + 1);
                match quietly(|| self.inner.encode_fast(text, false)) {
                    // at the shortest of them already: the longer ones would take all time and memory
                    Some(Ok(e)) if e.get_ids().len() > most => {
                        return Err(format!("makes {} tokens of {n} times {unit:?}", e.get_ids().len()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Err(format!("cannot encode every text: {e}")),
                    None => return Err("contradicts itself".into()),
                }
                if worked().saturating_sub(start) > PATIENCE {
                    return Err("its patterns take too long".into());
                }
            }
        }
        Ok(())
    }

    fn piece(&self, text: &str) -> Vec<u32> {
        // `try_out` has seen that texts can be encoded; should one fail all the same, it has no tokens.
        self.inner.encode_fast(text, false).map_or_else(|_| Vec::new(), |e| e.get_ids().to_vec())
    }

    fn later_piece<'a>(&self, text: &'a str, first: bool) -> &'a str {
        if first || !self.drop_blank { text } else { text.strip_prefix(' ').unwrap_or(text) }
    }

    /// Tokens that every text of its own begins with (a `<bos>`), none for most.
    pub fn begin(&self) -> &[u32] {
        &self.begin
    }

    /// The special token that `text` begins with, the longest of several, and the bytes it takes.
    pub fn special_at(&self, text: &str) -> Option<(u32, usize)> {
        let of = |n: &usize| Some((*self.special.get(text.get(..*n)?)?, *n));
        self.special_lengths.iter().find_map(of)
    }

    /// The ids of `text`, without any special token: where one is spelled, it stays text. Large texts are encoded on all threads.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        if text.len() <= SOFT {
            return self.piece(text);
        }
        let pieces: Vec<(usize, &str)> = Pieces(text).enumerate().collect();
        let ids: Vec<Vec<u32>> =
            pieces.par_iter().map(|(i, piece)| self.piece(self.later_piece(piece, *i == 0))).collect();
        ids.concat()
    }

    /// Encodes a text that arrives in parts: the ids are those of [`Tokenizer::encode`] of the whole,
    /// wherever it is parted.
    pub fn stream(&self) -> EncodeStream<'_> {
        EncodeStream { tokenizer: self, waiting: String::new(), first: true }
    }

    /// A stream that goes on after the first piece of a text.
    pub fn resume_stream(&self) -> EncodeStream<'_> {
        EncodeStream { tokenizer: self, waiting: String::new(), first: false }
    }

    /// The text of `ids`; ids without a token give nothing, broken UTF-8 gives U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_default()
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// For every id whether its text holds a digit.
    pub fn tokens_with_digits(&self) -> Vec<bool> {
        (0..self.vocab_size as u32).map(|id| self.decode(&[id]).contains(|c: char| c.is_ascii_digit())).collect()
    }

    /// The id of a token by its spelling in the vocabulary, for example of `<|endoftext|>`.
    pub fn token(&self, spelling: &str) -> Option<u32> {
        self.inner.token_to_id(spelling)
    }

    /// The `tokenizer.json`: for a loaded tokenizer the very bytes it was loaded from.
    pub fn to_json(&self) -> Vec<u8> {
        self.json.clone()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

/// Encodes a text in parts; see [`Tokenizer::stream`]. Holds at most a piece (16 KiB) and the last part.
#[derive(Debug)]
pub struct EncodeStream<'a> {
    tokenizer: &'a Tokenizer,
    waiting: String,
    first: bool,
}

impl EncodeStream<'_> {
    /// Takes the next part and appends the ids that are certain by now to `ids`.
    pub fn push(&mut self, part: &str, ids: &mut Vec<u32>) {
        self.waiting.push_str(part);
        let mut rest = self.waiting.as_str();
        while let Some(n) = piece_len(rest) {
            ids.extend(self.tokenizer.piece(self.tokenizer.later_piece(&rest[..n], self.first)));
            self.first = false;
            rest = &rest[n..];
        }
        let done = self.waiting.len() - rest.len();
        self.waiting.drain(..done);
    }

    /// Bytes of text whose ids are not certain yet.
    pub fn pending(&self) -> usize {
        self.waiting.len()
    }

    /// Appends the ids of what is left.
    pub fn finish(self, ids: &mut Vec<u32>) {
        ids.extend(self.tokenizer.piece(self.tokenizer.later_piece(&self.waiting, self.first)));
    }
}

/// Length of the first piece of a text that begins with `text`, or None if more is needed to tell.
/// It depends on no more than the first `HARD + 4` bytes, so on no parting of the text.
fn piece_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let last = bytes.len().min(HARD);
    let border = (SOFT..last)
        .find(|&i| bytes[i] == b' ' && word(text[i + 1..].chars().next()) && word(text[..i].chars().next_back()));
    border.or_else(|| (bytes.len() > HARD).then(|| text.floor_char_boundary(HARD)))
}

/// The pieces of a whole text.
struct Pieces<'a>(&'a str);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (piece, rest) = self.0.split_at(piece_len(self.0).unwrap_or(self.0.len()));
        self.0 = rest;
        Some(piece)
    }
}

/// What can be said of a `tokenizer.json` before the tokenizer is built from it.
fn check_structure(json: &[u8]) -> Result<(), String> {
    let value: serde_json::Value = serde_json::from_slice(json).map_err(|e| format!("no JSON: {e}"))?;
    let count = |v: &serde_json::Value| match v {
        serde_json::Value::Array(a) => a.len(),
        serde_json::Value::Object(o) => o.len(),
        _ => 0,
    };
    let added = count(&value["added_tokens"]);
    if added > MAX_ADDED {
        return Err(format!("{added} added tokens, at most {MAX_ADDED} are read"));
    }
    for name in ["vocab", "merges"] {
        let n = count(&value["model"][name]);
        if n > MAX_VOCABULARY {
            return Err(format!("model.{name} has {n} entries, at most {MAX_VOCABULARY} are read"));
        }
    }
    if value["model"]["dropout"].as_f64().is_some_and(|p| p > 0.0) {
        return Err("model.dropout makes every encoding another one: set it to null".into());
    }
    // The parser cuts the prefix off the second half of a merge without looking.
    if let Some(prefix) = value["model"]["continuing_subword_prefix"].as_str()
        && let Some(merges) = value["model"]["merges"].as_array()
    {
        let second = |m: &serde_json::Value| match m {
            serde_json::Value::String(s) => s.split_once(' ').is_some_and(|(_, b)| b.starts_with(prefix)),
            pair => pair[1].as_str().is_some_and(|b| b.starts_with(prefix)),
        };
        if let Some(m) = merges.iter().find(|m| !second(m)) {
            return Err(format!("the merge {m} does not go on with the prefix {prefix:?}"));
        }
    }
    let mut open = vec![&value["normalizer"], &value["pre_tokenizer"], &value["decoder"]];
    while let Some(v) = open.pop() {
        match v {
            serde_json::Value::Array(a) => open.extend(a),
            serde_json::Value::Object(o) => {
                if let Some(serde_json::Value::String(s)) = o.get("Regex")
                    && s.len() > MAX_PATTERN
                {
                    return Err(format!("a pattern of {} bytes, at most {MAX_PATTERN} are read", s.len()));
                }
                open.extend(o.values());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Runs `f`; None if it panicked.
fn quietly<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const TEXT: &str = "The grass is green. The sky is blue. It's 12 o'clock; we've 1,024 reasons, don't we?\n\n\
                        \tA  second   paragraph…  naïve café 東京 \u{1f600}!  (x+y)==z  \n end";

    fn small() -> Tokenizer {
        Tokenizer::train(std::iter::repeat_n(TEXT.to_string(), 3), 320).unwrap()
    }

    /// Prose-like text of about `n` bytes that never repeats exactly.
    fn long(n: usize) -> String {
        let mut text = String::new();
        let mut i = 0u64;
        while text.len() < n {
            i += 1;
            let x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let word = TEXT.split(' ').nth(x as usize % 20).unwrap();
            text.push_str(word);
            text.push_str([" ", " ", " ", " ", "  ", "\n", ". ", " 7 "][x as usize / 32 % 8]);
        }
        text
    }

    #[test]
    fn every_text_comes_back_and_digits_stay_apart() {
        let t = small();
        assert_eq!(t.vocab_size(), 320);
        for text in [TEXT, "", " ", "\0\u{10ffff}", "12345 00"] {
            assert_eq!(t.decode(&t.encode(text)), text);
        }
        assert_eq!(t.encode("8136466").len(), 7);
        assert_eq!(t.encode(" 42."), [t.encode(" "), t.encode("4"), t.encode("2"), t.encode(".")].concat());
    }

    #[test]
    fn training_twice_gives_the_same_bytes() {
        let json = small().to_json();
        assert_eq!(json, small().to_json());
        let again = Tokenizer::from_bytes(&json).unwrap();
        assert_eq!(again.to_json(), json);
        assert_eq!(again.encode(TEXT), small().encode(TEXT));
        assert!(Tokenizer::train(std::iter::empty(), 255).is_err());
    }

    #[test]
    fn pieces_give_the_ids_of_the_whole() {
        let t = small();
        let text = long(60_000);
        assert!(Pieces(&text).count() > 10);
        assert_eq!(t.encode(&text), t.piece(&text));
        for step in [1, 7, 1000, 5000, 40_000] {
            let (mut ids, mut stream, mut rest) = (Vec::new(), t.stream(), text.as_str());
            while !rest.is_empty() {
                let (part, more) = rest.split_at(rest.ceil_char_boundary(step.min(rest.len())));
                stream.push(part, &mut ids);
                assert!(stream.waiting.len() <= HARD + step + 4);
                rest = more;
            }
            stream.finish(&mut ids);
            assert!(ids == t.encode(&text), "parts of {step} bytes");
        }
    }

    #[test]
    fn a_word_without_end_takes_linear_time() {
        let t = small();
        let time = |n: usize| {
            let word = "é".repeat(n / 2);
            let start = Instant::now();
            assert_eq!(t.decode(&t.encode(&word)), word);
            start.elapsed().as_secs_f64()
        };
        time(1 << 17);
        // Quadratic would be 64 times as long; other work on the machine may double a time.
        let (one, eight) = (time(1 << 18), time(1 << 21));
        assert!(eight < 30.0 * one.max(0.02), "{one} s, {eight} s");
    }

    #[test]
    fn tokenizers_that_add_a_blank_stream_too() {
        let vocab = r#"{"<unk>":0,"▁":1,"a":2,"b":3,"▁a":4,"▁b":5}"#;
        let json = format!(
            r#"{{"version":"1.0","added_tokens":[],"normalizer":{{"type":"Sequence","normalizers":[{{"type":"Prepend","prepend":"▁"}},{{"type":"Replace","pattern":{{"String":" "}},"content":"▁"}}]}},"pre_tokenizer":null,"post_processor":null,"decoder":null,"truncation":{{"direction":"Right","max_length":8,"strategy":"LongestFirst","stride":0}},"padding":null,"model":{{"type":"BPE","unk_token":"<unk>","fuse_unk":false,"byte_fallback":false,"dropout":null,"vocab":{vocab},"merges":[["▁","a"],["▁","b"]]}}}}"#
        );
        let t = Tokenizer::from_bytes(json.as_bytes()).unwrap();
        assert!(t.drop_blank);
        assert_eq!(t.encode("a b"), [4, 5]);
        let text = "a b ".repeat(3000);
        assert_eq!(t.encode(&text), t.piece(&text));
        assert_eq!(t.encode(&text).len(), 6001);
    }

    #[test]
    fn hostile_files_are_refused_in_time() {
        let sound = serde_json::from_slice::<serde_json::Value>(&small().to_json()).unwrap();
        let refused = |what: &str, change: &dyn Fn(&mut serde_json::Value)| {
            let mut json = sound.clone();
            change(&mut json);
            let start = Instant::now();
            let result = Tokenizer::from_bytes(json.to_string().as_bytes());
            let e = result.err().unwrap_or_else(|| panic!("{what}: loaded")).to_string();
            assert!(start.elapsed() < Duration::from_secs(8), "{what}: {:?}", start.elapsed());
            assert!(e.starts_with("bad tokenizer: tokenizer.json: "), "{what}: {e}");
            e
        };
        let e = refused("id beyond", &|j| j["model"]["vocab"]["huge"] = u32::MAX.into());
        assert!(e.contains("4294967295"), "{e}");
        let token = |i: usize| serde_json::json!({"id": 320 + i, "content": format!("<{i}>"), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        refused("added tokens", &|j| j["added_tokens"] = (0..=MAX_ADDED).map(token).collect());
        refused("merge of unknown tokens", &|j| j["model"]["merges"][0] = serde_json::json!(["none", "such"]));
        refused("merges that loop", &|j| j["model"]["merges"][0] = serde_json::json!(["a", ""]));
        refused("dropout", &|j| j["model"]["dropout"] = 0.5.into());
        refused("prefix", &|j| j["model"]["continuing_subword_prefix"] = "##########".into());
        let split = |pattern: &str| serde_json::json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        refused("long pattern", &|j| j["pre_tokenizer"] = split(&"a?".repeat(MAX_PATTERN)));
        refused("no pattern", &|j| j["pre_tokenizer"] = split("("));
        refused("no tokens", &|j| {
            j["model"]["vocab"] = serde_json::json!({});
            j["model"]["merges"] = serde_json::json!([]);
        });
        refused("no unknown token", &|j| {
            j["model"] = serde_json::json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"})
        });
        for text in ["", "{", "[]", "{\"model\":7}", "\u{0}"] {
            assert!(Tokenizer::from_bytes(text.as_bytes()).is_err());
        }
        assert!(Tokenizer::from_bytes(&vec![b' '; MAX_FILE + 1]).is_err());
    }

    #[test]
    fn patterns_that_backtrack_cost_no_more_than_linear_time() {
        let mut json = serde_json::from_slice::<serde_json::Value>(&small().to_json()).unwrap();
        for pattern in [r"(a*)*\1(a|b|ab)*(?=c)", r"^(?:(a+)+)+(?<!a)$", r"(.*)(.*)(.*)\2(?=x)\3"] {
            json["pre_tokenizer"]["pretokenizers"][0] = serde_json::json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            let start = Instant::now();
            let loaded = Tokenizer::from_bytes(json.to_string().as_bytes());
            assert!(start.elapsed() < Duration::from_secs(8), "{pattern}: {:?}", start.elapsed());
            // Refused is as good; what loads has to stay in step with the text.
            let Ok(t) = loaded else { continue };
            let time = |n: usize| {
                let start = Instant::now();
                t.encode(&"a".repeat(n));
                start.elapsed().as_secs_f64()
            };
            time(HARD);
            let (one, four) = (time(4 * HARD), time(16 * HARD));
            assert!(four < 10.0 * one.max(0.02), "{pattern}: {one} s, {four} s");
        }
    }

    #[test]
    fn many_added_tokens_load_in_time() {
        let mut json = serde_json::from_slice::<serde_json::Value>(&small().to_json()).unwrap();
        let token = |i: usize| serde_json::json!({"id": 320 + i, "content": format!("<{i}>"), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        json["added_tokens"] = (0..MAX_ADDED).map(token).collect();
        let start = Instant::now();
        let t = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(t.special_at("<65535>x"), Some((320 + 65535, 7)));
        assert_eq!(t.decode(&t.encode("<65535>")), "<65535>");
        assert!(t.encode("<65535>").iter().all(|id| *id < 320), "what a text spells is text");
    }
}
