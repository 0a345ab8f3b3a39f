//! `infini eval perplexity`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use infini::eval::perplexity::{Bucket, Options, Score, run};
use infini::eval::rss;
use infini::plot::{self, Series};
use infini::state::Reads;
use serde_json::json;

use super::documents::Data;
use super::subject::Subject;
use crate::console::{Outcome, Table, bytes, commas, say};
use crate::progress::Progress;
use crate::report::{JsonFlag, writable, write};

/// Perplexity of whole documents, streamed from beginning to end
#[derive(Args, Debug)]
#[command(
    long_about = "Perplexity of whole documents, streamed from beginning to end

Every token but a document's first is scored. Words that recur are measured apart: those that stand in the window, and \
those that were last seen wholly before it, where only a memory can help.",
    after_help = "Examples:
  infini eval perplexity --model runs/books --data book.txt
  infini eval perplexity --model runs/books --data books/ --unwrap --by-position --plot loss.svg
  infini eval perplexity --model runs/books --data shards --knock-out --json knock-out.json
  infini eval perplexity --model runs/books --data shards --swap      each document with another one's memory
  infini eval perplexity --model runs/full --data shards --context 4096
  infini eval perplexity --model smollm2 --data book.txt --max-tokens 4096                      full attention
  infini eval perplexity --model smollm2 --data book.txt --max-tokens 4096 --window 512 --sink 1
  infini eval perplexity --model smollm2 --adapter A --data book.txt --max-tokens 4096
  infini eval perplexity --model smollm2 --adapter A --data book.txt --before other.txt         a filled memory"
)]
pub struct Perplexity {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    data: Data,
    /// Read this text first, unscored, before every document: what a filled memory costs or wins
    #[arg(long, value_name = "FILE", conflicts_with_all = ["swap", "context"])]
    before: Option<PathBuf>,
    /// Score windows of N tokens that each start from nothing
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    context: Option<u64>,
    /// Read each document with the memory of another one
    #[arg(long, conflicts_with_all = ["knock_out", "context"])]
    swap: bool,
    /// Print the loss by position, and of recurring words by distance
    #[arg(long)]
    by_position: bool,
    /// Write the loss by position and distance to a table
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Draw the loss by position
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    json: JsonFlag,
}

impl Perplexity {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        self.csv.iter().chain(&self.plot).try_for_each(|p| writable(p))?;
        let loaded = self.subject.load()?;
        let documents = self.data.read(&loaded.tokenizer)?;
        let options = Options {
            reads: if self.swap { Reads::Swapped } else { self.subject.reads() },
            context: self.context.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            before: self.before.as_ref().map_or(Ok(Vec::new()), |path| self.data.whole(path, &loaded.tokenizer))?,
        };
        let start = Instant::now();
        let mut progress = Progress::new("scoring", "tokens", None);
        let (all, rows) = run(&loaded.model, &loaded.tokenizer, &documents, &options, &mut |done, total| {
            progress.total(total);
            progress.set(done);
        })?;
        drop(progress);
        let rate = all.tokens as f64 / start.elapsed().as_secs_f64();
        let state = loaded.model.state(1);
        if !self.json.on_stdout() {
            self.print(&all, &rows)?;
            let memory = bytes(state.memory_bytes() as u64);
            say(format_args!(
                "{} tokens/s; compressed memory {memory}, state {}",
                commas(rate as u64),
                bytes(state.size_bytes() as u64)
            ))?;
        }
        if let Some(path) = &self.csv {
            write(path, &csv(&all))?;
        }
        if let Some(path) = &self.plot {
            let points = all.by_position.iter().map(|b| (b.to as f64, b.loss)).collect();
            let series = Series { name: "loss".into(), points };
            write(path, &plot::lines("Loss by position in the document", "token", "nats per token", true, &[series])?)?;
        }
        let reads = if self.swap {
            "swapped"
        } else if self.subject.knock_out {
            "nothing"
        } else {
            "own"
        };
        self.json.write(self.subject.describe(json!({
            "reads": reads, "context": self.context, "before": self.before, "before_tokens": options.before.len(),
            "loss": all.loss, "perplexity": all.perplexity, "word_perplexity": all.word_perplexity,
            "bits_per_byte": all.bits_per_byte, "tokens": all.tokens, "bytes": all.bytes, "words": all.words,
            "by_position": all.by_position, "words_seen": all.words_seen, "pairs_seen": all.pairs_seen,
            "documents": rows, "tokens_per_second": rate, "peak_rss_bytes": rss::peak(),
            "state_bytes": state.size_bytes(), "memory_bytes": state.memory_bytes(),
        })))?;
        Ok(Outcome::Done)
    }

    fn print(&self, all: &Score, rows: &[Score]) -> Result<()> {
        let mut table = Table::new(&["document", "tokens", "loss", "perplexity", "per word", "bits/byte", "beyond"]);
        for (name, s) in rows.iter().map(|s| (s.name.as_str(), s)).chain([("all", all)]) {
            table.row(&[
                name.into(),
                commas(s.tokens),
                format!("{:.4}", s.loss),
                format!("{:.2}", s.perplexity),
                format!("{:.1}", s.word_perplexity),
                format!("{:.4}", s.bits_per_byte),
                format!("{:.4}", s.words_seen.beyond.loss),
            ]);
        }
        say(table)?;
        let mut table = Table::new(&["last seen", "tokens of words", "loss", "of pairs", "loss"]);
        let (w, p) = (&all.words_seen, &all.pairs_seen);
        for (name, w, p) in
            [("never", &w.new, &p.new), ("in the window", &w.window, &p.window), ("beyond it", &w.beyond, &p.beyond)]
        {
            let nats = |b: &Bucket| format!("{:.4}", b.loss);
            table.row(&[name.into(), commas(w.tokens), nats(w), commas(p.tokens), nats(p)]);
        }
        say(table)?;
        if self.by_position {
            for (title, buckets) in
                [("position", &all.by_position), ("distance of the word", &all.words_seen.by_distance)]
            {
                let mut table = Table::new(&[title, "tokens", "loss"]);
                for b in buckets {
                    let range = format!("{} – {}", commas(b.from), commas(b.to));
                    table.row(&[range, commas(b.tokens), format!("{:.4}", b.loss)]);
                }
                say(table)?;
            }
        }
        Ok(())
    }
}

fn csv(all: &Score) -> String {
    let mut out = String::from("what,from,to,tokens,loss\n");
    let lists = [
        ("position", &all.by_position),
        ("word distance", &all.words_seen.by_distance),
        ("pair distance", &all.pairs_seen.by_distance),
    ];
    for (what, buckets) in lists {
        for b in buckets {
            out += &format!("{what},{},{},{},{}\n", b.from, b.to, b.tokens, b.loss);
        }
    }
    out
}
