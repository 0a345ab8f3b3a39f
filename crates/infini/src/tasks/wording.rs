//! How keys are told and asked for: the paper's prompt, and many other wordings, of which some are
//! kept out of training.
//!
//! In a wording `{k}` is the key, `{n}` what it is called ("pass key", "code", …), `{o}` whose it is
//! (" of the red harbour", or nothing) and `{x}` the owner itself.

use std::sync::LazyLock;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::prose::{list, words};

/// The paper's opening.
pub const INTRO: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will \
                         quiz you about the important information there.";
/// One round of the paper's filler.
pub const FILLER: &str = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
/// The paper's key sentence.
pub const KEY: &str = " The pass key is {k}. Remember it. {k} is the pass key.";
/// The paper's question, the answer comes next.
pub const QUESTION: &str = " What is the pass key? The pass key is";
/// The answer when no key of that name was told, as [`answer`] gives it for `None`.
pub const UNKNOWN: &str = "unknown";

/// Which wordings and names are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those that training sees.
    Trained,
    /// Those that it never sees.
    HeldOut,
}

impl Split {
    fn of<T: Copy>(self, (trained, held_out): (&'static [T], &'static [T])) -> &'static [T] {
        match self {
            Split::Trained => trained,
            Split::HeldOut => held_out,
        }
    }
}

/// What a key is called: (trained, held out).
pub const NOUNS: (&[&str], &[&str]) = (
    &[
        "pass key",
        "key",
        "passkey",
        "code",
        "secret code",
        "access code",
        "password",
        "pin",
        "secret number",
        "number",
        "combination",
        "door code",
        "security code",
        "pass number",
        "lock code",
        "private key",
    ],
    &["entry code", "passcode", "magic number"],
);

/// Key sentences with or without an owner: (trained, held out).
pub const KEYS: (&[&str], &[&str]) = (
    &[
        "The {n}{o} is {k}. Remember it. {k} is the {n}{o}.",
        "The {n}{o} is {k}.",
        "The {n}{o} is {k}. Remember it.",
        "Remember this: the {n}{o} is {k}.",
        "Please note that the {n}{o} is {k}.",
        "{k} is the {n}{o}.",
        "{k} is the {n}{o}. Do not forget it.",
        "The {n}{o} was set to {k}.",
        "They told me that the {n}{o} was {k}.",
        "Keep in mind: the {n}{o} is {k}.",
        "Use {k} as the {n}{o}.",
        "The {n}{o}: {k}.",
        "Note: {n}{o} = {k}.",
        "Do not forget the {n}{o}; it is {k}.",
        "For the record, the {n}{o} is {k}.",
        "It is important to know that the {n}{o} is {k}.",
        "He whispered that the {n}{o} was {k}.",
        "We have chosen {k} for the {n}{o}.",
        "The {n}{o} has been changed to {k}.",
        "\"The {n}{o} is {k},\" she said.",
        "Write this down. The {n}{o} is {k}.",
        "If anyone asks for the {n}{o}, answer {k}.",
        "Our {n}{o} is {k}, as you know.",
        "From today on {k} will be the {n}{o}.",
        "Here is the {n}{o}: {k}. You will need it later.",
        "Somebody wrote {k} on the wall; it is the {n}{o}.",
        "By the way, the {n}{o} is {k}.",
        "Only we two know that {k} is the {n}{o}.",
        "The letter said that the {n}{o} is {k}.",
        "I repeat: {k}. That is the {n}{o}.",
        "Attention! The {n}{o} is now {k}.",
        "The {n}{o} (keep it safe) is {k}.",
        "The {n}{o} will be {k}.",
        "You can find the {n}{o} here: {k}.",
        "It was decided that the {n}{o} is {k}.",
        "{k}: that is the {n}{o}.",
        "The number {k} is the {n}{o}.",
        "Take {k} for the {n}{o}.",
        "Learn by heart that the {n}{o} is {k}.",
        "I have changed the {n}{o} to {k}.",
        "{k} will serve as the {n}{o} from now on.",
        "{k} (this is the {n}{o}) must not be lost.",
        "With {k} you have the {n}{o}.",
        "Type {k}, our {n}{o}, when they ask you.",
    ],
    &[
        "You will need {k}, which is the {n}{o}.",
        "I was informed yesterday that {k} should be used as the {n}{o}.",
        "Nobody but you may learn the {n}{o}, namely {k}.",
        "The current {n}{o} reads {k}.",
        "Memorise the {n}{o}: it equals {k}.",
        "Among these lines stands the {n}{o}, {k}, which you must recall.",
    ],
);

