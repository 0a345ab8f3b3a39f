//! The configuration of an adaptation: TOML with the sections `[adapter]`, `[data]` and `[train]`; `[paper]` for the paper's form.

use std::collections::BTreeMap;

use infini::adapter::AdapterConfig;
use infini::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Everything an adaptation needs to be repeated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptConfig {
    /// Sizes of the adapter.
    pub adapter: AdapterConfig,
    /// The documents.
    pub data: PoolConfig,
    /// How they are learned from.
    pub train: StagesConfig,
    /// The paper's form of memory in place of the adapter's: of `[adapter]` only `layer`, `segment_len` and `sink` count then,
    /// of `[train]` the third stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paper: Option<GateConfig>,
}

/// The gates between window and memory in the paper's form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// First value of every β: the gate is σ(β).
    pub gate: f64,
    /// Peak learning rate of the β.
    pub gate_lr: f64,
}

impl Default for GateConfig {
    fn default() -> Self {
        GateConfig { gate: -4.0, gate_lr: 2e-2 }
    }
}

/// The pool of documents: `[opening] filler with key sentences | a free segment | tail with questions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Documents.
    pub documents: usize,
    /// Most segments that key sentences are spread over (1 to this many, a quarter of the documents have most).
    pub segments: usize,
    /// Tokens at the end that the layers above the memory see.
    pub tail: usize,
    /// Ends of each document, with other questions.
    pub tails: usize,
    /// Most key sentences in a segment.
    pub keys: usize,
    /// Most questions in a document.
    pub questions: usize,
    /// Share of documents whose keys have names.
    pub named: f64,
    /// Share of documents in the paper's words; the others vary theirs.
    pub paper: f64,
    /// Share of documents with a question for a key that nobody told.
    pub absent: f64,
    /// Share of ends that ask for a key which they tell themselves.
    pub near: f64,
    /// Share of named keys that get another number later in the document, and of ends that give one another number:
    /// asked for is the last.
    pub changed: f64,
    /// Share of sentences and questions some of whose words are replaced by others.
    pub noise: f64,
    /// Fewest and most digits of a key.
    pub digits: [usize; 2],
    /// Share of documents with the paper's opening.
    pub opening: f64,
    /// Share of documents whose filler changes its source once.
    pub switch: f64,
    /// Share of stretches of filler that are chosen to hold a digit: years and footnotes are no keys.
    pub numbers: f64,
    /// Weights of the filler's sources: `paper`, `prose`, `books` or the path of a text file.
    pub filler: BTreeMap<String, f64>,
    /// Facts of bAbI in place of keys; what concerns keys (how many, their names, digits and wordings, the opening) says nothing
    /// then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facts: Option<FactsConfig>,
    /// Seed of the documents.
    pub seed: u64,
}

/// Stories with questions of one word.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FactsConfig {
    /// Folder of bAbI v1.2 under the folder of `--data`.
    pub folder: String,
    /// Its tasks: `qa1` to `qa20`.
    pub tasks: Vec<String>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig {
            documents: 960,
            segments: 2,
            tail: 128,
            tails: 2,
            keys: 6,
            questions: 3,
            named: 0.7,
            paper: 0.4,
            absent: 0.06,
            near: 0.2,
            changed: 0.0,
            noise: 0.0,
            digits: [4, 8],
            opening: 0.7,
            switch: 0.2,
            numbers: 0.4,
            filler: [("paper".into(), 1.0), ("books".into(), 3.0)].into(),
            facts: None,
            seed: 0,
        }
    }
}

/// The stages and the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StagesConfig {
    /// Steps of the three stages: memory alone, with the head, with the true layers.
    pub steps: [u64; 3],
    /// Peak learning rate of each.
    pub lr: [f64; 3],
    /// Documents in a step of each.
    pub batch: [usize; 3],
    /// Steps over which a stage's rate rises; from its middle on the rate falls linearly to a twentieth.
    pub warmup: u64,
    /// Largest global norm of the gradient.
    pub clip: f64,
    /// Weight of the divergence from the base on tokens that answer nothing.
    pub divergence: f64,
    /// Weight of the read gate's labels on the ends of documents, from the second stage on.
    pub read_labels: f64,
    /// Weight of open read gates far from any key, where nothing is asked, from the second stage on.
    pub quiet: f64,
    /// Weight of the write gate's labels.
    pub write_labels: f64,
    /// Price of a nat of the bar of "nothing" where the key was told: it falls as far as questions for keys that nobody told
    /// let it, so that a wording that was never met is not doubted for that alone.
    pub leniency: f64,
    /// Share of filler tokens that are written all the same in the second stage, as noise.
    pub noise: f64,
    /// Largest probability that a document's memory also holds that of another; drawn for each step up to this.
    pub together: f64,
    /// Seed of the start and of the order.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between lines of the metrics.
    pub log_every: u64,
}

impl Default for StagesConfig {
    fn default() -> Self {
        StagesConfig {
            steps: [250, 150, 150],
            lr: [2e-3, 2e-3, 1e-3],
            batch: [16, 16, 12],
            warmup: 10,
            clip: 1.0,
            divergence: 1.0,
            read_labels: 0.3,
            quiet: 1.0,
            write_labels: 1.0,
            leniency: 0.02,
            noise: 0.01,
            together: 0.9,
            seed: 0,
            checkpoint_every: 50,
            log_every: 10,
        }
    }
}

