//! How much memory a run will need, before it starts.

use crate::config::Config;
use crate::trainer;
use infini::config::{Activation, LayerKind};
use infini::tasks::DataConfig;

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The parameters.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// AdamW's moments.
    pub optimizer: u64,
    /// What the backward pass of the largest batch needs again.
    pub activations: u64,
}

impl Estimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }
}

/// The need of a configuration on the CPU, counted from what each operation keeps; texts and the program itself
/// come on top.
pub fn estimate(config: &Config) -> Estimate {
    let m = &config.model;
    let parameters: u64 = m.parameters().iter().map(|p| p.shape.iter().map(|n| *n as u64).product::<u64>()).sum();
    let widest = config.train.shapes().into_iter().map(|(b, t)| activations(config, b as u64, t as u64)).max();
    Estimate {
        weights: 4 * parameters,
        gradients: 4 * parameters,
        optimizer: 8 * parameters,
        activations: 4 * widest.unwrap_or(0),
    }
}

/// Floats that the rows of a batch which are in the graph together keep until their backward pass.
fn activations(config: &Config, batch: u64, tokens: u64) -> u64 {
    let m = &config.model;
    // rows that read on from step to step stay together
    let reads_on = matches!(config.data, DataConfig::Documents(_));
    let batch = if reads_on { batch } else { trainer::rows_together(m, batch as usize, tokens as usize) as u64 };
    let (d, f, w) = (m.hidden_size as u64, m.intermediate_size as u64, m.head_width() as u64);
    let (h, n) = (m.num_attention_heads as u64, m.kv_heads() as u64);
    let mut token = 3 * d; // embedding, last norm, gradient of the hidden state
    let mut states = 0;
    for l in 0..m.num_hidden_layers {
        let convolved = if m.infini.conv > 0 { d } else { 0 };
        let mlp = if m.hidden_act == Activation::Silu { 2 * f } else { f };
        // the residual before attention and MLP, the norm; q k v, output of the attention; the MLP's first products
        token += 3 * d + convolved + 2 * (h + n) * w + mlp;
        if m.layer_kind(l) == LayerKind::Infini {
            token += 2 * h * w + 3 * n + 2 * h;
            let segments = tokens.div_ceil(m.infini.segment_len as u64);
            states += batch * n * segments * m.feature_dim() as u64 * (w + 1);
        }
    }
    // gradients on their way back: the two widest
    token += 2 * d.max(f);
    batch * tokens * token + states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_count_four_times_and_activations_grow_with_the_batch() {
        let text = "[model]\nvocab_size = 64\nhidden_size = 16\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
                    intermediate_size = 32\n[infini]\nsegment_len = 8\n[train]\nsteps = 1\ntokens = 64\nbatch = 2";
        let of = |set: &[String]| estimate(&Config::parse(text, set).unwrap());
        let (one, two) = (of(&[]), of(&["train.batch=4".into()]));
        // rows beyond those that are in the graph together cost nothing
        let many = ["train.batch=512", "train.batch=1024"].map(|b| of(&[b.into()]).activations);
        assert!(many[0] == many[1] && many[0] > two.activations);
        // embedding and head, q k v o, three of the MLP, three norms, beta
        let parameters = 2 * 64 * 16 + 4 * 16 * 16 + 3 * 32 * 16 + 3 * 16 + 2;
        assert_eq!((one.weights, one.gradients, one.optimizer), (4 * parameters, 4 * parameters, 8 * parameters));
        assert_eq!(two.activations, 2 * one.activations);
        assert_eq!(one.total(), 16 * parameters + one.activations);
    }
}
