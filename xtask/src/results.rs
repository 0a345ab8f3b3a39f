//! The tables of docs/results/passkey.md, from the result files of a queue's runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the runs, as given to `cargo xtask queue --out`
    #[arg(default_value = "runs")]
    runs: PathBuf,
}

#[derive(Deserialize)]
struct Report {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    length: u64,
    depth: f64,
    n: u64,
    exact: f64,
    digit: f64,
}

/// One line a run and result file: exact match (digits) at every length and depth.
pub fn run(args: &Args) -> Result<()> {
    let list = fs::read_dir(&args.runs).with_context(|| format!("cannot list {}", args.runs.display()))?;
    let mut dirs: Vec<PathBuf> = list.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
    dirs.sort();
    let mut files: BTreeMap<String, Vec<(String, Report)>> = BTreeMap::new();
    for dir in &dirs {
        for (name, report) in reports(dir)? {
            files.entry(name).or_default().push((dir.file_name().unwrap_or_default().to_string_lossy().into(), report));
        }
    }
    for (name, runs) in files {
        let first = &runs[0].1.rows;
        println!("\n### {name}\n");
        println!(
            "| run | n | {} |",
            first.iter().map(|r| format!("{} at {}", r.length, r.depth)).collect::<Vec<_>>().join(" | ")
        );
        println!("|---|---|{}", "---|".repeat(first.len()));
        for (run, report) in &runs {
            let cell = |r: &Row| format!("{:.3} ({:.3})", r.exact, r.digit);
            let n = report.rows.first().map_or(0, |r| r.n);
            println!("| {run} | {n} | {} |", report.rows.iter().map(cell).collect::<Vec<_>>().join(" | "));
        }
    }
    Ok(())
}

fn reports(dir: &Path) -> Result<Vec<(String, Report)>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|e| e == "json")
            && let Ok(report) = serde_json::from_str::<Report>(&fs::read_to_string(&path)?)
            && !report.rows.is_empty()
        {
            out.push((name, report));
        }
    }
    Ok(out)
}
