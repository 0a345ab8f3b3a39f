//! `infini eval passkey`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use infini::eval::Template;
use infini::eval::passkey::{Options, Report, Said, Wording, run};
use infini::plot;
use infini::tasks::filler::{Source, held_out_books};
use serde_json::json;

use super::subject::Subject;
use crate::console::{Outcome, Table, bytes, commas, say};
use crate::progress::Progress;
use crate::report::{JsonFlag, writable, write};

/// Recall of keys hidden at any depth of an input of any length
#[derive(Args, Debug)]
#[command(
    long_about = "Recall of keys hidden at any depth of an input of any length

Inputs are streamed, batches of them side by side. A key counts as recalled if the greedy answer, leading blanks stripped, \
starts with it and no digit follows. Rates come with n and a 95 % interval (Wilson).

With --changed every key is told once more, halfway between its depth and the question, with another number: right is that one, \
and \"stale\" is how often the answer is the one from before. With --absent answers are told apart: \"unknown\", another key's \
number, a number that was no key, no number. If keys have names, those told name first and those told number first are \
counted apart, too.",
    after_help = "Examples:
  infini eval passkey --lengths 4096,32768,131072 --depths 0,0.5,1 --samples 20
  infini eval passkey --filler prose --wording held-out --plot heat.svg
  infini eval passkey --filler books --data DIR            books in DIR/valid or DIR
  infini eval passkey --prompt prompt.txt --filler my.txt  your own haystack
  infini eval passkey --knock-out                          memory reads empty: what attention alone can do
  infini eval passkey --absent                             no key was hidden: is one invented?
  infini eval passkey --changed --keys 4                   keys change later in the text: the last number counts

A prompt file holds {filler} exactly twice, {needle} (the bare key) between them, and perhaps {question}."
)]
pub struct Passkey {
    #[command(flatten)]
    subject: Subject,
    /// Tokens of the inputs, question included
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [4096, 32768], value_parser = length)]
    lengths: Vec<usize>,
    /// Where keys stand: 0 the start, 1 right before the question
    #[arg(long, value_name = "X,X", value_delimiter = ',', default_values_t = [0.0, 0.5, 1.0], value_parser = fraction)]
    depths: Vec<f64>,
    /// Inputs per length and depth
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Named keys in an input; each is asked for
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    keys: u32,
    /// What the keys are hidden in: paper, prose, books (with --data) or a text file
    #[arg(long, value_name = "paper|prose|books|FILE", default_value = "paper")]
    filler: Source,
    /// Folder of books: DIR/valid, or DIR itself
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Whose words: the paper's, those of training, or those that training never sees
    #[arg(long, value_name = "paper|trained|held-out", default_value = "paper", conflicts_with = "prompt")]
    wording: Wording,
    /// Your own words
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keys", "absent", "changed"])]
    prompt: Option<PathBuf>,
    /// Ask for a key that was not hidden; right is "unknown"
    #[arg(long)]
    absent: bool,
    /// Tell every key once more with another number; right is the last one
    #[arg(long, conflicts_with = "absent")]
    changed: bool,
    /// Inputs read side by side
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Draws other keys, fillers and wordings
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write the rows as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw depth × length
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    json: JsonFlag,
}

fn length(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("an input needs tokens: choose 1024 or more".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number of tokens".into()),
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("not a depth: choose 0 (the start) to 1 (the end)".into()),
    }
}

