//! Numbers hidden in filler: `opening | filler | key sentence | filler | question answer | tail`.
//!
//! The defaults are a plain recipe: one key of 4 to 7 digits in the paper's words, in the paper's
//! filler or in generated prose. Everything else (many wordings, several keys with owners, several
//! questions, questions after keys that nobody told, other numbers about) is switched on by its
//! probability.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::filler::{Filler, PROSE_TOKENS, Source};
use super::scenario::{Plan, Scenario, digits, shuffle};
use super::wording::{self, Split};
use super::{Batch, Task, probability, within};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// The `[data]` section with `task = "passkey"`. The defaults are the recipe of the passkey task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PasskeyConfig {
    /// A `tokenizer.json`; without it one is learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Fewest and most digits of a key.
    pub digits: [usize; 2],
    /// Probability that a key has only 2 to 4 different digits, which forces a model to tell
    /// digits apart by their place.
    pub few_digits: f64,
    /// Probability that the keys stand where the question still sees them without a memory; else they
    /// stand where it does not.
    pub near: f64,
    /// Weights of the filler's sources: `paper`, `prose`, `books` or the path of a text file.
    pub filler: BTreeMap<String, f64>,
    /// Probability that the source changes once at a random token, from any one to any other.
    pub switch: f64,
    /// Probability that the paper's opening comes first.
    pub opening: f64,
    /// Probability that key and question are worded in one of many ways instead of the paper's.
    pub varied: f64,
    /// Most keys in a sample of varied wording; each has an owner when there are several.
    pub keys: usize,
    /// Most keys in a sample in the paper's words; each has an owner when there are several.
    pub paper_keys: usize,
    /// With u uniform in 0..1 a sample has 1 + floor(`keys` · u^`key_skew`) keys: 1 for all numbers
    /// alike, more for fewer keys; `paper_keys` likewise.
    pub key_skew: f64,
    /// Probability that a single key of varied wording has an owner.
    pub named: f64,
    /// Most questions in a sample whose keys have owners, at most one for each key.
    pub questions: usize,
    /// Probability that a question asks for a key that was not told; the answer is " unknown."
    pub absent: f64,
    /// Probability that one or two sentences with other numbers stand in the filler.
    pub distractors: f64,
    /// Probability that a key of varied wording is told number first, after a few words of filler:
    /// a write gate that has not yet seen what the number is has to let it in.
    pub key_first: f64,
    /// Probability that some words of a key sentence or question of varied wording, if it is the
    /// only key, give way to random ones: a stand-in for wordings that training does not have.
    pub noise: f64,
    /// Whether digits in the filler count as filler, which the write penalty falls on.
    pub digits_are_filler: bool,
    /// Probability that a stretch of filler is chosen to hold a digit, if its source has any:
    /// otherwise numbers that are no keys are too rare to learn from.
    pub numbers: f64,
}

impl Default for PasskeyConfig {
    fn default() -> Self {
        PasskeyConfig {
            tokenizer: None,
            digits: [4, 7],
            few_digits: 0.3,
            near: 0.1,
            filler: [("paper".into(), 2.0), ("prose".into(), 1.0)].into(),
            switch: 0.25,
            opening: 1.0,
            varied: 0.0,
            keys: 1,
            paper_keys: 1,
            key_skew: 1.5,
            named: 0.6,
            questions: 3,
            absent: 0.0,
            distractors: 0.0,
            key_first: 0.0,
            noise: 0.0,
            digits_are_filler: true,
            numbers: 0.0,
        }
    }
}

/// Most digits of a key.
pub const MAX_DIGITS: usize = 64;
/// Most keys in a sample.
pub const MAX_KEYS: usize = 1024;

