//! Infini-attention as it streams: window, read, mix, and a write whenever a segment closes.

use infini_kernels::heads::{Heads, HeadsMut};
use infini_kernels::sink::{self, Sinks};
use infini_kernels::{activation, conv, linear, local, memory, rope};

use super::matrix::Matrix;
use crate::config::{LayerKind, MixName, ModelConfig, NullSlot, RuleName, Write};
use crate::layers::own::{Own, OwnPiece};
use crate::state::{LayerState, Reads, window_start};

/// Weights of one layer's attention.
#[derive(Debug)]
pub(crate) struct Attention {
    kind: LayerKind,
    settings: infini_kernels::Settings,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    /// Of q, k and v.
    bias: Option<[Vec<f32>; 3]>,
    o: Matrix,
    conv: Option<Vec<f32>>,
    /// Of keys and values.
    kv_conv: Option<[Vec<f32>; 2]>,
    memory: Option<Memory>,
    own: Option<Own>,
    /// Gate logits `[H]` of a memorizing layer.
    memorizing: Option<Vec<f32>>,
}

/// What a layer with a memory has besides.
#[derive(Debug)]
struct Memory {
    beta: Option<Vec<f32>>,
    gate: Option<Gate>,
    write: Option<Gate>,
    /// `c` per key/value head.
    null_slot: Option<Vec<f32>>,
    decay: Option<(Gate, Vec<f32>)>,
    features: Option<Vec<f32>>,
}

impl Memory {
    fn phi(&self) -> memory::Phi<'_> {
        memory::Phi { c: self.null_slot.as_deref(), fmap_w: self.features.as_deref() }
    }
}

/// A linear map with a bias from the normalised input to a few logits.
#[derive(Debug)]
struct Gate {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Gate {
    fn forward(&self, h: &[f32], d: usize) -> Vec<f32> {
        let (n, out) = (h.len() / d, self.bias.len());
        let mut y = vec![0.0; n * out];
        linear::forward(h, &self.weight, &mut y, [n, d, out], false);
        linear::add_bias(&mut y, &self.bias);
        y
    }
}

/// Where in the stream a call stands.
pub(crate) struct Place<'a> {
    pub config: &'a ModelConfig,
    /// Angles of every position of the window, after these tokens.
    pub angles: &'a rope::Table,
    pub batch: usize,
    pub tokens: usize,
    pub position: u64,
    pub doc_start: &'a [u64],
    pub reads: Reads,
}

/// Projections of one piece, `[B, T, …]`.
struct Piece {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    w: Vec<f32>,
    a: Vec<f32>,
    gate: Vec<f32>,
    y: Vec<f32>,
    own: OwnPiece,
}

