//! Numbers to compute with, and one Infini-attention with all its buffers.

use infini_kernels::attention::{self, Grads, Inputs, Outputs, Saved, Upstream};
use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::local::Angles;
use infini_kernels::rope;
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};

/// `n` numbers between −1 and 1 without a pattern.
pub fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f64 * 1.618_034 + (i as f64 * 0.01).sin() * 3.0).sin() as f32).collect()
}

/// Inputs, outputs, gradients and scratch of one operation; as many key/value heads as query heads.
pub struct Attention {
    pub settings: Settings,
    pub shape: [usize; 4],
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub dy: Vec<f32>,
    pub beta: Vec<f32>,
    pub decay: Vec<f32>,
    pub y: Vec<f32>,
    pub dq: Vec<f32>,
    pub dk: Vec<f32>,
    pub dv: Vec<f32>,
    pub dbeta: Vec<f32>,
    angles: rope::Table,
    saved: Saved,
    scratch: Vec<f32>,
}

impl Attention {
    /// `shape` is `[B, T, H, D]`; with [`Mix::Add`] there is no memory.
    pub fn new(mix: Mix, rule: Rule, shape: [usize; 4], segment_len: usize) -> Attention {
        let [b, t, h, d] = shape;
        let n = b * t * h * d;
        let features = if rule == Rule::SeqDelta { Features::L2 } else { Features::Elu1 };
        let settings = Settings {
            rule,
            features,
            mix,
            rope: Rope::Half,
            theta: 1e4,
            segment_len,
            span: 1,
            lag: 0,
            final_state: FinalState::Closed,
        };
        let many = wave(4 * n);
        let part = |i: usize| many[i * n..(i + 1) * n].to_vec();
        let mut a = Attention {
            settings,
            shape,
            q: part(0),
            k: part(1),
            v: part(2),
            dy: part(3),
            beta: wave(h),
            decay: vec![0.99; b * t * h],
            y: vec![f32::NAN; n],
            dq: vec![f32::NAN; n],
            dk: vec![f32::NAN; n],
            dv: vec![f32::NAN; n],
            dbeta: vec![f32::NAN; h],
            angles: rope::Table::new(&rope::frequencies(1e4, d), 0, t),
            saved: Saved::default(),
            scratch: Vec::new(),
        };
        let scratch = attention::scratch_len(&a.settings, &a.inputs(), rayon::current_num_threads());
        a.scratch = vec![0.0; scratch];
        a
    }

    fn inputs(&self) -> Inputs<'_> {
        inputs(&self.settings, self.shape, [&self.q, &self.k, &self.v], &self.beta, &self.decay, &self.angles)
    }

    /// y, and what the backward pass needs.
    pub fn forward(&mut self) {
        let [b, t, h, d] = self.shape;
        let x = inputs(&self.settings, self.shape, [&self.q, &self.k, &self.v], &self.beta, &self.decay, &self.angles);
        let mut out = Outputs { y: HeadsMut::dense(&mut self.y, b, t, h, d), m: None, z: None };
        attention::forward(&self.settings, &x, &mut out, Some(&mut self.saved), &mut self.scratch);
    }

    /// Gradients of q, k, v and the gate. After [`Attention::forward`].
    pub fn backward(&mut self) {
        let [b, t, h, d] = self.shape;
        let x = inputs(&self.settings, self.shape, [&self.q, &self.k, &self.v], &self.beta, &self.decay, &self.angles);
        let up = Upstream { y: Heads::dense(&self.dy, b, t, h, d), m: None, z: None };
        let mut grads = Grads {
            q: HeadsMut::dense(&mut self.dq, b, t, h, d),
            k: HeadsMut::dense(&mut self.dk, b, t, h, d),
            v: HeadsMut::dense(&mut self.dv, b, t, h, d),
            w: None,
            a: None,
            c: None,
            beta: (self.settings.mix == Mix::Head).then_some(&mut self.dbeta[..]),
            gate: None,
            fmap_w: None,
            m0: None,
            z0: None,
        };
        attention::backward(&self.settings, &x, &self.saved, &up, &mut grads, &mut self.scratch);
    }
}

fn inputs<'a>(
    settings: &Settings,
    [b, t, h, d]: [usize; 4],
    [q, k, v]: [&'a [f32]; 3],
    beta: &'a [f32],
    decay: &'a [f32],
    angles: &'a rope::Table,
) -> Inputs<'a> {
    Inputs {
        q: Heads::dense(q, b, t, h, d),
        k: Heads::dense(k, b, t, h, d),
        v: Heads::dense(v, b, t, h, d),
        w: None,
        a: (settings.rule == Rule::SeqDelta).then_some(decay),
        c: None,
        beta: (settings.mix == Mix::Head).then_some(beta),
        gate: None,
        fmap_w: None,
        reset: None,
        m0: None,
        z0: None,
        angles: Some(Angles { cos: &angles.cos, sin: &angles.sin }),
    }
}
