//! Whether an answer is right.

use super::stats::Count;
use crate::tasks::wording::UNKNOWN;

/// **Exact match**: the greedy text, leading blanks stripped, starts with the key and no digit
/// follows. A key of digits must not go on; the word "unknown" must end there.
pub fn exact(answer: &str, key: Option<&str>) -> bool {
    let expected = key.unwrap_or(UNKNOWN);
    let Some(rest) = answer.trim_start().strip_prefix(expected) else { return false };
    !rest.starts_with(|c: char| c.is_ascii_digit() || (key.is_none() && c.is_alphanumeric()))
}

/// Digits of the key that stand in the answer at their place, of all its digits.
pub fn digits(answer: &str, key: &str) -> Count {
    let answer = answer.trim_start();
    let hits = answer.chars().zip(key.chars()).filter(|(a, k)| a == k).count();
    Count { hits: hits as u64, n: key.chars().count() as u64 }
}

/// The first run of digits in an answer.
pub fn first_number(answer: &str) -> Option<&str> {
    let digit = |c: char| c.is_ascii_digit();
    let number = &answer[answer.find(digit)?..];
    Some(&number[..number.find(|c| !digit(c)).unwrap_or(number.len())])
}

/// Whether an answer names a number.
pub fn names_a_number(answer: &str) -> bool {
    answer.contains(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_match() {
        for (answer, key, right) in [
            (" 48213.", Some("48213"), true),
            ("48213", Some("48213"), true),
            ("\n\t 48213 and so on", Some("48213"), true),
            (" 48213abc", Some("48213"), true),
            (" 482131", Some("48213"), false),
            (" 4821", Some("48213"), false),
            (" 4 8213", Some("48213"), false),
            (" It is 48213", Some("48213"), false),
            (" \"48213", Some("48213"), false),
            ("", Some("48213"), false),
            (" unknown.", None, true),
            (" unknown", None, true),
            (" unknown1", None, false),
            (" unknowns", None, false),
            (" 48213", None, false),
            (" unknown.", Some("48213"), false),
        ] {
            assert_eq!(exact(answer, key), right, "{answer:?} for {key:?}");
        }
    }

    #[test]
    fn numbers_are_found() {
        for (answer, number) in
            [(" 48 or 9", Some("48")), (" It is 482.", Some("482")), ("7", Some("7")), (" no", None)]
        {
            assert_eq!(first_number(answer), number, "{answer:?}");
            assert_eq!(names_a_number(answer), number.is_some());
        }
    }

    #[test]
    fn digits_count_at_their_place() {
        for (answer, key, hits) in [
            (" 48213.", "48213", 5),
            (" 48203", "48213", 4),
            ("8213", "48213", 0),
            (" 4.8213", "48213", 1),
            ("", "48213", 0),
        ] {
            assert_eq!(digits(answer, key), Count { hits, n: 5 }, "{answer:?}");
        }
    }
}
