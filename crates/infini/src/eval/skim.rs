//! How an input is read up to a question: which of it only the memory has to keep, and in what pieces.

use std::ops::Range;

/// The pieces in which tokens up to `to` are read.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    segment: usize,
    to: usize,
    /// What only the memory has to keep; whole segments.
    skimmed: Range<usize>,
    piece: usize,
}

impl Pieces {
    /// Reading up to `to`, of at most about `piece` tokens at a time, when nothing is asked before token `asked`.
    /// `full`: segments that have to be read in all layers before an answer; None if nothing can be skimmed.
    pub fn new(segment: usize, full: Option<usize>, to: usize, asked: usize, piece: usize) -> Self {
        let s = segment;
        // the first segment holds what every window keeps; the last ones must be whole in every layer
        let skimmed = match full {
            Some(n) => s..((asked / s).saturating_sub(n) * s).min(to / s * s).max(s),
            None => 0..0,
        };
        Pieces { segment, to, skimmed, piece: piece.max(1) }
    }

    /// How many tokens come next at `at`, and whether they are skimmed.
    pub fn next(&self, at: usize) -> (usize, bool) {
        let s = self.segment;
        let skim = self.skimmed.contains(&at) && at.is_multiple_of(s);
        let border = match skim {
            true => self.skimmed.end,
            false if at < self.skimmed.end && !self.skimmed.is_empty() => (at + 1).next_multiple_of(s),
            false => self.to,
        };
        let piece = if skim { self.piece.next_multiple_of(s) } else { self.piece };
        (piece.min(border - at).min(self.to - at), skim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_and_the_last_ones_are_read_in_full() {
        for (to, asked, full, from) in
            [(1000, 1000, Some(3), 0), (1000, 1000, None, 0), (40, 50, Some(9), 0), (990, 1200, Some(0), 37)]
        {
            let pieces = Pieces::new(16, full, to, asked, 100);
            let (mut at, mut skimmed) = (from, 0);
            while at < to {
                let (n, skim) = pieces.next(at);
                assert!(n > 0 && n <= 112 && at + n <= to);
                if skim {
                    assert!(at >= 16 && at.is_multiple_of(16) && n.is_multiple_of(16));
                    assert!((at + n) / 16 + full.unwrap() <= asked / 16);
                    skimmed += n;
                }
                at += n;
            }
            let expected = match (full, to) {
                (Some(3), 1000) => 1000 / 16 * 16 - 3 * 16 - 16,
                (Some(0), 990) => 990 / 16 * 16 - 48,
                _ => 0,
            };
            assert_eq!(skimmed, expected, "{to} {asked} {full:?}");
        }
    }
}
