//! An allocator that keeps the large blocks it gets back.
//!
//! A training step takes and returns the same few hundred megabytes of tensors again and again. Allocators
//! built for small objects hand such blocks back to the kernel, which clears their pages anew each time: up to a
//! fifth of a step. [`Keep`] holds them in an arena of its own, best fit first, neighbours joined, and asks the
//! kernel for huge pages there, which also spares a model's weights most of their address translation.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks from here on come from the arena.
const LARGE: usize = 64 << 10;
/// Larger ones go to the kernel and back: a file that was read once should not stay.
const HUGE: usize = 32 << 20;
/// The arena grows by so much of the address space; memory it becomes page by page, when it is written to.
const CHUNK: usize = 512 << 20;
/// Blocks are cut in units of this, and begin on one.
const UNIT: usize = 4 << 10;
/// Size and alignment of a huge page.
const PAGE: usize = 2 << 20;
/// Most chunks, and most free spans: a free span ends at a block in use or with its chunk, so there are never more
/// than `blocks + chunks`.
const CHUNKS: usize = 1 << 10;
const SPANS: usize = 8 << 10;

/// Serves blocks of 64 KiB to 32 MiB from memory that it never gives back, all others from `A`.
///
/// Its memory is what was in use at the worst moment, and what best fit wastes.
#[derive(Debug)]
pub struct Keep<A> {
    inner: A,
    arena: Mutex<Arena>,
}

impl<A> Keep<A> {
    /// An arena over `inner`, empty yet.
    pub const fn new(inner: A) -> Self {
        Keep { inner, arena: Mutex::new(Arena::new()) }
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: usize,
    len: usize,
}

impl Span {
    fn end(self) -> usize {
        self.start + self.len
    }
}

/// The chunks and what is free of them. It allocates nothing: it serves an allocator.
#[derive(Debug)]
struct Arena {
    /// Sorted by address, no two touching within a chunk.
    free: Table<SPANS>,
    chunks: Table<CHUNKS>,
    /// Blocks in use.
    blocks: usize,
}

/// A sorted list of spans of bounded length.
#[derive(Debug)]
struct Table<const N: usize> {
    spans: [Span; N],
    len: usize,
}

impl<const N: usize> Table<N> {
    const fn new() -> Self {
        Table { spans: [Span { start: 0, len: 0 }; N], len: 0 }
    }

    fn all(&self) -> &[Span] {
        &self.spans[..self.len]
    }

    /// The first span that begins after `address`.
    fn after(&self, address: usize) -> usize {
        self.all().partition_point(|s| s.start <= address)
    }

    fn insert(&mut self, i: usize, span: Span) {
        self.spans.copy_within(i..self.len, i + 1);
        self.spans[i] = span;
        self.len += 1;
    }

    fn remove(&mut self, i: usize) {
        self.spans.copy_within(i + 1..self.len, i);
        self.len -= 1;
    }

    /// The span that holds `address`.
    fn holding(&self, address: usize) -> Option<Span> {
        let span = self.all()[..self.after(address)].last()?;
        (address < span.end()).then_some(*span)
    }
}

impl Arena {
    const fn new() -> Self {
        Arena { free: Table::new(), chunks: Table::new(), blocks: 0 }
    }

    /// Whether one more block, and a chunk for it, can be kept account of.
    fn has_room(&self) -> bool {
        self.chunks.len < CHUNKS && self.blocks + self.chunks.len + 1 < SPANS
    }

    /// The smallest free span that `len` bytes fit into, the first of its size.
    fn take(&mut self, len: usize) -> Option<usize> {
        let fits = self.free.all().iter().enumerate().filter(|(_, s)| s.len >= len);
        let (i, span) = fits.min_by_key(|(_, s)| s.len).map(|(i, s)| (i, *s))?;
        if span.len == len {
            self.free.remove(i);
        } else {
            self.free.spans[i] = Span { start: span.start + len, len: span.len - len };
        }
        self.blocks += 1;
        Some(span.start)
    }

    /// Takes a block back, joined with the free spans beside it.
    fn give(&mut self, mut block: Span) {
        self.blocks -= 1;
        let chunk = self.chunks.holding(block.start).expect("a block of the arena");
        let mut i = self.free.after(block.start);
        if i < self.free.len && self.free.spans[i].start == block.end() && block.end() < chunk.end() {
            block.len += self.free.spans[i].len;
            self.free.remove(i);
        }
        if i > 0 && self.free.spans[i - 1].end() == block.start && block.start > chunk.start {
            i -= 1;
            self.free.spans[i].len += block.len;
        } else {
            self.free.insert(i, block);
        }
    }

