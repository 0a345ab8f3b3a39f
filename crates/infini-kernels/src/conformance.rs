//! Golden cases: inputs, outputs and gradients computed by another implementation, compared tensor by
//! tensor with the f64 reference and with the f32 kernels (math.md §11).
//!
//! No files here: the caller parses them. Names are those of the files: `in.q`, `out.y`, `up.y`,
//! `grad.q`, `aux.M_states`, …

use crate::naive::attention as naive;
use crate::{Rope, Rule, Settings, attention, heads, local, rope};
use std::collections::BTreeMap;

/// A dense tensor of a golden file, of any element type, widened to f64.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

/// One golden file of kind `op`.
#[derive(Clone, Debug)]
pub struct Case {
    /// The settings of the operation.
    pub settings: Settings,
    /// Every tensor by its name in the file.
    pub tensors: BTreeMap<String, Tensor>,
    /// What a plain single-precision implementation loses in the gradients of this case
    /// (`f32_err_grad` of the file): eight times that is granted where it exceeds [`F32_BOUND`].
    pub f32_err_grad: f64,
}

/// Bound on the error of f64 results.
pub const F64_BOUND: f64 = 1e-10;
/// Bound on the error of f32 results.
pub const F32_BOUND: f64 = 1e-5;

/// The error of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// Its name in the file.
    pub tensor: String,
    /// `max |x − ref| / max(1, max |ref|)`, infinite if the lengths differ or x is not finite.
    pub error: f64,
    /// Root mean square of the error over that of the reference (over 1 if that is smaller).
    pub rms: f64,
    /// What is allowed of `error`.
    pub bound: f64,
}

impl Deviation {
    /// Whether the error is within its bound.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

/// `max |x − ref| / max(1, max |ref|)` (math.md §11).
pub fn error(x: &[f64], reference: &[f64]) -> f64 {
    if x.len() != reference.len() || x.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let d = x.iter().zip(reference).fold(0.0, |m: f64, (x, r)| m.max((x - r).abs()));
    d / reference.iter().fold(1.0, |m: f64, r| m.max(r.abs()))
}

/// Root mean square of the error over that of the reference, or over 1; infinite as [`error`].
pub fn rms(x: &[f64], reference: &[f64]) -> f64 {
    if x.len() != reference.len() || x.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let (d, r) = x.iter().zip(reference).fold((0.0, 0.0), |(d, s), (x, r)| (d + (x - r) * (x - r), s + r * r));
    let n = x.len().max(1) as f64;
    (d / n).sqrt() / (r / n).sqrt().max(1.0)
}

const INPUTS: [&str; 11] = ["q", "k", "v", "w", "a", "c", "beta", "gate", "fmap_w", "M0", "z0"];

impl Case {
    fn data(&self, name: &str) -> &[f64] {
        self.tensors.get(name).map_or(&[], |t| &t.data)
    }

    fn shape4(&self, name: &str) -> Result<[usize; 4], String> {
        let t = self.tensors.get(name).ok_or(format!("tensor missing: {name}: the file is no golden op file"))?;
        <[usize; 4]>::try_from(&t.shape[..]).map_err(|_| format!("wrong shape {:?}: {name}: expected 4 axes", t.shape))
    }

    /// The sizes, with the shape of every input checked against them.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn dims(&self) -> Result<naive::Dims, String> {
        let ([b, t, h, d], [.., hkv, _], [.., dv]) = (self.shape4("in.q")?, self.shape4("in.k")?, self.shape4("in.v")?);
        let fw = self.tensors.get("in.fmap_w").and_then(|w| w.shape.last().copied()).unwrap_or(0);
        let f = crate::features::width(self.settings.features, d, fw);
        if hkv == 0 || h % hkv != 0 || self.settings.segment_len == 0 {
            return Err(format!("heads {h}/{hkv}, segment {}: in.q: must divide", self.settings.segment_len));
        }
        let seq = self.settings.rule == Rule::SeqDelta;
        for (name, shape) in [
            ("q", vec![b, t, h, d]),
            ("k", vec![b, t, hkv, d]),
            ("v", vec![b, t, hkv, dv]),
            ("w", vec![b, t, hkv]),
            ("a", vec![b, t, hkv]),
            ("c", vec![hkv]),
            ("beta", vec![h]),
            ("gate", vec![b, t, h]),
            ("fmap_w", vec![hkv, d, fw]),
            ("M0", vec![b, hkv, f, dv]),
            ("z0", vec![b, hkv, f]),
            ("reset", vec![b, t]),
        ] {
            if let Some(x) = self.tensors.get(&format!("in.{name}"))
                && (x.shape != shape || x.data.len() != shape.iter().product::<usize>())
            {
                return Err(format!("wrong shape {:?}: in.{name}: expected {shape:?}", x.shape));
            }
        }
        let needed = match self.settings.mix {
            crate::Mix::Head => "in.beta",
            crate::Mix::Token => "in.gate",
            crate::Mix::Add | crate::Mix::Memory => "in.q",
        };
        for name in [needed, "up.y", "up.M"].into_iter().chain((!seq).then_some("up.z")) {
            if !self.tensors.contains_key(name) {
                return Err(format!("tensor missing: {name}: the settings need it"));
            }
        }
        for (name, len) in [("up.y", b * t * h * dv), ("up.M", b * hkv * f * dv), ("up.z", b * hkv * f)] {
            if self.tensors.get(name).is_some_and(|x| x.data.len() != len) {
                return Err(format!("wrong length: {name}: expected {len} elements"));
            }
        }
        Ok(naive::Dims { b, t, h, hkv, d, dv, f })
    }

