//! The recurrent memory transformer: the reference's layers, segment by segment, and back.

use super::{Named, Outcome, Run, Tape, accumulate, f};
use crate::ops::Tokens;
use infini::config::{ModelConfig, SUMMARIES};

/// One segment on its way through the layers.
struct Segment {
    from: usize,
    len: usize,
    /// Tokens and summaries of a row.
    longer: usize,
    reset: Vec<u8>,
    tapes: Vec<Tape>,
    /// What leaves the last layer, `[B, longer, d]`.
    x: Vec<f64>,
}

/// [`super::run`] of such a decoder, which has no write gates.
pub(super) fn run(c: &ModelConfig, p: &Named, t: &Tokens, targets: &[u32], weights: &[f64]) -> Outcome {
    let layout = c.layout();
    let (b, d, n, vocab) = (t.batch, c.hidden_size, c.summaries(), c.vocab_size);
    let (first, table, gain) = (&p[SUMMARIES], &p["model.embed_tokens.weight"], &p["model.norm.weight"]);
    let mut g: Named = p.iter().map(|(name, x)| (name.clone(), vec![0.0; x.len()])).collect();
    let begins = |row: usize, i: usize| t.reset.is_some_and(|r| r[row * t.len + i] != 0);
    let inside = |row: usize, from: usize, len: usize| (from..from + len).any(|i| begins(row, i));
    let mut summaries = first.repeat(b);
    let mut hidden = vec![0.0; b * t.len * d];
    let mut segments: Vec<Segment> = Vec::new();
    for from in (0..t.len).step_by(c.infini.segment_len) {
        let len = c.infini.segment_len.min(t.len - from);
        let behind = if len == c.infini.segment_len { n } else { 0 };
        let longer = n + len + behind;
        let (mut x, mut reset) = (Vec::new(), vec![0; b * longer]);
        for row in 0..b {
            let own = |fresh: bool| if fresh { &first[..] } else { &summaries[row * n * d..][..n * d] };
            x.extend_from_slice(own(begins(row, from)));
            for i in from..from + len {
                let id = t.ids[row * t.len + i] as usize;
                x.extend_from_slice(&table[id * d..(id + 1) * d]);
                reset[row * longer + n + i - from] = u8::from(i > from && begins(row, i));
            }
            x.extend_from_slice(&own(inside(row, from, len))[..behind * d]);
        }
        let tokens = Tokens { ids: &[], reset: Some(&reset), batch: b, len: longer };
        let run = Run { c: &layout, p, t: &tokens, reset: reset.clone(), n: b * longer, g: Named::new() };
        let (tapes, x) = run.layers(x);
        let y = f::rms(&x, gain, c.rms_norm_eps);
        for row in 0..b {
            let y = &y[row * longer * d..][..longer * d];
            hidden[(row * t.len + from) * d..][..len * d].copy_from_slice(&y[n * d..(n + len) * d]);
            summaries[row * n * d..][..behind * d].copy_from_slice(&y[(n + len) * d..]);
        }
        segments.push(Segment { from, len, longer, reset, tapes, x });
    }
    let head = if c.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let logits = f::linear(&hidden, &p[head], [b * t.len, d, vocab]);
    let loss = f::loss(&hidden, &p[head], targets, weights, d);
    accumulate(&mut g, head, &loss.dweight);

    let mut dsummaries = vec![0.0; b * n * d];
    let mut dx = vec![0.0; b * t.len * d];
    for s in segments.into_iter().rev() {
        let whole = s.longer > n + s.len;
        let mut dy = vec![0.0; b * s.longer * d];
        for row in 0..b {
            let dy = &mut dy[row * s.longer * d..][..s.longer * d];
            let of_tokens = &loss.dhidden[(row * t.len + s.from) * d..][..s.len * d];
            dy[n * d..(n + s.len) * d].copy_from_slice(of_tokens);
            if whole {
                dy[(n + s.len) * d..].copy_from_slice(&dsummaries[row * n * d..][..n * d]);
            }
        }
        let (dlast, dgain) = f::rms_backward(&s.x, gain, c.rms_norm_eps, &dy);
        accumulate(&mut g, "model.norm.weight", &dgain);
        let tokens = Tokens { ids: &[], reset: Some(&s.reset), batch: b, len: s.longer };
        let mut run = Run { c: &layout, p, t: &tokens, reset: s.reset.clone(), n: b * s.longer, g };
        let din = run.layers_back(&s.tapes, dlast, 0.0);
        g = run.g;
        // the last segment's summaries go nowhere if it is whole
        let mut before = vec![0.0; b * n * d];
        for row in 0..b {
            let din = &din[row * s.longer * d..][..s.longer * d];
            dx[(row * t.len + s.from) * d..][..s.len * d].copy_from_slice(&din[n * d..(n + s.len) * d]);
            let mut share = |fresh: bool, part: &[f64]| {
                let to = if fresh { g.get_mut(SUMMARIES).expect("a parameter") } else { &mut before };
                let to = if fresh { &mut to[..] } else { &mut to[row * n * d..][..n * d] };
                to.iter_mut().zip(part).for_each(|(to, d)| *to += d);
            };
            share(begins(row, s.from), &din[..n * d]);
            share(inside(row, s.from, s.len), &din[(n + s.len) * d..]);
        }
        dsummaries = before;
    }
    for row in dsummaries.chunks(n * d) {
        accumulate(&mut g, SUMMARIES, row);
    }
    let dtable = f::embedding_backward(t.ids, &dx, d, vocab);
    accumulate(&mut g, "model.embed_tokens.weight", &dtable);
    Outcome { logits, loss: loss.loss, gradients: g }
}
