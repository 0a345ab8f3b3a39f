//! What ARCHITECTURE.md says is absent, checked on the dependency graph and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Names of the packages that each package needs to be built and run, tests aside.
struct Graph {
    direct: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read() -> Graph {
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        // only this platform's packages: the others need not have been downloaded
        let args = ["metadata", "--format-version", "1", "--locked", "--filter-platform", &host()];
        let output = Command::new(cargo).current_dir(root()).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let list = |v: &Value| v.as_array().unwrap().clone();
        let name: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|p| (p["id"].as_str().unwrap().into(), p["name"].as_str().unwrap().into()))
            .collect();
        let mut direct = BTreeMap::<String, BTreeSet<String>>::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let of = direct.entry(name[node["id"].as_str().unwrap()].clone()).or_default();
            for d in list(&node["deps"]) {
                // kind: null is an ordinary dependency, "dev" and "build" are not
                if list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null()) {
                    of.insert(name[d["pkg"].as_str().unwrap()].clone());
                }
            }
        }
        Graph { direct }
    }

    fn closure(&self, package: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![package.to_string()];
        while let Some(p) = todo.pop() {
            todo.extend(self.direct[&p].iter().filter(|d| seen.insert((*d).clone())).cloned());
        }
        seen
    }

    /// Panics if `package` reaches one of `forbidden` (a trailing `*` stands for any ending).
    fn knows_nothing_of(&self, package: &str, forbidden: &[&str]) {
        let reached = self.closure(package);
        let hit = |f: &str| match f.strip_suffix('*') {
            Some(start) => reached.iter().find(|r| r.starts_with(start)).cloned(),
            None => reached.get(f).cloned(),
        };
        let hits: Vec<String> = forbidden.iter().filter_map(|f| hit(f)).collect();
        assert!(hits.is_empty(), "{package} depends on {hits:?}");
    }
}

const NETWORK: [&str; 8] = ["hyper", "reqwest", "ureq", "axum", "h2", "rustls", "hf-hub", "curl"];
const TERMINAL: [&str; 4] = ["clap", "indicatif", "console", "crossterm"];

/// The triple of this machine.
fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(rustc).arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|l| l.strip_prefix("host: ")).unwrap().to_string()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Rust files below `dir` with their texts.
fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    out
}

/// Lines without comments that hold `word` as a word.
fn lines_with(text: &str, word: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let holds = |line: &str| line.split(|c| !is_word(c)).any(|w| w == word);
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_string();
    text.lines().map(code).filter(|l| holds(l)).collect()
}

#[test]
fn kernels_know_no_files_no_tensors_no_text() {
    let graph = Graph::read();
    let direct: Vec<&str> = graph.direct["infini-kernels"].iter().map(String::as_str).collect();
    assert_eq!(direct, ["gemm", "rayon"]);
    for (path, text) in sources(&root().join("crates/infini-kernels/src")) {
        for module in ["std::fs", "std::net", "std::io", "std::path"] {
            assert!(!text.contains(module), "{} uses {module}", path.display());
        }
    }
}

#[test]
fn only_kernels_are_unsafe() {
    for krate in ["infini-format", "infini", "infini-train", "infini-cli"] {
        for (path, text) in sources(&root().join("crates").join(krate).join("src")) {
            let lines = lines_with(&text, "unsafe");
            let lines: Vec<_> = lines.iter().filter(|l| !l.contains("unsafe_code")).collect();
            assert!(lines.is_empty(), "{}: {lines:?}", path.display());
        }
    }
    let kernels = sources(&root().join("crates/infini-kernels/src"));
    assert!(kernels.iter().any(|(_, text)| !lines_with(text, "unsafe").is_empty()), "the search finds nothing");
}

#[test]
fn format_knows_no_kernels_no_models_no_network() {
    let graph = Graph::read();
    graph.knows_nothing_of("infini-format", &["infini", "infini-kernels", "infini-train", "gemm", "burn*", "tokio"]);
    graph.knows_nothing_of("infini-format", &NETWORK);
}

#[test]
fn the_library_knows_no_burn_no_terminal_no_network() {
    let graph = Graph::read();
    graph.knows_nothing_of("infini", &["burn*", "cubecl*", "infini-train", "tokio"]);
    graph.knows_nothing_of("infini", &TERMINAL);
    graph.knows_nothing_of("infini", &NETWORK);
    // the search would find it
    assert!(graph.closure("infini-train").contains("burn-flex") && graph.closure("infini-cli").contains("clap"));
}

#[test]
fn training_knows_no_terminal_and_its_backend_in_one_module() {
    let graph = Graph::read();
    for name in TERMINAL {
        assert!(!graph.direct["infini-train"].contains(name), "infini-train depends on {name}");
    }
    let src = root().join("crates/infini-train/src");
    let seam = src.join("ops");
    for (path, text) in sources(&src) {
        assert!(
            path.starts_with(&seam) || lines_with(&text, "burn_flex").is_empty(),
            "{} names burn_flex",
            path.display()
        );
    }
}
