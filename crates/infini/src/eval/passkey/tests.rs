//! A stand-in with perfect memory shows that inputs hold what they should where they should.

use std::cell::RefCell;

use super::*;
use crate::eval::template::Template;
use crate::tasks::filler::Source;
use crate::tasks::tests::tokenizer;

const SEGMENT: usize = 64;

/// Remembers every token, or with `knock_out` the last 128.
#[derive(Default)]
struct Scribe {
    /// Of the sentences about a key the last one counts, not the first.
    last: bool,
    /// Rows and tokens of each input that was asked about, with the place of its first key sentence.
    asked: RefCell<Vec<(usize, Option<f64>)>>,
    /// Tokens that were read, over rows.
    read: RefCell<u64>,
    /// Whole inputs as text.
    texts: RefCell<Vec<String>>,
}

impl Reader for Scribe {
    type State = (bool, Vec<Vec<u32>>);

    fn fresh(&self, rows: usize, knock_out: bool) -> Self::State {
        (knock_out, vec![Vec::new(); rows])
    }

    fn read(&self, state: &mut Self::State, tokens: &[u32]) {
        *self.read.borrow_mut() += tokens.len() as u64;
        let n = tokens.len() / state.1.len();
        for (row, new) in state.1.iter_mut().zip(tokens.chunks(n)) {
            row.extend_from_slice(new);
        }
    }

    fn answer(&self, mut state: Self::State, tokens: &[u32], max: usize) -> Vec<Vec<u32>> {
        self.read(&mut state, tokens);
        let t = tokenizer();
        let answer = |row: &Vec<u32>| {
            let seen = if state.0 { &row[row.len().saturating_sub(128)..] } else { row };
            let text = t.decode(seen);
            let question = text.rfind(" What is the pass key").expect("a question in the paper's words");
            let of = text[question..].strip_prefix(" What is the ").unwrap().split_once('?').unwrap().0;
            assert!(text.ends_with(&format!("The {of} is")), "{}", &text[question..]);
            let sentence = format!(" The {of} is ");
            let told = text[..question].find(&sentence);
            let told = if self.last { text[..question].rfind(&sentence) } else { told };
            let place = told.map(|p| t.encode(&text[..p]).len() as f64 / row.len() as f64);
            self.asked.borrow_mut().push((row.len(), place));
            let answer = told.map_or(" unknown.".to_string(), |p| {
                let digits: String = text[p + sentence.len()..].chars().take_while(char::is_ascii_digit).collect();
                format!(" {digits}.")
            });
            self.texts.borrow_mut().push(text.clone());
            let mut ids = t.encode(&answer);
            ids.truncate(max);
            ids
        };
        state.1.iter().map(answer).collect()
    }

    fn measure(&self, state: &Self::State) -> (usize, Vec<LayerWrites>) {
        let n = state.1[0].len() as u64 * state.1.len() as u64;
        let writes = LayerWrites { layer: 1, tokens: n, open: vec![n / 2], strength: vec![n as f64 / 4.0] };
        (8 * state.1.len(), vec![writes])
    }
}

fn run(o: &Options) -> (Scribe, Report) {
    run_with(Scribe::default(), o)
}

fn run_with(scribe: Scribe, o: &Options) -> (Scribe, Report) {
    let mut last = (0, 0);
    let report = evaluate(&scribe, SEGMENT, tokenizer(), o, &mut |done, total| {
        assert!(done >= last.0 && done <= total, "{done} of {total}");
        last = (done, total);
    });
    let report = report.unwrap();
    assert_eq!(last.0, last.1, "progress ends at the end");
    assert_eq!((last.0, report.tokens), (*scribe.read.borrow(), *scribe.read.borrow()));
    (scribe, report)
}

fn small() -> Options {
    Options { lengths: vec![400, 800], depths: vec![0.0, 0.5, 1.0], samples: 6, batch: 4, ..Options::default() }
}

#[test]
fn perfect_memory_recalls_everything_at_every_place() {
    for filler in [Source::Paper, Source::Prose] {
        let (scribe, report) = run(&Options { filler, ..small() });
        assert_eq!(report.rows.len(), 6);
        for (i, row) in report.rows.iter().enumerate() {
            assert_eq!((row.length, row.depth, row.n), ([400, 800][i / 3], [0.0, 0.5, 1.0][i % 3], 6));
            assert_eq!((row.exact, row.digit, row.knock_out, row.invented), (1.0, 1.0, false, None));
            assert!(row.interval[0] > 0.6 && row.interval[1] == 1.0);
        }
        assert_eq!(report.state_bytes, 8);
        assert_eq!(report.writes, [WriteRate { layer: 1, head: 0, open: 0.5, strength: 0.25 }]);
        let asked = scribe.asked.borrow();
        let mut offsets: Vec<usize> = asked.iter().map(|a| a.0 % SEGMENT).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert!(offsets.len() >= 3, "the question moves in its segment: {offsets:?}");
        for (n, place) in asked.iter() {
            assert!((400 - SEGMENT < *n && *n <= 400) || (800 - SEGMENT < *n && *n <= 800), "{n}");
            let place = place.unwrap();
            // After the opening, in the middle, right before the question.
            assert!(place < 0.13 || (0.4..0.6).contains(&place) || place > 0.84, "{place} of {n}");
        }
    }
}

