//! The pieces a stream is made of (window with an offset, read, write, mix) against the one-call operation,
//! and the algebra of the memory.

mod common;

use common::{Random, Recipe, settings};
use infini_kernels::attention::{self, Grads, Inputs, Outputs, Saved, Upstream};
use infini_kernels::conformance::Case;
use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::local::{self, Angles, Window};
use infini_kernels::memory::{self, Phi, State, StateMut};
use infini_kernels::rope::{Table, frequencies};
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;

/// The inputs of a case in single precision.
struct Single {
    s: Settings,
    r: Recipe,
    x: BTreeMap<String, Vec<f32>>,
    reset: Vec<u8>,
    f: usize,
    table: Table,
}

impl Single {
    fn new(r: &Recipe) -> Single {
        let case: Case = r.case();
        let f = case.dims().unwrap().f;
        let x: BTreeMap<String, Vec<f32>> =
            case.tensors.iter().map(|(n, t)| (n.clone(), t.data.iter().map(|x| *x as f32).collect())).collect();
        let reset = x.get("in.reset").map_or(Vec::new(), |r| r.iter().map(|x| *x as u8).collect());
        let table = Table::new(&frequencies(r.settings.theta, r.d), 0, r.t.max(2 * r.settings.segment_len));
        Single { s: r.settings, r: *r, x, reset, f, table }
    }
    fn get(&self, name: &str) -> Option<&[f32]> {
        self.x.get(name).map(Vec::as_slice)
    }
    fn angles(&self) -> Option<Angles<'_>> {
        (self.s.rope != Rope::None).then_some(Angles { cos: &self.table.cos, sin: &self.table.sin })
    }
    fn phi(&self) -> Phi<'_> {
        Phi { c: self.get("in.c"), fmap_w: self.get("in.fmap_w") }
    }
    fn heads(&self, name: &str, h: usize, d: usize) -> Heads<'_> {
        Heads::dense(self.get(name).unwrap(), self.r.b, self.r.t, h, d)
    }
    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            q: self.heads("in.q", self.r.h, self.r.d),
            k: self.heads("in.k", self.r.hkv, self.r.d),
            v: self.heads("in.v", self.r.hkv, self.r.dv),
            w: self.get("in.w"),
            a: self.get("in.a"),
            c: self.get("in.c"),
            beta: self.get("in.beta"),
            gate: self.get("in.gate"),
            fmap_w: self.get("in.fmap_w"),
            reset: (!self.reset.is_empty()).then_some(&self.reset),
            m0: self.get("in.M0"),
            z0: self.get("in.z0"),
            angles: self.angles(),
        }
    }
    fn state(&self) -> (Vec<f32>, Vec<f32>) {
        let n = self.r.b * self.r.hkv * self.f;
        let z = if self.s.rule == Rule::SeqDelta { 0 } else { n };
        (
            self.get("in.M0").map_or(vec![0.0; n * self.r.dv], <[f32]>::to_vec),
            self.get("in.z0").map_or(vec![0.0; z], <[f32]>::to_vec),
        )
    }
}

/// y, M, z of the one-call operation.
fn one_call(x: &Single) -> [Vec<f32>; 3] {
    let r = &x.r;
    let inputs = x.inputs();
    let (mut m, mut z) = x.state();
    let mut y = vec![f32::NAN; r.b * r.t * r.h * r.dv];
    let mut scratch = vec![f32::NAN; attention::scratch_len(&x.s, &inputs, 1)];
    let mut out = Outputs { y: HeadsMut::dense(&mut y, r.b, r.t, r.h, r.dv), m: Some(&mut m), z: Some(&mut z) };
    attention::forward(&x.s, &inputs, &mut out, None, &mut scratch);
    [y, m, z]
}

/// One kind of per-token row `[B, tokens, width]` of the buffered segments.
#[derive(Default)]
struct Buffer {
    rows: Vec<Vec<f32>>,
}

