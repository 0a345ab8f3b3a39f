//! An endless generator of English sentences, written for this project: filler that holds no text
//! of anybody else, with a vocabulary of some thousand words, names, dialogue and numbers in digits.
//!
//! Sentences are grammatical and mean nothing. A seed gives the same text everywhere.

pub mod words;

use std::sync::LazyLock;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use words::{ADJECTIVES, ADVERBS, FIRST_NAMES, INTRANSITIVE, LAST_NAMES, NOUNS, PLACES, VERBS};

/// A word list, parted.
pub(crate) fn list(words: &'static str) -> Vec<&'static str> {
    words.split_whitespace().collect()
}

struct Lists {
    nouns: Vec<&'static str>,
    adjectives: Vec<&'static str>,
    verbs: Vec<(&'static str, String)>,
    intransitive: Vec<(&'static str, String)>,
    adverbs: Vec<&'static str>,
    first: Vec<&'static str>,
    last: Vec<&'static str>,
    places: Vec<&'static str>,
}

static LISTS: LazyLock<Lists> = LazyLock::new(|| Lists {
    nouns: list(NOUNS),
    adjectives: list(ADJECTIVES),
    verbs: VERBS.split_whitespace().map(verb).collect(),
    intransitive: INTRANSITIVE.split_whitespace().map(verb).collect(),
    adverbs: list(ADVERBS),
    first: list(FIRST_NAMES),
    last: list(LAST_NAMES),
    places: list(PLACES),
});

/// Base and past of an entry `base` or `base/past`.
fn verb(entry: &'static str) -> (&'static str, String) {
    match entry.split_once('/') {
        Some((base, past)) => (base, past.into()),
        None if entry.ends_with('e') => (entry, format!("{entry}d")),
        None if entry.ends_with('y') && !ends_in_vowel_y(entry) => (entry, format!("{}ied", &entry[..entry.len() - 1])),
        None => (entry, format!("{entry}ed")),
    }
}

fn ends_in_vowel_y(word: &str) -> bool {
    ["ay", "ey", "oy", "uy"].iter().any(|e| word.ends_with(e))
}

/// The third person of a verb, or the plural of a noun.
fn with_s(word: &str) -> String {
    match word {
        "child" => return "children".into(),
        "mouse" => return "mice".into(),
        "goose" => return "geese".into(),
        "ox" => return "oxen".into(),
        "calf" | "leaf" | "loaf" | "scarf" | "shelf" | "thief" | "wolf" => {
            return format!("{}ves", &word[..word.len() - 1]);
        }
        "knife" | "midwife" | "wife" => return format!("{}ves", &word[..word.len() - 2]),
        "deer" | "sheep" | "salmon" | "trout" | "scissors" | "trousers" => return word.into(),
        _ => {}
    }
    if let Some(stem) = word.strip_suffix("man") {
        format!("{stem}men")
    } else if word.ends_with('y') && !ends_in_vowel_y(word) {
        format!("{}ies", &word[..word.len() - 1])
    } else if ["s", "x", "z", "ch", "sh"].iter().any(|e| word.ends_with(e))
        || matches!(word, "go" | "echo" | "tomato" | "potato" | "mosquito" | "volcano")
    {
        format!("{word}es")
    } else {
        format!("{word}s")
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// An endless text, one paragraph after the other.
#[derive(Clone, Debug)]
pub struct Prose {
    rng: ChaCha8Rng,
    /// The people of the current paragraph.
    cast: [String; 3],
}

impl Prose {
    /// The text of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut prose = Prose { rng: ChaCha8Rng::seed_from_u64(seed), cast: Default::default() };
        prose.new_cast();
        prose
    }

    /// Paragraphs, parted by a blank, until at least `bytes` bytes are there.
    pub fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 1024);
        while text.len() < bytes {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&self.paragraph());
        }
        text
    }

    /// 2 to 9 sentences about the same few people.
    pub fn paragraph(&mut self) -> String {
        self.new_cast();
        let sentences: Vec<String> = (0..self.rng.random_range(2..=9)).map(|_| self.sentence()).collect();
        sentences.join(" ")
    }

    /// One sentence, or a line of dialogue with its answer.
    pub fn sentence(&mut self) -> String {
        let text = match self.rng.random_range(0..30) {
            0..=6 => self.clause() + ".",
            7 => format!("{}, {} {}.", self.clause(), self.one_of(&["and", "but", "so", "yet"]), self.clause()),
            8 => format!("{} {}, {}.", self.one_of(&CONJUNCTIONS), self.clause(), self.clause()),
            9 => format!("{} {} {}.", self.clause(), self.one_of(&CONJUNCTIONS), self.clause()),
            10 => format!("{}, {}.", self.when(), self.clause()),
            11 => format!("{}, {}, {}.", self.when(), self.adverb(), self.clause()),
            12 => format!("{}; {}.", self.clause(), self.clause()),
            13 => format!("{}, which {} {}, {}.", self.the_thing(), self.past(), self.thing(), self.deed()),
            14 => format!("{}, who {}, {} {}.", self.person(), self.deed(), self.past(), self.thing()),
            15 => format!("There {} in {}.", self.there_was(), self.place()),
            16 => format!("There {}: {}, {} and {}.", self.there_was(), self.thing(), self.thing(), self.thing()),
            17 => format!("It was {} {} that {} {}.", self.a(), self.noun(), self.past(), self.thing()),
            18 => format!(
                "{} {} {} than {}.",
                self.the_thing(),
                self.one_of(&["was more", "seemed less"]),
                self.adjective(),
                self.thing()
            ),
            19 => format!("No {} {} without {} {}.", self.noun(), self.past_alone(), self.a_adjective(), self.noun()),
            20 => format!("{} of the {} {}.", self.one_of(&QUANTITIES), self.nouns(), self.deed()),
            21 => format!(
                "{} had {} {} {}, {} {}.",
                self.person(),
                self.number(),
                self.adjective(),
                self.nouns(),
                self.number(),
                self.nouns()
            ),
            22 => format!("{} cost {} {}.", self.the_thing(), self.number(), self.one_of(&UNITS)),
            23 => self.dated() + ".",
            24 => format!("Why did {} {} {}?", self.person(), self.base(), self.thing()),
            25 => format!("What {} {} {}!", self.a_adjective(), self.noun(), self.one_of(&EXCLAMATIONS)),
            26 => format!("\"{},\" {} {}.", capital(&self.remark()), self.one_of(&SAID), self.person()),
            27 => format!(
                "\"{}?\" {} {}. \"{}.\"",
                capital(&self.question()),
                self.one_of(&ASKED),
                self.person(),
                capital(&self.remark())
            ),
            28 => format!(
                "\"{},\" {} {}, \"{}.\"",
                capital(&self.remark()),
                self.one_of(&SAID),
                self.person(),
                self.remark()
            ),
            _ => format!("{} ({}) {}.", self.the_thing(), self.clause(), self.deed()),
        };
        capital(&text)
    }

    fn new_cast(&mut self) {
        self.cast = std::array::from_fn(|_| {
            let (first, last) = (self.one_of(&LISTS.first), self.one_of(&LISTS.last));
            match self.rng.random_range(0..5) {
                0 => format!("{first} {last}"),
                1 => format!("{} {last}", self.one_of(&TITLES)),
                2 => format!("the {}", self.noun()),
                _ => first.into(),
            }
        });
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.rng.random_range(0..words.len())]
    }

    fn chance(&mut self, p: f64) -> bool {
        self.rng.random_bool(p)
    }

    fn noun(&mut self) -> &'static str {
        self.one_of(&LISTS.nouns)
    }

    fn nouns(&mut self) -> String {
        with_s(self.noun())
    }

    fn adjective(&mut self) -> &'static str {
        self.one_of(&LISTS.adjectives)
    }

    fn adverb(&mut self) -> &'static str {
        self.one_of(&LISTS.adverbs)
    }

    fn base(&mut self) -> &'static str {
        LISTS.verbs[self.rng.random_range(0..LISTS.verbs.len())].0
    }

    fn past(&mut self) -> &'static str {
        &LISTS.verbs[self.rng.random_range(0..LISTS.verbs.len())].1
    }

    fn past_alone(&mut self) -> &'static str {
        &LISTS.intransitive[self.rng.random_range(0..LISTS.intransitive.len())].1
    }

    fn base_alone(&mut self) -> &'static str {
        LISTS.intransitive[self.rng.random_range(0..LISTS.intransitive.len())].0
    }

    /// "a" or "an", with a noun or adjective that fits to follow from the caller: they are chosen
    /// by sound only in [`Prose::thing`]; here a determiner that fits any word.
    fn a(&mut self) -> &'static str {
        self.one_of(&["the", "this", "that", "some", "their", "his", "her"])
    }

    fn a_adjective(&mut self) -> String {
        article(self.adjective())
    }

    fn number(&mut self) -> String {
        match self.rng.random_range(0..6) {
            0 => self.rng.random_range(2..10u32).to_string(),
            1 | 2 => self.rng.random_range(10..100u32).to_string(),
            3 => self.rng.random_range(100..1000u32).to_string(),
            4 => format!("{},{:03}", self.rng.random_range(1..100u32), self.rng.random_range(0..1000u32)),
            _ => self.rng.random_range(1000..100_000u32).to_string(),
        }
    }

    /// Somebody of the paragraph, or a stranger.
    fn person(&mut self) -> String {
        match self.rng.random_range(0..8) {
            0 => self.one_of(&["he", "she", "they", "nobody", "everyone", "somebody", "we"]).into(),
            1 => self.thing(),
            _ => self.cast[self.rng.random_range(0..3)].clone(),
        }
    }

    /// A noun phrase.
    fn thing(&mut self) -> String {
        match self.rng.random_range(0..12) {
            0 => article(self.noun()),
            1 | 2 => format!("{} {}", article(self.adjective()), self.noun()),
            3 => format!("the {}, {} {}", self.adjective(), self.adjective(), self.noun()),
            4 => format!("the {} of {}", self.noun(), self.place()),
            5 => format!("the {} {}", self.noun(), self.noun()),
            6 => format!("{} {}", self.number(), self.nouns()),
            7 => format!("{} {}", self.one_of(&DETERMINERS), self.nouns()),
            8 => format!("{}'s {}", self.one_of(&LISTS.first), self.noun()),
            9 => format!(
                "{} {} {}",
                self.one_of(&["his", "her", "their", "our", "my", "your"]),
                self.adjective(),
                self.noun()
            ),
            _ => self.the_thing(),
        }
    }

    fn the_thing(&mut self) -> String {
        if self.chance(0.5) {
            format!("the {} {}", self.adjective(), self.noun())
        } else {
            format!("the {}", self.noun())
        }
    }

    fn place(&mut self) -> String {
        if self.chance(0.5) { self.one_of(&LISTS.places).into() } else { self.the_thing() }
    }

    fn somewhere(&mut self) -> String {
        format!("{} {}", self.one_of(&PREPOSITIONS), self.place())
    }

    fn when(&mut self) -> String {
        match self.rng.random_range(0..5) {
            0 => format!("in {}", self.rng.random_range(1700..2000u32)),
            1 => format!("{} {} later", self.number(), self.one_of(&["days", "hours", "weeks", "years", "minutes"])),
            2 => {
                format!("on the {} {}", self.one_of(&["first", "second", "third", "last", "same"]), self.one_of(&TIMES))
            }
            _ => {
                format!("{} {}", self.one_of(&["one", "that", "early next", "every", "late that"]), self.one_of(&TIMES))
            }
        }
    }

    /// What somebody did.
    fn deed(&mut self) -> String {
        let mut text = match self.rng.random_range(0..8) {
            0 => format!("{} {}", self.past_alone(), self.adverb()),
            1 => format!("{} {}", self.past_alone(), self.somewhere()),
            2 => format!("{} {} {}", self.adverb(), self.past(), self.thing()),
            3 => format!("{} {} and {} {}", self.past(), self.thing(), self.past(), self.thing()),
            4 => format!("was {} and {}", self.adjective(), self.adjective()),
            5 => format!("{} to {} {}", self.one_of(&WILLING), self.base(), self.thing()),
            _ => format!("{} {}", self.past(), self.thing()),
        };
        if self.chance(0.25) {
            text = format!("{text} {}", self.somewhere());
        }
        text
    }

    fn clause(&mut self) -> String {
        format!("{} {}", self.person(), self.deed())
    }

    fn there_was(&mut self) -> String {
        if self.chance(0.5) {
            format!("was {} {}", article(self.adjective()), self.noun())
        } else {
            format!("were {} {}", self.number(), self.nouns())
        }
    }

    fn dated(&mut self) -> String {
        let month = self.one_of(&MONTHS);
        let (day, year) = (self.rng.random_range(1..29u32), self.rng.random_range(1650..2020u32));
        format!("on {month} {day}, {year}, {}", self.clause())
    }

    /// What somebody says.
    fn remark(&mut self) -> String {
        match self.rng.random_range(0..7) {
            0 => format!(
                "I {} {}",
                self.one_of(&["never", "always", "often", "hardly"]),
                self.past().to_owned() + " " + &self.thing()
            ),
            1 => format!("you must {} {}", self.base(), self.thing()),
            2 => format!("we shall {} {}", self.base_alone(), self.somewhere()),
            3 => format!("{} is {}", self.the_thing(), self.adjective()),
            4 => format!("let us {} {}", self.base(), self.thing()),
            5 => format!(
                "{} {} {} every {}",
                self.cast[0].clone(),
                with_s(self.base()),
                self.thing(),
                self.one_of(&TIMES)
            ),
            _ => self.clause(),
        }
    }

    fn question(&mut self) -> String {
        match self.rng.random_range(0..4) {
            0 => format!("where is {}", self.thing()),
            1 => format!("did you {} {}", self.base(), self.thing()),
            2 => format!("who {} {}", self.past(), self.thing()),
            _ => format!("how many {} did you see {}", self.nouns(), self.somewhere()),
        }
    }
}