impl PasskeyConfig {
    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// The first such value, by its dotted name.
    pub fn check(&self) -> Result<()> {
        let chances = [
            ("few_digits", self.few_digits),
            ("near", self.near),
            ("switch", self.switch),
            ("opening", self.opening),
            ("varied", self.varied),
            ("named", self.named),
            ("absent", self.absent),
            ("distractors", self.distractors),
            ("key_first", self.key_first),
            ("noise", self.noise),
            ("numbers", self.numbers),
        ];
        for (field, p) in chances {
            probability(field, p)?;
        }
        let bad = |field: &str, why: String| Err(Error::Config { field: format!("data.{field}"), why });
        let [least, most] = self.digits;
        within("digits", most, 1..=MAX_DIGITS)?;
        within("digits", least, 1..=most)?;
        within("keys", self.keys, 1..=MAX_KEYS)?;
        within("paper_keys", self.paper_keys, 1..=MAX_KEYS)?;
        within("questions", self.questions, 1..=MAX_KEYS)?;
        if !(self.key_skew > 0.0 && self.key_skew.is_finite()) {
            return bad("key_skew", format!("{} is no number above 0", self.key_skew));
        }
        if let Some((name, w)) = self.filler.iter().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
            return bad("filler", format!("{name} = {w} is no weight: choose 0 or more"));
        }
        if self.filler.values().sum::<f64>() <= 0.0 {
            return bad("filler", "no source has a weight above 0".into());
        }
        Ok(())
    }
}

/// The task.
#[derive(Debug)]
pub struct Passkey {
    config: PasskeyConfig,
    tokenizer: Tokenizer,
    /// Sources and the weights up to and with each.
    fillers: Vec<(f64, Filler)>,
    opening: Vec<u32>,
    /// Which ids of the vocabulary hold a digit, and the id of a lone blank.
    digit: Vec<bool>,
    blank: u32,
    segment_len: usize,
    span: usize,
}

impl Passkey {
    /// Reads the fillers; `data_dir/train` holds the books. `segment_len` tokens are a segment, of
    /// which a model sees `span` without its memory.
    ///
    /// # Errors
    /// A filler that cannot be had.
    pub fn new(
        config: &PasskeyConfig,
        data_dir: Option<&Path>,
        tokenizer: &Tokenizer,
        segment_len: usize,
        span: usize,
    ) -> Result<Self> {
        let books = data_dir.map(|d| d.join("train"));
        let (mut sum, mut fillers) = (0.0, Vec::new());
        for (name, weight) in config.filler.iter().filter(|(_, w)| **w > 0.0) {
            sum += weight;
            let Ok(source) = name.parse::<Source>();
            fillers.push((sum, Filler::new(&source, tokenizer, books.as_deref(), 0, PROSE_TOKENS)?));
        }
        Ok(Passkey {
            config: config.clone(),
            tokenizer: tokenizer.clone(),
            fillers,
            opening: tokenizer.encode(wording::INTRO),
            digit: tokenizer.tokens_with_digits(),
            blank: tokenizer.encode(" ").first().copied().unwrap_or(u32::MAX),
            segment_len,
            span,
        })
    }

    /// What the next sample tells and asks; at most `most` keys.
    fn plan(&self, rng: &mut ChaCha8Rng, most: usize) -> Plan {
        let c = &self.config;
        let paper = !rng.random_bool(c.varied);
        let most = most.min(if paper { c.paper_keys } else { c.keys });
        let spread = most as f64 * rng.random::<f64>().powf(c.key_skew);
        let keys = (1 + spread as usize).min(most);
        let single = if paper && c.paper_keys == 1 { 0.0 } else { c.named };
        let named = keys > 1 || rng.random_bool(single);
        let questions = if named { rng.random_range(1..=c.questions.min(keys)) } else { 1 };
        let absent = rng.random_bool(c.absent);
        // Without owners, and half of the time with them, no key at all is told.
        let none = absent && (!named || rng.random_bool(0.5));
        Plan {
            split: Split::Trained,
            paper,
            keys: if none { 0 } else { keys },
            named,
            questions,
            absent,
            digits: c.digits,
            few_digits: c.few_digits,
            key_first: c.key_first,
            changed: 0.0,
        }
    }

