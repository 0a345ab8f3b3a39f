//! `infini chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use infini::conversation::{Conversation, History};
use infini::folder::Loaded;
use infini::generate::{Finish, Sampler};
use infini::session::Session;
use infini::state::State;
use infini_format::io::RealIo;

use crate::console::{Outcome, bytes, commas, note, say};
use crate::models::ModelFlag;
use crate::sampling::SamplingFlags;
use crate::signals::Interrupt;

/// Talk to an instruct model
#[derive(Args, Debug)]
#[command(
    long_about = "Talk to an instruct model

Each line is a message; the answer appears as it is written. The history can be of any length: with a memory it is read \
once and kept in constant space, without one the oldest turns are forgotten when full attention has no room left. Ctrl-C \
ends an answer, a second one the command.

/save FILE     keep the conversation, with everything read before it, in a memory file
/load FILE     go on with one, without reading anything again
/fork          remember this point; /back returns to it
/memory off    answer without what the memory knows; /memory on
/stats         what has been read, and what it takes
/quit          end (so does the end of the input)",
    after_help = "Examples:
  infini chat --model smollm2
  infini chat --model smollm2 --memory book.mem
  echo \"Name three rivers.\" | infini chat --model smollm2"
)]
pub struct Chat {
    #[command(flatten)]
    model: ModelFlag,
    /// Memory file to begin after, made by `infini read` or by /save; it stays as it is
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Longest answer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_tokens: u32,
    #[command(flatten)]
    sampling: SamplingFlags,
}

impl Chat {
    /// Talks.
    pub fn run(&self) -> Result<Outcome> {
        let sampler = self.sampling.sampler(0.2, 0.9)?;
        let loaded = self.model.load()?;
        let session = match &self.memory {
            Some(path) => Session::open(&loaded, &RealIo, path)?,
            None => Session::new(&loaded),
        };
        let mut talk = Talk::new(&loaded, session, sampler, self.max_tokens as usize)?;
        if let Some(text) = &self.system {
            talk.conversation.system(text)?;
        }
        let terminal = std::io::stdin().is_terminal();
        if terminal {
            note("/quit ends, /save FILE keeps the conversation, `infini chat --help` tells the rest");
        }
        let interrupt = Interrupt::install()?;
        let mut line = String::new();
        loop {
            if terminal {
                print!("> ");
                std::io::stdout().flush()?;
            }
            line.clear();
            if std::io::stdin().lock().read_line(&mut line)? == 0 {
                return Ok(Outcome::Done);
            }
            interrupt.flag().store(false, Ordering::Relaxed);
            let words = line.trim();
            match words.strip_prefix('/') {
                Some("quit" | "exit") => return Ok(Outcome::Done),
                Some(command) => {
                    if let Err(e) = talk.command(command) {
                        note(format_args!("{e:#}"));
                    }
                }
                None if words.is_empty() => {}
                None => talk.turn(words, &interrupt)?,
            }
        }
    }
}

/// A conversation under way.
struct Talk<'a> {
    loaded: &'a Loaded,
    session: Session<'a>,
    conversation: Conversation<'a>,
    branches: Vec<(State, History)>,
    sampler: Sampler,
    max_tokens: usize,
    memory: bool,
    /// Tokens per second of the last answer.
    rate: f64,
}

impl<'a> Talk<'a> {
    fn new(loaded: &'a Loaded, session: Session<'a>, sampler: Sampler, max_tokens: usize) -> Result<Self> {
        let conversation = begin(loaded, &session)?;
        Ok(Talk { loaded, session, conversation, branches: Vec::new(), sampler, max_tokens, memory: true, rate: 0.0 })
    }

    fn turn(&mut self, text: &str, interrupt: &Interrupt) -> Result<()> {
        let mut failed = None;
        let (mut first, start) = (None, Instant::now());
        let mut emit = |part: &str| {
            first.get_or_insert_with(Instant::now);
            let mut out = std::io::stdout().lock();
            if let Err(e) = out.write_all(part.as_bytes()).and_then(|()| out.flush()) {
                failed = Some(e);
                return ControlFlow::Break(());
            }
            if interrupt.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let turn = self.conversation.say(text, &mut self.sampler, self.max_tokens, &mut emit);
        if let Some(e) = failed {
            return Err(e.into());
        }
        say("")?;
        match turn {
            Err(e) => note(e),
            Ok(turn) => {
                self.rate = turn.written as f64 / first.unwrap_or(start).elapsed().as_secs_f64().max(1e-9);
                if turn.forgotten > 0 {
                    note(format_args!("(no room left: the oldest {} turns are forgotten)", turn.forgotten));
                }
                match turn.finish {
                    Finish::Length => note("(cut at --max-tokens)"),
                    Finish::Full => note("(cut: full attention has no room left)"),
                    Finish::End | Finish::Stop | Finish::Break => {}
                }
            }
        }
        Ok(())
    }

    fn command(&mut self, command: &str) -> Result<()> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("save", file) if !file.is_empty() => {
                self.session.converse(self.conversation.state().fork(), self.conversation.history().clone());
                self.session.save(&RealIo, Path::new(file), None)?;
                note(format_args!("kept in {file}"));
            }
            ("load", file) if !file.is_empty() => {
                let session = Session::open(self.loaded, &RealIo, Path::new(file))?;
                self.go_on(begin(self.loaded, &session)?);
                self.session = session;
                note(format_args!("{} tokens are known, none was read again", commas(self.position())));
            }
            ("fork", "") => {
                self.branches.push((self.conversation.state().fork(), self.conversation.history().clone()));
                note("/back returns to this point");
            }
            ("back", "") => match self.branches.pop() {
                None => note("there was no /fork"),
                Some((state, history)) => self.go_on(Conversation::resume(self.loaded, state, history)?),
            },
            ("memory", "on" | "off") => {
                self.memory = rest.trim() == "on";
                self.conversation.set_knock_out(!self.memory);
            }
            ("stats", "") => self.stats()?,
            _ => note(format_args!(
                "unknown: /{command}: /save FILE, /load FILE, /fork, /back, /memory on|off, /stats, /quit"
            )),
        }
        Ok(())
    }

    fn go_on(&mut self, conversation: Conversation<'a>) {
        self.conversation = conversation;
        self.conversation.set_knock_out(!self.memory);
    }

    fn position(&self) -> u64 {
        self.conversation.state().position()
    }

    fn stats(&self) -> Result<()> {
        let state = self.conversation.state();
        let room = match self.loaded.model.room(state) {
            Some(n) => format!("full attention has room for {} more", commas(n)),
            None => "it does not grow".into(),
        };
        say(format_args!(
            "{} tokens read, {} turns, state {} ({room}), {:.1} tokens/s",
            commas(state.position()),
            self.conversation.history().messages.len(),
            bytes(state.size_bytes() as u64),
            self.rate
        ))?;
        for w in state.write_stats() {
            let open: u64 = w.open.iter().sum();
            let share = 100.0 * open as f64 / (w.tokens * w.open.len() as u64).max(1) as f64;
            say(format_args!("layer {}: {share:.2} % written", w.layer))?;
        }
        Ok(())
    }
}

/// The conversation that a session holds, or one that begins after what it has read.
fn begin<'a>(loaded: &'a Loaded, session: &Session) -> Result<Conversation<'a>> {
    let history = session.progress().chat.clone().unwrap_or_default();
    Ok(Conversation::resume(loaded, session.state().fork(), history)?)
}