impl Passkey {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        self.csv.iter().chain(&self.plot).try_for_each(|p| writable(p))?;
        let prompt = self.prompt.as_ref().map(|path| -> Result<Template> {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read: {}", path.display()))?;
            Template::parse(&text).with_context(|| path.display().to_string())
        });
        let options = Options {
            lengths: self.lengths.clone(),
            depths: self.depths.clone(),
            samples: self.samples as usize,
            keys: self.keys as usize,
            filler: self.filler.clone(),
            wording: self.wording,
            prompt: prompt.transpose()?,
            absent: self.absent,
            changed: self.changed,
            knock_out: self.subject.knock_out,
            books: self.data.as_deref().map(held_out_books),
            batch: self.batch as usize,
            seed: self.seed,
            ..Options::default()
        };
        let loaded = self.subject.load()?;
        let mut progress = Progress::new("reading", "tokens", None);
        let report = run(&loaded.model, &loaded.tokenizer, &options, &mut |done, total| {
            progress.total(total);
            progress.set(done);
        })?;
        drop(progress);
        if !self.json.on_stdout() {
            say(table(&report))?;
        }
        if let Some(path) = &self.csv {
            write(path, &report.to_csv())?;
        }
        let filler = format!("{:?}", self.filler).to_lowercase();
        if let Some(path) = &self.plot {
            let title = format!("{}, {filler}", self.subject.model.model.display()).to_lowercase();
            write(path, &plot::heat(&title, &report.rows)?)?;
        }
        let mut fields = serde_json::to_value(&report)?;
        (fields["filler"], fields["seed"]) = (json!(filler), json!(self.seed));
        self.json.write(self.subject.describe(fields))?;
        Ok(Outcome::Done)
    }
}

fn table(report: &Report) -> String {
    let absent = report.rows.iter().any(|r| r.invented.is_some());
    let mut head = vec!["length", "depth", "n", "exact", "95 % interval", if absent { "invented" } else { "digits" }];
    if report.rows.iter().any(|r| r.stale.is_some()) {
        head.push("stale");
    }
    let mut table = Table::new(&head);
    for r in &report.rows {
        let mut row = vec![
            commas(r.length as u64),
            format!("{}", r.depth),
            r.n.to_string(),
            format!("{:.3}", r.exact),
            format!("{:.3} – {:.3}", r.interval[0], r.interval[1]),
            format!("{:.3}", r.invented.unwrap_or(r.digit)),
        ];
        row.extend(r.stale.map(|x| format!("{x:.3}")));
        table.row(&row);
    }
    let mut table = table.to_string();
    if let (Some(name), Some(number)) = (&report.name_first, &report.number_first) {
        for (what, p) in [("name before number", name), ("number before name", number)] {
            let [low, high] = p.interval;
            table += &format!("\n{what}: {:.3} exact of {}, {low:.3} – {high:.3}", p.exact, p.n);
        }
    }
    table += &said(report);
    let mut writes = Table::new(&["layer", "head", "tokens written", "mean strength"]);
    for w in &report.writes {
        writes.row(&[
            w.layer.to_string(),
            w.head.to_string(),
            format!("{:.5} %", 100.0 * w.open),
            format!("{:.1e}", w.strength),
        ]);
    }
    let rss = report.peak_rss_bytes.map_or("unknown".into(), bytes);
    format!(
        "{table}\n\n{writes}\n\n{} tokens at {}/s, peak memory {rss}, state {} an input",
        commas(report.tokens),
        commas(report.tokens_per_second as u64),
        bytes(report.state_bytes as u64)
    )
}

/// What was answered about keys that nobody told, over all rows; nothing if such were not asked for.
fn said(report: &Report) -> String {
    let answers: Vec<(f64, &Said)> = report.rows.iter().filter_map(|r| Some((r.n as f64, r.said.as_ref()?))).collect();
    if answers.is_empty() {
        return String::new();
    }
    let count = |of: fn(&Said) -> f64| answers.iter().map(|(n, said)| n * of(said)).sum::<f64>().round();
    format!(
        "\nof {} answers {} \"unknown\", {} another key's number, {} a number that was no key, {} no number",
        answers.iter().map(|(n, _)| n).sum::<f64>(),
        count(|s| s.unknown),
        count(|s| s.another_key),
        count(|s| s.other_number),
        count(|s| s.no_number),
    )
}
