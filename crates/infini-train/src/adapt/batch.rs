//! What a step is about: whose memories are put together, what is written and what is asked.

use std::collections::BTreeMap;

use infini::adapter::AdapterConfig;
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::StagesConfig;
use super::graph::Around;
use super::pool::{Answer, Document, Tail, Tells};

/// Share of closed tokens that take part in the third stage, so that their gates have a gradient.
const CLOSED: f64 = 0.03;
/// Tokens of a document that answer nothing and are held to the base.
const OTHERS: usize = 8;
/// First tokens of a tail, whose window is missing: not held to the base.
const UNHELD: usize = 16;

/// Documents of a step, each with one of its tails.
pub struct Batch<'a> {
    pub docs: Vec<(&'a Document, &'a Tail)>,
    /// (document of the step, token) of each written one; the tokens of a tail follow those of its document.
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
    /// `open(i, j)` says whether a gate of token `j` of document `i` of the step is open; a token is written when `delay`
    /// more are known. With `forgets` a key that is told again is no longer there: what overwriting comes to if no address
    /// is shared.
    pub fn new(
        t: &StagesConfig,
        stage: usize,
        docs: Vec<(&'a Document, &'a Tail)>,
        (delay, forgets): (usize, bool),
        open: &dyn Fn(usize, usize) -> bool,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let mut keys = Vec::new();
        for (i, (doc, tail)) in docs.iter().enumerate() {
            for (j, key) in doc.key.iter().chain(&tail.key).enumerate().skip(1) {
                let noise = if stage == 2 { CLOSED } else { t.noise };
                if key.anything() || (stage == 2 && open(i, j)) || (stage > 0 && rng.random_bool(noise)) {
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
            keys,
            queries: Vec::new(),
            answers: Vec::new(),
            others: Vec::new(),
            visible: Vec::new(),
        };
        batch.ask(stage, delay, rng);
        let told = |(k, j): (usize, usize)| {
            let (doc, tail) = batch.docs[k];
            doc.key.iter().chain(&tail.key).nth(j).copied().unwrap_or_default()
        };
        let tells: Vec<Tells> = batch.keys.iter().map(|key| told(*key)).collect();
        let mut visible = Vec::with_capacity(batch.queries.len() * batch.keys.len());
        for (q, t) in &batch.queries {
            let from = visible.len();
            visible.extend(batch.keys.iter().zip(&tells).map(|((k, j), tells)| {
                let n = batch.docs[*k].0.ids.len();
                match tells.anything() {
                    // of a tail: as it streams
                    _ if *j >= n => f32::from(u8::from(k == q && j + delay <= n + t)),
                    true => f32::from(u8::from(joined[*q][*k])),
                    false if joined[*q][*k] || filler[*q][*k] => weight[*q],
                    false => 0.0,
                }
            }));
            let row = &mut visible[from..];
            for i in (0..row.len()).filter(|_| forgets) {
                let again = |l: usize| row[l] > 0.0 && batch.keys[l].0 == batch.keys[i].0 && tells[i].again(tells[l]);
                if (i + 1..row.len()).any(again) {
                    row[i] = 0.0;
                }
            }
        }
        batch.visible = visible;
        batch
    }

    /// Queries in a row that find the same in their memory, in their order.
    pub fn alike(&self) -> Vec<std::ops::Range<usize>> {
        let m = self.keys.len();
        let row = |q: usize| &self.visible[q * m..(q + 1) * m];
        let mut alike: Vec<std::ops::Range<usize>> = vec![];
        for q in 0..self.queries.len() {
            match alike.last_mut().filter(|r| row(r.start) == row(q)) {
                Some(r) => r.end = q + 1,
                None => alike.push(q..q + 1),
            }
        }
        alike
    }

    /// Draws the queries: in the last stage all tokens of all tails.
    fn ask(&mut self, stage: usize, delay: usize, rng: &mut ChaCha8Rng) {
        for (i, (_, tail)) in self.docs.iter().enumerate() {
            // from here on the memory alone knows what the tail tells, too
            let known = tail.key.iter().rposition(|k| k.anything()).map_or(0, |j| j + delay);
            let answers = |j: usize| tail.answer.get(j + 1).copied().flatten();
            let mut others: Vec<usize> = (UNHELD..tail.ids.len() - 1).filter(|j| answers(*j).is_none()).collect();
            others.shuffle(rng);
            others.truncate(OTHERS);
            for j in 0..tail.ids.len() {
                let wanted = match answers(j) {
                    Some(a) => stage > 0 || a != Answer::Near || j >= known,
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

/// Token `j` of a document with a tail behind it.
fn token(doc: &Document, tail: &Tail, j: usize) -> Option<u32> {
    doc.ids.iter().chain(&tail.ids).nth(j).copied()
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
                let (doc, tail) = batch.docs[*i];
                around(&|j| token(doc, tail, j), j + c.after, c.before + c.after)
            })
            .collect();
        let queries = (batch.queries.iter())
            .flat_map(|(i, j)| {
                let (doc, tail) = batch.docs[*i];
                around(&|j| token(doc, tail, j), doc.ids.len() + j + 1, c.before)
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

    fn tells(n: usize, key: std::ops::Range<usize>) -> Vec<Tells> {
        (0..n).map(|j| if key.contains(&j) { Tells::key(1, 0) } else { Tells::default() }).collect()
    }

    fn document(name: &str) -> Document {
        let (n, u) = (200, 40);
        let tail = Tail {
            ids: vec![3; u],
            answer: (0..u).map(|j| (j > 35).then_some(Answer::Told)).collect(),
            key: tells(u, 4..7),
            residual: Vec::new(),
            hidden: Vec::new(),
        };
        Document {
            ids: vec![7; n],
            key: tells(n, 50..55),
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
        let open = |i: usize, j: usize| (i, j) == (0, 120);
        let mut heaviest = 0.0f32;
        for (stage, seed) in [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let with: Vec<_> = docs.iter().map(|d| (d, &d.tails[0])).collect();
            let b = Batch::new(&t, stage, with, (12, false), &open, &mut rng);
            assert!(stage == 1 || b.keys.contains(&(0, 120)), "an open gate's token is not written");
            let m = b.keys.len();
            for (q, row) in b.visible.chunks(m).enumerate() {
                let weights = b.keys.iter().zip(row);
                for ((k, j), w) in weights.filter(|((k, _), _)| *k == b.queries[q].0) {
                    let Some(key) = docs[*k].key.get(*j).map(|k| k.anything()) else {
                        // told in the tail: written twelve tokens later
                        assert_eq!(*w == 1.0, j - 200 + 12 <= b.queries[q].1, "{j} {}", b.queries[q].1);
                        continue;
                    };
                    assert!(if key || stage == 1 { *w == 1.0 } else { (1.0..=100.0).contains(w) }, "{key} {w}");
                    heaviest = heaviest.max(*w);
                }
            }
        }
        assert!(heaviest > 10.0, "{heaviest}");
    }

    #[test]
    fn what_is_told_again_is_forgotten_once_it_is_written() {
        let mut docs = ["one", "two"].map(document);
        docs[0].key[80..83].fill(Tells::key(1, 1));
        docs[0].tails[0].key[10..12].fill(Tells::key(1, 2));
        for forgets in [false, true] {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            let with: Vec<_> = docs.iter().map(|d| (d, &d.tails[0])).collect();
            let t = StagesConfig { noise: 0.0, ..StagesConfig::default() };
            let b = Batch::new(&t, 1, with, (12, forgets), &|_, _| false, &mut rng);
            let m = b.keys.len();
            let mut seen = [0, 0];
            for ((i, at), row) in b.queries.iter().zip(b.visible.chunks(m)).filter(|((i, _), _)| *i == 0) {
                let sees = |j: usize| row[b.keys.iter().position(|k| *k == (*i, j)).unwrap()] > 0.0;
                let tail = *at >= 10 + 12;
                seen[usize::from(tail)] += 1;
                assert_eq!(sees(52), !forgets, "the first");
                assert_eq!(sees(81), !forgets || !tail, "the second");
                assert_eq!(sees(210), tail, "the third");
            }
            assert!(seen[1] > 0, "{seen:?}");
            assert!(b.alike().iter().map(|r| r.len()).sum::<usize>() == b.queries.len());
        }
    }
}