    /// A row of `total` tokens. If the drawn sample does not fit, half as many keys are tried, and
    /// at last the paper's words, which fit any row of [`Task::min_tokens`].
    fn row(&self, rng: &mut ChaCha8Rng, total: usize, out: &mut Batch) {
        let mut most = self.config.keys.max(self.config.paper_keys);
        loop {
            let plan = self.plan(rng, most);
            let scenario = Scenario::draw(rng, &plan);
            let opening = rng.random_bool(self.config.opening);
            let n = if rng.random_bool(self.config.distractors) { rng.random_range(1..=2) } else { 0 };
            let distractors = (0..n).map(|_| {
                let digits = digits(rng, self.config.digits, 0.0);
                wording::distractor(rng, &digits)
            });
            let distractors = distractors.collect();
            if self.lay_out(rng, &scenario, !plan.paper, distractors, opening, total, out) {
                return;
            }
            if most == 1 {
                break;
            }
            most /= 2;
        }
        let plan = Plan { paper: true, keys: 1, named: false, questions: 1, absent: false, ..self.plan(rng, 1) };
        let scenario = Scenario::draw(rng, &plan);
        let fits = self.lay_out(rng, &scenario, false, Vec::new(), false, total, out);
        assert!(fits, "a row of {total} tokens is too short for the passkey task");
    }

    /// Appends a row of exactly `total` tokens, or returns false if that is too short.
    fn lay_out(
        &self,
        rng: &mut ChaCha8Rng,
        scenario: &Scenario,
        varied: bool,
        distractors: Vec<String>,
        opening: bool,
        total: usize,
        out: &mut Batch,
    ) -> bool {
        let encode = |text: &String| self.tokenizer.encode(text);
        let noise = if varied && scenario.keys.len() == 1 { self.config.noise } else { 0.0 };
        let mut hidden = Vec::new();
        for key in &scenario.keys {
            let mut tokens = Vec::new();
            if key.key_first {
                let filler = &self.fillers[rng.random_range(0..self.fillers.len())].1;
                filler.copy(filler.anywhere(rng), rng.random_range(2..=8), &mut tokens);
            }
            tokens.extend(encode(&key.text));
            if rng.random_bool(noise) {
                self.disturb(rng, &mut tokens, 0.25);
            }
            hidden.push((tokens, false));
        }
        hidden.extend(distractors.iter().map(|d| (encode(d), true)));
        shuffle(rng, &mut hidden);
        let mut asked = Vec::new();
        for q in &scenario.questions {
            let mut question = encode(&q.text);
            if rng.random_bool(noise) {
                // The last words are left: the answer has to fit them.
                let n = question.len().saturating_sub(2);
                self.disturb(rng, &mut question[..n], 0.2);
            }
            asked.push((question, encode(&q.answer())));
        }
        let opening = if opening { self.opening.as_slice() } else { &[] };

        let gaps: Vec<usize> = asked.iter().skip(1).map(|_| rng.random_range(0..16)).collect();
        let fixed = opening.len()
            + hidden.iter().map(|(h, _)| h.len()).sum::<usize>()
            + asked.iter().map(|(q, a)| q.len() + a.len()).sum::<usize>()
            + gaps.iter().sum::<usize>();
        let Some(room) = total.checked_sub(fixed) else { return false };
        // So the question stands at any place of its segment.
        let tail = rng.random_range(0..self.segment_len.min(room + 1));
        let free = room - tail;
        let question_at = opening.len() + hidden.iter().map(|(h, _)| h.len()).sum::<usize>() + free;
        let seen_from = (question_at / self.segment_len).saturating_sub(self.span - 1) * self.segment_len;
        let reach = (question_at - seen_from).min(free);
        let places = if rng.random_bool(self.config.near) { free - reach..=free } else { 0..=free - reach };

        let mut cuts: Vec<usize> = hidden.iter().map(|_| rng.random_range(places.clone())).collect();
        cuts.sort_unstable();
        let fill = self.fill(rng, free + tail + gaps.iter().sum::<usize>());
        let spared = if self.config.digits_are_filler { &[] } else { self.digit.as_slice() };
        let mut row = Row { out, fill: &fill, spared };
        row.add(opening, false, true);
        let mut at = 0;
        for ((tokens, distractor), cut) in hidden.iter().zip(cuts) {
            row.fill(cut - at);
            at = cut;
            row.add(tokens, false, *distractor);
        }
        row.fill(free - at);
        for (i, (question, answer)) in asked.iter().enumerate() {
            row.add(question, false, false);
            row.add(answer, true, false);
            row.fill(gaps.get(i).copied().unwrap_or(0));
        }
        row.fill(tail);
        true
    }

