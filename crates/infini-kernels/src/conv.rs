//! Causal depthwise convolution \[ext\]: `y_t = Σ_j kernel_j ∘ x_{t−j}`, `j` = 0 … `width` − 1, where
//! inputs of an older document and inputs before the start count as zero.

use crate::blocks;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the batch.
    pub b: usize,
    /// Tokens.
    pub t: usize,
    /// Channels.
    pub d: usize,
    /// Tokens one output sees, its own included; at least 1.
    pub width: usize,
}

impl Shape {
    fn check(self, what: &str, lengths: &[usize], kernel: usize, reset: Option<&[u8]>) {
        let Shape { b, t, d, width } = self;
        assert!(width > 0, "conv {what}: width 0");
        assert!(lengths.iter().all(|l| *l == b * t * d), "conv {what}: lengths {lengths:?} for {self:?}");
        assert_eq!(kernel, width * d, "conv {what}: kernel for {self:?}");
        assert!(reset.is_none_or(|r| r.len() == b * t), "conv {what}: reset for {self:?}");
    }
}

/// The earlier tokens of its own document that token `t` sees, at most `width − 1`. `resets` of one row;
/// `before` tokens precede it.
#[inline(always)]
fn lags(resets: Option<&[u8]>, t: usize, before: usize, width: usize) -> usize {
    let most = (width - 1).min(before + t);
    resets.map_or(most, |r| (0..most.min(t + 1)).find(|j| r[t - j] != 0).unwrap_or(most))
}

/// Convolves `x [B, T, d]` with `kernel [width, d]` into `y [B, T, d]`. `reset [B, T]` is nonzero where a
/// document starts.
///
/// For streaming, `tail [B, width − 1, d]` holds the inputs before `x`, oldest first (zeros at the start of
/// a text), and receives the last ones, those of older documents as zeros. Without it zeros come before `x`.
///
/// # Panics
/// If the lengths do not fit or `width` is 0.
pub fn forward(shape: Shape, x: &[f32], kernel: &[f32], reset: Option<&[u8]>, tail: Option<&mut [f32]>, y: &mut [f32]) {
    let Shape { b, t, d, width } = shape;
    shape.check("forward", &[x.len(), y.len()], kernel.len(), reset);
    if let Some(tail) = &tail {
        assert_eq!(tail.len(), b * (width - 1) * d, "conv forward: tail for {shape:?}");
    }
    if b * t * d == 0 {
        return;
    }
    let rows = blocks::rows_per_block(b * t, d);
    let items = y.chunks_mut(rows * d).enumerate().collect();
    let before = tail.as_deref();
    blocks::each(blocks::worthwhile(b * t * d), items, |(i, y)| {
        forward_rows(shape, i * rows, x, kernel, reset, before, y);
    });
    if let Some(tail) = tail {
        for b in 0..b {
            let resets = reset.map(|r| &r[b * t..(b + 1) * t]);
            keep(&x[b * t * d..(b + 1) * t * d], d, resets, &mut tail[b * (width - 1) * d..(b + 1) * (width - 1) * d]);
        }
    }
}

/// Moves the last inputs of one row into its tail: what the token after them would see.
fn keep(x: &[f32], d: usize, resets: Option<&[u8]>, tail: &mut [f32]) {
    let (n, t) = (tail.len() / d, x.len() / d);
    if t < n {
        tail.copy_within(t * d.., 0);
        tail[(n - t) * d..].copy_from_slice(x);
    } else {
        tail.copy_from_slice(&x[(t - n) * d..]);
    }
    if let Some(last) = resets.and_then(|r| r.iter().rposition(|r| *r != 0)) {
        let own = t - last; // tokens of the newest document
        tail[..n.saturating_sub(own) * d].fill(0.0);
    }
}

/// Elements of scratch for [`backward`].
pub fn backward_scratch(shape: Shape) -> usize {
    blocks::count(shape.b * shape.t, shape.d) * shape.width * shape.d
}

