//! Documents and what the frozen layers below the memory make of them, on disk in shards.
//!
//! Shard i holds [`SHARD`] documents drawn from stream i of the seed, and is written once, whole: an interrupted pool
//! goes on with the next shard.

use std::ops::Range;
use std::path::{Path, PathBuf};

use infini::error::{Error, Result};
use infini::folder::Loaded;
use infini::tasks::filler::{Filler, PROSE_TOKENS, Source};
use infini::tasks::scenario::{Plan, Scenario, Told};
use infini::tasks::wording::{self, Split};
use infini::text::Tokenizer;
use infini_format::hash::sha256;
use infini_format::io::{PUBLIC, RealIo, atomic_write};
use infini_format::tensors::{Tensor, TensorFile, TensorView, serialize};
use infini_kernels::norm;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::{AdaptConfig, PoolConfig};
use super::facts::Facts;

/// Documents of a shard; they are read side by side.
pub const SHARD: usize = 8;

/// What an answer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A key that only the memory holds.
    Told,
    /// A key that the end itself tells: the window shows it, too.
    Near,
    /// A key that nobody told.
    Absent,
}

/// Most of a disturbed sentence's tokens that are others.
const DISTURBED: f64 = 0.25;

const ANSWERS: [Option<Answer>; 4] = [None, Some(Answer::Told), Some(Answer::Near), Some(Answer::Absent)];

/// One way in which a document ends: questions, some after keys that stand here.
#[derive(Clone, Debug, PartialEq)]
pub struct Tail {
    /// Its tokens, `[U]`.
    pub ids: Vec<u32>,
    /// Which tokens answer, full stops included, `[U]`.
    pub answer: Vec<Option<Answer>>,
    /// Which of them tell a key, `[U]`.
    pub key: Vec<bool>,
    /// Residual stream that enters the memory's layer, of the document's first token and the tail: `[1 + U, d]`.
    pub residual: Vec<f32>,
    /// Final hidden states of the base over the tail, `[U, d]`: computed when a step needs them.
    pub hidden: Vec<f32>,
}

/// A document and what is cached of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The tokens that are remembered, `[E]`.
    pub ids: Vec<u32>,
    /// Which of them tell a key: its digits, the blank before, what ends them, `[E]`.
    pub key: Vec<bool>,
    /// Whose keys it tells or asks for; empty when the key has no name.
    pub names: Vec<String>,
    /// Whether it is in the paper's words.
    pub paper: bool,
    /// Normalised input of the memory's layer, `[E, d]`.
    pub x: Vec<f32>,
    /// How it may end.
    pub tails: Vec<Tail>,
}

/// Draws documents.
struct Writer<'a> {
    config: &'a PoolConfig,
    tokenizer: &'a Tokenizer,
    segment: usize,
    /// Sources and the weights up to and with each.
    fillers: Vec<(f64, Filler)>,
    digit: Vec<bool>,
    blank: Option<u32>,
}

impl<'a> Writer<'a> {
    fn new(config: &'a AdaptConfig, tokenizer: &'a Tokenizer, data: Option<&Path>) -> Result<Self> {
        let books = data.map(|d| d.join("train"));
        let (mut sum, mut fillers) = (0.0, Vec::new());
        for (name, weight) in config.data.filler.iter().filter(|(_, w)| **w > 0.0) {
            sum += weight;
            let Ok(source) = name.parse::<Source>();
            fillers.push((sum, Filler::new(&source, tokenizer, books.as_deref(), 0, PROSE_TOKENS)?));
        }
        Ok(Writer {
            config: &config.data,
            tokenizer,
            segment: config.adapter.segment_len,
            fillers,
            digit: tokenizer.tokens_with_digits(),
            blank: tokenizer.encode(" ").first().copied(),
        })
    }

    fn fill(&self, rng: &mut ChaCha8Rng, n: usize) -> Vec<u32> {
        let mut out = Vec::with_capacity(n);
        let cut = if rng.random_bool(self.config.switch) { rng.random_range(0..=n) } else { n };
        for n in [cut, n - cut] {
            let x = rng.random::<f64>() * self.fillers.last().map_or(0.0, |f| f.0);
            let i = self.fillers.iter().position(|f| x < f.0).unwrap_or(self.fillers.len() - 1);
            let filler = &self.fillers[i].1;
            let digits = rng.random_bool(self.config.numbers);
            let at = if digits { filler.near_a_digit(rng, n) } else { filler.anywhere(rng) };
            filler.copy(at, n, &mut out);
        }
        out
    }

