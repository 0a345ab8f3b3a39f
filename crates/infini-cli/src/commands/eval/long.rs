//! What the evaluations of long inputs with one question share: flags, and how results are shown.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use infini::eval::long::{Cell, Inputs, Options, Row, run};
use infini::eval::rss;
use infini::folder::Loaded;
use infini::plot;
use infini::tasks::filler::{Filler, Source, held_out_books};
use infini::text::Tokenizer;
use serde_json::json;

use super::subject::Subject;
use crate::console::{Outcome, Table, bytes, commas, note, say};
use crate::progress::Progress;
use crate::report::{JsonFlag, writable, write};

/// The flags that they share.
#[derive(Args, Debug)]
pub struct Long {
    #[command(flatten)]
    pub subject: Subject,
    /// What is in between: paper, prose, books (with --books) or a text file
    #[arg(long, value_name = "paper|prose|books|FILE", default_value = "prose")]
    filler: Source,
    /// Folder of books for --filler books: DIR/valid, or DIR itself
    #[arg(long, value_name = "DIR")]
    books: Option<PathBuf>,
    /// Inputs per task and length
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Inputs read side by side
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Draws other inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Draw task × length
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    json: JsonFlag,
}

impl Long {
    /// Refuses places that cannot be written, then loads the model.
    pub fn load(&self) -> Result<Loaded> {
        self.json.check()?;
        self.plot.iter().try_for_each(|p| writable(p))?;
        self.subject.load()
    }

    /// The text in between, enough for inputs of `longest` tokens.
    pub fn filler(&self, tokenizer: &Tokenizer, longest: usize) -> Result<Filler> {
        let books = self.books.as_deref().map(held_out_books);
        Ok(Filler::new(&self.filler, tokenizer, books.as_deref(), 1 << 32, longest.clamp(1 << 14, 1 << 20))?)
    }

    /// Evaluates tasks at lengths and shows what came out.
    pub fn measure(
        &self,
        name: &str,
        loaded: &Loaded,
        inputs: &dyn Inputs,
        tasks: &[String],
        lengths: &[usize],
    ) -> Result<Outcome> {
        let cells = tasks.iter().flat_map(|t| lengths.iter().map(|l| Cell { task: t.clone(), length: *l }));
        let options = Options {
            samples: self.samples as usize,
            batch: self.batch as usize,
            reads: self.subject.reads(),
            seed: self.seed,
        };
        let mut progress = Progress::new("reading", "tokens", None);
        let rows =
            run(&loaded.model, &loaded.tokenizer, inputs, &cells.collect::<Vec<_>>(), &options, &mut |done, total| {
                progress.total(total);
                progress.set(done);
            })?;
        drop(progress);
        if !self.json.on_stdout() {
            say(table(&rows))?;
            note(format_args!("peak memory {}", rss::peak().map_or("unknown".into(), bytes)));
        }
        let filler = format!("{:?}", self.filler).to_lowercase();
        if let Some(path) = &self.plot {
            let title = format!("{name}: {}, {filler}", self.subject.model.model.display());
            write(path, &plot::tasks(&title, &rows)?)?;
        }
        self.json.write(self.subject.describe(json!({
            "filler": filler, "seed": self.seed, "samples": self.samples, "rows": rows, "peak_rss_bytes": rss::peak(),
        })))?;
        Ok(Outcome::Done)
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["task", "length", "n", "exact", "95 % interval", "tokens/s"]);
    for r in rows {
        table.row(&[
            r.task.clone(),
            commas(r.length as u64),
            r.n.to_string(),
            format!("{:.3}", r.exact),
            format!("{:.3} – {:.3}", r.interval[0], r.interval[1]),
            commas((r.tokens as f64 / r.seconds.max(1e-9)) as u64),
        ]);
    }
    table
}
