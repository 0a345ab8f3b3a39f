//! Documents of bAbI: the facts of a story between the sentences of other texts, and a question of one word, as
//! [`infini::eval::babi`] asks it.

use std::path::Path;

use infini::error::{Error, Result};
use infini::eval::babi::{INTRO, asked};
use infini::tasks::babi::{self, Question};
use infini::tasks::haystack::{hide, sentence_ends};
use infini::text::Tokenizer;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::config::{FactsConfig, PoolConfig};
use super::pool::{Answer, Document, Tail};

/// Draws of a document before its story is held to be too long for any.
const TRIES: usize = 10_000;

/// Stories and how they are told.
pub struct Facts<'a> {
    config: &'a PoolConfig,
    tokenizer: &'a Tokenizer,
    segment: usize,
    /// The questions of each story; every one is told what those before it were told, and more.
    stories: Vec<Vec<Question>>,
    /// The tokens of every word that answers a question.
    words: Vec<Vec<u32>>,
    ends: Vec<bool>,
    head: Vec<u32>,
}

impl<'a> Facts<'a> {
    /// The training part of `facts`, under the folder `data`.
    ///
    /// # Errors
    /// No folder, files that are missing or damaged.
    pub fn new(
        config: &'a PoolConfig,
        facts: &FactsConfig,
        segment: usize,
        tokenizer: &'a Tokenizer,
        data: Option<&Path>,
    ) -> Result<Self> {
        let data = data.ok_or_else(|| Error::Input("no facts: --data: name the folder that they are in".into()))?;
        let (mut stories, mut words) = (Vec::new(), Vec::new());
        for task in &facts.tasks {
            let questions = babi::read(&babi::file(&data.join(&facts.folder), task, "train")?)?;
            words.extend(questions.iter().map(|q| tokenizer.encode(&format!(" {}", q.answer))));
            stories.extend(questions.chunk_by(|a, b| b.facts.starts_with(&a.facts)).map(<[_]>::to_vec));
        }
        words.sort_unstable();
        words.dedup();
        let head = [tokenizer.encode(INTRO.trim_end()), tokenizer.encode("\n\n")].concat();
        Ok(Facts { config, tokenizer, segment, stories, words, ends: sentence_ends(tokenizer), head })
    }

    /// A document whose facts stand in the first `segments` segments, not run yet. `fill` gives so many tokens of
    /// other text.
    ///
    /// # Errors
    /// No story fits.
    pub fn document(
        &self,
        rng: &mut ChaCha8Rng,
        segments: usize,
        fill: &dyn Fn(&mut ChaCha8Rng, usize) -> Vec<u32>,
    ) -> Result<Document> {
        (0..TRIES).find_map(|_| self.try_document(rng, segments, fill)).ok_or_else(|| {
            let why = format!("no story fits {} tokens and an end of {}", segments * self.segment, self.config.tail);
            Error::Config { field: "data.facts".into(), why }
        })
    }

    fn try_document(
        &self,
        rng: &mut ChaCha8Rng,
        segments: usize,
        fill: &dyn Fn(&mut ChaCha8Rng, usize) -> Vec<u32>,
    ) -> Option<Document> {
        let c = self.config;
        let story = &self.stories[rng.random_range(0..self.stories.len())];
        let at = rng.random_range(0..story.len());
        let question = &story[at];
        let told = self.told(&question.facts);
        let length: usize = told.iter().map(Vec::len).sum();
        let room = (segments * self.segment).checked_sub(self.head.len() + length)?;
        let text = fill(rng, room);
        let mut ids = [self.head.clone(), hide(rng, &text, &told, &self.ends)].concat();
        let key = [self.marked(&ids), vec![false; self.segment]].concat();
        ids.extend(fill(rng, self.segment));
        let mut tails = Vec::with_capacity(c.tails);
        for _ in 0..c.tails {
            // the next question of the story, after the facts that are new
            let next = story.get(at + 1).filter(|_| rng.random_bool(c.near));
            let near = next.map_or(&[][..], |q| &q.facts[question.facts.len()..]);
            tails.push(self.tail(rng, next.unwrap_or(question), near, fill)?);
        }
        Some(Document { ids, key, names: Vec::new(), paper: false, x: Vec::new(), tails })
    }

    fn told(&self, facts: &[String]) -> Vec<Vec<u32>> {
        facts.iter().map(|f| self.tokenizer.encode(&format!(" {f}"))).collect()
    }

    /// Which tokens spell a word that answers.
    fn marked(&self, ids: &[u32]) -> Vec<bool> {
        let mut key = vec![false; ids.len()];
        for word in &self.words {
            for i in (0..ids.len()).filter(|i| ids[*i..].starts_with(word)) {
                key[i..i + word.len()].fill(true);
            }
        }
        key
    }