#[test]
fn sharing_changes_nothing_and_reads_less() {
    for changed in [false, true] {
        let together = run(&Options { changed, ..small() });
        let mut alone = 0;
        let mut texts = Vec::new();
        for depth in [0.0, 0.5, 1.0] {
            let (scribe, report) = run(&Options { depths: vec![depth], changed, ..small() });
            alone += report.tokens;
            texts.extend(scribe.texts.take());
        }
        assert!(together.1.tokens < alone * 9 / 10, "{} of {alone}", together.1.tokens);
        let mut shared = together.0.texts.take();
        shared.sort();
        texts.sort();
        assert!(shared == texts);
    }
}

#[test]
fn keys_change_halfway_to_the_question() {
    for (keys, off) in [(1, 0.08), (4, 0.21)] {
        let o = Options { keys, changed: true, filler: Source::Prose, lengths: vec![1500, 2400], ..small() };
        let (scribe, report) = run_with(Scribe { last: true, ..Scribe::default() }, &o);
        for row in &report.rows {
            assert_eq!((row.n, row.exact, row.digit, row.stale), (6 * keys as u64, 1.0, 1.0, Some(0.0)));
        }
        for (i, ((_, place), text)) in scribe.asked.take().iter().zip(scribe.texts.take()).enumerate() {
            let (first, second): (Vec<_>, Vec<_>) = told(&text).into_iter().enumerate().partition(|(i, _)| *i < keys);
            assert_eq!((first.len(), second.len()), (keys, keys), "{i}: {text}");
            let sorted = |told: Vec<(usize, String)>| {
                let mut names: Vec<String> = told.into_iter().map(|(_, name)| name).collect();
                names.sort();
                names
            };
            assert_eq!(sorted(first), sorted(second), "each key is told before any is told again");
            // As far from the start of what is told as the depth says, and then half of the rest.
            let near = |depth: f64| (place.unwrap() - (1.0 + depth) / 2.0).abs() < off;
            assert!([0.0, 0.5, 1.0].into_iter().any(near), "{place:?}");
        }
        let (_, report) = run(&o);
        assert!(report.rows.iter().all(|r| (r.exact, r.stale) == (0.0, Some(1.0))), "the first number is stale");
    }
    let o = Options { changed: true, knock_out: true, lengths: vec![900], ..small() };
    let (_, report) = run_with(Scribe { last: true, ..Scribe::default() }, &o);
    let exact: Vec<(f64, Option<f64>)> = report.rows.iter().map(|r| (r.exact, r.stale)).collect();
    assert_eq!(exact, [(0.0, Some(0.0)), (0.0, Some(0.0)), (1.0, Some(0.0))]);
}

/// What each key of a text in the paper's words is called, in the order of their sentences.
fn told(text: &str) -> Vec<String> {
    let sentences = text.match_indices(". Remember it.").map(|(at, _)| text[..at].rsplit_once(" The ").unwrap().1);
    sentences.map(|s| s.split_once(" is ").unwrap().0.to_string()).collect()
}

