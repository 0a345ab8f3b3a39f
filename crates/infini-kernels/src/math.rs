//! Scalar functions that vectorise, and reductions over slices with fixed lanes.
//!
//! Everything here is `#[inline(always)]`, to be compiled into the [`simd!`](crate::simd!) body that
//! calls it. The reductions add in an order that depends on the length alone, so every run of one
//! [`Level`](crate::simd::Level) gives the same bits.

/// Lanes of a block in the reductions: one AVX-512 register.
pub const LANES: usize = 16;

/// Below this `exp` is 0: its result would not be a normal number.
const EXP_MIN: f32 = -87.336_54;
/// Above this `exp` is infinite.
const EXP_MAX: f32 = 88.722_83;

/// `e^x` within 2 ulp: a branch-free polynomial (Cephes) that compilers vectorise.
///
/// `exp(-inf)` is exactly 0, results below the smallest normal number are 0, results above the largest
/// number are infinite, NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // `x < MIN` is false for NaN, which therefore passes through both clamps
    let c = if x < EXP_MIN { EXP_MIN } else { x };
    let c = if c > EXP_MAX { EXP_MAX } else { c };
    // adding 1.5 · 2²³ rounds c / ln 2 to an integer, which is then in the low bits of t
    let t = c.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = t - 12_582_912.0;
    let r = n.mul_add(-0.693_359_4, c);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 5.000_000_3e-1);
    let p = p.mul_add(r * r, r + 1.0);
    let y = f32::from_bits(p.to_bits().wrapping_add(t.to_bits().wrapping_shl(23)));
    let y = if x < EXP_MIN { 0.0 } else { y };
    if x > EXP_MAX { f32::INFINITY } else { y }
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The slope `σ(x) (1 − σ(x))` of [`sigmoid`], without the cancellation in `1 − σ`.
#[inline(always)]
pub fn sigmoid_slope(x: f32) -> f32 {
    let e = exp(-x.abs());
    let s = 1.0 / (1.0 + e);
    e * s * s
}

/// `ln(1 + u)` for `u` in 0 … 1, within 2 ulp: twice the series of `artanh(u / (2 + u))`.
#[inline(always)]
pub fn ln_1p_unit(u: f32) -> f32 {
    let s = u / (2.0 + u);
    let q = s * s;
    let mut p = 2.0 / 15.0;
    for c in [2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0] {
        p = q.mul_add(p, c);
    }
    s * p
}

/// The sum of the lanes, first to last. In this order LLVM keeps the lanes that are summed in one register;
/// a sum by halves makes it split them into pairs, at a third of the speed.
#[inline(always)]
pub fn fold(a: [f32; LANES]) -> f32 {
    let mut s = 0.0;
    for v in a {
        s += v;
    }
    s
}

/// `Σ x_i y_i` over the shorter length.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let n = x.len().min(y.len());
    let ((xc, xr), (yc, yr)) = (x[..n].as_chunks::<LANES>(), y[..n].as_chunks::<LANES>());
    let mut s = [0f32; LANES];
    for (x, y) in xc.iter().zip(yc) {
        for i in 0..LANES {
            s[i] = x[i].mul_add(y[i], s[i]);
        }
    }
    let mut t = fold(s);
    for (x, y) in xr.iter().zip(yr) {
        t = x.mul_add(*y, t);
    }
    t
}

/// `Σ x_i`.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut s = [0f32; LANES];
    let (c, r) = x.as_chunks::<LANES>();
    for v in c {
        for i in 0..LANES {
            s[i] += v[i];
        }
    }
    let mut t = fold(s);
    for v in r {
        t += v;
    }
    t
}

/// The largest element, `-inf` of none. NaN elements are passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut m = [f32::NEG_INFINITY; LANES];
    let (c, r) = x.as_chunks::<LANES>();
    for v in c {
        for i in 0..LANES {
            m[i] = if v[i] > m[i] { v[i] } else { m[i] };
        }
    }
    let mut t = f32::NEG_INFINITY;
    for v in m.iter().chain(r) {
        t = if *v > t { *v } else { t };
    }
    t
}

/// `x ← exp(s x − m)`; returns the sum of the new x.
#[inline(always)]
pub fn exp_sum(x: &mut [f32], s: f32, m: f32) -> f32 {
    let mut a = [0f32; LANES];
    let (c, r) = x.as_chunks_mut::<LANES>();
    for v in c {
        for i in 0..LANES {
            v[i] = exp(v[i].mul_add(s, -m));
            a[i] += v[i];
        }
    }
    let mut t = fold(a);
    for v in r {
        *v = exp(v.mul_add(s, -m));
        t += *v;
    }
    t
}

crate::simd! {
/// `x ← s x`; at `s` = 1 nothing is done.
pub fn scale(x: &mut [f32], s: f32) {
    if s != 1.0 {
        for x in x {
            *x *= s;
        }
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_ulp_and_at_the_ends() {
        for i in 0..200_000 {
            let x = -87.3 + i as f32 * (176.0 / 200_000.0);
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= want * 2.4e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_1p_is_exact_to_two_ulp() {
        for i in 0..=100_000 {
            let u = (i as f32 / 100_000.0).powi(3);
            let (got, want) = (f64::from(ln_1p_unit(u)), f64::from(u).ln_1p());
            assert!((got - want).abs() <= want * 2.4e-7, "ln(1 + {u}) = {got}, not {want}");
        }
        assert!(ln_1p_unit(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_agree_with_plain_sums() {
        for n in [0, 1, 3, 15, 16, 17, 63, 64, 65, 100, 1000] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let y: Vec<f32> = (0..n).map(|i| (i as f32 * 0.3).cos()).collect();
            let d: f64 = x.iter().zip(&y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&x, &y)) - d).abs() < 1e-4, "dot of {n}");
            let s: f64 = x.iter().map(|a| f64::from(*a)).sum();
            assert!((f64::from(sum(&x)) - s).abs() < 1e-4, "sum of {n}");
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut e = x.clone();
            let t = exp_sum(&mut e, 2.0, 0.5);
            let w: f64 = x.iter().map(|a| (2.0 * f64::from(*a) - 0.5).exp()).sum();
            assert!((f64::from(t) - w).abs() <= w * 1e-6, "exp_sum of {n}");
        }
    }
}
