//! Hostile tokenizers and chat templates, adapters and memories of other partners, sessions with adapters that are broken
//! off. Each prints one line of counts; `INFINI_FAULTS_LONG=1` runs the long forms, which also hold the clock to account.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use infini::config::Attention;
use infini::folder::{self, Loaded};
use infini::session::Session;
use infini::state::State;
use infini::tally::{Tally, TallyConfig};
use infini::text::Tokenizer;
use infini::text::chat::{ChatTemplate, Message, TemplateSource};
use infini::text::tokenizer::{MAX_ADDED, MAX_FILE, MAX_PATTERN};
use infini::{Adapter, AdapterConfig, ModelConfig, Weights};
use infini_format::hash::short;
use infini_format::io::RealIo;
use infini_format::memory::{MemoryHeader, read_memory, write_memory};
use infini_format::tensors::{Dtype, Tensor, TensorFile, serialize};
use serde_json::{Value, json};

fn long() -> bool {
    std::env::var_os("INFINI_FAULTS_LONG").is_some_and(|v| v == "1")
}

/// What became of the cases of a test.
#[derive(Debug, Default)]
struct Count {
    run: u64,
    lost: u64,
    refused: u64,
    panicked: u64,
}

impl Count {
    fn print(&self, what: &str) {
        let Count { run, lost, refused, panicked } = self;
        println!("{what}: run {run}, lost {lost}, refused {refused}, panicked {panicked}");
    }

    /// Counts what a reader made of a hostile input; what it accepted is returned.
    fn read<T>(&mut self, read: impl FnOnce() -> infini::Result<T>) -> Option<T> {
        self.run += 1;
        match catch_unwind(AssertUnwindSafe(read)) {
            Err(_) => self.panicked += 1,
            Ok(Err(_)) => self.refused += 1,
            Ok(Ok(t)) => return Some(t),
        }
        None
    }
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A `tokenizer.json` of 320 entries.
fn sound() -> Value {
    let text = "The grass is green. The sky is blue. It's 12 o'clock; we've 1,024 reasons, don't we?";
    serde_json::from_slice(&Tokenizer::train(std::iter::repeat_n(text.to_string(), 3), 320).unwrap().to_json()).unwrap()
}

fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut json = sound();
    change(&mut json);
    json.to_string().into_bytes()
}

