//! How well a model predicts whole documents: each is streamed from its beginning to its end, in constant memory, and every
//! token but the first is scored.

use serde::Serialize;

use super::recurrence::{Seen, recurrence, texts};
use crate::error::{Error, Result};
use crate::model::{Model, Want};
use crate::state::{Reads, State};
use crate::text::Tokenizer;

/// A document to be scored.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its name in the results.
    pub name: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
}

/// What to do with it.
#[derive(Clone, Debug)]
pub struct Options {
    /// What reads of the memory give. With [`Reads::Swapped`] two documents are read in lockstep, each with the other's
    /// memory, as far as the shorter one goes.
    pub reads: Reads,
    /// Score windows of so many tokens that each start from nothing, instead of the whole document: the first token of a
    /// window is not scored, an incomplete last window is left out.
    pub context: Option<usize>,
    /// Tokens that are read before every document; none of them is scored, nor the document's first. Positions count
    /// from the document's beginning.
    pub before: Vec<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options { reads: Reads::Own, context: None, before: Vec::new() }
    }
}

/// Tokens and their mean loss over a range of something: positions, or distances.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bucket {
    /// First value.
    pub from: u64,
    /// First value behind.
    pub to: u64,
    /// Scored tokens.
    pub tokens: u64,
    /// Their mean loss in nats.
    pub loss: f64,
}

/// Tokens of words (or pairs of words) by where they last stood.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Recurring {
    /// Not before in the document.
    pub new: Bucket,
    /// Inside the window.
    pub window: Bucket,
    /// Wholly before the window.
    pub beyond: Bucket,
    /// Those beyond, by distance in tokens, in powers of two.
    pub by_distance: Vec<Bucket>,
}

/// Everything measured of one document, or of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// The document's name; empty for all of them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Scored tokens.
    pub tokens: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Words of their text: runs without white space.
    pub words: u64,
    /// Mean nats per token.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// `exp(nats / words)`.
    pub word_perplexity: f64,
    /// `nats / ln 2 / bytes`.
    pub bits_per_byte: f64,
    /// Loss by position in the document, in powers of two.
    pub by_position: Vec<Bucket>,
    /// By recurrence of the word.
    pub words_seen: Recurring,
    /// By recurrence of the pair of the word and the one before.
    pub pairs_seen: Recurring,
}

/// Sums that become a [`Score`].
#[derive(Clone, Debug, Default)]
struct Sums {
    bytes: u64,
    words: u64,
    nats: f64,
    tokens: u64,
    positions: Vec<(u64, f64)>,
    seen: [Classes; 2],
}

#[derive(Clone, Debug, Default)]
struct Classes {
    new: (u64, f64),
    window: (u64, f64),
    beyond: (u64, f64),
    distances: Vec<(u64, f64)>,
}

/// Tokens that are read at once.
const PIECE: usize = 1024;
/// Width of the first bucket of positions.
const FIRST: u64 = 128;

fn add(to: &mut (u64, f64), loss: f64) {
    to.0 += 1;
    to.1 += loss;
}

fn add_at(to: &mut Vec<(u64, f64)>, i: usize, loss: f64) {
    if to.len() <= i {
        to.resize(i + 1, (0, 0.0));
    }
    add(&mut to[i], loss);
}

impl Sums {
    /// Adds a document's losses (NaN: not scored) of tokens 0…; `before` tokens were read before it.
    fn add(
        &mut self,
        model: &Model,
        (before, document): (usize, &[u32]),
        losses: &[f32],
        tokenizer: &Tokenizer,
        texts: &[String],
    ) {
        let i = &model.config().infini;
        let (s, span) = (i.segment_len, i.span);
        // what the prediction of token t sees: the window of the token before it
        let visible =
            |t: usize| (((before + t.saturating_sub(1)) / s).saturating_sub(span - 1) * s).saturating_sub(before);
        let r = recurrence(document, texts, visible);
        let mut scored = Vec::with_capacity(losses.len());
        for (t, loss) in losses.iter().enumerate().filter(|(_, l)| !l.is_nan()) {
            let loss = f64::from(*loss);
            scored.push(document[t]);
            self.tokens += 1;
            self.nats += loss;
            let bucket = (t as u64 / FIRST).checked_ilog2().map_or(0, |b| b as usize + 1);
            add_at(&mut self.positions, bucket, loss);
            for (classes, seen) in self.seen.iter_mut().zip([r.word[t], r.pair[t]]) {
                match seen {
                    Seen::NoWord => {}
                    Seen::Never => add(&mut classes.new, loss),
                    Seen::Window => add(&mut classes.window, loss),
                    Seen::Beyond(distance) => {
                        add(&mut classes.beyond, loss);
                        add_at(&mut classes.distances, distance.max(1).ilog2() as usize, loss);
                    }
                }
            }
        }
        let text = tokenizer.decode(&scored);
        self.bytes += text.len() as u64;
        self.words += text.split_whitespace().count() as u64;
    }

