//! `infini demo`: one million tokens, a key at the start, in the middle and at the end, constant memory.

mod book;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use infini::config::ModelConfig;
use infini::eval::{rss, score};
use infini::folder::Loaded;
use infini::generate::greedy;
use infini::model::Want;
use infini::state::State;
use infini::tasks::filler::{Filler, Source, held_out_books};
use infini::tasks::scenario::digits;
use infini::tasks::wording;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::train;
use crate::console::{Outcome, Table, bytes, commas, say, seconds, usage};
use crate::models::{self, ModelFlag};
use crate::progress::Progress;
use crate::report::JsonFlag;

/// Recall keys hidden in a million tokens, in constant memory
#[derive(Args, Debug)]
#[command(
    long_about = "Recall keys hidden in a million tokens, in constant memory

Three inputs of --tokens tokens are read side by side. In each a key is hidden: right at the start, in the middle, and near \
the end (but further back than attention reaches). Then each is asked for its key. Exit code 1 if one is not recalled.

With --book a text is read instead, with the memory and without, and the loss of both is shown as they go on.",
    after_help = "Examples:
  infini demo
  infini demo --tokens 131072 --seed 7
  infini demo --filler prose                  a stream of generated sentences in place of the paper's five
  infini demo --filler moby-dick.txt
  infini demo --train                         train the model first, some minutes, before your eyes
  infini demo --book moby-dick.txt            models/books with its memory and without
  infini demo --book moby-dick.txt --model runs/books --control runs/books-control"
)]
pub struct Demo {
    /// Tokens of each input
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    tokens: usize,
    #[command(flatten)]
    model: ModelFlag,
    /// Train a model first (into runs/demo-SEED) and take that one
    #[arg(long, conflicts_with = "model")]
    train: bool,
    /// What the keys are hidden in: paper, prose, books (with --data) or a text file
    #[arg(long, value_name = "paper|prose|books|FILE", default_value = "paper")]
    filler: Source,
    /// Folder of books for --filler books
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Read this text with the memory and without [default model: models/books]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tokens", "train", "filler", "data", "seed"])]
    book: Option<PathBuf>,
    /// Compare with this model instead of the same one whose memory is knocked out
    #[arg(long, value_name = "MODEL", requires = "book")]
    control: Option<PathBuf>,
    /// Draws other keys
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: JsonFlag,
}

/// The three places, and how far the last stands from the question, in segments: the window reaches two back.
const PLACES: [(&str, f64); 3] = [("start", 0.0), ("middle", 0.5), ("end", 1.0)];
const BEFORE_QUESTION: usize = 3;
/// Columns of a call of the model.
const PIECE: usize = 1024;
const DIGITS: [usize; 2] = [5, 5];

impl Demo {
    /// Shows it.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        if let Some(file) = &self.book {
            return self.read_book(file);
        }
        let dir = if self.train { train::for_demo(self.seed)? } else { models::find(&self.model.model)? };
        let loaded = models::load(&dir)?;
        let books = self.data.as_deref().map(held_out_books);
        let filler =
            Filler::new(&self.filler, &loaded.tokenizer, books.as_deref(), self.seed, self.tokens.min(1 << 20))?;
        let inputs = Inputs::new(&loaded, &filler, self.tokens, self.seed)?;
        if !self.json.on_stdout() {
            say(format_args!(
                "{}: three inputs of {} tokens, one key in each",
                dir.display(),
                commas(self.tokens as u64)
            ))?;
        }
        let run = inputs.read(&loaded)?;
        if !self.json.on_stdout() {
            say(self.table(&inputs, &run))?;
        }
        let needles = inputs.needles.iter().zip(&run.answers).map(|(n, answer)| {
            json!({
                "depth": n.depth, "position": n.at, "expected": n.key, "answered": answer,
                "correct": score::exact(answer, Some(&n.key)),
            })
        });
        self.json.write(json!({
            "model": dir, "tokens": self.tokens, "needles": needles.collect::<Vec<_>>(),
            "tokens_per_second": run.rate, "seconds": run.seconds,
            "rss_bytes_at_10_percent": run.rss_10, "rss_bytes_at_100_percent": run.rss_100,
            "state_bytes": run.state_bytes, "kv_cache_bytes": run.kv_cache_bytes,
        }))?;
        let missed = inputs.needles.iter().zip(&run.answers).any(|(n, a)| !score::exact(a, Some(&n.key)));
        Ok(if missed { Outcome::Missed } else { Outcome::Done })
    }

    fn read_book(&self, file: &Path) -> Result<Outcome> {
        let named = self.model.model != Path::new(models::DEFAULT);
        let name = if named { &self.model.model } else { Path::new("models/books") };
        let mut loaded = models::load(&models::find(name)?)?;
        self.model.adapter.iter().try_for_each(|adapter| loaded.attach(adapter))?;
        let control = self.control.as_ref().map(|name| models::load(&models::find(name)?)).transpose()?;
        book::run(&loaded, control.as_ref(), file, &self.json)
    }

    fn table(&self, inputs: &Inputs, run: &Run) -> String {
        let mut table = Table::new(&["key", "hidden at token", "expected", "answered", ""]);
        for (n, answer) in inputs.needles.iter().zip(&run.answers) {
            let verdict = if score::exact(answer, Some(&n.key)) { "recalled" } else { "MISSED" };
            table.row(&[n.place.into(), commas(n.at as u64), n.key.clone(), answer.clone(), verdict.into()]);
        }
        let rss = |x: Option<u64>| x.map_or("unknown".into(), bytes);
        format!(
            "\n{table}\n\n\
             speed              {} tokens/s, {} for three inputs\n\
             process memory     {} at 10 %, {} at 100 %\n\
             state              {} an input, whatever its length\n\
             key/value cache    {} an input would have been needed without the memory",
            commas(run.rate as u64),
            seconds(run.seconds),
            rss(run.rss_10),
            rss(run.rss_100),
            bytes(run.state_bytes),
            bytes(run.kv_cache_bytes),
        )
    }
}