    /// A tail that asks `question` after it told the facts `near`.
    fn tail(
        &self,
        rng: &mut ChaCha8Rng,
        question: &Question,
        near: &[String],
        fill: &dyn Fn(&mut ChaCha8Rng, usize) -> Vec<u32>,
    ) -> Option<Tail> {
        let total = self.config.tail;
        let ask = self.tokenizer.encode(&asked(question));
        let reply = self.tokenizer.encode(&format!(" {}", question.answer));
        let told = self.told(near);
        let after = rng.random_range(0..5);
        let used = told.iter().map(Vec::len).sum::<usize>() + ask.len() + reply.len() + after;
        let text = fill(rng, total.checked_sub(used)?);
        let facts = hide(rng, &text, &told, &self.ends);
        let mut key = if near.is_empty() { Vec::new() } else { self.marked(&facts) };
        key.resize(total, false);
        let mut ids = [facts, ask, reply.clone()].concat();
        let end = ids.len();
        ids.extend(fill(rng, after));
        let here = near.iter().any(|f| f.contains(&question.answer));
        let mut answer = vec![None; total];
        answer[end - reply.len()..end].fill(Some(if here { Answer::Near } else { Answer::Told }));
        Some(Tail { ids, answer, key, residual: Vec::new(), hidden: Vec::new() })
    }
}

/// The class of every token of a vocabulary: those that answer in `documents` have one each, all others class 0.
pub fn classes(documents: &[Document], vocabulary: usize) -> Vec<usize> {
    let mut class = vec![0; vocabulary];
    let mut last = 0;
    for tail in documents.iter().flat_map(|d| &d.tails) {
        for (id, _) in tail.ids.iter().zip(&tail.answer).filter(|(_, a)| a.is_some()) {
            let class = &mut class[*id as usize];
            if *class == 0 {
                last += 1;
                *class = last;
            }
        }
    }
    class
}

#[cfg(test)]
mod tests {
    use infini::tasks::DataConfig;
    use rand::SeedableRng;

    use super::*;

    const STORY: &str = "1 Ann went to the attic.\n2 Bob moved to the cellar.\n3 Where is Ann? \tattic\t1\n\
                         4 Ann went to the cellar.\n5 Where is Ann?\tcellar\t4\n1 Cy moved to the attic.\n2 Where is Cy?\tattic\t1\n";

    #[test]
    fn documents_tell_what_they_ask_for() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("qa1_x_train.txt"), STORY).unwrap();
        let t = DataConfig::default().tokenizer(None, 512).unwrap();
        let pool = PoolConfig { tail: 160, tails: 3, near: 0.5, ..PoolConfig::default() };
        let facts = FactsConfig { folder: String::new(), tasks: vec!["qa1".into()] };
        assert!(Facts::new(&pool, &facts, 256, &t, None).is_err());
        let f = Facts::new(&pool, &facts, 256, &t, Some(home.path())).unwrap();
        assert_eq!(f.stories.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        let dot = t.encode(" It is.")[..].to_vec();
        let fill = |_: &mut ChaCha8Rng, n: usize| dot.iter().cycle().take(n).copied().collect::<Vec<_>>();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut kinds = [0, 0];
        let mut documents = Vec::new();
        for _ in 0..40 {
            let d = f.document(&mut rng, 2, &fill).unwrap();
            assert_eq!((d.ids.len(), d.key.len()), (768, 768));
            let text = t.decode(&d.ids);
            assert!(text.starts_with(INTRO.trim_end()), "{text}");
            let marked: Vec<u32> = d.ids.iter().zip(&d.key).filter(|(_, k)| **k).map(|(i, _)| *i).collect();
            let marked = t.decode(&marked);
            assert_eq!(marked.matches("attic").count(), text.matches("attic").count(), "{marked}");
            assert_eq!(
                marked.split_whitespace().count(),
                text.matches("attic").count() + text.matches("cellar").count()
            );
            for tail in &d.tails {
                assert_eq!((tail.ids.len(), tail.answer.len()), (160, 160));
                let said: Vec<u32> =
                    tail.ids.iter().zip(&tail.answer).filter(|(_, a)| a.is_some()).map(|(i, _)| *i).collect();
                let (said, end) = (t.decode(&said), t.decode(&tail.ids));
                assert!(end.contains(&format!("\nAnswer:{said}")), "{end}");
                let near = tail.answer.contains(&Some(Answer::Near));
                kinds[usize::from(near)] += 1;
                assert!(if near { end.contains("Ann went to the cellar.") } else { text.contains(said.trim()) });
            }
            documents.push(d);
        }
        assert!(kinds[0] > 40 && kinds[1] > 5, "{kinds:?}");
        let classes = classes(&documents, t.vocab_size());
        let most = *classes.iter().max().unwrap();
        assert!(most >= 2 && (1..=most).all(|c| classes.iter().filter(|x| **x == c).count() == 1));
        assert!(f.document(&mut rng, 0, &fill).is_err());
    }
}
