//! A window with attention sinks (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453): every segment sees itself, those before
//! it inside the window, and in front of them its document's first tokens, once all of these have left the window.

use burn::tensor::{Int, Tensor, TensorData};

use super::{AttentionInputs, Body, HeadShape, Tokens};
use infini_kernels::Settings;

/// The sinks of a step.
#[derive(Clone, Copy, Debug)]
pub struct Sinks<'a> {
    /// First tokens of a document that are kept.
    pub count: usize,
    /// Of the document that a row was in before its first token: keys and values of its sinks, `[B, count, width]`, and how
    /// many tokens of it went before, `[B]`. `None`: nothing went before.
    pub before: Option<[&'a [f32]; 3]>,
}

impl Sinks<'_> {
    /// The token that the document of token `at` of `row` began with; below 0 it went before the step.
    pub fn document(&self, t: &Tokens, row: usize, at: usize) -> i64 {
        let begins = |i: &usize| t.reset.is_some_and(|r| r[row * t.len + i] != 0);
        let earlier = || -self.before.map_or(0, |[_, _, age]| age[row] as i64);
        (0..=at).rev().find(begins).map_or_else(earlier, |i| i as i64)
    }

    /// Index into [`Sinks::with_before`] of sink `i` of a document that began with token `document` of `row`.
    pub fn index(&self, t: &Tokens, row: usize, document: i64, i: usize) -> usize {
        match usize::try_from(document + i as i64) {
            Ok(token) => row * t.len + token,
            Err(_) => t.batch * t.len + row * self.count + i,
        }
    }

    /// `x [B T, width]`, and behind it the keys (`which` 0) or values (1) that went before and a row of zeros.
    pub fn with_before(&self, x: &Tensor<2>, which: usize, t: &Tokens) -> Tensor<2> {
        let width = x.dims()[1];
        let mut rest = self.before.map_or_else(|| vec![0.0; t.batch * self.count * width], |b| b[which].to_vec());
        rest.resize((t.batch * self.count + 1) * width, 0.0);
        let shape = [t.batch * self.count + 1, width];
        let rest = Tensor::<2>::from_data(TensorData::new(rest, shape), (&x.device(), x.dtype()));
        Tensor::cat(vec![x.clone(), rest], 0)
    }
}

/// Rows of `x` by their indices.
pub fn pick(x: Tensor<2>, indices: &[usize]) -> Tensor<2> {
    let indices: Vec<i64> = indices.iter().map(|i| *i as i64).collect();
    let shape = [indices.len()];
    let device = x.device();
    x.select(0, Tensor::<1, Int>::from_data(TensorData::new(indices, shape), &device))
}

/// Exact attention inside the window and to the sinks: y `[B T, H Dv]`. Every segment becomes a row of its own, as in
/// Transformer-XL's window, with the sinks in front.
pub fn window(body: Body, s: &Settings, shape: HeadShape, x: &AttentionInputs, t: &Tokens, sinks: &Sinks) -> Tensor<2> {
    let (seg, b, count) = (s.segment_len, t.batch, sinks.count);
    let before = (s.span - 1) * seg;
    let n = t.len.div_ceil(seg);
    let len = count + before + seg;
    let nothing = b * t.len + b * count;
    let (mut keys, mut queries, mut reset) = (Vec::new(), Vec::new(), Vec::new());
    for (row, j) in (0..b).flat_map(|row| (0..n).map(move |j| (row, j))) {
        let start = (j * seg).saturating_sub(before);
        let document = sinks.document(t, row, start);
        let left = start as i64 - document >= count as i64;
        for i in 0..count {
            keys.push(if left { sinks.index(t, row, document, i) } else { nothing });
            queries.push(nothing);
            reset.push(0);
        }
        for i in 0..before + seg {
            let at = (j * seg + i).checked_sub(before).filter(|at| *at < t.len);
            let token = at.map_or(nothing, |at| row * t.len + at);
            keys.push(token);
            queries.push(if i < before { nothing } else { token });
            let begins = at.is_some_and(|at| t.reset.is_some_and(|r| r[row * t.len + at] != 0));
            // nothing stands before the first token of a window without sinks
            reset.push(u8::from(begins || !left && at == Some(start)));
        }
    }
    let zeros = Tensor::<2>::zeros([b * count + 1, x.q.dims()[1]], (&x.q.device(), x.q.dtype()));
    let inputs = AttentionInputs::new(
        pick(Tensor::cat(vec![x.q.clone(), zeros], 0), &queries),
        pick(sinks.with_before(&x.k, 0, t), &keys),
        pick(sinks.with_before(&x.v, 1, t), &keys),
    );
    let everything = Settings { segment_len: 1 << 40, span: 1, lag: 0, ..*s };
    let longer = Tokens { ids: t.ids, reset: Some(&reset), batch: b * n, len };
    let y = body.window(&everything, shape, &inputs, &longer);
    let width = y.dims()[1];
    let y = y.reshape([b * n, len, width]).narrow(1, count + before, seg).reshape([b, n * seg, width]);
    y.narrow(1, 0, t.len).reshape([b * t.len, width])
}
