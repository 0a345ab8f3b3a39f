//! Tokens out: greedy continuation of rows in lockstep, and sampled continuation of one row.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::folder::Loaded;
use crate::model::{Model, Want};
use crate::state::State;
use crate::text::Tokenizer;

/// Continues each row greedily until `stop` says so of what the row has produced, or `max_tokens`.
///
/// Starts from the state's next-token logits; rows that have stopped are fed their last token again,
/// their output is cut. Afterwards the state has read what was produced but the last token.
///
/// # Panics
/// If the state holds no logits: read something with [`Want::Last`] first.
pub fn greedy(model: &Model, state: &mut State, max_tokens: usize, stop: &dyn Fn(&[u32]) -> bool) -> Vec<Vec<u32>> {
    let v = model.config().vocab_size;
    let mut out = vec![Vec::new(); state.batch()];
    let mut live = vec![true; state.batch()];
    for i in 0..max_tokens {
        let logits = state.logits().expect("a state with logits");
        let next: Vec<u32> = logits.chunks(v).map(argmax).collect();
        for ((row, live), token) in out.iter_mut().zip(&mut live).zip(&next) {
            if *live {
                row.push(*token);
                *live = !stop(row);
            }
        }
        if !live.contains(&true) || i + 1 == max_tokens {
            break;
        }
        model.forward(state, &next, Want::Last);
    }
    out
}

/// Index of the largest value, the first of equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |b, (i, x)| if *x > b.1 { (i, *x) } else { b });
    best.0 as u32
}

/// How the next token is drawn. Applied in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the k most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1 for all.
    pub top_p: f64,
    /// Only tokens with at least this share of the most likely one's probability; 0 for all.
    pub min_p: f64,
    /// Logits of tokens among the last 1,024 are divided by this (multiplied where negative); 1 for none
    /// (Keskar et al. 2019, arXiv 1909.05858).
    pub repetition_penalty: f64,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Tokens that the repetition penalty looks back at.
const RECENT: usize = 1024;

/// Draws tokens, one after another.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: Sampling,
    rng: ChaCha8Rng,
    recent: VecDeque<u32>,
}

impl Sampler {
    /// A sampler at the beginning of its seed.
    ///
    /// # Errors
    /// A setting outside its range, by name.
    pub fn new(settings: Sampling) -> Result<Self> {
        let s = &settings;
        let ranges = [
            ("temperature", s.temperature, 0.0, 100.0),
            ("top-p", s.top_p, f64::MIN_POSITIVE, 1.0),
            ("min-p", s.min_p, 0.0, 1.0),
            ("repetition-penalty", s.repetition_penalty, 0.01, 100.0),
        ];
        for (name, x, low, high) in ranges {
            if !(low..=high).contains(&x) {
                let why = format!("{x} is outside {low:.0} to {high:.0}");
                return Err(Error::Config { field: name.into(), why });
            }
        }
        Ok(Sampler { rng: ChaCha8Rng::seed_from_u64(s.seed), settings, recent: VecDeque::new() })
    }

    /// Tokens that were read, for the repetition penalty.
    pub fn saw(&mut self, ids: &[u32]) {
        self.recent.extend(&ids[ids.len().saturating_sub(RECENT)..]);
        let surplus = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..surplus);
    }

    /// The next token by the logits of one row. It counts as seen.
    pub fn draw(&mut self, logits: &[f32]) -> u32 {
        let s = self.settings;
        let mut logits: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        if s.repetition_penalty != 1.0 {
            let mut ids: Vec<u32> = self.recent.iter().copied().collect();
            ids.sort_unstable();
            ids.dedup();
            for id in ids {
                if let Some(x) = logits.get_mut(id as usize) {
                    *x = if *x > 0.0 { *x / s.repetition_penalty } else { *x * s.repetition_penalty };
                }
            }
        }
        let token = if s.temperature == 0.0 {
            let first = (0, f64::NEG_INFINITY);
            logits.iter().enumerate().fold(first, |b, (i, x)| if *x > b.1 { (i, *x) } else { b }).0 as u32
        } else {
            self.draw_from(&probabilities(&logits, &s))
        };
        self.saw(&[token]);
        token
    }

    /// One of `kept` by its share of their sum.
    fn draw_from(&mut self, kept: &[(u32, f64)]) -> u32 {
        let total: f64 = kept.iter().map(|(_, p)| p).sum();
        let mut point = self.rng.random::<f64>() * total;
        for (token, p) in kept {
            point -= p;
            if point < 0.0 {
                return *token;
            }
        }
        kept.last().expect("the most likely token is always kept").0
    }
}

