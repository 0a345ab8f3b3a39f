//! What a sample tells and asks: names, numbers and words, before any filler.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::wording::{self, Split};

/// What one sample tells and asks, in numbers; [`Scenario::draw`] finds the words.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which wordings and names.
    pub split: Split,
    /// The paper's words, with owners put in if keys have them.
    pub paper: bool,
    /// Keys that are told.
    pub keys: usize,
    /// Whether keys have owners.
    pub named: bool,
    /// Questions; with fewer than the keys any of them are asked for.
    pub questions: usize,
    /// Whether one question asks for a key that is not among those told.
    pub absent: bool,
    /// Fewest and most digits.
    pub digits: [usize; 2],
    /// Probability of few different digits.
    pub few_digits: f64,
    /// Probability that a key of varied wording is told number first; see [`Told::key_first`].
    pub key_first: f64,
    /// Probability that a key is told once more with another number, see [`Change`]. With 0 nothing is drawn for it.
    pub changed: f64,
}

/// A key sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The sentence, with a blank before it.
    pub text: String,
    /// It lacks its beginning: any words may come before it.
    pub key_first: bool,
}

/// A key that is told once more, later, with another number: what is asked for is that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: usize,
    /// The number that no longer holds.
    pub old: String,
    /// The sentence with the new one.
    pub told: Told,
}

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The question, with a blank before it; the answer continues it.
    pub text: String,
    /// Which key; the number of the keys for the one not told.
    pub key: usize,
    /// The digits asked for; None if they were not told.
    pub digits: Option<String>,
}

impl Question {
    /// What has to follow: " 48213." or " unknown."
    pub fn answer(&self) -> String {
        wording::answer(self.digits.as_deref())
    }
}

/// The words of one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Key sentences in the order of the keys.
    pub keys: Vec<Told>,
    /// Questions in any order of the keys.
    pub questions: Vec<Question>,
    /// Keys that change, in their order; these sentences belong after those of `keys`.
    pub changes: Vec<Change>,
    /// Whose the keys are, in their order, and one more, whose key was not told; empty without owners.
    pub names: Vec<String>,
    /// The numbers of the keys, the last ones of those that change.
    digits: Vec<String>,
    /// What the keys are called, and what the one not told is; empty in the paper's words.
    nouns: Vec<String>,
}

impl Scenario {
    /// Draws names, digits and wordings.
    pub fn draw(rng: &mut ChaCha8Rng, plan: &Plan) -> Self {
        let digits: Vec<String> = (0..plan.keys).map(|_| digits(rng, plan.digits, plan.few_digits)).collect();
        // One name more, for the key that nobody told.
        let names = if plan.named { wording::names(rng, plan.split, plan.keys + 1) } else { Vec::new() };
        let (keys, questions, changes, nouns) = Default::default();
        let mut told = Scenario { keys, questions, changes, names, digits, nouns };
        if !plan.paper {
            told.nouns = (0..=plan.keys).map(|_| wording::noun(rng, plan.split)).collect();
            if rng.random_bool(0.5) {
                let one = told.nouns[0].clone();
                told.nouns.fill(one);
            }
        }
        told.keys = (0..plan.keys).map(|i| told.tell(rng, plan, i, &told.digits[i])).collect();
        for key in (0..plan.keys).filter(|_| plan.changed > 0.0) {
            if rng.random_bool(plan.changed) {
                told.change(rng, plan, key);
            }
        }
        told.questions = asked(rng, plan).into_iter().map(|i| told.ask(rng, plan.split, i)).collect();
        told
    }

    /// Words the sentence by which key `i` has the number `digits`.
    fn tell(&self, rng: &mut ChaCha8Rng, plan: &Plan, i: usize, digits: &str) -> Told {
        if plan.paper {
            let text = wording::KEY.replace("pass key", &self.in_the_papers_words(i)).replace("{k}", digits);
            return Told { text, key_first: false };
        }
        let key_first = rng.random_bool(plan.key_first);
        let (noun, owner) = (&self.nouns[i], self.owner(i));
        let text = match key_first {
            true => wording::key_first(rng, noun, owner, digits),
            false => wording::key(rng, plan.split, noun, owner, digits),
        };
        Told { text, key_first }
    }

    /// Gives key `key` another number and words the sentence that says so: half of the varied ones say that it changed, the
    /// others only tell it.
    ///
    /// # Panics
    /// If there is no such key.
    pub fn change(&mut self, rng: &mut ChaCha8Rng, plan: &Plan, key: usize) -> Told {
        let old = self.digits[key].clone();
        let new = loop {
            let new = digits(rng, plan.digits, plan.few_digits);
            if new != old {
                break new;
            }
        };
        let told = if !plan.paper && rng.random_bool(0.5) {
            let text = wording::change(rng, plan.split, &self.nouns[key], self.owner(key), &new);
            Told { text, key_first: false }
        } else {
            self.tell(rng, plan, key, &new)
        };
        self.digits[key] = new;
        self.changes.push(Change { key, old, told: told.clone() });
        told
    }

