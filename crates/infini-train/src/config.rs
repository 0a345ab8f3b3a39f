//! The training configuration: TOML with the sections `[model]`, `[infini]`, `[data]` and `[train]`.
//!
//! `[infini]` may name a `preset` that its other keys override. Unknown keys are refused with the
//! nearest known one, values that cannot be are refused by name before anything is allocated, and the
//! resolved configuration (presets and defaults written out) is what a run saves.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use infini::config::{Attention, InfiniConfig, ModelConfig};
use infini::error::{Error, Result};
use infini::tasks::DataConfig;

/// Everything a run needs to be repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[model]` and `[infini]`.
    pub model: ModelConfig,
    /// `[data]`.
    pub data: DataConfig,
    /// `[train]`.
    pub train: TrainConfig,
}

/// Part of a curriculum: how many steps of which shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Optimiser steps.
    pub steps: u64,
    /// Rows of a batch.
    pub batch: usize,
    /// Tokens of a row.
    pub tokens: usize,
}

/// What the write penalty is a mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Penalty {
    /// The write strength itself.
    Mean,
    /// `softplus(logit + shift)` of the gate's logit: full strength on open gates, fading on closed ones.
    Softplus,
}

/// Which tokens the write penalty falls on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PenaltyTokens {
    /// Every token.
    All,
    /// Tokens that the task calls filler.
    Filler,
}

/// The penalty on writing: `weight` times a mean over tokens, heads and the layers that have a write gate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WriteSparsity {
    /// Weight from step `end` on.
    pub weight: f64,
    /// Last step with weight 0; from here it rises linearly.
    pub start: u64,
    /// First step with the full weight.
    pub end: u64,
    /// What is penalised.
    pub kind: Penalty,
    /// Added to the logit in the softplus form.
    pub shift: f64,
    /// Where.
    pub on: PenaltyTokens,
}

impl Default for WriteSparsity {
    fn default() -> Self {
        let (kind, on) = (Penalty::Softplus, PenaltyTokens::Filler);
        WriteSparsity { weight: 0.0, start: 0, end: 0, kind, shift: 3.5, on }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine down to `final_lr`.
    Cosine,
    /// Constant until `hold`, then linear down to `final_lr`.
    Trapezoid,
}

/// The `[train]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimiser steps; 0: as many as the curriculum has.
    pub steps: u64,
    /// Rows of a batch.
    pub batch: usize,
    /// Tokens of a row.
    pub tokens: usize,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: usize,
    /// Peak learning rate of matrices, embedding, norms and convolutions.
    pub lr: f64,
    /// Peak learning rate of the gates.
    pub gate_lr: f64,
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f64,
    /// Decay of AdamW's two moments.
    pub betas: [f64; 2],
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// Largest global norm of the gradient.
    pub clip: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup: u64,
    /// Shape of the learning rate.
    pub schedule: Schedule,
    /// Trapezoid: fraction of the steps after which the rate falls.
    pub hold: f64,
    /// Fraction of the peak rate at the last step.
    pub final_lr: f64,
    /// Weight of the mean loss over answer tokens.
    pub answer_loss: f64,
    /// Weight of the mean loss over all tokens.
    pub token_loss: f64,
    /// Penalty on write strengths.
    pub write_sparsity: WriteSparsity,
    /// A model folder whose weights the run begins with, and whose tokenizer it takes unless `data` names one. What a memory
    /// adds to the folder's model begins with its first values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Seed of weights and data.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between rows of the metrics.
    pub log_every: u64,
    /// Stages that replace `batch` and `tokens`; the last goes on until `steps`.
    pub curriculum: Vec<Stage>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            steps: 0,
            batch: 16,
            tokens: 256,
            accumulate: 1,
            lr: 3e-3,
            gate_lr: 1e-2,
            weight_decay: 0.05,
            betas: [0.9, 0.95],
            eps: 1e-8,
            clip: 1.0,
            warmup: 50,
            schedule: Schedule::Trapezoid,
            hold: 0.6,
            final_lr: 0.05,
            answer_loss: 1.0,
            token_loss: 0.2,
            write_sparsity: WriteSparsity::default(),
            init: None,
            seed: 0,
            checkpoint_every: 100,
            log_every: 10,
            curriculum: Vec::new(),
        }
    }
}

const SECTIONS: [&str; 4] = ["model", "infini", "data", "train"];

