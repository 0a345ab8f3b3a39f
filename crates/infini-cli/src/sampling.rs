//! The flags that say how tokens are drawn.

use anyhow::Result;
use clap::Args;
use infini::generate::{Sampler, Sampling};

/// How the next token is drawn; a flag that is not given has the command's own default.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingFlags {
    /// 0 always takes the most likely token, 1 draws by the model's own probabilities
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draw from the K most likely tokens only (0: from all)
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the most likely tokens that together have probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Draw from tokens with at least this share of the most likely one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f64,
    /// Divide the logits of recent tokens by this
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// The same seed draws the same tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingFlags {
    /// The sampler, with the command's defaults of temperature and top-p.
    pub fn sampler(&self, temperature: f64, top_p: f64) -> Result<Sampler> {
        Ok(Sampler::new(Sampling {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(top_p),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        })?)
    }
}
