//! What a step is about: whose memories are put together, what is written and what is asked.

use std::collections::BTreeMap;

use infini::adapter::AdapterConfig;
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::StagesConfig;
use super::graph::Around;
use super::pool::{Answer, Document, Tail};

/// Share of closed tokens that take part in the third stage, so that their gates have a gradient.
const CLOSED: f64 = 0.03;
/// Tokens of a document that answer nothing and are held to the base.
const OTHERS: usize = 8;
/// First tokens of a tail, whose window is missing: not held to the base.
const UNHELD: usize = 16;

/// Documents of a step, each with one of its tails.
pub struct Batch<'a> {
    pub docs: Vec<(&'a Document, &'a Tail)>,
    /// Where each document's tokens begin among those of all.
    pub first: Vec<usize>,
    /// (document of the step, token) of each written one.
    pub keys: Vec<(usize, usize)>,
    /// (document of the step, token of the tail) of each query.
    pub queries: Vec<(usize, usize)>,
    /// Queries whose next token answers, and those that are held to the base.
    pub answers: Vec<usize>,
    pub others: Vec<usize>,
    /// How often a query's memory holds a written token, `[n, m]`.
    pub visible: Vec<f32>,
    /// Documents in a memory, on average.
    pub together: f64,
}

impl<'a> Batch<'a> {
    /// `open` says for each token of each document whether one of its gates is open.
    pub fn new(
        t: &StagesConfig,
        stage: usize,
        docs: Vec<(&'a Document, &'a Tail)>,
        open: &[bool],
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let first: Vec<usize> = docs
            .iter()
            .scan(0, |at, (doc, _)| {
                *at += doc.ids.len();
                Some(*at - doc.ids.len())
            })
            .collect();
        let mut keys = Vec::new();
        for (i, (doc, _)) in docs.iter().enumerate() {
            for (j, key) in doc.key.iter().enumerate().skip(1) {
                let noise = if stage == 2 { CLOSED } else { t.noise };
                if *key || (stage == 2 && open[first[i] + j]) || (stage > 0 && rng.random_bool(noise)) {
                    keys.push((i, j));
                }
            }
        }
        let (joined, filler) = together(&docs, t.together * rng.random::<f64>(), rng);
        let amplify = if stage == 2 { t.amplify } else { 1.0 };
        let weight: Vec<f32> = docs.iter().map(|_| amplify.powf(rng.random::<f64>()) as f32).collect();
        let mut batch = Batch {
            together: joined.iter().flatten().filter(|j| **j).count() as f64 / docs.len() as f64,
            docs,
            first,
            keys,
            queries: Vec::new(),
            answers: Vec::new(),
            others: Vec::new(),
            visible: Vec::new(),
        };
        batch.ask(stage, rng);
        batch.visible = (batch.queries.iter())
            .flat_map(|(q, _)| {
                let (joined, filler, weight, batch) = (&joined[*q], &filler[*q], weight[*q], &batch);
                batch.keys.iter().map(move |(k, j)| match batch.docs[*k].0.key[*j] {
                    true => f32::from(u8::from(joined[*k])),
                    false if joined[*k] || filler[*k] => weight,
                    false => 0.0,
                })
            })
            .collect();
        batch
    }

    /// Draws the queries: in the last stage all tokens of all tails.
    fn ask(&mut self, stage: usize, rng: &mut ChaCha8Rng) {
        for (i, (_, tail)) in self.docs.iter().enumerate() {
            let answers = |j: usize| tail.answer.get(j + 1).copied().flatten();
            let mut others: Vec<usize> = (UNHELD..tail.ids.len() - 1).filter(|j| answers(*j).is_none()).collect();
            others.shuffle(rng);
            others.truncate(OTHERS);
            for j in 0..tail.ids.len() {
                let wanted = match answers(j) {
                    // the memory alone knows nothing of the window
                    Some(a) => stage > 0 || a != Answer::Near,
                    None => stage == 2 || (stage == 1 && others.contains(&j)),
                };
                if !wanted {
                    continue;
                }
                if answers(j).is_some() {
                    self.answers.push(self.queries.len());
                } else if others.contains(&j) {
                    self.others.push(self.queries.len());
                }
                self.queries.push((i, j));
            }
        }
    }

    /// What follows a query.
    ///
    /// # Panics
    /// If it is the last of its tail.
    pub fn target(&self, query: usize) -> u32 {
        let (i, j) = self.queries[query];
        self.docs[i].1.ids[j + 1]
    }

