//! Results for machines: `--json FILE`, `-` for stdout.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value};

use crate::console::say;

/// The flag `--json`.
#[derive(Args, Debug)]
pub struct JsonFlag {
    /// Write the results as JSON to FILE (- for stdout, in place of the table)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl JsonFlag {
    /// Whether stdout belongs to the JSON.
    pub fn on_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new("-"))
    }

    /// Refuses a folder that does not exist before hours are spent on the results.
    pub fn check(&self) -> Result<()> {
        match &self.json {
            Some(path) if !self.on_stdout() => writable(path),
            _ => Ok(()),
        }
    }

    /// Writes `fields`, `"schema": 1` before them.
    pub fn write(&self, fields: Value) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let Value::Object(fields) = fields else { unreachable!("results are an object") };
        let mut object = Map::from_iter([("schema".to_string(), 1.into())]);
        object.extend(fields);
        let text = serde_json::to_string_pretty(&object)?;
        if self.on_stdout() {
            return Ok(say(text)?);
        }
        write(path, &(text + "\n"))
    }
}

/// Checks that the folder of `path` exists.
pub fn writable(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|p| !p.is_dir()) {
        bail!("no such folder: {}: make it first, or choose another place for {}", parent.display(), path.display());
    }
    Ok(())
}

/// Writes a small text file.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let result = File::create(path).and_then(|mut f| f.write_all(text.as_bytes()));
    result.with_context(|| format!("cannot write: {}", path.display()))
}
