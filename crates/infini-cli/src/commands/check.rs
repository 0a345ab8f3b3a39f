//! `infini check`: golden files through the f64 reference, every kernel path and the composed operations.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use infini_train::check::{Row, check_file};
use serde_json::json;

use crate::console::{Outcome, Table, note, say};
use crate::progress::Progress;
use crate::report::JsonFlag;

/// Check every kernel path against golden files
#[derive(Args, Debug)]
#[command(
    long_about = "Check every kernel path against golden files

Runs each golden file (*.safetensors) of a folder through the f64 reference, the f32 kernels at every SIMD level of this \
machine, and the composed tensor operations: outputs, states and gradients. Prints the worst error of each file. A \
folder without golden files, a file that is none, or an error above its bound is exit code 1.",
    after_help = "Examples:
  infini check golden
  infini check golden --json -"
)]
pub struct Check {
    /// Folder of golden files
    dir: PathBuf,
    #[command(flatten)]
    json: JsonFlag,
}

impl Check {
    /// Checks them.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let dir = &self.dir;
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list the folder: {}", dir.display()))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
        paths.sort();
        if paths.is_empty() {
            bail!("no golden files: {}: name a folder of .safetensors files", dir.display());
        }

        let mut table = Table::new(&["file", "executor", "worst tensor", "error", "bound", ""]);
        let (mut rows, mut skipped, mut failed, mut worst) = (Vec::new(), 0, 0, 0.0f64);
        let mut progress = Progress::new("checking", "files", Some(paths.len() as u64));
        for (i, path) in paths.iter().enumerate() {
            progress.set(i as u64);
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let report = match check_file(path) {
                Ok(report) => report,
                Err(e) => {
                    note(format_args!("error: {e}"));
                    skipped += 1;
                    continue;
                }
            };
            failed += usize::from(!report.passed());
            for (r, row) in report.rows.iter().enumerate() {
                let w = row.worst();
                worst = worst.max(w.error / w.bound);
                table.row(&[
                    if r == 0 { name.clone() } else { String::new() },
                    row.executor.clone(),
                    w.tensor.clone(),
                    format!("{:.1e}", w.error),
                    format!("{:.1e}", w.bound),
                    if row.passed() { String::new() } else { "MISSED".into() },
                ]);
                rows.push(describe(&name, row));
            }
        }
        drop(progress);
        let files = paths.len() - skipped;
        if !self.json.on_stdout() {
            say(&table)?;
            say(format_args!(
                "{files} files, {skipped} skipped, {failed} failed, worst error {worst:.2} of its bound"
            ))?;
        }
        self.json.write(json!({
            "files": files, "skipped": skipped, "failed": failed, "worst": worst, "rows": rows,
        }))?;
        Ok(if failed + skipped == 0 { Outcome::Done } else { Outcome::Missed })
    }
}

fn describe(file: &str, row: &Row) -> serde_json::Value {
    let w = row.worst();
    json!({
        "file": file, "executor": row.executor, "tensor": w.tensor, "error": w.error, "bound": w.bound,
        "passed": row.passed(),
    })
}