/// The gradients `dx [B, T, d]` and `dkernel [width, d]` (both overwritten) of [`forward`] without a tail.
///
/// # Panics
/// If the lengths do not fit, `width` is 0, or `scratch` is shorter than [`backward_scratch`].
pub fn backward(
    shape: Shape,
    x: &[f32],
    kernel: &[f32],
    reset: Option<&[u8]>,
    dy: &[f32],
    dx: &mut [f32],
    dkernel: &mut [f32],
    scratch: &mut [f32],
) {
    let Shape { b, t, d, width } = shape;
    shape.check("backward", &[x.len(), dy.len(), dx.len()], kernel.len(), reset);
    assert_eq!(dkernel.len(), width * d, "conv backward: dkernel");
    dkernel.fill(0.0);
    if b * t * d == 0 {
        return;
    }
    let rows = blocks::rows_per_block(b * t, d);
    let parts = &mut scratch[..backward_scratch(shape)];
    parts.fill(0.0);
    let items = dx.chunks_mut(rows * d).zip(parts.chunks_mut(width * d)).enumerate().collect();
    blocks::each(blocks::worthwhile(b * t * d), items, |(i, (dx, part))| {
        backward_rows(shape, i * rows, x, kernel, reset, dy, dx, part);
    });
    blocks::sum_into(parts, dkernel);
}

crate::simd! {
/// Rows `first ..` of `[B · T]`, as many as `y` holds.
fn forward_rows(
    shape: Shape, first: usize, x: &[f32], kernel: &[f32], reset: Option<&[u8]>, tail: Option<&[f32]>, y: &mut [f32],
) {
    let Shape { t, d, width, .. } = shape;
    let before = if tail.is_some() { width - 1 } else { 0 };
    for (i, y) in y.chunks_exact_mut(d).enumerate() {
        let (b, at) = ((first + i) / t, (first + i) % t);
        let lags = lags(reset.map(|r| &r[b * t..(b + 1) * t]), at, before, width);
        for ((y, x), c) in y.iter_mut().zip(&x[(first + i) * d..][..d]).zip(kernel) {
            *y = x * c;
        }
        for j in 1..=lags {
            let past = match tail {
                Some(tail) if j > at => &tail[((b + 1) * before + at - j) * d..][..d],
                _ => &x[(first + i - j) * d..][..d],
            };
            for ((y, x), c) in y.iter_mut().zip(past).zip(&kernel[j * d..][..d]) {
                *y = x.mul_add(*c, *y);
            }
        }
    }
}

/// Rows `first ..` of `[B · T]`, as many as `dx` holds; `dkernel` is added to.
fn backward_rows(
    shape: Shape, first: usize, x: &[f32], kernel: &[f32], reset: Option<&[u8]>, dy: &[f32], dx: &mut [f32], dkernel: &mut [f32],
) {
    let Shape { t, d, width, .. } = shape;
    for (i, dx) in dx.chunks_exact_mut(d).enumerate() {
        let row = first + i;
        let (b, at) = (row / t, row % t);
        let resets = reset.map(|r| &r[b * t..(b + 1) * t]);
        // dx_t = Σ_j kernel_j dy_{t+j}, over the later tokens that see t
        for ((dx, dy), c) in dx.iter_mut().zip(&dy[row * d..][..d]).zip(kernel) {
            *dx = dy * c;
        }
        for j in 1..width.min(t - at) {
            if resets.is_some_and(|r| r[at + j] != 0) {
                break;
            }
            for ((dx, dy), c) in dx.iter_mut().zip(&dy[(row + j) * d..][..d]).zip(&kernel[j * d..][..d]) {
                *dx = dy.mul_add(*c, *dx);
            }
        }
        // dkernel_j = Σ_t dy_t x_{t−j}
        for j in 0..=lags(resets, at, 0, width) {
            let (dy, x) = (&dy[row * d..][..d], &x[(row - j) * d..][..d]);
            for ((k, dy), x) in dkernel[j * d..][..d].iter_mut().zip(dy).zip(x) {
                *k = dy.mul_add(*x, *k);
            }
        }
    }
}
}
