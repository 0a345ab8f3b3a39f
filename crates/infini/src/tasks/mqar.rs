//! Multi-query associative recall as defined by Zoology (Arora et al. 2023, arXiv 2312.04927):
//! pairs of a key and a value come first, then each key once more, followed by its value, at
//! places whose distance from the pairs follows a power law; random tokens stand between. Unlike there,
//! those are none of the row's own keys: among 8,192 tokens a key seldom comes up by chance, among a few hundred it often does.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::scenario::shuffle;
use super::{Batch, Task, within};
use crate::error::{Error, Result};

/// The `[data]` section with `task = "mqar"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqarConfig {
    /// Tokens: the lower half (without 0) are keys, the upper half values.
    pub vocab_size: usize,
    /// Pairs in a row, each asked for once; a row of fewer than 4 tokens for each has as many as fit, so that a
    /// curriculum over tokens is one over pairs.
    pub pairs: usize,
    /// Exponent of the power law: small for questions soon after the pairs, 1 for any place alike.
    pub power: f64,
}

impl Default for MqarConfig {
    fn default() -> Self {
        MqarConfig { vocab_size: 512, pairs: 16, power: 0.01 }
    }
}

impl MqarConfig {
    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// The first such value, by its dotted name.
    pub fn check(&self) -> Result<()> {
        within("vocab_size", self.vocab_size, 4..=1 << 22)?;
        within("pairs", self.pairs, 1..=self.vocab_size / 2 - 1)?;
        if !(self.power > 0.0 && self.power <= 1.0) {
            let why = format!("{} is outside (0, 1]", self.power);
            return Err(Error::Config { field: "data.power".into(), why });
        }
        Ok(())
    }
}

/// The task.
#[derive(Clone, Debug)]
pub struct Mqar {
    config: MqarConfig,
}

impl Mqar {
    /// The task of a configuration.
    ///
    /// # Errors
    /// See [`MqarConfig::check`].
    pub fn new(config: &MqarConfig) -> Result<Self> {
        config.check()?;
        Ok(Mqar { config: config.clone() })
    }

    fn row(&self, rng: &mut ChaCha8Rng, total: usize, out: &mut Batch) {
        let MqarConfig { vocab_size, pairs, power } = self.config;
        let pairs = pairs.min(total / 4);
        let half = vocab_size as u32 / 2;
        let start = out.tokens.len();
        let mut keys: Vec<u32> = (1..half).collect();
        shuffle(rng, &mut keys);
        let values: Vec<u32> = (0..pairs).map(|_| rng.random_range(half..vocab_size as u32)).collect();
        for (k, v) in keys.iter().zip(&values) {
            out.tokens.extend([*k, *v]);
        }
        // Never a key of this row: whatever followed it by chance would be a second answer.
        let others = keys[pairs..].iter().copied().chain([0]).chain(half..vocab_size as u32);
        let others: Vec<u32> = others.collect();
        while out.tokens.len() < start + total {
            out.tokens.push(others[rng.random_range(0..others.len())]);
        }
        out.answer.resize(start + total, false);
        out.filler.resize(start + 2 * pairs, false);
        out.filler.resize(start + total, true);
        // Weighted choice without replacement (Efraimidis and Spirakis): the largest u^(1/weight).
        let places = (total - 2 * pairs) / 2;
        let mut gaps: Vec<(f64, usize)> = (0..places)
            .map(|g| {
                let weight = power * (g as f64 + 1.0).powf(power - 1.0);
                ((1.0 - rng.random::<f64>()).ln() / weight, g)
            })
            .collect();
        gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (i, (_, gap)) in gaps.iter().take(pairs).enumerate() {
            let at = start + 2 * (pairs + gap);
            out.tokens[at] = keys[i];
            out.tokens[at + 1] = values[i];
            out.answer[at + 1] = true;
            out.filler[at..at + 2].fill(false);
        }
    }
}

impl Task for Mqar {
    fn name(&self) -> &'static str {
        "mqar"
    }

    fn min_tokens(&self) -> usize {
        3
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn batch(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize) -> Batch {
        assert!(tokens >= self.min_tokens(), "{tokens} tokens are too few for a pair");
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
    use rand::SeedableRng;
    use std::collections::HashMap;

    #[test]
    fn every_key_is_asked_once_and_its_value_follows() {
        let task = Mqar::new(&MqarConfig { vocab_size: 64, pairs: 8, power: 0.1 }).unwrap();
        for tokens in [31, 64, 255] {
            let b = task.batch(&mut ChaCha8Rng::seed_from_u64(1), 16, tokens);
            assert_eq!(b.tokens.len(), 16 * (tokens + 1));
            for (row, answer) in b.tokens.chunks(tokens + 1).zip(b.answer.chunks(tokens + 1)) {
                let told: HashMap<u32, u32> = row[..16].chunks(2).map(|p| (p[0], p[1])).collect();
                assert_eq!(told.len(), 8);
                let asked: Vec<usize> = (0..=tokens).filter(|i| answer[*i]).collect();
                assert_eq!(asked.len(), 8);
                assert!(asked.iter().all(|i| *i >= 17 && told[&row[i - 1]] == row[*i]));
                assert!(row.iter().all(|t| *t < 64));
                assert_eq!(row.iter().filter(|t| told.contains_key(t)).count(), 16, "told, asked, never between");
            }
        }
    }

    #[test]
    fn a_short_row_has_the_pairs_that_fit() {
        let task = Mqar::new(&MqarConfig { vocab_size: 64, pairs: 8, power: 1.0 }).unwrap();
        for (tokens, pairs) in [(task.min_tokens(), 1), (10, 2), (15, 4), (30, 7)] {
            let b = task.batch(&mut ChaCha8Rng::seed_from_u64(2), 1, tokens);
            assert_eq!(b.answer.iter().filter(|a| **a).count(), pairs, "{tokens} tokens");
        }
    }

    #[test]
    fn a_small_exponent_asks_early() {
        let mean = |power| {
            let task = Mqar::new(&MqarConfig { vocab_size: 64, pairs: 4, power }).unwrap();
            let b = task.batch(&mut ChaCha8Rng::seed_from_u64(1), 200, 255);
            let at = b.answer.iter().enumerate().filter(|(_, a)| **a).map(|(i, _)| (i % 256) as f64);
            at.sum::<f64>() / 800.0
        };
        assert!(mean(0.01) < 0.6 * mean(1.0), "{} {}", mean(0.01), mean(1.0));
    }
}