    /// Memory that is free from now on.
    fn grow(&mut self, chunk: Span) {
        self.chunks.insert(self.chunks.after(chunk.start), chunk);
        self.free.insert(self.free.after(chunk.start), chunk);
    }
}

/// Bytes that the arena cuts for a layout, none if the block is not for the arena.
fn cut(layout: Layout) -> Option<usize> {
    let here = (LARGE..=HUGE).contains(&layout.size()) && layout.align() <= UNIT;
    here.then(|| layout.size().next_multiple_of(UNIT))
}

// SAFETY: a block lies in a chunk that `inner` gave and that is never returned, is aligned to `UNIT` and at least as
// long as asked; `take` removes it from the free spans and only `give` brings it back, so no two blocks overlap. All
// else is `inner`'s.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Keep<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(len) = cut(layout) {
            let mut arena = self.arena();
            if arena.has_room() {
                if let Some(start) = arena.take(len) {
                    return std::ptr::with_exposed_provenance_mut(start);
                }
                let size = Layout::from_size_align(CHUNK, PAGE).expect("powers of two");
                // SAFETY: the size is not 0.
                let chunk = unsafe { self.inner.alloc(size) };
                if !chunk.is_null() {
                    prefer_huge_pages(chunk, CHUNK);
                    arena.grow(Span { start: chunk.expose_provenance(), len: CHUNK });
                    let start = arena.take(len).expect("a chunk holds the largest block");
                    return std::ptr::with_exposed_provenance_mut(start);
                }
            }
        }
        // SAFETY: the caller's.
        let block = unsafe { self.inner.alloc(layout) };
        if layout.size() > HUGE && !block.is_null() {
            prefer_huge_pages(block, layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if let Some(len) = cut(layout) {
            let mut arena = self.arena();
            if arena.chunks.holding(ptr.addr()).is_some() {
                return arena.give(Span { start: ptr.addr(), len });
            }
        }
        // SAFETY: the caller's, and the block is `inner`'s.
        unsafe { self.inner.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if cut(layout).is_none() {
            // SAFETY: the caller's.
            let block = unsafe { self.inner.alloc_zeroed(layout) };
            if layout.size() > HUGE && !block.is_null() {
                prefer_huge_pages(block, layout.size());
            }
            return block;
        }
        // SAFETY: the caller's.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block is that long.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the size, rounded up to the alignment, does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (cut(layout), cut(new)) {
            // one of the same length, unless it is `inner`'s
            (Some(a), Some(b)) if a == b && self.arena().chunks.holding(ptr.addr()).is_some() => ptr,
            // SAFETY: the caller's: neither the old block nor the new one is the arena's.
            (None, None) => unsafe { self.inner.realloc(ptr, layout, new_size) },
            _ => {
                // SAFETY: the caller's.
                let block = unsafe { self.alloc(new) };
                if !block.is_null() {
                    // SAFETY: both blocks are that long, and they are two.
                    unsafe { block.copy_from_nonoverlapping(ptr, layout.size().min(new_size)) };
                    // SAFETY: the caller's.
                    unsafe { self.dealloc(ptr, layout) };
                }
                block
            }
        }
    }
}