/// The tokens that may be drawn, the most likely first (of equals, the lowest id), with weights.
fn probabilities(logits: &[f64], s: &Sampling) -> Vec<(u32, f64)> {
    let mut order: Vec<(u32, f64)> = logits.iter().enumerate().map(|(i, x)| (i as u32, x / s.temperature)).collect();
    let by = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if s.top_k > 0 && s.top_k < order.len() {
        order.select_nth_unstable_by(s.top_k - 1, by);
        order.truncate(s.top_k);
    }
    order.sort_unstable_by(by);
    let top = order[0].1;
    order.iter_mut().for_each(|(_, x)| *x = (*x - top).exp());
    let total: f64 = order.iter().map(|(_, p)| p).sum();
    if s.top_p < 1.0 {
        let mut sum = 0.0;
        let enough = order.iter().position(|(_, p)| {
            sum += p / total;
            sum >= s.top_p
        });
        order.truncate(enough.map_or(order.len(), |n| n + 1));
    }
    // the first has weight 1
    order.retain(|(_, p)| *p >= s.min_p);
    order
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model's token that ends a text.
    End,
    /// A stop text.
    Stop,
    /// `max_tokens`.
    Length,
    /// Full attention has no [room](Model::room).
    Full,
    /// Whoever received the text said so.
    Break,
}

/// Continues one row, giving its text to `emit` as it becomes certain, without the stop text and what
/// follows. Returns the tokens, and why it ended. Afterwards the state has read all of them.
///
/// # Panics
/// If the state holds no logits, or more than one row.
pub fn sample(
    loaded: &Loaded,
    state: &mut State,
    sampler: &mut Sampler,
    max_tokens: usize,
    stop: &[String],
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> (Vec<u32>, Finish) {
    assert_eq!(state.batch(), 1, "sampling continues one row");
    let mut text = TextStream::new(&loaded.tokenizer, stop);
    let mut ids = Vec::new();
    let finish = loop {
        if ids.len() == max_tokens {
            break Finish::Length;
        }
        if loaded.model.room(state) == Some(0) {
            break Finish::Full;
        }
        let token = sampler.draw(state.logits().expect("a state with logits"));
        loaded.model.forward(state, &[token], Want::Last);
        ids.push(token);
        if loaded.end.contains(&token) {
            break Finish::End;
        }
        let (certain, stopped) = text.push(token);
        if !certain.is_empty() && emit(&certain).is_break() {
            return (ids, Finish::Break);
        }
        if stopped {
            return (ids, Finish::Stop);
        }
    };
    let rest = text.finish();
    if !rest.is_empty() {
        // it has ended whatever the answer
        let _ = emit(&rest);
    }
    (ids, finish)
}

/// Text of tokens that arrive one by one: whole characters, and nothing of a stop text.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    /// Tokens from the last ones whose text was certain; decoders look back at those.
    ids: Vec<u32>,
    /// How many of them those are.
    old: usize,
    /// Text that could be the beginning of a stop text.
    held: String,
}

impl<'a> TextStream<'a> {
    /// A stream that ends before any of `stop`.
    pub fn new(tokenizer: &'a Tokenizer, stop: &'a [String]) -> Self {
        TextStream { tokenizer, stop, ids: Vec::new(), old: 0, held: String::new() }
    }

