//! Every kernel but attention against its f64 reference: one table of sizes, outputs filled with NaN
//! beforehand, each SIMD level in turn; the references against central differences.

use std::sync::Mutex;

use infini_kernels::conv::Shape;
use infini_kernels::loss::{Head, IGNORE};
use infini_kernels::naive::pointwise as naive;
use infini_kernels::optim::AdamW;
use infini_kernels::simd::{self, Level};
use infini_kernels::{Rope, activation, bf16, conv, embedding, linear, loss, norm, optim, rope};

/// Held while a level is forced, or while two runs of one level are compared.
static LEVEL: Mutex<()> = Mutex::new(());

const SIZES: [usize; 8] = [0, 1, 3, 63, 64, 65, 100, 1000];

/// Length of a slice that the elementwise kernels cut into chunks.
const LONG: usize = 100_003;

/// Uniform numbers in −2 … 2, the same for one seed.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn nan(n: usize) -> Vec<f32> {
    vec![f32::NAN; n]
}

/// The root mean square of the difference is at most 1e-5 of that of `want`.
#[track_caller]
fn near(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let square: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    let error = square.sqrt() / size.sqrt().max(1e-12);
    // written so that NaN fails
    assert!(square == 0.0 || error <= 1e-5, "{what} at {}: error {error:e}", simd::level().name());
}

fn each_level(check: impl Fn()) {
    let _guard = LEVEL.lock().unwrap_or_else(|e| e.into_inner());
    for level in Level::available() {
        simd::force(Some(level));
        check();
    }
    simd::force(None);
}

#[test]
fn kernels_agree_with_references_at_every_level() {
    each_level(|| {
        for n in SIZES.into_iter().chain([LONG]) {
            activations(n);
            optimiser(n);
        }
        for n in SIZES {
            for d in SIZES {
                norms(n, d);
            }
            packed(n, 65);
            packed(65, n);
            rotations(n);
            for (size, sizes) in
                [[n, 65, 63], [3, n, 100], [64, 3, n], [2, n, 65], [100, n, n.min(100)]].iter().enumerate()
            {
                linears(*sizes, size as u64);
                losses(*sizes);
            }
            embeddings(n, 65);
            embeddings(100, n);
            for width in [1, 2, 8] {
                convolutions(Shape { b: 2, t: n, d: 65, width });
                convolutions(Shape { b: 3, t: 10, d: n, width });
            }
        }
        for n in 1..=5 {
            linears([n, 1000, 1000], 1);
        }
    });
}

fn activations(n: usize) {
    let (x, u, dy) = (random(n, 1), random(n, 2), random(n, 3));
    let x: Vec<f32> = x.iter().map(|x| 4.0 * x).collect();
    type Forward = fn(&[f32], &mut [f32]);
    type Backward = fn(&[f32], &[f32], &mut [f32]);
    type Slope = fn(f64) -> f64;
    let table: [(&str, Forward, Backward, Slope, Slope); 4] = [
        ("gelu", activation::gelu_forward, activation::gelu_backward, naive::gelu, naive::gelu_slope),
        ("sigmoid", activation::sigmoid_forward, activation::sigmoid_backward, naive::sigmoid, naive::sigmoid_slope),
        ("softplus", activation::softplus_forward, activation::softplus_backward, naive::softplus, naive::sigmoid),
        (
            "clip gate",
            activation::clip_gate_forward,
            activation::clip_gate_backward,
            naive::clip_gate,
            naive::clip_gate_slope,
        ),
    ];
    for (name, forward, backward, value, slope) in table {
        let mut out = nan(n);
        forward(&x, &mut out);
        near(&format!("{name} of {n}"), &out, &x.iter().map(|x| value(f64::from(*x))).collect::<Vec<_>>());
        out.fill(f32::NAN);
        backward(&x, &dy, &mut out);
        let want: Vec<f64> = x.iter().zip(&dy).map(|(x, dy)| f64::from(*dy) * slope(f64::from(*x))).collect();
        near(&format!("{name} gradient of {n}"), &out, &want);
    }
    let (mut y, mut dg, mut du) = (nan(n), nan(n), nan(n));
    activation::swiglu_forward(&x, &u, &mut y);
    activation::swiglu_backward(&x, &u, &dy, &mut dg, &mut du);
    let (x, u, dy) = (wide(&x), wide(&u), wide(&dy));
    near("swiglu", &y, &(0..n).map(|i| naive::swiglu(x[i], u[i])).collect::<Vec<_>>());
    let slopes: Vec<_> = (0..n).map(|i| naive::swiglu_slopes(x[i], u[i])).collect();
    near("swiglu dgate", &dg, &(0..n).map(|i| dy[i] * slopes[i].0).collect::<Vec<_>>());
    near("swiglu dup", &du, &(0..n).map(|i| dy[i] * slopes[i].1).collect::<Vec<_>>());
}

