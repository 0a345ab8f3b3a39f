//! What changes with the step: learning rate and the weight of the write penalty.

use crate::config::{Schedule, TrainConfig, WriteSparsity};

/// Fraction of the peak learning rate at `step` (from 0).
pub fn rate(c: &TrainConfig, step: u64) -> f64 {
    let warm = if c.warmup == 0 { 1.0 } else { ((step + 1) as f64 / c.warmup as f64).min(1.0) };
    let done = step as f64 / c.steps as f64;
    let fall = match c.schedule {
        Schedule::Cosine => {
            let start = (c.warmup as f64 / c.steps as f64).min(1.0);
            let x = ((done - start) / (1.0 - start).max(f64::EPSILON)).clamp(0.0, 1.0);
            c.final_lr + (1.0 - c.final_lr) * 0.5 * (1.0 + (std::f64::consts::PI * x).cos())
        }
        Schedule::Trapezoid if done < c.hold => 1.0,
        Schedule::Trapezoid => {
            let x = (done - c.hold) / (1.0 - c.hold).max(f64::EPSILON);
            (1.0 - (1.0 - c.final_lr) * x).max(c.final_lr)
        }
    };
    warm * fall
}

/// Weight of the write penalty at `step`.
pub fn sparsity(w: &WriteSparsity, step: u64) -> f64 {
    if step >= w.end {
        return w.weight;
    }
    w.weight * step.saturating_sub(w.start) as f64 / (w.end - w.start) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trapezoid_warms_holds_and_falls() {
        let c = TrainConfig { steps: 700, ..TrainConfig::default() };
        assert_eq!(rate(&c, 0), 0.02);
        assert_eq!(rate(&c, 49), 1.0);
        assert_eq!(rate(&c, 419), 1.0);
        assert!((rate(&c, 560) - 0.525).abs() < 1e-12);
        assert!(rate(&c, 699) < 0.06 && rate(&c, 5000) == 0.05);
    }

    #[test]
    fn cosine_falls_to_its_end() {
        let c = TrainConfig { steps: 100, warmup: 10, schedule: Schedule::Cosine, ..TrainConfig::default() };
        assert_eq!(rate(&c, 10), 1.0);
        assert!((rate(&c, 55) - 0.525).abs() < 1e-12);
        assert!((rate(&c, 100) - 0.05).abs() < 1e-12);
        let all_warm = TrainConfig { steps: 5, warmup: 10, ..c };
        assert!((0..5).all(|s| rate(&all_warm, s).is_finite()));
    }

    #[test]
    fn the_penalty_rises_between_its_ends() {
        let w = WriteSparsity { weight: 0.3, start: 350, end: 550, ..WriteSparsity::default() };
        assert_eq!((sparsity(&w, 0), sparsity(&w, 350), sparsity(&w, 550)), (0.0, 0.0, 0.3));
        assert!((sparsity(&w, 450) - 0.15).abs() < 1e-12);
        assert_eq!(sparsity(&WriteSparsity { weight: 0.1, ..WriteSparsity::default() }, 0), 0.1);
    }
}