impl Attention {
    /// Takes the weights of layer `l`; `take` knows the layer's prefix.
    pub fn new(config: &ModelConfig, l: usize, take: &mut dyn FnMut(&str) -> Vec<f32>) -> Self {
        let kind = config.layer_kind(l);
        let i = &config.infini;
        let mut gate = |name: &str| Gate {
            weight: take(&format!("infini.{name}.weight")),
            bias: take(&format!("infini.{name}.bias")),
        };
        let memory = (kind == LayerKind::Infini).then(|| {
            let seq = i.rule == RuleName::GatedDelta;
            Memory {
                gate: (i.mix == MixName::Token).then(|| gate("gate")),
                write: (i.write != Write::All).then(|| gate("write")),
                decay: seq.then(|| (gate("decay"), Vec::new())),
                beta: None,
                null_slot: None,
                features: None,
            }
        });
        let memory = memory.map(|mut m| {
            if i.mix == MixName::Head {
                m.beta = Some(take("infini.beta"));
            }
            if let Some((_, a_log)) = &mut m.decay {
                *a_log = take("infini.a_log");
            } else {
                m.null_slot = match i.null_slot {
                    NullSlot::Fixed(0.0) => None,
                    NullSlot::Fixed(c) => Some(vec![c as f32; config.memory_shape().1]),
                    NullSlot::Learned(_) => {
                        let raw = take("infini.c_raw");
                        let mut c = vec![0.0; raw.len()];
                        activation::softplus_forward(&raw, &mut c);
                        Some(c)
                    }
                };
                if config.features() == infini_kernels::Features::SoftmaxPair {
                    m.features = Some(take("infini.fmap.weight"));
                }
            }
            m
        });
        let (d, width) = (config.hidden_size, config.num_attention_heads * config.head_width());
        let [q, k, v] = ["q", "k", "v"].map(|n| Matrix::new(take(&format!("{n}_proj.weight")), d));
        Attention {
            kind,
            settings: config.kernel_settings(l),
            q,
            k,
            v,
            bias: config.qkv_bias.then(|| ["q", "k", "v"].map(|n| take(&format!("{n}_proj.bias")))),
            o: Matrix::new(take("o_proj.weight"), width),
            conv: (i.conv > 0).then(|| take("infini.conv.weight")),
            kv_conv: (i.kv_conv > 0).then(|| ["k", "v"].map(|n| take(&format!("infini.{n}_conv.weight")))),
            memory,
            memorizing: (kind == LayerKind::Memorizing).then(|| take("infini.beta")),
            own: config.own_memory(l).then(|| Own::new(config, l, take)),
        }
    }

    /// q, k, v and o.
    pub fn projections(&self) -> [&Matrix; 4] {
        [&self.q, &self.k, &self.v, &self.o]
    }

    /// Of q, k and v.
    pub fn biases(&self) -> Option<[&[f32]; 3]> {
        self.bias.as_ref().map(|b| b.each_ref().map(Vec::as_slice))
    }

    /// Becomes what the changed `config` says layer `l` is; the weights stay.
    pub fn become_local(&mut self, config: &ModelConfig, l: usize) {
        self.kind = config.layer_kind(l);
        self.settings = config.kernel_settings(l);
    }

    /// `x += attention(h)`. `h` (`[B, T, d]`, normalised) is overwritten by its convolution.
    pub fn forward(&self, p: &Place, state: &mut LayerState, h: &mut [f32], x: &mut [f32]) {
        let (b, t) = (p.batch, p.tokens);
        if let Some(kernel) = &self.conv {
            let d = p.config.hidden_size;
            let mut y = vec![0.0; h.len()];
            let shape = conv::Shape { b, t, d, width: p.config.infini.conv };
            conv::forward(shape, h, kernel, None, Some(&mut state.conv), &mut y);
            h.iter_mut().zip(&y).for_each(|(h, y)| *h += y);
        }
        let mut piece = self.project(p.config, h, b * t);
        if let Some(kernels) = &self.kv_conv {
            let shape = conv::Shape { b, t, d: piece.k.len() / (b * t).max(1), width: p.config.infini.kv_conv };
            let tails = [&mut state.k_tail, &mut state.v_tail];
            for ((x, kernel), tail) in [&mut piece.k, &mut piece.v].into_iter().zip(kernels).zip(tails) {
                let mut y = vec![0.0; x.len()];
                conv::forward(shape, x, kernel, None, Some(tail), &mut y);
                x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
            }
        }
        if let Some(own) = &self.own {
            piece.own = own.project(p, state, h);
        }
        let mut done = 0;
        while done < t {
            let position = p.position + done as u64;
            let n = (t - done).min(self.undisturbed(position));
            self.stretch(p, state, &mut piece, position, done, n);
            done += n;
        }
        self.o.forward(&piece.y, x, true);
        if let Some(own) = &self.own {
            own.add(p.config, &piece.own.y, x);
        }
    }

