//! What is evaluated: a model as it is, through a window, with an adapter, with its memory knocked out.

use anyhow::Result;
use clap::Args;
use infini::config::Attention;
use infini::folder::{self, Loaded};
use infini::state::Reads;
use serde_json::{Value, json};

use crate::console::usage;
use crate::models::{ModelFlag, find};

/// The flags that name it.
#[derive(Args, Debug)]
pub struct Subject {
    #[command(flatten)]
    pub model: ModelFlag,
    /// Read a model of full attention through a window of N tokens, two segments [default: its configuration's]
    #[arg(long, value_name = "N", conflicts_with = "adapter", value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    window: Option<u32>,
    /// Read a model of full attention through its window and N attention sinks (StreamingLLM)
    #[arg(long, value_name = "N", conflicts_with = "adapter")]
    sink: Option<usize>,
    /// Memory reads give zero
    #[arg(long)]
    pub knock_out: bool,
}

impl Subject {
    /// Loads it.
    pub fn load(&self) -> Result<Loaded> {
        if self.window.is_none() && self.sink.is_none() {
            return self.model.load();
        }
        let mut parts = folder::parts(&find(&self.model.model)?)?;
        if parts.config.attention != Attention::Full {
            return Err(usage("--window, --sink: the model has a window already: name one of full attention"));
        }
        parts.config.attention = Attention::Local;
        let infini = &mut parts.config.infini;
        if let Some(n) = self.window {
            if n % 2 == 1 {
                return Err(usage("--window: two segments of the same length: give an even number"));
            }
            (infini.segment_len, infini.span, infini.lag) = (n as usize / 2, 2, 1);
        }
        if let Some(n) = self.sink {
            infini.sink = n;
        }
        Ok(parts.build()?)
    }

    /// What reads of its memory give.
    pub fn reads(&self) -> Reads {
        if self.knock_out { Reads::Nothing } else { Reads::Own }
    }

    /// Results with what they were measured on in front.
    pub fn describe(&self, results: Value) -> Value {
        let ModelFlag { model, adapter } = &self.model;
        let mut all = json!({
            "model": model, "adapter": adapter, "window": self.window, "sink": self.sink, "knock_out": self.knock_out,
        });
        if let (Value::Object(all), Value::Object(results)) = (&mut all, results) {
            all.extend(results);
        }
        all
    }
}
