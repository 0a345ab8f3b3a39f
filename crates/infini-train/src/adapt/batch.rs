//! What a step is about: whose memories are put together, what is written and what is asked.

use std::collections::BTreeMap;
use std::ops::Range;

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

/// The memory that a document's queries read.
#[derive(Debug)]
pub struct Held {
    /// The document's queries.
    pub queries: Range<usize>,
    /// What is written, in that order: what other documents left, then its own.
    pub keys: Vec<usize>,
    /// Whether each of `keys` is written when a query reads, `[queries, keys]`. A memory that is read early is the beginning of
    /// one that is read late.
    pub visible: Vec<f32>,
}

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
    /// What the documents' queries find.
    pub memories: Vec<Held>,
    /// Documents in a memory, on average.
    pub together: f64,
}

impl<'a> Batch<'a> {
    /// `open(i, j)` says whether a gate of token `j` of document `i` of the step is open; a token is written when `delay`
    /// more are known.
    pub fn new(
        t: &StagesConfig,
        stage: usize,
        docs: Vec<(&'a Document, &'a Tail)>,
        delay: usize,
        open: &dyn Fn(usize, usize) -> bool,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let mut keys = Vec::new();
        let told = |(i, j): (usize, usize)| -> bool {
            let (doc, tail): (&Document, &Tail) = docs[i];
            *doc.key.get(j).unwrap_or_else(|| &tail.key[j - doc.key.len()])
        };
        for (i, (doc, tail)) in docs.iter().enumerate() {
            for j in 1..doc.key.len() + tail.key.len() {
                let noise = if stage == 2 { CLOSED } else { t.noise };
                if told((i, j)) || (stage == 2 && open(i, j)) || (stage > 0 && rng.random_bool(noise)) {
                    keys.push((i, j));
                }
            }
        }
        let (joined, filler) = together(&docs, t.together * rng.random::<f64>(), rng);
        let is_key: Vec<bool> = keys.iter().map(|key| told(*key)).collect();
        let mut batch = Batch {
            together: joined.iter().flatten().filter(|j| **j).count() as f64 / docs.len() as f64,
            docs,
            keys,
            queries: Vec::new(),
            answers: Vec::new(),
            others: Vec::new(),
            memories: Vec::new(),
        };
        for document in 0..batch.docs.len() {
            let from = batch.queries.len();
            batch.ask(document, stage, delay, rng);
            let queries = from..batch.queries.len();
            let n = |i: usize| batch.docs[i].0.ids.len();
            let held = |k: &usize| {
                let (i, j) = batch.keys[*k];
                let theirs = joined[document][i] || (filler[document][i] && !is_key[*k]);
                i == document || (theirs && j < n(i))
            };
            let (own, others): (Vec<usize>, Vec<usize>) =
                (0..batch.keys.len()).filter(held).partition(|k| batch.keys[*k].0 == document);
            let keys = [others, own].concat();
            // of a tail: as it streams
            let written = |k: usize, t: usize| {
                let (i, j) = batch.keys[k];
                i != document || j < n(i) || j + delay <= n(i) + t
            };
            let visible = (batch.queries[queries.clone()].iter())
                .flat_map(|(_, t)| keys.iter().map(|k| f32::from(u8::from(written(*k, *t)))))
                .collect();
            batch.memories.push(Held { queries, keys, visible });
        }
        batch
    }

    /// Draws the queries of document `i`: in the last stage all tokens of its tail.
    fn ask(&mut self, i: usize, stage: usize, delay: usize, rng: &mut ChaCha8Rng) {
        let tail = self.docs[i].1;
        // from here on the memory alone knows what the tail tells, too
        let known = tail.key.iter().rposition(|k| *k).map_or(0, |j| j + delay);
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

    fn tells(n: usize, key: Range<usize>) -> Vec<bool> {
        (0..n).map(|j| key.contains(&j)).collect()
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
    fn a_memory_holds_what_others_left_and_then_its_own_as_it_streams() {
        let mut docs = ["one", "two", "three"].map(document);
        docs[1].tails[0].key = tells(40, 9..12);
        let t = StagesConfig { together: 1.0, noise: 0.1, ..StagesConfig::default() };
        let open = |i: usize, j: usize| (i, j) == (0, 120);
        for (stage, seed) in [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let with: Vec<_> = docs.iter().map(|d| (d, &d.tails[0])).collect();
            let b = Batch::new(&t, stage, with, 12, &open, &mut rng);
            assert!(stage != 2 || b.keys.contains(&(0, 120)), "an open gate's token is written");
            assert_eq!(b.memories.len(), 3);
            let mut asked = 0;
            for (document, held) in b.memories.iter().enumerate() {
                assert_eq!(held.queries.start, asked);
                asked = held.queries.end;
                let own = held.keys.iter().position(|k| b.keys[*k].0 == document).unwrap();
                assert!(held.keys[..own].iter().all(|k| b.keys[*k].0 != document && b.keys[*k].1 < 200));
                let own = &held.keys[own..];
                assert!(own.is_sorted() && own.iter().all(|k| b.keys[*k].0 == document), "{own:?}");
                // every key of its own, the tail's too, but no token of another's tail
                assert!(b.keys.iter().enumerate().all(|(k, key)| key.0 != document || own.contains(&k)));
                let m = held.keys.len();
                for (q, row) in held.queries.clone().zip(held.visible.chunks(m)) {
                    assert_eq!(b.queries[q].0, document);
                    for (k, seen) in held.keys.iter().zip(row) {
                        let (i, j) = b.keys[*k];
                        let late = i == document && j >= 200 && j - 200 + 12 > b.queries[q].1;
                        assert_eq!(*seen == 0.0, late, "document {i}, token {j}");
                    }
                }
            }
            assert_eq!(asked, b.queries.len());
        }
    }
}