/// Files that were made to take time, memory or the process.
fn tokenizers() -> Vec<(&'static str, Vec<u8>)> {
    let split = |pattern: &str| {
        let split =
            json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        changed(|j| j["pre_tokenizer"] = split)
    };
    let token = |id: u64, content: String| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let added = |n: u64| changed(|j| j["added_tokens"] = (0..n).map(|i| token(320 + i, format!("<{i}>"))).collect());
    let merges = |pairs: Value| changed(|j| j["model"]["merges"] = pairs);
    let replace = |pattern: &str, content: String| {
        let replace = json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content });
        changed(|j| j["normalizer"] = replace)
    };
    vec![
        ("sound", changed(|_| {})),
        ("merges in a circle", merges(json!([["a", "b"], ["ab", "a"], ["aba", "b"], ["b", "a"]]))),
        ("merges with the empty token", merges(json!([["a", ""], ["", "a"]]))),
        ("merges of unknown tokens", merges(json!([["none", "such"]]))),
        ("one merge a hundred thousand times", merges(vec![json!(["h", "e"]); 100_000].into())),
        ("65,536 added tokens", added(MAX_ADDED as u64)),
        ("65,537 added tokens", added(MAX_ADDED as u64 + 1)),
        ("a million added tokens", {
            // as short as they can be, to get below the limit of bytes
            let all: Vec<String> = (0..1_000_000).map(|i| format!(r#"{{"id":{i},"content":"{i:x}"}}"#)).collect();
            let mut json = sound().to_string();
            let at = json.find("\"added_tokens\":[").unwrap() + "\"added_tokens\":[".len();
            json.insert_str(at, &all.join(","));
            json.into_bytes()
        }),
        ("an added token of a megabyte", changed(|j| j["added_tokens"] = json!([token(320, "a".repeat(1 << 20))]))),
        ("an empty added token", changed(|j| j["added_tokens"] = json!([token(320, String::new())]))),
        ("an id of 2^32 - 1", changed(|j| j["model"]["vocab"]["huge"] = u32::MAX.into())),
        ("an id of 2^63", changed(|j| j["model"]["vocab"]["huge"] = (1u64 << 63).into())),
        ("an id of -1", changed(|j| j["model"]["vocab"]["huge"] = (-1).into())),
        ("an added id far beyond", changed(|j| j["added_tokens"] = json!([token(u64::from(u32::MAX), "<x>".into())]))),
        ("a pattern that backtracks", split(r"(a*)*\1(a|b|ab)*(?=c)")),
        ("nested repetitions", split(r"^(?:(a+)+)+(?<!a)$")),
        ("repetitions with references", split(r"(.*)(.*)(.*)\2(?=x)\3")),
        ("(a|a)*b", split("(a|a)*b")),
        ("a{1000}{1000}", split("(?:a{1000}){1000}")),
        ("a pattern that calls itself", split(r"(?<x>a\g<x>?b?)+$")),
        ("a pattern of 8 KiB", split(&"a?".repeat(MAX_PATTERN))),
        ("an open group", split("(")),
        ("a normalizer that lengthens", replace("a", "b".repeat(1 << 12))),
        ("a normalizer that puts 100 kB in front", {
            let prepend = json!({ "type": "Prepend", "prepend": "b".repeat(100_000) });
            changed(|j| j["normalizer"] = prepend)
        }),
        ("a normalizer on nothing", replace("", "b".into())),
        ("dropout", changed(|j| j["model"]["dropout"] = 0.5.into())),
        (
            "a prefix longer than its merges",
            changed(|j| j["model"]["continuing_subword_prefix"] = "#".repeat(99).into()),
        ),
        ("deep nesting", format!("{{\"model\":{}", "[".repeat(1 << 20)).into_bytes()),
        ("65 MiB", vec![b' '; MAX_FILE + 1]),
    ]
}

/// R12: a hostile `tokenizer.json` loads or is refused within 5 s, and what loads takes time in step with the text.
#[test]
fn r12_hostile_tokenizers() {
    let (mut count, mut slowest, mut steepest) = (Count::default(), (Duration::ZERO, ""), (0.0, ""));
    for (what, file) in tokenizers() {
        let start = Instant::now();
        let loaded = count.read(|| Tokenizer::from_bytes(&file));
        let took = start.elapsed();
        slowest = slowest.max((took, what));
        assert!(took < Duration::from_secs(if long() { 5 } else { 30 }), "{what}: {took:?}");
        let Some(t) = loaded else { continue };
        // of each length the best of three: other work on the machine only adds
        let n = if long() { 1 << 20 } else { 1 << 16 };
        let time = |n: usize| {
            let word = "a".repeat(n);
            let once = |_| {
                let start = Instant::now();
                t.encode(&word);
                start.elapsed().as_secs_f64()
            };
            (0..3).map(once).fold(f64::MAX, f64::min)
        };
        let ratio = time(2 * n) / time(n);
        steepest = if ratio > steepest.0 { (ratio, what) } else { steepest };
        assert!(!long() || ratio <= 2.5, "{what}: twice the text takes {ratio} times as long");
    }
    println!("    the slowest to load: {slowest:?}; time(2n) / time(n) at most {steepest:?}");
    count.print("R12 hostile tokenizers (lost = slower than 5 s, or not linear)");
    assert_eq!(count.panicked, 0);
    assert!(count.refused > count.run / 2 && count.refused < count.run, "{count:?}");
}

/// R12: a single word of 100 MB.
#[test]
fn r12_a_word_without_end() {
    let t = Tokenizer::from_bytes(&changed(|_| {})).unwrap();
    let n = if long() { 100_000_000 } else { 2_000_000 };
    let time = |n: usize| {
        let word = "ab".repeat(n / 2);
        let start = Instant::now();
        let ids = t.encode(&word);
        (start.elapsed().as_secs_f64(), t.decode(&ids) == word)
    };
    time(n / 4);
    let ((half, a), (whole, b)) = (time(n / 2), time(n));
    let steep = long() && whole / half > 2.5;
    println!("    {n} bytes in {whole:.2} s, half of them in {half:.2} s");
    let count = Count { run: 2, lost: u64::from(!a) + u64::from(!b) + u64::from(steep), ..Count::default() };
    count.print(&format!("R12 a single word of {} MB (lost = other text, or not linear)", n / 1_000_000));
    assert_eq!(count.lost, 0);
}

/// Templates of published attacks, and others that were made to take time or memory.
fn templates() -> Vec<String> {
    let loops =
        |depth: usize| format!("{}x{}", "{% for a in range(10000) %}".repeat(depth), "{% endfor %}".repeat(depth));
    let mut all: Vec<String> = [
        // CVE-2024-34359
        "{% for c in [].__class__.__base__.__subclasses__() %}{% if c.__name__ == 'catch_warnings' %}{{ c.__init__.__globals__['__builtins__'].eval(\"__import__('os').popen('id').read()\") }}{% endif %}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        // CVE-2026-5760
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ joiner.__init__.__globals__.os.environ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        // files and modules
        "{% include '/etc/passwd' %}",
        "{% include 'chat' %}",
        "{% extends '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import environ %}",
        "{{ open('/etc/passwd').read() }}",
        "{{ env('HOME') }}",
        // time
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ range(10**9) }}",
        "{{ range(10**9) | list }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 10**10**10 }}",
        // output
        "{{ 'x' * 10**9 }}",
        "{{ ['x' * 10000] * 10**9 }}",
        "{% for a in range(9000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ ('x' * 9999999) | upper }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x' | indent(10**9) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ [1] | tojson(indent=10**9) }}{{ nothing.at.all }}",
        "{{ 'x' | indent(10**18) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'abc'.count('') * 'x' }}{{ nothing.at.all }}",
        "{{ ('x' * 9999999).replace('x', 'y' * 9999999) }}",
        "{{ ('x' * 9999999) | replace('', 'y' * 9999999) }}",
        "{{ ([''] * 10**9) | join }}",
        "{{ [1] | batch(10**18) | list }}",
        "{{ [1] | slice(10**18) | list }}",
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ messages | nothing }}",
    ]
    .map(String::from)
    .to_vec();
    all.extend((2..6).map(loops));
    all.push("{{ ".repeat(20_000));
    all.push(format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000)));
    all.push(format!("{}{}", "{% if 1 %}".repeat(20_000), "{% endif %}".repeat(20_000)));
    all.push(" ".repeat((1 << 18) + 1));
    all
}