    /// Replaces every expected tensor by what the f64 reference computes, to compare other inputs than the
    /// golden files' with it.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn expect_reference(&mut self) -> Result<(), String> {
        let found = reference(self)?;
        self.tensors.retain(|n, _| n.starts_with("in.") || n.starts_with("up."));
        for (n, data) in found {
            let input = n.strip_prefix("grad.").map(|n| format!("in.{n}"));
            // an absent input has no gradient, an absent state no value
            if !data.is_empty() && input.is_none_or(|i| self.tensors.contains_key(&i)) {
                self.tensors.insert(n, Tensor { shape: vec![data.len()], data });
            }
        }
        Ok(())
    }

    fn reset(&self) -> Vec<u8> {
        self.data("in.reset").iter().map(|x| u8::from(*x != 0.0)).collect()
    }

    /// Compares every expected tensor that the file holds with what was computed, by the file's names.
    fn compare(&self, found: &BTreeMap<String, Vec<f64>>, bound: impl Fn(&str) -> f64) -> Vec<Deviation> {
        let expected = self.tensors.iter().filter(|(n, _)| ["out.", "grad.", "aux."].iter().any(|p| n.starts_with(p)));
        let none = Vec::new();
        expected
            .map(|(n, t)| Deviation {
                tensor: n.clone(),
                error: error(found.get(n).unwrap_or(&none), &t.data),
                rms: rms(found.get(n).unwrap_or(&none), &t.data),
                bound: bound(n),
            })
            .collect()
    }
}

/// Everything the f64 reference computes from the inputs of a case, by the file's names.
fn reference(case: &Case) -> Result<BTreeMap<String, Vec<f64>>, String> {
    let (dims, reset) = (case.dims()?, case.reset());
    let s = &case.settings;
    let x = naive::Inputs {
        dims,
        q: case.data("in.q"),
        k: case.data("in.k"),
        v: case.data("in.v"),
        w: case.data("in.w"),
        a: case.data("in.a"),
        c: case.data("in.c"),
        beta: case.data("in.beta"),
        gate: case.data("in.gate"),
        fmap_w: case.data("in.fmap_w"),
        reset: &reset,
        m0: case.data("in.M0"),
        z0: case.data("in.z0"),
    };
    let out = naive::forward(s, &x);
    let g = naive::backward(s, &x, case.data("up.y"), case.data("up.M"), case.data("up.z"));
    let mut states = (Vec::new(), Vec::new());
    let rows: Vec<_> = (0..dims.b * dims.hkv).map(|i| naive::states(s, &x, i / dims.hkv, i % dims.hkv)).collect();
    for j in 0..rows.first().map_or(0, Vec::len) {
        for r in &rows {
            states.0.extend_from_slice(&r[j].m);
            states.1.extend_from_slice(&r[j].z);
        }
    }
    let mut found = BTreeMap::new();
    for (n, x) in [("y", out.y), ("a_mem", out.a_mem), ("a_dot", out.a_dot), ("M", out.m), ("z", out.z)] {
        found.insert(format!("out.{n}"), x);
    }
    for (n, x) in INPUTS.into_iter().zip([g.q, g.k, g.v, g.w, g.a, g.c, g.beta, g.gate, g.fmap_w, g.m0, g.z0]) {
        found.insert(format!("grad.{n}"), x);
    }
    found.insert("aux.M_states".into(), states.0);
    found.insert("aux.z_states".into(), states.1);
    Ok(found)
}

/// The f64 reference on a golden case: every output, state and gradient the file holds.
///
/// # Errors
/// A missing or misshapen tensor, by name.
pub fn check_reference(case: &Case) -> Result<Vec<Deviation>, String> {
    Ok(case.compare(&reference(case)?, |_| F64_BOUND))
}

