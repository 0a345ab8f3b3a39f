//! Models of Hugging Face's hub, with a hub on this machine: what is downloaded, what is not downloaded twice, and what it
//! says when something is wrong.

mod common;

use common::Home;

#[cfg(not(feature = "hub"))]
#[test]
fn a_program_without_the_hub_says_how_to_build_it() {
    let home = Home::new();
    for command in [&["pull", "hf:tiny/llama"][..], &["generate", "--model", "hf:tiny/llama", "--prompt", "x"]] {
        assert!(home.fails(1, command).contains("--features hub"));
    }
}

#[test]
fn names_that_are_none_are_refused() {
    let home = Home::new();
    for name in ["hf:llama", "hf:../llama", "hf:tiny/llama/file.bin"] {
        assert!(home.fails(1, &["pull", name]).contains("hf:OWNER/NAME"), "{name}");
    }
}

#[cfg(feature = "hub")]
mod served {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::{Path, PathBuf};
    use std::process::Output;
    use std::sync::{Arc, Mutex};

    use infini_format::hash::sha256;
    use sha1::{Digest, Sha1};

    use super::common::{Home, text};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";
    const WEIGHTS: &str = "model.safetensors";

    /// What a hub has and how it behaves.
    #[derive(Clone, Default)]
    struct Manner {
        files: BTreeMap<String, Vec<u8>>,
        commit: &'static str,
        /// Who does not say this is refused.
        token: Option<&'static str>,
        /// A file of which half is sent.
        breaks: Option<&'static str>,
        /// A file that is not what its hash says.
        lies: Option<&'static str>,
    }

    /// A hub on this machine with one model, `tiny/model`.
    struct Hub {
        url: String,
        manner: Arc<Mutex<Manner>>,
        /// Of every file that was asked for, but for its first byte: where it was to begin.
        sent: Arc<Mutex<Vec<(String, usize)>>>,
    }

