//! Multi-query associative recall: are the values of all keys predicted?

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Count;
use crate::error::{Error, Result};
use crate::generate::argmax;
use crate::model::{Model, Want};
use crate::tasks::mqar::{Mqar, MqarConfig};
use crate::tasks::{Batch, Task};

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct Options {
    /// The task, whose `pairs` are replaced by each of [`Options::pairs`].
    pub task: MqarConfig,
    /// Tokens of the inputs.
    pub lengths: Vec<usize>,
    /// Numbers of pairs.
    pub pairs: Vec<usize>,
    /// Inputs per length and number of pairs.
    pub samples: usize,
    /// Inputs that are read in lockstep.
    pub batch: usize,
    /// Memory reads give zero.
    pub knock_out: bool,
    /// Seed of the inputs.
    pub seed: u64,
}

/// One length and number of pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Tokens.
    pub length: usize,
    /// Pairs.
    pub pairs: usize,
    /// Questions.
    pub n: u64,
    /// Fraction whose value was the most likely token.
    pub exact: f64,
    /// 95 % interval of `exact` (Wilson).
    pub interval: [f64; 2],
    /// Questions whose pair has left the window, so that only the memory can answer.
    pub beyond_n: u64,
    /// Fraction of those that were answered.
    pub beyond: f64,
    /// 95 % interval of `beyond` (Wilson).
    pub beyond_interval: [f64; 2],
    /// Whether memory reads were zero.
    pub knock_out: bool,
}