    /// Which tokens of a sentence tell a number: its digits, a lone blank in front of them, and the token that ends it.
    fn number(&self, tokens: &[u32]) -> Vec<bool> {
        let digit = |i: usize| tokens.get(i).is_some_and(|t| self.digit[*t as usize]);
        let blank = |i: usize| Some(tokens[i]) == self.blank && digit(i + 1);
        (0..tokens.len()).map(|i| digit(i) || blank(i) || (i > 0 && digit(i - 1))).collect()
    }

    /// A document whose keys stand in the first `segments` segments, not run yet. Drawn again until it fits.
    fn document(&self, rng: &mut ChaCha8Rng, segments: usize) -> Document {
        loop {
            if let Some(document) = self.try_document(rng, segments) {
                return document;
            }
        }
    }

    fn try_document(&self, rng: &mut ChaCha8Rng, segments: usize) -> Option<Document> {
        let (c, s) = (self.config, self.segment);
        let named = rng.random_bool(c.named);
        // without names there is one key: far, near or none
        let absent = rng.random_bool(c.absent);
        let near = rng.random_bool(c.near);
        let far = match named {
            true => 1 + (c.keys as f64 * segments as f64 * rng.random::<f64>().powf(0.7)) as usize,
            false => usize::from(!absent && !near),
        };
        let nearby: Vec<usize> = (0..c.tails)
            .map(|_| match named {
                true if rng.random_bool(c.near) => rng.random_range(1..=2),
                true => 0,
                false => usize::from(!absent && near),
            })
            .collect();
        let keys = far + nearby.iter().sum::<usize>();
        let plan = Plan {
            split: Split::Trained,
            paper: rng.random_bool(c.paper),
            keys,
            named,
            questions: 0,
            absent: false,
            digits: c.digits,
            few_digits: 0.2,
            key_first: 0.0,
            changed: c.changed,
        };
        let scenario = Scenario::draw(rng, &plan);
        let names: Vec<u32> = scenario.names.iter().flat_map(|n| self.tokenizer.encode(&format!(" {n}"))).collect();
        let tell =
            |rng: &mut ChaCha8Rng, told: &Told| self.disturbed(rng, self.tokenizer.encode(&told.text), 0, &names);
        let mut told: Vec<Vec<u32>> = (0..far).map(|i| tell(rng, &scenario.keys[i])).collect();
        // what changes is told again, later
        let order = told_again(rng, far, scenario.changes.iter().map(|c| c.key).filter(|i| *i < far));
        for change in scenario.changes.iter().filter(|c| c.key < far) {
            told.push(tell(rng, &change.told));
        }
        let told: Vec<_> = order.into_iter().map(|i| told[i].clone()).collect();
        let remembered = (segments + 1) * s;
        let mut ids = self.fill(rng, remembered);
        let mut key = vec![false; remembered];
        let mut from = 1;
        if rng.random_bool(c.opening) {
            let opening = self.tokenizer.encode(wording::INTRO);
            ids[..opening.len()].copy_from_slice(&opening);
            from = opening.len();
        }
        self.place(rng, &told, from..segments * s, &mut ids, &mut key)?;
        let mut at = far;
        let mut tails = Vec::with_capacity(c.tails);
        for n in nearby {
            let mut near: Vec<usize> = (at..at + n).collect();
            at += n;
            let mut sentences: Vec<Vec<u32>> = near.iter().map(|i| tell(rng, &scenario.keys[*i])).collect();
            let absent = absent && (!named || rng.random_bool(0.5));
            // a key of the document changes where the window shows it
            let mut scenario = scenario.clone();
            if far > 0 && rng.random_bool(c.changed) {
                let i = rng.random_range(0..far);
                let change = scenario.change(rng, &plan, i);
                sentences.push(tell(rng, &change));
                near.insert(0, i);
            }
            let mut asked: Vec<usize> = (0..far).chain(near.iter().copied().filter(|i| *i >= far)).collect();
            asked.shuffle(rng);
            // a key of the window is asked for if there is one
            asked.sort_by_key(|i| Some(i) != near.first());
            if absent {
                asked.insert(0, keys);
            }
            asked.truncate(rng.random_range(1..=c.questions));
            tails.push(self.tail(rng, &scenario, (&near, &sentences), (far, &asked), &names)?);
        }
        Some(Document { ids, key, names: scenario.names, paper: plan.paper, x: Vec::new(), tails })
    }

