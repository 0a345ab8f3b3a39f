//! Runs that take hours, as a list that goes on where it stopped.
//!
//! A queue file names jobs; each is a list of `infini` commands run in order. A command that has
//! succeeded is noted in `OUT/NAME/done` and not run again; a command that was interrupted is (training
//! resumes by itself). Jobs run side by side on one thread each.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

#[derive(clap::Args)]
pub struct Args {
    /// The queue, for example configs/passkey/queue.toml
    queue: PathBuf,
    /// Folder of the books: stands for {data} in commands
    #[arg(long)]
    data: PathBuf,
    /// Where the runs go: {out} is OUT/NAME
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// Jobs at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only jobs whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// The program
    #[arg(long, default_value = "target/release/infini")]
    program: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Queue {
    job: Vec<Job>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    name: String,
    commands: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let text = fs::read_to_string(&args.queue).with_context(|| format!("cannot read {}", args.queue.display()))?;
    let queue: Queue = toml::from_str(&text).with_context(|| format!("bad queue: {}", args.queue.display()))?;
    if !args.program.is_file() {
        bail!("no program at {}: cargo build --release", args.program.display());
    }
    let jobs: VecDeque<&Job> = queue.job.iter().filter(|j| j.name.contains(&args.only)).collect();
    let waiting = Mutex::new(jobs);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let Some(job) = waiting.lock().expect("no panic holds it").pop_front() else { break };
                    if let Err(e) = work(args, job) {
                        eprintln!("{}: {e:#}", job.name);
                        failed.lock().expect("no panic holds it").push(job.name.clone());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner()?;
    if !failed.is_empty() {
        bail!("{} of the jobs failed: {}", failed.len(), failed.join(", "));
    }
    Ok(())
}

fn work(args: &Args, job: &Job) -> Result<()> {
    let out = args.out.join(&job.name);
    fs::create_dir_all(&out)?;
    let notes = out.join("done");
    let mut done = fs::read_to_string(&notes).unwrap_or_default();
    for line in &job.commands {
        if done.lines().any(|l| l == line) {
            continue;
        }
        eprintln!("{}: {line}", job.name);
        let fill = |word: &str| {
            word.replace("{data}", &args.data.to_string_lossy())
                .replace("{out}", &out.to_string_lossy())
                .replace("{runs}", &args.out.to_string_lossy())
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(out.join("log"))?;
        let status = Command::new(absolute(&args.program)?)
            .args(line.split_whitespace().map(fill))
            .args(["--threads", "1"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        if !status.success() {
            bail!("{line}: {status}; see {}", out.join("log").display());
        }
        done.push_str(line);
        done.push('\n');
        fs::write(&notes, &done)?;
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("no program at {}", path.display()))
}
