//! `infini eval babi`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use infini::eval::babi::Babi as Inputs;

use super::long::Long;
use crate::console::Outcome;

/// Facts of bAbI between the sentences of a long text, one question each (as BABILong)
#[derive(Args, Debug)]
#[command(
    long_about = "Facts of bAbI between the sentences of a long text, one question each (as BABILong)

The data are bAbI v1.2's files qa1_…_test.txt, which are not shipped. An input is so many tokens long, examples and question \
included; 0 holds the facts alone. Facts keep their order. Right is the word itself, greedily.",
    after_help = "Examples:
  infini eval babi --model smollm2 --data babi --lengths 0,1024,4096                   full attention
  infini eval babi --model smollm2 --window 512 --sink 1 --data babi --lengths 0,1024
  infini eval babi --model smollm2 --adapter A --data babi --filler books --books DIR --lengths 0,4096,65536,1048576"
)]
pub struct Babi {
    #[command(flatten)]
    long: Long,
    /// Folder of bAbI v1.2, English
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Which tasks
    #[arg(long, value_name = "qaN,qaN", value_delimiter = ',', default_value = "qa1,qa2,qa3,qa4,qa5")]
    tasks: Vec<String>,
    /// Which questions
    #[arg(long, value_name = "train|test", default_value = "test", value_parser = ["train", "test"])]
    split: String,
    /// Tokens of the inputs; 0: the facts alone
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [0, 1024, 4096, 16384, 65536])]
    lengths: Vec<usize>,
    /// Answered examples in front, from the training part
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=64))]
    shots: u32,
}

impl Babi {
    /// Measures.
    pub fn run(&self) -> Result<Outcome> {
        let loaded = self.long.load()?;
        let filler = self.long.filler(&loaded.tokenizer, self.lengths.iter().copied().max().unwrap_or(0))?;
        let tasks = (&self.tasks[..], self.split.as_str());
        let inputs = Inputs::new(&loaded.tokenizer, &filler, &self.data, tasks, self.shots as usize)?;
        self.long.measure("bAbI", &loaded, &inputs, &self.tasks, &self.lengths)
    }
}
