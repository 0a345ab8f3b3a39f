//! Speed of the kernels: `cargo bench -p infini-kernels`, `RAYON_NUM_THREADS=1` for one thread.
//!
//! Each benchmark first compares what it is going to time with the f64 reference, then times it. The
//! machine's limits are printed first, to read the throughputs by.

mod attention;
mod pointwise;

use criterion::{Criterion, criterion_main};
use infini_kernels::machine;
use infini_kernels::simd::Level;

/// Uniform numbers in −1 … 1.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let number = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..n as u64).map(|i| number(i + (seed << 32))).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn nan(n: usize) -> Vec<f32> {
    vec![f32::NAN; n]
}

/// Panics unless the relative error of `got` (root mean square) is at most 1e-5.
fn verify(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    let error = (error / size.max(f64::MIN_POSITIVE)).sqrt();
    // NaN fails
    assert!(error <= 1e-5, "{what}: not timed, as it is wrong: error {error:e}");
}

fn limits() {
    let threads = rayon::current_num_threads();
    for threads in if threads == 1 { vec![1] } else { vec![1, threads] } {
        println!("{threads} thread(s):");
        for level in Level::available() {
            println!(
                "  fused multiply-adds, {:9} {:7.1} GFLOP/s",
                level.name(),
                machine::fma_peak(level, threads) / 1e9
            );
        }
        println!("  product of 1,024            {:7.1} GFLOP/s", machine::gemm_peak(threads) / 1e9);
        let memory = machine::bandwidth(threads);
        println!("  memory: read {:.1} GB/s, copy {:.1} GB/s", memory.read / 1e9, memory.copy / 1e9);
    }
}

fn benches() {
    limits();
    let mut c = Criterion::default().configure_from_args();
    pointwise::benches(&mut c);
    attention::benches(&mut c);
    c.final_summary();
}

criterion_main!(benches);