/// One key and where it stands.
struct Needle {
    place: &'static str,
    depth: f64,
    key: String,
    tokens: Vec<u32>,
    at: usize,
}

/// Inputs read in lockstep, each `opening, filler, key, filler, question`.
struct Inputs<'a> {
    filler: &'a Filler,
    opening: Vec<u32>,
    question: Vec<u32>,
    needles: Vec<Needle>,
    total: usize,
}

/// What came out.
struct Run {
    answers: Vec<String>,
    rate: f64,
    seconds: f64,
    rss_10: Option<u64>,
    rss_100: Option<u64>,
    state_bytes: u64,
    kv_cache_bytes: u64,
}

impl<'a> Inputs<'a> {
    fn new(loaded: &Loaded, filler: &'a Filler, total: usize, seed: u64) -> Result<Self> {
        let (opening, question) = (loaded.tokenizer.encode(wording::INTRO), loaded.tokenizer.encode(wording::QUESTION));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut needles = Vec::new();
        let far = BEFORE_QUESTION * loaded.model.config().infini.segment_len;
        for (place, depth) in PLACES {
            let key = digits(&mut rng, DIGITS, 0.0);
            let tokens = loaded.tokenizer.encode(&wording::KEY.replace("{k}", &key));
            let Some(last) = total.checked_sub(question.len() + far + tokens.len()).filter(|l| *l > opening.len())
            else {
                let least = opening.len() + question.len() + far + tokens.len() + 1;
                return Err(usage(format!("--tokens {total}: too few to hide a key: choose {least} or more")));
            };
            let at = opening.len() + (depth * (last - opening.len()) as f64) as usize;
            needles.push(Needle { place, depth, key, tokens, at });
        }
        Ok(Inputs { filler, opening, question, needles, total })
    }

    /// Tokens `from..to` of input `i`.
    fn copy(&self, i: usize, from: usize, to: usize, out: &mut Vec<u32>) {
        let n = &self.needles[i];
        let asked = self.total - self.question.len();
        let parts = [
            (0, Some(&self.opening)),
            (self.opening.len(), None),
            (n.at, Some(&n.tokens)),
            (n.at + n.tokens.len(), None),
            (asked, Some(&self.question)),
            (self.total, None),
        ];
        for pair in parts.windows(2) {
            let ((start, part), (end, _)) = (pair[0], pair[1]);
            let (a, b) = (from.max(start), to.min(end));
            match part {
                _ if a >= b => {}
                Some(tokens) => out.extend_from_slice(&tokens[a - start..b - start]),
                None => self.filler.copy(a as u64, b - a, out),
            }
        }
    }

    fn read(&self, loaded: &Loaded) -> Result<Run> {
        let (model, rows) = (&loaded.model, self.needles.len());
        if model.grows() {
            bail!("this model has no constant memory: it has layers of full attention: choose another with --model");
        }
        let mut state = model.state(rows);
        let mut progress = Progress::new("reading", "tokens", Some((self.total * rows) as u64));
        let (start, mut rss_10) = (Instant::now(), None);
        let mut tokens = Vec::with_capacity(rows * PIECE);
        for from in (0..self.total).step_by(PIECE) {
            let to = (from + PIECE).min(self.total);
            tokens.clear();
            (0..rows).for_each(|i| self.copy(i, from, to, &mut tokens));
            model.forward(&mut state, &tokens, if to == self.total { Want::Last } else { Want::Nothing });
            if rss_10.is_none() && to * 10 >= self.total {
                rss_10 = rss::current();
            }
            progress.set((to * rows) as u64);
        }
        drop(progress);
        let elapsed = start.elapsed().as_secs_f64();
        let rss_100 = rss::current();
        let state_bytes = (state.size_bytes() / rows) as u64;
        Ok(Run {
            answers: self.ask(loaded, state),
            rate: (self.total * rows) as f64 / elapsed,
            seconds: elapsed,
            rss_10,
            rss_100,
            state_bytes,
            kv_cache_bytes: kv_cache_bytes(model.config(), self.total as u64),
        })
    }

    /// Continues each question up to the full stop.
    fn ask(&self, loaded: &Loaded, mut state: State) -> Vec<String> {
        let longest = DIGITS[1] + 3;
        let rows =
            greedy(&loaded.model, &mut state, longest, &|row| loaded.tokenizer.decode(row).contains(['.', '\n']));
        let text = |row: &Vec<u32>| loaded.tokenizer.decode(row);
        rows.iter().map(|r| text(r).split(['.', '\n']).next().unwrap_or_default().trim().to_string()).collect()
    }
}

/// Keys and values of every layer and token, in f32.
fn kv_cache_bytes(config: &ModelConfig, tokens: u64) -> u64 {
    tokens * (config.num_hidden_layers * config.kv_heads() * config.head_width() * 2 * 4) as u64
}
