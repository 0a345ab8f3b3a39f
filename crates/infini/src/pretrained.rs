//! Models of others: Llama, Mistral, Qwen2 and what has their shape, out of Hugging Face folders and
//! GGUF files.
//!
//! Whatever could change the logits and is not computed here (scaled rotary positions, biases
//! elsewhere, experts, …) is refused by its name. Attention is [`full`](crate::config::Attention::Full),
//! up to the positions that the model was made for.

mod gguf;
mod huggingface;
mod vocabulary;

pub(crate) use gguf::read as read_gguf;
pub(crate) use huggingface::{is_huggingface, read as read_huggingface};

/// What a chat template needs besides messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateSource {
    /// The Jinja source.
    pub template: String,
    /// Spelling of the token that begins a text, empty if there is none.
    pub bos: String,
    /// Spelling of the token that ends a text, empty if there is none.
    pub eos: String,
}