/// Evaluates. `progress` is told the inputs done and to be done.
///
/// # Errors
/// A vocabulary beyond the model's, inputs too short for their pairs or too long for full attention, nothing to evaluate.
pub fn run(model: &Model, o: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<Row>> {
    if o.lengths.is_empty() || o.pairs.is_empty() || o.samples == 0 || o.batch == 0 {
        let why = "nothing to evaluate: give at least one length, one number of pairs, one sample and a batch of 1";
        return Err(Error::Input(why.into()));
    }
    let most = model.config().vocab_size;
    if o.task.vocab_size > most {
        let why = format!("vocabulary {}: the model knows {most} tokens: choose that or fewer", o.task.vocab_size);
        return Err(Error::Input(why));
    }
    model.check_room(&model.state(1), o.lengths.iter().copied().max().unwrap_or(0))?;
    let mut tasks = Vec::new();
    for length in &o.lengths {
        for pairs in &o.pairs {
            let task = Mqar::new(&MqarConfig { pairs: *pairs, ..o.task.clone() })?;
            let least = 4 * pairs - 1;
            if *length < least {
                return Err(Error::Input(format!("length {length}: {pairs} pairs need {least} tokens or more")));
            }
            tasks.push((*length, *pairs, task));
        }
    }
    let total = (tasks.len() * o.samples) as u64;
    let mut done = 0;
    progress(0, total);
    let rows = tasks.into_iter().enumerate().map(|(i, (length, pairs, task))| {
        let (mut all, mut beyond) = (Count::default(), Count::default());
        let mut rng = ChaCha8Rng::seed_from_u64(o.seed);
        rng.set_stream(i as u64);
        for first in (0..o.samples).step_by(o.batch) {
            let rows = o.batch.min(o.samples - first);
            let batch = task.batch(&mut rng, rows, length);
            score(model, &batch, rows, length, o.knock_out, &mut all, &mut beyond);
            done += rows as u64;
            progress(done, total);
        }
        Row {
            length,
            pairs,
            n: all.n,
            exact: all.rate(),
            interval: all.interval(),
            beyond_n: beyond.n,
            beyond: beyond.rate(),
            beyond_interval: beyond.interval(),
            knock_out: o.knock_out,
        }
    });
    Ok(rows.collect())
}

/// Reads a batch of `rows` rows of `t` + 1 tokens in pieces and counts its answers: `all`, and those whose pair was told
/// `beyond` the window of the question.
fn score(model: &Model, batch: &Batch, rows: usize, t: usize, knock_out: bool, all: &mut Count, beyond: &mut Count) {
    let v = model.config().vocab_size;
    let (segment, span) = (model.config().infini.segment_len, model.config().infini.span);
    let mut state = model.state(rows);
    state.set_knock_out(knock_out);
    let piece = model.config().infini.segment_len.min(t);
    for at in (0..t).step_by(piece) {
        let n = piece.min(t - at);
        let tokens: Vec<u32> = (0..rows).flat_map(|b| &batch.tokens[b * (t + 1) + at..][..n]).copied().collect();
        let logits = model.forward(&mut state, &tokens, Want::All);
        for b in 0..rows {
            for j in 0..n {
                let target = b * (t + 1) + at + j + 1;
                if batch.answer[target] {
                    let right = argmax(&logits[(b * n + j) * v..][..v]) == batch.tokens[target];
                    all.add(right);
                    let row = &batch.tokens[b * (t + 1)..];
                    let told = row.iter().position(|t| *t == batch.tokens[target - 1]).expect("a key is told first");
                    if (told + 1) / segment + span <= (at + j) / segment {
                        beyond.add(right);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InfiniConfig, ModelConfig, Weights};

    fn model() -> Model {
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "infini": InfiniConfig { segment_len: 16, ..InfiniConfig::default() },
        }))
        .unwrap();
        let weights = Weights::init(&config, 0);
        Model::new(config, weights).unwrap()
    }

    #[test]
    fn an_untrained_model_guesses() {
        let o = Options {
            task: MqarConfig { vocab_size: 32, ..MqarConfig::default() },
            lengths: vec![64, 100],
            pairs: vec![4, 8],
            samples: 20,
            batch: 8,
            knock_out: false,
            seed: 0,
        };
        let mut last = (0, 0);
        let rows = run(&model(), &o, &mut |d, t| last = (d, t)).unwrap();
        assert_eq!(last, (80, 80));
        let shape: Vec<_> = rows.iter().map(|r| (r.length, r.pairs, r.n)).collect();
        assert_eq!(shape, [(64, 4, 80), (64, 8, 160), (100, 4, 80), (100, 8, 160)]);
        assert!(rows.iter().all(|r| r.exact < 0.3 && r.interval[0] <= r.exact), "{rows:?}");
        assert_eq!(rows, run(&model(), &o, &mut |_, _| {}).unwrap());
        let refused = |o: Options| run(&model(), &o, &mut |_, _| {}).unwrap_err().to_string();
        assert!(refused(Options { lengths: vec![10], ..o.clone() }).contains("or more"));
        let task = MqarConfig { vocab_size: 64, ..MqarConfig::default() };
        assert!(refused(Options { task, ..o }).contains("knows 32"));
    }

    #[test]
    fn pieces_score_as_the_whole() {
        let model = model();
        let task = Mqar::new(&MqarConfig { vocab_size: 32, pairs: 4, power: 0.5 }).unwrap();
        let batch = task.batch(&mut ChaCha8Rng::seed_from_u64(3), 3, 50);
        let (mut count, mut beyond) = (Count::default(), Count::default());
        score(&model, &batch, 3, 50, false, &mut count, &mut beyond);
        let tokens: Vec<u32> = batch.tokens.chunks(51).flat_map(|r| &r[..50]).copied().collect();
        let logits = model.forward(&mut model.state(3), &tokens, Want::All);
        let (mut whole, mut far) = (Count::default(), 0);
        for (b, row) in batch.tokens.chunks(51).enumerate() {
            for j in (1..51).filter(|j| batch.answer[b * 51 + j]) {
                whole.add(argmax(&logits[(b * 50 + j - 1) * 32..][..32]) == row[j]);
                // all four pairs stand in the first segment, which span 1 leaves behind at token 16
                far += u64::from(j > 16);
            }
        }
        assert_eq!((count, count.n), (whole, 12));
        assert!(
            beyond.n == far && far > 0 && far < 12,
            "{} of 12 asked beyond the window, {far} counted by hand",
            beyond.n
        );
    }
}
