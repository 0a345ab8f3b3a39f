//! Runs as one page: tables and pictures in a single HTML file that needs nothing else, light and dark, wide and narrow.
//!
//! A run is a folder: `metrics.jsonl` of its training, if there is one, and any `*.json` that `infini eval perplexity`,
//! `infini eval copy` or `infini demo --book` wrote there. Runs are compared on what they all scored: each text (the same documents, the same
//! number of tokens of each) has tables and pictures of its own, where the first run that read it is what the others are
//! compared with, document by document.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::footprint::paper_table;
use crate::plot::{self, Series, thousands};

mod texts;

use texts::texts;

/// Largest file of a run that is read.
const MAX_FILE: u64 = 256 << 20;

/// What a run folder holds.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Its name in tables and legends.
    pub name: String,
    /// Training: tokens and mean loss over all tokens.
    pub curve: Vec<(f64, f64)>,
    /// Mean share of the memory per layer and head at the end of the training.
    pub gates: Vec<(usize, Vec<f64>)>,
    /// Evaluations by the file's name.
    pub evals: BTreeMap<String, Value>,
}

impl Run {
    /// Reads a folder.
    ///
    /// # Errors
    /// A folder that cannot be read, or holds neither metrics nor evaluations; a file that is no JSON.
    pub fn read(dir: &Path) -> Result<Run> {
        let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
        let mut run = Run { name, ..Run::default() };
        let io = |e| Error::io("cannot read the run", dir, e);
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_eval = file.ends_with(".json") && !NOT_EVALS.contains(&file.as_str());
            if file != "metrics.jsonl" && !is_eval {
                continue;
            }
            let bytes = infini_format::io::read(&infini_format::io::RealIo, &path, MAX_FILE)
                .map_err(|e| Error::File(e.to_string()))?;
            let bad = |e: serde_json::Error| Error::Input(format!("no JSON: {}: {e}: remove the file", path.display()));
            if is_eval {
                run.evals.insert(file, serde_json::from_slice(&bytes).map_err(bad)?);
                continue;
            }
            for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                let row: Value = serde_json::from_slice(line).map_err(bad)?;
                run.add_metrics(&row);
            }
        }
        if run.curve.is_empty() && run.evals.is_empty() {
            let why = format!("no run: {}: holds neither metrics.jsonl nor results of `infini eval`", dir.display());
            return Err(Error::Input(why));
        }
        Ok(run)
    }

    fn add_metrics(&mut self, row: &Value) {
        if let (Some(tokens), Some(loss)) = (row["tokens"].as_f64(), row["token_loss"].as_f64()) {
            self.curve.push((tokens, loss));
        }
        let list = |v: &Value| v.as_array().map(|a| a.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
        let gates = row["layers"].as_array().map(|layers| {
            let one = |l: &Value| Some((l["layer"].as_u64()? as usize, list(&l["gate"])?));
            layers.iter().filter_map(one).filter(|(_, g)| !g.is_empty()).collect::<Vec<_>>()
        });
        if let Some(gates) = gates.filter(|g| !g.is_empty()) {
            self.gates = gates;
        }
    }

    /// Of `infini demo --book`, if the model has a say in how much it writes.
    fn writes(&self) -> Option<&Vec<Value>> {
        let chosen = |w: &&Vec<Value>| w.iter().any(|w| w["strength"] != 1.0);
        self.evals.values().find_map(|v| v["writes"].as_array().filter(chosen))
    }

    fn copies(&self) -> Option<&Vec<Value>> {
        self.evals.values().find_map(|v| v["rows"].as_array().filter(|r| r.iter().all(|r| r["gap"].is_number())))
    }
}

/// Files of a model folder that end in `.json`.
const NOT_EVALS: [&str; 4] = ["config.json", "tokenizer.json", "generation_config.json", "manifest.json"];

/// A page and its pictures by name.
#[derive(Clone, Debug)]
pub struct Report {
    /// The HTML.
    pub html: String,
    /// The same pictures as files of their own.
    pub pictures: Vec<(String, String)>,
}