impl Buffer {
    fn push(&mut self, x: &[f32], b: usize, t: usize, from: usize, to: usize) {
        let w = x.len() / (b * t).max(1);
        self.rows.resize(b, Vec::new());
        for (i, row) in self.rows.iter_mut().enumerate() {
            row.extend_from_slice(&x[(i * t + from) * w..(i * t + to) * w]);
        }
    }
    /// Tokens `from..to` of every row as one dense array.
    fn part(&self, width: usize, from: usize, to: usize) -> Vec<f32> {
        self.rows.iter().flat_map(|r| r[from * width..to * width].iter().copied()).collect()
    }
    fn drop_front(&mut self, floats: usize) {
        self.rows.iter_mut().for_each(|r| drop(r.drain(..floats)));
    }
}

/// The streaming machine of math.md §8 on the kernels' pieces. `cuts` are the ends of its calls.
fn stream(x: &Single, cuts: &[usize]) -> [Vec<f32>; 3] {
    let (r, s, seg) = (&x.r, &x.s, x.s.segment_len);
    let (b, t, h, n, d, dv) = (r.b, r.t, r.h, r.hkv, r.d, r.dv);
    let (mut m, mut z) = x.state();
    let mut y = vec![f32::NAN; b * t * h * dv];
    let mut scratch = vec![f32::NAN; memory::scratch_len(s, d, x.f, dv, 1)];
    let ones = vec![1.0; b * t * n];
    let reset: Vec<f32> = if x.reset.is_empty() { vec![0.0; b * t] } else { x.get("in.reset").unwrap().to_vec() };
    let names = [
        (x.get("in.k").unwrap(), n * d),
        (x.get("in.v").unwrap(), n * dv),
        (x.get("in.w").unwrap(), n),
        (x.get("in.a").unwrap_or(&ones), n),
        (&reset[..], 1),
    ];
    let mut buffers: [Buffer; 5] = Default::default();
    // absolute position of the buffers' first token, a segment border; tokens of it already written
    let (mut start, mut written, mut pos) = (0, 0, 0);
    for &cut in cuts {
        while pos < cut {
            let end = cut.min((pos / seg + 1) * seg);
            let len = end - pos;
            for (buffer, (data, _)) in buffers.iter_mut().zip(&names) {
                buffer.push(data, b, t, pos, end);
            }
            let held = end - start;
            let [k, v, doc] = [0, 1, 4].map(|i: usize| buffers[i].part(names[i].1, 0, held));
            let doc: Vec<u8> = doc.iter().map(|x| *x as u8).collect();
            let q: Vec<f32> = {
                let mut new = Buffer::default();
                new.push(x.get("in.q").unwrap(), b, t, pos, end);
                new.part(h * d, 0, len)
            };
            let q = Heads::dense(&q, b, len, h, d);
            let window = Window {
                q,
                q_pos: pos,
                k: Heads::dense(&k, b, held, n, d),
                v: Heads::dense(&v, b, held, n, dv),
                k_pos: start,
                reset: Some(&doc),
                angles: x.angles(),
            };
            let (mut a_dot, mut a_mem) = (vec![f32::NAN; b * len * h * dv], vec![f32::NAN; b * len * h * dv]);
            let mut tiles = vec![f32::NAN; local::scratch_len(s, &window, 1)];
            local::forward(s, &window, &mut HeadsMut::dense(&mut a_dot, b, len, h, dv), None, &mut tiles);
            // tokens from a reset on may not read the old document's memory
            let mut allowed = vec![1u8; b * len];
            let mut new_document = vec![None; b];
            for row in 0..b {
                for i in 0..len {
                    if doc[row * held + (pos - start) + i] != 0 {
                        new_document[row] = Some(pos - start + i);
                        allowed[row * len + i..(row + 1) * len].fill(0);
                    }
                }
            }
            let state = State { m: &m, z: &z };
            let mut out = HeadsMut::dense(&mut a_mem, b, len, h, dv);
            memory::read(s, q, n, state, x.phi(), Some(&allowed), &mut out, &mut scratch);
            let gate: Option<Vec<f32>> = x.get("in.gate").map(|g| {
                let mut new = Buffer::default();
                new.push(g, b, t, pos, end);
                new.part(h, 0, len)
            });
            let mut mixed = vec![f32::NAN; b * len * h * dv];
            memory::mix(
                s.mix,
                Heads::dense(&a_mem, b, len, h, dv),
                Heads::dense(&a_dot, b, len, h, dv),
                x.get("in.beta"),
                gate.as_deref(),
                &mut HeadsMut::dense(&mut mixed, b, len, h, dv),
            );
            for row in 0..b {
                let to = (row * t + pos) * h * dv;
                y[to..to + len * h * dv].copy_from_slice(&mixed[row * len * h * dv..(row + 1) * len * h * dv]);
            }
            // a new document: its memory is empty, older tokens will not be written
            for (row, first) in new_document.into_iter().enumerate() {
                let Some(first) = first else { continue };
                m[row * n * x.f * dv..(row + 1) * n * x.f * dv].fill(0.0);
                if !z.is_empty() {
                    z[row * n * x.f..(row + 1) * n * x.f].fill(0.0);
                }
                buffers[2].rows[row][..first * n].fill(0.0);
                buffers[3].rows[row][..first * n].fill(1.0);
            }
            pos = end;
            let mut write = |buffers: &[Buffer; 5], from: usize, to: usize| {
                let [k, v, w, a] = [0, 1, 2, 3].map(|i: usize| buffers[i].part(names[i].1, from, to));
                let (k, v) = (Heads::dense(&k, b, to - from, n, d), Heads::dense(&v, b, to - from, n, dv));
                let st = StateMut { m: &mut m, z: &mut z };
                memory::write(s, k, v, Some(&w), Some(&a), st, x.phi(), &mut scratch);
            };
            if pos % seg == 0 {
                // the segment closes: write what leaves the lag, keep what the window still needs
                let due = (pos - s.lag * seg).max(written);
                if due > written {
                    write(&buffers, written - start, due - start);
                    written = due;
                }
                let keep = pos - ((s.span - 1).max(s.lag) * seg).min(pos);
                if keep > start {
                    for (buffer, (_, width)) in buffers.iter_mut().zip(&names) {
                        buffer.drop_front((keep - start) * width);
                    }
                    start = keep;
                }
            }
            if pos == t && s.final_state == FinalState::Flush {
                while written < t {
                    let to = ((written / seg + 1) * seg).min(t);
                    write(&buffers, written - start, to - start);
                    written = to;
                }
            }
        }
    }
    [y, m, z]
}

