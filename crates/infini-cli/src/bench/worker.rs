//! The line protocol of `peers/compare.py`: out `ready {…}`, in a number of repetitions, out `SECONDS TOKENS`.

use std::io::{BufRead, stdin};
use std::time::Instant;

use anyhow::{Context, Result};
use infini::model::Model;
use serde_json::json;

use super::cases::{Case, Work, parameters};
use super::{steps, verify};
use crate::console::{say, usage};

/// Runs one case, on a model if there is one, whenever a line asks for it, until the input ends.
pub fn serve(case: &Case, model: Option<Model>) -> Result<()> {
    let mut work = match model {
        None => {
            verify::model(&case.model)?;
            steps::start(case)
        }
        Some(_) if case.work == Work::Train => return Err(usage("--model: a case that trains has its own model")),
        Some(model) => steps::start_on(case, model),
    };
    work();
    let tokens = case.batch * case.tokens;
    let about = json!({ "parameters": parameters(&case.model), "tokens": tokens, "flops": case.flops() });
    say(format_args!("ready {about}"))?;
    for line in stdin().lock().lines() {
        let line = line?;
        let n: usize = line.trim().parse().with_context(|| format!("not a number of repetitions: {line}"))?;
        let start = Instant::now();
        for _ in 0..n {
            work();
        }
        say(format_args!("{:.6} {}", start.elapsed().as_secs_f64(), n * tokens))?;
    }
    Ok(())
}
