//! What to evaluate, and which of it cannot be.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::eval::template::Template;
use crate::tasks::filler::Source;
use crate::tasks::passkey::{MAX_DIGITS, MAX_KEYS};

/// How keys are told and asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// The paper's words.
    Paper,
    /// The wordings that training draws from.
    Trained,
    /// Wordings and names that training never sees.
    HeldOut,
}

impl FromStr for Wording {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "paper" => Ok(Wording::Paper),
            "trained" => Ok(Wording::Trained),
            "held-out" => Ok(Wording::HeldOut),
            _ => Err(Error::unknown("wording", s, ["paper", "trained", "held-out"])),
        }
    }
}

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of the inputs, question included.
    pub lengths: Vec<usize>,
    /// Where keys stand: 0 before the filler, 1 right before the question.
    pub depths: Vec<f64>,
    /// Inputs per length and depth.
    pub samples: usize,
    /// Keys in an input; with several each has an owner and each is asked for.
    pub keys: usize,
    /// What the keys are hidden in.
    pub filler: Source,
    /// How keys are told and asked for.
    pub wording: Wording,
    /// Own words instead.
    pub prompt: Option<Template>,
    /// Ask for a key that was not told: none at all with `keys` 1, somebody else's with more.
    pub absent: bool,
    /// Tell every key once more, later, with another number, which is asked for.
    pub changed: bool,
    /// Memory reads give zero.
    pub knock_out: bool,
    /// Fewest and most digits of a key.
    pub digits: [usize; 2],
    /// Folder of the books for [`Source::Books`].
    pub books: Option<PathBuf>,
    /// Inputs that are read in lockstep.
    pub batch: usize,
    /// Seed of keys, wordings and fillers.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lengths: vec![4096, 32768],
            depths: vec![0.0, 0.5, 1.0],
            samples: 20,
            keys: 1,
            filler: Source::Paper,
            wording: Wording::Paper,
            prompt: None,
            absent: false,
            changed: false,
            knock_out: false,
            digits: [4, 7],
            books: None,
            batch: 8,
            seed: 0,
        }
    }
}

pub(super) fn check(o: &Options) -> Result<()> {
    let bad = |why: String| Err(Error::Input(why));
    if o.lengths.is_empty() || o.depths.is_empty() {
        return bad("nothing to evaluate: give at least one length and one depth".into());
    }
    if o.lengths.contains(&0) {
        return bad("length 0: an input needs tokens: choose 1,024 or more".into());
    }
    if let Some(d) = o.depths.iter().find(|d| !(0.0..=1.0).contains(*d)) {
        return bad(format!("depth {d}: is outside 0 to 1: 0 is the start, 1 the end"));
    }
    if o.samples == 0 || o.batch == 0 || o.keys == 0 || o.keys > MAX_KEYS {
        let most = MAX_KEYS;
        return bad(format!("samples and batch must be at least 1, keys 1 to {most}"));
    }
    if o.digits[0] == 0 || o.digits[0] > o.digits[1] || o.digits[1] > MAX_DIGITS {
        return bad(format!("digits {:?}: no range of 1 to {}", o.digits, MAX_DIGITS));
    }
    if o.prompt.is_some() && (o.keys > 1 || o.absent || o.changed || o.wording != Wording::Paper) {
        let leave_out = "leave out --keys, --absent, --changed and --wording";
        return bad(format!("a prompt file has its own words and one key: {leave_out}"));
    }
    if o.absent && o.changed {
        return bad("a key that was not told does not change: choose --absent or --changed".into());
    }
    Ok(())
}
