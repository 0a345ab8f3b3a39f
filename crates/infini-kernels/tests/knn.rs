//! The best few of many keys against the f64 reference.

mod common;

use common::Random;
use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::knn::{Choice, Seen, Store, backward, forward};
use infini_kernels::naive;

#[test]
fn the_best_few_are_those_of_the_reference_and_so_is_the_gradient() {
    for (b, t, n, h, hkv, d, dv, top) in [
        (1, 1, 0, 1, 1, 8, 8, 4),
        (2, 3, 5, 2, 1, 8, 12, 4),
        (1, 70, 200, 4, 2, 16, 16, 8),
        (2, 5, 33, 9, 3, 24, 20, 32),
    ] {
        let mut r = Random(7 + n as u64);
        let mut draw = |len: usize| -> Vec<f32> { (0..len).map(|_| r.normal() as f32).collect() };
        let (q, k, v) = (draw(b * t * h * d), draw(b * n * hkv * d), draw(b * n * hkv * dv));
        let dy = draw(b * t * h * dv);
        // two ranges, with a gap between them, that grow with the token
        let seen: Vec<Seen> = (0..b * t)
            .map(|i| {
                let end = (n * (i % t + 1) / t) as u32;
                [0..end / 3, end / 2..end]
            })
            .collect();
        let (qh, store) = (
            Heads::dense(&q, b, t, h, d),
            Store { k: Heads::dense(&k, b, n, hkv, d), v: Heads::dense(&v, b, n, hkv, dv) },
        );
        let (mut out, mut dq) = (vec![f32::NAN; b * t * h * dv], vec![f32::NAN; q.len()]);
        let mut choice = Choice::default();
        forward(qh, store, &seen, top, &mut HeadsMut::dense(&mut out, b, t, h, dv), Some(&mut choice));
        let up = Heads::dense(&dy, b, t, h, dv);
        backward(qh, store, &choice, top, up, &mut HeadsMut::dense(&mut dq, b, t, h, d));
        for row in 0..b * t {
            for head in 0..h {
                let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
                let at = row * h + head;
                let places: Vec<u32> = seen[row].iter().flat_map(|r| r.clone()).collect();
                let cut = |x: &[f32], width: usize| -> Vec<f64> {
                    let start = |p: u32| ((row / t * n + p as usize) * hkv + head / (h / hkv)) * width;
                    places.iter().flat_map(|p| wide(&x[start(*p)..][..width])).collect()
                };
                let (keys, values) = (cut(&k, d), cut(&v, dv));
                let q = wide(&q[at * d..(at + 1) * d]);
                let (y, chosen) = naive::knn::forward(&q, &keys, &values, top);
                for (i, y) in y.iter().enumerate() {
                    assert!((f64::from(out[at * dv + i]) - y).abs() < 1e-5);
                }
                if places.is_empty() {
                    assert!(out[at * dv..(at + 1) * dv].iter().chain(&dq[at * d..(at + 1) * d]).all(|x| *x == 0.0));
                    continue;
                }
                for (j, (i, p)) in chosen.iter().enumerate() {
                    assert_eq!(choice.place[at * top + j], places[*i]);
                    assert!((f64::from(choice.weight[at * top + j]) - p).abs() < 1e-5);
                }
                let dy = wide(&dy[at * dv..(at + 1) * dv]);
                for (i, g) in naive::knn::dq(&q, &keys, &values, top, &dy).iter().enumerate() {
                    assert!((f64::from(dq[at * d + i]) - g).abs() < 1e-4, "{} {g}", dq[at * d + i]);
                }
            }
        }
    }
}
