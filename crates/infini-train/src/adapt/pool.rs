//! Documents and what the frozen layers below the memory make of them, on disk in shards.
//!
//! Shard i holds [`SHARD`] documents drawn from stream i of the seed, and is written once, whole: an interrupted pool
//! goes on with the next shard.

use std::path::{Path, PathBuf};

use infini::error::{Error, Result};
use infini::folder::Loaded;
use infini::tasks::filler::{Filler, PROSE_TOKENS, Source};
use infini::tasks::scenario::{Plan, Scenario};
use infini::tasks::wording::{self, Split};
use infini::text::Tokenizer;
use infini_format::hash::sha256;
use infini_format::io::{PUBLIC, RealIo, atomic_write};
use infini_format::tensors::{Tensor, TensorFile, TensorView, serialize};
use infini_kernels::norm;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::{AdaptConfig, PoolConfig};

/// Documents of a shard; they are read side by side.
pub const SHARD: usize = 8;

/// A document and what is cached of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Whether a token of the remembered part tells a key: its digits, the blank before, what ends them, `[E]`.
    pub key: Vec<bool>,
    /// Whether a token of the tail answers a question, its full stop included, `[U]`.
    pub answer: Vec<bool>,
    /// Whose keys it tells; empty when the key has no name.
    pub names: Vec<String>,
    /// Normalised input of the memory's layer for the remembered part, `[E, d]`.
    pub x: Vec<f32>,
    /// Residual stream that enters the memory's layer, of the first token and the tail: `[1 + U, d]`.
    pub residual: Vec<f32>,
}

/// A document before any layer has seen it.
#[derive(Clone, Debug, PartialEq)]
struct Text {
    ids: Vec<u32>,
    key: Vec<bool>,
    answer: Vec<bool>,
    names: Vec<String>,
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
            filler.copy(filler.anywhere(rng), n, &mut out);
        }
        out
    }

    /// Which tokens of a sentence tell a number: its digits, a lone blank in front of them, and the token that ends it.
    fn number(&self, tokens: &[u32]) -> Vec<bool> {
        let digit = |i: usize| tokens.get(i).is_some_and(|t| self.digit[*t as usize]);
        let blank = |i: usize| Some(tokens[i]) == self.blank && digit(i + 1);
        (0..tokens.len()).map(|i| digit(i) || blank(i) || (i > 0 && digit(i - 1))).collect()
    }

    /// A document whose keys stand in the first `segments` segments. Drawn again until it fits.
    fn document(&self, rng: &mut ChaCha8Rng, segments: usize) -> Text {
        loop {
            if let Some(text) = self.try_document(rng, segments) {
                return text;
            }
        }
    }

    fn try_document(&self, rng: &mut ChaCha8Rng, segments: usize) -> Option<Text> {
        let (c, s) = (self.config, self.segment);
        let named = rng.random_bool(c.named);
        let keys =
            if named { 1 + (c.keys as f64 * segments as f64 * rng.random::<f64>().powf(0.7)) as usize } else { 1 };
        let absent = rng.random_bool(c.absent);
        let plan = Plan {
            split: Split::Trained,
            paper: rng.random_bool(c.paper),
            keys: if absent && !named { 0 } else { keys },
            named,
            questions: rng.random_range(1..=c.questions.min(keys)),
            absent,
            digits: c.digits,
            few_digits: 0.2,
            key_first: 0.0,
        };
        let scenario = Scenario::draw(rng, &plan);
        let encode = |text: &str| self.tokenizer.encode(text);
        let total = (segments + 2) * s + c.tail;
        let mut ids = self.fill(rng, total);
        let remembered = (segments + 1) * s;
        let (mut key, mut answer) = (vec![false; remembered], vec![false; total]);
        let mut from = 1;
        if rng.random_bool(c.opening) {
            let opening = encode(wording::INTRO);
            ids[..opening.len()].copy_from_slice(&opening);
            from = opening.len();
        }
        // keys at random places of their segments
        let told: Vec<Vec<u32>> = scenario.keys.iter().map(|k| encode(&k.text)).collect();
        let room = (segments * s).checked_sub(from + told.iter().map(Vec::len).sum::<usize>())?;
        let mut cuts: Vec<usize> = told.iter().map(|_| rng.random_range(0..=room)).collect();
        cuts.sort_unstable();
        for (tokens, cut) in told.iter().zip(cuts) {
            let at = from + cut;
            ids[at..at + tokens.len()].copy_from_slice(tokens);
            key[at..at + tokens.len()].copy_from_slice(&self.number(tokens));
            from += tokens.len();
        }
        // questions from the end on
        let mut end = total - rng.random_range(0..9);
        for q in scenario.questions.iter().rev() {
            let (question, reply) = (encode(&q.text), encode(&q.answer()));
            let begin = end.checked_sub(question.len() + reply.len())?;
            if begin < total - c.tail {
                // the first one asked may begin before the tail, but its answer must not
                if end - reply.len() < total - c.tail + 24 {
                    break;
                }
            }
            ids[begin..begin + question.len()].copy_from_slice(&question);
            ids[begin + question.len()..end].copy_from_slice(&reply);
            answer[end - reply.len()..end].fill(true);
            end = begin.checked_sub(rng.random_range(0..6))?;
            if end < total - c.tail {
                break;
            }
        }
        let answer = answer[total - c.tail..].to_vec();
        if !answer.contains(&true) {
            return None;
        }
        let names = if named { scenario.names } else { Vec::new() };
        Some(Text { ids, key, answer, names })
    }
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
    for (done, shard) in missing.iter().enumerate() {
        if stop() {
            return Ok(false);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(config.data.seed);
        rng.set_stream(*shard as u64);
        let most = config.data.segments;
        let segments = if shard % 4 == 3 || most == 1 { most } else { rng.random_range(1..most) };
        let texts: Vec<Text> = (0..SHARD).map(|_| writer.document(&mut rng, segments)).collect();
        let documents = cache(config, base, texts);
        write(&path(dir, *shard), &documents, &identity)?;
        progress((shards - missing.len() + done + 1) * SHARD, shards * SHARD);
    }
    Ok(true)
}