/// Key sentences that need an owner: (trained, held out).
pub const OWNED_KEYS: (&[&str], &[&str]) = (
    &[
        "For {x}, the {n} is {k}.",
        "{x} has the {n} {k}.",
        "{x}: {n} {k}.",
        "The {n} {k} belongs to {x}.",
        "{x} can be opened with the {n} {k}.",
    ],
    &["To enter {x}, type the {n} {k}.", "{x} answers to the {n} {k} and nothing else."],
);

/// Sentences by which a key that was told before has another number: (trained, held out).
pub const CHANGES: (&[&str], &[&str]) = (
    &[
        "The {n}{o} has been changed to {k}.",
        "The {n}{o} is now {k}.",
        "I have changed the {n}{o} to {k}.",
        "From now on the {n}{o} is {k}.",
        "{k} is the new number: the {n}{o} was changed.",
        "They changed the {n}{o}; now it is {k}.",
        "The {n}{o} is no longer the same: it is {k}.",
        "{k} will serve as the {n}{o} from now on.",
    ],
    &[
        "Forget what the {n}{o} used to be, for {k} has replaced it.",
        "As of this morning {k} must be used as the {n}{o}.",
        "Somebody altered the {n}{o}, which reads {k} at present.",
    ],
);

/// Questions; the answer comes next: (trained, held out).
pub const QUESTIONS: (&[&str], &[&str]) = (
    &[
        "What is the {n}{o}? The {n}{o} is",
        "What is the {n}{o}?",
        "What was the {n}{o}?",
        "What was the {n}{o}? It was",
        "Tell me the {n}{o}.",
        "Tell me the {n}{o}. The {n}{o} is",
        "Do you remember the {n}{o}? It is",
        "Which number is the {n}{o}? It is",
        "Question: What is the {n}{o}? Answer:",
        "Can you recall the {n}{o}?",
        "Please give me the {n}{o}. It is",
        "Quiz: what is the {n}{o}?",
        "What did they say the {n}{o} was?",
        "I need the {n}{o} now. The {n}{o} is",
        "\"What is the {n}{o}?\" \"It is",
        "Now, the {n}{o} is",
        "How does the {n}{o} go? It goes",
        "Someone asks for the {n}{o}. You answer:",
        "So what was the {n}{o} again? The {n}{o} was",
        "Q: the {n}{o}? A:",
        "Name the {n}{o}.",
        "Say the {n}{o}.",
        "How does the {n}{o} read?",
        "Recall the {n}{o}.",
        "Find the {n}{o} in the text.",
        "The {n}{o}?",
        "I ask for the {n}{o}.",
        "According to the text, what is the {n}{o}?",
        "You were told the {n}{o}. Which is it?",
    ],
    &[
        "Could you repeat the {n}{o} for me? Certainly, it is",
        "I have forgotten the {n}{o}. What was it?",
        "State the {n}{o} that was mentioned above:",
        "Now recall the {n}{o}. The answer is",
    ],
);