    /// q, k, v, write strengths, decays and mixing logits of `rows` inputs.
    fn project(&self, config: &ModelConfig, h: &[f32], rows: usize) -> Piece {
        let d = config.hidden_size;
        let apply = |w: &Matrix| {
            let mut y = vec![0.0; rows * w.out()];
            w.forward(h, &mut y, false);
            y
        };
        let (mut q, mut k, mut v) = (apply(&self.q), apply(&self.k), apply(&self.v));
        if let Some(bias) = &self.bias {
            for (y, bias) in [&mut q, &mut k, &mut v].into_iter().zip(bias) {
                linear::add_bias(y, bias);
            }
        }
        let (mut w, mut a, mut gate) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(m) = &self.memory {
            w = match &m.write {
                None => vec![1.0; rows * config.memory_shape().1],
                Some(g) => {
                    let logits = g.forward(h, d);
                    let mut w = vec![0.0; logits.len()];
                    match config.infini.write {
                        Write::Clip => activation::clip_gate_forward(&logits, &mut w),
                        Write::Hard => w.iter_mut().zip(&logits).for_each(|(w, l)| *w = f32::from(*l > 0.0)),
                        _ => activation::sigmoid_forward(&logits, &mut w),
                    }
                    w
                }
            };
            if let Some((g, a_log)) = &m.decay {
                // a = exp(−exp(a_log) softplus(h W + b))
                let logits = g.forward(h, d);
                a = vec![0.0; logits.len()];
                activation::softplus_forward(&logits, &mut a);
                for row in a.chunks_mut(a_log.len()) {
                    row.iter_mut().zip(a_log).for_each(|(a, l)| *a = (-l.exp() * *a).exp());
                }
            }
            if let Some(g) = &m.gate {
                gate = g.forward(h, d);
            }
        }
        let y = vec![0.0; q.len()];
        Piece { q, k, v, w, a, gate, y, own: OwnPiece::default() }
    }

    /// Tokens from `position` on until something is written or leaves the window: the rest of a segment; at the beginning of
    /// the first span, which so is computed as full attention would, bit by bit.
    fn undisturbed(&self, position: u64) -> usize {
        let s = self.settings.segment_len as u64;
        let first = s * (self.settings.lag as u64 + 1);
        match self.kind {
            LayerKind::Full => usize::MAX,
            _ if position < first => (first - position) as usize,
            _ => (s - position % s) as usize,
        }
    }

