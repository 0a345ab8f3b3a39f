//! `infini completions` and `infini man`: both made from the flags themselves.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::console::Outcome;

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini completions bash > ~/.local/share/bash-completion/completions/infini
  infini completions fish > ~/.config/fish/completions/infini.fish")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints them.
    pub fn run(&self) -> Result<Outcome> {
        let mut out = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "infini", &mut out);
        std::io::stdout().write_all(&out)?;
        Ok(Outcome::Done)
    }
}

/// Print the manual page, or write one page per command into a folder
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini man | man -l -
  infini man --out ~/.local/share/man/man1")]
pub struct Man {
    /// Folder for infini.1, infini-demo.1, …
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Man {
    /// Prints or writes them.
    pub fn run(&self) -> Result<Outcome> {
        match &self.out {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder: {}", dir.display()))?;
                clap_mangen::generate_to(Cli::command(), dir)
                    .with_context(|| format!("cannot write the pages: {}", dir.display()))?;
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(Cli::command()).render(&mut page)?;
                std::io::stdout().write_all(&page)?;
            }
        }
        Ok(Outcome::Done)
    }
}