    /// Puts random tokens of the fillers in the place of some: each with a probability drawn up to
    /// `most`, but no digit and no lone blank.
    fn disturb(&self, rng: &mut ChaCha8Rng, tokens: &mut [u32], most: f64) {
        let p = most * rng.random::<f64>();
        for t in tokens {
            let word = !self.digit[*t as usize] && *t != self.blank;
            if word && rng.random_bool(p) {
                let filler = &self.fillers[rng.random_range(0..self.fillers.len())].1;
                let mut one = Vec::new();
                filler.copy(filler.anywhere(rng), 1, &mut one);
                if !self.digit[one[0] as usize] {
                    *t = one[0];
                }
            }
        }
    }

    /// `n` tokens of filler: one source, or one and from a random token on another.
    fn fill(&self, rng: &mut ChaCha8Rng, n: usize) -> Vec<u32> {
        let mut fill = Vec::with_capacity(n);
        let mut copy = |i: usize, n: usize, rng: &mut ChaCha8Rng| {
            let filler = &self.fillers[i].1;
            let at =
                if rng.random_bool(self.config.numbers) { filler.near_a_digit(rng, n) } else { filler.anywhere(rng) };
            filler.copy(at, n, &mut fill);
        };
        if rng.random_bool(self.config.switch) {
            let (a, b) = (rng.random_range(0..self.fillers.len()), rng.random_range(0..self.fillers.len()));
            let at = rng.random_range(0..=n);
            copy(a, at, rng);
            copy(b, n - at, rng);
        } else {
            let sum = self.fillers.last().map_or(0.0, |f| f.0);
            let x = rng.random::<f64>() * sum;
            let i = self.fillers.iter().position(|f| x < f.0).unwrap_or(self.fillers.len() - 1);
            copy(i, n, rng);
        }
        fill
    }
}

/// The row being appended.
struct Row<'a> {
    out: &'a mut Batch,
    fill: &'a [u32],
    /// Whether each id of the vocabulary is no filler wherever it stands; empty: none.
    spared: &'a [bool],
}

impl Row<'_> {
    fn add(&mut self, tokens: &[u32], answer: bool, filler: bool) {
        self.out.tokens.extend_from_slice(tokens);
        self.out.answer.resize(self.out.tokens.len(), answer);
        let spared = |t: &u32| self.spared.get(*t as usize).copied().unwrap_or(false);
        self.out.filler.extend(tokens.iter().map(|t| filler && !spared(t)));
    }

    fn fill(&mut self, n: usize) {
        let (now, later) = self.fill.split_at(n);
        self.fill = later;
        self.add(now, false, true);
    }
}

