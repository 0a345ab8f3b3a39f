//! Can a model copy? A passage, a gap of other text, and the same passage again: a model that has learned to look up what
//! followed predicts the second one, whatever it says. Without that no memory of the past can pay.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::perplexity::{Document, stream};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::state::Reads;

/// Tokens of a passage.
pub const PASSAGE: usize = 32;
/// Tokens of other text before the first passage.
const LEAD: usize = 64;
/// Tokens of a passage that are not scored: nothing says yet that it begins.
const SKIP: usize = 4;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens between the two passages.
    pub gaps: Vec<usize>,
    /// Passages per gap.
    pub samples: usize,
    /// Rows that are read in lockstep.
    pub batch: usize,
    /// What reads of the memory give.
    pub reads: Reads,
    /// Draws the passages.
    pub seed: u64,
}

/// One gap.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Tokens between the passages.
    pub gap: usize,
    /// Passages.
    pub n: usize,
    /// Mean nats per token of the first passage.
    pub first: f64,
    /// The same of the second.
    pub second: f64,
}

/// Evaluates; passages and gaps come from different places of the same document.
///
/// # Errors
/// Documents that are all too short for the longest gap, or full attention that has no room for it.
pub fn run(model: &Model, documents: &[Document], o: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<Row>> {
    let longest = o.gaps.iter().max().copied().unwrap_or(0);
    let least = longest + 2 * PASSAGE + LEAD;
    let long: Vec<&Document> = documents.iter().filter(|d| d.tokens.len() >= least).collect();
    if long.is_empty() || o.gaps.is_empty() || o.samples == 0 || o.batch == 0 {
        return Err(Error::Input(format!("nothing to evaluate: no document of {least} tokens, no gap or no sample")));
    }
    model.check_room(&model.state(1), least)?;
    let total = (o.gaps.len() * o.samples) as u64;
    let mut done = 0;
    let rows = o.gaps.iter().map(|gap| {
        let mut rng = ChaCha8Rng::seed_from_u64(o.seed);
        let samples: Vec<Vec<u32>> =
            (0..o.samples).map(|i| sample(&mut rng, &long[i % long.len()].tokens, *gap)).collect();
        let (mut first, mut second) = (0.0, 0.0);
        for batch in samples.chunks(o.batch) {
            let rows: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            for losses in stream(model, &rows, o.reads, &mut |_| {}) {
                let mean = |at: usize| {
                    let part = &losses[at + SKIP..at + PASSAGE];
                    part.iter().map(|x| f64::from(*x)).sum::<f64>() / part.len() as f64
                };
                first += mean(LEAD);
                second += mean(LEAD + PASSAGE + gap);
            }
            done += batch.len() as u64;
            progress(done, total);
        }
        let n = o.samples as f64;
        Row { gap: *gap, n: o.samples, first: first / n, second: second / n }
    });
    Ok(rows.collect())
}

/// Other text, a passage, a gap, the passage again.
fn sample(rng: &mut ChaCha8Rng, tokens: &[u32], gap: usize) -> Vec<u32> {
    let mut piece = |n: usize| {
        let at = rng.random_range(0..=tokens.len() - n);
        tokens[at..at + n].to_vec()
    };
    let (lead, passage, gap) = (piece(LEAD), piece(PASSAGE), piece(gap));
    [lead, passage.clone(), gap, passage].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InfiniConfig, ModelConfig, Weights};

    #[test]
    fn a_model_that_knows_nothing_copies_nothing() {
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "infini": InfiniConfig { segment_len: 16, ..InfiniConfig::default() },
        }))
        .unwrap();
        let model = Model::new(config.clone(), Weights::init(&config, 0)).unwrap();
        let tokens: Vec<u32> = (0..500u32).map(|i| i * i % 64).collect();
        let documents = [Document { name: "d".into(), tokens }];
        let o = Options { gaps: vec![0, 100], samples: 10, batch: 4, reads: Reads::Own, seed: 0 };
        let rows = run(&model, &documents, &o, &mut |_, _| {}).unwrap();
        assert_eq!(rows.iter().map(|r| (r.gap, r.n)).collect::<Vec<_>>(), [(0, 10), (100, 10)]);
        // the same passages for every gap, and no way to know them
        assert!((rows[0].first - rows[1].first).abs() < 0.5 && rows[0].second > 2.0, "{rows:?}");
        assert_eq!(rows, run(&model, &documents, &o, &mut |_, _| {}).unwrap());
        let long = Options { gaps: vec![1000], ..o };
        assert!(run(&model, &documents, &long, &mut |_, _| {}).unwrap_err().to_string().contains("1128"));
    }

    #[test]
    fn the_passage_stands_twice() {
        let tokens: Vec<u32> = (0..500).collect();
        let s = sample(&mut ChaCha8Rng::seed_from_u64(1), &tokens, 50);
        assert_eq!(s.len(), LEAD + 2 * PASSAGE + 50);
        assert_eq!(s[LEAD..LEAD + PASSAGE], s[LEAD + PASSAGE + 50..]);
    }
}