/// What may come before a trained key sentence,
const BEFORE_KEY: [&str; 10] = [
    "Listen: ",
    "One thing matters: ",
    "Careful! ",
    "In short, ",
    "He said: ",
    "Important: ",
    "Now hear this. ",
    "As agreed, ",
    "I tell you, ",
    "A note in the margin said: ",
];
/// and after it.
const AFTER_KEY: [&str; 7] = [
    " Remember it.",
    " Do not forget it.",
    " Keep it safe.",
    " That is all.",
    " You will be asked for it.",
    " It will be needed later.",
    " Tell no one.",
];
/// Parts of trained key sentences that are put together: who tells it,
const TELLERS: [&str; 28] = [
    "I was told that",
    "She knew that",
    "They agreed that",
    "The sign says that",
    "It seems that",
    "My father said that",
    "We all know that",
    "The guard shouted that",
    "You must believe that",
    "Let it be known that",
    "There is no doubt that",
    "The captain wrote that",
    "He remembered that",
    "It turned out that",
    "The note says that",
    "Everyone here knows that",
    "I can tell you that",
    "The old man swore that",
    "We found out that",
    "They say that",
    "The papers show that",
    "Mind that",
    "I am sure that",
    "It was announced that",
    "Bear in mind that",
    "The clerk told us that",
    "One of them said that",
    "Be aware that",
];
/// how the name is said of the number,
const NAMED_FIRST: [&str; 20] = [
    "is",
    "was",
    "has been set to",
    "turned out to be",
    "remains",
    "stays",
    "has become",
    "must be",
    "can only be",
    "is written as",
    "happens to be",
    "is given as",
    "is known to be",
    "is and will be",
    "is still",
    "is once more",
    "is simply",
    "had to be",
    "goes like this:",
    "is, as before,",
];
/// and how the number of the name.
const NUMBER_FIRST: [&str; 18] = [
    "is",
    "was",
    "remains",
    "became",
    "serves as",
    "counts as",
    "stands for",
    "works as",
    "acts as",
    "is now",
    "has been made",
    "is known as",
    "is and stays",
    "will do as",
    "has always been",
    "was chosen as",
    "is, once again,",
    "was agreed on as",
];
/// Parts of trained names of keys,
const KINDS: [&str; 24] = [
    "secret", "main", "new", "old", "first", "last", "hidden", "daily", "front", "special", "spare", "only", "real",
    "right", "true", "final", "master", "gate", "safe", "bank", "office", "garden", "night", "login",
];
const THINGS: [&str; 12] = [
    "key",
    "code",
    "number",
    "password",
    "pin",
    "combination",
    "cipher",
    "sign",
    "access code",
    "pass key",
    "digits",
    "sequence",
];
/// and of trained questions.
const ASKS: [&str; 18] = [
    "Can you tell me",
    "I would like to know",
    "Please say",
    "Do you know",
    "Remind me of",
    "Give me",
    "We need",
    "Let me hear",
    "Write down",
    "Look up",
    "I am asking for",
    "Now for",
    "It is time to name",
    "Think of",
    "Bring back",
    "Who remembers",
    "Enter",
    "Show me",
];
/// What may come before a trained question,
const BEFORE_QUESTION: [&str; 7] =
    ["Question: ", "Quiz: ", "Now, ", "Here is the question. ", "So, ", "Think back. ", "One more thing: "];
/// and between one that is a whole sentence and its answer.
const LEADS: [&str; 12] = [
    " Answer:",
    " A:",
    " It is",
    " It was",
    " The {n}{o} is",
    " The {n} is",
    " That is",
    " I think it is",
    " Of course, the {n} is",
    " Well, it is",
    " The number is",
    " My answer:",
];
/// How a sentence goes on that begins in the middle of filler and tells the number first.
const KEY_FIRST: [&str; 9] = [
    ", the {n}{o}.",
    " as the {n}{o}.",
    " is the {n}{o}.",
    " for the {n}{o}.",
    " will serve as {n}{o}.",
    ": that is the {n}{o}.",
    " (the {n}{o}).",
    " and this is the {n}{o}.",
    ", our {n}{o}.",
];

/// How `{o}` names an owner.
const OWNERS: [&str; 5] = [" of {x}", " of {x}", " for {x}", " to {x}", " at {x}"];

/// Sentences with numbers that are no keys.
const DISTRACTORS: [&str; 12] = [
    "There were {k} men in the camp.",
    "In the year {k} the war began.",
    "The ship carried {k} barrels.",
    "He paid {k} pounds for the land.",
    "The book has {k} pages.",
    "It lies {k} miles from the coast.",
    "About {k} people live in that town.",
    "The road rises {k} feet above the sea.",
    "The engine was given the number {k}.",
    "They counted {k} birds that morning.",
    "The ticket cost {k} francs.",
    "She read {k} letters in a year.",
];