impl AdaptConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// TOML that does not parse, an unknown key, a value that cannot be.
    pub fn parse(text: &str) -> Result<Self> {
        let config: AdaptConfig =
            toml::from_str(text).map_err(|e| Error::Config { field: "the file".into(), why: e.to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// Refuses values that cannot be, by their dotted name.
    ///
    /// # Errors
    /// The first such value.
    pub fn check(&self) -> Result<()> {
        let bad = |field: &str, why: String| Err(Error::Config { field: field.into(), why });
        let (d, t) = (&self.data, &self.train);
        for (field, p) in [
            ("data.named", d.named),
            ("data.paper", d.paper),
            ("data.absent", d.absent),
            ("data.near", d.near),
            ("data.changed", d.changed),
            ("data.noise", d.noise),
            ("data.opening", d.opening),
            ("data.switch", d.switch),
            ("data.numbers", d.numbers),
            ("train.noise", t.noise),
            ("train.together", t.together),
        ] {
            if !(0.0..=1.0).contains(&p) {
                return bad(field, format!("{p} is no probability: choose 0 to 1"));
            }
        }
        for (field, n, max) in [
            ("data.documents", d.documents, 1 << 16),
            ("data.segments", d.segments, 16),
            ("data.tail", d.tail, 1024),
            ("data.tails", d.tails, 16),
            ("data.keys", d.keys, 64),
            ("data.questions", d.questions, 64),
            ("train.batch", t.batch[0].min(t.batch[1]).min(t.batch[2]), 1024),
            ("train.batch", t.batch[0].max(t.batch[1]).max(t.batch[2]), 1024.min(d.documents)),
        ] {
            if n == 0 || n > max {
                return bad(field, format!("{n} is outside 1..={max}"));
            }
        }
        for (field, x) in [
            ("train.lr", t.lr[0]),
            ("train.lr", t.lr[1]),
            ("train.lr", t.lr[2]),
            ("train.clip", t.clip),
            ("train.divergence", t.divergence),
            ("train.read_labels", t.read_labels),
            ("train.write_labels", t.write_labels),
            ("train.quiet", t.quiet),
            ("train.leniency", t.leniency),
        ] {
            if !(x.is_finite() && x >= 0.0) {
                return bad(field, format!("{x} is not a number of at least 0"));
            }
        }
        if d.digits[0] == 0 || d.digits[0] > d.digits[1] || d.digits[1] > 16 {
            return bad("data.digits", format!("{:?} is no range inside 1..=16", d.digits));
        }
        if let Some((name, w)) = d.filler.iter().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
            return bad("data.filler", format!("{name} = {w} is no weight: choose 0 or more"));
        }
        if d.filler.values().sum::<f64>() <= 0.0 {
            return bad("data.filler", "no source has a weight above 0".into());
        }
        if d.facts.as_ref().is_some_and(|f| f.tasks.is_empty()) {
            return bad("data.facts", "no task: name one, such as qa1".into());
        }
        if let Some(p) = &self.paper {
            if t.steps[..2] != [0, 0] {
                return bad("train.steps", "the paper's form has the third stage alone: write [0, 0, n]".into());
            }
            if p.gate.is_nan() || p.gate.abs() > 30.0 {
                return bad("paper.gate", format!("{} is no number from -30 to 30", p.gate));
            }
            if !(p.gate_lr.is_finite() && p.gate_lr >= 0.0) {
                return bad("paper.gate_lr", format!("{} is not a number of at least 0", p.gate_lr));
            }
        }
        for (field, n) in [
            ("data.seed", d.seed),
            ("train.seed", t.seed),
            ("train.warmup", t.warmup),
            ("train.checkpoint_every", t.checkpoint_every),
            ("train.log_every", t.log_every),
        ] {
            // the resolved configuration is TOML, whose numbers end there
            if i64::try_from(n).is_err() {
                return bad(field, format!("{n} is above {}", i64::MAX));
            }
        }
        if t.checkpoint_every == 0 || t.log_every == 0 {
            return bad("train.checkpoint_every", "0: choose 1 or more".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read_with_defaults_and_hostile_values_refused_by_name() {
        assert_eq!(AdaptConfig::parse("").unwrap(), AdaptConfig::default());
        let c = AdaptConfig::parse("[adapter]\nlayer = 3\n[data]\nkeys = 2\n[train]\nsteps = [1, 2, 3]").unwrap();
        assert_eq!((c.adapter.layer, c.data.keys, c.train.steps), (3, 2, [1, 2, 3]));
        for (text, field) in [
            ("[data]\nnamed = 2", "data.named"),
            ("[data]\ndigits = [5, 4]", "data.digits"),
            ("[data]\nfiller = {}", "data.filler"),
            ("[data.facts]\nfolder = \"babi\"", "data.facts"),
            ("[data]\ndocuments = 0", "data.documents"),
            ("[train]\nbatch = [16, 16, 9000]", "train.batch"),
            ("[train]\nlr = [1e-3, nan, 1e-3]", "train.lr"),
            ("[train]\nsteeps = 3", "steeps"),
            ("[paper]", "train.steps"),
            ("[train]\nsteps = [0, 0, 9]\n[paper]\ngate = nan", "paper.gate"),
            ("[memory]", "memory"),
        ] {
            let e = AdaptConfig::parse(text).unwrap_err().to_string();
            assert!(e.contains(field), "{text}: {e}");
        }
    }
}
