//! Counts with their uncertainty.

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that were right.
    pub hits: u64,
    /// All.
    pub n: u64,
}

impl Count {
    /// Counts one more.
    pub fn add(&mut self, hit: bool) {
        self.hits += u64::from(hit);
        self.n += 1;
    }

    /// Counts those of another.
    pub fn join(&mut self, other: Count) {
        self.hits += other.hits;
        self.n += other.n;
    }

    /// Fraction that were right, 0 of none.
    pub fn rate(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.hits as f64 / self.n as f64 }
    }

    /// 95 % interval of the rate.
    pub fn interval(&self) -> [f64; 2] {
        wilson(self.hits, self.n, Z95)
    }
}

/// Two-sided 95 % point of the normal distribution.
pub const Z95: f64 = 1.959_963_984_540_054;

/// Wilson's score interval of `hits` of `n` at `z` standard deviations (Wilson 1927, JASA 22:209):
/// sound for small n and for rates of 0 and 1. [0, 1] for n = 0.
pub fn wilson(hits: u64, n: u64, z: f64) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let (p, n, z2) = (hits as f64 / n as f64, n as f64, z * z);
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // exact at the ends, where rounding would leave a crumb
    [if hits == 0 { 0.0 } else { centre - half }, if p == 1.0 { 1.0 } else { centre + half }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        // Newcombe 1998, Statistics in Medicine 17:857, table I (method 3).
        for (hits, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let [l, h] = wilson(hits, n, Z95);
            assert!((l - low).abs() < 6e-5 && (h - high).abs() < 6e-5, "{hits}/{n}: {l} {h}");
        }
        assert_eq!(wilson(0, 0, Z95), [0.0, 1.0]);
        let all = Count { hits: 300, n: 300 };
        assert!(all.interval()[1] == 1.0 && all.interval()[0] > 0.987);
    }

    #[test]
    fn counts_add_up() {
        let mut c = Count::default();
        assert_eq!(c.rate(), 0.0);
        c.add(true);
        c.add(false);
        c.join(Count { hits: 2, n: 2 });
        assert_eq!((c.hits, c.n, c.rate()), (3, 4, 0.75));
    }
}