/// The words that names of owners are made of; every fourth is held out.
struct Names {
    adjectives: [Vec<&'static str>; 2],
    places: [Vec<&'static str>; 2],
    people: [Vec<&'static str>; 2],
}

static NAMES: LazyLock<Names> = LazyLock::new(|| Names {
    adjectives: every_fourth(words::ADJECTIVES),
    places: every_fourth(words::LOCKED),
    people: every_fourth(words::FIRST_NAMES),
});

fn every_fourth(all: &'static str) -> [Vec<&'static str>; 2] {
    let (mut trained, mut held_out) = (Vec::new(), Vec::new());
    for (i, word) in list(all).into_iter().enumerate() {
        if i % 4 == 3 { &mut held_out } else { &mut trained }.push(word);
    }
    [trained, held_out]
}

fn one_of<T: Copy>(rng: &mut ChaCha8Rng, items: &[T]) -> T {
    items[rng.random_range(0..items.len())]
}

/// The name of an owner: "the red harbour", now and then "the harbour" or "Margaret".
pub fn name(rng: &mut ChaCha8Rng, split: Split) -> String {
    let which = |lists: &'static [Vec<&'static str>; 2]| lists[(split == Split::HeldOut) as usize].as_slice();
    match rng.random_range(0..10) {
        0 => format!("the {}", one_of(rng, which(&NAMES.places))),
        1 => one_of(rng, which(&NAMES.people)).into(),
        _ => format!("the {} {}", one_of(rng, which(&NAMES.adjectives)), one_of(rng, which(&NAMES.places))),
    }
}

/// `n` different names.
pub fn names(rng: &mut ChaCha8Rng, split: Split, n: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(n);
    while names.len() < n {
        let new = name(rng, split);
        if !names.contains(&new) {
            names.push(new);
        }
    }
    names
}

/// What a key is called in one sample: half of the trained names are put together, some hundreds.
pub fn noun(rng: &mut ChaCha8Rng, split: Split) -> String {
    if split == Split::Trained && rng.random_bool(0.5) {
        return format!("{} {}", one_of(rng, &KINDS), one_of(rng, &THINGS));
    }
    one_of(rng, split.of(NOUNS)).to_owned()
}

/// A key sentence with a blank before it.
pub fn key(rng: &mut ChaCha8Rng, split: Split, noun: &str, owner: Option<&str>, digits: &str) -> String {
    if split == Split::Trained && rng.random_bool(0.5) {
        let text = composed(rng);
        return fill(rng, &text, noun, owner, digits);
    }
    let (any, owned) = (split.of(KEYS), split.of(OWNED_KEYS));
    let n = any.len() + if owner.is_some() { owned.len() } else { 0 };
    let i = rng.random_range(0..n);
    let wording = if i < any.len() { any[i] } else { owned[i - any.len()] };
    let mut text = wording.to_owned();
    if split == Split::Trained {
        if rng.random_bool(0.2) {
            text.insert_str(0, one_of(rng, &BEFORE_KEY));
        }
        if rng.random_bool(0.25) {
            text += one_of(rng, &AFTER_KEY);
        }
    }
    fill(rng, &text, noun, owner, digits)
}

/// A key sentence out of parts: some ten thousand of them.
fn composed(rng: &mut ChaCha8Rng) -> String {
    let article = one_of(rng, &["the", "the", "the", "our", "your", "this"]);
    let core = match rng.random_range(0..4) {
        0 | 1 => format!("{article} {{n}}{{o}} {} {{k}}", one_of(rng, &NAMED_FIRST)),
        2 => format!("{{k}} {} {article} {{n}}{{o}}", one_of(rng, &NUMBER_FIRST)),
        _ => format!("{{k}} and nothing else {} {article} {{n}}{{o}}", one_of(rng, &NUMBER_FIRST)),
    };
    let before = match rng.random_range(0..3) {
        0 => String::new(),
        1 => one_of(rng, &BEFORE_KEY).to_owned(),
        _ => format!("{} ", one_of(rng, &TELLERS)),
    };
    let after = if rng.random_bool(0.25) { one_of(rng, &AFTER_KEY) } else { "" };
    format!("{before}{core}.{after}")
}

/// A trained key sentence without its beginning, number first: to stand after any words.
pub fn key_first(rng: &mut ChaCha8Rng, noun: &str, owner: Option<&str>, digits: &str) -> String {
    let rest = one_of(rng, &KEY_FIRST);
    fill(rng, &format!("{{k}}{rest}"), noun, owner, digits)
}

/// A sentence that gives a key another number, with a blank before it.
pub fn change(rng: &mut ChaCha8Rng, split: Split, noun: &str, owner: Option<&str>, digits: &str) -> String {
    let wording = one_of(rng, split.of(CHANGES));
    fill(rng, wording, noun, owner, digits)
}

/// A question with a blank before it.
pub fn question(rng: &mut ChaCha8Rng, split: Split, noun: &str, owner: Option<&str>) -> String {
    let mut text = if split == Split::Trained && rng.random_bool(0.35) {
        format!("{} the {{n}}{{o}}{}", one_of(rng, &ASKS), one_of(rng, &["?", ".", ":"]))
    } else {
        one_of(rng, split.of(QUESTIONS)).to_owned()
    };
    if split == Split::Trained {
        if rng.random_bool(0.25) {
            text.insert_str(0, one_of(rng, &BEFORE_QUESTION));
        }
        if text.ends_with(['?', '.']) && rng.random_bool(0.4) {
            text += one_of(rng, &LEADS);
        }
    }
    fill(rng, &text, noun, owner, "")
}

/// A sentence with a number that is no key, with a blank before it.
pub fn distractor(rng: &mut ChaCha8Rng, digits: &str) -> String {
    format!(" {}", one_of(rng, &DISTRACTORS).replace("{k}", digits))
}

/// The answer with its blank and its full stop.
pub fn answer(digits: Option<&str>) -> String {
    format!(" {}.", digits.unwrap_or(UNKNOWN))
}

fn fill(rng: &mut ChaCha8Rng, wording: &str, noun: &str, owner: Option<&str>, digits: &str) -> String {
    let owned = owner.map_or(String::new(), |x| one_of(rng, &OWNERS).replace("{x}", x));
    let text = wording
        .replace("{n}", noun)
        .replace("{o}", &owned)
        .replace("{x}", owner.unwrap_or_default())
        .replace("{k}", digits);
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    std::iter::once(' ').chain(first).chain(chars).collect()
}

/// Every wording of the trained split once, filled in with any name: what a tokenizer should know.
pub fn examples(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut texts = vec![INTRO.to_owned(), KEY.replace("{k}", "12345"), QUESTION.to_owned(), answer(None)];
    let around = BEFORE_KEY.iter().chain(&AFTER_KEY).chain(&BEFORE_QUESTION).chain(&LEADS).chain(&KEY_FIRST);
    let around =
        around.chain(&TELLERS).chain(&NAMED_FIRST).chain(&NUMBER_FIRST).chain(&KINDS).chain(&THINGS).chain(&ASKS);
    texts.extend(around.map(|t| t.replace("{n}", "pass key").replace("{o}", "")));
    for noun in NOUNS.0 {
        for wording in KEYS.0.iter().chain(OWNED_KEYS.0).chain(QUESTIONS.0) {
            let owner = name(rng, Split::Trained);
            texts.push(fill(rng, wording, noun, Some(&owner), "12345"));
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::HashSet;

    #[test]
    fn there_are_many_wordings_and_no_held_out_one_is_a_trained_one() {
        assert!(KEYS.0.len() >= 30 && QUESTIONS.0.len() >= 20);
        for (trained, held_out) in [NOUNS, KEYS, OWNED_KEYS, CHANGES, QUESTIONS] {
            assert!(!held_out.is_empty());
            let all: HashSet<&str> = trained.iter().chain(held_out).copied().collect();
            assert_eq!(all.len(), trained.len() + held_out.len());
        }
        let keys = KEYS.0.iter().chain(KEYS.1).chain(OWNED_KEYS.0).chain(OWNED_KEYS.1);
        for k in keys.chain(CHANGES.0).chain(CHANGES.1) {
            assert!(k.contains("{k}") && k.contains("{n}"), "{k}");
        }
        for q in QUESTIONS.0.iter().chain(QUESTIONS.1) {
            assert!(!q.contains("{k}") && q.contains("{n}{o}"), "{q}");
        }
    }

    #[test]
    fn no_held_out_name_is_a_trained_one() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let trained: HashSet<String> = (0..20_000).map(|_| name(&mut rng, Split::Trained)).collect();
        assert!(trained.len() > 5000, "{}", trained.len());
        for _ in 0..2000 {
            let x = name(&mut rng, Split::HeldOut);
            assert!(!trained.contains(&x), "{x}");
        }
        assert_eq!(names(&mut rng, Split::HeldOut, 100).iter().collect::<HashSet<_>>().len(), 100);
    }

    #[test]
    fn wordings_are_filled() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for split in [Split::Trained, Split::HeldOut] {
            for owner in [None, Some("the red harbour")] {
                for _ in 0..500 {
                    let k = key(&mut rng, split, "pin", owner, "8136466");
                    assert!(k.starts_with(' ') && k.contains("8136466") && !k.contains('{'), "{k}");
                    assert!(!k[1..].starts_with(char::is_lowercase), "{k}");
                    let q = question(&mut rng, split, "pin", owner);
                    assert!(q.contains("pin") && !q.contains('{') && !q.ends_with(' '), "{q}");
                    assert_eq!(owner.is_some(), q.contains("the red harbour"), "{q}");
                    assert_eq!(owner.is_some(), k.to_lowercase().contains("the red harbour"), "{k}");
                    let f = key_first(&mut rng, "pin", owner, "8136466");
                    assert!(f.starts_with(" 8136466") && f.contains("pin") && !f.contains('{'), "{f}");
                }
            }
        }
        assert_eq!(answer(Some("42")), " 42.");
        assert_eq!(answer(None), " unknown.");
    }
}
