//! Products of small dense matrices held in cache, where the hand-over to `gemm` would cost more than
//! the work: register tiles, the right operand row-major, the left one with any strides.

use crate::simd::{Level, level};

/// Lanes of a column block.
const L: usize = 16;

/// `c = a b`, or `c += a b` when `add`. `a(i, p)` lies at `i·ars + p·acs`, `b(p, j)` at `p·ldb + j`,
/// `c(i, j)` at `i·ldc + j`. Without `add`, `c` is never read.
///
/// # Panics
/// If a matrix does not fit into its slice.
#[inline]
pub(crate) fn product(
    [m, k, n]: [usize; 3],
    c: &mut [f32],
    ldc: usize,
    add: bool,
    a: &[f32],
    (ars, acs): (usize, usize),
    b: &[f32],
    ldb: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * ldc + n <= c.len(), "product: c");
    if k > 0 {
        assert!((m - 1) * ars + (k - 1) * acs < a.len(), "product: a");
        assert!((k - 1) * ldb + n <= b.len(), "product: b");
    }
    if level() == Level::Avx512 {
        wide(m, k, n, c, ldc, add, a, ars, acs, b, ldb);
    } else {
        narrow(m, k, n, c, ldc, add, a, ars, acs, b, ldb);
    }
}

crate::simd! {
/// 32 registers of 16 lanes.
fn wide(m: usize, k: usize, n: usize, c: &mut [f32], ldc: usize, add: bool, a: &[f32], ars: usize, acs: usize, b: &[f32], ldb: usize) {
    // SAFETY: `product` checked the bounds.
    unsafe { tiles::<8, 2>(m, k, n, c.as_mut_ptr(), ldc, add, a.as_ptr(), ars, acs, b.as_ptr(), ldb) }
}
/// 16 registers of 8 lanes.
fn narrow(m: usize, k: usize, n: usize, c: &mut [f32], ldc: usize, add: bool, a: &[f32], ars: usize, acs: usize, b: &[f32], ldb: usize) {
    // SAFETY: `product` checked the bounds.
    unsafe { tiles::<4, 1>(m, k, n, c.as_mut_ptr(), ldc, add, a.as_ptr(), ars, acs, b.as_ptr(), ldb) }
}
}

/// All of c: column blocks of `16 NV`, then 16, then the rest; rows by `MR`, 4, 2 and 1.
///
/// # Safety
/// The matrices lie where the pointers say.
#[inline(always)]
unsafe fn tiles<const MR: usize, const NV: usize>(
    m: usize,
    k: usize,
    n: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
    a: *const f32,
    ars: usize,
    acs: usize,
    b: *const f32,
    ldb: usize,
) {
    // SAFETY: every tile lies inside the matrices.
    unsafe {
        let mut j = 0;
        while j < n {
            let (b, c) = (b.add(j), c.add(j));
            if n - j >= NV * L {
                let mut i = 0;
                while m - i >= MR {
                    tile::<MR, NV>(k, c.add(i * ldc), ldc, add, a.add(i * ars), ars, acs, b, ldb);
                    i += MR;
                }
                if MR > 4 && m - i >= 4 {
                    tile::<4, NV>(k, c.add(i * ldc), ldc, add, a.add(i * ars), ars, acs, b, ldb);
                    i += 4;
                }
                if m - i >= 2 {
                    tile::<2, NV>(k, c.add(i * ldc), ldc, add, a.add(i * ars), ars, acs, b, ldb);
                    i += 2;
                }
                if m - i >= 1 {
                    tile::<1, NV>(k, c.add(i * ldc), ldc, add, a.add(i * ars), ars, acs, b, ldb);
                }
                j += NV * L;
            } else if n - j >= L {
                let mut i = 0;
                while m - i >= MR {
                    tile::<MR, 1>(k, c.add(i * ldc), ldc, add, a.add(i * ars), ars, acs, b, ldb);
                    i += MR;
                }
                while m - i >= 1 {
                    tile::<1, 1>(k, c.add(i * ldc), ldc, add, a.add(i * ars), ars, acs, b, ldb);
                    i += 1;
                }
                j += L;
            } else {
                for i in 0..m {
                    edge(n - j, k, c.add(i * ldc), add, a.add(i * ars), acs, b, ldb);
                }
                j = n;
            }
        }
    }
}

/// `MR` rows and `16 NV` columns of c in registers.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn tile<const MR: usize, const NV: usize>(
    k: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
    a: *const f32,
    ars: usize,
    acs: usize,
    b: *const f32,
    ldb: usize,
) {
    let mut acc = [[[0f32; L]; NV]; MR];
    // SAFETY: the caller's.
    unsafe {
        for p in 0..k {
            let mut bv = [[0f32; L]; NV];
            for j in 0..NV {
                bv[j] = b.add(p * ldb + j * L).cast::<[f32; L]>().read_unaligned();
            }
            for i in 0..MR {
                let x = *a.add(i * ars + p * acs);
                for j in 0..NV {
                    for l in 0..L {
                        acc[i][j][l] = x.mul_add(bv[j][l], acc[i][j][l]);
                    }
                }
            }
        }
        for i in 0..MR {
            for j in 0..NV {
                let at = c.add(i * ldc + j * L).cast::<[f32; L]>();
                if add {
                    let old = at.read_unaligned();
                    for l in 0..L {
                        acc[i][j][l] += old[l];
                    }
                }
                at.write_unaligned(acc[i][j]);
            }
        }
    }
}

