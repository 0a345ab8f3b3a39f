//! The loss of a text while it is read, piece by piece, in constant memory.

use serde::Serialize;

use super::perplexity::loss;
use crate::model::{Model, Want};
use crate::state::{Reads, State};

/// A model on its way through a document.
#[derive(Debug)]
pub struct Live<'a> {
    model: &'a Model,
    state: State,
    nats: f64,
    tokens: u64,
    /// After every piece: position, and of every layer with a memory the mean strength of all its writes so far.
    writes: Vec<(u64, Vec<(usize, f64)>)>,
}

/// Mean write strength of a layer over a stretch of the document that ends before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Written {
    /// Index of the layer.
    pub layer: usize,
    /// First position behind the stretch.
    pub to: u64,
    /// Mean over tokens and heads, 0 to 1.
    pub strength: f64,
}

/// Stretches that a document is cut into for [`Live::writes`], at most.
const STRETCHES: usize = 64;

impl<'a> Live<'a> {
    /// Before its first token.
    pub fn new(model: &'a Model, reads: Reads) -> Self {
        let mut state = model.state(1);
        state.set_reads(reads);
        Live { model, state, nats: 0.0, tokens: 0, writes: Vec::new() }
    }

    /// Reads on; returns the nats of these tokens (nothing foretells a document's first one, which counts nothing) and how
    /// many were scored.
    ///
    /// # Panics
    /// As [`Model::forward`].
    pub fn read(&mut self, tokens: &[u32]) -> (f64, u64) {
        let Some((first, rest)) = tokens.split_first() else { return (0.0, 0) };
        let known = self.state.logits().map(|logits| f64::from(loss(logits, *first)));
        let logits = self.model.forward(&mut self.state, tokens, Want::All);
        let each = logits.chunks(self.model.config().vocab_size).zip(rest).map(|(l, t)| f64::from(loss(l, *t)));
        let nats = known.unwrap_or(0.0) + each.sum::<f64>();
        let scored = rest.len() as u64 + u64::from(known.is_some());
        self.nats += nats;
        self.tokens += scored;
        let layers = self.state.write_stats().into_iter().map(|w| {
            let mean = w.strength.iter().sum::<f64>() / w.strength.len().max(1) as f64 / w.tokens.max(1) as f64;
            (w.layer, mean)
        });
        self.writes.push((self.state.position(), layers.collect()));
        (nats, scored)
    }

    /// Mean nats per scored token so far; 0 before the first.
    pub fn loss(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.nats / self.tokens as f64 }
    }

    /// Sum of nats so far.
    pub fn nats(&self) -> f64 {
        self.nats
    }

    /// How strongly each layer with a memory has written, stretch by stretch.
    pub fn writes(&self) -> Vec<Written> {
        let stretch = self.writes.len().div_ceil(STRETCHES).max(1);
        let (mut from, mut before) = (0, vec![0.0; self.writes.first().map_or(0, |(_, layers)| layers.len())]);
        let mut out = Vec::new();
        for piece in self.writes.chunks(stretch).filter_map(<[_]>::last) {
            let (to, layers) = piece;
            for ((layer, mean), before) in layers.iter().zip(&mut before) {
                let sum = mean * *to as f64;
                out.push(Written { layer: *layer, to: *to, strength: (sum - *before) / (to - from) as f64 });
                *before = sum;
            }
            from = *to;
        }
        out
    }

    /// What has been read.
    pub fn state(&self) -> &State {
        &self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::perplexity::stream;
    use crate::{InfiniConfig, ModelConfig, Weights};

    #[test]
    fn pieces_give_the_loss_of_the_whole() {
        let infini = InfiniConfig { segment_len: 8, write: crate::config::Write::Soft, ..InfiniConfig::default() };
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "infini": infini,
        }))
        .unwrap();
        let model = Model::new(config.clone(), Weights::init(&config, 0)).unwrap();
        let tokens: Vec<u32> = (0..90u32).map(|i| i * i % 32).collect();
        for reads in [Reads::Own, Reads::Nothing] {
            let expected: f64 =
                stream(&model, &[&tokens], reads, &mut |_| {})[0][1..].iter().map(|l| f64::from(*l)).sum();
            let mut live = Live::new(&model, reads);
            assert_eq!((live.loss(), live.read(&[])), (0.0, (0.0, 0)));
            let parts = [&tokens[..1], &tokens[1..40], &tokens[40..]].map(|piece| live.read(piece));
            assert_eq!(parts.map(|p| p.1), [0, 39, 50]);
            assert!((live.nats() - expected).abs() < 1e-3 && (live.loss() - expected / 89.0).abs() < 1e-4);
            // every token was weighed once
            let writes = live.writes();
            assert_eq!(writes.iter().map(|w| (w.layer, w.to)).collect::<Vec<_>>(), [(0, 1), (0, 40), (0, 90)]);
            let sum = writes[0].strength + 39.0 * writes[1].strength + 50.0 * writes[2].strength;
            let all = live.state().write_stats()[0].strength.iter().sum::<f64>() / 2.0;
            assert!((sum - all).abs() < 1e-9 && all > 9.0, "{sum} {all}");
            assert!((parts.iter().map(|p| p.0).sum::<f64>() - live.nats()).abs() < 1e-9);
        }
    }
}
