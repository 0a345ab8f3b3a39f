//! `infini memory`: looks at memory files and forks them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use infini_format::hash::short;
use infini_format::io::RealIo;
use infini_format::memory::{self, MemoryHeader};
use infini_format::tensors::{TensorFile, TensorView};
use serde_json::json;

use crate::console::{Outcome, Table, bytes, commas, note, say};
use crate::report::{JsonFlag, writable};

/// List, show and fork memory files
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini memory list notes/
  infini memory show book.mem
  infini memory fork book.mem book-2.mem")]
pub struct Memory {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// One line for each memory file of a folder
    List {
        /// The folder
        #[arg(default_value = ".")]
        dir: PathBuf,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Everything a memory file says of itself, checksums verified
    Show {
        /// The memory file
        file: PathBuf,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Copy a memory, so that the two can read on separately
    Fork {
        /// The memory file
        from: PathBuf,
        /// The new file; it must not exist
        to: PathBuf,
    },
}

impl Memory {
    /// Does it.
    pub fn run(&self) -> Result<Outcome> {
        match &self.command {
            Command::List { dir, json } => list(dir, json),
            Command::Show { file, json } => show(file, json),
            Command::Fork { from, to } => fork(from, to),
        }
    }
}

fn list(dir: &Path, json: &JsonFlag) -> Result<Outcome> {
    json.check()?;
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list the folder: {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "mem") && p.is_file());
    paths.sort();
    let mut table = Table::new(&["file", "tokens", "size", "saves", "model", "sources"]);
    let (mut rows, mut damaged) = (Vec::new(), 0);
    for path in &paths {
        match memory::read_memory(&RealIo, path) {
            Ok((header, file)) => {
                table.row(&[
                    path.display().to_string(),
                    commas(header.position),
                    bytes(size(&file)),
                    header.generation.to_string(),
                    short(&header.partner.weights).to_string(),
                    header.sources.join(", "),
                ]);
                rows.push(describe(path, &header, &file));
            }
            Err(e) => {
                note(format_args!("error: {e}"));
                damaged += 1;
            }
        }
    }
    if !json.on_stdout() {
        match paths.is_empty() {
            true => note(format_args!("no memory files (*.mem) in {}", dir.display())),
            false => say(&table)?,
        }
    }
    json.write(json!({ "memories": rows, "damaged": damaged }))?;
    Ok(if damaged == 0 { Outcome::Done } else { Outcome::Missed })
}

fn show(path: &Path, json: &JsonFlag) -> Result<Outcome> {
    json.check()?;
    let (header, file) = memory::read_memory(&RealIo, path)?;
    if !json.on_stdout() {
        let p = &header.partner;
        say(format_args!("memory      {}", path.display()))?;
        say(format_args!("tokens      {}", commas(header.position)))?;
        say(format_args!("state       {} in {} tensors", bytes(size(&file)), file.len()))?;
        say(format_args!("saves       {}", header.generation))?;
        say(format_args!("segment     {} tokens", p.segment_len))?;
        say(format_args!("weights     {}", p.weights))?;
        if let Some(adapter) = &p.adapter {
            say(format_args!("adapter     {adapter}"))?;
        }
        say(format_args!("tokenizer   {}", p.tokenizer))?;
        say(format_args!("config      {}", p.config))?;
        say(format_args!("settings    {}", header.settings))?;
        for source in &header.sources {
            say(format_args!("source      {source}"))?;
        }
        say("checksums   good")?;
    }
    json.write(describe(path, &header, &file))?;
    Ok(Outcome::Done)
}

fn fork(from: &Path, to: &Path) -> Result<Outcome> {
    writable(to)?;
    if to.exists() {
        bail!("the new file exists: {}: remove it or choose another name", to.display());
    }
    let (mut header, file) = memory::read_memory(&RealIo, from)?;
    header.generation = 1;
    let tensors: Vec<(&str, TensorView)> = file.iter().collect();
    memory::write_memory(&RealIo, to, &header, &tensors)?;
    note(format_args!("forked {} to {} at {} tokens", from.display(), to.display(), commas(header.position)));
    Ok(Outcome::Done)
}

fn size(file: &TensorFile) -> u64 {
    file.iter().map(|(_, t)| t.bytes.len() as u64).sum()
}

fn describe(path: &Path, header: &MemoryHeader, file: &TensorFile) -> serde_json::Value {
    let p = &header.partner;
    json!({
        "file": path, "tokens": header.position, "state_bytes": size(file), "generation": header.generation,
        "segment_len": p.segment_len, "weights": p.weights, "adapter": p.adapter, "tokenizer": p.tokenizer,
        "config": p.config, "sources": header.sources, "settings": header.settings,
    })
}
