//! Independent tasks over the current rayon pool, each with scratch of its own and parts of shared
//! outputs. Which thread runs a task never shows in its result.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `task(i, scratch)` for every `i < tasks`: on as many workers as `scratch` has room for `per`
/// floats each, at most one a thread; in order on the calling thread if that is one or `heavy` is false.
///
/// # Panics
/// If `scratch` has no room for one worker.
pub(crate) fn run(
    tasks: usize,
    scratch: &mut [f32],
    per: usize,
    heavy: bool,
    task: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    assert!(scratch.len() >= per, "scratch: {} floats: {per} needed, see scratch_len", scratch.len());
    let room = scratch.len().checked_div(per).unwrap_or(tasks);
    let workers = if heavy && tasks > 1 { room.min(tasks).min(rayon::current_num_threads()) } else { 1 };
    if workers <= 1 {
        for i in 0..tasks {
            task(i, &mut scratch[..per]);
        }
        return;
    }
    let next = AtomicUsize::new(0);
    rayon::scope(|scope| {
        let mut rest = scratch;
        for _ in 0..workers {
            let (mine, tail) = std::mem::take(&mut rest).split_at_mut(per);
            rest = tail;
            let next = &next;
            scope.spawn(move |_| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= tasks {
                        break;
                    }
                    task(i, mine);
                }
            });
        }
    });
}

/// A mutable slice lent to several tasks, each of which takes its own parts.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a `&mut [f32]`; the one way to its elements is `part`, whose contract forbids overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Shared { data: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    #[inline]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "part outside its slice");
        // SAFETY: in bounds by the assertion, exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }

    /// Element `i` becomes `x`.
    ///
    /// # Safety
    /// As [`Shared::part`].
    #[inline]
    pub(crate) unsafe fn set(&self, i: usize, x: f32) {
        // SAFETY: the caller's.
        unsafe { self.part(i, 1)[0] = x }
    }
}

/// Takes floats off the front of a scratch buffer, piece by piece.
pub(crate) struct Carve<'a>(pub &'a mut [f32]);

impl<'a> Carve<'a> {
    /// The next `n` floats, holding whatever was there.
    pub(crate) fn take(&mut self, n: usize) -> &'a mut [f32] {
        let (head, tail) = std::mem::take(&mut self.0).split_at_mut(n);
        self.0 = tail;
        head
    }
}
