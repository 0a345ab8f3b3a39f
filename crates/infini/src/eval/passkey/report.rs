//! What came out.

use serde::Serialize;

use crate::eval::Count;
use crate::state::LayerWrites;

/// One length and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Tokens.
    pub length: usize,
    /// 0 to 1.
    pub depth: f64,
    /// Questions asked.
    pub n: u64,
    /// Fraction answered exactly.
    pub exact: f64,
    /// Fraction of the keys' digits in their place; 0 when none was to be told.
    pub digit: f64,
    /// Whether memory reads were zero.
    pub knock_out: bool,
    /// 95 % interval of `exact` (Wilson).
    pub interval: [f64; 2],
    /// With absent keys: fraction of the answers that name a number all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invented: Option<f64>,
    /// With absent keys: what was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub said: Option<Said>,
    /// With keys that change: fraction of the answers that are the number from before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<f64>,
}

/// What was answered when the key asked for had not been told: fractions of the answers, which add up to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Said {
    /// "unknown", which is right.
    pub unknown: f64,
    /// First of all numbers that of another key.
    pub another_key: f64,
    /// First of all numbers one that was no key.
    pub other_number: f64,
    /// No number at all.
    pub no_number: f64,
}

/// Answers about some of the keys, over all lengths and depths.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Questions asked.
    pub n: u64,
    /// Fraction answered exactly.
    pub exact: f64,
    /// 95 % interval of `exact` (Wilson).
    pub interval: [f64; 2],
}

impl Part {
    /// None of no questions.
    pub(super) fn of(c: Count) -> Option<Part> {
        (c.n > 0).then(|| Part { n: c.n, exact: c.rate(), interval: c.interval() })
    }
}

/// How much a head wrote of the longest inputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WriteRate {
    /// Layer, from 0.
    pub layer: usize,
    /// Key/value head, from 0.
    pub head: usize,
    /// Fraction of tokens written with a strength above 0.
    pub open: f64,
    /// Mean strength.
    pub strength: f64,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// By length, then depth.
    pub rows: Vec<Row>,
    /// Of the named keys those whose sentence, the last of two, has the name before the number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_first: Option<Part>,
    /// Of the named keys those whose sentence has the number before the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number_first: Option<Part>,
    /// Tokens read, over all inputs (what is shared counts once).
    pub tokens: u64,
    /// Seconds that took.
    pub seconds: f64,
    /// Tokens read per second.
    pub tokens_per_second: f64,
    /// Most memory the process ever had, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Bytes of the state of one input.
    pub state_bytes: usize,
    /// Write statistics.
    pub writes: Vec<WriteRate>,
}

impl Report {
    /// The rows as CSV with a header.
    pub fn to_csv(&self) -> String {
        let mut csv = String::from("length,depth,n,exact,digit,knock_out,low,high\n");
        for r in &self.rows {
            let [low, high] = r.interval;
            csv += &format!(
                "{},{},{},{},{},{},{low:.4},{high:.4}\n",
                r.length, r.depth, r.n, r.exact, r.digit, r.knock_out
            );
        }
        csv
    }
}

/// Adds the write statistics of another batch.
pub(super) fn add_writes(sum: &mut Vec<LayerWrites>, more: Vec<LayerWrites>) {
    if sum.is_empty() {
        *sum = more;
        return;
    }
    for (s, m) in sum.iter_mut().zip(more) {
        s.tokens += m.tokens;
        s.open.iter_mut().zip(m.open).for_each(|(a, b)| *a += b);
        s.strength.iter_mut().zip(m.strength).for_each(|(a, b)| *a += b);
    }
}

/// Statistics as rates, a head at a time.
pub(super) fn rates(writes: &[LayerWrites]) -> Vec<WriteRate> {
    let rate = |w: &LayerWrites| {
        let (layer, n) = (w.layer, w.tokens.max(1) as f64);
        let heads = w.open.iter().zip(&w.strength).enumerate();
        heads
            .map(|(head, (open, strength))| WriteRate { layer, head, open: *open as f64 / n, strength: strength / n })
            .collect::<Vec<_>>()
    };
    writes.iter().flat_map(rate).collect()
}
