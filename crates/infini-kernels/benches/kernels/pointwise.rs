//! Everything but attention, at the sizes of small language models (width 128 to 576).

use criterion::{Criterion, Throughput};
use infini_kernels::conv::Shape;
use infini_kernels::loss::Head;
use infini_kernels::naive::pointwise as naive;
use infini_kernels::optim::AdamW;
use infini_kernels::{Rope, activation, conv, embedding, linear, loss, norm, optim, rope};

use crate::{nan, random, verify, wide};

pub fn benches(c: &mut Criterion) {
    norms(c, 2048, 256);
    rotation(c);
    activations(c);
    for sizes in [[1, 256, 1024], [4, 576, 1536], [2048, 256, 768], [2048, 576, 1536]] {
        linears(c, sizes);
    }
    heads(c, 2048, 256, 1024);
    heads(c, 256, 576, 16384);
    embeddings(c);
    convolution(c);
    optimiser(c);
}

/// Bytes of `n` floats that a kernel moves.
fn floats(n: usize) -> Throughput {
    Throughput::Bytes(4 * n as u64)
}

/// Multiply-adds, counted as two operations: criterion's "elements" are floating-point operations.
fn operations(n: usize) -> Throughput {
    Throughput::Elements(2 * n as u64)
}

fn norms(c: &mut Criterion, n: usize, d: usize) {
    let (x, gain, dy) = (random(n * d, 1), random(d, 2), random(n * d, 3));
    let (mut y, mut inv, mut dx, mut dgain) = (nan(n * d), nan(n), nan(n * d), nan(d));
    let mut scratch = nan(norm::rms_backward_scratch(n, d));
    norm::rms_forward(&x, &gain, 1e-5, &mut y, &mut inv);
    norm::rms_backward(&x, &gain, &inv, &dy, &mut dx, &mut dgain, &mut scratch);
    let eps = f64::from(1e-5f32);
    verify("rms", &y, &naive::rms(&wide(&x), &wide(&gain), eps));
    let want = naive::rms_backward(&wide(&x), &wide(&gain), eps, &wide(&dy));
    verify("rms dx", &dx, &want.0);
    verify("rms dgain", &dgain, &want.1);
    let mut g = c.benchmark_group(format!("rms_{n}x{d}"));
    g.throughput(floats(2 * n * d));
    g.bench_function("forward", |b| b.iter(|| norm::rms_forward(&x, &gain, 1e-5, &mut y, &mut inv)));
    g.throughput(floats(3 * n * d));
    g.bench_function("backward", |b| {
        b.iter(|| norm::rms_backward(&x, &gain, &inv, &dy, &mut dx, &mut dgain, &mut scratch));
    });
}

fn rotation(c: &mut Criterion) {
    let shape @ [b, t, h, d] = [4, 512, 4, 64];
    let table = rope::Table::new(&rope::frequencies(10_000.0, d), 0, t);
    let mut g = c.benchmark_group("rope_4x512x4x64");
    for (name, layout) in [("half", Rope::Half), ("interleaved", Rope::Interleaved)] {
        let mut x = random(b * t * h * d, 4);
        let want = naive::rotate(layout, 10_000.0, 0, &wide(&x), shape, false);
        rope::rotate(layout, &table, 0, &mut x, shape, [t * h * d, h * d, d], false);
        verify("rope", &x, &want);
        g.throughput(floats(2 * x.len()));
        g.bench_function(name, |bench| {
            bench.iter(|| rope::rotate(layout, &table, 0, &mut x, shape, [t * h * d, h * d, d], false));
        });
    }
}

