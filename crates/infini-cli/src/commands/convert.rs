//! `infini convert`: writes any model that can be loaded as a Hugging Face folder.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use infini::folder;
use infini::pretrained;
use infini_format::tensors::Dtype;

use crate::console::{Outcome, commas, note};
use crate::models;

/// Write a model as a Hugging Face folder
#[derive(Args, Debug)]
#[command(
    long_about = "Write a model as a Hugging Face folder

Writes config.json, model.safetensors, tokenizer.json, the chat template and the end tokens, with Hugging Face's names. \
A model with a memory keeps its settings in config.json and its parameters as extra tensors, which other programs ignore.",
    after_help = "Examples:
  infini convert smollm2 --out smollm2-hf
  infini convert model.gguf --out model-f32 --dtype f32"
)]
pub struct Convert {
    /// Folder, GGUF file or name
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights
    #[arg(long, value_enum, default_value_t = Type::Bf16)]
    dtype: Type,
}

/// Types of weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    /// 16 bits, rounded
    Bf16,
    /// 32 bits, exact
    F32,
}

impl Convert {
    /// Converts.
    pub fn run(&self) -> Result<Outcome> {
        let parts = folder::parts(&models::find(&self.model)?)?;
        let dtype = match self.dtype {
            Type::Bf16 => Dtype::BF16,
            Type::F32 => Dtype::F32,
        };
        pretrained::save(&self.out, &parts, dtype)?;
        let n: u64 = parts.weights.iter().map(|(_, w)| w.len() as u64).sum();
        note(format_args!("{}: {} parameters", self.out.display(), commas(n)));
        Ok(Outcome::Done)
    }
}