/// The packed form is the plain one on other places.
fn packed(n: usize, f: usize) {
    let (h, dy) = (random(2 * n * f, 4), random(n * f, 5));
    let (mut y, mut dh) = (nan(n * f), nan(2 * n * f));
    activation::swiglu_packed_forward(&h, f, &mut y);
    activation::swiglu_packed_backward(&h, f, &dy, &mut dh);
    for r in 0..n {
        let (gate, up) = h[2 * r * f..2 * (r + 1) * f].split_at(f);
        let (mut want, mut dgate, mut dup) = (nan(f), nan(f), nan(f));
        activation::swiglu_forward(gate, up, &mut want);
        activation::swiglu_backward(gate, up, &dy[r * f..(r + 1) * f], &mut dgate, &mut dup);
        assert_eq!(y[r * f..(r + 1) * f], want, "packed swiglu {n}x{f}");
        assert_eq!(dh[2 * r * f..2 * (r + 1) * f], [dgate, dup].concat(), "packed swiglu gradient {n}x{f}");
    }
}

fn norms(n: usize, d: usize) {
    let (x, gain, dy) = (random(n * d, 6), random(d, 7), random(n * d, 8));
    let (mut y, mut inv, mut dx, mut dgain) = (nan(n * d), nan(n), nan(n * d), nan(d));
    norm::rms_forward(&x, &gain, 1e-5, &mut y, &mut inv);
    norm::rms_backward(&x, &gain, &inv, &dy, &mut dx, &mut dgain, &mut nan(norm::rms_backward_scratch(n, d)));
    let eps = f64::from(1e-5f32);
    near(&format!("rms {n}x{d}"), &y, &naive::rms(&wide(&x), &wide(&gain), eps));
    let (wx, wg) = naive::rms_backward(&wide(&x), &wide(&gain), eps, &wide(&dy));
    // with one channel dx is the small difference of two large numbers: compared with their size
    let scale = if d == 1 { 1e6 } else { 1.0 };
    let near_scaled = |what: &str, got: &[f32], want: &[f64]| {
        if scale == 1.0 {
            near(what, got, want)
        } else {
            assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-2), "{what}")
        }
    };
    near_scaled(&format!("rms dx {n}x{d}"), &dx, &wx);
    near(&format!("rms dgain {n}x{d}"), &dgain, &wg);
}

fn rotations(n: usize) {
    for (layout, [b, t, h, d]) in [
        (Rope::Half, [2, n, 3, 32]),
        (Rope::Interleaved, [2, n, 3, 32]),
        (Rope::Half, [1, 3, 2, n & !1]),
        (Rope::Interleaved, [1, 3, 2, n & !1]),
        (Rope::None, [1, n, 1, 4]),
        (Rope::Half, [2, n, 9, 64]),
    ] {
        let first = 10_000_000;
        let x = random(b * t * h * d, 9);
        // one position more in front than is used
        let table = rope::Table::new(&rope::frequencies(10_000.0, d), first - 1, t + 1);
        let mut y = x.clone();
        rope::rotate(layout, &table, 1, &mut y, [b, t, h, d], [t * h * d, h * d, d], false);
        let want = naive::rotate(layout, 10_000.0, first, &wide(&x), [b, t, h, d], false);
        near(&format!("{layout:?} {b}x{t}x{h}x{d}"), &y, &want);
        rope::rotate(layout, &table, 1, &mut y, [b, t, h, d], [t * h * d, h * d, d], true);
        near(&format!("{layout:?} back {b}x{t}x{h}x{d}"), &y, &wide(&x));
        // head by head in [B, H, T, D], with a gap after each head that must stay as it is
        let gap = d + 3;
        let mut strided = nan(b * h * t * gap);
        for row in 0..b * t * h {
            let (b, t_, h_) = (row / (t * h), row / h % t, row % h);
            strided[((b * h + h_) * t + t_) * gap..][..d].copy_from_slice(&x[row * d..(row + 1) * d]);
        }
        rope::rotate(layout, &table, 1, &mut strided, [b, t, h, d], [h * t * gap, gap, t * gap], false);
        let (mut got, mut rest) = (vec![], 0);
        for row in 0..b * t * h {
            let (b, t_, h_) = (row / (t * h), row / h % t, row % h);
            let head = &strided[((b * h + h_) * t + t_) * gap..][..gap];
            got.extend_from_slice(&head[..d]);
            rest += head[d..].iter().filter(|x| x.is_nan()).count();
        }
        near(&format!("{layout:?} strided {b}x{t}x{h}x{d}"), &got, &want);
        assert_eq!(rest, 3 * b * t * h, "the gaps were written");
    }
}

