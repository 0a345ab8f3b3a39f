//! Single kernels at the sizes of the models that `bench train` runs.

use std::time::Duration;

use infini_kernels::loss::{self, Head};
use infini_kernels::optim::{self, AdamW};
use infini_kernels::{Mix, Rule, activation, linear, norm};
use serde_json::{Value, json};

use super::clock::{Limits, Times};
use super::operands::{Attention, wave};
use crate::console::Table;

const BUDGET: Duration = Duration::from_millis(500);

/// What bounds a kernel.
enum Work {
    /// Operations.
    Flops(f64),
    /// Bytes read and written.
    Bytes(f64),
    /// Bytes read.
    Read(f64),
}

/// Times each kernel; compute-bound ones beside the gemm peak, the others beside the memory bandwidth.
pub fn run(limits: &Limits) -> (Table, Vec<Value>) {
    let mut bench = Bench {
        limits,
        table: Table::new(&["kernel", "size", "µs", "best", "rate", "of the machine's"]),
        rows: Vec::new(),
    };
    bench.linear();
    bench.attention("causal attention", Mix::Add, Rule::Linear, [4, 512, 4, 64], 512);
    bench.attention("infini attention, linear", Mix::Head, Rule::Linear, [1, 2048, 4, 64], 256);
    bench.attention("infini attention, delta", Mix::Head, Rule::Delta, [1, 2048, 4, 64], 256);
    bench.attention("infini attention, gated delta", Mix::Head, Rule::SeqDelta, [1, 2048, 4, 64], 256);
    bench.rows();
    bench.head();
    bench.optimizer();
    (bench.table, bench.rows)
}

struct Bench<'a> {
    limits: &'a Limits,
    table: Table,
    rows: Vec<Value>,
}

