//! Views of [B, T, H, D] arrays with any strides over B, T and H; D is contiguous.

use crate::lanes;
use crate::par::Shared;

/// One past the last element of a view, none if it has no elements.
fn extent(shape: [usize; 4], strides: [usize; 3]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut end = shape[3];
    for i in 0..3 {
        end = end.checked_add((shape[i] - 1).checked_mul(strides[i])?)?;
    }
    Some(end)
}

fn check(len: usize, shape: [usize; 4], strides: [usize; 3]) {
    assert!(
        extent(shape, strides).is_some_and(|e| e <= len),
        "view {shape:?} strides {strides:?}: outside {len} floats"
    );
}

/// A read-only [B, T, H, D] array.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    data: &'a [f32],
    shape: [usize; 4],
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    /// A view of `shape` [B, T, H, D] whose element (b, t, h, d) lies at `b·strides[0] + t·strides[1] + h·strides[2] + d`.
    ///
    /// # Panics
    /// If the last element lies outside `data`.
    pub fn new(data: &'a [f32], shape: [usize; 4], strides: [usize; 3]) -> Self {
        check(data.len(), shape, strides);
        Heads { data, shape, strides }
    }

    /// A row-major array.
    ///
    /// # Panics
    /// If `data` is shorter than it.
    pub fn dense(data: &'a [f32], b: usize, t: usize, h: usize, d: usize) -> Self {
        Heads::new(data, [b, t, h, d], [t * h * d, h * d, d])
    }

    /// [B, T, H, D].
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The D elements of token `t` and head `h`.
    ///
    /// # Panics
    /// If an index is out of range.
    #[inline]
    pub fn row(&self, b: usize, t: usize, h: usize) -> &'a [f32] {
        let [nb, nt, nh, d] = self.shape;
        assert!(b < nb && t < nt && h < nh, "row ({b}, {t}, {h}) of {:?}", self.shape);
        let i = b * self.strides[0] + t * self.strides[1] + h * self.strides[2];
        &self.data[i..i + d]
    }

    /// The rows `from..` of one head as a slice and the distance between rows.
    pub(crate) fn head(&self, b: usize, h: usize, from: usize) -> (&'a [f32], usize) {
        if from >= self.shape[1] || self.shape[3] == 0 {
            return (&[], self.strides[1]);
        }
        let i = b * self.strides[0] + from * self.strides[1] + h * self.strides[2];
        (&self.data[i..], self.strides[1])
    }
}

/// A [B, T, H, D] array that is written.
#[derive(Debug)]
pub struct HeadsMut<'a> {
    data: &'a mut [f32],
    shape: [usize; 4],
    strides: [usize; 3],
}

impl<'a> HeadsMut<'a> {
    /// As [`Heads::new`].
    ///
    /// # Panics
    /// If the last element lies outside `data`, or if rows overlap.
    pub fn new(data: &'a mut [f32], shape: [usize; 4], strides: [usize; 3]) -> Self {
        check(data.len(), shape, strides);
        if !shape.contains(&0) {
            // axes from the smallest stride on: each must step over all that lies below it
            let mut axes: Vec<(usize, usize)> =
                (0..3).filter(|&i| shape[i] > 1).map(|i| (strides[i], shape[i])).collect();
            axes.sort_unstable();
            let mut below = shape[3];
            for (stride, n) in axes {
                assert!(stride >= below, "view {shape:?} strides {strides:?}: rows overlap");
                below += (n - 1) * stride;
            }
        }
        HeadsMut { data, shape, strides }
    }

    /// As [`Heads::dense`].
    ///
    /// # Panics
    /// If `data` is shorter than the array.
    pub fn dense(data: &'a mut [f32], b: usize, t: usize, h: usize, d: usize) -> Self {
        HeadsMut::new(data, [b, t, h, d], [t * h * d, h * d, d])
    }

