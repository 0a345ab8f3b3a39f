//! Runs the fuzz targets for a bounded time each and keeps their counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{faults, root};

/// Which, and for how long.
#[derive(ClapArgs)]
pub struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Only this target
    target: Option<String>,
}

/// Runs them, one after the other, and writes their rows into the table of faults.
pub fn run(args: &Args) -> Result<()> {
    let fuzz = root().join("fuzz");
    let targets = match &args.target {
        Some(t) => vec![t.clone()],
        None => {
            let dir = fuzz.join("fuzz_targets");
            let files = std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
            let mut names: Vec<String> =
                files.filter_map(|f| Some(f.ok()?.path().file_stem()?.to_string_lossy().into_owned())).collect();
            names.sort();
            names
        }
    };
    for target in targets {
        let counts = one(&target, args.seconds)?;
        println!("{target}: {counts:?}");
        faults::write_section(SECTION, &section(&faults::read_section(SECTION), &target, args.seconds, &counts))?;
        if counts.failed {
            bail!("{target}: the input that it failed on is in fuzz/artifacts/{target}");
        }
    }
    Ok(())
}

/// What libFuzzer told of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    inputs: u64,
    /// Edges of the program that were reached.
    coverage: u64,
    failed: bool,
}

fn one(target: &str, seconds: u32) -> Result<Counts> {
    let fuzz = root().join("fuzz");
    let corpus = fuzz.join("corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut command = Command::new("cargo");
    // libFuzzer's instrumentation is behind a flag that the stable compiler hides
    command.current_dir(&fuzz).env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "run", target]).arg(&corpus);
    let seeds = fuzz.join("seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.args(["--", "-print_final_stats=1", "-timeout=30"]).arg(format!("-max_total_time={seconds}"));
    let mut child = command.stderr(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut counts = Counts::default();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
        let line = line.context("cannot read what cargo-fuzz says")?;
        eprintln!("{line}");
        counts.take(&line);
    }
    let status = child.wait()?;
    if counts == Counts::default() {
        bail!("{target} did not run: {status}: is cargo-fuzz installed? cargo install cargo-fuzz --locked");
    }
    counts.failed = !status.success();
    Ok(counts)
}

impl Counts {
    /// `#8192 pulse cov: 712 ft: 2040 …` and `stat::number_of_executed_units: 8192`.
    fn take(&mut self, line: &str) {
        let number = |text: &str| text.split_whitespace().next().and_then(|n| n.parse().ok());
        if let Some(n) = line.strip_prefix("stat::number_of_executed_units:").and_then(number) {
            self.inputs = n;
        } else if line.starts_with('#')
            && let Some(n) = line.split_once(" cov: ").and_then(|(_, rest)| number(rest))
        {
            self.coverage = n;
        }
    }
}

/// Its heading in the table of faults.
const SECTION: &str = "## Fuzzing";

/// The section with the row of one target written anew.
fn section(old: &str, target: &str, seconds: u32, counts: &Counts) -> String {
    let row = |line: &str| Some((line.strip_prefix("| `")?.split_once('`')?.0.to_string(), line.to_string()));
    let mut rows: BTreeMap<String, String> = old.lines().filter_map(row).collect();
    let Counts { inputs, coverage, failed } = counts;
    let crashes = u32::from(*failed);
    rows.insert(target.into(), format!("| `{target}` | {seconds} | {inputs} | {coverage} | {crashes} |"));
    let mut out = format!(
        "{SECTION}\n\nMade by `cargo xtask fuzz --seconds …`; what each target holds is told in \
         [fuzz/README.md](../../fuzz/README.md). *Edges* are the branches of the\nprogram that the inputs of a run reached.\n\n\
         | target | seconds | inputs | edges | crashes |\n|---|---|---|---|---|\n"
    );
    rows.values().for_each(|row| writeln!(out, "{row}").expect("a string"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_tells_is_counted_and_rows_are_replaced() {
        let mut counts = Counts::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#4096\tpulse  cov: 712 ft: 2040 corp: 9/99b exec/s: 2048 rss: 40Mb",
            "stat::number_of_executed_units: 5000",
            "stat::peak_rss_mb:              40",
        ] {
            counts.take(line);
        }
        assert_eq!(counts, Counts { inputs: 5000, coverage: 712, failed: false });
        let once = section("", "memory", 30, &counts);
        let both = section(&once, "gguf", 30, &counts);
        assert!(both.ends_with("| `gguf` | 30 | 5000 | 712 | 0 |\n| `memory` | 30 | 5000 | 712 | 0 |\n"), "{both}");
        let again = section(&both, "memory", 60, &counts);
        assert!(again.ends_with("| `gguf` | 30 | 5000 | 712 | 0 |\n| `memory` | 60 | 5000 | 712 | 0 |\n"), "{again}");
    }
}
