//! What is timed: fixed models and shapes, the same that `peers/` runs.

use anyhow::{Result, bail};
use infini::config::{Activation, Attention, InfiniConfig, LayerKind, ModelConfig, RuleName};
use infini_kernels::Features;

/// What is done with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One optimiser step on `batch × tokens` tokens.
    Train,
    /// Logits of `batch × tokens` tokens from an empty state.
    Forward,
    /// The same, but logits of the last token alone.
    Read,
    /// `tokens` tokens one by one from an empty state, the largest logit taken.
    Decode,
}

/// One model and what is done with it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name for `--case`.
    pub name: &'static str,
    /// The model.
    pub model: ModelConfig,
    /// The work.
    pub work: Work,
    /// Rows.
    pub batch: usize,
    /// Tokens of a row in one repetition.
    pub tokens: usize,
    /// Bytes a weight: 4, or 2 where they are rounded to bf16.
    pub bytes: usize,
}

/// Names, in the order in which they are run.
pub const NAMES: [&str; 12] = [
    "llama-256-train",
    "llama-576-train",
    "llama-576-forward",
    "infini-256-train",
    "infini-512-train",
    "infini-256-forward",
    "infini-512-forward",
    "infini-256-decode",
    "infini-512-decode",
    "infini-512-decode-bf16",
    "smollm2-135m-read-bf16",
    "smollm2-135m-decode-bf16",
];

impl Case {
    /// The case of that name.
    pub fn named(name: &str) -> Result<Case> {
        let Some(name) = NAMES.into_iter().find(|n| *n == name) else {
            bail!("no such case: {name}: choose one of {}", NAMES.join(", "));
        };
        let mut words = name.split('-');
        let (kind, size, work) = (words.next(), words.next(), words.next());
        let work = match work {
            Some("train") => Work::Train,
            Some("forward") => Work::Forward,
            Some("read") => Work::Read,
            _ => Work::Decode,
        };
        let (model, batch, tokens) = match (kind, size) {
            (Some("llama"), Some("256")) => (llama(256, 4, 4, 704), 4, 512),
            (Some("llama"), _) => (llama(576, 6, 9, 1536), 4, 512),
            (Some("smollm2"), _) => (smollm2(), 1, 1024),
            (_, Some("256")) => (infini(256, 4, 4, 682, 256), 1, 2048),
            _ => (infini(512, 4, 8, 1365, 512), 1, 4096),
        };
        let tokens = match work {
            Work::Decode if tokens == 1024 => 64,
            Work::Decode => 512,
            _ => tokens,
        };
        let bytes = if words.next() == Some("bf16") { 2 } else { 4 };
        Ok(Case { name, model, work, batch, tokens, bytes })
    }

    /// Floating-point operations of one repetition that the mathematics asks for: products of the weights and of
    /// the attention's causal half, 2 each multiply-add, a training step three times a forward pass. What an
    /// implementation computes twice is not counted, nor is anything elementwise.
    pub fn flops(&self) -> f64 {
        let passes = if self.work == Work::Train { 3.0 } else { 1.0 };
        let head = 2.0 * (self.model.vocab_size * self.model.hidden_size) as f64;
        let left_out = if self.work == Work::Read { head * (self.tokens - 1) as f64 } else { 0.0 };
        passes * self.batch as f64 * (forward_flops(&self.model, self.tokens) - left_out)
    }
}

/// Trainable numbers.
pub fn parameters(model: &ModelConfig) -> usize {
    model.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum()
}

/// Operations of a forward pass over one row of `tokens` tokens that starts empty.
pub fn forward_flops(model: &ModelConfig, tokens: usize) -> f64 {
    let matrices = model.parameters().into_iter().filter(|p| p.shape.len() == 2);
    let embedding = "model.embed_tokens.weight";
    // an embedding that is not the head is looked up, not multiplied
    let multiplied = matrices.filter(|p| p.name != embedding || model.tie_word_embeddings);
    let weights: usize = multiplied.map(|p| p.shape.iter().product::<usize>()).sum();
    let layers = (0..model.num_hidden_layers).map(|l| attention_flops(model, l, tokens));
    2.0 * (weights * tokens) as f64 + layers.sum::<f64>()
}

