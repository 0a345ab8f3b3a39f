//! `infini eval summarize`.

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use infini::eval::rouge::Rouge;
use infini::folder::Loaded;
use infini::generate::{Sampler, Sampling, sample};
use infini::model::Want;
use infini::text::chat::{ChatTemplate, Message};
use serde::Deserialize;
use serde_json::{Value, json};

use super::subject::Subject;
use crate::console::{Outcome, Table, say, usage};
use crate::progress::Progress;
use crate::report::{JsonFlag, writable, write};

/// Longest line of a data file.
const MAX_LINE: usize = 16 << 20;

/// Summaries and answers about whole stories, by ROUGE
#[derive(Args, Debug)]
#[command(
    long_about = "Summaries and answers about whole stories, by ROUGE

Reads each story once, asks its questions, and compares the answers with people's by ROUGE-1, ROUGE-2 and ROUGE-L (of \
several references the best) and their geometric mean. The data are JSON lines in SQuALITY's form. Where full attention has \
no room for a story, its end is cut, and the table says how often. --score only compares answers that are there.",
    after_help = "Examples:
  infini eval summarize --model smollm2 --data squality/dev.jsonl --limit 10
  infini eval summarize --model smollm2 --data squality/dev.jsonl --out answers.jsonl
  infini eval summarize --score answers.jsonl"
)]
pub struct Summarize {
    #[command(flatten)]
    subject: Subject,
    /// Stories with questions and references
    #[arg(long, value_name = "FILE.jsonl", required_unless_present = "score")]
    data: Option<PathBuf>,
    /// Lines with `prediction` and `references`, as --out writes them
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["data", "out"])]
    score: Option<PathBuf>,
    /// Keep the answers
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
    /// Only the first N stories
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only the first N questions of a story (the first asks for the plot)
    #[arg(long, value_name = "N")]
    questions: Option<usize>,
    /// Longest answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_tokens: u32,
    /// Temperature of the sampling
    #[arg(long, value_name = "T", default_value_t = 0.5)]
    temperature: f64,
    /// Draw from the most likely tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f64,
    /// The same seed gives the same answers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: JsonFlag,
}

/// A line of SQuALITY.
#[derive(Deserialize)]
struct Story {
    document: String,
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question_text: String,
    responses: Vec<Response>,
}

#[derive(Deserialize)]
struct Response {
    response_text: String,
}

/// An answer beside people's.
#[derive(Deserialize, serde::Serialize)]
struct Answer {
    prediction: String,
    references: Vec<String>,
}