/// Asks for huge pages where whole ones lie inside the block; a kernel that has none goes on as before.
fn prefer_huge_pages(block: *mut u8, len: usize) {
    #[cfg(target_os = "linux")]
    {
        unsafe extern "C" {
            fn madvise(start: *mut std::ffi::c_void, len: usize, advice: std::ffi::c_int) -> std::ffi::c_int;
        }
        const MADV_HUGEPAGE: std::ffi::c_int = 14;
        let skip = block.addr().next_multiple_of(PAGE) - block.addr();
        let whole = len.saturating_sub(skip) / PAGE * PAGE;
        if whole > 0 {
            // SAFETY: the pages lie inside the block; the advice changes nothing but their size.
            unsafe { madvise(block.add(skip).cast(), whole, MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (block, len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, 8).unwrap()
    }

    /// What is free and what is in use make up the chunks, and no two free spans of a chunk touch.
    fn check(keep: &Keep<System>, live: &[(*mut u8, usize)]) {
        let arena = keep.arena();
        let used: usize = live.iter().filter_map(|(_, n)| cut(layout(*n))).sum();
        let free: usize = arena.free.all().iter().map(|s| s.len).sum();
        assert_eq!(used + free, arena.chunks.len * CHUNK);
        for pair in arena.free.all().windows(2) {
            let border = arena.chunks.all().iter().any(|c| c.start == pair[1].start);
            assert!(pair[0].end() < pair[1].start || (border && pair[0].end() == pair[1].start), "{pair:?}");
        }
    }

    #[test]
    fn blocks_hold_what_was_written_and_come_back() {
        let keep = Box::new(Keep::new(System));
        let mut live: Vec<(*mut u8, usize)> = Vec::new();
        let mut seed = 1u64;
        for step in 0..4000u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let r = (seed >> 33) as usize;
            if live.len() < 40 && (live.is_empty() || r % 5 < 3) {
                // small ones, the arena's, and ones beyond it
                let n = [LARGE - 1 - r % 1000, LARGE + r % (4 << 20), HUGE, HUGE + 1][(r % 41).min(3)];
                let n = if step.is_multiple_of(3) { n } else { LARGE + r % (1 << 20) };
                // SAFETY: the size is not 0.
                let p =
                    unsafe { if r.is_multiple_of(2) { keep.alloc(layout(n)) } else { keep.alloc_zeroed(layout(n)) } };
                assert!(!p.is_null() && p.addr().is_multiple_of(8));
                if r % 2 == 1 {
                    // SAFETY: the block is that long and cleared.
                    let ends = unsafe { [*p, *p.add(n / 2), *p.add(n - 1)] };
                    assert_eq!(ends, [0; 3]);
                }
                // SAFETY: the block is that long.
                unsafe { (p.write(n as u8), p.add(n - 1).write(n as u8)) };
                live.push((p, n));
            } else {
                let i = r % live.len();
                let (p, n) = live[i];
                // SAFETY: the block is that long.
                let ends = unsafe { [*p, *p.add(n - 1)] };
                assert_eq!(ends, [n as u8; 2], "another block was written over this one");
                if r.is_multiple_of(7) {
                    let new = (n / 2 + r % (2 << 20)).max(1);
                    // SAFETY: it was allocated with this layout.
                    let q = unsafe { keep.realloc(p, layout(n), new) };
                    // SAFETY: the first byte was kept, and the block is that long.
                    unsafe { (assert_eq!(*q, n as u8), q.write(new as u8), q.add(new - 1).write(new as u8)) };
                    live[i] = (q, new);
                } else {
                    // SAFETY: it was allocated with this layout.
                    unsafe { keep.dealloc(p, layout(n)) };
                    live.swap_remove(i);
                }
            }
            check(&keep, &live);
        }
        for (p, n) in live {
            // SAFETY: it was allocated with this layout.
            unsafe { keep.dealloc(p, layout(n)) };
        }
        let arena = keep.arena();
        assert_eq!((arena.blocks, arena.free.all()), (0, arena.chunks.all()), "all of it is free and joined");
    }

    #[test]
    fn a_block_is_found_again_and_a_full_table_asks_the_allocator_below() {
        let keep = Box::new(Keep::new(System));
        // SAFETY: the size is not 0, the block is returned with its layout.
        let twice = [1 << 20, 1 << 20].map(|n| unsafe {
            let p = keep.alloc(layout(n));
            keep.dealloc(p, layout(n));
            p
        });
        assert_eq!(twice[0], twice[1]);
        keep.arena().blocks = SPANS;
        // SAFETY: the size is not 0.
        let p = unsafe { keep.alloc(layout(1 << 20)) };
        assert!(keep.arena().chunks.holding(p.addr()).is_none());
        keep.arena().blocks = 0;
        // SAFETY: it was allocated with this layout.
        let q = unsafe { keep.realloc(p, layout(1 << 20), (1 << 20) - 1) };
        assert!(keep.arena().chunks.holding(q.addr()).is_some(), "what another allocator cut is not ours to stretch");
        // SAFETY: as above.
        unsafe { keep.dealloc(q, layout((1 << 20) - 1)) };
    }
}