    fn join(&mut self, other: &Sums) {
        let plus = |a: &mut (u64, f64), b: &(u64, f64)| (a.0, a.1) = (a.0 + b.0, a.1 + b.1);
        let list = |a: &mut Vec<(u64, f64)>, b: &[(u64, f64)]| {
            a.resize(a.len().max(b.len()), (0, 0.0));
            a.iter_mut().zip(b).for_each(|(a, b)| plus(a, b));
        };
        self.bytes += other.bytes;
        self.words += other.words;
        self.nats += other.nats;
        self.tokens += other.tokens;
        list(&mut self.positions, &other.positions);
        for (a, b) in self.seen.iter_mut().zip(&other.seen) {
            plus(&mut a.new, &b.new);
            plus(&mut a.window, &b.window);
            plus(&mut a.beyond, &b.beyond);
            list(&mut a.distances, &b.distances);
        }
    }

    fn score(&self, name: &str) -> Score {
        let mean = |nats: f64, n: u64| if n == 0 { 0.0 } else { nats / n as f64 };
        let bucket = |x: &(u64, f64), from, to| Bucket { from, to, tokens: x.0, loss: mean(x.1, x.0) };
        let powers = |x: &[(u64, f64)], first: u64| -> Vec<Bucket> {
            let range = |i: usize| match (first, i) {
                (1, i) => (1 << i, 2 << i),
                (_, 0) => (0, first),
                (_, i) => (first << (i - 1), first << i),
            };
            let all = x.iter().enumerate().map(|(i, x)| bucket(x, range(i).0, range(i).1));
            all.filter(|b| b.tokens > 0).collect()
        };
        let recurring = |c: &Classes| Recurring {
            new: bucket(&c.new, 0, 0),
            window: bucket(&c.window, 0, 0),
            beyond: bucket(&c.beyond, 0, 0),
            by_distance: powers(&c.distances, 1),
        };
        let loss = mean(self.nats, self.tokens);
        Score {
            name: name.into(),
            tokens: self.tokens,
            bytes: self.bytes,
            words: self.words,
            loss,
            perplexity: loss.exp(),
            word_perplexity: mean(self.nats, self.words).exp(),
            bits_per_byte: mean(self.nats, self.bytes) / std::f64::consts::LN_2,
            by_position: powers(&self.positions, FIRST),
            words_seen: recurring(&self.seen[0]),
            pairs_seen: recurring(&self.seen[1]),
        }
    }
}

