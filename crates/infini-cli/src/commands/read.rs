//! `infini read`: streams documents into a memory file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use infini::session::Session;
use infini::text::reader::Reader;
use infini_format::io::{Lock, RealIo};
use serde_json::json;

use crate::console::{Outcome, bytes, commas, note, say, seconds};
use crate::models::ModelFlag;
use crate::progress::Progress;
use crate::report::{JsonFlag, writable};
use crate::signals::Interrupt;

/// Text is handed to the model in pieces, so that Ctrl-C is heard soon.
const PIECE: usize = 16 << 10;
/// What a crash may cost.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Read documents into a memory file
#[derive(Args, Debug)]
#[command(
    long_about = "Read documents into a memory file

Reads text (UTF-8; other encodings are detected and named), Markdown, HTML and EPUB, whole folders in sorted order, or \
stdin, and writes what the model keeps of it. The file's size does not depend on how much was read. Ctrl-C saves; the same \
command goes on where it stopped. The file is as private as the document: only its owner can read it.",
    after_help = "Examples:
  infini read book.txt --memory book.mem
  infini read notes/ report.html --memory work.mem
  infini read chapter-2.txt --memory book.mem --append
  zcat log.gz | infini read - --memory log.mem"
)]
pub struct Read {
    /// Files, folders, or - for stdin
    #[arg(required = true, value_name = "FILE|DIR|-")]
    inputs: Vec<PathBuf>,
    /// Memory file to write
    #[arg(long, value_name = "OUT.mem")]
    memory: PathBuf,
    /// Go on in the same document after what the memory already holds
    #[arg(long)]
    append: bool,
    #[command(flatten)]
    model: ModelFlag,
    #[command(flatten)]
    json: JsonFlag,
}

impl Read {
    /// Reads.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        writable(&self.memory)?;
        let reader = Reader::open(&self.inputs)?;
        let loaded = self.model.load()?;
        // held from here on: two readers of one memory would lose what one of them read
        let lock = Lock::acquire(&self.memory)?;
        let mut session = match self.memory.exists() {
            true => Session::open(&loaded, &RealIo, &self.memory)?,
            false => Session::new(&loaded),
        };
        let mut skip = self.begin(&mut session)?;
        let interrupt = Interrupt::install()?;
        let (start, first) = (Instant::now(), session.state().position());
        let mut saved = Instant::now();
        let mut done = skip;
        let mut progress = Progress::new("reading", "bytes", reader.total_bytes());
        progress.begin_at(skip);
        'reading: for piece in reader {
            let piece = piece?;
            if let Some(words) = &piece.note {
                note(words);
            }
            let mut text = skipped(&piece.text, &mut skip);
            while !text.is_empty() {
                let (now, later) = text.split_at(text.floor_char_boundary(PIECE));
                text = later;
                session.push(now)?;
                done += now.len() as u64;
                progress.extra(format!("{} tokens", commas(session.state().position())));
                progress.set(done);
                if interrupt.raised() {
                    break 'reading;
                }
                if saved.elapsed() > SAVE_EVERY {
                    session.save(&RealIo, &self.memory, Some(&lock))?;
                    saved = Instant::now();
                }
            }
        }
        drop(progress);
        // also where stdin has ended: whoever wrote to it may have died of the same Ctrl-C
        if interrupt.raised() {
            session.save(&RealIo, &self.memory, Some(&lock))?;
            let tokens = commas(session.state().position());
            bail!("interrupted: {}: holds {tokens} tokens; the same command goes on from there", self.memory.display());
        }
        if skip > 0 {
            bail!(
                "the input has become shorter: {}: give the text whose reading was interrupted",
                self.names().join(", ")
            );
        }
        if done == 0 {
            bail!("nothing to read: {}: the input is empty", self.names().join(", "));
        }
        session.finish()?;
        session.save(&RealIo, &self.memory, Some(&lock))?;
        self.report(&session, session.state().position() - first, start.elapsed().as_secs_f64())?;
        Ok(Outcome::Done)
    }

    /// Makes the session ready for the inputs; returns the bytes of text that it has already read of them.
    fn begin(&self, session: &mut Session) -> Result<u64> {
        let file = self.memory.display();
        let fresh = session.generation() == 0;
        let names = self.names();
        if !fresh && !session.progress().complete {
            if !session.sources().ends_with(&names) {
                bail!(
                    "another reading is unfinished: {file}: it was reading {}: finish that first, or remove the file",
                    session.sources().join(", ")
                );
            }
            let skip = session.progress().bytes - session.progress().from;
            note(format_args!("going on in {file} after {} tokens", commas(session.state().position())));
            return Ok(skip);
        }
        match (fresh, self.append) {
            (true, true) => bail!("no such memory file: {file}: leave out --append to make it"),
            (false, false) => bail!("the memory file exists: {file}: add to it with --append, or remove it"),
            _ => session.begin(&names),
        }
        Ok(0)
    }

    /// The inputs as the memory file records them.
    fn names(&self) -> Vec<String> {
        let name = |p: &PathBuf| if p == Path::new("-") { "stdin".into() } else { p.display().to_string() };
        self.inputs.iter().map(name).collect()
    }

    fn report(&self, session: &Session, tokens: u64, secs: f64) -> Result<()> {
        let (position, state) = (session.state().position(), session.state().size_bytes());
        let rate = tokens as f64 / secs.max(1e-9);
        if !self.json.on_stdout() {
            say(format_args!(
                "read {} tokens in {} ({}/s); {} holds {} tokens in {}",
                commas(tokens),
                seconds(secs),
                commas(rate as u64),
                self.memory.display(),
                commas(position),
                bytes(state as u64)
            ))?;
        }
        self.json.write(json!({
            "memory": self.memory, "tokens": tokens, "position": position, "seconds": secs, "tokens_per_second": rate,
            "state_bytes": state, "generation": session.generation(), "sources": session.sources(),
        }))
    }
}

/// What is left of `text` after the first `skip` bytes of the input.
fn skipped<'a>(text: &'a str, skip: &mut u64) -> &'a str {
    let n = text.floor_char_boundary((*skip).min(text.len() as u64) as usize);
    *skip -= n as u64;
    // an input that has changed may be cut inside a character: there it goes on
    if *skip < 4 && n < text.len() {
        *skip = 0;
    }
    &text[n..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_skipped() {
        let mut skip = 5;
        assert_eq!([skipped("abc", &mut skip), skipped("defg", &mut skip), skipped("hi", &mut skip)], ["", "fg", "hi"]);
        let mut skip = 1;
        assert_eq!((skipped("äb", &mut skip), skip), ("äb", 0));
        let mut skip = 9;
        assert_eq!((skipped("abc", &mut skip), skip), ("", 6));
    }
}
