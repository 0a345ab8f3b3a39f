//! `infini eval ruler`.

use anyhow::Result;
use clap::Args;
use infini::eval::ruler::{Ruler as Inputs, TASKS};

use super::long::Long;
use crate::console::Outcome;

/// RULER's needles: magic numbers with names, in noise, in a text, among other needles
#[derive(Args, Debug)]
#[command(
    long_about = "RULER's needles: magic numbers with names, in noise, in a text, among other needles

niah_single_1 hides a number in repeated sentences, niah_single_2 in the filler, niah_single_3 a UUID there; niah_multikey_1 \
four numbers of which one is asked for, niah_multikey_2 and _3 one among needles only; niah_multivalue asks for four numbers of \
one name, niah_multiquery for those of four. Measured is the share of the values that the greedy answer contains.",
    after_help = "Examples:
  infini eval ruler --model smollm2 --lengths 1024,4096                              full attention
  infini eval ruler --model smollm2 --window 512 --sink 1 --lengths 1024,4096
  infini eval ruler --model smollm2 --adapter A --lengths 4096,32768 --filler books --books DIR --plot ruler.svg"
)]
pub struct Ruler {
    #[command(flatten)]
    long: Long,
    /// Which tasks [default: all eight]
    #[arg(long, value_name = "TASK,TASK", value_delimiter = ',', default_values_t = TASKS.map(String::from), hide_default_value = true)]
    tasks: Vec<String>,
    /// Tokens of the inputs, question included
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1024, 4096])]
    lengths: Vec<usize>,
}

impl Ruler {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        let loaded = self.long.load()?;
        let filler = self.long.filler(&loaded.tokenizer, self.lengths.iter().copied().max().unwrap_or(0))?;
        let inputs = Inputs::new(&loaded.tokenizer, &filler)?;
        self.long.measure("RULER", &loaded, &inputs, &self.tasks, &self.lengths)
    }
}