    /// Random tokens of the filler in the place of some of a sentence, for the share `noise` of sentences: so many wordings
    /// that none can be learned by heart. Numbers, `names` and the last `spared` tokens stay.
    fn disturbed(&self, rng: &mut ChaCha8Rng, mut tokens: Vec<u32>, spared: usize, names: &[u32]) -> Vec<u32> {
        if !rng.random_bool(self.config.noise) {
            return tokens;
        }
        let number = self.number(&tokens);
        let most = rng.random_range(0.0..DISTURBED);
        let n = tokens.len().saturating_sub(spared);
        for i in (0..n).filter(|i| !number[*i]) {
            if !names.contains(&tokens[i]) && rng.random_bool(most) {
                let new = self.fill(rng, 1)[0];
                if !self.digit[new as usize] {
                    tokens[i] = new;
                }
            }
        }
        tokens
    }

    /// Puts `sentences` at random places of `within`, marking their numbers in `key`; None if they do not fit.
    fn place(
        &self,
        rng: &mut ChaCha8Rng,
        sentences: &[Vec<u32>],
        within: Range<usize>,
        ids: &mut [u32],
        key: &mut [bool],
    ) -> Option<()> {
        let room = within.len().checked_sub(sentences.iter().map(Vec::len).sum())?;
        let mut cuts: Vec<usize> = sentences.iter().map(|_| rng.random_range(0..=room)).collect();
        cuts.sort_unstable();
        let mut from = within.start;
        for (tokens, cut) in sentences.iter().zip(cuts) {
            let at = from + cut;
            ids[at..at + tokens.len()].copy_from_slice(tokens);
            key[at..at + tokens.len()].copy_from_slice(&self.number(tokens));
            from += tokens.len();
        }
        Some(())
    }

    /// A tail that asks for the keys `asked`, as many as fit, after it told the keys `near` in `sentences`.
    fn tail(
        &self,
        rng: &mut ChaCha8Rng,
        scenario: &Scenario,
        (near, sentences): (&[usize], &[Vec<u32>]),
        (far, asked): (usize, &[usize]),
        names: &[u32],
    ) -> Option<Tail> {
        let total = self.config.tail;
        let mut ids = self.fill(rng, total);
        let (mut answer, mut key) = (vec![None; total], vec![false; total]);
        let room = sentences.iter().map(Vec::len).sum();
        // questions from the end on
        let mut end = total - rng.random_range(0..9);
        for i in asked {
            let q = scenario.ask(rng, Split::Trained, *i);
            // the last words of a question have to fit the answer
            let question = self.disturbed(rng, self.tokenizer.encode(&q.text), 2, names);
            let reply = self.tokenizer.encode(&q.answer());
            let Some(begin) = end.checked_sub(question.len() + reply.len()).filter(|b| *b > room) else { break };
            ids[begin..begin + question.len()].copy_from_slice(&question);
            ids[begin + question.len()..end].copy_from_slice(&reply);
            let kind = match i {
                _ if near.contains(i) => Answer::Near,
                _ if *i < far => Answer::Told,
                _ => Answer::Absent,
            };
            answer[end - reply.len()..end].fill(Some(kind));
            end = begin.saturating_sub(rng.random_range(0..6)).max(room);
        }
        self.place(rng, sentences, 0..end, &mut ids, &mut key)?;
        answer.iter().any(Option::is_some).then_some(Tail {
            ids,
            answer,
            key,
            residual: Vec::new(),
            hidden: Vec::new(),
        })
    }
}

/// An order in which sentence `i < n` tells key `i` and the sentences from `n` on tell the keys `again` once more, later.
fn told_again(rng: &mut ChaCha8Rng, n: usize, again: impl Iterator<Item = usize>) -> Vec<usize> {
    let again: Vec<usize> = again.collect();
    let mut order: Vec<usize> = (0..n + again.len()).collect();
    if !again.is_empty() {
        order.shuffle(rng);
    }
    for (k, i) in again.into_iter().enumerate() {
        let at = |x: usize| order.iter().position(|o| *o == x).expect("every sentence has its place");
        let (first, second) = (at(i), at(n + k));
        if first > second {
            order.swap(first, second);
        }
    }
    order
}

