//! What each architecture keeps of the past, by the paper's own counting (arXiv 2404.07143, Table 1): the numbers of its
//! context memory from its configuration.

/// The sizes that the formulas take, in the paper's letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Layers.
    pub l: u64,
    /// Heads.
    pub h: u64,
    /// Width of keys.
    pub dk: u64,
    /// Width of values.
    pub dv: u64,
    /// Tokens of a segment, which is also the cache of Transformer-XL.
    pub n: u64,
}

impl Sizes {
    /// Those of the paper's language models: 12 layers, 8 heads of 128, segments of 2,048.
    pub const PAPER: Sizes = Sizes { l: 12, h: 8, dk: 128, dv: 128, n: 2048 };

    /// Transformer-XL: keys and values of the previous segment in every layer.
    pub fn transformer_xl(&self) -> u64 {
        (self.dk + self.dv) * self.h * self.n * self.l
    }

    /// Memorizing Transformer: a store of `places` keys and values in one layer, and the cache of Transformer-XL in all
    /// (the paper does not itemise its figure; with both it comes out).
    pub fn memorizing(&self, places: u64) -> u64 {
        (self.dk + self.dv) * self.h * places + self.transformer_xl()
    }

    /// RMT: `p` summary vectors of the model's width, read and written, in every layer.
    pub fn rmt(&self, p: u64) -> u64 {
        self.h * self.dk * p * self.l * 2
    }

    /// Infini-attention: M and z of every head and layer.
    pub fn infini(&self) -> u64 {
        self.dk * (self.dv + 1) * self.h * self.l
    }
}

/// Name, numbers kept and how many times fewer that is than Memorizing with 65,000 places, for the paper's table of language
/// models.
pub fn paper_table() -> Vec<(&'static str, u64, f64)> {
    let s = Sizes::PAPER;
    // 65K in the paper are 65,000 x 2,048 numbers, which is what 183M is the sum of
    let most = s.memorizing(65_000);
    [
        ("Transformer-XL", s.transformer_xl()),
        ("Memorizing Transformer", most),
        ("RMT, 100 summary vectors", s.rmt(100)),
        ("Infini-attention", s.infini()),
    ]
    .map(|(name, n)| (name, n, most as f64 / n as f64))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_figures_come_out() {
        let rounded: Vec<(u64, u64)> =
            paper_table().iter().map(|(_, n, times)| ((n + 50_000) / 100_000, *times as u64)).collect();
        // 50M and 3.7x, 183M, 2.5M and 73x, 1.6M and 114x; the factors from unrounded sizes are a little off
        assert_eq!(rounded, [(503, 3), (1835, 1), (25, 74), (16, 115)]);
        let [_, most, _, infini] = paper_table()[..] else { panic!("four rows") };
        assert_eq!((most.1 / 1_000_000, (infini.1 + 50_000) / 100_000), (183, 16));
        assert_eq!((183.0f64 / 1.6).round(), 114.0, "the paper divides the rounded figures");
    }
}