#[test]
fn without_a_memory_only_near_keys_are_recalled() {
    let (_, report) = run(&Options { knock_out: true, ..small() });
    let exact: Vec<f64> = report.rows.iter().map(|r| r.exact).collect();
    assert_eq!(exact, [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    assert!(report.rows.iter().all(|r| r.knock_out));
}

#[test]
fn several_keys_are_each_asked_for() {
    let (scribe, report) = run(&Options { keys: 5, lengths: vec![1500], samples: 3, ..small() });
    assert!(report.rows.iter().all(|r| (r.n, r.exact) == (15, 1.0)), "{:?}", report.rows);
    assert_eq!(scribe.asked.borrow().len(), 45);
    let all = report.name_first.unwrap();
    assert_eq!((all.n, all.exact, report.number_first), (45, 1.0, None));
}

#[test]
fn keys_that_were_not_told_are_unknown() {
    for keys in [1, 3] {
        let (scribe, report) = run(&Options { keys, absent: true, lengths: vec![900], ..small() });
        for row in &report.rows {
            assert_eq!((row.n, row.exact, row.digit, row.invented), (6, 1.0, 0.0, Some(0.0)));
            assert_eq!(row.said, Some(Said { unknown: 1.0, ..Said::default() }));
        }
        let told = scribe.texts.borrow().iter().filter(|t| t.contains("Remember it.")).count();
        assert_eq!(told, if keys == 1 { 0 } else { 18 });
    }
}

#[test]
fn answers_are_told_apart() {
    let asked = |key: Option<&str>, old: Option<&str>, name_first| Asked {
        tokens: Vec::new(),
        key: key.map(String::from),
        old: old.map(String::from),
        name_first,
    };
    let numbers = ["4821".to_string(), "77310".to_string()];
    let mut t = Tally::default();
    let absent = asked(None, None, None);
    for answer in [" unknown.", " 77310.", " It is 4821", " 7731.", " 48210", " who knows", " unknown", " Unknown"] {
        t.add(answer, &absent, &numbers);
    }
    let said = Said { unknown: 0.25, another_key: 0.25, other_number: 0.25, no_number: 0.25 };
    assert_eq!((t.said(), t.invented.hits), (said, 4));

    let mut t = Tally::default();
    for (answer, name_first) in [(" 4821.", true), (" 77310.", true), (" 4821", false), (" 48", false)] {
        t.add(answer, &asked(Some("4821"), Some("77310"), Some(name_first)), &numbers);
    }
    assert_eq!(t.exact, Count { hits: 2, n: 4 });
    assert_eq!(t.stale, Count { hits: 1, n: 4 });
    assert_eq!((t.name_first, t.number_first), (Count { hits: 1, n: 2 }, Count { hits: 1, n: 2 }));
}

#[test]
fn a_prompt_file_is_followed() {
    let prompt = "Look:{filler} The pass key is {needle}.{filler} Now. {question}\n";
    let prompt = Some(Template::parse(prompt).unwrap());
    let (scribe, report) = run(&Options { prompt, ..small() });
    assert!(report.rows.iter().all(|r| r.exact == 1.0), "{:?}", report.rows);
    for text in scribe.texts.borrow().iter() {
        assert!(text.starts_with("Look:"), "{text}");
        assert!(text.ends_with(" Now. What is the pass key? The pass key is"), "{text}");
    }
}

#[test]
fn a_seed_decides() {
    let texts = |seed| run(&Options { seed, ..small() }).0.texts.take();
    assert_eq!(texts(1), texts(1));
    assert_ne!(texts(1), texts(2));
}

#[test]
fn options_that_cannot_be_are_refused() {
    let refused = |o: Options, why: &str| {
        let e = evaluate(&Scribe::default(), SEGMENT, tokenizer(), &o, &mut |_, _| {}).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    };
    refused(Options { lengths: vec![0], ..small() }, "length 0");
    refused(Options { lengths: vec![], ..small() }, "at least one");
    refused(Options { depths: vec![1.1], ..small() }, "depth 1.1");
    refused(Options { samples: 0, ..small() }, "at least 1");
    refused(Options { lengths: vec![60], ..small() }, "choose ");
    refused(Options { filler: Source::Books, ..small() }, "--data");
    let prompt = Some(Template::paper());
    refused(Options { prompt: prompt.clone(), keys: 2, ..small() }, "own words");
    refused(Options { prompt, changed: true, ..small() }, "own words");
    refused(Options { absent: true, changed: true, ..small() }, "--absent or --changed");
    assert!("held_out".parse::<Wording>().unwrap_err().to_string().contains("held-out"));
}

#[test]
fn rows_have_the_published_names() {
    let (_, report) = run(&Options { lengths: vec![400], depths: vec![0.5], ..small() });
    let json = serde_json::to_value(&report).unwrap();
    let row = json["rows"][0].as_object().unwrap();
    for name in ["length", "depth", "n", "exact", "digit", "knock_out"] {
        assert!(row.contains_key(name), "{name}");
    }
    // Others come with what they count.
    for name in ["invented", "said", "stale"] {
        assert!(!row.contains_key(name), "{name}");
    }
    assert!(json.get("name_first").is_none() && json.get("number_first").is_none());
    for name in ["tokens_per_second", "peak_rss_bytes", "state_bytes"] {
        assert!(json.get(name).is_some(), "{name}");
    }
    let csv = report.to_csv();
    assert!(csv.starts_with("length,depth,n,exact,digit,knock_out,low,high\n400,0.5,6,1,1,false,"), "{csv}");
}

#[test]
fn an_untrained_model_recalls_nothing_and_its_writes_are_counted() {
    let infini = crate::InfiniConfig { segment_len: 16, ..crate::InfiniConfig::preset("selective-linear").unwrap() };
    let config: crate::ModelConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "infini": infini,
    }))
    .unwrap();
    let weights = crate::Weights::init(&config, 0);
    let model = Model::new(config, weights).unwrap();
    let o = Options { lengths: vec![200, 300], depths: vec![0.0, 1.0], samples: 5, batch: 3, ..Options::default() };
    let report = super::run(&model, tokenizer(), &o, &mut |_, _| {}).unwrap();
    assert!(report.rows.iter().all(|r| r.n == 5 && r.exact == 0.0 && r.digit < 0.5), "{:?}", report.rows);
    // The gates of the last layer are open at first.
    assert_eq!(report.writes.len(), 2);
    assert!(report.writes.iter().all(|w| w.layer == 1 && w.open > 0.9 && w.strength > 0.5), "{:?}", report.writes);
    assert_eq!(report.state_bytes, model.state(1).size_bytes());
    let again = super::run(&model, tokenizer(), &o, &mut |_, _| {}).unwrap();
    assert_eq!(report.rows, again.rows);
    for wording in [Wording::Trained, Wording::HeldOut] {
        let o = Options { lengths: vec![900], keys: 6, changed: true, wording, ..o.clone() };
        let report = super::run(&model, tokenizer(), &o, &mut |_, _| {}).unwrap();
        let [name, number] = [report.name_first, report.number_first].map(|p| p.expect("both are drawn").n);
        assert_eq!((name + number, report.rows[0].stale), (60, Some(0.0)));
    }
}