    /// [B, T, H, D].
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The same view, read-only.
    pub fn as_ref(&self) -> Heads<'_> {
        Heads { data: self.data, shape: self.shape, strides: self.strides }
    }

    /// The D elements of token `t` and head `h`.
    ///
    /// # Panics
    /// If an index is out of range.
    #[inline]
    pub fn row_mut(&mut self, b: usize, t: usize, h: usize) -> &mut [f32] {
        // SAFETY: `self` is borrowed mutably as long as the row lives.
        unsafe { self.shared().row(b, t, h) }
    }

    /// For tasks that write different rows.
    pub(crate) fn shared(&mut self) -> SharedHeads<'_> {
        SharedHeads { data: Shared::new(self.data), shape: self.shape, strides: self.strides }
    }
}

/// A [`HeadsMut`] lent to several tasks.
#[derive(Clone, Copy)]
pub(crate) struct SharedHeads<'a> {
    data: Shared<'a>,
    shape: [usize; 4],
    strides: [usize; 3],
}

impl<'a> SharedHeads<'a> {
    /// Dense rows into the rows `t0..` of one head.
    ///
    /// # Safety
    /// No row of that batch row and head is in use elsewhere.
    pub(crate) unsafe fn put(&self, b: usize, t0: usize, h: usize, x: &[f32]) {
        put_rows(self, b, t0, h, x);
    }

    /// Adds dense rows to the rows `t0..` of one head.
    ///
    /// # Safety
    /// As [`SharedHeads::put`].
    pub(crate) unsafe fn add(&self, b: usize, t0: usize, h: usize, x: &[f32]) {
        add_rows(self, b, t0, h, x);
    }

    /// The D elements of token `t` and head `h`.
    ///
    /// # Safety
    /// No other row of the same token and head lives at the same time.
    #[inline]
    pub(crate) unsafe fn row(&self, b: usize, t: usize, h: usize) -> &'a mut [f32] {
        let [nb, nt, nh, d] = self.shape;
        assert!(b < nb && t < nt && h < nh, "row ({b}, {t}, {h}) of {:?}", self.shape);
        // SAFETY: different rows do not overlap (checked by `HeadsMut::new`), the rest is this contract.
        unsafe { self.data.part(b * self.strides[0] + t * self.strides[1] + h * self.strides[2], d) }
    }
}

crate::simd! {
/// Dense rows into rows t0.. of one head.
fn put_rows(to: &SharedHeads, b: usize, t0: usize, head: usize, x: &[f32]) {
    for (i, x) in x.chunks_exact(to.shape[3]).enumerate() {
        // SAFETY: `SharedHeads::put`'s contract.
        lanes::map(unsafe { to.row(b, t0 + i, head) }, x, |x| x);
    }
}
/// The same, added.
fn add_rows(to: &SharedHeads, b: usize, t0: usize, head: usize, x: &[f32]) {
    for (i, x) in x.chunks_exact(to.shape[3]).enumerate() {
        // SAFETY: `SharedHeads::add`'s contract.
        lanes::update(unsafe { to.row(b, t0 + i, head) }, x, |y, x| y + x);
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_reach_the_right_rows() {
        let x: Vec<f32> = (0..2 * 3 * 20).map(|i| i as f32).collect();
        let h = Heads::new(&x[4..], [2, 3, 2, 5], [60, 20, 5]);
        assert_eq!(h.row(1, 2, 1), &x[4 + 60 + 40 + 5..][..5]);
        let (rows, stride) = h.head(0, 1, 2);
        assert_eq!((rows[0], stride), (49.0, 20));
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_view_outside_its_data_is_refused() {
        Heads::new(&[0.0; 11], [1, 3, 1, 4], [12, 4, 4]);
    }

    #[test]
    #[should_panic(expected = "rows overlap")]
    fn overlapping_rows_are_refused() {
        HeadsMut::new(&mut [0.0; 64], [1, 3, 2, 4], [24, 4, 6]);
    }
}