/// The scores of all documents together and of each.
///
/// `progress` is told the tokens done and to be done.
///
/// # Errors
/// Nothing to score: no document of two tokens (with [`Reads::Swapped`]: no two of them; with a context: none as long).
/// Full attention that has no room for a document.
pub fn run(
    model: &Model,
    tokenizer: &Tokenizer,
    documents: &[Document],
    o: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Score, Vec<Score>)> {
    let nothing = |why: &str| Err(Error::Input(format!("nothing to score: {why}")));
    let texts = texts(tokenizer);
    let total = o.before.len() as u64 + documents.iter().map(|d| d.tokens.len() as u64).sum::<u64>();
    let mut done = 0;
    let mut step = |n: usize| {
        done += n as u64;
        progress(done, total);
    };
    if (o.reads == Reads::Swapped || o.context.is_some()) && !o.before.is_empty() {
        return nothing("a text before the documents goes with neither swapped memories nor windows");
    }
    let longest = documents.iter().map(|d| d.tokens.len()).max().unwrap_or(0);
    model.check_room(
        &model.state(1),
        o.before.len() + o.context.map_or(longest, |n| n.min(longest)).saturating_sub(1),
    )?;
    let losses: Vec<Vec<f32>> = match (o.reads, o.context) {
        (Reads::Swapped, Some(_)) => return nothing("a window that starts from nothing has no memory to swap"),
        (Reads::Swapped, None) if documents.len() < 2 => return nothing("swapping memories takes two documents"),
        (Reads::Swapped, None) => swapped(model, documents, &mut step),
        (_, Some(n)) if n < 2 => return nothing("a context has two tokens or more"),
        (_, Some(n)) => documents.iter().map(|d| windows(model, &d.tokens, n, o.reads, &mut step)).collect(),
        _ => {
            let mut state = model.state(1);
            state.set_reads(o.reads);
            for piece in o.before.chunks(PIECE) {
                model.forward(&mut state, piece, Want::Nothing);
                step(piece.len());
            }
            let one = |d: &Document| stream_on(model, state.fork(), &[&d.tokens], &mut step).remove(0);
            documents.iter().map(one).collect()
        }
    };
    let mut all = Sums::default();
    let mut rows = Vec::new();
    for (d, losses) in documents.iter().zip(losses) {
        let mut sums = Sums::default();
        sums.add(model, (o.before.len(), &d.tokens), &losses, tokenizer, &texts);
        all.join(&sums);
        rows.push(sums.score(&d.name));
    }
    if all.tokens == 0 {
        return nothing("no document is long enough");
    }
    Ok((all.score(""), rows))
}

/// Losses of every token of rows of the same length that are read in lockstep; the first is NaN.
pub fn stream(model: &Model, rows: &[&[u32]], reads: Reads, step: &mut dyn FnMut(usize)) -> Vec<Vec<f32>> {
    let mut state = model.state(rows.len());
    state.set_reads(reads);
    stream_on(model, state, rows, step)
}

/// The same of rows that go on where `state` stands.
fn stream_on(model: &Model, mut state: State, rows: &[&[u32]], step: &mut dyn FnMut(usize)) -> Vec<Vec<f32>> {
    let (v, b) = (model.config().vocab_size, rows.len());
    let len = rows.iter().map(|r| r.len()).min().unwrap_or(0);
    let mut out = vec![vec![f32::NAN]; b];
    // logits of a piece take some megabytes
    let piece = ((4 << 20) / (v * b)).clamp(16, PIECE);
    for at in (0..len.saturating_sub(1)).step_by(piece) {
        let n = piece.min(len - 1 - at);
        let tokens: Vec<u32> = rows.iter().flat_map(|row| row[at..at + n].iter().copied()).collect();
        let logits = model.forward(&mut state, &tokens, Want::All);
        for (row, (out, logits)) in rows.iter().zip(out.iter_mut().zip(logits.chunks(n * v))) {
            let targets = &row[at + 1..];
            out.extend(logits.chunks(v).zip(targets).map(|(l, target)| loss(l, *target)));
        }
        step(n * b);
    }
    if len == 0 {
        out.iter_mut().for_each(Vec::clear);
    }
    step(b.min(len * b));
    out
}

/// `−log softmax(logits)[target]`.
pub(super) fn loss(logits: &[f32], target: u32) -> f32 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    (sum.ln() - f64::from(logits[target as usize] - largest)) as f32
}