/// Runs the frozen layers on documents of one length.
fn cache(config: &AdaptConfig, base: &Loaded, texts: Vec<Text>) -> Vec<Document> {
    let (model, d) = (&base.model, base.model.config().hidden_size);
    let layer = config.adapter.layer;
    let (rows, total) = (texts.len(), texts[0].ids.len());
    let ids: Vec<u32> = texts.iter().flat_map(|t| t.ids.iter().copied()).collect();
    let h = model.trunk(&mut model.state(rows), &ids, layer);
    let gain = model.layer(layer).attention_norm;
    let eps = model.config().rms_norm_eps as f32;
    texts
        .into_iter()
        .enumerate()
        .map(|(row, t)| {
            let h = &h[row * total * d..(row + 1) * total * d];
            let n = t.key.len();
            let (mut x, mut inv) = (vec![0.0; n * d], vec![0.0; n]);
            norm::rms_forward(&h[..n * d], gain, eps, &mut x, &mut inv);
            let residual = [&h[..d], &h[(total - config.data.tail) * d..]].concat();
            Document { ids: t.ids, key: t.key, answer: t.answer, names: t.names, x, residual }
        })
        .collect()
}

fn write(path: &Path, documents: &[Document], identity: &str) -> Result<()> {
    let fail = |e: infini_format::tensors::TensorError| Error::Model(e.to_string());
    let mut tensors = Vec::new();
    for (i, doc) in documents.iter().enumerate() {
        let bytes = |x: &[bool]| x.iter().map(|x| u8::from(*x)).collect::<Vec<u8>>();
        let ids: Vec<i32> = doc.ids.iter().map(|x| *x as i32).collect();
        let named = doc.names.join("\n").into_bytes();
        let (rows, tail) = (doc.key.len(), doc.answer.len() + 1);
        tensors.push((format!("{i}.ids"), Tensor::i32(&[ids.len()], &ids).map_err(fail)?));
        tensors.push((format!("{i}.key"), Tensor::u8(&[rows], &bytes(&doc.key)).map_err(fail)?));
        tensors.push((format!("{i}.answer"), Tensor::u8(&[tail - 1], &bytes(&doc.answer)).map_err(fail)?));
        tensors.push((format!("{i}.names"), Tensor::u8(&[named.len()], &named).map_err(fail)?));
        tensors.push((format!("{i}.x"), Tensor::bf16(&[rows, doc.x.len() / rows], &doc.x).map_err(fail)?));
        let d = doc.residual.len() / tail;
        tensors.push((format!("{i}.residual"), Tensor::f32(&[tail, d], &doc.residual).map_err(fail)?));
    }
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
            let get = |name: &str| file.get(&format!("{i}.{name}")).map_err(|e| bad(e.to_string()));
            let flags = |name: &str| -> Result<Vec<bool>> {
                Ok(get(name)?.to_u8().map_err(|e| bad(e.to_string()))?.into_iter().map(|x| x != 0).collect())
            };
            let floats = |name: &str| get(name)?.to_f32().map_err(|e| bad(e.to_string()));
            let ids = get("ids")?.to_i32().map_err(|e| bad(e.to_string()))?;
            let names = String::from_utf8(get("names")?.to_u8().map_err(|e| bad(e.to_string()))?);
            let names = names.map_err(|e| bad(e.to_string()))?;
            out.push(Document {
                ids: ids.into_iter().map(|x| x as u32).collect(),
                key: flags("key")?,
                answer: flags("answer")?,
                names: names.lines().map(str::to_string).collect(),
                x: floats("x")?,
                residual: floats("residual")?,
            });
        }
    }
    Ok(out)
}
