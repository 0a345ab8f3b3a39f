//! Documents name what exists.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_paper_map_names_functions_that_exist() {
    let text = read(&root().join("docs/paper-map.md"));
    let names: Vec<(&str, &str)> = quoted(&text).filter_map(|q| q.split_once(".rs::")).collect();
    assert!(names.len() > 50, "{}", names.len());
    for (file, function) in names.into_iter().filter(|(f, _)| !f.starts_with("crate/")) {
        let (krate, inner) = file.split_once('/').unwrap();
        let dir = root().join("crates").join(krate);
        let dir = if inner.starts_with("tests/") { dir } else { dir.join("src") };
        let source = read(&dir.join(format!("{inner}.rs")));
        let found = ["(", "<"].iter().any(|end| source.contains(&format!("fn {function}{end}")));
        assert!(found, "{file}.rs has no function {function}");
    }
}

#[test]
fn links_lead_somewhere() {
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/math.md", "docs/paper-map.md"]
    {
        let path = root().join(name);
        let text = read(&path);
        for target in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            if !target.contains("://") && !target.starts_with('#') {
                let target = target.split('#').next().unwrap();
                assert!(path.parent().unwrap().join(target).exists(), "{name} links to {target}");
            }
        }
    }
}