/// Scores, weighted values, and reads and writes of the memory.
fn attention_flops(model: &ModelConfig, layer: usize, tokens: usize) -> f64 {
    let (h, n, d) = (model.num_attention_heads, model.kv_heads(), model.head_width());
    let s = model.kernel_settings(layer).segment_len;
    let span = model.infini.span;
    // pairs of a query and a key it sees
    let pairs: f64 = (0..tokens).map(|t| (t - (t / s).saturating_sub(span - 1) * s + 1) as f64).sum();
    let local = 4.0 * pairs * (h * d) as f64;
    if model.layer_kind(layer) != LayerKind::Infini {
        return local;
    }
    let state = 2.0 * (tokens * model.feature_dim() * d) as f64;
    let mut memory = (h + n) as f64 * state;
    if model.features() == Features::SoftmaxPair {
        memory += ((h + n) * 2 * tokens * d * model.infini.feature_width) as f64;
    }
    if model.infini.rule != RuleName::Linear {
        // what the memory answers to its keys
        memory += n as f64 * state;
    }
    local + memory
}

/// A plain Llama: every token sees all earlier ones of its row.
fn llama(hidden: usize, layers: usize, heads: usize, ffn: usize) -> ModelConfig {
    let infini = InfiniConfig { segment_len: 512, ..InfiniConfig::default() };
    decoder([hidden, layers, heads, ffn], true, Attention::Local, infini)
}

/// The shape of SmolLM2-135M.
fn smollm2() -> ModelConfig {
    let mut model = llama(576, 30, 9, 1536);
    (model.vocab_size, model.num_key_value_heads) = (49_152, 3);
    model.attention = Attention::Full;
    model
}

/// Infini-attention with the delta rule in every layer: what infini-transformer-pytorch makes of `dim`, `depth`,
/// `heads` and a segment length.
fn infini(hidden: usize, layers: usize, heads: usize, ffn: usize, segment_len: usize) -> ModelConfig {
    let infini = InfiniConfig { segment_len, rule: RuleName::Delta, ..InfiniConfig::default() };
    decoder([hidden, layers, heads, ffn], false, Attention::Infini, infini)
}

fn decoder(
    [hidden, layers, heads, ffn]: [usize; 4],
    tied: bool,
    attention: Attention,
    infini: InfiniConfig,
) -> ModelConfig {
    ModelConfig {
        vocab_size: 1024,
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: 0,
        head_dim: 64,
        intermediate_size: ffn,
        hidden_act: Activation::Silu,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: tied,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention,
        infini,
    }
}

/// The recipe's passkey model: what `bench stream` and `bench save` take when no model is named.
pub fn selective() -> ModelConfig {
    let infini = InfiniConfig::preset("selective-linear").expect("a preset of the library");
    let mut model = decoder([128, 2, 4, 512], false, Attention::Infini, infini);
    model.vocab_size = 512;
    model.head_dim = 32;
    model.hidden_act = Activation::GeluMlp;
    model
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_model() {
        for name in NAMES {
            let case = Case::named(name).unwrap();
            case.model.check().unwrap();
            assert_eq!(case.name, name);
        }
        selective().check().unwrap();
        assert!(Case::named("llama-1-train").is_err());
    }

    #[test]
    fn operations_are_counted_as_by_hand() {
        // 2 layers, 1 head of 2, ffn 3, vocabulary 5: per token 4·2·2 + 3·2·3 = 34 weights a layer, 10 of the head
        let mut model =
            decoder([2, 2, 1, 3], true, Attention::Local, InfiniConfig { segment_len: 2, ..Default::default() });
        (model.vocab_size, model.head_dim) = (5, 2);
        // 3 tokens in segments of 2: 1 + 2 + 1 pairs, 4 · 2 operations each
        let local = 2.0 * 4.0 * 4.0 * 2.0;
        assert_eq!(forward_flops(&model, 3), 2.0 * 3.0 * 78.0 + local);
        model.attention = Attention::Infini;
        model.infini.rule = RuleName::Delta;
        // read, write and the delta rule's own read: 2·2 multiply-adds a token each
        assert_eq!(forward_flops(&model, 3), 2.0 * 3.0 * 78.0 + local + 2.0 * 3.0 * 8.0 * 3.0);
    }
}
