//! ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004), as PyPI's `rouge-score` computes them without a stemmer:
//! lower case, words of `a`–`z` and `0`–`9`, of several references the best for each measure.

use std::collections::HashMap;

/// F-measures, each in 0…1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// Of words.
    pub r1: f64,
    /// Of pairs of words.
    pub r2: f64,
    /// Of the longest common subsequence of words.
    pub rl: f64,
}

impl Rouge {
    /// Of a prediction against the best of its references, measure by measure; 0 without references.
    pub fn of(prediction: &str, references: &[&str]) -> Rouge {
        let prediction = words(prediction);
        let prediction: Vec<&str> = prediction.iter().map(String::as_str).collect();
        let mut best = Rouge::default();
        for reference in references {
            let reference = words(reference);
            let reference: Vec<&str> = reference.iter().map(String::as_str).collect();
            best.r1 = best.r1.max(overlap(&reference, &prediction, 1));
            best.r2 = best.r2.max(overlap(&reference, &prediction, 2));
            let common = subsequence(&reference, &prediction);
            best.rl = best.rl.max(f_measure(common, reference.len(), prediction.len()));
        }
        best
    }

    /// The mean of several.
    pub fn mean(all: &[Rouge]) -> Rouge {
        let n = all.len().max(1) as f64;
        let sum = |f: fn(&Rouge) -> f64| all.iter().map(f).sum::<f64>() / n;
        Rouge { r1: sum(|r| r.r1), r2: sum(|r| r.r2), rl: sum(|r| r.rl) }
    }

    /// The geometric mean of the three.
    pub fn geometric(&self) -> f64 {
        (self.r1 * self.r2 * self.rl).cbrt()
    }
}

/// Runs of letters and digits, in lower case.
fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.split(|c| !word(c)).filter(|w| !w.is_empty()).map(str::to_string).collect()
}

/// `2 p r / (p + r)` of `common` things out of two counts.
fn f_measure(common: usize, reference: usize, prediction: usize) -> f64 {
    if common == 0 { 0.0 } else { 2.0 * common as f64 / (reference + prediction) as f64 }
}

/// F-measure of the runs of `n` words.
fn overlap(reference: &[&str], prediction: &[&str], n: usize) -> f64 {
    let mut counts: HashMap<&[&str], usize> = HashMap::new();
    for gram in reference.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let mut common = 0;
    for gram in prediction.windows(n) {
        if let Some(left) = counts.get_mut(gram).filter(|left| **left > 0) {
            *left -= 1;
            common += 1;
        }
    }
    let grams = |words: &[&str]| (words.len() + 1).saturating_sub(n);
    f_measure(common, grams(reference), grams(prediction))
}

/// Length of the longest common subsequence.
fn subsequence(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn the_documented_example() {
        // rouge-score's own README: precision, recall, F of "the quick brown dog jumps on the log."
        let r = Rouge::of("the quick brown dog jumps on the log.", &["The quick brown fox jumps over the lazy dog"]);
        assert!(near(r.r1, 12.0 / 17.0) && near(r.rl, 10.0 / 17.0), "{r:?}");
        assert!(near(r.r2, 4.0 / 15.0), "{r:?}");
        assert!(near(r.geometric(), (r.r1 * r.r2 * r.rl).powf(1.0 / 3.0)));
    }

    #[test]
    fn words_count_as_often_as_they_are_there() {
        assert!(near(Rouge::of("a a a", &["a a b"]).r1, 2.0 / 3.0));
        assert_eq!(Rouge::of("", &["a"]), Rouge::default());
        assert_eq!(Rouge::of("a", &[]), Rouge::default());
        assert_eq!(Rouge::of("a", &["a"]), Rouge { r1: 1.0, r2: 0.0, rl: 1.0 });
        assert_eq!(words("It's 9, naïve—yes!"), ["it", "s", "9", "na", "ve", "yes"]);
    }

    #[test]
    fn the_best_reference_counts_for_each_measure() {
        let r = Rouge::of("a b c d", &["d c b a", "a b x y"]);
        assert!(near(r.r1, 1.0) && near(r.r2, 1.0 / 3.0) && near(r.rl, 0.5), "{r:?}");
        let mean = Rouge::mean(&[r, Rouge::default()]);
        assert!(near(mean.r1, 0.5));
    }
}