    impl Hub {
        fn of(files: BTreeMap<String, Vec<u8>>) -> Hub {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let manner = Arc::new(Mutex::new(Manner { files, commit: COMMIT, ..Manner::default() }));
            let sent = Arc::new(Mutex::new(Vec::new()));
            let (shared, log) = (manner.clone(), sent.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    answer(stream.unwrap(), &shared.lock().unwrap().clone(), &log);
                }
            });
            Hub { url, manner, sent }
        }

        fn set(&self, change: impl FnOnce(&mut Manner)) {
            change(&mut self.manner.lock().unwrap());
        }

        /// What was sent since the last time.
        fn sent(&self) -> Vec<(String, usize)> {
            std::mem::take(&mut self.sent.lock().unwrap())
        }

        fn run(&self, home: &Home, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
            let mut command = home.command(arguments);
            command.env("HF_ENDPOINT", &self.url).env("HF_HOME", home.path("hf")).env_remove("HF_TOKEN");
            command.envs(environment.iter().copied()).output().unwrap()
        }

        fn ok(&self, home: &Home, arguments: &[&str]) -> String {
            let output = self.run(home, arguments, &[]);
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
            text(&output.stdout)
        }

        fn fails(&self, home: &Home, arguments: &[&str]) -> String {
            let output = self.run(home, arguments, &[]);
            let complaint = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {complaint}");
            assert!(!complaint.contains("panicked"), "{complaint}");
            complaint
        }
    }

    /// Large files lie elsewhere and have their SHA-256 as tag, small ones are sent at once and have Git's hash.
    fn answer(mut stream: TcpStream, hub: &Manner, sent: &Mutex<Vec<(String, usize)>>) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let request = lines.next().unwrap_or_default();
        let path = request.split(' ').nth(1).unwrap_or_default().to_string();
        let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
        let header = |name: &str| {
            let of = |line: &String| {
                let (n, value) = line.split_once(": ")?;
                n.eq_ignore_ascii_case(name).then(|| value.to_string())
            };
            headers.iter().find_map(of)
        };
        let mut reply = |status: &str, more: &str, announced: usize, body: &[u8]| {
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {announced}\r\nconnection: close\r\n{more}\r\n");
            // the other side may have gone
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        };
        if hub
            .token
            .is_some_and(|t| !path.starts_with("/far/") && header("authorization") != Some(format!("Bearer {t}")))
        {
            return reply("401 Unauthorized", "", 0, b"");
        }
        if path.starts_with("/api/models/tiny/model/revision/main") {
            let files: Vec<String> = hub.files.keys().map(|n| format!("{{\"rfilename\":\"{n}\"}}")).collect();
            let info = format!("{{\"sha\":\"{}\",\"siblings\":[{}]}}", hub.commit, files.join(","));
            return reply("200 OK", "", info.len(), info.as_bytes());
        }
        let near = format!("/tiny/model/resolve/{}/", hub.commit);
        let name = path.strip_prefix(&near).or_else(|| path.strip_prefix("/far/")).unwrap_or_default();
        let Some(bytes) = hub.files.get(name) else { return reply("404 Not Found", "", 0, b"") };
        let range = header("range").unwrap_or_default();
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(bytes.len(), |to: usize| to + 1);
        let large = name.ends_with(".safetensors") || name.ends_with(".gguf");
        let commit = format!("x-repo-commit: {}\r\n", hub.commit);
        if large && path.starts_with("/tiny/") {
            let host = header("host").unwrap();
            let more =
                format!("{commit}x-linked-etag: \"{}\"\r\nlocation: http://{host}/far/{name}\r\n", sha256(bytes));
            return reply("302 Found", &more, 0, b"");
        }
        let git: String = Sha1::new()
            .chain_update(format!("blob {}\0", bytes.len()))
            .chain_update(bytes)
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let more = format!("{commit}etag: \"{git}\"\r\ncontent-range: bytes {from}-{}/{}\r\n", to - 1, bytes.len());
        if from >= bytes.len() {
            return reply("416 Range Not Satisfiable", "", 0, b"");
        }
        let mut body = bytes[from..to].to_vec();
        let announced = body.len();
        if range != "bytes=0-0" {
            sent.lock().unwrap().push((name.to_string(), from));
            if hub.lies == Some(name) {
                body[0] ^= 1;
            }
            if hub.breaks == Some(name) {
                body.truncate(announced / 2);
            }
        }
        reply("206 Partial Content", &more, announced, &body);
    }

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/pretrained").join(name)
    }

    /// The files of a tiny model with random weights.
    fn model(family: &str) -> BTreeMap<String, Vec<u8>> {
        let dir = golden(family);
        if dir.is_file() {
            return [(family.to_string(), std::fs::read(dir).unwrap())].into();
        }
        let files = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
        files.map(|f| (f.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(f).unwrap())).collect()
    }

    const PULL: [&str; 2] = ["pull", "hf:tiny/model"];
    const USE: [&str; 7] = ["generate", "--model", "hf:tiny/model", "--prompt", "Hello", "--max-tokens", "3"];

    #[test]
    fn a_pulled_model_is_there_and_is_not_pulled_twice() {
        for family in ["llama", "qwen2"] {
            let (home, hub) = (Home::new(), Hub::of(model(family)));
            assert!(hub.fails(&home, &USE).contains("run `infini pull hf:tiny/model`"));
            let place = hub.ok(&home, &PULL);
            let sent = hub.sent();
            let weights = if family == "llama" { 1 } else { 3 };
            assert_eq!(sent.iter().filter(|(name, _)| name.ends_with(".safetensors")).count(), weights, "{sent:?}");
            // what belongs to no model is left there
            assert!(!sent.iter().any(|(name, _)| name == "expected.safetensors"), "{sent:?}");
            for (name, bytes) in hub.manner.lock().unwrap().files.iter().filter(|(n, _)| *n != "expected.safetensors") {
                assert!(std::fs::read(Path::new(place.trim()).join(name)).unwrap() == *bytes, "{name}");
            }
            // by its name as by its folder, and without a hub
            let own = golden(family);
            let direct =
                home.ok(&["generate", "--model", own.to_str().unwrap(), "--prompt", "Hello", "--max-tokens", "3"]);
            let gone = hub.run(&home, &USE, &[("HF_ENDPOINT", "http://127.0.0.1:1")]);
            assert_eq!(text(&gone.stdout), direct, "{}", text(&gone.stderr));
            assert_eq!((hub.ok(&home, &PULL), hub.sent()), (place.clone(), vec![]));
            // a damaged file is replaced
            let tokenizer = Path::new(place.trim()).join("tokenizer.json");
            let bytes = std::fs::read(&tokenizer).unwrap();
            std::fs::write(&tokenizer, vec![b' '; bytes.len()]).unwrap();
            hub.ok(&home, &PULL);
            assert_eq!(hub.sent(), [("tokenizer.json".to_string(), 0)]);
            assert!(std::fs::read(&tokenizer).unwrap() == bytes);
            // a new commit with the same weights
            hub.set(|m| {
                m.commit = LATER;
                m.files.insert("generation_config.json".into(), b"{\"eos_token_id\": 7}".to_vec());
            });
            let later = hub.ok(&home, &PULL);
            assert!(later != place && later.trim().ends_with(LATER), "{later}");
            assert_eq!(hub.sent(), [("generation_config.json".to_string(), 0)]);
            hub.ok(&home, &USE);
        }
    }

    #[test]
    fn an_interrupted_download_goes_on() {
        let (home, hub) = (Home::new(), Hub::of(model("llama")));
        hub.set(|m| m.breaks = Some(WEIGHTS));
        let complaint = hub.fails(&home, &PULL);
        assert!(complaint.contains("goes on where it stopped"), "{complaint}");
        assert!(hub.fails(&home, &USE).contains("infini pull"), "half a model is found");
        let whole = hub.manner.lock().unwrap().files[WEIGHTS].len();
        let _ = hub.sent();
        hub.set(|m| m.breaks = None);
        let place = hub.ok(&home, &PULL);
        assert_eq!(hub.sent(), [(WEIGHTS.to_string(), whole / 2)]);
        // interrupted when all was there but its name
        let blob =
            home.path("hf/hub/models--tiny--model/blobs").join(sha256(&hub.manner.lock().unwrap().files[WEIGHTS]));
        std::fs::rename(&blob, blob.with_extension("part")).unwrap();
        assert_eq!((hub.ok(&home, &PULL), hub.sent()), (place, vec![]));
        hub.ok(&home, &USE);
    }

    #[test]
    fn one_gguf_file_of_many() {
        let (home, hub) = (Home::new(), Hub::of(model("llama.gguf")));
        let complaint = hub.fails(&home, &PULL);
        assert!(complaint.contains("no config.json") && complaint.contains("llama.gguf"), "{complaint}");
        let name = "hf:tiny/model/llama.gguf";
        let place = hub.ok(&home, &["pull", name]);
        assert!(place.trim().ends_with("llama.gguf") && hub.sent().len() == 1);
        hub.ok(&home, &["generate", "--model", name, "--prompt", "Hello", "--max-tokens", "3"]);
        assert!(hub.fails(&home, &["pull", "hf:tiny/model/other.gguf"]).contains("no other.gguf"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (home, hub) = (Home::new(), Hub::of(model("llama")));
        for name in ["hf:tiny/nothing", "hf:tiny/model@v9"] {
            let complaint = hub.fails(&home, &["pull", name]);
            assert!(complaint.contains("404") && complaint.contains(name), "{complaint}");
        }
        let complaint = text(&hub.run(&home, &PULL, &[("HF_ENDPOINT", "http://127.0.0.1:1")]).stderr);
        assert!(complaint.contains("cannot be reached") && complaint.contains("HF_ENDPOINT"), "{complaint}");
        // what is not computed is refused before the weights are there
        let config = hub.manner.lock().unwrap().files["config.json"].clone();
        hub.set(|m| drop(m.files.insert("config.json".into(), b"{\"model_type\": \"mamba\"}".to_vec())));
        let complaint = hub.fails(&home, &PULL);
        assert!(complaint.contains("mamba") && !hub.sent().iter().any(|(n, _)| n == WEIGHTS), "{complaint}");
        hub.set(|m| drop(m.files.insert("config.json".into(), config)));
        // weights that are not there, and such as are not what they should be
        let weights = hub.manner.lock().unwrap().files[WEIGHTS].clone();
        hub.set(|m| drop(m.files.remove(WEIGHTS)));
        assert!(hub.fails(&home, &PULL).contains("the model has no model.safetensors"));
        hub.set(|m| {
            m.files.insert(WEIGHTS.into(), weights);
            m.lies = Some(WEIGHTS);
        });
        assert!(hub.fails(&home, &PULL).contains("hash differs"));
        hub.set(|m| {
            m.lies = None;
            m.token = Some("secret");
        });
        let complaint = hub.fails(&home, &PULL);
        assert!(complaint.contains("401") && complaint.contains("HF_TOKEN"), "{complaint}");
        assert!(hub.run(&home, &PULL, &[("HF_TOKEN", "secret")]).status.success());
    }
}