/// The page of some runs.
///
/// # Errors
/// No run.
pub fn report(title: &str, runs: &[Run]) -> Result<Report> {
    if runs.is_empty() {
        return Err(Error::Input("nothing to report: name at least one run folder".into()));
    }
    let mut page = Page { body: format!("<h1>{}</h1>\n", escape(title)), pictures: Vec::new() };
    for text in texts(runs) {
        text.write(&mut page)?;
    }
    if let Some(table) = copies(runs) {
        page.heading("Copying");
        page.table("Nats per token of a passage, and of its copy behind a gap of so many tokens.", &table);
    }
    let curves = runs.iter().map(|r| Series { name: r.name.clone(), points: smooth(&r.curve) });
    let curves: Vec<Series> = curves.collect();
    if curves.iter().any(|s| !s.points.is_empty()) {
        page.heading("Training");
        let svg = plot::lines("Loss in training", "tokens trained on", "nats per token", false, &curves)?;
        page.picture("training.svg".into(), svg);
    }
    for run in runs.iter().filter(|r| !r.gates.is_empty() || r.writes().is_some()) {
        page.heading(&format!("The memory of {}", run.name));
        if !run.gates.is_empty() {
            let svg = plot::heads(&format!("{}: share of the memory", run.name), &run.gates)?;
            page.picture(format!("gates-{}.svg", run.name), svg);
        }
        if let Some(writes) = run.writes() {
            let layers = strengths(writes);
            // a legend of one name would say as much
            let of = if let [one] = &layers[..] { format!(" of {}", one.name) } else { String::new() };
            let title = format!("{}: mean write strength{of} over a book", run.name);
            let svg = plot::lines(&title, "tokens read", "write strength", false, &layers)?;
            page.picture(format!("writes-{}.svg", run.name), svg);
        }
    }
    page.heading("Context memory in the paper");
    page.table("arXiv 2404.07143, Table 1, from its configuration.", &papers_memory());
    let Page { body, pictures } = page;
    Ok(Report { html: format!("{HEAD}<title>{}</title>\n{STYLE}\n<main>\n{body}</main>\n", escape(title)), pictures })
}

/// A page that is being written.
struct Page {
    body: String,
    pictures: Vec<(String, String)>,
}

impl Page {
    fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
    }

    /// A table and what it shows.
    fn table(&mut self, caption: &str, table: &str) {
        let _ = writeln!(self.body, "<p>{}</p>\n<div class=\"wide\">{table}</div>", escape(caption));
    }

    /// A picture, which shrinks on a narrow page as far as its letters can be read, and can be moved from there on.
    fn picture(&mut self, name: String, svg: String) {
        let width = svg.split("width=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<f64>().ok());
        let least = (0.55 * width.unwrap_or(0.0)) as u32;
        let svg_body = svg.replacen("<svg", &format!("<svg style=\"min-width:{least}px\""), 1);
        let _ = writeln!(self.body, "<figure class=\"wide\">{svg_body}</figure>");
        self.pictures.push((name, svg));
    }
}

/// Mean write strength of each layer over what was read.
fn strengths(writes: &[Value]) -> Vec<Series> {
    let mut layers: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for w in writes {
        if let (Some(layer), Some(to), Some(x)) = (w["layer"].as_u64(), w["to"].as_f64(), w["strength"].as_f64()) {
            layers.entry(layer).or_default().push((to, x));
        }
    }
    layers.into_iter().map(|(l, points)| Series { name: format!("layer {l}"), points }).collect()
}

const HEAD: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
                    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
                    <meta name=\"color-scheme\" content=\"light dark\">\n";