impl Config {
    /// Reads a configuration and applies `key=value` overrides with dotted keys.
    ///
    /// # Errors
    /// TOML that does not parse, an unknown key (with the nearest one), a value that cannot be.
    pub fn parse(text: &str, set: &[String]) -> Result<Config> {
        let mut root: Table = text.parse().map_err(|e: toml::de::Error| bad("the file", e.to_string()))?;
        for assignment in set {
            apply(&mut root, assignment)?;
        }
        if let Some(name) = root.keys().find(|k| !SECTIONS.contains(&k.as_str())) {
            return Err(Error::unknown("section", name, SECTIONS));
        }
        let mut take = |name: &str| match root.remove(name) {
            None => Ok(Table::new()),
            Some(Value::Table(t)) => Ok(t),
            Some(_) => Err(bad(name, format!("is not a section: write [{name}]"))),
        };
        let (model, infini, data, train) = (take("model")?, take("infini")?, take("data")?, take("train")?);
        if model.contains_key("infini") {
            return Err(bad("model.infini", "is a section of its own: write [infini]".into()));
        }
        let mut model: ModelConfig = section("model", model)?;
        model.infini = infini_section(infini)?;
        let data = if data.is_empty() { DataConfig::default() } else { section("data", data)? };
        let mut config = Config { model, data, train: section("train", train)? };
        if config.train.steps == 0 {
            config.train.steps = config.train.curriculum.iter().fold(0u64, |n, s| n.saturating_add(s.steps));
        }
        config.check()?;
        Ok(config)
    }

    /// The resolved configuration: [`Config::parse`] reads it back as it is.
    pub fn to_toml(&self) -> String {
        let table = |v: Value| match v {
            Value::Table(t) => t,
            _ => unreachable!("sections are tables"),
        };
        let mut model = table(Value::try_from(&self.model).expect("a configuration is TOML"));
        let infini = model.remove("infini").expect("the model has an infini section");
        let mut root = Table::new();
        root.insert("model".into(), Value::Table(model));
        root.insert("infini".into(), infini);
        root.insert("data".into(), Value::try_from(&self.data).expect("a configuration is TOML"));
        root.insert("train".into(), Value::try_from(&self.train).expect("a configuration is TOML"));
        toml::to_string(&root).expect("a configuration is TOML")
    }

    /// Refuses what cannot be trained, naming the field.
    pub fn check(&self) -> Result<()> {
        self.model.check()?;
        if self.model.infini.sink > 0 && self.model.attention != Attention::Local {
            let why = "only attention = \"local\" is trained with attention sinks: set it to 0".into();
            return Err(bad("infini.sink", why));
        }
        self.data.check()?;
        self.train.check()
    }
}

impl TrainConfig {
    /// Rows and tokens of step `step` (from 0).
    pub fn stage(&self, step: u64) -> (usize, usize) {
        let mut end = 0u64;
        for s in &self.curriculum {
            end = end.saturating_add(s.steps);
            if step < end {
                return (s.batch, s.tokens);
            }
        }
        self.curriculum.last().map_or((self.batch, self.tokens), |s| (s.batch, s.tokens))
    }

    /// Tokens that each row has read before step `step`.
    pub fn columns(&self, step: u64) -> u64 {
        let (mut left, mut read) = (step, 0);
        for s in &self.curriculum {
            let steps = s.steps.min(left);
            read += steps * s.tokens as u64;
            left -= steps;
        }
        (read + left * self.stage(step).1 as u64) * self.accumulate as u64
    }

    /// Rows and tokens of every stage.
    pub fn shapes(&self) -> Vec<(usize, usize)> {
        if self.curriculum.is_empty() {
            return vec![(self.batch, self.tokens)];
        }
        self.curriculum.iter().map(|s| (s.batch, s.tokens)).collect()
    }