/// R13: a hostile template is refused, in time, and nothing outside can be reached.
#[test]
fn r13_hostile_templates() {
    let (mut count, mut slowest) = (Count::default(), (Duration::ZERO, String::new()));
    for template in templates() {
        let start = Instant::now();
        let messages = [Message::new("user", "hi")];
        let text = count.read(|| {
            let source = TemplateSource { template: template.clone(), bos: "<s>".into(), eos: "</s>".into() };
            ChatTemplate::new(&source)?.render(&messages, true)
        });
        let took = start.elapsed();
        slowest = slowest.max((took, template.chars().take(60).collect()));
        assert!(took < Duration::from_millis(if long() { 100 } else { 5000 }), "{template:.80}: {took:?}");
        if let Some(text) = text {
            count.lost += 1;
            println!("    accepted: {template:.80}: {} bytes {text:.60}", text.len());
        }
    }
    println!("    the slowest: {slowest:?}");
    count.print("R13 hostile chat templates (lost = accepted, or slower than 100 ms)");
    assert_eq!((count.panicked, count.lost), (0, 0));

    // what a template may name: nothing but the conversation
    for name in ["env", "environ", "os", "open", "self", "request", "config", "cycler", "lipsum", "caller"] {
        let source = TemplateSource { template: format!("{{{{ {name} }}}}"), bos: String::new(), eos: String::new() };
        let text = ChatTemplate::new(&source).and_then(|t| t.render(&[Message::new("user", "hi")], true));
        assert!(text.as_ref().map_or(true, String::is_empty), "{name}: {text:?}");
    }
}