/// Keeps the answers of a model that skims or not.
struct Recorder<'a> {
    model: &'a Model,
    skim: bool,
    answers: std::cell::RefCell<Vec<Vec<u32>>>,
    skimmed: std::cell::Cell<usize>,
}

impl Reader for Recorder<'_> {
    type State = State;

    fn fresh(&self, rows: usize, knock_out: bool) -> State {
        self.model.fresh(rows, knock_out)
    }

    fn read(&self, state: &mut State, tokens: &[u32]) {
        Reader::read(self.model, state, tokens);
    }

    fn skim(&self, state: &mut State, tokens: &[u32]) {
        self.skimmed.set(self.skimmed.get() + tokens.len());
        Reader::skim(self.model, state, tokens);
    }

    fn full_segments(&self) -> Option<usize> {
        if self.skim { self.model.full_segments() } else { None }
    }

    fn answer(&self, state: State, tokens: &[u32], max: usize) -> Vec<Vec<u32>> {
        let answers = self.model.answer(state, tokens, max);
        self.answers.borrow_mut().extend(answers.clone());
        answers
    }

    fn measure(&self, state: &State) -> (usize, Vec<crate::state::LayerWrites>) {
        self.model.measure(state)
    }
}

#[test]
fn skipping_layers_that_no_answer_sees_changes_no_answer() {
    let config: crate::ModelConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": tokenizer().vocab_size(), "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 32, "attention": "full"
    }))
    .unwrap();
    let c = crate::AdapterConfig { layer: 2, segment_len: 32, ..crate::AdapterConfig::default() };
    let numbers = |(i, (name, shape)): (usize, (&'static str, Vec<usize>))| {
        let n: usize = shape.iter().product();
        (name.to_string(), (0..n).map(|j| ((j as f64 + 1.0) * (0.3 + 0.61 * i as f64)).sin() as f32).collect())
    };
    let tensors = c.parameters(24).into_iter().enumerate().map(numbers).collect();
    let mut model = Model::new(config.clone(), crate::Weights::init(&config, 2)).unwrap();
    model.attach(crate::Adapter::new(c, "0".repeat(64), 24, tensors).unwrap()).unwrap();
    let options =
        Options { lengths: vec![200, 411], depths: vec![0.0, 0.4, 1.0], samples: 3, batch: 2, ..Options::default() };
    let run = |skim| {
        let (answers, skimmed) = Default::default();
        let reader = Recorder { model: &model, skim, answers, skimmed };
        evaluate(&reader, 32, tokenizer(), &options, &mut |_, _| ()).unwrap();
        (reader.answers.into_inner(), reader.skimmed.get())
    };
    let ((skimmed, n), (read, none)) = (run(true), run(false));
    assert!(n > 1000 && none == 0, "{n} tokens were skimmed");
    assert_eq!(skimmed, read);
}
