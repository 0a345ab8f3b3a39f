//! What Transformer-XL and Memorizing Transformers have that the kernels' plain reference has not.

use super::{Run, Tape, accumulate};
use infini_kernels::naive;
use infini_kernels::naive::attention::{Dims, Inputs};

impl Run<'_> {
    /// The share of the store in every output of layer `l`, by its index.
    pub(super) fn shares(&self, l: usize) -> impl Fn(usize) -> f64 + use<> {
        let beta = self.at(l, "self_attn.infini.beta").to_vec();
        let d = self.c.head_width();
        move |i| 1.0 / (1.0 + (-beta[i / d % beta.len()]).exp())
    }

    /// Gradients of keys and values from queries of their own segment alone.
    pub(super) fn own_segments(&self, l: usize, t: &Tape, dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let c = self.c;
        let (h, hkv, d, len, seg) =
            (c.num_attention_heads, c.kv_heads(), c.head_width(), self.t.len, c.infini.segment_len);
        let (mut dk, mut dv) = (vec![0.0; t.k.len()], vec![0.0; t.v.len()]);
        for row in 0..self.t.batch {
            for from in (0..len).step_by(seg) {
                let (first, to) = (from.saturating_sub((c.infini.span - 1) * seg), (from + seg).min(len));
                let cut = |x: &[f64], width: usize| x[(row * len + first) * width..(row * len + to) * width].to_vec();
                let mut dy = cut(dy, h * d);
                dy[..(from - first) * h * d].fill(0.0);
                let reset: Vec<u8> = match self.reset.is_empty() {
                    true => Vec::new(),
                    false => self.reset[row * len + first..row * len + to].to_vec(),
                };
                let (q, k, v) = (cut(&t.q, h * d), cut(&t.k, hkv * d), cut(&t.v, hkv * d));
                let shut = vec![0.0; (to - first) * hkv];
                let x = Inputs {
                    dims: Dims { b: 1, t: to - first, h, hkv, d, dv: d, f: d },
                    q: &q,
                    k: &k,
                    v: &v,
                    w: &shut,
                    a: &[],
                    c: &[],
                    beta: &[],
                    gate: &[],
                    fmap_w: &[],
                    reset: &reset,
                    m0: &[],
                    z0: &[],
                };
                let mut s = self.settings(l);
                (s.segment_len, s.span, s.lag) = (to - first, 1, 0);
                let g = naive::attention::backward(&s, &x, &dy, &vec![0.0; hkv * d * d], &vec![0.0; hkv * d]);
                for (out, g) in [(&mut dk, g.k), (&mut dv, g.v)] {
                    let own = &g[(from - first) * hkv * d..];
                    out[(row * len + from) * hkv * d..][..own.len()].copy_from_slice(own);
                }
            }
        }
        (dk, dv)
    }

    /// Tokens of a row that the store holds for token `i`.
    fn places(&self, row: usize, i: usize) -> std::ops::Range<usize> {
        let infini = &self.c.infini;
        let start = (i / infini.segment_len).saturating_sub(infini.span - 1) * infini.segment_len;
        let reset = |j: &usize| !self.reset.is_empty() && self.reset[row * self.t.len + j] != 0;
        let document = (0..=i).rev().find(reset).unwrap_or(0);
        start.saturating_sub(self.c.store().0).max(document).min(start)..start
    }

    /// For every query: row, token, head, and keys and values that it looks in.
    fn lookups(&self, t: &Tape) -> Vec<(usize, Vec<f64>, Vec<f64>)> {
        let c = self.c;
        let (h, hkv, d, len) = (c.num_attention_heads, c.kv_heads(), c.head_width(), self.t.len);
        let mut out = Vec::new();
        for (row, i) in (0..self.t.batch).flat_map(|row| (0..len).map(move |i| (row, i))) {
            for head in 0..h {
                let of = |x: &[f64]| -> Vec<f64> {
                    let at = |j: usize| ((row * len + j) * hkv + head / (h / hkv)) * d;
                    self.places(row, i).flat_map(|j| x[at(j)..at(j) + d].to_vec()).collect()
                };
                out.push((((row * len + i) * h + head) * d, of(&t.k), of(&t.v)));
            }
        }
        out
    }

    /// What the store answers, `[B T, H D]`.
    pub(super) fn stored(&self, t: &Tape) -> Vec<f64> {
        let (d, top) = (self.c.head_width(), self.c.store().1);
        let mut y = vec![0.0; t.q.len()];
        for (at, k, v) in self.lookups(t).into_iter().filter(|(_, k, _)| !k.is_empty()) {
            y[at..at + d].copy_from_slice(&naive::knn::forward(&t.q[at..at + d], &k, &v, top).0);
        }
        y
    }

    /// The gradient of the queries through the store; adds that of the gate.
    pub(super) fn stored_back(&mut self, l: usize, t: &Tape, dy: &[f64]) -> Vec<f64> {
        let (d, top, share) = (self.c.head_width(), self.c.store().1, self.shares(l));
        let heads = self.c.num_attention_heads;
        let mut dbeta = vec![0.0; heads];
        for (i, dy) in dy.iter().enumerate() {
            dbeta[i / d % heads] += share(i) * (1.0 - share(i)) * dy * (t.stored[i] - t.window[i]);
        }
        accumulate(&mut self.g, &format!("model.layers.{l}.self_attn.infini.beta"), &dbeta);
        let mut dq = vec![0.0; t.q.len()];
        for (at, k, v) in self.lookups(t).into_iter().filter(|(_, k, _)| !k.is_empty()) {
            let up: Vec<f64> = dy[at..at + d].iter().map(|d| d * share(at)).collect();
            dq[at..at + d].copy_from_slice(&naive::knn::dq(&t.q[at..at + d], &k, &v, top, &up));
        }
        dq
    }
}
