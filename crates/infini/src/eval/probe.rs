//! Which heads of a model with full attention fetch by content: what each answer's digit looks at.
//!
//! A key is told in filler and asked for at the end; the answer is given (teacher forcing). For each of its digits, a
//! head's weight from the token before it to the same digit of the key sentence, both times that it stands there.

use infini_kernels::math::dot;
use infini_kernels::{linear, norm, rope};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::config::{LayerKind, ModelConfig};
use crate::error::{Error, Result};
use crate::model::{LayerWeights, Model};
use crate::tasks::filler::{Filler, PROSE_TOKENS, Source};
use crate::tasks::scenario::digits;
use crate::tasks::wording::{KEY, QUESTION, answer};
use crate::text::Tokenizer;

/// Weight from which on a layer's best head is said to fetch.
pub const FETCHES: f64 = 0.25;
/// Generated prose of evaluations begins at this seed.
const PROSE_SEED: u64 = 1 << 32;

/// What to probe with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of a text, question and answer included.
    pub length: usize,
    /// Texts.
    pub samples: usize,
    /// What the key is hidden in.
    pub filler: Source,
    /// Seed of keys and places.
    pub seed: u64,
}

/// What the heads look at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Mean weight on the right digit, by layer and head.
    pub weights: Vec<Vec<f64>>,
    /// Answer digits that were looked at.
    pub digits: usize,
    /// The lowest layer with a head that fetches: where a memory is best put, since the layers below it are cheap.
    pub layer: Option<usize>,
}

/// A text with its key.
struct Text {
    tokens: Vec<u32>,
    /// Of each answer digit: the token before it, and where the same digit stands in the key sentence.
    asked: Vec<(usize, Vec<usize>)>,
}

/// Probes. `progress` is told the layers done and to be done.
///
/// # Errors
/// A model without full attention, a length that does not hold the key and its question or is too long for the model,
/// a tokenizer that does not take digits one by one, filler that cannot be had, no samples.
pub fn run(model: &Model, tokenizer: &Tokenizer, o: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    let c = model.config();
    let full = (0..c.num_hidden_layers).all(|l| c.layer_kind(l) == LayerKind::Full);
    if !full || c.infini.conv + c.infini.kv_conv > 0 {
        return Err(Error::Input("only plain full attention can be probed: choose a model without a memory".into()));
    }
    model.check_room(&model.state(1), o.length)?;
    if o.samples == 0 || o.samples > 1 << 10 {
        return Err(Error::Input(format!("samples {}: choose 1 to 1024", o.samples)));
    }
    let least = o.length.saturating_mul(4).min(PROSE_TOKENS);
    let filler = Filler::new(&o.filler, tokenizer, None, PROSE_SEED + o.seed, least)?;
    let mut rng = ChaCha8Rng::seed_from_u64(o.seed);
    let texts = (0..o.samples).map(|_| text(&mut rng, tokenizer, &filler, o.length)).collect::<Result<Vec<_>>>()?;
    let digits = texts.iter().map(|t| t.asked.len()).sum();
    let mut weights = vec![vec![0.0; c.num_attention_heads]; c.num_hidden_layers];
    let total = (c.num_hidden_layers * texts.len()) as u64;
    for (l, sums) in weights.iter_mut().enumerate() {
        let layer = model.layer(l);
        for (i, text) in texts.iter().enumerate() {
            progress((l * texts.len() + i) as u64, total);
            let x = model.trunk(&mut model.state(1), &text.tokens, l);
            add(c, &layer, &x, text, sums);
        }
        sums.iter_mut().for_each(|w| *w /= digits as f64);
    }
    let best = |heads: &Vec<f64>| heads.iter().fold(0.0, |m: f64, w| m.max(*w));
    Ok(Report { layer: weights.iter().position(|heads| best(heads) >= FETCHES), weights, digits })
}

fn text(rng: &mut ChaCha8Rng, tokenizer: &Tokenizer, filler: &Filler, length: usize) -> Result<Text> {
    let digits = digits(rng, [5, 5], 0.0);
    let key = tokenizer.encode(&KEY.replace("{k}", &digits));
    let (question, reply) = (tokenizer.encode(QUESTION), tokenizer.encode(&answer(Some(&digits))));
    let fixed = key.len() + question.len() + reply.len();
    let room = length.checked_sub(fixed).ok_or_else(|| {
        Error::Input(format!("{length} tokens do not hold a key and its question: choose {fixed} or more"))
    })?;
    let (mut tokens, at) = (Vec::with_capacity(length), filler.anywhere(rng));
    let before = rng.random_range(0..=room / 2);
    filler.copy(at, before, &mut tokens);
    tokens.extend(&key);
    filler.copy(at + before as u64, room - before, &mut tokens);
    tokens.extend(&question);
    let begin = tokens.len();
    tokens.extend(&reply);
    let one =
        |id: &u32| matches!(tokenizer.decode(&[*id]).trim(), t if t.len() == 1 && t.as_bytes()[0].is_ascii_digit());
    let told: Vec<usize> = (before..before + key.len()).filter(|i| one(&tokens[*i])).collect();
    let said: Vec<usize> = (begin..tokens.len()).filter(|i| one(&tokens[*i])).collect();
    if said.len() != digits.len() || told.len() != 2 * digits.len() {
        return Err(Error::Input(
            "this tokenizer does not take the digits of a number one by one: it cannot be probed".into(),
        ));
    }
    let asked = said.iter().enumerate().map(|(i, at)| (at - 1, vec![told[i], told[digits.len() + i]])).collect();
    Ok(Text { tokens, asked })
}