const V: usize = 256;

/// A plain decoder of random weights in a folder.
fn home(dir: &Path, seed: u64) {
    let config: ModelConfig = toml_model();
    let tokenizer = Tokenizer::train(std::iter::empty(), V).unwrap();
    folder::save(dir, &config, &Weights::init(&config, seed), &tokenizer.to_json(), Dtype::F32).unwrap();
}

fn toml_model() -> ModelConfig {
    let mut config: ModelConfig = serde_json::from_value(json!({
        "vocab_size": V, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 20, "tie_word_embeddings": true,
    }))
    .unwrap();
    config.attention = Attention::Full;
    config
}

fn keys(base: &str, seed: f32) -> Adapter {
    let sizes = AdapterConfig {
        layer: 1,
        segment_len: 8,
        sink: 2,
        heads: 2,
        value_width: 6,
        place_width: 3,
        word_width: 4,
        gate_width: 2,
        before: 5,
        after: 4,
    };
    let numbers = |(name, shape): (&str, Vec<usize>)| {
        let n: usize = shape.iter().product();
        (name.to_string(), (0..n).map(|j| ((j + name.len()) as f32 * seed).sin()).collect())
    };
    let tensors: BTreeMap<String, Vec<f32>> = sizes.parameters(24).into_iter().map(numbers).collect();
    Adapter::new(sizes, base.into(), 24, tensors).unwrap()
}

fn counts(base: &str, seed: f32) -> Tally {
    let sizes = TallyConfig { segment_len: 8, sink: 2, orders: 2, cells: 1 << 10, hidden: 2 };
    let numbers = |n: usize| (0..n).map(|i| ((i + 1) as f32 * seed).sin()).collect::<Vec<f32>>();
    let network = [numbers(2 * sizes.features()), numbers(2), vec![0.7, 0.4], vec![0.3]];
    Tally::new(sizes, base.into(), vec![-6.0; V], network).unwrap()
}

/// A model with these files put onto it.
fn load(home: &Path, adapters: &[&Path]) -> Loaded {
    let mut loaded = folder::load(home).unwrap();
    adapters.iter().for_each(|file| loaded.attach(file).unwrap());
    loaded
}