fn activations(c: &mut Criterion) {
    let (n, f) = (2048, 704);
    let (h, dy) = (random(2 * n * f, 5), random(n * f, 6));
    let (mut y, mut dh) = (nan(n * f), nan(2 * n * f));
    activation::swiglu_packed_forward(&h, f, &mut y);
    activation::swiglu_packed_backward(&h, f, &dy, &mut dh);
    let wide_h = wide(&h);
    let pairs = || wide_h.chunks_exact(2 * f).flat_map(|h| h[..f].iter().zip(&h[f..]));
    verify("swiglu", &y, &pairs().map(|(g, u)| naive::swiglu(*g, *u)).collect::<Vec<_>>());
    let mut want = vec![0.0; 2 * n * f];
    for (i, ((gate, up), dy)) in pairs().zip(&dy).enumerate() {
        let (dg, du) = naive::swiglu_slopes(*gate, *up);
        let at = i / f * 2 * f + i % f;
        (want[at], want[at + f]) = (f64::from(*dy) * dg, f64::from(*dy) * du);
    }
    verify("swiglu gradient", &dh, &want);
    let mut g = c.benchmark_group("swiglu_2048x704");
    g.throughput(floats(3 * n * f));
    g.bench_function("forward", |b| b.iter(|| activation::swiglu_packed_forward(&h, f, &mut y)));
    g.throughput(floats(5 * n * f));
    g.bench_function("backward", |b| b.iter(|| activation::swiglu_packed_backward(&h, f, &dy, &mut dh)));
    drop(g);

    let n = 4096 * 512;
    let (x, dy, mut y, mut dx) = (random(n, 7), random(n, 8), nan(n), nan(n));
    activation::gelu_forward(&x, &mut y);
    activation::gelu_backward(&x, &dy, &mut dx);
    verify("gelu", &y, &x.iter().map(|x| naive::gelu(f64::from(*x))).collect::<Vec<_>>());
    let slopes = x.iter().zip(&dy).map(|(x, dy)| f64::from(*dy) * naive::gelu_slope(f64::from(*x)));
    verify("gelu gradient", &dx, &slopes.collect::<Vec<_>>());
    let mut g = c.benchmark_group("gelu_4096x512");
    g.throughput(floats(2 * n));
    g.bench_function("forward", |b| b.iter(|| activation::gelu_forward(&x, &mut y)));
    g.throughput(floats(3 * n));
    g.bench_function("backward", |b| b.iter(|| activation::gelu_backward(&x, &dy, &mut dx)));
}

fn linears(c: &mut Criterion, sizes @ [n, inp, out]: [usize; 3]) {
    let (x, w, dy) = (random(n * inp, 9), random(out * inp, 10), random(n * out, 11));
    let (mut y, mut dx, mut dw) = (nan(n * out), nan(n * inp), nan(out * inp));
    linear::forward(&x, &w, &mut y, sizes, false);
    verify("linear", &y, &naive::linear(&wide(&x), &wide(&w), sizes));
    let mut g = c.benchmark_group(format!("linear_{n}x{inp}x{out}"));
    if n <= 4 {
        // bound by reading the weights
        g.throughput(floats(out * inp));
        g.bench_function("forward", |b| b.iter(|| linear::forward(&x, &w, &mut y, sizes, false)));
        return;
    }
    linear::backward_input(&dy, &w, &mut dx, sizes, false);
    linear::backward_weight(&dy, &x, &mut dw, sizes, false);
    let want = naive::linear_backward(&wide(&x), &wide(&w), &wide(&dy), sizes);
    verify("linear dx", &dx, &want.0);
    verify("linear dw", &dw, &want.1);
    g.throughput(operations(n * inp * out));
    g.bench_function("forward", |b| b.iter(|| linear::forward(&x, &w, &mut y, sizes, false)));
    g.bench_function("input", |b| b.iter(|| linear::backward_input(&dy, &w, &mut dx, sizes, false)));
    g.bench_function("weight", |b| b.iter(|| linear::backward_weight(&dy, &x, &mut dw, sizes, false)));
}