    /// Whether a query's next token answers, and what.
    pub fn answer(&self, query: usize) -> Option<Answer> {
        let (i, j) = self.queries[query];
        self.docs[i].1.answer.get(j + 1).copied().flatten()
    }
}

/// Whose keys and whose filler a document's memory also holds: those of documents with other names, each with
/// probability `p`; filler with one half.
pub fn together(docs: &[(&Document, &Tail)], p: f64, rng: &mut ChaCha8Rng) -> (Vec<Vec<bool>>, Vec<Vec<bool>>) {
    let n = docs.len();
    let (mut joined, mut filler) = (vec![vec![false; n]; n], vec![vec![false; n]; n]);
    for i in 0..n {
        joined[i][i] = true;
        let mut names: Vec<&String> = docs[i].0.names.iter().collect();
        let mut others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
        others.shuffle(rng);
        for j in others {
            filler[i][j] = rng.random_bool(0.5);
            let theirs = &docs[j].0.names;
            let apart = !theirs.is_empty() && !theirs.iter().any(|x| names.contains(&x));
            if !names.is_empty() && apart && rng.random_bool(p) {
                joined[i][j] = true;
                names.extend(theirs);
            }
        }
    }
    (joined, filler)
}

/// The words around keys and queries, as places in one vocabulary.
pub struct Words {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Of every key, `before + after` places.
    pub keys: Around,
    /// Of every query, `before` places, its own token the last.
    pub queries: Around,
}

impl Words {
    /// Of a step.
    pub fn new(batch: &Batch, c: &AdapterConfig) -> Self {
        let mut vocabulary: BTreeMap<u32, usize> = BTreeMap::new();
        let mut around = |ids: &dyn Fn(usize) -> Option<u32>, end: usize, n: usize| -> Around {
            let mut place = |id: u32| {
                let next = vocabulary.len();
                *vocabulary.entry(id).or_insert(next)
            };
            (end as isize - n as isize..end as isize)
                .map(|j| usize::try_from(j).ok().and_then(ids).map(&mut place))
                .collect()
        };
        let keys = (batch.keys.iter())
            .flat_map(|(i, j)| {
                let ids = &batch.docs[*i].0.ids;
                around(&|j| ids.get(j).copied(), j + c.after, c.before + c.after)
            })
            .collect();
        let queries = (batch.queries.iter())
            .flat_map(|(i, j)| {
                let (doc, tail) = batch.docs[*i];
                let n = doc.ids.len();
                around(&|j| if j < n { Some(doc.ids[j]) } else { Some(tail.ids[j - n]) }, n + j + 1, c.before)
            })
            .collect();
        let mut ids = vec![0; vocabulary.len()];
        vocabulary.iter().for_each(|(id, at)| ids[*at] = *id);
        Words { ids, keys, queries }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn document(name: &str) -> Document {
        let (n, u) = (200, 40);
        let tail = Tail {
            ids: vec![3; u],
            answer: (0..u).map(|j| (j > 35).then_some(Answer::Told)).collect(),
            residual: Vec::new(),
            hidden: Vec::new(),
        };
        Document {
            ids: vec![7; n],
            key: (0..n).map(|j| (50..55).contains(&j)).collect(),
            names: vec![name.into()],
            paper: true,
            x: Vec::new(),
            tails: vec![tail],
        }
    }

    #[test]
    fn filler_weighs_as_in_a_longer_text_in_the_third_stage_and_keys_never_do() {
        let docs = ["one", "two", "three"].map(document);
        let t = StagesConfig { amplify: 100.0, together: 1.0, noise: 0.1, ..StagesConfig::default() };
        let mut open = vec![false; 600];
        open[120] = true;
        let mut heaviest = 0.0f32;
        for (stage, seed) in [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let with: Vec<_> = docs.iter().map(|d| (d, &d.tails[0])).collect();
            let b = Batch::new(&t, stage, with, &open, &mut rng);
            assert!(stage == 1 || b.keys.contains(&(0, 120)), "an open gate's token is not written");
            let m = b.keys.len();
            for (q, row) in b.visible.chunks(m).enumerate() {
                let weights = b.keys.iter().zip(row);
                for ((k, j), w) in weights.filter(|((k, _), _)| *k == b.queries[q].0) {
                    let key = docs[*k].key[*j];
                    assert!(if key || stage == 1 { *w == 1.0 } else { (1.0..=100.0).contains(w) }, "{key} {w}");
                    heaviest = heaviest.max(*w);
                }
            }
        }
        assert!(heaviest > 10.0, "{heaviest}");
    }
}