    /// Tokens `done..done + n` of the piece, no more than are [`undisturbed`](Attention::undisturbed).
    fn stretch(&self, p: &Place, state: &mut LayerState, piece: &mut Piece, position: u64, done: usize, n: usize) {
        let (b, t, c) = (p.batch, p.tokens, p.config);
        let (h, hkv, d) = (c.num_attention_heads, c.kv_heads(), c.head_width());
        let start = window_start(c, self.kind, position);
        let before = (position - start) as usize;
        let len = before + n;
        if self.kind == LayerKind::Full {
            state.grow(b, len);
        }
        let cap = state.capacity;
        let append = |window: &mut [f32], new: &[f32], width: usize| {
            for row in 0..b {
                window[(row * cap + before) * width..][..n * width]
                    .copy_from_slice(&new[(row * t + done) * width..][..n * width]);
            }
        };
        append(&mut state.k, &piece.k, hkv * d);
        append(&mut state.v, &piece.v, hkv * d);
        if !state.sink_k.is_empty() {
            keep_sinks(p, state, piece, position, done, n);
        }
        if self.memory.is_some() {
            let (_, heads, width) = c.memory_shape();
            append(&mut state.w, &piece.w, heads);
            if !piece.a.is_empty() {
                append(&mut state.a, &piece.a, heads);
            }
            if self.own.is_some() {
                append(&mut state.own_k, &piece.own.k, heads * width);
                append(&mut state.own_v, &piece.own.v, heads * width);
            }
            for row in 0..b {
                state.writes.count(&piece.w[(row * t + done) * heads..][..n * heads]);
            }
        }

        let kv = |data, stride: usize| Heads::new(data, [b, len, hkv, d], [stride, hkv * d, d]);
        let q = Heads::new(&piece.q[done * h * d..], [b, n, h, d], [t * h * d, h * d, d]);
        let reset = resets(p.doc_start, start, len);
        let window = local::Window {
            q,
            q_pos: before,
            k: kv(&state.k, cap * hkv * d),
            v: kv(&state.v, cap * hkv * d),
            k_pos: 0,
            reset: reset.as_deref(),
            angles: Some(local::Angles { cos: &p.angles.cos, sin: &p.angles.sin }),
        };
        let angles = window.angles;
        let mut a_dot = vec![0.0; b * n * h * d];
        let mut out = HeadsMut::dense(&mut a_dot, b, n, h, d);
        let mut scratch = vec![0.0; local::scratch_len(&self.settings, &window, rayon::current_num_threads())];
        // a row's sinks are seen once all of them have left the window
        let left = |doc: &u64| if start.saturating_sub(*doc) >= c.infini.sink as u64 { c.infini.sink } else { 0 };
        let visible: Vec<usize> = p.doc_start.iter().map(left).collect();
        if state.sink_k.is_empty() || visible.iter().all(|n| *n == 0) {
            local::forward(&self.settings, &window, &mut out, None, &mut scratch);
        } else {
            let mut lse = vec![0.0; 2 * b * h * n];
            local::forward(&self.settings, &window, &mut out, Some(&mut lse), &mut scratch);
            let sinks = |data| Heads::dense(data, b, c.infini.sink, hkv, d);
            let x = Sinks {
                q,
                q_pos: c.infini.sink + before,
                k: sinks(&state.sink_k),
                v: sinks(&state.sink_v),
                visible: &visible,
                rope: self.settings.rope,
                angles,
            };
            let mut lse = HeadsMut::new(&mut lse, [b, n, h, 2], [2 * h * n, 2, 2 * n]);
            scratch.resize(scratch.len().max(sink::scratch_len(&x)), 0.0);
            sink::forward(&x, &mut out, &mut lse, &mut scratch);
        }

        let y = &mut piece.y[done * h * d..];
        let mut y = HeadsMut::new(y, [b, n, h, d], [t * h * d, h * d, d]);
        if let Some(beta) = &self.memorizing {
            let mut a_mem = vec![0.0; b * n * h * d];
            if p.reads != Reads::Nothing {
                super::store::read(p, state, q, start, &mut a_mem);
            }
            let (a_mem, a_dot) = (Heads::dense(&a_mem, b, n, h, d), Heads::dense(&a_dot, b, n, h, d));
            memory::mix(infini_kernels::Mix::Head, a_mem, a_dot, Some(beta), None, &mut y);
            return self.close(p, state, position, n);
        }
        let shared = self.memory.as_ref().filter(|_| self.own.is_none());
        let Some(m) = shared else {
            for row in 0..b {
                for j in 0..n {
                    for head in 0..h {
                        y.row_mut(row, j, head).copy_from_slice(&a_dot[((row * n + j) * h + head) * d..][..d]);
                    }
                }
            }
            if let (Some(own), Some(m)) = (&self.own, &self.memory) {
                own.read(p, state, m.phi(), &mut piece.own, done, n);
            }
            return self.close(p, state, position, n);
        };
        let mut a_mem = vec![0.0; b * n * h * d];
        if p.reads != Reads::Nothing {
            let mut out = HeadsMut::dense(&mut a_mem, b, n, h, d);
            let swapped;
            let st = match p.reads {
                Reads::Swapped => {
                    swapped = state.swapped(b);
                    memory::State { m: &swapped[0], z: &swapped[1] }
                }
                _ => memory::State { m: &state.m, z: &state.z },
            };
            let mut scratch = vec![0.0; self.memory_scratch(c)];
            memory::read(&self.settings, q, hkv, st, m.phi(), None, &mut out, &mut scratch);
        }
        let gate: Vec<f32> = if piece.gate.is_empty() {
            Vec::new()
        } else {
            (0..b).flat_map(|row| piece.gate[(row * t + done) * h..][..n * h].iter().copied()).collect()
        };
        memory::mix(
            self.settings.mix,
            Heads::dense(&a_mem, b, n, h, d),
            Heads::dense(&a_dot, b, n, h, d),
            m.beta.as_deref(),
            (!gate.is_empty()).then_some(&gate[..]),
            &mut y,
        );
        self.close(p, state, position, n);
    }