/// R15: adapters and counting memories are refused by every other base, memories by every other pair of them, with both
/// hashes shown; files of other kinds and versions are refused.
#[test]
fn r15_adapters_and_their_memories_of_other_partners() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    home(&at("a"), 3);
    home(&at("b"), 4);
    let [a, b] = ["a", "b"].map(|n| folder::load(&at(n)).unwrap().identity.weights);
    for (base, hash) in [("a", &a), ("b", &b)] {
        for (n, seed) in [("1", 0.3), ("2", 0.7)] {
            keys(hash, seed).save(&at(&format!("{base}.keys{n}")), Dtype::F32).unwrap();
            counts(hash, seed).save(&at(&format!("{base}.counts{n}"))).unwrap();
        }
    }
    let mut count = Count::default();
    // another base
    for file in ["b.keys1", "b.counts1"] {
        let mut loaded = folder::load(&at("a")).unwrap();
        count.run += 1;
        let e = loaded.attach(&at(file)).unwrap_err().to_string();
        assert!(e.contains(short(&a)) && e.contains(short(&b)), "{file}: {e}");
        count.refused += 1;
    }
    // another kind, another version, another size of model
    for (file, key, value) in [
        ("a.keys1", "version", "99"),
        ("a.keys1", "format", "infini-other"),
        ("a.counts1", "version", "99"),
        ("a.counts1", "format", "infini-adapter"),
        ("a.keys1", "hidden_size", "32"),
        ("a.keys1", "hidden_size", "18446744073709551615"),
    ] {
        let parsed = TensorFile::parse(std::fs::read(at(file)).unwrap()).unwrap();
        let mut texts = parsed.metadata.clone();
        texts.insert(key.into(), value.into());
        let views: Vec<_> = parsed.iter().collect();
        std::fs::write(at("forged"), serialize(&views, &texts).unwrap()).unwrap();
        let mut loaded = folder::load(&at("a")).unwrap();
        let accepted = count.read(|| loaded.attach(&at("forged")));
        count.lost += u64::from(accepted.is_some());
    }
    // memories of every combination, read with every other
    let makers: Vec<Vec<std::path::PathBuf>> =
        [vec![], vec!["a.keys1"], vec!["a.keys2"], vec!["a.counts1"], vec!["a.counts2"], vec!["a.keys1", "a.counts1"]]
            .into_iter()
            .map(|files| files.into_iter().map(at).collect())
            .collect();
    let models: Vec<Loaded> = makers
        .iter()
        .map(|files| load(&at("a"), &files.iter().map(|f| f.as_path()).collect::<Vec<_>>()))
        .chain([folder::load(&at("b")).unwrap()])
        .collect();
    for (i, maker) in models.iter().enumerate() {
        let mut session = Session::new(maker);
        session.push("what was read before: 1 2 3 4 5 6 7").unwrap();
        session.finish().unwrap();
        let path = at("a.mem");
        session.save(&RealIo, &path, None).unwrap();
        for (j, other) in models.iter().enumerate() {
            let result = State::load(&other.model, &other.identity, &RealIo, &path).map(|_| ());
            if i == j {
                result.unwrap();
                continue;
            }
            let (theirs, ours) = (&maker.identity, &other.identity);
            let shown = |e: &str| {
                let pairs = [
                    (Some(&theirs.weights), Some(&ours.weights)),
                    (theirs.adapter.as_ref(), ours.adapter.as_ref()),
                    (Some(&theirs.config), Some(&ours.config)),
                ];
                pairs.iter().any(|(a, b)| a != b && [a, b].iter().all(|h| h.is_none_or(|h| e.contains(short(h)))))
            };
            if let Err(e) = &result {
                assert!(shown(&e.to_string()), "{i} with {j}: {e}");
            }
            count.lost += u64::from(count.read(|| result).is_some());
        }
    }
    count.print("R15 adapters, counting memories and their memory files with other partners");
    assert_eq!((count.lost, count.panicked, count.refused), (0, 0, count.run));
}

/// R11: a sealed memory file of the right model that claims more rows, or a later position, than it holds values for.
#[test]
fn memories_that_claim_more_than_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (home_, path) = (dir.path().join("a"), dir.path().join("a.mem"));
    home(&home_, 3);
    let loaded = folder::load(&home_).unwrap();
    let mut session = Session::new(&loaded);
    session.push("what was read before: 1 2 3 4 5 6 7").unwrap();
    session.finish().unwrap();
    session.save(&RealIo, &path, None).unwrap();
    let (header, file) = read_memory(&RealIo, &path).unwrap();
    let mut count = Count::default();
    for (rows, position) in [(1, 1 << 23), (1, u64::MAX), (4096, header.position), (4096, 1 << 23)] {
        let starts = Tensor::i64(&[rows], &vec![0; rows]).unwrap();
        let views: Vec<_> =
            file.iter().map(|(name, t)| (name, if name == "document_start" { starts.view() } else { t })).collect();
        write_memory(&RealIo, &path, &MemoryHeader { position, ..header.clone() }, &views).unwrap();
        let e = State::load(&loaded.model, &loaded.identity, &RealIo, &path).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("too few") && e.contains(&position.to_string()), "{rows} rows at {position}: {e}");
        count.read(|| State::load(&loaded.model, &loaded.identity, &RealIo, &path));
    }
    count.print("R11 memory files that claim more than they hold");
    assert_eq!((count.panicked, count.refused), (0, 4));
}