    fn check(&self) -> Result<()> {
        let mut sizes: Vec<(String, u64, u64)> = vec![
            ("steps".into(), self.steps, 1 << 40),
            ("batch".into(), self.batch as u64, 1 << 16),
            ("tokens".into(), self.tokens as u64, 1 << 24),
            ("accumulate".into(), self.accumulate as u64, 1 << 16),
            ("checkpoint_every".into(), self.checkpoint_every, u64::MAX),
            ("log_every".into(), self.log_every, u64::MAX),
        ];
        if self.curriculum.len() > 1024 {
            return Err(bad("train.curriculum", format!("{} stages are above 1024", self.curriculum.len())));
        }
        for (i, s) in self.curriculum.iter().enumerate() {
            sizes.push((format!("curriculum[{i}].steps"), s.steps, 1 << 40));
            sizes.push((format!("curriculum[{i}].batch"), s.batch as u64, 1 << 16));
            sizes.push((format!("curriculum[{i}].tokens"), s.tokens as u64, 1 << 24));
        }
        for (field, n, max) in sizes {
            if n == 0 || n > max {
                return Err(bad(&format!("train.{field}"), format!("{n} is outside 1..={max}")));
            }
        }
        for (batch, tokens) in self.shapes() {
            if batch * tokens > 1 << 26 {
                return Err(bad("train.tokens", format!("{batch} rows of {tokens} tokens are above 2^26 in a batch")));
            }
        }
        let w = &self.write_sparsity;
        let numbers = [
            ("lr", self.lr, 0.0, 100.0),
            ("gate_lr", self.gate_lr, 0.0, 100.0),
            ("weight_decay", self.weight_decay, 0.0, 100.0),
            ("betas[0]", self.betas[0], 0.0, 0.999_999),
            ("betas[1]", self.betas[1], 0.0, 0.999_999),
            ("eps", self.eps, 1e-16, 1.0),
            ("clip", self.clip, 1e-6, 1e6),
            ("hold", self.hold, 0.0, 1.0),
            ("final_lr", self.final_lr, 0.0, 1.0),
            ("answer_loss", self.answer_loss, 0.0, 1e6),
            ("token_loss", self.token_loss, 0.0, 1e6),
            ("write_sparsity.weight", w.weight, 0.0, 1e6),
            ("write_sparsity.shift", w.shift, -100.0, 100.0),
        ];
        for (field, x, min, max) in numbers {
            if !(min..=max).contains(&x) {
                return Err(bad(&format!("train.{field}"), format!("{x} is outside {min}..={max}")));
            }
        }
        if self.answer_loss == 0.0 && self.token_loss == 0.0 {
            return Err(bad(
                "train.token_loss",
                "answer_loss and token_loss are both 0: nothing would be learned".into(),
            ));
        }
        if w.start > w.end {
            return Err(bad("train.write_sparsity.start", format!("{} is after end = {}", w.start, w.end)));
        }
        Ok(())
    }
}

fn bad(field: &str, why: String) -> Error {
    Error::Config { field: field.into(), why }
}

/// A preset with the other keys laid over it.
fn infini_section(mut table: Table) -> Result<InfiniConfig> {
    let base = match table.remove("preset") {
        None => InfiniConfig::default(),
        Some(Value::String(name)) => InfiniConfig::preset(&name)?,
        Some(v) => return Err(bad("infini.preset", format!("{v} is not a name in quotes"))),
    };
    let Ok(Value::Table(mut merged)) = Value::try_from(&base) else { unreachable!("a section is a table") };
    merged.extend(table);
    section("infini", merged)
}

/// A section as its structure; an unknown key, at any depth, is reported with its nearest name.
fn section<T: serde::de::DeserializeOwned>(name: &str, table: Table) -> Result<T> {
    Value::Table(table.clone()).try_into().map_err(|e: toml::de::Error| {
        let message = e.message().to_owned();
        if let Some((unknown, known)) = unknown_field(&message) {
            let path = find(&table, &unknown).unwrap_or(unknown.clone());
            let Error::Unknown { hint, .. } = Error::unknown("key", &unknown, known.iter().map(String::as_str)) else {
                unreachable!("unknown makes Unknown")
            };
            return Error::Unknown { kind: "key".into(), name: format!("{name}.{path}"), hint };
        }
        bad(name, e.to_string().trim().replace('\n', " "))
    })
}

/// The names in serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2).map(str::to_owned);
    let unknown = quoted.next()?;
    Some((unknown, quoted.collect()))
}

/// Dotted path of the first key of that name.
fn find(table: &Table, name: &str) -> Option<String> {
    if table.contains_key(name) {
        return Some(name.to_owned());
    }
    table.iter().find_map(|(key, value)| {
        let inner = match value {
            Value::Table(t) => find(t, name),
            Value::Array(a) => a.iter().find_map(|v| find(v.as_table()?, name)),
            _ => None,
        };
        inner.map(|path| format!("{key}.{path}"))
    })
}

