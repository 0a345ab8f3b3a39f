//! `cargo xtask`: what people repeat.

mod faults;
mod fuzz;
mod queue;
mod results;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What people repeat")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The whole gate: format, clippy, tests, documentation, licences, demo
    Ci,
    /// Every golden file through the reference and every kernel path
    Golden,
    /// Fault tests (killed writers, failing disks, damaged files); writes docs/results/faults.md
    Faults {
        /// The long forms, as before a release
        #[arg(long)]
        long: bool,
    },
    /// Fuzz every reader (needs cargo-fuzz); writes docs/results/faults.md
    Fuzz(fuzz::Args),
    /// Values of a GGUF file beside candle's reader (a workspace of its own; builds candle)
    Crosscheck {
        /// The file
        file: PathBuf,
    },
    /// Documentation of the crates in target/doc, manual pages in target/man
    Docs,
    /// Long runs from a list, several at a time, going on where they stopped
    Queue(queue::Args),
    /// Tables of a queue's results, as Markdown
    Results(results::Args),
    /// Speed side by side with other implementations; installs them into a virtual environment
    Peers {
        /// Given to peers/compare.py
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Ci => run(Command::new(root().join(".ci/run"))),
        Task::Golden => run(cargo(&["run", "--release", "--", "check", "golden"])),
        Task::Faults { long } => faults::run(long),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Crosscheck { file } => {
            let file = file.canonicalize().with_context(|| format!("cannot find {}", file.display()))?;
            let mut crosscheck = Command::new("cargo");
            crosscheck.current_dir(root().join("crosscheck")).args(["run", "--release", "--"]).arg(file);
            run(crosscheck)
        }
        Task::Docs => {
            let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
            doc.env("RUSTDOCFLAGS", "-Dwarnings");
            run(doc)?;
            run(cargo(&["run", "--release", "--", "man", "--out", "target/man"]))
        }
        Task::Queue(args) => queue::run(&args),
        Task::Results(args) => results::run(&args),
        Task::Peers { arguments } => {
            let mut python = Command::new("python3");
            python.current_dir(root()).arg("peers/compare.py").args(arguments);
            run(python)
        }
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

fn run(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} failed: {status}", command.get_program());
    }
    Ok(())
}
