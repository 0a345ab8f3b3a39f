//! A seal: the SHA-256 of a JSON text, kept inside that text.
//!
//! The text has one `"seal":"…"` with 64 digits. The digest is taken with the digits set to zero, so it covers every
//! other byte: values, key order, padding. Inside JSON strings quotes are escaped, so the marker cannot be forged by a
//! value.

use std::ops::Range;

use crate::hash;

/// The metadata key that holds the seal.
pub(crate) const KEY: &str = "seal";

/// What stands in the seal's place while the digest is taken.
pub(crate) const BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

const MARKER: &[u8] = b"\"seal\":\"";

/// Puts the digest in the place of [`BLANK`].
///
/// # Panics
/// If the text has no blank seal or more than one: the writer's own mistake.
pub(crate) fn close(text: &mut [u8]) {
    let place = place(text).expect("the text has one seal");
    assert_eq!(&text[place.clone()], BLANK.as_bytes(), "the seal is blank before it is closed");
    let digest = hash::sha256(text);
    text[place].copy_from_slice(digest.as_bytes());
}

/// Whether the text is as it was when its seal was closed.
pub(crate) fn holds(text: &[u8]) -> bool {
    let Some(place) = place(text) else { return false };
    let mut blank = text.to_vec();
    blank[place.clone()].copy_from_slice(BLANK.as_bytes());
    hash::sha256(&blank).as_bytes() == &text[place]
}

fn place(text: &[u8]) -> Option<Range<usize>> {
    let mut places = text.windows(MARKER.len()).enumerate().filter(|(_, window)| *window == MARKER);
    let start = places.next()?.0 + MARKER.len();
    let range = start..start.checked_add(BLANK.len())?;
    (places.next().is_none() && range.end <= text.len()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_breaks_the_seal() {
        let mut text = format!("{{\"a\":1, \"seal\":\"{BLANK}\",\"b\":\"\\\"seal\\\":\\\"\"}}  ").into_bytes();
        assert!(!holds(&text));
        close(&mut text);
        assert!(holds(&text));
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!holds(&bad), "bit {bit}");
        }
        let twice = [text.as_slice(), text.as_slice()].concat();
        assert!(!holds(&twice) && !holds(b"{}") && !holds(b"\"seal\":\"12"));
    }
}