/// What identifies a pool: nothing else changes its documents or what is cached of them.
fn identity(config: &AdaptConfig, base: &str) -> String {
    let a = &config.adapter;
    let data = PoolConfig { documents: 0, ..config.data.clone() };
    sha256(format!("{base} {} {} {} {data:?}", a.layer, a.segment_len, a.sink).as_bytes())
}

fn path(dir: &Path, shard: usize) -> PathBuf {
    dir.join(format!("{shard:05}.safetensors"))
}

/// Makes the shards that are missing in `dir`; `progress` is told the documents that are there and wanted. Returns
/// whether all are there, false if `stop` said so.
///
/// # Errors
/// Filler that cannot be had, the disk's errors.
pub fn build(
    config: &AdaptConfig,
    base: &Loaded,
    data: Option<&Path>,
    dir: &Path,
    stop: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<bool> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("cannot make the pool's folder", dir, e))?;
    let identity = identity(config, &base.identity.weights);
    let shards = config.data.documents.div_ceil(SHARD);
    let missing: Vec<usize> = (0..shards).filter(|i| !path(dir, *i).exists()).collect();
    progress((shards - missing.len()) * SHARD, shards * SHARD);
    if missing.is_empty() {
        return Ok(true);
    }
    let writer = Writer::new(config, &base.tokenizer, data)?;
    let segment = config.adapter.segment_len;
    let facts = config.data.facts.as_ref();
    let facts = facts.map(|f| Facts::new(&config.data, f, segment, &base.tokenizer, data)).transpose()?;
    let draw = |rng: &mut ChaCha8Rng, segments| match &facts {
        Some(facts) => facts.document(rng, segments, &|rng, n| writer.fill(rng, n)),
        None => Ok(writer.document(rng, segments)),
    };
    for (done, shard) in missing.iter().enumerate() {
        if stop() {
            return Ok(false);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(config.data.seed);
        rng.set_stream(*shard as u64);
        let most = config.data.segments;
        let segments = if shard % 4 == 3 || most == 1 { most } else { rng.random_range(1..most) };
        let mut documents: Vec<Document> = (0..SHARD).map(|_| draw(&mut rng, segments)).collect::<Result<_>>()?;
        cache(config, base, &mut documents);
        write(&path(dir, *shard), &documents, &identity)?;
        progress((shards - missing.len() + done + 1) * SHARD, shards * SHARD);
    }
    Ok(true)
}

/// Runs the frozen layers on documents of one length.
fn cache(config: &AdaptConfig, base: &Loaded, documents: &mut [Document]) {
    let (model, d) = (&base.model, base.model.config().hidden_size);
    let layer = config.adapter.layer;
    let (rows, n) = (documents.len(), documents[0].ids.len());
    let ids: Vec<u32> = documents.iter().flat_map(|t| t.ids.iter().copied()).collect();
    let mut state = model.state(rows);
    let h = model.trunk(&mut state, &ids, layer);
    let gain = model.layer(layer).attention_norm;
    let eps = model.config().rms_norm_eps as f32;
    for (doc, h) in documents.iter_mut().zip(h.chunks(n * d)) {
        doc.x = vec![0.0; n * d];
        norm::rms_forward(h, gain, eps, &mut doc.x, &mut vec![0.0; n]);
    }
    for tail in 0..config.data.tails {
        let ids: Vec<u32> = documents.iter().flat_map(|t| t.tails[tail].ids.iter().copied()).collect();
        let end = model.trunk(&mut state.clone(), &ids, layer);
        for ((doc, first), end) in documents.iter_mut().zip(h.chunks(n * d)).zip(end.chunks(config.data.tail * d)) {
            doc.tails[tail].residual = [&first[..d], end].concat();
        }
    }
}

