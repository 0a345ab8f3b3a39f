//! The counting memory as it streams: (33)–(35) of `docs/math.md`.

use super::attention::Place;
use crate::config::LayerKind;
use crate::state::{Reads, window_start};
use crate::tally::{Candidates, Counts, Query, Tally, TallyConfig, write};

/// What the memory keeps, each buffer leading with the batch row.
#[derive(Clone, Debug, Default)]
pub(crate) struct TallyState {
    /// Counts of tokens, `[B, V]`.
    pub tokens: Vec<f32>,
    /// The sketch, `[B, 2, cells]`.
    pub cells: Vec<f32>,
    /// Tokens of the window and `orders` ones in front of it, `[B, orders + 2S]`: id + 1, 0 for none.
    pub ids: Vec<f32>,
}

impl TallyState {
    /// Of `batch` rows that have read nothing.
    pub fn new(c: &TallyConfig, vocab: usize, batch: usize) -> Self {
        let zeros = |n: usize| vec![0.0; batch * n];
        TallyState { tokens: zeros(vocab), cells: zeros(c.sketch()), ids: zeros(c.orders + 2 * c.segment_len) }
    }

    /// All buffers.
    pub fn buffers(&self) -> [&Vec<f32>; 3] {
        let TallyState { tokens, cells, ids } = self;
        [tokens, cells, ids]
    }

    /// All buffers.
    pub fn buffers_mut(&mut self) -> [&mut Vec<f32>; 3] {
        let TallyState { tokens, cells, ids } = self;
        [tokens, cells, ids]
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

impl Tally {
    /// Counts `ids` (`[B, T]`) as they leave the window and raises `logits`, those of the last tokens of each row
    /// (`[B, n, V]`, n ≤ T).
    pub(crate) fn forward(&self, p: &Place, state: &mut TallyState, ids: &[u32], logits: &mut [f32]) {
        let (b, t, s, v) = (p.batch, p.tokens, self.config().segment_len, self.vocab());
        let wanted = logits.len() / (b * v);
        let mut scratch = Candidates::default();
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
                // the first of the run whose logits are wanted
                let first = (t - wanted).saturating_sub(done).min(n);
                if p.doc_start[row] < start && p.reads != Reads::Nothing && first < n {
                    let whose = if p.reads == Reads::Swapped { (row + 1) % b } else { row };
                    let from = row * wanted + done + first + wanted - t;
                    let logits = &mut logits[from * v..][..(n - first) * v];
                    self.read_run(state, (row, whose, b), at + first, logits, &mut scratch);
                }
            }
            if (position + n as u64).is_multiple_of(s as u64) && at + n == self.config().orders + 2 * s {
                for row in 0..b {
                    self.leave(state, row, b);
                }
            }
            done += n;
        }
    }

    /// Reads for the tokens from index `at` of `row` on, from the counts of row `whose`.
    fn read_run(
        &self,
        state: &TallyState,
        (row, whose, b): (usize, usize, usize),
        at: usize,
        logits: &mut [f32],
        scratch: &mut Candidates,
    ) {
        let orders = self.config().orders;
        let counts = Counts { tokens: part(&state.tokens, whose, b), cells: part(&state.cells, whose, b) };
        let written = counts.tokens.iter().sum();
        let ids = part(&state.ids, row, b);
        let mut window = vec![0.0; self.vocab()];
        let count = |window: &mut [f32], id: f32| {
            if id > 0.0 {
                window[id as usize - 1] += 1.0;
            }
        };
        ids[orders..at].iter().for_each(|id| count(&mut window, *id));
        for (i, logits) in logits.chunks_exact_mut(self.vocab()).enumerate() {
            count(&mut window, ids[at + i]);
            let context = context(&ids[..=at + i], orders);
            self.read(counts, Query { context: &context, window: &window, written }, logits, scratch);
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