/// The metric of math.md §11.
fn error(x: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(x.len(), reference.len());
    let d = x.iter().zip(reference).fold(0.0, |m: f32, (x, r)| if (x - r).abs() <= m { m } else { (x - r).abs() });
    d / reference.iter().fold(1.0, |m: f32, r| m.max(r.abs()))
}

fn recipes() -> impl Strategy<Value = Recipe> {
    let rule = (0usize..5).prop_map(|i| {
        [
            (Rule::Linear, Features::Elu1),
            (Rule::Linear, Features::SoftmaxPair),
            (Rule::Delta, Features::Elu1),
            (Rule::Delta, Features::SoftmaxPair),
            (Rule::SeqDelta, Features::L2),
        ][i]
    });
    let heads = (0usize..3).prop_map(|i| [(1, 1), (2, 1), (4, 2)][i]);
    let layout = (0usize..9)
        .prop_map(|i| ([Mix::Head, Mix::Token, Mix::Add][i % 3], [Rope::None, Rope::Half, Rope::Interleaved][i / 3]));
    let schedule = (0usize..6).prop_map(|i| {
        let (span, lag) = [(1, 0), (2, 0), (2, 1)][i % 3];
        (span, lag, [FinalState::Closed, FinalState::Flush][i / 3])
    });
    (rule, heads, layout, schedule, (1usize..200, 1usize..90, 1usize..3, 0usize..3), any::<[bool; 3]>(), any::<u64>())
        .prop_map(
            |(
                (rule, features),
                (h, hkv),
                (mix, rope),
                (span, lag, final_state),
                (t, segment_len, b, width),
                flags,
                seed,
            )| {
                Recipe {
                    settings: Settings { rule, features, mix, rope, segment_len, span, lag, final_state, ..settings() },
                    b,
                    t,
                    h,
                    hkv,
                    d: [8, 16, 24][width],
                    dv: [12, 16, 8][width],
                    fw: 6,
                    warm: flags[0],
                    resets: flags[1],
                    null_slot: flags[2],
                    seed,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    /// Any split of the input into calls gives the result of one call.
    #[test]
    fn streaming_is_one_call(r in recipes(), seed in any::<u64>()) {
        let mut random = Random(seed);
        let mut cuts: Vec<usize> = (0..random.below(7)).map(|_| random.below(r.t + 1)).chain([r.t]).collect();
        cuts.sort_unstable();
        let x = Single::new(&r);
        for (name, (a, b)) in ["y", "M", "z"].iter().zip(stream(&x, &cuts).iter().zip(&one_call(&x))) {
            let e = error(a, b);
            prop_assert!(e <= 1e-5, "{} differs by {} for cuts {:?}", name, e, cuts);
        }
    }
}

/// The operation inside a pool of `threads`, forward and backward, on views with gaps between heads.
fn gradients(x: &Single, threads: usize, gap: usize) -> Vec<Vec<f32>> {
    let r = &x.r;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    // q, k, v inside one packed projection, as a model has them
    let widths = [(r.h, r.d), (r.hkv, r.d), (r.hkv, r.dv)];
    let row = widths.iter().map(|(h, d)| h * (d + gap)).sum::<usize>();
    let mut packed = vec![f32::NAN; r.b * r.t * row];
    let mut offsets = [0; 3];
    let mut at = 0;
    for (i, (name, (h, d))) in ["in.q", "in.k", "in.v"].iter().zip(widths).enumerate() {
        offsets[i] = at;
        for (j, x) in x.get(name).unwrap().chunks_exact(d).enumerate() {
            let to = j / h * row + at + j % h * (d + gap);
            packed[to..to + d].copy_from_slice(x);
        }
        at += h * (d + gap);
    }
    let view = |i: usize| {
        let (h, d) = widths[i];
        Heads::new(&packed[offsets[i]..], [r.b, r.t, h, d], [r.t * row, row, d + gap])
    };
    let inputs = Inputs { q: view(0), k: view(1), v: view(2), ..x.inputs() };
    let mut results: Vec<Vec<f32>> = Vec::new();
    pool.install(|| {
        let mut scratch = vec![f32::NAN; attention::scratch_len(&x.s, &inputs, threads)];
        let (mut m, mut z) = x.state();
        let mut y = vec![f32::NAN; r.b * r.t * r.h * r.dv];
        let mut saved = Saved::default();
        let mut out = Outputs { y: HeadsMut::dense(&mut y, r.b, r.t, r.h, r.dv), m: Some(&mut m), z: Some(&mut z) };
        attention::forward(&x.s, &inputs, &mut out, Some(&mut saved), &mut scratch);
        let mut g: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for n in ["q", "k", "v", "w", "a", "c", "beta", "gate", "fmap_w", "M0", "z0"] {
            g.insert(n, vec![f32::NAN; x.get(&format!("in.{n}")).map_or(0, <[f32]>::len)]);
        }
        let mut take = |n: &str| g.remove(n).unwrap();
        let (mut q, mut k, mut v) = (take("q"), take("k"), take("v"));
        let mut rest = ["w", "a", "c", "beta", "gate", "fmap_w", "M0", "z0"].map(take);
        {
            let [w, a, c, beta, gate, fmap_w, m0, z0] =
                rest.each_mut().map(|x| if x.is_empty() { None } else { Some(&mut x[..]) });
            let mut grads = Grads {
                q: HeadsMut::dense(&mut q, r.b, r.t, r.h, r.d),
                k: HeadsMut::dense(&mut k, r.b, r.t, r.hkv, r.d),
                v: HeadsMut::dense(&mut v, r.b, r.t, r.hkv, r.dv),
                w,
                a,
                c,
                beta,
                gate,
                fmap_w,
                m0,
                z0,
            };
            let up = Upstream { y: x.heads("up.y", r.h, r.dv), m: x.get("up.M"), z: x.get("up.z") };
            attention::backward(&x.s, &inputs, &saved, &up, &mut grads, &mut scratch);
        }
        results.extend([y, m, z, q, k, v]);
        results.extend(rest);
    });
    results
}

#[test]
fn neither_threads_nor_strides_change_a_bit() {
    for (rule, features) in
        [(Rule::Linear, Features::SoftmaxPair), (Rule::Delta, Features::Elu1), (Rule::SeqDelta, Features::L2)]
    {
        let x = Single::new(&Recipe {
            settings: Settings { rule, features, span: 2, lag: 1, mix: Mix::Head, segment_len: 32, ..settings() },
            b: 3,
            t: 150,
            h: 4,
            hkv: 2,
            d: 32,
            dv: 32,
            fw: 16,
            warm: true,
            resets: true,
            null_slot: true,
            seed: 3,
        });
        let alone = gradients(&x, 1, 0);
        assert!(alone.iter().flatten().all(|x| x.is_finite()));
        assert!(alone == gradients(&x, 3, 0), "{rule:?}: three threads");
        assert!(alone == gradients(&x, 2, 5), "{rule:?}: strided views");
    }
}

#[test]
fn the_window_alone_agrees_with_the_operation() {
    for (span, rope) in [(1, Rope::Half), (2, Rope::Interleaved)] {
        let r = Recipe {
            settings: Settings { span, rope, mix: Mix::Add, segment_len: 48, ..settings() },
            b: 2,
            t: 130,
            h: 4,
            hkv: 2,
            d: 16,
            dv: 24,
            fw: 0,
            warm: false,
            resets: true,
            null_slot: false,
            seed: 11,
        };
        let x = Single::new(&r);
        let w = Window {
            q: x.heads("in.q", r.h, r.d),
            q_pos: 0,
            k: x.heads("in.k", r.hkv, r.d),
            v: x.heads("in.v", r.hkv, r.dv),
            k_pos: 0,
            reset: Some(&x.reset),
            angles: x.angles(),
        };
        let mut scratch = vec![f32::NAN; local::scratch_len(&x.s, &w, 1)];
        let mut a_dot = vec![f32::NAN; r.b * r.t * r.h * r.dv];
        let mut lse = vec![f32::NAN; 2 * r.b * r.h * r.t];
        local::forward(&x.s, &w, &mut HeadsMut::dense(&mut a_dot, r.b, r.t, r.h, r.dv), Some(&mut lse), &mut scratch);
        // no memory is ever written when every token's strength is 0
        let mut silent = Single::new(&r);
        silent.x.get_mut("in.w").unwrap().fill(0.0);
        silent.x.get_mut("up.M").unwrap().fill(0.0);
        silent.x.get_mut("up.z").unwrap().fill(0.0);
        let all = gradients(&silent, 1, 0);
        assert_eq!(a_dot, all[0], "y");
        let (mut dq, mut dk, mut dv) =
            (vec![f32::NAN; all[3].len()], vec![f32::NAN; all[4].len()], vec![f32::NAN; all[5].len()]);
        local::backward(
            &x.s,
            &w,
            Heads::dense(&a_dot, r.b, r.t, r.h, r.dv),
            &lse,
            x.heads("up.y", r.h, r.dv),
            &mut HeadsMut::dense(&mut dq, r.b, r.t, r.h, r.d),
            &mut HeadsMut::dense(&mut dk, r.b, r.t, r.hkv, r.d),
            &mut HeadsMut::dense(&mut dv, r.b, r.t, r.hkv, r.dv),
            &mut scratch,
        );
        for (name, (a, b)) in ["dq", "dk", "dv"].iter().zip([&dq, &dk, &dv].iter().zip(&all[3..6])) {
            assert!(error(a, b) < 1e-6, "{name}: {}", error(a, b));
        }
    }
}

/// M, z after writing segments `order` of a case, from an empty or given state.
fn write_segments(x: &Single, order: &[usize], m: &mut [f32], z: &mut [f32]) {
    let (r, seg) = (&x.r, x.s.segment_len);
    assert_eq!(r.b, 1);
    let mut scratch = vec![f32::NAN; memory::scratch_len(&x.s, r.d, x.f, r.dv, 1)];
    for &j in order {
        let rows = |name: &str, width: usize| &x.get(name).unwrap()[j * seg * width..(j + 1) * seg * width];
        memory::write(
            &x.s,
            Heads::dense(rows("in.k", r.hkv * r.d), 1, seg, r.hkv, r.d),
            Heads::dense(rows("in.v", r.hkv * r.dv), 1, seg, r.hkv, r.dv),
            Some(rows("in.w", r.hkv)),
            x.get("in.a").map(|_| rows("in.a", r.hkv)),
            StateMut { m, z },
            x.phi(),
            &mut scratch,
        );
    }
}

fn segments(rule: Rule, features: Features) -> Single {
    Single::new(&Recipe {
        settings: Settings { rule, features, segment_len: 16, ..settings() },
        b: 1,
        t: 64,
        h: 1,
        hkv: 1,
        d: 16,
        dv: 16,
        fw: 8,
        warm: true,
        resets: false,
        null_slot: false,
        seed: 21,
    })
}

#[test]
fn the_order_of_segments_is_nothing_to_a_linear_memory() {
    let x = segments(Rule::Linear, Features::Elu1);
    let (mut m, mut z) = x.state();
    write_segments(&x, &[0, 1, 2, 3], &mut m, &mut z);
    let (mut m2, mut z2) = x.state();
    write_segments(&x, &[2, 0, 3, 1], &mut m2, &mut z2);
    assert!(error(&m2, &m) < 1e-6 && error(&z2, &z) < 1e-6);
}

/// A segment's write as an affine map of M, found column by column: M' = A M + B, (9) and (11).
fn affine(x: &Single, j: usize, z: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (f, dv) = (x.f, x.r.dv);
    let apply = |m: Vec<f32>| {
        let (mut m, mut z) = (m, z.to_vec());
        write_segments(x, &[j], &mut m, &mut z);
        m
    };
    let b = apply(vec![0.0; f * dv]);
    let mut a = vec![0.0; f * f];
    for i in 0..f {
        let mut unit = vec![0.0; f * dv];
        unit[i * dv] = 1.0;
        let image = apply(unit);
        for o in 0..f {
            a[o * f + i] = f64::from(image[o * dv] - b[o * dv]);
        }
    }
    (a, b.iter().map(|x| f64::from(*x)).collect())
}

fn product(a: &[f64], b: &[f64], f: usize) -> Vec<f64> {
    let n = b.len() / f;
    let mut c = vec![0.0; f * n];
    for i in 0..f {
        for p in 0..f {
            for j in 0..n {
                c[i * n + j] += a[i * f + p] * b[p * n + j];
            }
        }
    }
    c
}

#[test]
fn affine_maps_of_segments_compose_to_the_sequential_state() {
    for (rule, features) in [(Rule::Delta, Features::Elu1), (Rule::SeqDelta, Features::L2)] {
        let x = segments(rule, features);
        let f = x.f;
        let (mut m, mut z) = x.state();
        let start: Vec<f64> = m.iter().map(|x| f64::from(*x)).collect();
        let mut whole: Option<(Vec<f64>, Vec<f64>)> = None;
        for j in 0..4 {
            // (12), with z_j from its own prefix sum
            let (a, b) = affine(&x, j, &z);
            whole = Some(match whole {
                None => (a, b),
                Some((a1, b1)) => {
                    let moved = product(&a, &b1, f);
                    (product(&a, &a1, f), moved.iter().zip(&b).map(|(x, y)| x + y).collect())
                }
            });
            write_segments(&x, &[j], &mut m, &mut z);
        }
        let (a, b) = whole.unwrap();
        let composed: Vec<f32> = product(&a, &start, f).iter().zip(&b).map(|(x, y)| (x + y) as f32).collect();
        assert!(error(&composed, &m) < 1e-5, "{rule:?}: {}", error(&composed, &m));
    }
}
