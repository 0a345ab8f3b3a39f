//! Needles in a text: pieces put in between its sentences.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::text::Tokenizer;

/// Which tokens end a sentence.
pub fn sentence_ends(tokenizer: &Tokenizer) -> Vec<bool> {
    let ends = |id| tokenizer.decode(&[id]).trim_end_matches(['"', '”', '’', '\'']).ends_with(['.', '!', '?']);
    (0..tokenizer.vocab_size() as u32).map(ends).collect()
}

/// `text` with the pieces put in, in their order, at places drawn evenly and moved on to the next end of a sentence.
pub fn hide(rng: &mut ChaCha8Rng, text: &[u32], pieces: &[Vec<u32>], ends: &[bool]) -> Vec<u32> {
    let mut places: Vec<usize> = pieces.iter().map(|_| rng.random_range(0..=text.len())).collect();
    places.sort_unstable();
    let mut out = Vec::with_capacity(text.len() + pieces.iter().map(Vec::len).sum::<usize>());
    let mut at = 0;
    for (place, piece) in places.into_iter().zip(pieces) {
        // the very beginning is between sentences, too
        let end = match place {
            0 => 0,
            n => text[n - 1..].iter().position(|id| ends[*id as usize]).map_or(text.len(), |i| n + i),
        };
        out.extend_from_slice(&text[at..end.max(at)]);
        at = end.max(at);
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(&text[at..]);
    out
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::tasks::tests::tokenizer;

    #[test]
    fn pieces_stand_in_order_between_sentences() {
        let t = tokenizer();
        let ends = sentence_ends(t);
        let text = t.encode(&" The grass is green. The sky is blue.".repeat(20));
        let pieces: Vec<Vec<u32>> = ["ONE.", "TWO.", "THREE."].iter().map(|p| t.encode(&format!(" {p}"))).collect();
        let mut first = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let out = t.decode(&hide(&mut rng, &text, &pieces, &ends));
            let places: Vec<usize> = ["ONE", "TWO", "THREE"].iter().map(|p| out.find(p).unwrap()).collect();
            assert!(places.is_sorted(), "{out}");
            assert!(places.iter().all(|p| *p < 2 || out[..p - 1].ends_with('.')), "{out}");
            let rest = ["ONE", "TWO", "THREE"].iter().fold(out.clone(), |o, p| o.replace(&format!(" {p}."), ""));
            assert_eq!(rest, t.decode(&text));
            first.insert(places[0]);
        }
        assert!(first.len() > 10);
        assert_eq!(hide(&mut ChaCha8Rng::seed_from_u64(0), &[], &pieces, &ends), pieces.concat());
    }
}