    /// The number that key `i` had before it changed; None if it does not.
    pub fn old(&self, i: usize) -> Option<&str> {
        self.change_of(i).map(|c| c.old.as_str())
    }

    /// The numbers of the keys, in their order.
    pub fn numbers(&self) -> &[String] {
        &self.digits
    }

    /// Whether the sentence that tells key `i` (the last of two) names its owner before its number; None without
    /// owners and for the key that was not told.
    pub fn name_first(&self, i: usize) -> Option<bool> {
        let (digits, owner) = (self.digits.get(i)?, self.owner(i)?);
        let told = self.change_of(i).map_or(&self.keys[i], |c| &c.told);
        // a sentence may begin with the name, and then with a capital letter
        Some(told.text.to_lowercase().find(&owner.to_lowercase()) < told.text.find(digits.as_str()))
    }

    fn change_of(&self, i: usize) -> Option<&Change> {
        self.changes.iter().find(|c| c.key == i)
    }

    /// Words a question for key `i`, another one each time; the number of the keys is the one not told.
    ///
    /// # Panics
    /// If `i` is above that.
    pub fn ask(&self, rng: &mut ChaCha8Rng, split: Split, i: usize) -> Question {
        let digits = self.digits.get(i).cloned();
        if self.nouns.is_empty() {
            let text = wording::QUESTION.replace("pass key", &self.in_the_papers_words(i));
            return Question { text, key: i, digits };
        }
        let noun = if rng.random_bool(0.8) { self.nouns[i].clone() } else { wording::noun(rng, split) };
        Question { text: wording::question(rng, split, &noun, self.owner(i)), key: i, digits }
    }

    fn owner(&self, i: usize) -> Option<&str> {
        self.names.get(i).map(String::as_str)
    }

    fn in_the_papers_words(&self, i: usize) -> String {
        self.owner(i).map_or_else(|| "pass key".into(), |x| format!("pass key of {x}"))
    }
}

/// Indices of the keys asked for, in any order; `plan.keys` itself stands for the one not told.
fn asked(rng: &mut ChaCha8Rng, plan: &Plan) -> Vec<usize> {
    let mut asked: Vec<usize> = (0..plan.keys).collect();
    shuffle(rng, &mut asked);
    asked.truncate(plan.questions);
    if plan.absent {
        match asked.first_mut() {
            Some(first) => *first = plan.keys,
            None => asked.push(plan.keys),
        }
        shuffle(rng, &mut asked);
    }
    asked
}

/// Digits of a key: `least..=most` of them, with probability `few` from 2 to 4 different ones only.
pub fn digits(rng: &mut ChaCha8Rng, [least, most]: [usize; 2], few: f64) -> String {
    let n = rng.random_range(least..=most);
    let mut alphabet: Vec<char> = ('0'..='9').collect();
    if rng.random_bool(few) {
        shuffle(rng, &mut alphabet);
        alphabet.truncate(rng.random_range(2..=4));
    }
    (0..n).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect()
}

