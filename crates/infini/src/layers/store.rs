//! The store of a memorizing layer: keys and values that have left the window, the newest of them, in a ring.

use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::knn::{self, Seen, Store};

use super::attention::Place;
use crate::state::{LayerState, Reads};

/// What the store answers to queries `[B, n, H, D]` of a segment whose window begins at position `start`.
pub(crate) fn read(p: &Place, state: &LayerState, q: Heads, start: u64, out: &mut [f32]) {
    let c = p.config;
    let ([b, n, h, d], hkv) = (q.shape(), c.kv_heads());
    let (places, top) = c.store();
    // a token sees of its document what the window has lost and the store still holds
    let seen = |doc: &u64| -> Seen {
        let from = start.saturating_sub(places as u64).max(*doc);
        let (at, len) = ((from % places as u64) as usize, start.saturating_sub(from) as usize);
        let end = (at + len).min(places);
        [at as u32..end as u32, 0..(at + len - end) as u32]
    };
    let seen: Vec<Seen> = p.doc_start.iter().flat_map(|doc| vec![seen(doc); n]).collect();
    let (k, v) = (&state.store_k, &state.store_v);
    let swapped;
    let (k, v) = match p.reads {
        Reads::Swapped => {
            swapped = [k, v].map(|x| {
                let mut x = x.clone();
                let row = x.len() / b;
                x.rotate_left(row);
                x
            });
            (&swapped[0], &swapped[1])
        }
        _ => (k, v),
    };
    let store = Store { k: Heads::dense(k, b, places, hkv, d), v: Heads::dense(v, b, places, hkv, d) };
    knn::forward(q, store, &seen, top, &mut HeadsMut::dense(out, b, n, h, d), None);
}

/// Keeps the first `n` tokens of the window, which begins at position `start`.
pub(crate) fn keep(p: &Place, state: &mut LayerState, start: u64, n: usize) {
    let (places, _) = p.config.store();
    let width = p.config.kv_heads() * p.config.head_width();
    let cap = state.capacity;
    for (store, window) in [(&mut state.store_k, &state.k), (&mut state.store_v, &state.v)] {
        for row in 0..p.batch {
            for i in 0..n {
                let place = ((start + i as u64) % places as u64) as usize;
                store[(row * places + place) * width..][..width]
                    .copy_from_slice(&window[(row * cap + i) * width..][..width]);
            }
        }
    }
}
