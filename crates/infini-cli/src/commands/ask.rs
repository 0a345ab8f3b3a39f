//! `infini ask`: restores a memory and answers; the file stays as it is.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use infini::session::{Session, ask};
use infini_format::io::RealIo;

use crate::console::{Outcome, say};
use crate::models::ModelFlag;

/// Ask a memory file a question
#[derive(Args, Debug)]
#[command(
    long_about = "Ask a memory file a question

Restores what `infini read` has read, without reading any of it again, and continues the question's text: give it as \
the document itself would put it. The answer ends at a newline, at a stop text or after --max-tokens; it alone is \
printed. The file never changes, every question starts from the same memory.",
    after_help = "Examples:
  infini ask --memory book.mem \"What is the pass key? The pass key is\"
  infini ask --memory book.mem --questions questions.txt      one a line, one answer a line
  infini ask --memory book.mem --stop . \"The pass key is\"
  echo \"The pass key is\" | infini ask --memory book.mem --questions -"
)]
pub struct Ask {
    /// Memory file made by `infini read`
    #[arg(long, value_name = "FILE")]
    memory: PathBuf,
    #[command(flatten)]
    model: ModelFlag,
    /// Questions, one a line (- for stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "question")]
    questions: Option<PathBuf>,
    /// Longest answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_tokens: u32,
    /// End the answer before this text (may be given several times)
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// The question
    #[arg(value_name = "QUESTION", required_unless_present = "questions")]
    question: Option<String>,
}

impl Ask {
    /// Answers.
    pub fn run(&self) -> Result<Outcome> {
        let loaded = self.model.load()?;
        let session = Session::open(&loaded, &RealIo, &self.memory)?;
        let questions = match &self.questions {
            Some(path) => lines(path)?,
            None => self.question.iter().cloned().collect(),
        };
        for question in questions {
            say(ask(&loaded, session.state(), &question, self.max_tokens as usize, &self.stop)?)?;
            std::io::stdout().flush()?;
        }
        Ok(Outcome::Done)
    }
}

/// The lines that are not blank.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("cannot read the questions: {}", path.display()))?;
    Ok(text.lines().filter(|l| !l.trim().is_empty()).map(str::to_string).collect())
}