/// Fisher and Yates.
pub(crate) fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.random_range(0..=i));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn absent_keys_are_absent() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let plan = Plan {
            split: Split::HeldOut,
            paper: false,
            keys: 6,
            named: true,
            questions: 6,
            absent: true,
            digits: [4, 7],
            few_digits: 0.3,
            key_first: 0.0,
            changed: 0.0,
        };
        for _ in 0..200 {
            let s = Scenario::draw(&mut rng, &plan);
            assert_eq!((s.keys.len(), s.questions.len()), (6, 6));
            let (known, unknown): (Vec<&Question>, Vec<&Question>) =
                s.questions.iter().partition(|q| q.digits.is_some());
            assert_eq!(unknown.len(), 1);
            assert_eq!(unknown[0].answer(), " unknown.");
            for q in known {
                assert!(s.keys.iter().any(|k| k.text.contains(q.digits.as_ref().unwrap())));
            }
        }
        let none = Scenario::draw(&mut rng, &Plan { keys: 0, questions: 1, named: false, ..plan });
        assert!(none.keys.is_empty() && none.questions[0].digits.is_none());
        let paper = Scenario::draw(&mut rng, &Plan { keys: 0, paper: true, named: false, ..plan });
        assert_eq!(paper.questions, [Question { text: wording::QUESTION.into(), key: 0, digits: None }]);
    }

    #[test]
    fn the_papers_words_take_owners() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let plan = Plan {
            split: Split::Trained,
            paper: true,
            keys: 3,
            named: true,
            questions: 2,
            absent: false,
            digits: [5, 5],
            few_digits: 0.0,
            key_first: 0.0,
            changed: 0.0,
        };
        let s = Scenario::draw(&mut rng, &plan);
        assert_eq!((s.keys.len(), s.questions.len()), (3, 2));
        for q in &s.questions {
            let digits = q.digits.as_ref().unwrap();
            let of = q.text.strip_prefix(" What is the pass key of ").unwrap().split_once('?').unwrap().0;
            assert_eq!(q.text, format!(" What is the pass key of {of}? The pass key of {of} is"));
            let key = format!(" The pass key of {of} is {digits}. Remember it. {digits} is the pass key of {of}.");
            assert!(s.keys.iter().any(|k| k.text == key), "{key}");
        }
    }

    fn plan() -> Plan {
        Plan {
            split: Split::Trained,
            paper: false,
            keys: 3,
            named: true,
            questions: 3,
            absent: false,
            digits: [4, 7],
            few_digits: 0.3,
            key_first: 0.2,
            changed: 0.0,
        }
    }

    #[test]
    fn the_last_number_is_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut changed, mut said) = (0, 0);
        for i in 0..300 {
            let split = if i % 2 == 0 { Split::Trained } else { Split::HeldOut };
            let p = Plan { split, paper: i % 3 == 0, digits: [1, 7], changed: 0.5, ..plan() };
            let s = Scenario::draw(&mut rng, &p);
            changed += s.changes.len();
            assert!(s.changes.is_sorted_by(|a, b| a.key < b.key));
            for c in &s.changes {
                let (first, new) = (&s.keys[c.key].text, &s.digits[c.key]);
                assert_eq!(s.old(c.key), Some(c.old.as_str()));
                assert_ne!(&c.old, new);
                assert!(first.contains(&c.old) && c.told.text.contains(new), "{first} {}", c.told.text);
                let name = s.names[c.key].to_lowercase();
                assert!(c.told.text.to_lowercase().contains(&name), "{name}: {}", c.told.text);
                if p.paper {
                    assert_eq!(c.told.text, first.replace(&c.old, new));
                    assert_eq!(s.name_first(c.key), Some(true));
                } else {
                    assert!(c.told.text.contains(&s.nouns[c.key]), "{}", c.told.text);
                    said += c.told.text.contains("changed") as usize;
                }
            }
            for key in 0..3 {
                let digits = &s.digits[key];
                assert_eq!(s.old(key).is_some(), s.changes.iter().any(|c| c.key == key));
                assert!(s.questions.iter().any(|q| q.key == key && q.digits.as_ref() == Some(digits)));
            }
        }
        assert!((380..520).contains(&changed), "{changed}");
        assert!(said > 20, "{said}");
        let all = Scenario::draw(&mut rng, &Plan { changed: 1.0, ..plan() });
        assert_eq!(all.changes.len(), 3);
    }

    #[test]
    fn names_stand_before_or_after_numbers() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut s = Scenario::draw(&mut rng, &Plan { paper: true, ..plan() });
        s.names[0] = "the red harbour".into();
        s.digits[0] = "4821".into();
        for (text, first) in [
            (" The red harbour has the pin 4821.", true),
            (" The pin 4821 belongs to the red harbour.", false),
            (" 4821 is the pin of the red harbour.", false),
        ] {
            s.keys[0].text = text.into();
            assert_eq!(s.name_first(0), Some(first), "{text}");
        }
        assert_eq!(s.name_first(3), None);
        assert_eq!(Scenario::draw(&mut rng, &Plan { named: false, keys: 1, ..plan() }).name_first(0), None);
    }

    #[test]
    fn without_changes_nothing_more_is_drawn() {
        // What the generator gave before keys could change.
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        for i in 0..40 {
            let s = Scenario::draw(&mut rng, &Plan { paper: i % 4 == 0, absent: i % 3 == 0, ..plan() });
            assert!(s.changes.is_empty() && s.old(0).is_none());
        }
        assert_eq!(rng.random::<u64>(), 2092406075661881882);
    }

    #[test]
    fn few_digits_are_few() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let distinct = |d: &str| d.chars().collect::<std::collections::HashSet<_>>().len();
        assert!((0..200).all(|_| distinct(&digits(&mut rng, [7, 7], 1.0)) <= 4));
        let many = (0..200).filter(|_| distinct(&digits(&mut rng, [7, 7], 0.0)) > 4).count();
        assert!(many > 120, "{many}");
    }
}
