//! A window with attention sinks: softmax over the keys that each query sees, written out.

use super::{Run, Tape};
use infini::config::Attention;
use infini_kernels::naive::attention::rotate;

/// A query with the keys it sees: indices of tokens, and positions.
struct Query {
    at: usize,
    head: usize,
    position: usize,
    seen: Vec<(usize, usize)>,
}

impl Run<'_> {
    /// Whether the layers are windows with attention sinks.
    pub(super) fn sinks(&self) -> bool {
        self.c.infini.sink > 0 && self.c.attention == Attention::Local
    }

    fn queries(&self) -> Vec<Query> {
        let c = self.c;
        let (len, seg, sink) = (self.t.len, c.infini.segment_len, c.infini.sink);
        let mut out = Vec::new();
        for (row, i) in (0..self.t.batch).flat_map(|row| (0..len).map(move |i| (row, i))) {
            let begins = |j: &usize| *j == 0 || !self.reset.is_empty() && self.reset[row * len + j] != 0;
            let document = (0..=i).rev().find(begins).expect("the first token begins one");
            let start = (i / seg).saturating_sub(c.infini.span - 1) * seg;
            let window = start.max(document)..=i;
            let sinks = if start >= document + sink { document..document + sink } else { 0..0 };
            let sinks = sinks.enumerate().map(|(n, j)| (row * len + j, n));
            let seen: Vec<_> = sinks.chain(window.map(|j| (row * len + j, sink + j - start))).collect();
            for head in 0..c.num_attention_heads {
                out.push(Query { at: row * len + i, head, position: sink + i - start, seen: seen.clone() });
            }
        }
        out
    }

    /// Probabilities of the keys that a query sees, with query and keys as they are compared.
    fn weigh(&self, l: usize, t: &Tape, q: &Query) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
        let (c, s) = (self.c, self.settings(l));
        let (h, hkv, d) = (c.num_attention_heads, c.kv_heads(), c.head_width());
        let query = rotate(&t.q[(q.at * h + q.head) * d..][..d], q.position as f64, s.rope, s.theta);
        let key = |&(j, position): &(usize, usize)| {
            rotate(&t.k[(j * hkv + q.head / (h / hkv)) * d..][..d], position as f64, s.rope, s.theta)
        };
        let keys: Vec<Vec<f64>> = q.seen.iter().map(key).collect();
        let scores: Vec<f64> =
            keys.iter().map(|k| k.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>() / (d as f64).sqrt()).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        (scores.iter().map(|s| (s - most).exp() / sum).collect(), query, keys)
    }

    /// What the window and the sinks answer, `[B T, H D]`.
    pub(super) fn with_sinks(&self, l: usize, t: &Tape) -> Vec<f64> {
        let c = self.c;
        let (h, hkv, d) = (c.num_attention_heads, c.kv_heads(), c.head_width());
        let mut y = vec![0.0; t.q.len()];
        for q in self.queries() {
            let (p, _, _) = self.weigh(l, t, &q);
            for (p, (j, _)) in p.iter().zip(&q.seen) {
                let v = &t.v[(j * hkv + q.head / (h / hkv)) * d..][..d];
                y[(q.at * h + q.head) * d..][..d].iter_mut().zip(v).for_each(|(y, v)| *y += p * v);
            }
        }
        y
    }

    /// Gradients of q, k and v.
    pub(super) fn with_sinks_back(&self, l: usize, t: &Tape, dy: &[f64]) -> [Vec<f64>; 3] {
        let (c, s) = (self.c, self.settings(l));
        let (h, hkv, d) = (c.num_attention_heads, c.kv_heads(), c.head_width());
        let [mut dq, mut dk, mut dv] = [&t.q, &t.k, &t.v].map(|x| vec![0.0; x.len()]);
        for q in self.queries() {
            let (p, query, keys) = self.weigh(l, t, &q);
            let dy = &dy[(q.at * h + q.head) * d..][..d];
            let place = |j: usize| (j * hkv + q.head / (h / hkv)) * d;
            let dp: Vec<f64> =
                q.seen.iter().map(|(j, _)| t.v[place(*j)..][..d].iter().zip(dy).map(|(v, dy)| v * dy).sum()).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            let mut dquery = vec![0.0; d];
            for (n, (j, position)) in q.seen.iter().enumerate() {
                dv[place(*j)..][..d].iter_mut().zip(dy).for_each(|(dv, dy)| *dv += p[n] * dy);
                let ds = p[n] * (dp[n] - mean) / (d as f64).sqrt();
                dquery.iter_mut().zip(&keys[n]).for_each(|(dq, k)| *dq += ds * k);
                let dkey: Vec<f64> = query.iter().map(|q| ds * q).collect();
                let dkey = rotate(&dkey, -(*position as f64), s.rope, s.theta);
                dk[place(*j)..][..d].iter_mut().zip(&dkey).for_each(|(dk, d)| *dk += d);
            }
            let dquery = rotate(&dquery, -(q.position as f64), s.rope, s.theta);
            dq[(q.at * h + q.head) * d..][..d].iter_mut().zip(&dquery).for_each(|(dq, d)| *dq += d);
        }
        [dq, dk, dv]
    }
}
