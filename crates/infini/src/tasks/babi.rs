//! bAbI: small stories of facts with questions of one word (Weston et al. 2015, arXiv 1502.05698).

use std::path::{Path, PathBuf};

use infini_format::io::{self, RealIo};

use crate::error::{Error, Result};

/// Largest file that is read.
const MAX_FILE: u64 = 64 << 20;
/// Most facts of a story.
const MAX_FACTS: usize = 4096;

/// A question with everything that was told before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Sentences, first to last.
    pub facts: Vec<String>,
    /// The question, with its question mark.
    pub text: String,
    /// The word that answers it.
    pub answer: String,
}

/// The file of task `task` ("qa1" …) and part `split` ("train", "test") in a folder, as the archive names it.
///
/// # Errors
/// A folder without it.
pub fn file(folder: &Path, task: &str, split: &str) -> Result<PathBuf> {
    let missing = || {
        Error::Input(format!(
            "no bAbI data: {}: holds no {task}_…_{split}.txt: name a folder of bAbI v1.2, such as tasks_1-20_v1-2/en",
            folder.display()
        ))
    };
    let entries = std::fs::read_dir(folder).map_err(|_| missing())?;
    let fits = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or("");
        name.starts_with(&format!("{task}_")) && name.ends_with(&format!("_{split}.txt"))
    };
    entries.filter_map(|e| e.ok().map(|e| e.path())).find(fits).ok_or_else(missing)
}

/// The questions of a file.
///
/// # Errors
/// A file that cannot be read, a line that is neither a fact nor a question, no question at all.
pub fn read(path: &Path) -> Result<Vec<Question>> {
    let bytes = io::read(&RealIo, path, MAX_FILE).map_err(|e| Error::Input(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::Input(format!("{}: is no UTF-8", path.display())))?;
    parse(&text).map_err(|e| Error::Input(format!("{}: {e}", path.display())))
}

fn parse(text: &str) -> Result<Vec<Question>, String> {
    let (mut facts, mut questions) = (Vec::new(), Vec::new());
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let bad = |why: &str| format!("line {}: {why}", i + 1);
        let (number, rest) = line.split_once(' ').ok_or_else(|| bad("is no numbered sentence"))?;
        let number: usize = number.parse().map_err(|_| bad("does not begin with a number"))?;
        if number == 1 {
            facts.clear();
        }
        match rest.split_once('\t') {
            None => facts.push(rest.trim().to_string()),
            Some((text, rest)) => {
                let answer = rest.split('\t').next().unwrap_or("").trim();
                if answer.is_empty() {
                    return Err(bad("a question without an answer"));
                }
                let (facts, text) = (facts.clone(), text.trim().to_string());
                questions.push(Question { facts, text, answer: answer.into() });
            }
        }
        if facts.len() > MAX_FACTS {
            return Err(bad("a story of too many facts: is this bAbI?"));
        }
    }
    if questions.is_empty() { Err("holds no question".into()) } else { Ok(questions) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORIES: &str = "1 Ann went to the attic.\n2 Bob moved to the cellar.\n3 Where is Ann? \tattic\t1\n\
                           4 Ann went to the cellar.\n5 Where is Ann?\tcellar\t4\n1 Cy took the cup.\n2 Who has the cup? \tCy\t1\n";

    #[test]
    fn a_question_knows_what_was_told_before_it() {
        let q = parse(STORIES).unwrap();
        let told: Vec<_> = q.iter().map(|q| (q.facts.len(), q.text.as_str(), q.answer.as_str())).collect();
        assert_eq!(
            told,
            [(2, "Where is Ann?", "attic"), (3, "Where is Ann?", "cellar"), (1, "Who has the cup?", "Cy")]
        );
        assert_eq!(q[1].facts[2], "Ann went to the cellar.");
    }

    #[test]
    fn what_is_no_babi_is_refused_with_its_line() {
        for (text, why) in [
            ("", "no question"),
            ("1 Ann went.\n", "no question"),
            ("1 Ann went.\nhere\n", "line 2"),
            ("x Ann went.\n", "number"),
            ("1 Where?\t\t1\n", "without an answer"),
            (&"1 A.\n2 B.\n".replace("1 A", "3 A").repeat(3000), "too many"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{why}");
        }
        let home = tempfile::tempdir().unwrap();
        assert!(file(home.path(), "qa1", "test").unwrap_err().to_string().contains("bAbI"));
        std::fs::write(home.path().join("qa1_single_test.txt"), STORIES).unwrap();
        std::fs::write(home.path().join("qa10_other_test.txt"), "1 x\n").unwrap();
        let path = file(home.path(), "qa1", "test").unwrap();
        assert_eq!(read(&path).unwrap().len(), 3);
        assert!(file(home.path(), "qa1", "train").is_err());
        let e = read(&home.path().join("qa10_other_test.txt")).unwrap_err().to_string();
        assert!(e.contains("qa10_other_test.txt"), "{e}");
    }
}
