//! Transformer-XL's window: each segment sees itself and the one before, whose keys and values are constants.

use burn::tensor::Tensor;

use super::{AttentionInputs, Body, HeadShape, Tokens};
use infini_kernels::Settings;

/// Exact attention inside the window without a gradient into earlier segments: y `[B T, H Dv]`. Every segment becomes a row
/// of its own, the one before it in front, so that one operation sees them all.
pub fn recent(body: Body, s: &Settings, shape: HeadShape, x: &AttentionInputs, t: &Tokens) -> Tensor<2> {
    let (seg, b) = (s.segment_len, t.batch);
    let before = (s.span - 1) * seg;
    let n = t.len.div_ceil(seg);
    let len = before + seg;
    // [B n (before + seg), width]: tokens from `before` before the segment on
    let rows = |x: &Tensor<2>, past: bool| -> Tensor<2> {
        let width = x.dims()[1];
        let zeros = |n: usize| Tensor::<3>::zeros([b, n, width], (&x.device(), x.dtype()));
        let x = x.clone().reshape([b, t.len, width]);
        let x = Tensor::cat(vec![x, zeros(n * seg - t.len)], 1);
        let own = x.clone().reshape([b * n, seg, width]);
        if before == 0 {
            return own.reshape([b * n * seg, width]);
        }
        let earlier = match past {
            true => Tensor::cat(vec![zeros(seg), x.detach().narrow(1, 0, (n - 1) * seg)], 1),
            false => zeros(n * seg),
        };
        Tensor::cat(vec![earlier.reshape([b * n, seg, width]), own], 1).reshape([b * n * len, width])
    };
    let inputs = AttentionInputs::new(rows(&x.q, false), rows(&x.k, true), rows(&x.v, true));
    let flag = |row: usize, i: usize| t.reset.is_some_and(|r| i < t.len && r[row * t.len + i] != 0);
    let mut reset = Vec::with_capacity(b * n * len);
    for (row, j) in (0..b).flat_map(|row| (0..n).map(move |j| (row, j))) {
        for i in 0..len {
            // nothing stands before the first segment
            let first = j == 0 && i == before;
            let at = (j * seg + i).checked_sub(before);
            reset.push(u8::from(first || at.is_some_and(|at| flag(row, at))));
        }
    }
    let everything = Settings { segment_len: 1 << 40, span: 1, lag: 0, ..*s };
    let longer = Tokens { ids: t.ids, reset: Some(&reset), batch: b * n, len };
    let y = body.window(&everything, shape, &inputs, &longer);
    let width = y.dims()[1];
    let y = y.reshape([b * n, len, width]).narrow(1, before, seg).reshape([b, n * seg, width]);
    y.narrow(1, 0, t.len).reshape([b * t.len, width])
}