const STYLE: &str = "<style>
body{margin:0;background:#fff;color:#1f2328;font:16px/1.5 system-ui,sans-serif}
main{max-width:72rem;margin:auto;padding:1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}p{margin:1rem 0 .3rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid #d0d7de;text-align:right;white-space:nowrap}
th{white-space:normal;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
figure{margin:1.5rem 0}
svg{max-width:100%;height:auto}
@media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}th,td{border-color:#30363d}th:first-child,td:first-child{background:#0d1117}}
</style>";

/// A table without the columns that have nothing in any row.
fn table(headings: &[String], rows: &[Vec<String>]) -> String {
    let told: Vec<bool> = (0..headings.len()).map(|i| rows.iter().any(|r| r[i] != NOTHING)).collect();
    let cells = |tag: &str, row: &[String]| -> String {
        let shown = row.iter().zip(&told).filter(|(_, told)| **told);
        shown.map(|(c, _)| format!("<{tag}>{}</{tag}>", escape(c))).collect::<String>()
    };
    let body: String = rows.iter().map(|r| format!("<tr>{}</tr>\n", cells("td", r))).collect();
    format!("<table><thead><tr>{}</tr></thead><tbody>\n{body}</tbody></table>", cells("th", headings))
}

/// What stands in a table where nothing was measured.
const NOTHING: &str = "–";

fn number(v: &Value, digits: usize) -> String {
    v.as_f64().map_or(NOTHING.into(), |x| format!("{x:.digits$}"))
}

/// What each architecture keeps by the paper's own counting, beside which the runs' bytes stand.
fn papers_memory() -> String {
    let headings = ["model", "numbers kept", "times fewer than the Memorizing Transformer"].map(String::from);
    let rows = paper_table()
        .into_iter()
        .map(|(name, n, times)| vec![name.into(), thousands(n as usize), format!("{times:.1}")]);
    table(&headings, &rows.collect::<Vec<_>>())
}

fn copies(runs: &[Run]) -> Option<String> {
    let gaps: Vec<u64> = runs.iter().find_map(Run::copies)?.iter().filter_map(|r| r["gap"].as_u64()).collect();
    let headings: Vec<String> =
        ["run".to_string()].into_iter().chain(gaps.iter().map(|g| format!("gap {g}"))).collect();
    let rows: Vec<Vec<String>> = runs
        .iter()
        .filter_map(|run| {
            let rows = run.copies()?;
            let cell = |gap: &u64| {
                let row = rows.iter().find(|r| r["gap"] == *gap);
                row.map_or(NOTHING.into(), |r| format!("{} → {}", number(&r["first"], 3), number(&r["second"], 3)))
            };
            Some([run.name.clone()].into_iter().chain(gaps.iter().map(cell)).collect())
        })
        .collect();
    Some(table(&headings, &rows))
}

/// At most two hundred means of neighbours.
fn smooth(curve: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let block = curve.len().div_ceil(200).max(1);
    let mean = |c: &[(f64, f64)], f: fn(&(f64, f64)) -> f64| c.iter().map(f).sum::<f64>() / c.len() as f64;
    curve.chunks(block).map(|c| (mean(c, |p| p.0), mean(c, |p| p.1))).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn eval(reads: &str, losses: [f64; 3]) -> Value {
        let document = |(i, l): (usize, &f64)| json!({ "name": format!("d{i}"), "tokens": 10, "loss": l, "words_seen": { "beyond": { "loss": l * 2.0 } } });
        let documents: Vec<Value> = losses.iter().enumerate().map(document).collect();
        let mean = losses.iter().sum::<f64>() / 3.0;
        json!({
            "reads": reads, "tokens": 30, "loss": mean, "perplexity": mean.exp(), "word_perplexity": 300.0, "bits_per_byte": 1.5,
            "memory_bytes": 4096, "state_bytes": 8192, "tokens_per_second": 1000.0, "documents": documents,
            "by_position": [{ "from": 0, "to": 128, "loss": 5.0 }, { "from": 128, "to": 256, "loss": 4.0 }],
            "words_seen": { "new": { "loss": 6.0 }, "beyond": { "loss": 5.5 },
                "by_distance": [{ "to": 512, "loss": 5.4 }, { "to": 1024, "loss": 5.6 }] },
        })
    }

    #[test]
    fn runs_are_compared_document_by_document() {
        let dir = tempfile::tempdir().unwrap();
        let write = |run: &str, file: &str, value: &Value| {
            std::fs::create_dir_all(dir.path().join(run)).unwrap();
            std::fs::write(dir.path().join(run).join(file), value.to_string()).unwrap();
        };
        write("control", "valid.json", &eval("own", [4.0, 4.2, 4.4]));
        write("control", "config.json", &json!({}));
        write("ours <b>", "valid.json", &eval("own", [3.9, 4.2, 4.1]));
        write("ours <b>", "knock.json", &eval("nothing", [4.1, 4.4, 4.3]));
        write("ours <b>", "copy.json", &json!({ "rows": [{ "gap": 64, "first": 5.0, "second": 1.25 }] }));
        let writes = json!([{ "layer": 1, "to": 64, "strength": 0.5 }, { "layer": 1, "to": 128, "strength": 0.25 }]);
        write("ours <b>", "book.json", &json!({ "writes": writes }));
        let metrics = |step: u64| {
            json!({ "step": step, "tokens": step * 100, "token_loss": 9.0 / step as f64,
            "layers": [{ "layer": 1, "gate": [0.25, 0.5], "write": [], "open": [] }] })
        };
        let lines: String = (1..=500).map(|s| metrics(s).to_string() + "\n").collect();
        std::fs::write(dir.path().join("ours <b>/metrics.jsonl"), lines).unwrap();
        let runs: Vec<Run> = ["control", "ours <b>"].iter().map(|r| Run::read(&dir.path().join(r)).unwrap()).collect();
        let page = report("Books & more", &runs).unwrap();
        for part in [
            "Books &amp; more",
            "ours &lt;b&gt;",
            "-0.1333 ± 0.1528",
            "2 of 3",
            "+0.2000",
            "5.000 → 1.250",
            "<svg",
            "prefers-color-scheme:dark",
            "width=device-width",
            "-0.2667 ± 0.3055",
            "<td>Infini-attention</td><td>1,585,152</td><td>115.7</td>",
        ] {
            assert!(page.html.contains(part), "{part}: {}", page.html);
        }
        assert!(!page.html.contains("ours <b>") && !page.html.contains("http-equiv") && !page.html.contains("src="));
        let names: Vec<&str> = page.pictures.iter().map(|(n, _)| n.as_str()).collect();
        let expected = [
            "position-valid.svg",
            "distance-valid.svg",
            "memory-valid.svg",
            "training.svg",
            "gates-ours <b>.svg",
            "writes-ours <b>.svg",
        ];
        assert_eq!(names, expected);
        assert_eq!(smooth(&runs[1].curve).len(), 167);
        assert!(report("t", &[]).is_err());
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(Run::read(&dir.path().join("empty")).unwrap_err().to_string().contains("no run"));
    }
}