impl Bench<'_> {
    fn time(&mut self, name: &str, size: &str, work: Work, kernel: impl FnMut()) {
        let times = Times::measure(BUDGET, kernel);
        let (amount, share, unit, limit) = match work {
            Work::Flops(n) => (n, self.limits.of_gemm(n, times.median), "GFLOP/s", "gemm"),
            Work::Bytes(n) => (n, self.limits.of_memory(n, times.median, false), "GB/s", "copy"),
            Work::Read(n) => (n, self.limits.of_memory(n, times.median, true), "GB/s", "read"),
        };
        let rate = amount / times.median;
        self.table.row(&[
            name.into(),
            size.into(),
            format!("{:.1}", times.median * 1e6),
            format!("{:.1}", times.best * 1e6),
            format!("{:.1} {unit}", rate / 1e9),
            format!("{limit} {:.0} %", share * 100.0),
        ]);
        self.rows.push(json!({
            "kernel": name, "size": size, "seconds": times.median, "seconds_best": times.best, "rate": rate,
            "limit": limit, "of_limit": share,
        }));
    }

    /// Projections of a training step, and of one decoded token.
    fn linear(&mut self) {
        let sizes @ [n, inp, out] = [2048, 576, 1536];
        let (x, w, dy) = (wave(n * inp), wave(out * inp), wave(n * out));
        let size = format!("{n} × {inp} → {out}");
        let work = || Work::Flops(2.0 * (n * inp * out) as f64);
        let mut y = vec![0.0; n * out];
        self.time("linear", &size, work(), || linear::forward(&x, &w, &mut y, sizes, false));
        let mut dx = vec![0.0; n * inp];
        self.time("linear, input gradient", &size, work(), || linear::backward_input(&dy, &w, &mut dx, sizes, false));
        let mut dw = vec![0.0; out * inp];
        self.time("linear, weight gradient", &size, work(), || linear::backward_weight(&dy, &x, &mut dw, sizes, false));
        let (inp, out) = (4096, 4096);
        let (x, w, mut y) = (wave(inp), wave(inp * out), vec![0.0; out]);
        let work = Work::Read(4.0 * (inp * out) as f64);
        self.time("linear, one row", "1 × 4096 → 4096", work, || {
            linear::forward(&x, &w, &mut y, [1, inp, out], false)
        });
    }

    /// Forward and backward of the whole operation. Only products are counted, the backward pass as twice the forward.
    fn attention(&mut self, name: &str, mix: Mix, rule: Rule, [b, t, h, d]: [usize; 4], segment: usize) {
        let mut a = Attention::new(mix, rule, [b, t, h, d], segment);
        let size = format!("{b} × {t}, {h} heads × {d}, segment {segment}");
        let pairs: f64 = (0..t).map(|i| (i % segment + 1) as f64).sum();
        let memory = match (mix, rule) {
            (Mix::Add, _) => 0.0,
            (_, Rule::Linear) => 2.0,
            _ => 3.0,
        };
        let flops = (b * h * d) as f64 * (4.0 * pairs + memory * 2.0 * (t * d) as f64);
        self.time(name, &size, Work::Flops(flops), || a.forward());
        self.time(&format!("{name}, gradients"), &size, Work::Flops(2.0 * flops), || a.backward());
    }

    /// Elementwise work over the rows of a training step.
    fn rows(&mut self) {
        let (n, d, f) = (8192, 576, 1536);
        let size = format!("{n} × {d}");
        let floats = |k: usize| Work::Bytes((4 * k * n * d) as f64);
        let (x, dy, gain) = (wave(n * d), wave(n * d), wave(d));
        let (mut y, mut inv) = (vec![0.0; n * d], vec![0.0; n]);
        self.time("RMSNorm", &size, floats(2), || norm::rms_forward(&x, &gain, 1e-5, &mut y, &mut inv));
        let (mut dgain, mut scratch) = (vec![0.0; d], vec![0.0; norm::rms_backward_scratch(n, d)]);
        self.time("RMSNorm, gradients", &size, floats(3), || {
            norm::rms_backward(&x, &gain, &inv, &dy, &mut y, &mut dgain, &mut scratch);
        });
        let size = format!("{n} × {f}");
        let floats = |k: usize| Work::Bytes((4 * k * n * f) as f64);
        let (gate, up, dy) = (wave(n * f), wave(n * f), wave(n * f));
        let (mut y, mut dgate) = (vec![0.0; n * f], vec![0.0; n * f]);
        self.time("SwiGLU", &size, floats(3), || activation::swiglu_forward(&gate, &up, &mut y));
        self.time("SwiGLU, gradients", &size, floats(5), || {
            activation::swiglu_backward(&gate, &up, &dy, &mut dgate, &mut y);
        });
    }

    /// Head and loss with all gradients: three products.
    fn head(&mut self) {
        for (n, d, v) in [(2048, 256, 1024), (2048, 576, 32768)] {
            let (hidden, weight) = (wave(n * d), wave(v * d));
            let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
            let head = Head { hidden: &hidden, weight: &weight, targets: &targets, weights: None, d };
            let (mut losses, mut dhidden, mut dweight) = (vec![0.0; n], vec![0.0; n * d], vec![0.0; v * d]);
            let mut scratch = vec![0.0; loss::scratch_len(n, d, v)];
            let work = Work::Flops(6.0 * (n * d * v) as f64);
            self.time("head and loss, gradients", &format!("{n} × {d} → {v}"), work, || {
                loss::forward_backward(&head, &mut losses, None, &mut dhidden, &mut dweight, false, &mut scratch);
            });
        }
    }

    /// AdamW: four arrays read, three written.
    fn optimizer(&mut self) {
        let n = 24_000_000;
        let set = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let (mut p, g, mut m, mut v) = (wave(n), wave(n), vec![0.0; n], vec![0.0; n]);
        let mut step = 0;
        self.time("AdamW", &format!("{n}"), Work::Bytes(28.0 * n as f64), || {
            step += 1;
            optim::adamw(&set, step, 1.0, &mut p, &g, &mut m, &mut v);
        });
    }
}
