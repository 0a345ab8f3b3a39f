//! Repetitions and what is said of them.

use std::time::{Duration, Instant};

use infini_kernels::machine::{self, Bandwidth};
use infini_kernels::simd::best;
use serde_json::{Value, json};

/// Seconds of repeated runs of one piece of work.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The middle one.
    pub median: f64,
    /// The shortest: what other programs disturbed least.
    pub best: f64,
}

impl Times {
    /// Of any number of runs.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(mut seconds: Vec<f64>) -> Times {
        seconds.sort_by(f64::total_cmp);
        Times { median: seconds[seconds.len() / 2], best: seconds[0] }
    }

    /// Runs `work` once to warm up, then for about `budget` (five times at least).
    pub fn measure(budget: Duration, mut work: impl FnMut()) -> Times {
        work();
        let start = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < 5 || start.elapsed() < budget {
            let t = Instant::now();
            work();
            seconds.push(t.elapsed().as_secs_f64());
        }
        Times::of(seconds)
    }
}

/// What this machine does at best on the threads in use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    threads: usize,
    fma: f64,
    gemm: f64,
    bandwidth: Bandwidth,
}

impl Limits {
    /// Measures them: about a second.
    pub fn measure() -> Limits {
        let threads = rayon::current_num_threads();
        Limits {
            threads,
            fma: machine::fma_peak(best(), threads),
            gemm: machine::gemm_peak(threads),
            bandwidth: machine::bandwidth(threads),
        }
    }

    /// `flops` in `seconds` as a fraction of the gemm peak.
    pub fn of_gemm(&self, flops: f64, seconds: f64) -> f64 {
        flops / seconds / self.gemm
    }

    /// `bytes` in `seconds` as a fraction of the bandwidth of a copy, or of reading.
    pub fn of_memory(&self, bytes: f64, seconds: f64, only_read: bool) -> f64 {
        bytes / seconds / if only_read { self.bandwidth.read } else { self.bandwidth.copy }
    }

    /// One line.
    pub fn line(&self) -> String {
        format!(
            "machine: {} on {} thread{}: multiply-add {:.0} GFLOP/s, gemm {:.0} GFLOP/s, memory {:.1} GB/s read, {:.1} GB/s copied",
            best().name(),
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.fma / 1e9,
            self.gemm / 1e9,
            self.bandwidth.read / 1e9,
            self.bandwidth.copy / 1e9,
        )
    }

    /// Operations and bytes a second.
    pub fn json(&self) -> Value {
        json!({
            "simd": best().name(), "threads": self.threads, "fma_flops": self.fma, "gemm_flops": self.gemm,
            "memory_read_bytes": self.bandwidth.read, "memory_copy_bytes": self.bandwidth.copy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_best() {
        let t = Times::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((t.median, t.best), (2.0, 1.0));
        let mut runs = 0;
        Times::measure(Duration::ZERO, || runs += 1);
        assert_eq!(runs, 6);
    }
}
