//! Recurrent Memory Transformer (Bulatov, Kuratov, Burtsev 2022, arXiv 2207.06881) as a stream; (33).
//!
//! ```text
//! [ summaries | tokens of a segment | summaries ] ─► layers ─► [ – | hidden | summaries for the next segment ]
//! ```
//!
//! A segment's tokens see each other and the summaries in front, which the segment before has left; the same summaries stand
//! behind, see everything, and what leaves the last layer there, normalised like every output, is what the next segment gets.
//! All of them attend causally, as in a decoder. A document begins with learned vectors; one that begins inside a segment
//! sees no summaries before the next one.

use infini_kernels::norm;

use super::{Depth, Model, Piece};
use crate::state::{Reads, State};

impl Model {
    /// [`Model::pieces`] segment by segment; `first` are the summaries that a document begins with, `[summaries, d]`.
    pub(super) fn segments(
        &self,
        first: &[f32],
        state: &mut State,
        tokens: &[u32],
        each: &mut dyn FnMut(&mut State, Piece),
    ) {
        let (b, d) = (state.batch, self.config.hidden_size);
        let (total, n) = (tokens.len() / b, self.config.summaries());
        let (segment, longer) = (self.config.infini.segment_len as u64, self.layout.infini.segment_len as u64);
        let mut at = 0;
        while at < total {
            let within = state.position % segment;
            let begin = state.position - within;
            let t = ((segment - within) as usize).min(total - at);
            let front = if within == 0 { n } else { 0 };
            let behind = if within + t as u64 == segment { n } else { 0 };
            let summaries = seen(first, state, begin);
            let mut x = vec![0.0; b * (front + t + behind) * d];
            for (row, x) in x.chunks_mut((front + t + behind) * d).enumerate() {
                let summary = &summaries[row * n * d..][..n * d];
                x[..front * d].copy_from_slice(&summary[..front * d]);
                self.embed.rows(&tokens[row * total + at..][..t], &mut x[front * d..][..t * d]);
                x[(front + t) * d..].copy_from_slice(&summary[..behind * d]);
            }
            // the layers count summaries among their positions
            let inside = |position: u64| match position {
                p if p <= begin => begin / segment * longer,
                p => begin / segment * longer + n as u64 + (p - begin),
            };
            let starts: Vec<u64> = state.doc_start.iter().map(|p| inside(*p)).collect();
            let (position, starts) = (state.position, std::mem::replace(&mut state.doc_start, starts));
            state.position = inside(position);
            if within == 0 {
                let tails = state.layers.iter_mut().flat_map(|l| [&mut l.conv, &mut l.k_tail, &mut l.v_tail]);
                tails.for_each(|tail| tail.fill(0.0));
            }
            self.blocks(state, &mut x, &[], front + t + behind, Depth::Full);
            (state.position, state.doc_start) = (position, starts);

            let rows = || x.chunks((front + t + behind) * d);
            let read: Vec<f32> = rows().flat_map(|x| x[front * d..(front + t) * d].iter().copied()).collect();
            if behind > 0 {
                let last: Vec<f32> = rows().flat_map(|x| x[(front + t) * d..].iter().copied()).collect();
                let mut inverse = vec![0.0; b * n];
                let eps = self.config.rms_norm_eps as f32;
                norm::rms_forward(&last, &self.norm, eps, &mut state.summaries, &mut inverse);
            }
            let ids: Vec<u32> = tokens.chunks(total).flat_map(|row| row[at..at + t].iter().copied()).collect();
            each(state, Piece { start: at, tokens: t, ids: &ids, x: &read });
            state.position += t as u64;
            at += t;
        }
    }
}

/// The summaries that a segment from position `begin` on has: what was left, or the first ones for a document that begins
/// in it. `[B, summaries, d]`
fn seen(first: &[f32], state: &State, begin: u64) -> Vec<f32> {
    let b = state.batch;
    let of = |row: usize| {
        let source = match state.reads {
            Reads::Own => row,
            Reads::Nothing => return first,
            Reads::Swapped => (row + 1) % b,
        };
        if state.doc_start[row] >= begin { first } else { &state.summaries[source * first.len()..][..first.len()] }
    };
    (0..b).flat_map(of).copied().collect()
}
