//! Random cases of Infini-attention.

#![allow(dead_code)] // each test file uses a part of it

use infini_kernels::conformance::{Case, Tensor};
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings, features};
use std::collections::BTreeMap;

/// A fixed sequence of numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    /// In 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// In lo..hi, exactly representable in f32.
    pub fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        let u = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        f64::from((lo + (hi - lo) * u) as f32)
    }
    /// About normal, exactly representable in f32.
    pub fn normal(&mut self) -> f64 {
        let s: f64 = (0..12).map(|_| self.uniform(0.0, 1.0)).sum();
        f64::from((s - 6.0) as f32)
    }
}

/// What a random case is made from.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub settings: Settings,
    pub b: usize,
    pub t: usize,
    pub h: usize,
    pub hkv: usize,
    pub d: usize,
    pub dv: usize,
    /// Half the feature width of the softmax pair.
    pub fw: usize,
    pub warm: bool,
    pub resets: bool,
    pub null_slot: bool,
    pub seed: u64,
}

pub fn settings() -> Settings {
    Settings {
        rule: Rule::Linear,
        features: Features::Elu1,
        mix: Mix::Head,
        rope: Rope::Half,
        theta: 10_000.0,
        segment_len: 64,
        span: 1,
        lag: 0,
        final_state: FinalState::Closed,
    }
}

impl Recipe {
    /// Inputs and upstream gradients; nothing expected yet.
    pub fn case(&self) -> Case {
        let (s, mut r) = (self.settings, Random(self.seed));
        let (b, t, h, n, d, dv) = (self.b, self.t, self.h, self.hkv, self.d, self.dv);
        let seq = s.rule == Rule::SeqDelta;
        let f = features::width(s.features, d, self.fw);
        let mut tensors = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize], x: &mut dyn FnMut() -> f64| {
            let data = (0..shape.iter().product()).map(|_| x()).collect();
            tensors.insert(name.to_string(), Tensor { shape: shape.to_vec(), data });
        };
        add("in.q", &[b, t, h, d], &mut || r.normal());
        add("in.k", &[b, t, n, d], &mut || r.normal());
        add("in.v", &[b, t, n, dv], &mut || r.normal());
        add("in.w", &[b, t, n], &mut || r.uniform(0.05, 0.95));
        if seq {
            add("in.a", &[b, t, n], &mut || r.uniform(0.7, 1.0));
        } else {
            let c = if self.null_slot { 0.5 } else { 0.0 };
            add("in.c", &[n], &mut || c);
        }
        match s.mix {
            Mix::Head => add("in.beta", &[h], &mut || r.normal()),
            Mix::Token => add("in.gate", &[b, t, h], &mut || r.normal()),
            Mix::Add | Mix::Memory => {}
        }
        if s.features == Features::SoftmaxPair {
            add("in.fmap_w", &[n, d, self.fw], &mut || 0.5 * r.normal());
        }
        if self.resets {
            add("in.reset", &[b, t], &mut || f64::from(u8::from(r.below(23) == 0)));
        }
        // a memory as some writes would have left it
        let scale = if self.warm { 4.0 } else { 0.0 };
        add("in.M0", &[b, n, f, dv], &mut || scale * 0.25 * r.normal());
        if !seq {
            add("in.z0", &[b, n, f], &mut || scale * r.uniform(0.5, 1.5));
        }
        add("up.y", &[b, t, h, dv], &mut || r.normal());
        add("up.M", &[b, n, f, dv], &mut || r.normal());
        if !seq {
            add("up.z", &[b, n, f], &mut || r.normal());
        }
        if !self.warm {
            // an absent state is an empty one
            tensors.remove("in.M0");
            tensors.remove("in.z0");
        }
        Case { settings: s, tensors, f32_err_grad: 0.0 }
    }
}
