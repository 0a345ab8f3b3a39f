//! Weights on grids of 4 and 8 bits beside the f64 product of the numbers that they are, at every SIMD level.

use infini_kernels::naive::pointwise as naive;
use infini_kernels::quant::Matrix;
use infini_kernels::simd::{self, Level};

/// Numbers below `n`, the same for one seed.
fn random(seed: u64, n: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % n
    }
}

/// What a file's blocks of 32 mean: f16 steps, every block with both ends of its range or all alike.
fn weights(kind: &str, n: usize) -> Vec<f32> {
    let mut next = random(n as u64, 1 << 20);
    let mut f16 = move || (1024 + next() % 1024) as f32 / 32768.0;
    let mut draw = random(n as u64 + 1, 256);
    let mut out = Vec::with_capacity(n);
    for block in 0..n / 32 {
        let (d, m) = (if block % 7 == 3 { 0.0 } else { f16() }, -8.0 * f16());
        for i in 0..32 {
            let q = match i {
                5 => 0,
                9 => 255,
                _ => draw(),
            };
            out.push(match kind {
                "Q4_1" => d * (q / 16) as f32 + m,
                "Q4_0" => d * ((q / 16) as f32 - 8.0),
                _ => d * (q as f32 - 128.0).max(-127.0),
            });
        }
    }
    out
}

#[track_caller]
fn near(what: &str, got: &[f32], want: &[f64]) {
    let square: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    let error = square.sqrt() / size.sqrt().max(1e-12);
    assert!(square == 0.0 || error <= 1e-5, "{what} at {}: error {error:e}", simd::level().name());
}

#[test]
fn nothing_is_lost_and_products_are_those_of_the_numbers() {
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    for level in Level::available() {
        simd::force(Some(level));
        for (kind, bits) in [("Q4_1", 4), ("Q4_0", 4), ("Q8_0", 8)] {
            for [out, inp] in [[1, 32], [63, 96], [64, 64], [65, 32], [130, 608], [700, 576]] {
                let w = weights(kind, out * inp);
                let m = Matrix::new(&w, inp).unwrap_or_else(|| panic!("{kind} {out} {inp} is not seen"));
                assert_eq!((m.out(), m.inp()), (out, inp));
                let padded = out.next_multiple_of(64) * inp;
                let bytes = padded * bits / 8 + if bits == 4 { padded / 4 } else { padded / 8 };
                assert_eq!(m.size_bytes(), bytes);
                let mut row = vec![f32::NAN; inp];
                for (o, w) in w.chunks(inp).enumerate() {
                    m.row(o, &mut row);
                    assert_eq!(row, w, "{kind}: row {o}");
                }
                for n in [0, 1, 3, 4, 5, 70] {
                    let mut next = random(7, 1 << 24);
                    let x: Vec<f32> = (0..n * inp).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect();
                    let want = naive::linear(&wide(&x), &wide(&w), [n, inp, out]);
                    let mut y = vec![f32::NAN; n * out];
                    m.forward(&x, &mut y, n, false);
                    near(&format!("{kind} {n} {inp} {out}"), &y, &want);
                    m.forward(&x, &mut y, n, true);
                    near(
                        &format!("{kind} {n} {inp} {out}, twice"),
                        &y,
                        &want.iter().map(|y| 2.0 * y).collect::<Vec<_>>(),
                    );
                }
            }
        }
    }
    simd::force(None);
}
