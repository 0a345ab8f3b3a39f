//! Progress on stderr with rate and remaining time: a bar on a terminal, plain lines elsewhere.
//! Nothing is shown in the first second.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::console::{commas, note, seconds};

const PATIENCE: Duration = Duration::from_secs(1);
/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// One piece of work of known or unknown size.
#[derive(Debug)]
pub struct Progress {
    what: String,
    unit: &'static str,
    total: Option<u64>,
    first: u64,
    start: Instant,
    last: Option<Instant>,
    bar: Option<ProgressBar>,
    extra: String,
}

impl Progress {
    /// Begins to count `unit`s.
    pub fn new(what: impl Into<String>, unit: &'static str, total: Option<u64>) -> Self {
        let (start, bar) = (Instant::now(), None);
        Progress { what: what.into(), unit, total, first: 0, start, last: None, bar, extra: String::new() }
    }

    /// How much there is, once it is known.
    pub fn total(&mut self, total: u64) {
        self.total = Some(total);
    }

    /// What was done before this process began.
    pub fn begin_at(&mut self, done: u64) {
        self.first = done;
    }

    /// Words behind the figures.
    pub fn extra(&mut self, words: impl Into<String>) {
        self.extra = words.into();
    }

    /// Says that `done` units are done.
    pub fn set(&mut self, done: u64) {
        let elapsed = self.start.elapsed();
        let terminal = stderr().is_terminal();
        let every = if terminal { REDRAW_EVERY } else { LINE_EVERY };
        if elapsed < PATIENCE || self.last.is_some_and(|l| l.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        let text = self.line(done, elapsed.as_secs_f64());
        if !terminal {
            return note(text);
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(self.total.unwrap_or(0));
            let template = if self.total.is_some() { "[{bar:24}] {msg}" } else { "{msg}" };
            bar.set_style(ProgressStyle::with_template(template).expect("a template").progress_chars("=> "));
            bar
        });
        bar.set_position(done);
        bar.set_message(text);
    }

    fn line(&self, done: u64, elapsed: f64) -> String {
        let rate = done.saturating_sub(self.first) as f64 / elapsed;
        let mut text = format!("{}: {}", self.what, commas(done));
        if let Some(total) = self.total {
            text += &format!("/{} {}, {:.0} %", commas(total), self.unit, 100.0 * done as f64 / total.max(1) as f64);
        } else {
            text += &format!(" {}", self.unit);
        }
        text += &if rate < 10.0 { format!(", {rate:.1}/s") } else { format!(", {}/s", commas(rate as u64)) };
        if let Some(left) = self.total.filter(|_| rate > 0.0).map(|t| t.saturating_sub(done) as f64 / rate) {
            text += &format!(", {} left", seconds(left));
        }
        if !self.extra.is_empty() {
            text += &format!(", {}", self.extra);
        }
        text
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rate_and_remaining_time() {
        let p = Progress::new("reading", "tokens", Some(4000));
        assert_eq!(p.line(1000, 2.0), "reading: 1,000/4,000 tokens, 25 %, 500/s, 6.0 s left");
        let mut p = Progress::new("reading", "tokens", None);
        p.extra("loss 1.5");
        assert_eq!(p.line(3, 2.0), "reading: 3 tokens, 1.5/s, loss 1.5");
    }
}