fn windows(model: &Model, tokens: &[u32], n: usize, reads: Reads, step: &mut dyn FnMut(usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(tokens.len());
    for window in tokens.chunks_exact(n) {
        out.extend(stream(model, &[window], reads, step).remove(0));
    }
    step(tokens.len() - out.len());
    out.resize(tokens.len(), f32::NAN);
    out
}

/// Each document with the memory of the next one, the last one with that of the first.
fn swapped(model: &Model, documents: &[Document], step: &mut dyn FnMut(usize)) -> Vec<Vec<f32>> {
    let n = documents.len();
    let one = |i: usize| {
        let (a, b) = (&documents[i].tokens, &documents[(i + 1) % n].tokens);
        let len = a.len().min(b.len());
        let mut losses = stream(model, &[&a[..len], &b[..len]], Reads::Swapped, &mut |_| {}).remove(0);
        losses.resize(a.len(), f32::NAN);
        step(a.len());
        losses
    };
    (0..n).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::tokenizer;
    use crate::{InfiniConfig, ModelConfig, Weights};

    fn model(infini: InfiniConfig) -> Model {
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "infini": infini,
        }))
        .unwrap();
        let mut tensors = std::collections::BTreeMap::new();
        let fresh = Weights::init(&config, 3);
        for p in config.parameters() {
            // output matrices that begin at zero would hide the memory
            let mut data = fresh.get(&p.name).to_vec();
            if p.name.ends_with("memory.o_proj.weight") {
                data.iter_mut().enumerate().for_each(|(i, x)| *x = ((i * 37 % 101) as f32 - 50.0) / 100.0);
            }
            tensors.insert(p.name, (p.shape, data));
        }
        Model::new(config.clone(), Weights::new(&config, tensors).unwrap()).unwrap()
    }

    fn infini() -> InfiniConfig {
        InfiniConfig { segment_len: 16, ..InfiniConfig::preset("added-linear").unwrap() }
    }

    fn documents() -> Vec<Document> {
        let text = |seed| crate::prose::Prose::new(seed).text(4000);
        (0..3).map(|i| Document { name: format!("{i}"), tokens: tokenizer().encode(&text(i)) }).collect()
    }

    #[test]
    fn a_stream_scores_as_one_call_over_everything() {
        let (model, documents) = (model(infini()), documents());
        let (all, rows) = run(&model, tokenizer(), &documents, &Options::default(), &mut |_, _| {}).unwrap();
        let v = 512;
        let mut nats = 0.0;
        for (d, row) in documents.iter().zip(&rows) {
            // the independent scorer: one call, softmax in f64
            let logits = model.forward(&mut model.state(1), &d.tokens, Want::All);
            let ce = (1..d.tokens.len()).map(|t| {
                let l: Vec<f64> = logits[(t - 1) * v..t * v].iter().map(|x| f64::from(*x)).collect();
                l.iter().map(|x| x.exp()).sum::<f64>().ln() - l[d.tokens[t] as usize]
            });
            let sum: f64 = ce.sum();
            nats += sum;
            assert!((row.loss - sum / (d.tokens.len() - 1) as f64).abs() < 1e-4, "{row:?}");
        }
        let tokens: usize = documents.iter().map(|d| d.tokens.len() - 1).sum();
        assert_eq!(all.tokens, tokens as u64);
        assert!((all.loss - nats / tokens as f64).abs() < 1e-4);
        assert!((all.perplexity - all.loss.exp()).abs() < 1e-9);
        assert!((all.bits_per_byte - nats / std::f64::consts::LN_2 / all.bytes as f64).abs() < 1e-4);
        let parts = |b: &[Bucket]| b.iter().map(|b| b.tokens).sum::<u64>();
        assert_eq!(parts(&all.by_position), all.tokens);
        assert_eq!((all.by_position[0].from, all.by_position[0].to, all.by_position[1].to), (0, 128, 256));
        let s = &all.words_seen;
        assert!(s.new.tokens > 100 && s.window.tokens > 100 && s.beyond.tokens > 100, "{s:?}");
        assert_eq!(parts(&s.by_distance), s.beyond.tokens);
        assert!(all.pairs_seen.new.tokens > s.new.tokens);
    }

    #[test]
    fn a_text_before_the_documents_is_read_and_not_scored() {
        let (model, documents) = (model(infini()), documents());
        let before = documents[2].tokens[..75].to_vec();
        let o = Options { before: before.clone(), ..Options::default() };
        let (_, rows) = run(&model, tokenizer(), &documents[..2], &o, &mut |_, _| {}).unwrap();
        let (_, alone) = run(&model, tokenizer(), &documents[..2], &Options::default(), &mut |_, _| {}).unwrap();
        for ((d, row), alone) in documents.iter().zip(&rows).zip(&alone) {
            let joined = [&before[..], &d.tokens].concat();
            let losses = stream(&model, &[&joined], Reads::Own, &mut |_| {}).remove(0);
            let scored = &losses[before.len() + 1..];
            let mean = scored.iter().map(|x| f64::from(*x)).sum::<f64>() / scored.len() as f64;
            assert!((row.loss - mean).abs() < 1e-5, "{} {mean}", row.loss);
            assert_eq!((row.tokens, row.bytes), (alone.tokens, alone.bytes));
            assert!((row.loss - alone.loss).abs() > 1e-4);
        }
        let swapped = Options { reads: Reads::Swapped, ..o };
        assert!(run(&model, tokenizer(), &documents, &swapped, &mut |_, _| {}).is_err());
    }

    #[test]
    fn full_attention_refuses_a_document_it_has_no_room_for() {
        let mut config = model(infini()).config().clone();
        (config.attention, config.max_position_embeddings) = (crate::config::Attention::Full, 100);
        let full = Model::new(config.clone(), Weights::init(&config, 3)).unwrap();
        let mut documents = documents();
        let refused =
            |documents: &[Document], o: &Options| run(&full, tokenizer(), documents, o, &mut |_, _| {}).is_err();
        assert!(refused(&documents, &Options::default()));
        assert!(!refused(&documents, &Options { context: Some(64), ..Options::default() }));
        documents.iter_mut().for_each(|d| d.tokens.truncate(101));
        assert!(!refused(&documents, &Options::default()));
        assert!(refused(&documents, &Options { before: vec![1], ..Options::default() }));
    }

    #[test]
    fn contexts_begin_from_nothing_and_drop_the_rest() {
        let (model, documents) = (model(infini()), documents());
        let o = Options { context: Some(100), ..Options::default() };
        let (all, _) = run(&model, tokenizer(), &documents, &o, &mut |_, _| {}).unwrap();
        let windows: usize = documents.iter().map(|d| d.tokens.len() / 100).sum();
        assert_eq!(all.tokens, 99 * windows as u64);
        let first = stream(&model, &[&documents[0].tokens[..100]], Reads::Own, &mut |_| {}).remove(0);
        let both = super::windows(&model, &documents[0].tokens[..250], 100, Reads::Own, &mut |_| {});
        assert_eq!(first[1..], both[1..100]);
        assert!(both[100].is_nan() && both[200..].iter().all(|x| x.is_nan()));
        let too_long = Options { context: Some(1 << 20), ..Options::default() };
        assert!(run(&model, tokenizer(), &documents, &too_long, &mut |_, _| {}).is_err());
    }

    #[test]
    fn reads_of_nothing_and_of_another_document_differ_where_a_memory_is_read() {
        let selective = InfiniConfig { segment_len: 16, ..InfiniConfig::preset("selective-linear").unwrap() };
        for infini in [infini(), selective] {
            let (model, documents) = (model(infini), documents());
            let of = |reads| {
                let len = documents.iter().map(|d| d.tokens.len()).min().unwrap();
                let rows: Vec<&[u32]> = documents[..2].iter().map(|d| &d.tokens[..len]).collect();
                stream(&model, &rows, reads, &mut |_| {})
            };
            let (own, nothing, swapped) = (of(Reads::Own), of(Reads::Nothing), of(Reads::Swapped));
            for other in [&nothing, &swapped] {
                // nothing is in a memory before the third segment
                assert_eq!(own[0][1..32], other[0][1..32]);
                assert!(own[0][40..].iter().zip(&other[0][40..]).any(|(a, b)| (a - b).abs() > 1e-4));
            }
            assert_ne!(nothing[0][1..], swapped[0][1..]);
            // a row that is swapped with itself is not swapped
            let row = &documents[0].tokens[..200];
            let twice = stream(&model, &[row, row], Reads::Swapped, &mut |_| {});
            assert_eq!(twice[0][1..], stream(&model, &[row, row], Reads::Own, &mut |_| {})[0][1..]);
        }
    }
}