impl Summarize {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let start = Instant::now();
        let (answers, cut) = match (&self.score, &self.data) {
            (Some(path), _) => (lines(path)?, 0),
            (None, Some(data)) => self.answer(data)?,
            (None, None) => return Err(usage("give --data or --score")),
        };
        if answers.is_empty() {
            bail!("there is nothing to score: no questions were found");
        }
        if let Some(path) = &self.out {
            let line = |a: &Answer| serde_json::to_string(a).map(|l| l + "\n");
            write(path, &answers.iter().map(line).collect::<Result<String, _>>()?)?;
        }
        let scores: Vec<Rouge> = answers.iter().map(|a| Rouge::of(&a.prediction, &references(a))).collect();
        let mean = Rouge::mean(&scores);
        if !self.json.on_stdout() {
            let mut table = Table::new(&["n", "ROUGE-1", "ROUGE-2", "ROUGE-L", "geometric mean", "stories cut"]);
            let percent = |x: f64| format!("{:.2}", 100.0 * x);
            let n = scores.len().to_string();
            table.row(&[
                n,
                percent(mean.r1),
                percent(mean.r2),
                percent(mean.rl),
                percent(mean.geometric()),
                cut.to_string(),
            ]);
            say(table)?;
        }
        let object = |r: &Rouge| json!({ "rouge1": r.r1, "rouge2": r.r2, "rougeL": r.rl, "geometric": r.geometric() });
        let rows: Vec<Value> = scores.iter().map(object).collect();
        self.json.write(self.subject.describe(json!({
            "n": scores.len(), "mean": object(&mean), "cut": cut, "seconds": start.elapsed().as_secs_f64(), "rows": rows,
        })))?;
        Ok(Outcome::Done)
    }

    /// The model's answers, and how many stories had to be cut.
    fn answer(&self, data: &Path) -> Result<(Vec<Answer>, usize)> {
        if let Some(out) = &self.out {
            writable(out)?;
        }
        let settings =
            Sampling { temperature: self.temperature, top_p: self.top_p, seed: self.seed, ..Sampling::default() };
        let mut sampler = Sampler::new(settings)?;
        let mut stories: Vec<Story> = lines(data)?;
        stories.truncate(self.limit.unwrap_or(usize::MAX));
        let loaded = self.subject.load()?;
        let template = loaded.template.as_ref().map(ChatTemplate::new).transpose()?;
        let total: usize = stories.iter().map(|s| s.questions.len().min(self.questions.unwrap_or(usize::MAX))).sum();
        let mut progress = Progress::new("answering", "questions", Some(total as u64));
        let (mut answers, mut cut) = (Vec::new(), 0);
        for story in &stories {
            let questions = &story.questions[..story.questions.len().min(self.questions.unwrap_or(usize::MAX))];
            let (prompts, shorter) = self.prompts(&loaded, template.as_ref(), &story.document, questions)?;
            cut += usize::from(shorter);
            // what the questions share is read once
            let Some(first) = prompts.first() else { continue };
            let same = |p: &Vec<u32>| p.iter().zip(first).take_while(|(a, b)| a == b).count();
            let shared =
                prompts.iter().map(same).min().unwrap_or(0).min(prompts.iter().map(Vec::len).min().unwrap_or(1) - 1);
            let mut story_state = loaded.model.state(1);
            story_state.set_reads(self.subject.reads());
            loaded.model.forward(&mut story_state, &first[..shared], Want::Nothing);
            for (prompt, question) in prompts.iter().zip(questions) {
                let mut state = story_state.fork();
                loaded.model.forward(&mut state, &prompt[shared..], Want::Last);
                let mut prediction = String::new();
                let mut emit = |part: &str| {
                    prediction.push_str(part);
                    ControlFlow::Continue(())
                };
                sample(&loaded, &mut state, &mut sampler, self.max_tokens as usize, &loaded.stop, &mut emit);
                let references = question.responses.iter().map(|r| r.response_text.clone()).collect();
                answers.push(Answer { prediction: prediction.trim().into(), references });
                progress.set(answers.len() as u64);
            }
        }
        Ok((answers, cut))
    }

    /// Token ids of story and question, for each question; and whether the story's end had to go.
    fn prompts(
        &self,
        loaded: &Loaded,
        template: Option<&ChatTemplate>,
        document: &str,
        questions: &[Question],
    ) -> Result<(Vec<Vec<u32>>, bool)> {
        let prompt = |document: &str, question: &str| -> Result<Vec<u32>> {
            Ok(match template {
                Some(t) => {
                    let content = format!("{document}\n\n{question} Answer in a paragraph.");
                    t.encode(&loaded.tokenizer, &[Message::new("user", content)], true)?
                }
                None => loaded.tokenizer.encode(&format!("{document}\n\nQuestion: {question}\nAnswer:")),
            })
        };
        let room = loaded.model.room(&loaded.model.state(1)).map_or(usize::MAX, |n| n as usize);
        let (mut end, mut cut) = (document.len(), false);
        loop {
            let text = &document[..end];
            let prompts: Vec<_> = questions.iter().map(|q| prompt(text, &q.question_text)).collect::<Result<_>>()?;
            let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + self.max_tokens as usize;
            if longest <= room {
                return Ok((prompts, cut));
            }
            if end == 0 {
                bail!("a question has no room beside an answer: lower --max-tokens, or take a model with a memory");
            }
            cut = true;
            // a tenth more than the share that is too much
            let keep =
                end as f64 * room as f64 / longest as f64 - 0.1 * end as f64 * (1.0 - room as f64 / longest as f64);
            end = document.floor_char_boundary((keep.max(0.0) as usize).min(end - 1));
        }
    }
}

fn references(answer: &Answer) -> Vec<&str> {
    answer.references.iter().map(String::as_str).collect()
}

/// The lines of a file of JSON lines.
fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read: {}", path.display()))?;
    let mut out = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{}: line {}", path.display(), i + 1);
        let line = line.with_context(at)?;
        if line.len() > MAX_LINE {
            bail!("{}: {} bytes, at most {MAX_LINE} are read", at(), line.len());
        }
        if !line.trim().is_empty() {
            out.push(serde_json::from_str(&line).with_context(at)?);
        }
    }
    Ok(out)
}