fn article(word: &str) -> String {
    let vowel = word.starts_with(['a', 'e', 'i', 'o', 'u']);
    // By sound: "a useful uniform", "an hour".
    let exception = ["use", "usual", "uni", "one", "euro"].iter().any(|e| word.starts_with(e));
    let silent = ["hour", "honest", "heir"].iter().any(|e| word.starts_with(e));
    format!("{} {word}", if (vowel && !exception) || silent { "an" } else { "a" })
}

/// Paragraph after paragraph, without end.
impl Iterator for Prose {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.paragraph())
    }
}

const CONJUNCTIONS: [&str; 10] =
    ["because", "although", "while", "until", "as soon as", "before", "after", "since", "unless", "when"];
const QUANTITIES: [&str; 8] = ["some", "most", "none", "all", "a few", "half", "several", "two"];
const UNITS: [&str; 8] = ["pounds", "shillings", "francs", "dollars", "crowns", "pence", "pieces of silver", "marks"];
const EXCLAMATIONS: [&str; 6] =
    ["it was", "they had", "we found", "she wore that day", "he kept in the house", "you have brought us"];
const SAID: [&str; 14] = [
    "said",
    "cried",
    "answered",
    "whispered",
    "replied",
    "muttered",
    "added",
    "shouted",
    "murmured",
    "declared",
    "insisted",
    "admitted",
    "explained",
    "sighed",
];
const ASKED: [&str; 6] = ["asked", "demanded", "wondered", "inquired", "began", "called"];
const TITLES: [&str; 8] = ["Mr.", "Mrs.", "Miss", "Dr.", "Captain", "Professor", "Lady", "Sir"];
const DETERMINERS: [&str; 8] = ["many", "several", "all the", "those", "these", "few", "no", "too many"];
const PREPOSITIONS: [&str; 22] = [
    "in", "near", "behind", "beside", "above", "below", "under", "over", "across", "through", "around", "beyond",
    "towards", "past", "along", "outside", "inside", "opposite", "without", "against", "for", "from",
];
const TIMES: [&str; 14] = [
    "morning",
    "evening",
    "night",
    "afternoon",
    "winter",
    "summer",
    "autumn",
    "spring",
    "Monday",
    "Tuesday",
    "Thursday",
    "Friday",
    "Sunday",
    "day",
];
const WILLING: [&str; 10] =
    ["wanted", "tried", "refused", "promised", "hoped", "decided", "began", "agreed", "was forced", "had learned"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_seed_gives_the_same_text_and_another_seed_another() {
        let text = Prose::new(1).text(5000);
        assert_eq!(text, Prose::new(1).text(5000));
        assert!(text.starts_with(&Prose::new(1).text(1000)));
        assert_ne!(text, Prose::new(2).text(5000));
    }

    #[test]
    fn the_vocabulary_is_large_and_sentences_hardly_repeat() {
        let mut prose = Prose::new(3);
        let sentences: Vec<String> = (0..20_000).map(|_| prose.sentence()).collect();
        let distinct: HashSet<&String> = sentences.iter().collect();
        assert!(distinct.len() > 19_500, "{}", distinct.len());
        let words: HashSet<&str> = sentences.iter().flat_map(|s| s.split(|c: char| !c.is_alphabetic())).collect();
        assert!(words.len() > 2500, "{} words", words.len());
        let digits = sentences.iter().filter(|s| s.contains(|c: char| c.is_ascii_digit())).count();
        assert!((2000..10_000).contains(&digits), "{digits} sentences with numbers");
    }

    #[test]
    fn sentences_look_like_sentences() {
        let mut prose = Prose::new(4);
        for _ in 0..5000 {
            let s = prose.sentence();
            assert!(s.starts_with(|c: char| c.is_uppercase() || c == '"' || c.is_ascii_digit()), "{s}");
            assert!(s.ends_with(['.', '!', '?', '"']), "{s}");
            assert!(!s.contains("  ") && !s.contains(" ,") && !s.contains(".."), "{s}");
            assert!(s.len() < 600 && s.is_ascii(), "{s}");
            assert_eq!(s.matches('"').count() % 2, 0, "{s}");
        }
    }

    #[test]
    fn forms_of_words() {
        assert_eq!(article("uncle"), "an uncle");
        assert_eq!(article("useful"), "a useful");
        assert_eq!(article("hour"), "an hour");
        assert_eq!(with_s("lady"), "ladies");
        assert_eq!(with_s("monkey"), "monkeys");
        assert_eq!(with_s("watch"), "watches");
        assert_eq!(verb("carry").1, "carried");
        assert_eq!(verb("enjoy").1, "enjoyed");
        assert_eq!(verb("bring/brought"), ("bring", "brought".to_owned()));
        let duplicates =
            |words: &'static str| list(words).len() - list(words).into_iter().collect::<HashSet<_>>().len();
        for words in [NOUNS, ADJECTIVES, VERBS, INTRANSITIVE, ADVERBS, FIRST_NAMES, LAST_NAMES, PLACES, words::LOCKED] {
            assert_eq!(duplicates(words), 0);
        }
    }
}