fn go_on(session: &mut Session) {
    session.push("and on it goes, and on").unwrap();
    session.finish().unwrap();
}

/// R30: with an adapter, with a counting memory and with both, a session that is saved and restored after every part goes
/// on bit for bit like one that is not; restoring reads no token.
#[test]
fn r30_restored_sessions_with_adapters_are_the_unbroken_ones() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    home(&at("a"), 3);
    let hash = folder::load(&at("a")).unwrap().identity.weights;
    keys(&hash, 0.3).save(&at("keys"), Dtype::F32).unwrap();
    counts(&hash, 0.7).save(&at("counts")).unwrap();
    let mut count = Count::default();
    let mut seed = 30;
    for files in [&["keys"][..], &["counts"], &["keys", "counts"]] {
        let files: Vec<_> = files.iter().map(|f| at(f)).collect();
        let paths: Vec<&Path> = files.iter().map(|f| f.as_path()).collect();
        let loaded = load(&at("a"), &paths);
        for _ in 0..if long() { 200 } else { 6 } {
            let (mut whole, mut broken) = (Session::new(&loaded), Session::new(&loaded));
            let path = at("a.mem");
            for _ in 0..1 + random(&mut seed) % 6 {
                count.run += 1;
                let words = 1 + random(&mut seed) % 40;
                let part: String = (0..words).map(|_| format!("{} ", random(&mut seed) % 30)).collect();
                for s in [&mut whole, &mut broken] {
                    s.push(&part).unwrap();
                    s.finish().unwrap();
                }
                broken.save(&RealIo, &path, None).unwrap();
                let position = broken.state().position();
                // a model loaded anew, as another process would have it
                let restored = Session::open(&loaded, &RealIo, &path).unwrap();
                count.lost += u64::from(restored.state().position() != position);
                broken = restored;
                let bits = |s: &Session| s.state().logits().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                count.lost += u64::from(bits(&whole) != bits(&broken));
            }
            // another process: model and adapters loaded from their files again
            let again = load(&at("a"), &paths);
            let mut other = Session::open(&again, &RealIo, &path).unwrap();
            go_on(&mut whole);
            go_on(&mut other);
            count.lost += u64::from(whole.state().logits() != other.state().logits());
            std::fs::remove_file(&path).unwrap();
        }
    }
    count.print("R30 sessions with adapters and counting memories, saved, restored and gone on with");
    assert_eq!(count.lost, 0);
}

/// The fuzzer's seeds, among them every input that once crashed a reader.
#[test]
fn seeds_of_the_fuzzer() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let mut count = Count::default();
    let mut read = |target: &str, parse: &dyn Fn(Vec<u8>) -> infini::Result<()>| {
        for file in std::fs::read_dir(seeds.join(target)).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            count.read(|| parse(bytes.clone()));
        }
    };
    read("tokenizer", &|json| {
        let t = Tokenizer::from_bytes(&json)?;
        assert!(t.encode("ab a, b!").iter().all(|id| (*id as usize) < t.vocab_size()));
        Ok(())
    });
    read("template", &|bytes| {
        let template = String::from_utf8_lossy(&bytes).into_owned();
        let source = TemplateSource { template, bos: "<s>".into(), eos: "</s>".into() };
        ChatTemplate::new(&source)?.render(&[Message::new("user", "hi")], true).map(|_| ())
    });
    read("adapter", &|bytes| Adapter::parse(bytes.clone()).map(|_| ()).or_else(|_| Tally::parse(bytes).map(|_| ())));
    count.print("R12, R13, R15 seeds of the fuzzer");
    assert!(count.panicked == 0 && count.run > 10 && count.refused > 0 && count.refused < count.run, "{count:?}");
}
