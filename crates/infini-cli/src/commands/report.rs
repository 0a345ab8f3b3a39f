//! `infini report`: runs as one page.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use infini::report::{Run, report};

use crate::console::{Outcome, say};
use crate::report::{writable, write};

/// Put runs side by side on one page
#[derive(Args, Debug)]
#[command(
    long_about = "Put runs side by side on one page

Reads metrics.jsonl and the JSON results of `infini eval perplexity`, `infini eval copy` and `infini demo --book` out of \
run folders. Each text that was scored has tables of its own; in them the first run is what the others are compared with. A folder named twice \
counts once, so that `infini report RUNS/control RUNS/*` puts the control first. The page is one HTML file with tables and pictures that needs nothing else.",
    after_help = "Examples:
  infini report runs/books/control runs/books/added-linear --out report.html
  infini report runs/books/control runs/books/* --out report.html --pictures pictures/"
)]
pub struct Report {
    /// Run folders, the one to compare with first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write the page
    #[arg(long, value_name = "FILE.html")]
    out: PathBuf,
    /// Also write the pictures into this folder
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
    /// Heading of the page
    #[arg(long, default_value = "Runs")]
    title: String,
}

impl Report {
    /// Writes it.
    pub fn run(&self) -> Result<Outcome> {
        writable(&self.out)?;
        let mut seen = BTreeSet::new();
        let once = |dir: &&PathBuf| seen.insert(dir.canonicalize().unwrap_or_else(|_| PathBuf::clone(dir)));
        let runs: Vec<&PathBuf> = self.runs.iter().filter(once).collect();
        let runs = runs.into_iter().map(|dir| Run::read(dir)).collect::<infini::Result<Vec<Run>>>()?;
        let page = report(&self.title, &runs)?;
        write(&self.out, &page.html)?;
        if let Some(dir) = &self.pictures {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make: {}", dir.display()))?;
            page.pictures.iter().try_for_each(|(name, svg)| write(&dir.join(name), svg))?;
        }
        say(format_args!("{}: {} runs, {} pictures", self.out.display(), runs.len(), page.pictures.len()))?;
        Ok(Outcome::Done)
    }
}
