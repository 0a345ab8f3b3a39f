//! Which tokens of a document a long memory can help with: those of words, or pairs of words, that stood there before,
//! by how far back.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::text::Tokenizer;

/// Where a word, or a pair, last stood before the token that is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The token is no part of a word.
    NoWord,
    /// Nowhere in the document.
    Never,
    /// Inside the window, at least in part.
    Window,
    /// Wholly before the window, so many tokens back (from first token to first token).
    Beyond(u32),
}

/// For every token of a document where its word, and the pair of its word and the one before, last stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurrence {
    /// Of the word.
    pub word: Vec<Seen>,
    /// Of the pair.
    pub pair: Vec<Seen>,
}

/// A word of the document: runs of letters and apostrophes, as they are spelt.
struct Word {
    first: u32,
    last: u32,
    /// Hashes of the word and of the pair that it ends.
    keys: [u64; 2],
}

/// The texts of all ids, which [`recurrence`] needs.
pub fn texts(tokenizer: &Tokenizer) -> Vec<String> {
    (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.decode(&[id])).collect()
}

/// Looks at `tokens`, whose texts are `texts[id]`; `visible(t)` is the first token that the prediction of token t can see
/// exactly. A token belongs to the word of its last character.
pub fn recurrence(tokens: &[u32], texts: &[String], visible: impl Fn(usize) -> usize) -> Recurrence {
    let mut words: Vec<Word> = Vec::new();
    let mut owner = vec![u32::MAX; tokens.len()];
    let (mut spelling, mut open) = (String::new(), false);
    let mut before = 0;
    let close = |words: &mut Vec<Word>, spelling: &mut String, before: &mut u64| {
        if let Some(word) = words.last_mut() {
            let key = hash(&spelling);
            word.keys = [key, hash(&(*before, key))];
            *before = key;
        }
        spelling.clear();
    };
    for (t, id) in tokens.iter().enumerate() {
        for c in texts[*id as usize].chars() {
            let letter = c.is_alphabetic() || (open && (c == '\'' || c == '\u{2019}'));
            if letter && !open {
                words.push(Word { first: t as u32, last: t as u32, keys: [0; 2] });
            } else if !letter && open {
                close(&mut words, &mut spelling, &mut before);
            }
            open = letter;
            if letter {
                spelling.push(c);
            }
        }
        if open {
            let i = words.len() - 1;
            words[i].last = t as u32;
            owner[t] = i as u32;
        }
    }
    if open {
        close(&mut words, &mut spelling, &mut before);
    }
    let [word, pair] = [0, 1].map(|k| {
        let mut latest: HashMap<u64, u32> = HashMap::new();
        let previous: Vec<Option<u32>> =
            words.iter().enumerate().map(|(i, w)| latest.insert(w.keys[k], i as u32)).collect();
        let seen = |(t, owner): (usize, &u32)| {
            if *owner == u32::MAX {
                return Seen::NoWord;
            }
            match previous[*owner as usize].map(|p| &words[p as usize]) {
                None => Seen::Never,
                Some(p) if (p.last as usize) < visible(t) => Seen::Beyond(words[*owner as usize].first - p.first),
                Some(_) => Seen::Window,
            }
        };
        owner.iter().enumerate().map(seen).collect()
    });
    Recurrence { word, pair }
}

fn hash(x: &impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    x.hash(&mut h);
    h.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_pairs_are_found_where_they_last_stood() {
        let vocabulary = ["the", " cat", " sat", " on", " c", "at", ".", " The", "'s", " "];
        let texts: Vec<String> = vocabulary.map(String::from).to_vec();
        // the cat sat. the c|at 's on the cat
        let tokens = [0, 1, 2, 6, 9, 0, 4, 5, 8, 3, 9, 0, 1];
        let window = 4;
        let r = recurrence(&tokens, &texts, |t| t.saturating_sub(window));
        use Seen::*;
        assert_eq!(r.word[..7], [Never, Never, Never, NoWord, NoWord, Beyond(5), Never]);
        // "cat's" is another word than "cat"
        assert_eq!(r.word[6..10], [Never, Never, Never, Never]);
        assert_eq!(r.word[10..], [NoWord, Beyond(6), Beyond(11)]);
        // "the cat" stood at the beginning, "on the" never
        assert_eq!((r.pair[11], r.pair[12]), (Never, Beyond(11)));
        assert_eq!(recurrence(&[0, 9, 0], &texts, |_| 0).word, [Never, NoWord, Window]);
        assert_eq!(recurrence(&[], &texts, |_| 0).word, []);
    }
}