/// One `key=value` of `--set`; what is no TOML value is taken as a string.
fn apply(root: &mut Table, assignment: &str) -> Result<()> {
    let Some((key, value)) = assignment.split_once('=') else {
        return Err(bad(assignment, "an override is written key=value".into()));
    };
    let value = match format!("x = {value}").parse::<Table>() {
        Ok(mut t) if t.len() == 1 => t.remove("x").expect("the only key"),
        _ => Value::String(value.trim().to_owned()),
    };
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().filter(|p| !p.is_empty()).ok_or_else(|| bad(key, "an override needs a key".into()))?;
    let mut at = root;
    for part in parts {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = next.as_table_mut().ok_or_else(|| bad(key, format!("{part} is not a section")))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use infini::config::{Layers, LayersName, RuleName};

    const RECIPE: &str = r#"
        [model]
        vocab_size = 512
        hidden_size = 128
        num_hidden_layers = 2
        num_attention_heads = 4
        intermediate_size = 512
        hidden_act = "gelu_mlp"
        [infini]
        preset = "selective-linear"
        [train]
        curriculum = [{ steps = 400, batch = 16, tokens = 256 }, { steps = 300, batch = 8, tokens = 512 }]
        write_sparsity = { weight = 0.3, start = 350, end = 550 }
    "#;

    fn set(assignments: &[&str]) -> Result<Config> {
        Config::parse(RECIPE, &assignments.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn a_preset_is_resolved_and_read_back() {
        let c = set(&["infini.conv=4"]).unwrap();
        assert_eq!((c.train.steps, c.train.stage(399), c.train.stage(400)), (700, (16, 256), (8, 512)));
        assert_eq!((c.model.infini.span, c.model.infini.conv), (2, 4));
        assert_eq!(c.model.infini.layers, Layers::Named(LayersName::Last));
        let text = c.to_toml();
        assert!(!text.contains("preset"));
        assert_eq!(Config::parse(&text, &[]).unwrap(), c);
    }

    #[test]
    fn overrides_take_toml_values_and_bare_words() {
        let c = set(&["infini.rule=delta", "train.lr=1e-3", "train.betas=[0.8, 0.9]", "train.steps=12"]).unwrap();
        assert_eq!(
            (c.model.infini.rule, c.train.lr, c.train.betas, c.train.steps),
            (RuleName::Delta, 1e-3, [0.8, 0.9], 12)
        );
        assert!(set(&["train.lr"]).is_err() && set(&["=1"]).is_err() && set(&["train.lr.x=1"]).is_err());
    }

    #[test]
    fn an_unknown_key_names_the_nearest_at_any_depth() {
        for (assignment, path, hint) in [
            ("train.stpes=1", "train.stpes", "steps"),
            ("train.write_sparsity.wieght=1", "train.write_sparsity.wieght", "weight"),
            ("infini.segment_length=8", "infini.segment_length", "segment_len"),
            ("model.hiden_size=8", "model.hiden_size", "hidden_size"),
            ("infini.preset=selectiv-linear", "selectiv-linear", "selective-linear"),
            ("trian.steps=1", "trian", "train"),
            ("train.curriculum=[{steps=1,batch=1,token=1}]", "train.curriculum.token", "tokens"),
        ] {
            let e = set(&[assignment]).unwrap_err().to_string();
            assert!(e.contains(path) && e.contains(&format!("did you mean {hint}?")), "{assignment}: {e}");
        }
    }

    #[test]
    fn hostile_values_are_refused_by_name() {
        let fields = ["batch", "tokens", "accumulate", "checkpoint_every", "log_every"];
        for field in fields {
            for value in ["0", "-1"] {
                let e = set(&[&format!("train.{field}={value}")]).unwrap_err().to_string();
                assert!(e.contains("train"), "{field} = {value}: {e}");
            }
        }
        for field in ["batch", "tokens", "accumulate", "steps"] {
            let e = set(&[&format!("train.{field}=9223372036854775807")]).unwrap_err().to_string();
            assert!(e.contains(&format!("train.{field}")), "{field}: {e}");
        }
        for field in ["lr", "gate_lr", "weight_decay", "eps", "clip", "hold", "final_lr", "answer_loss", "token_loss"] {
            for value in ["nan", "inf", "-1.0"] {
                let e = set(&[&format!("train.{field}={value}")]).unwrap_err().to_string();
                assert!(e.contains(&format!("train.{field}")), "{field} = {value}: {e}");
            }
        }
        for (assignment, field) in [
            ("train.betas=[1.0, 0.9]", "train.betas[0]"),
            ("train.curriculum=[{steps=1,batch=65536,tokens=16777216}]", "train.tokens"),
            ("train.write_sparsity={weight=1.0,start=9,end=1}", "train.write_sparsity.start"),
            ("model.num_attention_heads=3", "num_attention_heads"),
            ("model=1", "model"),
        ] {
            let e = set(&[assignment]).unwrap_err().to_string();
            assert!(e.contains(field), "{assignment}: {e}");
        }
    }
}
