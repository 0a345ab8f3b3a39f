//! Which segment is written when, and which state it reads (math.md §4).

use crate::{FinalState, Settings};

/// The writes of one call that starts at a segment border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Segments that hold a token, the open one included.
    pub segments: usize,
    /// Segments written into the state that the call returns, P_`written`. No segment reads a later one.
    pub written: usize,
    segment_len: usize,
    lag: usize,
    tokens: usize,
}

impl Schedule {
    /// The schedule of `tokens` tokens.
    pub fn new(s: &Settings, tokens: usize) -> Schedule {
        let segments = tokens.div_ceil(s.segment_len);
        let written = match s.final_state {
            FinalState::Flush => segments,
            FinalState::Closed => (tokens / s.segment_len).saturating_sub(s.lag),
        };
        Schedule { segments, written, segment_len: s.segment_len, lag: s.lag, tokens }
    }

    /// Index of the state that segment `j` reads.
    pub fn state_read(&self, j: usize) -> usize {
        j.saturating_sub(self.lag)
    }

    /// States P_0.. that the outputs need, and with `final_state` the returned one too.
    pub fn states(&self, final_state: bool) -> usize {
        1 + if final_state { self.written } else { self.state_read(self.segments.saturating_sub(1)) }
    }

    /// The tokens of segment `j`.
    pub fn tokens(&self, j: usize) -> std::ops::Range<usize> {
        j * self.segment_len..((j + 1) * self.segment_len).min(self.tokens)
    }

    /// §7: the tokens of segment `j` that are written, those from its last reset on, and whether the
    /// state before it survives. `reset [T]` is empty where no document starts.
    pub fn writes(&self, j: usize, reset: &[u8]) -> (std::ops::Range<usize>, bool) {
        let r = self.tokens(j);
        if reset.is_empty() {
            return (r, true);
        }
        match r.clone().rev().find(|&t| reset[t] != 0) {
            Some(t) => (t..r.end, false),
            None => (r, true),
        }
    }

    /// §7: the tokens of segment `j` that may read its state: those before the first reset since the
    /// state's own end.
    pub fn reads(&self, j: usize, reset: &[u8]) -> std::ops::Range<usize> {
        let r = self.tokens(j);
        if reset.is_empty() {
            return r;
        }
        let from = self.state_read(j) * self.segment_len;
        let end = (from..r.end).find(|&t| reset[t] != 0).unwrap_or(r.end);
        r.start..end.max(r.start)
    }

    /// §7: whether the returned state belongs to the document that the call ends in.
    pub fn final_survives(&self, reset: &[u8]) -> bool {
        let from = (self.written * self.segment_len).min(self.tokens);
        reset.is_empty() || reset[from..].iter().all(|&r| r == 0)
    }
}