impl Task for Passkey {
    fn name(&self) -> &'static str {
        "passkey"
    }

    fn min_tokens(&self) -> usize {
        let digits = "0".repeat(self.config.digits[1]);
        let key = wording::KEY.replace("{k}", &digits);
        let answer = wording::answer(Some(&digits));
        [key.as_str(), wording::QUESTION, &answer].map(|t| self.tokenizer.encode(t).len()).iter().sum()
    }

    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    fn batch(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize) -> Batch {
        let mut out = Batch { tokens: Vec::new(), answer: Vec::new(), filler: Vec::new(), reset: None };
        for _ in 0..batch {
            self.row(rng, tokens + 1, &mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::tokenizer;
    use rand::SeedableRng;

    const SEGMENT: usize = 64;

    fn task(config: PasskeyConfig) -> Passkey {
        // Few tokens of prose: the tests need no more.
        let t = tokenizer();
        let mut task = Passkey::new(
            &PasskeyConfig { filler: [("paper".into(), 1.0)].into(), ..config.clone() },
            None,
            t,
            SEGMENT,
            2,
        );
        let task = task.as_mut().unwrap();
        let prose = Filler::new(&Source::Prose, t, None, 0, 20_000).unwrap();
        Passkey {
            config,
            tokenizer: t.clone(),
            fillers: vec![(2.0, task.fillers.remove(0).1), (3.0, prose)],
            opening: task.opening.clone(),
            digit: task.digit.clone(),
            ..*task
        }
    }

    /// Rows of a batch with the text of their answers.
    fn rows(task: &Passkey, seed: u64, batch: usize, tokens: usize) -> Vec<(Vec<u32>, Vec<bool>, Vec<bool>)> {
        let b = task.batch(&mut ChaCha8Rng::seed_from_u64(seed), batch, tokens);
        assert_eq!(b.tokens.len(), batch * (tokens + 1));
        assert_eq!((b.answer.len(), b.filler.len()), (b.tokens.len(), b.tokens.len()));
        let n = tokens + 1;
        (0..batch)
            .map(|i| i * n..(i + 1) * n)
            .map(|r| (b.tokens[r.clone()].to_vec(), b.answer[r.clone()].to_vec(), b.filler[r].to_vec()))
            .collect()
    }

    /// The runs of positions where `mask` holds.
    fn runs(mask: &[bool]) -> Vec<std::ops::Range<usize>> {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for (i, _) in mask.iter().enumerate().filter(|(_, m)| **m) {
            match runs.last_mut() {
                Some(r) if r.end == i => r.end += 1,
                _ => runs.push(i..i + 1),
            }
        }
        runs
    }

    #[test]
    fn every_sample_of_the_recipe_tells_the_key_before_it_asks() {
        let task = task(PasskeyConfig::default());
        let t = tokenizer();
        let (mut near, mut offsets, mut prose) = (0, vec![0; SEGMENT], 0);
        let n = 600;
        for (tokens, answer, filler) in rows(&task, 1, n, 512) {
            let text = t.decode(&tokens);
            assert!(text.starts_with(wording::INTRO));
            let runs = runs(&answer);
            assert_eq!(runs.len(), 1);
            let answer = t.decode(&tokens[runs[0].clone()]);
            let digits = answer.strip_prefix(' ').unwrap().strip_suffix('.').unwrap();
            assert!((4..=7).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()), "{answer}");
            // A blank, the digits, a full stop: one token each.
            assert_eq!(runs[0].len(), digits.len() + 2);
            let key = wording::KEY.replace("{k}", digits);
            let asked = t.decode(&tokens[..runs[0].start]);
            assert!(asked.ends_with(wording::QUESTION), "{asked}");
            assert_eq!(asked.matches(&key).count(), 1, "{asked}");
            // Filler is all but the key sentence, the question and the answer.
            let told: Vec<u32> = tokens.iter().zip(&filler).filter(|(_, f)| !**f).map(|(t, _)| *t).collect();
            assert_eq!(t.decode(&told), format!("{key}{}{answer}", wording::QUESTION));
            let question = runs[0].start - t.encode(wording::QUESTION).len();
            offsets[question % SEGMENT] += 1;
            let end = filler.iter().position(|f| !f).unwrap() + t.encode(&key).len();
            near += (end > (question / SEGMENT - 1) * SEGMENT) as usize;
            prose += (!text.contains("The grass is green.")) as usize;
        }
        assert!((5..90).contains(&near), "{near} of {n} keys are near");
        assert!(offsets.iter().all(|o| *o > 0), "{offsets:?}");
        assert!((90..260).contains(&prose), "{prose} of {n} in prose alone");
    }

    #[test]
    fn batches_depend_on_the_generator_alone() {
        let task =
            task(PasskeyConfig { varied: 0.7, keys: 8, absent: 0.2, distractors: 0.3, ..PasskeyConfig::default() });
        assert_eq!(rows(&task, 5, 4, 256), rows(&task, 5, 4, 256));
        assert_ne!(rows(&task, 5, 4, 256), rows(&task, 6, 4, 256));
    }

    #[test]
    fn varied_samples_hold_what_they_ask_and_no_held_out_wording() {
        let config = PasskeyConfig {
            varied: 1.0,
            keys: 8,
            absent: 0.3,
            opening: 0.5,
            distractors: 0.5,
            ..PasskeyConfig::default()
        };
        let task = task(config);
        let t = tokenizer();
        let (mut unknown, mut asked, mut more) = (0, 0, 0);
        for (tokens, answer, filler) in rows(&task, 2, 400, 512) {
            let told: Vec<u32> = tokens.iter().zip(&filler).filter(|(_, f)| !**f).map(|(t, _)| *t).collect();
            let told = t.decode(&told);
            let runs = runs(&answer);
            asked += runs.len();
            more += (runs.len() > 1) as usize;
            for run in runs {
                let answer = t.decode(&tokens[run.clone()]);
                if answer == " unknown." {
                    unknown += 1;
                } else {
                    let digits = answer[1..].strip_suffix('.').unwrap();
                    assert!(t.decode(&tokens[..run.start]).contains(digits), "{told}");
                }
            }
            let lower = told.to_lowercase();
            for noun in wording::NOUNS.1 {
                assert!(!lower.contains(noun), "{told}");
            }
            // A held-out wording without its blanks' fillings.
            for wording in wording::KEYS.1.iter().chain(wording::OWNED_KEYS.1).chain(wording::QUESTIONS.1) {
                let longest = wording.split(['{', '}']).max_by_key(|p| p.len()).unwrap().to_lowercase();
                assert!(longest.len() > 10 && !lower.contains(&longest), "{longest}: {told}");
            }
        }
        assert!((60..200).contains(&unknown), "{unknown} of {asked}");
        assert!(more > 100, "{more}");
    }

    #[test]
    fn noise_spares_numbers_and_keys_come_first_in_the_middle_of_filler() {
        let config = PasskeyConfig { varied: 1.0, noise: 1.0, key_first: 0.5, named: 0.0, ..PasskeyConfig::default() };
        let (task, t) = (task(PasskeyConfig { digits_are_filler: false, ..config }), tokenizer());
        let mut first = 0;
        for (tokens, answer, filler) in rows(&task, 9, 200, 512) {
            let at = runs(&answer)[0].clone();
            let answer = t.decode(&tokens[at.clone()]);
            let digits = answer.trim().trim_end_matches('.');
            let told = runs(&filler.iter().map(|f| !f).collect::<Vec<_>>());
            let holds = |r: &std::ops::Range<usize>| t.decode(&tokens[r.clone()]).contains(digits);
            assert!(told.iter().filter(|r| holds(r)).count() >= 2, "key and answer are whole");
            assert!(tokens.iter().zip(&filler).all(|(t, f)| !f || !task.digit[*t as usize]), "digits are no filler");
            let key = t.decode(&tokens[told[0].clone()]);
            first += !key.starts_with(" ") as usize;
        }
        assert!(first > 10, "{first}");
    }

    #[test]
    fn short_rows_hold_the_paper_prompt() {
        let task = task(PasskeyConfig { varied: 1.0, keys: 64, ..PasskeyConfig::default() });
        let least = task.min_tokens();
        for tokens in [least, least + 1, 100, 128] {
            for (tokens, answer, _) in rows(&task, tokens as u64, 20, tokens) {
                assert!(answer.iter().any(|a| *a), "{}", tokenizer().decode(&tokens));
            }
        }
    }
}