    fn memory_scratch(&self, c: &ModelConfig) -> usize {
        let (d, f) = (c.memory_shape().2, c.feature_dim());
        memory::scratch_len(&self.settings, d, f, d, rayon::current_num_threads())
    }

    /// If the segment ends with these `n` tokens: writes what is due, drops what left the window.
    fn close(&self, p: &Place, state: &mut LayerState, position: u64, n: usize) {
        let (s, span, lag) = (self.settings.segment_len, self.settings.span, self.settings.lag);
        let end = position + n as u64;
        if self.kind == LayerKind::Full || !end.is_multiple_of(s as u64) {
            return;
        }
        let len = (end - window_start(p.config, self.kind, position)) as usize;
        // the segment that is due ends `lag` segments before the window's end
        if let (Some(m), Some(first)) = (&self.memory, len.checked_sub((lag + 1) * s)) {
            let ((_, hkv, d), b, cap) = (p.config.memory_shape(), p.batch, state.capacity);
            let cut = |buffer: &[f32]| -> Vec<f32> {
                (0..b).flat_map(|r| buffer[(r * cap + first) * hkv..][..s * hkv].iter().copied()).collect()
            };
            let w = cut(&state.w);
            let a = if state.a.is_empty() { None } else { Some(cut(&state.a)) };
            let view = |data| Heads::new(data, [b, s, hkv, d], [cap * hkv * d, hkv * d, d]);
            let (k, v) = if self.own.is_some() { (&state.own_k, &state.own_v) } else { (&state.k, &state.v) };
            let (k, v) = (view(&k[first * hkv * d..]), view(&v[first * hkv * d..]));
            let mut scratch = vec![0.0; self.memory_scratch(p.config)];
            let st = memory::StateMut { m: &mut state.m, z: &mut state.z };
            memory::write(&self.settings, k, v, Some(&w), a.as_deref(), st, m.phi(), &mut scratch);
        }
        let gone = len.saturating_sub((span - 1) * s);
        if self.memorizing.is_some() {
            super::store::keep(p, state, end - len as u64, gone);
        }
        state.drop_front(p.batch, gone, len);
    }
}

/// Copies the keys and values of each document's first tokens, as they pass.
fn keep_sinks(p: &Place, state: &mut LayerState, piece: &Piece, position: u64, done: usize, n: usize) {
    let (sink, width) = (p.config.infini.sink, p.config.kv_heads() * p.config.head_width());
    for (row, doc) in p.doc_start.iter().enumerate() {
        let first = (position - doc) as usize;
        for i in first..sink.min(first + n) {
            let from = (row * p.tokens + done + i - first) * width;
            let to = (row * sink + i) * width;
            state.sink_k[to..to + width].copy_from_slice(&piece.k[from..from + width]);
            state.sink_v[to..to + width].copy_from_slice(&piece.v[from..from + width]);
        }
    }
}

/// Reset flags of the window's keys, if a document began inside it (at its first key none is needed).
fn resets(doc_start: &[u64], start: u64, len: usize) -> Option<Vec<u8>> {
    let inside = |s: &u64| *s > start && *s < start + len as u64;
    if !doc_start.iter().any(inside) {
        return None;
    }
    let mut flags = vec![0; doc_start.len() * len];
    for (row, s) in doc_start.iter().enumerate().filter(|(_, s)| inside(s)) {
        flags[row * len + (s - start) as usize] = 1;
    }
    Some(flags)
}
