//! The counting memory as it streams: (33)–(36) of `docs/math.md`.

use rayon::prelude::*;

use super::attention::Place;
use crate::config::LayerKind;
use crate::state::{Reads, window_start};
use crate::tally::{Candidates, Counts, Query, Reading, Tally, TallyConfig, trust, write};

/// What the memory keeps, each buffer leading with the batch row.
#[derive(Clone, Debug, Default)]
pub(crate) struct TallyState {
    /// Counts of tokens, `[B, V]`.
    pub tokens: Vec<f32>,
    /// The sketch, `[B, 2, cells]`.
    pub cells: Vec<f32>,
    /// Tokens of the window and `orders` ones in front of it, `[B, orders + 2S]`: id + 1, 0 for none.
    pub ids: Vec<f32>,
    /// ln of the odds of memory against window, `[B]`.
    pub odds: Vec<f32>,
    /// What moves them when the next token comes: ln(p_memory / p_window) of each, `[B, V]`.
    pub evidence: Vec<f32>,
}

impl TallyState {
    /// Of `batch` rows that have read nothing.
    pub fn new(c: &TallyConfig, vocab: usize, batch: usize) -> Self {
        let zeros = |n: usize| vec![0.0; batch * n];
        TallyState {
            tokens: zeros(vocab),
            cells: zeros(c.sketch()),
            ids: zeros(c.orders + 2 * c.segment_len),
            odds: zeros(1),
            evidence: zeros(vocab),
        }
    }

    /// All buffers.
    pub fn buffers(&self) -> [&Vec<f32>; 5] {
        let TallyState { tokens, cells, ids, odds, evidence } = self;
        [tokens, cells, ids, odds, evidence]
    }

    /// All buffers.
    pub fn buffers_mut(&mut self) -> [&mut Vec<f32>; 5] {
        let TallyState { tokens, cells, ids, odds, evidence } = self;
        [tokens, cells, ids, odds, evidence]
    }

    /// Forgets row `row` of `batch`: what waits is never counted.
    pub fn forget(&mut self, row: usize, batch: usize) {
        for buffer in self.buffers_mut() {
            let len = buffer.len() / batch;
            buffer[row * len..(row + 1) * len].fill(0.0);
        }
    }
}

/// The part of `buffer` that belongs to `row` of `batch`.
fn part(buffer: &[f32], row: usize, batch: usize) -> &[f32] {
    let len = buffer.len() / batch;
    &buffer[row * len..][..len]
}

/// The known tokens at the end of `ids` (id + 1, 0 for none), at most `n`.
fn context(ids: &[f32], n: usize) -> Vec<u32> {
    let known = ids.iter().rev().take(n).take_while(|i| **i > 0.0).count();
    ids[ids.len() - known..].iter().map(|i| *i as u32 - 1).collect()
}

/// Tokens that one thread reads for in a row.
const RUN: usize = 16;

impl Tally {
    /// Counts `ids` (`[B, T]`) as they leave the window and mixes what the counts say into `logits` (`[B, T, V]`).
    pub(crate) fn forward(&self, p: &Place, state: &mut TallyState, ids: &[u32], logits: &mut [f32]) {
        let (b, t, s, v) = (p.batch, p.tokens, self.config().segment_len, self.vocab());
        let mut done = 0;
        while done < t {
            let position = p.position + done as u64;
            let n = (t - done).min(s - (position % s as u64) as usize);
            let start = window_start(p.config, LayerKind::Local, position);
            let at = self.config().orders + (position - start) as usize;
            for row in 0..b {
                let len = state.ids.len() / b;
                for (slot, id) in state.ids[row * len + at..].iter_mut().zip(&ids[row * t + done..][..n]) {
                    *slot = (*id + 1) as f32;
                }
                let logits = &mut logits[(row * t + done) * v..][..n * v];
                let readings = if p.doc_start[row] < start && p.reads != Reads::Nothing {
                    let whose = if p.reads == Reads::Swapped { (row + 1) % b } else { row };
                    self.readings(state, (row, whose, b), at, logits)
                } else {
                    Vec::new()
                };
                self.mix(state, row, &ids[row * t + done..][..n], &readings, logits);
            }
            if (position + n as u64).is_multiple_of(s as u64) && at + n == self.config().orders + 2 * s {
                for row in 0..b {
                    self.leave(state, row, b);
                }
            }
            done += n;
        }
    }

    /// What the counts of row `whose` say after each token of `row` from index `at` on; `logits` are the window's, `[n, V]`.
    fn readings(
        &self,
        state: &TallyState,
        (row, whose, b): (usize, usize, usize),
        at: usize,
        logits: &[f32],
    ) -> Vec<Reading> {
        let (orders, v) = (self.config().orders, self.vocab());
        let counts = Counts { tokens: part(&state.tokens, whose, b), cells: part(&state.cells, whose, b) };
        let written = counts.tokens.iter().sum();
        let ids = part(&state.ids, row, b);
        let read_run = |(run, logits): (usize, &[f32])| {
            let at = at + run * RUN;
            let mut window = vec![0.0; v];
            ids[orders..at].iter().filter(|id| **id > 0.0).for_each(|id| window[*id as usize - 1] += 1.0);
            let mut scratch = Candidates::default();
            let mut read = |(i, logits): (usize, &[f32])| {
                window[ids[at + i] as usize - 1] += 1.0;
                let context = context(&ids[..=at + i], orders);
                self.read(counts, Query { context: &context, window: &window, written }, logits, &mut scratch)
            };
            logits.chunks_exact(v).enumerate().map(&mut read).collect::<Vec<Reading>>()
        };
        logits.par_chunks(RUN * v).enumerate().flat_map_iter(read_run).collect()
    }

    /// (36): moves the trust of `row` as its tokens `ids` come, and mixes the memory's readings (none: it was not read) into
    /// the window's `logits` by it.
    fn mix(&self, state: &mut TallyState, row: usize, ids: &[u32], readings: &[Reading], logits: &mut [f32]) {
        let v = self.vocab();
        let evidence = &mut state.evidence[row * v..][..v];
        let odds = &mut state.odds[row];
        let mut said = evidence[ids[0] as usize];
        let mut moved = Vec::with_capacity(ids.len());
        for i in 0..ids.len() {
            *odds = trust(*odds, said);
            moved.push(*odds);
            said = match (readings.get(i), ids.get(i + 1)) {
                (Some(reading), Some(next)) => reading.evidence(*next),
                _ => 0.0,
            };
        }
        logits.par_chunks_mut(v).zip(readings).zip(&moved).for_each(|((l, reading), odds)| reading.mix(*odds, l));
        evidence.fill(readings.last().map_or(0.0, |r| r.other.ln()));
        if let Some(last) = readings.last() {
            for (id, ratio) in last.ids.iter().zip(&last.ratios) {
                evidence[*id as usize] = ratio.ln();
            }
        }
    }

    /// Counts the first segment of the full window of `row` and drops it.
    fn leave(&self, state: &mut TallyState, row: usize, b: usize) {
        let (s, orders) = (self.config().segment_len, self.config().orders);
        let ids = part(&state.ids, row, b).to_vec();
        let (v, cells) = (state.tokens.len() / b, state.cells.len() / b);
        let tokens = &mut state.tokens[row * v..][..v];
        let cells = &mut state.cells[row * cells..][..cells];
        for i in (orders..orders + s).filter(|i| ids[*i] > 0.0) {
            write(tokens, cells, &context(&ids[..i], orders), ids[i] as u32 - 1);
        }
        let len = ids.len();
        state.ids[row * len..][..len - s].copy_from_slice(&ids[s..]);
    }
}