    /// Takes a token; returns the text that is certain now, and whether a stop text has come.
    pub fn push(&mut self, id: u32) -> (String, bool) {
        self.ids.push(id);
        self.take(false);
        if let Some(at) = self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // the longest end that begins a stop text is held back
        let begins = |tail: &str| self.stop.iter().any(|s| s.starts_with(tail));
        let keep = self.held.char_indices().map(|(i, _)| i).find(|i| begins(&self.held[*i..]));
        let later = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, later), false)
    }

    /// The text that is left.
    pub fn finish(mut self) -> String {
        self.take(true);
        self.held
    }

    /// Moves the text of new tokens to `held`, unless it ends inside a character.
    fn take(&mut self, all: bool) {
        let before = self.tokenizer.decode(&self.ids[..self.old]);
        let text = self.tokenizer.decode(&self.ids);
        if text.ends_with('\u{fffd}') && !all && self.ids.len() - self.old < 8 {
            return;
        }
        self.held.push_str(text.get(before.len()..).unwrap_or_default());
        self.ids.drain(..self.old);
        self.old = self.ids.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 2.5];

    fn draws(settings: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings).unwrap();
        (0..n)
            .map(|_| {
                sampler.recent.clear();
                sampler.draw(&LOGITS)
            })
            .collect()
    }

    #[test]
    fn temperature_zero_is_greedy() {
        assert_eq!(draws(Sampling { top_k: 3, seed: 9, ..Sampling::default() }, 3), [1, 1, 1]);
        assert_eq!(argmax(&[0.0, 2.0, 2.0]), 1);
    }

    #[test]
    fn the_seed_decides_and_frequencies_are_the_probabilities() {
        let warm = Sampling { temperature: 1.5, seed: 3, ..Sampling::default() };
        assert_eq!(draws(warm, 50), draws(warm, 50));
        assert_ne!(draws(warm, 50), draws(Sampling { seed: 4, ..warm }, 50));
        let n = 20_000;
        let drawn = draws(warm, n);
        let weight = |i: usize| (f64::from(LOGITS[i]) / 1.5).exp();
        let total: f64 = (0..5).map(weight).sum();
        for i in 0..5 {
            let share = drawn.iter().filter(|t| **t == i as u32).count() as f64 / n as f64;
            assert!((share - weight(i) / total).abs() < 0.015, "{i}: {share}");
        }
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        let kept = |s: Sampling| {
            let logits: Vec<f64> = LOGITS.iter().map(|x| f64::from(*x)).collect();
            probabilities(&logits, &s).iter().map(|(t, _)| *t).collect::<Vec<_>>()
        };
        let all = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(kept(all), [1, 4, 2, 0, 3]);
        assert_eq!(kept(Sampling { top_k: 2, ..all }), [1, 4]);
        assert_eq!(kept(Sampling { top_k: 9, ..all }), [1, 4, 2, 0, 3]);
        // shares .455, .276, .167, .062, .008
        assert_eq!(kept(Sampling { top_p: 0.45, ..all }), [1]);
        assert_eq!(kept(Sampling { top_p: 0.5, ..all }), [1, 4]);
        assert_eq!(kept(Sampling { top_p: 0.95, ..all }), [1, 4, 2, 0]);
        // relative to the first: .607, .368, .135, .018
        assert_eq!(kept(Sampling { min_p: 0.3, ..all }), [1, 4, 2]);
        assert_eq!(kept(Sampling { min_p: 1.0, ..all }), [1]);
        // top-p after temperature: colder is narrower
        assert_eq!(kept(Sampling { temperature: 0.25, top_p: 0.85, ..all }), [1]);
    }

    #[test]
    fn repetition_costs_positive_and_negative_logits() {
        let penalty = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut s = Sampler::new(penalty).unwrap();
        s.saw(&[1, 1]);
        // 3 becomes 1.5 once, however often it was seen
        assert_eq!((s.draw(&LOGITS), s.draw(&LOGITS)), (4, 2));
        let mut s = Sampler::new(penalty).unwrap();
        s.saw(&[0]);
        assert_eq!(s.draw(&[-1.0, -1.5]), 1);
        s.saw(&vec![7; RECENT]);
        assert_eq!(s.recent.len(), RECENT);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let of = |s| Sampler::new(s).unwrap_err().to_string();
        let d = Sampling::default();
        assert!(of(Sampling { temperature: -1.0, ..d }).contains("temperature"));
        assert!(of(Sampling { temperature: f64::NAN, ..d }).contains("temperature"));
        assert!(of(Sampling { top_p: 0.0, ..d }).contains("top-p"));
        assert!(of(Sampling { min_p: 1.5, ..d }).contains("min-p"));
        assert!(of(Sampling { repetition_penalty: 0.0, ..d }).contains("repetition-penalty"));
    }

    #[test]
    fn text_comes_in_whole_characters_and_ends_before_a_stop_text() {
        let t = Tokenizer::train(std::iter::once("ab".into()), 256).unwrap();
        let stream = |text: &str, stop: &[&str]| {
            let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
            let mut stream = TextStream::new(&t, &stop);
            let mut parts = Vec::new();
            for id in t.encode(text) {
                let (part, stopped) = stream.push(id);
                if !part.is_empty() {
                    parts.push(part);
                }
                if stopped {
                    return parts;
                }
            }
            parts.push(stream.finish());
            parts
        };
        assert_eq!(stream("a\u{1f600}é!", &[]), ["a", "\u{1f600}", "é", "!", ""]);
        assert_eq!(stream("one. two", &["."]).concat(), "one");
        assert_eq!(stream("a, and b", &["and then"]).concat(), "a, and b");
        assert_eq!(stream("a<|e<|end|>b", &["<|end|>", "zz"]), ["a", "<|e"]);
        assert_eq!(stream("a<|en", &["<|end|>"]), ["a", "<|en"]);
    }
}