/// Adds to `sums` each head's weights from the tokens before the digits of the answer, `x` being the layer's input.
fn add(c: &ModelConfig, layer: &LayerWeights, x: &[f32], text: &Text, sums: &mut [f64]) {
    let (d, n, width) = (c.hidden_size, text.tokens.len(), c.head_width());
    let mut h = vec![0.0; n * d];
    norm::rms_forward(x, layer.attention_norm, c.rms_norm_eps as f32, &mut h, &mut vec![0.0; n]);
    let table = rope::Table::new(&rope::frequencies(c.rope_theta, width), 0, n);
    let project = |w: &[f32], bias: Option<&[f32]>| {
        let out = w.len() / d;
        let mut y = vec![0.0; n * out];
        linear::forward(&h, w, &mut y, [n, d, out], false);
        if let Some(bias) = bias {
            linear::add_bias(&mut y, bias);
        }
        for (t, y) in y.chunks_exact_mut(out).enumerate() {
            y.chunks_exact_mut(width).for_each(|y| rope::rotate_half(y, table.cos(t), table.sin(t), false));
        }
        y
    };
    let q = project(&layer.q, layer.bias.map(|b| b[0]));
    let k = project(&layer.k, layer.bias.map(|b| b[1]));
    let (heads, kv) = (c.num_attention_heads, c.kv_heads());
    for (head, sum) in sums.iter_mut().enumerate() {
        for (at, targets) in &text.asked {
            let q = &q[(at * heads + head) * width..][..width];
            let score = |j: usize| dot(q, &k[(j * kv + head * kv / heads) * width..][..width]) / (width as f32).sqrt();
            let scores: Vec<f32> = (0..=*at).map(score).collect();
            let top = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            let exp = |s: f32| f64::from(s - top).exp();
            let all: f64 = scores.iter().map(|s| exp(*s)).sum();
            *sum += targets.iter().map(|j| exp(scores[*j])).sum::<f64>() / all;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::tasks::DataConfig;
    use crate::weights::Weights;

    fn model(extra: &str) -> Model {
        let config: ModelConfig = toml::from_str(&format!(
            "vocab_size = 512\nhidden_size = 32\nnum_hidden_layers = 3\nnum_attention_heads = 4\n\
             num_key_value_heads = 2\nintermediate_size = 48\ntie_word_embeddings = true\n{extra}"
        ))
        .unwrap();
        let weights = Weights::init(&config, 1);
        Model::new(config, weights).unwrap()
    }

    fn options() -> Options {
        Options { length: 300, samples: 2, filler: Source::Paper, seed: 0 }
    }

    /// The first layer's weights, where the input is the embedding, written out in f64.
    #[test]
    fn weights_are_those_of_attention_written_out() {
        let tokenizer = DataConfig::default().tokenizer(None, 512).unwrap();
        let m = model("attention = \"full\"");
        let report = run(&m, &tokenizer, &options(), &mut |_, _| ()).unwrap();
        assert_eq!((report.weights.len(), report.weights[0].len(), report.digits), (3, 4, 10));
        let filler = Filler::new(&Source::Paper, &tokenizer, None, 0, 0).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let (c, layer, embedding) = (m.config(), m.layer(0), m.embedding());
        let (d, w) = (c.hidden_size, c.head_width());
        let frequencies = rope::frequencies(c.rope_theta, w);
        let mut expected = vec![0.0; 4];
        for _ in 0..2 {
            let t = text(&mut rng, &tokenizer, &filler, 300).unwrap();
            assert_eq!(t.tokens.len(), 300);
            for (at, told) in &t.asked {
                assert!(told.iter().all(|j| t.tokens[*j] == t.tokens[at + 1]));
            }
            let head = |matrix: &[f32], head: usize, at: usize| -> Vec<f64> {
                let e = &embedding[t.tokens[at] as usize * d..][..d];
                let r = (e.iter().map(|x| f64::from(x * x)).sum::<f64>() / d as f64 + c.rms_norm_eps).sqrt();
                let row = |i: usize| -> f64 {
                    let m = &matrix[(head * w + i) * d..][..d];
                    (0..d).map(|j| f64::from(m[j]) * f64::from(e[j]) / r * f64::from(layer.attention_norm[j])).sum()
                };
                let y: Vec<f64> = (0..w).map(row).collect();
                let half = w / 2;
                let turn = |i: usize| {
                    let (sin, cos) = (at as f64 * frequencies[i % half]).sin_cos();
                    if i < half { y[i] * cos - y[i + half] * sin } else { y[i] * cos + y[i - half] * sin }
                };
                (0..w).map(turn).collect()
            };
            for (h, sum) in expected.iter_mut().enumerate() {
                for (at, told) in &t.asked {
                    let q = head(&layer.q, h, *at);
                    let score = |j: usize| {
                        let k = head(&layer.k, h / 2, j);
                        (q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (w as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (0..=*at).map(score).collect();
                    *sum += told.iter().map(|j| scores[*j]).sum::<f64>() / scores.iter().sum::<f64>() / 10.0;
                }
            }
        }
        for (got, expected) in report.weights[0].iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-5 * expected, "{got}, not {expected}");
        }
    }

    #[test]
    fn what_cannot_be_probed_is_refused() {
        let tokenizer = DataConfig::default().tokenizer(None, 512).unwrap();
        let refused = |m: &Model, o: Options| run(m, &tokenizer, &o, &mut |_, _| ()).unwrap_err().to_string();
        let full = model("attention = \"full\"");
        assert!(refused(&model("attention = \"local\""), options()).contains("full attention"));
        assert!(refused(&full, Options { length: 20, ..options() }).contains("do not hold"));
        assert!(refused(&full, Options { samples: 0, ..options() }).contains("samples"));
    }
}
