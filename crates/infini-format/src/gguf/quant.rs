//! How GGUF stores numbers: blocks of quantised values with their scales, as in llama.cpp's `ggml-quants`.

use half::{bf16, f16};

/// Element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "llama.cpp's names")]
pub enum Quant {
    /// IEEE 754, 32 bits.
    F32,
    /// IEEE 754, 16 bits.
    F16,
    /// The upper half of an F32.
    BF16,
    /// 32 values: `d (q − 8)`, q of 4 bits.
    Q4_0,
    /// 32 values: `d q + m`, q of 4 bits.
    Q4_1,
    /// 32 values: `d q`, q of 8 bits.
    Q8_0,
    /// 256 values in 8 groups: `d s q − m t`, q of 4 bits, s and t of 6.
    Q4_K,
    /// 256 values in 8 groups: `d s q − m t`, q of 5 bits, s and t of 6.
    Q5_K,
    /// 256 values in 16 groups: `d s (q − 32)`, q of 6 bits, s of 8.
    Q6_K,
}

/// The name that llama.cpp gives to a type's code, for messages.
pub(super) fn name_of(code: u32) -> String {
    const NAMES: [&str; 40] = [
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q4_2",
        "Q4_3",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q8_K",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ1_S",
        "IQ4_NL",
        "IQ3_S",
        "IQ2_S",
        "IQ4_XS",
        "I8",
        "I16",
        "I32",
        "I64",
        "F64",
        "IQ1_M",
        "BF16",
        "Q4_0_4_4",
        "Q4_0_4_8",
        "Q4_0_8_8",
        "TQ1_0",
        "TQ2_0",
        "IQ4_NL_4_4",
        "IQ4_NL_4_8",
        "IQ4_NL_8_8",
        "MXFP4",
    ];
    NAMES.get(code as usize).map_or_else(|| format!("number {code}"), |n| n.to_string())
}

impl Quant {
    pub(super) fn from_code(code: u32) -> Option<Quant> {
        Some(match code {
            0 => Quant::F32,
            1 => Quant::F16,
            2 => Quant::Q4_0,
            3 => Quant::Q4_1,
            8 => Quant::Q8_0,
            12 => Quant::Q4_K,
            13 => Quant::Q5_K,
            14 => Quant::Q6_K,
            30 => Quant::BF16,
            _ => return None,
        })
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        match self {
            Quant::F32 | Quant::F16 | Quant::BF16 => 1,
            Quant::Q4_0 | Quant::Q4_1 | Quant::Q8_0 => 32,
            Quant::Q4_K | Quant::Q5_K | Quant::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Quant::F32 => 4,
            Quant::F16 | Quant::BF16 => 2,
            Quant::Q4_0 => 2 + 16,
            Quant::Q4_1 => 4 + 16,
            Quant::Q8_0 => 2 + 32,
            Quant::Q4_K => 4 + 12 + 128,
            Quant::Q5_K => 4 + 12 + 32 + 128,
            Quant::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// The values of whole blocks; bytes after the last whole block are not looked at.
    pub fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / self.block_bytes() * self.block_len()];
        let f = match self {
            Quant::F32 => |b: &[u8], y: &mut [f32]| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Quant::F16 => |b: &[u8], y: &mut [f32]| y[0] = half(b),
            Quant::BF16 => |b: &[u8], y: &mut [f32]| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Quant::Q4_0 => q4_0,
            Quant::Q4_1 => q4_1,
            Quant::Q8_0 => q8_0,
            Quant::Q4_K => q4_k,
            Quant::Q5_K => q5_k,
            Quant::Q6_K => q6_k,
        };
        for (block, y) in bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len())) {
            f(block, y);
        }
        out
    }
}

fn half(b: &[u8]) -> f32 {
    f16::from_le_bytes([b[0], b[1]]).to_f32()
}

fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half(b);
    for (i, q) in b[2..].iter().enumerate() {
        y[i] = d * (f32::from(q & 15) - 8.0);
        y[i + 16] = d * (f32::from(q >> 4) - 8.0);
    }
}

fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    for (i, q) in b[4..].iter().enumerate() {
        y[i] = d * f32::from(q & 15) + m;
        y[i + 16] = d * f32::from(q >> 4) + m;
    }
}

fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half(b);
    for (y, q) in y.iter_mut().zip(&b[2..]) {
        *y = d * f32::from(*q as i8);
    }
}

/// Scale and minimum of group `j` of a Q4_K or Q5_K block, 6 bits each in 12 bytes.
fn scale_min(j: usize, s: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | (s[j - 4] >> 6 << 4), (s[j + 4] >> 4) | (s[j] >> 6 << 4))
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    let (scales, quants) = (&b[4..16], &b[16..]);
    // 32 bytes hold two groups: low and high halves
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (s, t) = scale_min(j, scales);
        let (s, t) = (d * s, m * t);
        for (y, q) in y.iter_mut().zip(&quants[j / 2 * 32..]) {
            *y = s * f32::from(if j % 2 == 0 { q & 15 } else { q >> 4 }) - t;
        }
    }
}

fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    let (scales, high, quants) = (&b[4..16], &b[16..48], &b[48..]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (s, t) = scale_min(j, scales);
        let (s, t) = (d * s, m * t);
        for ((y, q), h) in y.iter_mut().zip(&quants[j / 2 * 32..]).zip(high) {
            let q = if j % 2 == 0 { q & 15 } else { q >> 4 };
            *y = s * f32::from(q + 16 * (h >> j & 1)) - t;
        }
    }
}

fn q6_k(b: &[u8], y: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(&b[208..]));
    for (half_block, y) in y.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&low[64 * half_block..], &high[32 * half_block..]);
        for (part, y) in y.chunks_exact_mut(32).enumerate() {
            for (i, y) in y.iter_mut().enumerate() {
                let l = low[i + 32 * (part % 2)];
                let l = if part < 2 { l & 15 } else { l >> 4 };
                let q = l | (high[i] >> (2 * part) & 3) << 4;
                let s = f32::from(scales[8 * half_block + 2 * part + i / 16] as i8);
                *y = d * s * (f32::from(q) - 32.0);
            }
        }
    }
}
