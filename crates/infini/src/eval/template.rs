//! Prompt files: anybody's own words around anybody's own filler.

use crate::error::{Error, Result};
use crate::tasks::wording;

/// A prompt with holes: `{filler}` stands exactly twice (the depth splits the filler between them),
/// `{needle}` is the bare key and stands between them, several times if wanted, `{question}` is
/// optional and gives way to "What is the pass key? The pass key is". A newline at the end is stripped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What comes before the filler.
    pub head: String,
    /// What stands in the filler, with `{needle}`.
    pub needle: String,
    /// What comes after the filler; the answer continues it.
    pub question: String,
}

impl Template {
    /// The paper's prompt.
    pub fn paper() -> Self {
        Template {
            head: wording::INTRO.into(),
            needle: wording::KEY.replace("{k}", "{needle}"),
            question: wording::QUESTION.into(),
        }
    }

    /// Reads the text of a prompt file.
    ///
    /// # Errors
    /// A hole that is missing, is there too often or in the wrong place.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: String| Err(Error::Input(format!("prompt file: {why}")));
        let text = text.strip_suffix('\n').map_or(text, |t| t.strip_suffix('\r').unwrap_or(t));
        let parts: Vec<&str> = text.split("{filler}").collect();
        let &[head, needle, question] = parts.as_slice() else {
            return bad(format!(
                "{{filler}} stands {} times: it must stand exactly twice, the needle is hidden between them",
                parts.len() - 1
            ));
        };
        if !needle.contains("{needle}") {
            return bad("no {needle} stands between the two {filler}: put the key there".into());
        }
        if head.contains("{needle}") || question.contains("{needle}") {
            return bad("{needle} stands outside the two {filler}: the key may only stand between them".into());
        }
        if head.contains("{question}") || needle.contains("{question}") {
            return bad("{question} stands before the second {filler}: it belongs after it".into());
        }
        if question.matches("{question}").count() > 1 {
            return bad("{question} stands more than once".into());
        }
        let question = question.replace("{question}", wording::QUESTION.trim_start());
        if question.is_empty() {
            return bad("nothing stands after the second {filler}: end with a question or {question}".into());
        }
        Ok(Template { head: head.into(), needle: needle.into(), question })
    }

    /// The needle with its key.
    pub fn with_key(&self, key: &str) -> String {
        self.needle.replace("{needle}", key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_taken_apart() {
        let t = Template::parse("Read.{filler} Code {needle}, yes {needle}!{filler} Code?\n").unwrap();
        assert_eq!((t.head.as_str(), t.question.as_str()), ("Read.", " Code?"));
        assert_eq!(t.with_key("77"), " Code 77, yes 77!");
        let t = Template::parse("{filler}{needle}{filler} {question}\r\n").unwrap();
        assert_eq!(t, Template { head: "".into(), needle: "{needle}".into(), question: wording::QUESTION.into() });
        // One newline is stripped, no more.
        assert_eq!(Template::parse("{filler}{needle}{filler}Q:\n\n").unwrap().question, "Q:\n");
        let paper = "{i}{filler} The pass key is {needle}. Remember it. {needle} is the pass key.{filler} {question}";
        assert_eq!(Template::parse(&paper.replace("{i}", wording::INTRO)).unwrap(), Template::paper());
    }

    #[test]
    fn wrong_prompts_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "{filler} stands 0 times"),
            ("{filler} {needle}", "{filler} stands 1 times"),
            ("{filler}{needle}{filler}{filler}?", "{filler} stands 3 times"),
            ("{filler} nothing {filler}?", "no {needle}"),
            ("{needle}{filler}{needle}{filler}?", "outside"),
            ("{filler}{needle}{filler}{needle}?", "outside"),
            ("{filler}{needle}{question}{filler}?", "before the second"),
            ("{question}{filler}{needle}{filler}?", "before the second"),
            ("{filler}{needle}{filler}{question}{question}", "more than once"),
            ("{filler}{needle}{filler}\n", "nothing stands after"),
        ] {
            let e = Template::parse(text).unwrap_err().to_string();
            assert!(e.contains(why), "{text:?}: {e}");
        }
    }
}
