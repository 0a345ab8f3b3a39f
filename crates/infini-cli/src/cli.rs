//! The flags, declared once: help, completions and the manual page come from here.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tracing::Level;

use crate::bench;
use crate::commands::*;
use crate::console::Outcome;

/// Language models that read without end: exact attention near, a memory of fixed size for the rest.
#[derive(Parser, Debug)]
#[command(name = "infini", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  infini demo                                       one million tokens, three keys, constant memory
  infini read book.txt --memory book.mem            read a document once
  infini ask --memory book.mem \"What is the pass key? The pass key is\"
  infini train --config configs/passkey/selective-linear.toml
  infini pull smollm2 && infini chat --model smollm2    talk to a pretrained model

`infini COMMAND --help` shows examples of each command.
Exit codes: 0 done, 1 failed or a check missed, 2 wrong usage.
Environment: INFINI_SIMD=portable|avx2|avx512 forces a kernel path,
INFINI_MODELS is the folder of the shipped models, INFINI_CACHE that of the downloaded ones.";

#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Threads of computation [default: one per core]
    #[arg(long, value_name = "N", global = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Say on stderr which model, kernel path and threads are used
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::Demo),
    Train(train::Train),
    Adapt(adapt::Adapt),
    Eval(eval::Eval),
    Read(read::Read),
    Ask(ask::Ask),
    Generate(generate::Generate),
    Chat(chat::Chat),
    Memory(memory::Memory),
    Pull(pull::Pull),
    Probe(probe::Probe),
    Convert(convert::Convert),
    Inspect(inspect::Inspect),
    Check(check::Check),
    Bench(bench::Args),
    Tokenizer(tokenizer::Tokenizer),
    Data(data::Data),
    Report(report::Report),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// Parses the command line and runs its command; clap itself ends the process on wrong usage (2).
pub fn run() -> Result<Outcome> {
    let cli = Cli::parse();
    let level = if cli.global.verbose { Level::INFO } else { Level::WARN };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(stderr).with_ansi(stderr().is_terminal());
    lines.without_time().with_target(false).init();
    check_simd()?;
    if let Some(n) = cli.global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(n));
        pool.build_global().with_context(|| format!("cannot start {n} threads"))?;
    }
    tracing::info!(kernels = infini_kernels::simd::level().name(), threads = rayon::current_num_threads());
    match cli.command {
        Command::Demo(c) => c.run(),
        Command::Train(c) => c.run(),
        Command::Adapt(c) => c.run(),
        Command::Eval(c) => c.run(),
        Command::Read(c) => c.run(),
        Command::Ask(c) => c.run(),
        Command::Generate(c) => c.run(),
        Command::Chat(c) => c.run(),
        Command::Pull(c) => c.run(),
        Command::Probe(c) => c.run(),
        Command::Convert(c) => c.run(),
        Command::Memory(c) => c.run(),
        Command::Inspect(c) => c.run(),
        Command::Check(c) => c.run(),
        Command::Bench(c) => bench::run(&c),
        Command::Tokenizer(c) => c.run(),
        Command::Data(c) => c.run(),
        Command::Report(c) => c.run(),
        Command::Completions(c) => c.run(),
        Command::Man(c) => c.run(),
    }
}

/// The kernels panic on a level they lack: here it is an ordinary error.
fn check_simd() -> Result<()> {
    use infini_kernels::simd::{Level, best};
    let Some(name) = std::env::var_os("INFINI_SIMD") else { return Ok(()) };
    let known = [Level::Portable, Level::Avx2, Level::Avx512];
    match known.into_iter().find(|l| *l.name() == *name) {
        None => bail!("unknown kernel path: INFINI_SIMD={}: choose portable, avx2 or avx512", name.display()),
        Some(l) if l > best() => {
            bail!("this machine lacks a kernel path: INFINI_SIMD={}: it has {} at most", l.name(), best().name())
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