/// Weights in bf16: off by half a unit in the eighth bit at most, and then multiplied as they are.
fn halves(x: &[f32], w: &[f32], [n, inp, out]: [usize; 3]) {
    let m = bf16::Matrix::new(w, inp);
    assert_eq!((m.out(), m.inp()), (out, inp));
    let mut rounded = nan(out * inp);
    rounded.chunks_exact_mut(inp).enumerate().for_each(|(o, row)| m.row(o, row));
    assert!(rounded.iter().zip(w).all(|(r, w)| (r - w).abs() <= w.abs() / 256.0), "rounded to another number");
    assert!(bf16::is_bf16(&rounded) && bf16::Matrix::new(&rounded, inp) == m, "rounding twice changes nothing");
    let what = format!("bf16 {n} {inp} {out}");
    let want = naive::linear(&wide(x), &wide(&rounded), [n, inp, out]);
    let mut y = nan(n * out);
    m.forward(x, &mut y, n, false);
    near(&what, &y, &want);
    m.forward(x, &mut y, n, true);
    near(&format!("{what}, twice"), &y, &want.iter().map(|y| 2.0 * y).collect::<Vec<_>>());
}

fn linears([n, inp, out]: [usize; 3], seed: u64) {
    let sizes = [n, inp, out];
    let (x, w, dy) = (random(n * inp, seed), random(out * inp, 10), random(n * out, 11));
    let (mut y, mut dx, mut dw) = (nan(n * out), nan(n * inp), nan(out * inp));
    linear::forward(&x, &w, &mut y, sizes, false);
    linear::backward_input(&dy, &w, &mut dx, sizes, false);
    linear::backward_weight(&dy, &x, &mut dw, sizes, false);
    let wy = naive::linear(&wide(&x), &wide(&w), sizes);
    let (wx, ww) = naive::linear_backward(&wide(&x), &wide(&w), &wide(&dy), sizes);
    near(&format!("linear {sizes:?}"), &y, &wy);
    if inp > 0 {
        halves(&x, &w, sizes);
    }
    near(&format!("linear dx {sizes:?}"), &dx, &wx);
    near(&format!("linear dw {sizes:?}"), &dw, &ww);
    linear::forward(&x, &w, &mut y, sizes, true);
    linear::backward_input(&dy, &w, &mut dx, sizes, true);
    linear::backward_weight(&dy, &x, &mut dw, sizes, true);
    let twice = |x: Vec<f64>| x.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
    near("linear added", &y, &twice(wy.clone()));
    near("linear dx added", &dx, &twice(wx));
    near("linear dw added", &dw, &twice(ww));
    let (bias, mut db) = (random(out, 12), nan(out));
    y.fill(1.0);
    linear::add_bias(&mut y, &bias);
    assert!(y.chunks(out.max(1)).all(|y| y.iter().zip(&bias).all(|(y, b)| *y == 1.0 + b)), "bias {n}x{out}");
    linear::backward_bias(&dy, &mut db, false);
    near("bias", &db, &naive::linear_backward(&vec![1.0; n], &vec![0.0; out], &wide(&dy), [n, 1, out]).1);
}

