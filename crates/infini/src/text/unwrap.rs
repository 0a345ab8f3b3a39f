//! Joins hard-wrapped lines, as plain-text books have them: a line end inside a paragraph is a blank.

/// Joins the lines of a text that arrives in parts. Runs of blanks and single line ends become one blank, empty lines one
/// empty line, blanks at both ends of the text nothing. Wherever the text is parted, the result is the same.
///
/// ```
/// let mut unwrap = infini::text::unwrap::Unwrap::default();
/// let mut out = String::new();
/// unwrap.push("It was  the best\r\nof ", &mut out);
/// unwrap.push("times.\n\n\n\n  It was\n", &mut out);
/// assert_eq!(out, "It was the best of times.\n\nIt was");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Unwrap {
    /// Something but white space was seen.
    started: bool,
    /// White space that waits for what comes after it: line ends in it, if there is any.
    waiting: Option<u32>,
}

impl Unwrap {
    /// Takes the next part and appends what is certain by now to `out`.
    pub fn push(&mut self, part: &str, out: &mut String) {
        for c in part.chars() {
            if c.is_ascii_whitespace() {
                let ends = self.waiting.unwrap_or(0).saturating_add(u32::from(c == '\n'));
                self.waiting = Some(ends);
                continue;
            }
            match self.waiting.take() {
                Some(ends) if self.started => out.push_str(if ends > 1 { "\n\n" } else { " " }),
                _ => {}
            }
            self.started = true;
            out.push(c);
        }
    }
}

/// [`Unwrap`] of a whole text.
pub fn unwrap(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    Unwrap::default().push(text, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_stay_and_lines_are_joined_wherever_the_text_is_parted() {
        let text = "  \n TITLE\n\nOne line\r\nand  another\tof\nit.\n \n\n\u{a0}Two \u{e9}t\u{e9}\n\n";
        let whole = unwrap(text);
        assert_eq!(whole, "TITLE\n\nOne line and another of it.\n\n\u{a0}Two \u{e9}t\u{e9}");
        for at in (0..text.len()).filter(|i| text.is_char_boundary(*i)) {
            let (mut parts, mut out) = (Unwrap::default(), String::new());
            parts.push(&text[..at], &mut out);
            parts.push(&text[at..], &mut out);
            assert_eq!(out, whole, "parted at {at}");
        }
        assert_eq!(unwrap(&whole), whole);
    }
}