/// The f32 kernels on a golden case, at the [`simd::level`](crate::simd::level) in force: every output,
/// state and gradient the file holds. Outputs are filled with NaN first.
///
/// # Errors
/// A missing or misshapen tensor, by name.
pub fn check_kernels(case: &Case) -> Result<Vec<Deviation>, String> {
    let (z, reset) = (case.dims()?, case.reset());
    let s = &case.settings;
    let seq = s.rule == Rule::SeqDelta;
    let single: BTreeMap<&str, Vec<f32>> =
        case.tensors.iter().map(|(n, t)| (n.as_str(), t.data.iter().map(|x| *x as f32).collect())).collect();
    let get = |n: &str| single.get(n).map(Vec::as_slice);
    let heads = |n: &str, h: usize, d: usize| heads::Heads::dense(get(n).unwrap_or(&[]), z.b, z.t, h, d);
    let table = rope::Table::new(&rope::frequencies(s.theta, z.d), 0, z.t);
    let x = attention::Inputs {
        q: heads("in.q", z.h, z.d),
        k: heads("in.k", z.hkv, z.d),
        v: heads("in.v", z.hkv, z.dv),
        w: get("in.w"),
        a: get("in.a"),
        c: get("in.c"),
        beta: get("in.beta"),
        gate: get("in.gate"),
        fmap_w: get("in.fmap_w"),
        reset: (!reset.is_empty()).then_some(&reset),
        m0: get("in.M0"),
        z0: get("in.z0"),
        angles: (s.rope != Rope::None).then_some(local::Angles { cos: &table.cos, sin: &table.sin }),
    };
    let nan = |n: usize| vec![f32::NAN; n];
    let mut scratch = nan(attention::scratch_len(s, &x, rayon::current_num_threads()));
    let mut saved = attention::Saved::default();
    let z_len = if seq { 0 } else { z.b * z.hkv * z.f };
    let (mut y, mut m, mut zz) = (nan(z.b * z.t * z.h * z.dv), nan(z.b * z.hkv * z.f * z.dv), nan(z_len));
    let mut out = attention::Outputs {
        y: heads::HeadsMut::dense(&mut y, z.b, z.t, z.h, z.dv),
        m: Some(&mut m),
        z: (!seq).then_some(&mut zz[..]),
    };
    attention::forward(s, &x, &mut out, Some(&mut saved), &mut scratch);
    scratch.fill(f32::NAN);
    let lengths = INPUTS.map(|n| get(&format!("in.{n}")).map_or(0, <[_]>::len));
    let mut grads = lengths.map(nan);
    {
        let [q, k, v, w, a, c, beta, gate, fmap_w, m0, z0] = &mut grads;
        let present = |g| Some(g).filter(|g: &&mut Vec<f32>| !g.is_empty()).map(|g| &mut g[..]);
        let mut g = attention::Grads {
            q: heads::HeadsMut::dense(q, z.b, z.t, z.h, z.d),
            k: heads::HeadsMut::dense(k, z.b, z.t, z.hkv, z.d),
            v: heads::HeadsMut::dense(v, z.b, z.t, z.hkv, z.dv),
            w: present(w),
            a: present(a),
            c: present(c),
            beta: present(beta),
            gate: present(gate),
            fmap_w: present(fmap_w),
            m0: present(m0),
            z0: present(z0),
        };
        let up = attention::Upstream {
            y: heads("up.y", z.h, z.dv),
            m: get("up.M"),
            z: if seq { None } else { get("up.z") },
        };
        attention::backward(s, &x, &saved, &up, &mut g, &mut scratch);
    }
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    // [B, H, T, Dv] → [B, T, H, Dv]
    let by_token = |x: &[f32]| {
        let mut out = Vec::new();
        for (b, t) in (0..z.b).flat_map(|b| (0..z.t).map(move |t| (b, t))) {
            for h in 0..z.h {
                let i = ((b * z.h + h) * z.t + t) * z.dv;
                out.extend(x.get(i..i + z.dv).map_or(vec![0.0; z.dv], wide));
            }
        }
        out
    };
    let mut found = BTreeMap::new();
    for (n, x) in INPUTS.into_iter().zip(&grads) {
        found.insert(format!("grad.{n}"), wide(x));
    }
    found.insert("out.y".into(), wide(&y));
    found.insert("out.M".into(), wide(&m));
    found.insert("out.z".into(), wide(&zz));
    found.insert("out.a_mem".into(), by_token(saved.a_mem()));
    found.insert("out.a_dot".into(), by_token(saved.a_dot()));
    let (mut ms, mut zs) = (Vec::new(), Vec::new());
    let len = z.f * (z.dv + 1);
    for j in 0..saved.state_count() {
        for row in saved.states().chunks_exact(saved.state_count() * len) {
            let (m, z) = row[j * len..(j + 1) * len].split_at(z.f * z.dv);
            ms.extend(wide(m));
            zs.extend(wide(z));
        }
    }
    found.insert("aux.M_states".into(), ms);
    found.insert("aux.z_states".into(), zs);
    Ok(case
        .compare(&found, |n| if n.starts_with("grad.") { F32_BOUND.max(8.0 * case.f32_err_grad) } else { F32_BOUND }))
}