fn losses([n, d, v]: [usize; 3]) {
    let (hidden, weight) = (random(n * d, 13), random(v * d, 14));
    let weight: Vec<f32> = weight.iter().map(|x| x / (1.0 + d as f32).sqrt()).collect();
    let target = |i: usize| if i % 5 == 2 || v * d == 0 { IGNORE } else { (i * 31 % v) as u32 };
    let targets: Vec<u32> = (0..n).map(target).collect();
    let counted = targets.iter().filter(|t| **t != IGNORE).count().max(1);
    let own: Vec<f32> = (0..n).map(|i| (i % 3) as f32 * 0.01).collect();
    for weights in [None, Some(&own[..])] {
        let head = Head { hidden: &hidden, weight: &weight, targets: &targets, weights, d };
        let (mut ce, mut again, mut hits) = (nan(n), nan(n), vec![true; n]);
        let (mut dhidden, mut dweight) = (nan(n * d), nan(v * d));
        let mut scratch = nan(loss::scratch_len(n, d, v));
        let total = loss::forward(&head, &mut ce, Some(&mut hits), &mut scratch);
        let with = loss::forward_backward(&head, &mut again, None, &mut dhidden, &mut dweight, false, &mut scratch);
        assert_eq!((total, &ce), (with, &again), "loss alone and with gradients");
        let mean = vec![1.0 / counted as f64; n];
        let want = naive::loss(&wide(&hidden), &wide(&weight), &targets, &weights.map_or(mean, wide), d);
        let what = format!("loss {n}x{d}x{v}");
        near(&what, &[total], &[want.loss]);
        // one word only: every loss is 0, up to the rounding of the logits
        if v > 1 {
            near(&what, &ce, &want.losses);
            near(&format!("{what} dhidden"), &dhidden, &want.dhidden);
            near(&format!("{what} dweight"), &dweight, &want.dweight);
        }
        let logits = naive::linear(&wide(&hidden), &wide(&weight), [n, d, v]);
        for i in (0..n).filter(|i| targets[*i] != IGNORE) {
            let row = &logits[i * v..(i + 1) * v];
            let (own, top) = (row[targets[i] as usize], row.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            assert!(hits[i] == (own >= top) || (own - top).abs() < 1e-5, "{what}: hit {i}");
        }
        loss::forward_backward(&head, &mut ce, None, &mut dhidden, &mut dweight, true, &mut scratch);
        if v > 1 {
            near("dweight added", &dweight, &want.dweight.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        }
    }
}

fn embeddings(n: usize, d: usize) {
    let vocab = 37;
    let (table, dy) = (random(vocab * d, 15), random(n * d, 16));
    let ids: Vec<u32> = (0..n).map(|i| (i * i % vocab) as u32).collect();
    let (mut out, mut dtable) = (nan(n * d), nan(vocab * d));
    embedding::forward(&ids, &table, d, &mut out);
    for i in 0..n {
        let id = ids[i] as usize;
        assert_eq!(out[i * d..(i + 1) * d], table[id * d..(id + 1) * d], "embedding {n}x{d}");
    }
    embedding::backward(&ids, &dy, d, &mut dtable, false);
    let want = naive::embedding_backward(&ids, &wide(&dy), d, vocab);
    near(&format!("embedding {n}x{d}"), &dtable, &want);
    embedding::backward(&ids, &dy, d, &mut dtable, true);
    near("embedding added", &dtable, &want.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
}

fn convolutions(shape: Shape) {
    let Shape { b, t, d, width } = shape;
    let (x, kernel, dy) = (random(b * t * d, 17), random(width * d, 18), random(b * t * d, 19));
    let starts: Vec<u8> = (0..b * t).map(|i| u8::from(i % 7 == 3 || i % 13 == 4)).collect();
    for reset in [None, Some(&starts[..])] {
        let what = format!("conv {shape:?} resets {}", reset.is_some());
        let (mut y, mut dx, mut dkernel) = (nan(x.len()), nan(x.len()), nan(kernel.len()));
        conv::forward(shape, &x, &kernel, reset, None, &mut y);
        near(&what, &y, &naive::conv(shape, &wide(&x), &wide(&kernel), reset));
        let mut scratch = nan(conv::backward_scratch(shape));
        conv::backward(shape, &x, &kernel, reset, &dy, &mut dx, &mut dkernel, &mut scratch);
        let (wx, wk) = naive::conv_backward(shape, &wide(&x), &wide(&kernel), reset, &wide(&dy));
        near(&format!("{what} dx"), &dx, &wx);
        near(&format!("{what} dkernel"), &dkernel, &wk);
        // the same text in calls of 1, 2, 3, … tokens, each row of the batch
        for b in 0..b {
            let mut tail = vec![0.0; (width - 1) * d];
            let (mut from, mut pieces) = (0, vec![]);
            while from < t {
                let to = (from + 1 + pieces.len() / d.max(1) % 11).min(t);
                let at = b * t + from..b * t + to;
                let mut y = nan((to - from) * d);
                let piece = Shape { b: 1, t: to - from, d, width };
                let x = &x[at.start * d..at.end * d];
                conv::forward(piece, x, &kernel, reset.map(|r| &r[at]), Some(&mut tail), &mut y);
                pieces.extend(y);
                from = to;
            }
            assert_eq!(pieces, y[b * t * d..(b + 1) * t * d], "{what} in pieces");
        }
    }
}

fn optimiser(n: usize) {
    let set = AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05 };
    let (mut p, mut m, mut v) = (random(n, 20), vec![0.0; n], vec![0.0; n]);
    let (mut wp, mut wm, mut wv) = (wide(&p), wide(&m), wide(&v));
    for step in 1..=3 {
        let g = random(n, 20 + step);
        optim::adamw(&set, step, 0.5, &mut p, &g, &mut m, &mut v);
        naive::adamw(&set, step, 0.5, &mut wp, &wide(&g), &mut wm, &mut wv);
    }
    near("adamw p", &p, &wp);
    near("adamw m", &m, &wm);
    near("adamw v", &v, &wv);
    let want: f64 = wide(&p).iter().map(|x| x * x).sum();
    assert!((optim::sum_squares(&p) - want).abs() <= 1e-12 * want, "sum of squares of {n}");
    assert!(optim::finite(&p));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        if let Some(last) = p.last_mut() {
            *last = bad;
            assert!(!optim::finite(&p) && !optim::sum_squares(&p).is_finite(), "{bad} among {n}");
        }
    }
}

#[test]
fn clipping_keeps_small_norms() {
    assert_eq!(optim::clip_scale(0.5, 1.0), 1.0);
    assert_eq!(optim::clip_scale(4.0, 1.0), 0.25);
}

/// Exactly the same bits on one thread and on three.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let _guard = LEVEL.lock().unwrap_or_else(|e| e.into_inner());
    let run = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let (n, d, v) = (1000, 192, 517);
            let (x, gain, dy) = (random(n * d, 1), random(d, 2), random(n * d, 3));
            let (mut y, mut inv, mut dx, mut dgain) = (nan(n * d), nan(n), nan(n * d), nan(d));
            norm::rms_forward(&x, &gain, 1e-5, &mut y, &mut inv);
            norm::rms_backward(&x, &gain, &inv, &dy, &mut dx, &mut dgain, &mut nan(norm::rms_backward_scratch(n, d)));
            let w = random(v * d, 4);
            let targets: Vec<u32> = (0..n).map(|i| (i * i % v) as u32).collect();
            let head = Head { hidden: &x, weight: &w, targets: &targets, weights: None, d };
            let (mut ce, mut dhidden, mut dweight) = (nan(n), nan(n * d), nan(v * d));
            let mut scratch = nan(loss::scratch_len(n, d, v));
            loss::forward_backward(&head, &mut ce, None, &mut dhidden, &mut dweight, false, &mut scratch);
            let (mut out, mut dtable) = (nan(n * v), nan(v * d));
            linear::forward(&x, &w, &mut out, [n, d, v], false);
            embedding::backward(&targets, &dy, d, &mut dtable, false);
            let shape = Shape { b: 4, t: 250, d, width: 8 };
            let (mut cx, mut ck, kernel) = (nan(n * d), nan(8 * d), random(8 * d, 5));
            conv::backward(shape, &x, &kernel, None, &dy, &mut cx, &mut ck, &mut nan(conv::backward_scratch(shape)));
            let norm = optim::sum_squares(&out);
            let mut few = nan(2 * 1000);
            linear::forward(&x[..2 * d], &random(1000 * d, 6), &mut few, [2, d, 1000], false);
            (
                norm.to_bits(),
                [y, dx, dgain, ce, dhidden, dweight, out, dtable, cx, ck, few]
                    .map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
            )
        })
    };
    assert!(run(1) == run(3));
}