fn write(path: &Path, documents: &[Document], identity: &str) -> Result<()> {
    let fail = |e: infini_format::tensors::TensorError| Error::Model(e.to_string());
    let tokens = |ids: &[u32]| Tensor::i32(&[ids.len()], &ids.iter().map(|x| *x as i32).collect::<Vec<_>>());
    let bytes = |x: Vec<u8>| Tensor::u8(&[x.len()], &x);
    let flags = |x: &[bool]| bytes(x.iter().map(|x| u8::from(*x)).collect());
    let mut tensors = Vec::new();
    for (i, doc) in documents.iter().enumerate() {
        let (rows, d) = (doc.key.len(), doc.x.len() / doc.key.len());
        tensors.push((format!("{i}.ids"), tokens(&doc.ids)));
        tensors.push((format!("{i}.key"), flags(&doc.key)));
        tensors.push((format!("{i}.names"), bytes(doc.names.join("\n").into_bytes())));
        tensors.push((format!("{i}.paper"), bytes(vec![u8::from(doc.paper)])));
        tensors.push((format!("{i}.x"), Tensor::bf16(&[rows, d], &doc.x)));
        for (t, tail) in doc.tails.iter().enumerate() {
            let code = |a: &Option<Answer>| ANSWERS.iter().position(|x| x == a).map_or(0, |i| i as u8);
            tensors.push((format!("{i}.{t}.ids"), tokens(&tail.ids)));
            tensors.push((format!("{i}.{t}.answer"), bytes(tail.answer.iter().map(code).collect())));
            tensors.push((format!("{i}.{t}.key"), flags(&tail.key)));
            tensors.push((format!("{i}.{t}.residual"), Tensor::f32(&[tail.ids.len() + 1, d], &tail.residual)));
        }
    }
    let tensors = tensors.into_iter().map(|(name, t)| Ok((name, t.map_err(fail)?))).collect::<Result<Vec<_>>>()?;
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let metadata = [("format".to_string(), "infini-pool".to_string()), ("pool".into(), identity.into())].into();
    let bytes = serialize(&views, &metadata).map_err(fail)?;
    atomic_write(&RealIo, path, PUBLIC, &bytes).map_err(|e| Error::Model(e.to_string()))
}

/// Reads the pool.
///
/// # Errors
/// A shard that is missing, damaged, or of other documents.
pub fn read(config: &AdaptConfig, base: &Loaded, dir: &Path) -> Result<Vec<Document>> {
    let identity = identity(config, &base.identity.weights);
    let mut out = Vec::new();
    for shard in 0..config.data.documents.div_ceil(SHARD) {
        let path = path(dir, shard);
        let bad = |why: String| Error::Model(format!("bad pool: {}: {why}: delete it", path.display()));
        let file = TensorFile::read(&RealIo, &path).map_err(|e| Error::Model(e.to_string()))?;
        if file.metadata.get("pool") != Some(&identity) {
            return Err(bad("its documents are of another base or configuration".into()));
        }
        for i in 0..SHARD {
            let get = |name: String| file.get(&name).map_err(|e| bad(e.to_string()));
            let bytes = |name: String| get(name)?.to_u8().map_err(|e| bad(e.to_string()));
            let tokens = |name: String| -> Result<Vec<u32>> {
                let ids = get(name)?.to_i32().map_err(|e| bad(e.to_string()))?;
                Ok(ids.into_iter().map(|x| x as u32).collect())
            };
            let floats = |name: String| get(name)?.to_f32().map_err(|e| bad(e.to_string()));
            let flags = |name: String| -> Result<Vec<bool>> { Ok(bytes(name)?.into_iter().map(|x| x > 0).collect()) };
            let names = String::from_utf8(bytes(format!("{i}.names"))?).map_err(|e| bad(e.to_string()))?;
            let tail = |t: usize| -> Result<Tail> {
                let code = |c: u8| ANSWERS.get(c as usize).copied().ok_or_else(|| bad(format!("answer {c}")));
                Ok(Tail {
                    ids: tokens(format!("{i}.{t}.ids"))?,
                    answer: bytes(format!("{i}.{t}.answer"))?.into_iter().map(code).collect::<Result<_>>()?,
                    key: flags(format!("{i}.{t}.key"))?,
                    residual: floats(format!("{i}.{t}.residual"))?,
                    hidden: Vec::new(),
                })
            };
            out.push(Document {
                ids: tokens(format!("{i}.ids"))?,
                key: flags(format!("{i}.key"))?,
                names: names.lines().map(str::to_string).collect(),
                paper: bytes(format!("{i}.paper"))? == [1],
                x: floats(format!("{i}.x"))?,
                tails: (0..config.data.tails).map(tail).collect::<Result<_>>()?,
            });
        }
    }
    Ok(out)
}
