//! `infini bench`: speed, printed beside what the machine can do at best.
//!
//! Nothing is timed before it has been compared with the f64 reference. `infini bench worker` is the same work
//! behind the line protocol of `peers/`, which alternates it with other programs.

mod cases;
mod clock;
mod kernels;
mod operands;
mod save;
mod steps;
mod stream;
mod verify;
mod worker;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::console::{Outcome, Table, note, say, usage};
use crate::models::ModelFlag;
use crate::report::JsonFlag;
use cases::{Case, Work};
use clock::Limits;

/// Measure speed beside the machine's own limits
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  infini bench                              everything, several minutes
  infini bench train --threads 1            training steps of four models, with the share of the gemm peak
  infini bench kernels --json kernels.json
  infini bench stream --tokens 10000000     does reading slow down or take memory?

Figures are medians; other programs on the machine make them worse. `python3 peers/compare.py` measures
beside PyTorch and infini-transformer-pytorch in one interleaved run.")]
pub struct Args {
    /// What to measure [default: all]
    #[arg(value_name = "WHAT")]
    what: Vec<What>,
    /// Tokens that `stream` reads, one length or several [default: 1048576,10485760]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1000..))]
    tokens: Vec<u64>,
    /// Model for `stream` and `save` [default: a fresh model of the passkey recipe's size]
    #[arg(long, value_name = "MODEL")]
    model: Option<std::path::PathBuf>,
    /// Adapter of that model
    #[arg(long, value_name = "FILE", requires = "model")]
    adapter: Vec<std::path::PathBuf>,
    /// Only the case of this name (of `train`, `decode` and the long forward passes of `stream`)
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    #[command(flatten)]
    json: JsonFlag,
}

/// One part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The machine's limits alone
    Machine,
    /// Single kernels
    Kernels,
    /// Training steps and forward passes
    Train,
    /// Reading long inputs: speed of the last tenth against the first, memory
    Stream,
    /// Token by token
    Decode,
    /// Saving and restoring a session
    Save,
    /// One case behind the protocol of peers/
    #[value(hide = true)]
    Worker,
}

/// Measures what was asked for.
pub fn run(args: &Args) -> Result<Outcome> {
    let case = args.case.as_deref().map(Case::named).transpose()?;
    if args.what.contains(&What::Worker) {
        let (1, Some(case)) = (args.what.len(), case) else {
            return Err(usage("infini bench worker takes one --case and nothing else"));
        };
        let model = args.model.as_ref().map(|_| reader(args)).transpose()?;
        worker::serve(&case, model)?;
        return Ok(Outcome::Done);
    }
    args.json.check()?;
    let all = [What::Kernels, What::Train, What::Decode, What::Stream, What::Save];
    let what = if args.what.is_empty() { &all[..] } else { &args.what };
    let chosen = |work: &[Work]| {
        let cases = cases::NAMES.iter().map(|n| Case::named(n).expect("a name of the list"));
        let wanted = |c: &Case| work.contains(&c.work) && case.as_ref().is_none_or(|o| o.name == c.name);
        cases.filter(wanted).collect::<Vec<_>>()
    };

    verify::kernels()?;
    let limits = Limits::measure();
    let mut report = Report { json: args.json.on_stdout(), fields: Map::new() };
    report.fields.insert("machine".into(), limits.json());
    report.line(&limits.line())?;
    for part in what {
        match part {
            What::Machine => {}
            What::Kernels => report.part("kernels", kernels::run(&limits))?,
            What::Train => {
                report.part("train", steps::run(&chosen(&[Work::Train, Work::Forward, Work::Read]), &limits)?)?
            }
            What::Decode => report.part("decode", steps::decode(&chosen(&[Work::Decode]), &limits)?)?,
            What::Stream => {
                let lengths = if args.tokens.is_empty() { &[1 << 20, 10 << 20][..] } else { &args.tokens };
                report.part("stream", stream::run(&reader(args)?, lengths)?)?;
            }
            What::Save => {
                let tokens = args.tokens.first().copied().unwrap_or(1 << 20);
                report.part("save", save::run(&reader(args)?, tokens)?)?;
            }
            What::Worker => unreachable!("served above"),
        }
    }
    args.json.write(Value::Object(report.fields))?;
    Ok(Outcome::Done)
}

/// The model that reads long inputs.
fn reader(args: &Args) -> Result<infini::model::Model> {
    let model = match &args.model {
        Some(model) => ModelFlag { model: model.clone(), adapter: args.adapter.clone() }.load()?.model,
        None => steps::fresh(&cases::selective()),
    };
    if model.grows() {
        note("this model has layers of full attention: its state grows with the input");
    }
    Ok(model)
}

/// What the parts print and what they leave for machines.
struct Report {
    json: bool,
    fields: Map<String, Value>,
}

impl Report {
    fn line(&self, text: &str) -> Result<()> {
        if !self.json {
            say(text)?;
        }
        Ok(())
    }

    fn part(&mut self, name: &str, (table, rows): (Table, Vec<Value>)) -> Result<()> {
        self.line(&format!("\n{table}"))?;
        self.fields.insert(name.into(), json!(rows));
        Ok(())
    }
}
