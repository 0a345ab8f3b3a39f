//! The whole Infini-attention over all segments: training shapes, and plain causal attention.
//!
//! Throughput counts the operations of the mathematics (causal half, window, reads and writes), not those
//! of recomputation.

use criterion::{Criterion, Throughput};
use infini_kernels::attention::{Grads, Inputs, Outputs, Saved, Upstream, backward, forward, scratch_len};
use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::local::Angles;
use infini_kernels::naive::attention as naive;
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings, rope};

use crate::{nan, random, verify, wide};

pub fn benches(c: &mut Criterion) {
    let memory = |rule| Settings {
        rule,
        features: if rule == Rule::SeqDelta { Features::L2 } else { Features::Elu1 },
        mix: Mix::Head,
        rope: Rope::Half,
        theta: 10_000.0,
        segment_len: 64,
        span: 2,
        lag: 1,
        final_state: FinalState::Closed,
    };
    for (rule, name) in [(Rule::Linear, "linear"), (Rule::Delta, "delta"), (Rule::SeqDelta, "seqdelta")] {
        for (b, t) in [(16, 256), (8, 512)] {
            bench(c, &format!("{name}_{b}x{t}x4x32"), &memory(rule), [b, t, 4, 32]);
        }
    }
    let plain = Settings { mix: Mix::Add, segment_len: 512, span: 1, lag: 0, ..memory(Rule::Linear) };
    bench(c, "plain_4x512x4x64", &plain, [4, 512, 4, 64]);
}

/// Multiply-adds of the forward pass.
fn multiplications(s: &Settings, [b, t, h, d]: [usize; 4], memory: bool) -> usize {
    let seen: usize = (0..t).map(|t| t + 1 - (t / s.segment_len + 1).saturating_sub(s.span) * s.segment_len).sum();
    let states = if memory { t * 2 * d * d } else { 0 };
    b * h * (seen * 2 * d + states)
}

/// Gradients, and which of them the settings have.
struct Buffers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    w: Option<Vec<f32>>,
    a: Option<Vec<f32>>,
    c: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
}

impl Buffers {
    fn grads(&mut self, [b, t, h, d]: [usize; 4]) -> Grads<'_> {
        Grads {
            q: HeadsMut::dense(&mut self.q, b, t, h, d),
            k: HeadsMut::dense(&mut self.k, b, t, h, d),
            v: HeadsMut::dense(&mut self.v, b, t, h, d),
            w: self.w.as_deref_mut(),
            a: self.a.as_deref_mut(),
            c: self.c.as_deref_mut(),
            beta: self.beta.as_deref_mut(),
            gate: None,
            fmap_w: None,
            m0: None,
            z0: None,
        }
    }
}

fn bench(c: &mut Criterion, name: &str, s: &Settings, shape @ [b, t, h, d]: [usize; 4]) {
    let n = b * t * h * d;
    let memory = s.mix != Mix::Add;
    let decays = memory && s.rule == Rule::SeqDelta;
    let slot = memory && !decays;
    let [q, k, v, dy] = [1, 2, 3, 4].map(|seed| random(n, seed));
    let w = memory.then(|| random(b * t * h, 5).iter().map(|w| 0.5 + 0.5 * w).collect::<Vec<_>>());
    let a = decays.then(|| random(b * t * h, 6).iter().map(|a| 0.95 + 0.05 * a).collect::<Vec<_>>());
    let null = slot.then(|| vec![1.0; h]);
    let beta = memory.then(|| random(h, 7));
    let table = rope::Table::new(&rope::frequencies(s.theta, d), 0, t);
    let heads = |x| Heads::dense(x, b, t, h, d);
    let x = Inputs {
        q: heads(&q),
        k: heads(&k),
        v: heads(&v),
        w: w.as_deref(),
        a: a.as_deref(),
        c: null.as_deref(),
        beta: beta.as_deref(),
        gate: None,
        fmap_w: None,
        reset: None,
        m0: None,
        z0: None,
        angles: Some(Angles { cos: &table.cos, sin: &table.sin }),
    };
    let up = Upstream { y: heads(&dy), m: None, z: None };
    let mut scratch = nan(scratch_len(s, &x, rayon::current_num_threads()));
    let (mut y, mut saved) = (nan(n), Saved::default());
    let like = |x: &Option<Vec<f32>>| x.as_ref().map(|x| nan(x.len()));
    let mut g =
        Buffers { q: nan(n), k: nan(n), v: nan(n), w: like(&w), a: like(&a), c: like(&null), beta: like(&beta) };
    let run_forward = |y: &mut [f32], saved: &mut Saved, scratch: &mut [f32]| {
        let mut out = Outputs { y: HeadsMut::dense(y, b, t, h, d), m: None, z: None };
        forward(s, &x, &mut out, Some(saved), scratch);
    };
    run_forward(&mut y, &mut saved, &mut scratch);
    backward(s, &x, &saved, &up, &mut g.grads(shape), &mut scratch);

    let wide_or_none = |x: &Option<Vec<f32>>| x.as_deref().map_or(vec![], wide);
    let reference = naive::Inputs {
        dims: naive::Dims { b, t, h, hkv: h, d, dv: d, f: d },
        q: &wide(&q),
        k: &wide(&k),
        v: &wide(&v),
        w: &wide_or_none(&w),
        a: &wide_or_none(&a),
        c: &wide_or_none(&null),
        beta: &wide_or_none(&beta),
        gate: &[],
        fmap_w: &[],
        reset: &[],
        m0: &[],
        z0: &[],
    };
    let zeros = vec![0.0; b * h * d * d];
    let want = naive::backward(s, &reference, &wide(&dy), &zeros, &zeros[..b * h * d]);
    verify(name, &y, &naive::forward(s, &reference).y);
    for (what, got, want) in [("dq", &g.q, &want.q), ("dk", &g.k, &want.k), ("dv", &g.v, &want.v)] {
        verify(&format!("{name} {what}"), got, want);
    }
    let optional = [(&g.w, &want.w), (&g.a, &want.a), (&g.c, &want.c), (&g.beta, &want.beta)];
    for (got, want) in optional {
        if let Some(got) = got {
            verify(&format!("{name} gates"), got, want);
        }
    }

    let mut group = c.benchmark_group(name);
    let work = 2 * multiplications(s, shape, memory) as u64;
    group.throughput(Throughput::Elements(work));
    group.bench_function("forward", |bench| bench.iter(|| run_forward(&mut y, &mut saved, &mut scratch)));
    // each product of the forward pass has two gradients; the scores are computed once more
    group.throughput(Throughput::Elements(2 * work));
    group.bench_function("backward", |bench| {
        bench.iter(|| backward(s, &x, &saved, &up, &mut g.grads(shape), &mut scratch));
    });
}