/// One row and fewer than 16 columns.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn edge(n: usize, k: usize, c: *mut f32, add: bool, a: *const f32, acs: usize, b: *const f32, ldb: usize) {
    let mut acc = [0f32; L];
    // SAFETY: the caller's.
    unsafe {
        for p in 0..k {
            let x = *a.add(p * acs);
            for j in 0..n {
                acc[j] = x.mul_add(*b.add(p * ldb + j), acc[j]);
            }
        }
        for j in 0..n {
            *c.add(j) = if add { *c.add(j) + acc[j] } else { acc[j] };
        }
    }
}

/// `out [n, m]` = the transpose of `x`, `m` rows of `n` at a distance of `ldx`; rows of `out` are `ldo` apart.
///
/// # Panics
/// If a matrix does not fit into its slice.
pub(crate) fn transpose(x: &[f32], ldx: usize, m: usize, n: usize, out: &mut [f32], ldo: usize) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * ldx + n <= x.len() && (n - 1) * ldo + m <= out.len(), "transpose: outside the slices");
    let (mut m8, mut n8) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx2 {
        (m8, n8) = (m / 8 * 8, n / 8 * 8);
        for i in (0..m8).step_by(8) {
            for j in (0..n8).step_by(8) {
                // SAFETY: AVX is part of the level; the 8 x 8 block lies inside both matrices.
                unsafe { block(x.as_ptr().add(i * ldx + j), ldx, out.as_mut_ptr().add(j * ldo + i), ldo) };
            }
        }
    }
    for i in 0..m {
        // the columns that no block took
        for j in if i < m8 { n8 } else { 0 }..n {
            out[j * ldo + i] = x[i * ldx + j];
        }
    }
}

/// Transposes 8 x 8 elements in registers.
///
/// # Safety
/// Both blocks may be accessed; the machine has AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn block(x: *const f32, ldx: usize, out: *mut f32, ldo: usize) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
        _mm256_unpacklo_ps,
    };
    // SAFETY: rows 0..8 of both blocks, by the contract.
    unsafe {
        let r: [_; 8] = std::array::from_fn(|i| _mm256_loadu_ps(x.add(i * ldx)));
        // pairs of rows, then fours, then halves
        let p: [_; 8] = std::array::from_fn(|i| {
            let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
            if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
        });
        let q: [_; 8] = std::array::from_fn(|i| {
            let (a, b) = (p[i / 4 * 4 + i % 4 / 2], p[i / 4 * 4 + 2 + i % 4 / 2]);
            if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xee>(a, b) }
        });
        for i in 0..4 {
            _mm256_storeu_ps(out.add(i * ldo), _mm256_permute2f128_ps::<0x20>(q[i], q[i + 4]));
            _mm256_storeu_ps(out.add((i + 4) * ldo), _mm256_permute2f128_ps::<0x31>(q[i], q[i + 4]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_sums() {
        for (m, k, n) in [(0, 3, 2), (1, 1, 1), (3, 0, 4), (5, 7, 3), (9, 8, 32), (15, 65, 63), (64, 32, 128)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.11).cos()).collect();
            for transposed in [false, true] {
                let strides = if transposed { (1, m) } else { (k, 1) };
                let mut c = vec![f32::NAN; m * n];
                product([m, k, n], &mut c, n, false, &a, strides, &b, n);
                product([m, k, n], &mut c, n, true, &a, strides, &b, n);
                for i in 0..m {
                    for j in 0..n {
                        let x: f32 = (0..k).map(|p| a[i * strides.0 + p * strides.1] * b[p * n + j]).sum();
                        assert!((c[i * n + j] - 2.0 * x).abs() < 1e-4, "{m}x{k}x{n} at {i},{j}: {} {x}", c[i * n + j]);
                    }
                }
            }
        }
    }

    #[test]
    fn transposes_hold_every_element() {
        for (m, n) in [(0, 3), (1, 1), (8, 8), (16, 9), (13, 24), (64, 32)] {
            let x: Vec<f32> = (0..m * (n + 2)).map(|i| i as f32).collect();
            let mut out = vec![f32::NAN; n * (m + 1)];
            transpose(&x, n + 2, m, n, &mut out, m + 1);
            for i in 0..m {
                for j in 0..n {
                    assert_eq!(out[j * (m + 1) + i], x[i * (n + 2) + j], "{m}x{n} at {i},{j}");
                }
            }
        }
    }
}
