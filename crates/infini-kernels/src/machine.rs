//! What this machine can do at best: the figures that speeds are printed beside.
//!
//! Each function measures for a fraction of a second and returns its best repetition, on as many threads
//! as asked.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::matmul::{Mat, MatMut, Par, matmul};
use crate::simd::{Level, best};

/// How long repetitions go on.
const BUDGET: Duration = Duration::from_millis(300);

/// Memory bandwidth in bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth {
    /// Reading an array larger than the caches.
    pub read: f64,
    /// Copying one; bytes read and bytes written are both counted.
    pub copy: f64,
}

fn pool(threads: usize) -> ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started")
}

/// The shortest of the repetitions that fit the budget (at least three), in seconds.
fn shortest(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut least = f64::INFINITY;
    let mut repetitions = 0;
    while repetitions < 3 || start.elapsed() < BUDGET {
        let t = Instant::now();
        f();
        least = least.min(t.elapsed().as_secs_f64());
        repetitions += 1;
    }
    least
}

/// Fused multiply-adds in registers, in f32 operations per second (2 per multiply-add).
///
/// # Panics
/// If this machine lacks the level.
pub fn fma_peak(level: Level, threads: usize) -> f64 {
    assert!(level <= best(), "{} is not available here", level.name());
    const ROUNDS: usize = 100_000;
    let pool = pool(threads);
    let run = || -> usize {
        match level {
            // SAFETY: the level was compared with what the machine has.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { multiply_avx512(ROUNDS) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { multiply_avx2(ROUNDS) },
            _ => multiply::<4>(ROUNDS),
        }
    };
    let operations = run();
    let seconds = shortest(|| drop(black_box(pool.broadcast(|_| run()))));
    (operations * threads) as f64 / seconds
}

/// Independent chains of multiply-adds, enough to hide the latency of two units.
const CHAINS: usize = 12;

/// The chains as plain code: `W` lanes each. Returns the operations done.
fn multiply<const W: usize>(rounds: usize) -> usize {
    let mut s = [[black_box(1f32); W]; CHAINS];
    let (a, b) = (black_box([0.999_9f32; W]), black_box([1e-4f32; W]));
    for _ in 0..rounds {
        for s in &mut s {
            for i in 0..W {
                s[i] = s[i].mul_add(a[i], b[i]);
            }
        }
    }
    black_box(s);
    2 * W * CHAINS * rounds
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2(rounds: usize) -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let mut s = [_mm256_set1_ps(black_box(1.0)); CHAINS];
    let (a, b) = (_mm256_set1_ps(black_box(0.999_9)), _mm256_set1_ps(black_box(1e-4)));
    for _ in 0..rounds {
        for s in &mut s {
            *s = _mm256_fmadd_ps(*s, a, b);
        }
    }
    black_box(s);
    2 * 8 * CHAINS * rounds
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_avx512(rounds: usize) -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let mut s = [_mm512_set1_ps(black_box(1.0)); CHAINS];
    let (a, b) = (_mm512_set1_ps(black_box(0.999_9)), _mm512_set1_ps(black_box(1e-4)));
    for _ in 0..rounds {
        for s in &mut s {
            *s = _mm512_fmadd_ps(*s, a, b);
        }
    }
    black_box(s);
    2 * 16 * CHAINS * rounds
}

/// A square product of 1,024 through [`matmul`], in operations per second.
pub fn gemm_peak(threads: usize) -> f64 {
    const N: usize = 1024;
    let (a, b, mut c) = (vec![0.5; N * N], vec![0.25; N * N], vec![0.0; N * N]);
    let par = if threads > 1 { Par::Rayon } else { Par::No };
    let seconds = pool(threads).install(|| {
        shortest(|| {
            matmul(MatMut::rows(&mut c, N, N), false, 1.0, Mat::rows(&a, N, N), Mat::rows(&b, N, N), par);
        })
    });
    black_box(c);
    2.0 * (N * N * N) as f64 / seconds
}

/// Memory bandwidth over arrays of 128 MiB.
pub fn bandwidth(threads: usize) -> Bandwidth {
    const N: usize = 1 << 25;
    let from = vec![1f32; N];
    let mut to = vec![2f32; N];
    let chunk = N.div_ceil(threads);
    let pool = pool(threads);
    let read = shortest(|| {
        black_box(pool.install(|| from.par_chunks(chunk).map(read).sum::<f32>()));
    });
    let copy = shortest(|| {
        pool.install(|| {
            let parts = to.par_chunks_mut(chunk).zip(from.par_chunks(chunk));
            parts.for_each(|(to, from)| to.copy_from_slice(from));
        });
    });
    black_box(to);
    let bytes = (N * size_of::<f32>()) as f64;
    Bandwidth { read: bytes / read, copy: 2.0 * bytes / copy }
}

crate::simd! {
fn read(x: &[f32]) -> f32 {
    let mut s = [0f32; 128];
    for x in x.as_chunks::<128>().0 {
        for i in 0..128 {
            s[i] += x[i];
        }
    }
    s.iter().sum()
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_ordered() {
        // no absolute bounds: a busy machine must not fail the test
        for level in Level::available() {
            assert!(fma_peak(level, 1) > 1e6, "{}", level.name());
        }
        assert!(gemm_peak(1) > 1e6);
        let b = bandwidth(1);
        assert!(b.read > 1e6 && b.copy > 1e6, "{b:?}");
    }
}