/// `Σ up · f(x)` differs by `h · slope` when an input moves by `h`.
fn differences(what: &str, x: &[f64], slope: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), slope.len(), "{what}");
    for i in 0..x.len() {
        let h = 1e-5;
        let mut moved = x.to_vec();
        moved[i] = x[i] + h;
        let above = f(&moved);
        moved[i] = x[i] - h;
        let got = (above - f(&moved)) / (2.0 * h);
        assert!((got - slope[i]).abs() <= 1e-7 * (1.0 + slope[i].abs()), "{what}[{i}]: {got}, not {}", slope[i]);
    }
}

#[test]
fn references_agree_with_central_differences() {
    let weigh = |up: &[f64], y: &[f64]| up.iter().zip(y).map(|(u, y)| u * y).sum::<f64>();
    for x in wide(&random(20, 1)) {
        differences("sigmoid", &[x], &[naive::sigmoid_slope(x)], |x| naive::sigmoid(x[0]));
        differences("softplus", &[x], &[naive::sigmoid(x)], |x| naive::softplus(x[0]));
        differences("clip gate", &[x], &[naive::clip_gate_slope(x)], |x| naive::clip_gate(x[0]));
        differences("gelu", &[x], &[naive::gelu_slope(x)], |x| naive::gelu(x[0]));
        let (dg, du) = naive::swiglu_slopes(x, 0.7);
        differences("swiglu", &[x, 0.7], &[dg, du], |x| naive::swiglu(x[0], x[1]));
    }
    let (n, d) = (3, 5);
    let (x, gain, up) = (wide(&random(n * d, 2)), wide(&random(d, 3)), wide(&random(n * d, 4)));
    let (dx, dgain) = naive::rms_backward(&x, &gain, 1e-5, &up);
    differences("rms dx", &x, &dx, |x| weigh(&up, &naive::rms(x, &gain, 1e-5)));
    differences("rms dgain", &gain, &dgain, |g| weigh(&up, &naive::rms(&x, g, 1e-5)));

    let sizes = [3, 4, 5];
    let (x, w, up) = (wide(&random(12, 5)), wide(&random(20, 6)), wide(&random(15, 7)));
    let (dx, dw) = naive::linear_backward(&x, &w, &up, sizes);
    differences("linear dx", &x, &dx, |x| weigh(&up, &naive::linear(x, &w, sizes)));
    differences("linear dw", &w, &dw, |w| weigh(&up, &naive::linear(&x, w, sizes)));

    let (targets, weights) = ([3, IGNORE, 0], [0.5, 1.0, 0.2]);
    let found = naive::loss(&x, &w, &targets, &weights, 4);
    differences("loss dhidden", &x, &found.dhidden, |x| naive::loss(x, &w, &targets, &weights, 4).loss);
    differences("loss dweight", &w, &found.dweight, |w| naive::loss(&x, w, &targets, &weights, 4).loss);

    let layouts = [Rope::None, Rope::Half, Rope::Interleaved];
    for layout in layouts {
        let (x, up) = (wide(&random(24, 8)), wide(&random(24, 9)));
        let turn = |x: &[f64], inverse| naive::rotate(layout, 100.0, 5, x, [1, 2, 2, 6], inverse);
        differences("rotate", &x, &turn(&up, true), |x| weigh(&up, &turn(x, false)));
    }

    let shape = Shape { b: 2, t: 6, d: 2, width: 4 };
    let (x, kernel, up) = (wide(&random(24, 10)), wide(&random(8, 11)), wide(&random(24, 12)));
    let reset = [0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0];
    let (dx, dk) = naive::conv_backward(shape, &x, &kernel, Some(&reset), &up);
    differences("conv dx", &x, &dx, |x| weigh(&up, &naive::conv(shape, x, &kernel, Some(&reset))));
    differences("conv dkernel", &kernel, &dk, |k| weigh(&up, &naive::conv(shape, &x, k, Some(&reset))));
}
