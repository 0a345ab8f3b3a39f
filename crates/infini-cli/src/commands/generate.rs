//! `infini generate`: continues a text.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use infini::generate::{Finish, sample};
use infini::model::Want;
use infini::session::Session;
use infini::text::chat::{ChatTemplate, Message};
use infini_format::io::RealIo;
use serde_json::json;

use crate::console::{Outcome, note};
use crate::models::ModelFlag;
use crate::report::JsonFlag;
use crate::sampling::SamplingFlags;

/// Continue a text
#[derive(Args, Debug)]
#[command(
    long_about = "Continue a text

Writes what the model thinks comes next, as it comes: greedily, or drawn with the sampling flags. It ends at the model's \
own end, at a stop text (which is not printed) or after --max-tokens. With --chat the prompt is a user's message, put \
into the model's chat template.",
    after_help = "Examples:
  infini generate --model smollm2 --prompt \"Once upon a time\"
  infini generate --model smollm2 --chat --prompt \"Name three rivers.\" --temperature 0.7 --top-p 0.95
  infini generate --prompt-file start.txt --max-tokens 200 --stop \"\\n\\n\"
  infini generate --memory book.mem --prompt \"The pass key is\""
)]
pub struct Generate {
    #[command(flatten)]
    model: ModelFlag,
    /// The text to go on from
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file")]
    prompt: Option<String>,
    /// A file with that text (- for stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// The prompt is a message to an instruct model
    #[arg(long)]
    chat: bool,
    /// Go on after a memory file, which stays as it is
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Longest continuation
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_tokens: u32,
    /// End before this text (may be given several times; \n is a newline)
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    json: JsonFlag,
}

impl Generate {
    /// Generates.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let mut sampler = self.sampling.sampler(0.0, 1.0)?;
        let prompt = self.prompt()?;
        let loaded = self.model.load()?;
        let (mut state, fresh) = match &self.memory {
            Some(path) => (Session::open(&loaded, &RealIo, path)?.state().fork(), false),
            None => (loaded.model.state(1), true),
        };
        let mut ids = if self.chat {
            let Some(source) = &loaded.template else {
                bail!("no chat template: {}: leave out --chat, or take an instruct model", self.model.model.display());
            };
            ChatTemplate::new(source)?.encode(&loaded.tokenizer, &[Message::new("user", prompt)], true)?
        } else {
            loaded.tokenizer.encode(&prompt)
        };
        if !self.chat && fresh {
            ids.splice(0..0, loaded.tokenizer.begin().iter().copied());
        }
        if ids.is_empty() {
            bail!("the prompt is empty: give some text");
        }
        loaded.model.check_room(&state, ids.len())?;
        let start = Instant::now();
        loaded.model.forward(&mut state, &ids, Want::Last);
        let read = start.elapsed().as_secs_f64();
        sampler.saw(&ids);
        let stop: Vec<String> =
            self.stop.iter().map(|s| s.replace("\\n", "\n")).chain(loaded.stop.iter().cloned()).collect();
        let (mut text, mut failed) = (String::new(), None);
        let mut emit = |part: &str| {
            text.push_str(part);
            if self.json.on_stdout() {
                return ControlFlow::Continue(());
            }
            let mut out = std::io::stdout().lock();
            match out.write_all(part.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        };
        let start = Instant::now();
        let max = self.max_tokens as usize;
        let (written, finish) = sample(&loaded, &mut state, &mut sampler, max, &stop, &mut emit);
        let seconds = start.elapsed().as_secs_f64();
        if let Some(e) = failed {
            return Err(e.into());
        }
        if !self.json.on_stdout() {
            println!();
        }
        if finish == Finish::Full {
            note("full attention has come to the positions that the model was made for");
        }
        self.json.write(json!({
            "text": text, "finish": format!("{finish:?}").to_lowercase(), "prompt_tokens": ids.len(), "ids": written,
            "tokens": written.len(), "prompt_seconds": read, "tokens_per_second": written.len() as f64 / seconds,
        }))?;
        Ok(Outcome::Done)
    }

    fn prompt(&self) -> Result<String> {
        match &self.prompt_file {
            None => Ok(self.prompt.clone().unwrap_or_default()),
            Some(path) if path.as_os_str() == "-" => {
                std::io::read_to_string(std::io::stdin()).context("cannot read: stdin")
            }
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read: {}", path.display())),
        }
    }
}