fn heads(c: &mut Criterion, n: usize, d: usize, v: usize) {
    let (hidden, weight) = (random(n * d, 12), random(v * d, 13));
    let targets: Vec<u32> = (0..n).map(|i| (i * i % v) as u32).collect();
    let head = Head { hidden: &hidden, weight: &weight, targets: &targets, weights: None, d };
    let (mut ce, mut dhidden, mut dweight) = (nan(n), nan(n * d), nan(v * d));
    let mut scratch = nan(loss::scratch_len(n, d, v));
    let total = loss::forward_backward(&head, &mut ce, None, &mut dhidden, &mut dweight, false, &mut scratch);
    let want = naive::loss(&wide(&hidden), &wide(&weight), &targets, &vec![1.0 / n as f64; n], d);
    verify("loss", &[total], &[want.loss]);
    verify("loss dhidden", &dhidden, &want.dhidden);
    verify("loss dweight", &dweight, &want.dweight);
    let mut g = c.benchmark_group(format!("loss_{n}x{d}x{v}"));
    g.throughput(operations(n * d * v));
    g.bench_function("forward", |b| b.iter(|| loss::forward(&head, &mut ce, None, &mut scratch)));
    g.throughput(operations(3 * n * d * v));
    g.bench_function("with_gradients", |b| {
        b.iter(|| loss::forward_backward(&head, &mut ce, None, &mut dhidden, &mut dweight, false, &mut scratch));
    });
}

fn embeddings(c: &mut Criterion) {
    let (n, d, v) = (2048, 256, 1024);
    let (table, dy) = (random(v * d, 14), random(n * d, 15));
    let ids: Vec<u32> = (0..n).map(|i| (i * i % v) as u32).collect();
    let (mut out, mut dtable) = (nan(n * d), nan(v * d));
    embedding::backward(&ids, &dy, d, &mut dtable, false);
    verify("embedding", &dtable, &naive::embedding_backward(&ids, &wide(&dy), d, v));
    let mut g = c.benchmark_group("embedding_2048x256");
    g.throughput(floats(2 * n * d));
    g.bench_function("forward", |b| b.iter(|| embedding::forward(&ids, &table, d, &mut out)));
    g.throughput(floats(3 * n * d));
    g.bench_function("backward", |b| b.iter(|| embedding::backward(&ids, &dy, d, &mut dtable, false)));
}

fn convolution(c: &mut Criterion) {
    let shape = Shape { b: 16, t: 256, d: 128, width: 8 };
    let (n, d) = (shape.b * shape.t * shape.d, shape.width * shape.d);
    let (x, kernel, dy) = (random(n, 16), random(d, 17), random(n, 18));
    let (mut y, mut dx, mut dk, mut scratch) = (nan(n), nan(n), nan(d), nan(conv::backward_scratch(shape)));
    conv::forward(shape, &x, &kernel, None, None, &mut y);
    conv::backward(shape, &x, &kernel, None, &dy, &mut dx, &mut dk, &mut scratch);
    verify("conv", &y, &naive::conv(shape, &wide(&x), &wide(&kernel), None));
    let want = naive::conv_backward(shape, &wide(&x), &wide(&kernel), None, &wide(&dy));
    verify("conv dx", &dx, &want.0);
    verify("conv dkernel", &dk, &want.1);
    let mut g = c.benchmark_group("conv_16x256x128_width8");
    g.throughput(operations(8 * n));
    g.bench_function("forward", |b| b.iter(|| conv::forward(shape, &x, &kernel, None, None, &mut y)));
    g.throughput(operations(16 * n));
    g.bench_function("backward", |b| {
        b.iter(|| conv::backward(shape, &x, &kernel, None, &dy, &mut dx, &mut dk, &mut scratch));
    });
}

fn optimiser(c: &mut Criterion) {
    let n = 3_480_000;
    let set = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05 };
    let (mut p, grad, mut m, mut v) = (random(n, 19), random(n, 20), vec![0.0; n], vec![0.0; n]);
    let (mut wp, mut wm, mut wv) = (wide(&p), wide(&m), wide(&v));
    optim::adamw(&set, 1, 0.5, &mut p, &grad, &mut m, &mut v);
    naive::adamw(&set, 1, 0.5, &mut wp, &wide(&grad), &mut wm, &mut wv);
    verify("adamw", &p, &wp);
    let mut g = c.benchmark_group("adamw_3.48M");
    g.throughput(floats(7 * n));
    g.bench_function("step", |b| b.iter(|| optim::adamw(&set, 2, 1.0, &mut p, &grad, &mut m, &mut v)));
    g.throughput(floats(n));
    g.bench_function("sum_of_squares", |b| b.iter(|| optim::sum_squares(&grad)));
}
