//! Where a model is: a folder or file that was named, a shipped or a downloaded model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use infini::folder::{self, Loaded};
use infini_format::hash::short;

use crate::cache;
use crate::hub::{self, HubModel};

/// The model that commands take when none is named.
pub const DEFAULT: &str = "models/passkey";

/// The flag `--model`.
#[derive(Args, Debug)]
pub struct ModelFlag {
    /// Model folder (ours or Hugging Face's), GGUF file, or the name of a shipped or pulled model (hf:OWNER/NAME)
    #[arg(long, value_name = "MODEL", default_value = DEFAULT)]
    pub model: PathBuf,
    /// Adapter of the model: a memory for a trained decoder (made by `infini adapt`); one of keys and one that counts go together
    #[arg(long, value_name = "FILE")]
    pub adapter: Vec<PathBuf>,
}

impl ModelFlag {
    /// Loads it.
    pub fn load(&self) -> Result<Loaded> {
        let mut loaded = load(&find(&self.model)?)?;
        self.adapter.iter().try_for_each(|adapter| loaded.attach(adapter))?;
        Ok(loaded)
    }
}

/// Loads a model.
pub fn load(dir: &Path) -> Result<Loaded> {
    let start = Instant::now();
    let loaded = folder::load(dir)?;
    tracing::info!(model = %dir.display(), weights = short(&loaded.identity.weights), loaded_in = ?start.elapsed());
    Ok(loaded)
}

/// The folder or file that `name` means: itself if it exists, else a shipped model of that name, looked for in
/// `INFINI_MODELS`, in `models` of the working directory, and in `models` beside or above the executable, else a
/// downloaded one; `hf:OWNER/NAME` is one of Hugging Face's hub.
pub fn find(name: &Path) -> Result<PathBuf> {
    if name.exists() {
        return Ok(name.to_path_buf());
    }
    if let Some(model) = name.to_str().map(HubModel::parse).transpose()?.flatten() {
        return hub::find(&model);
    }
    let bare = name.strip_prefix("models").unwrap_or(name);
    if bare.components().count() == 1 {
        let homes = std::env::var_os("INFINI_MODELS").map(PathBuf::from).into_iter();
        let homes = homes.chain([PathBuf::from("models")]);
        let exe = std::env::current_exe().and_then(|p| p.canonicalize()).ok();
        let above = exe.iter().flat_map(|p| p.ancestors().skip(1)).map(|a| a.join("models"));
        if let Some(found) = homes.chain(above).map(|h| h.join(bare)).find(|p| p.join("config.json").is_file()) {
            return Ok(found);
        }
        if let Some(found) = name.to_str().and_then(cache::find) {
            return Ok(found);
        }
        if let Some(known) = cache::KNOWN.iter().find(|k| name == Path::new(k.name)) {
            bail!("the model was not downloaded yet: {0}: run `infini pull {0}`", known.name);
        }
    }
    bail!(
        "no such model: {}: name a folder or GGUF file, set INFINI_MODELS to the folder of the shipped models, \
         fetch one with `infini pull`, or train one with `infini train`",
        name.display()
    )
}
