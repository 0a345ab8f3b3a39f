//! What runs scored, text by text: only losses of the same tokens can be compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{NOTHING, Page, Run, number, table};
use crate::error::Result;
use crate::plot::{self, Series, thousands};

/// A text and who read it: the same documents, the same number of tokens of each.
pub(super) struct Text<'a> {
    /// The name of the first file with results on it, told apart from other texts of that name by a number.
    name: String,
    rows: Vec<Row<'a>>,
}

/// One measurement of a run on a text.
struct Row<'a> {
    name: String,
    /// Its place among the curves of every picture.
    place: usize,
    own: &'a Value,
    /// The same with the memory knocked out, and with that of another document.
    others: [Option<&'a Value>; 2],
}

/// All texts, in the order in which the runs come to them.
pub(super) fn texts(runs: &[Run]) -> Vec<Text<'_>> {
    let mut out: Vec<(Read, Text)> = Vec::new();
    let mut more = runs.len();
    for (i, run) in runs.iter().enumerate() {
        let scored = |v: &&Value| v["loss"].is_number();
        for (file, own) in run.evals.iter().filter(|(_, v)| v["reads"] == "own" && scored(v)) {
            let read = Read::of(own);
            let stem = file.trim_end_matches(".json");
            let at = out.iter().position(|(other, _)| *other == read).unwrap_or_else(|| {
                let alike =
                    out.iter().filter(|(_, t)| t.name == stem || t.name.starts_with(&format!("{stem}-"))).count();
                let name = if alike == 0 { stem.to_string() } else { format!("{stem}-{}", alike + 1) };
                out.push((read.clone(), Text { name, rows: Vec::new() }));
                out.len() - 1
            });
            let rows = &mut out[at].1.rows;
            let again = rows.iter().any(|r| r.place == i);
            let (name, place) = if again { (format!("{} ({stem})", run.name), more) } else { (run.name.clone(), i) };
            more += usize::from(again);
            let others = ["nothing", "swapped"]
                .map(|reads| run.evals.values().filter(scored).find(|v| v["reads"] == reads && Read::of(v) == read));
            rows.push(Row { name, place, own, others });
        }
    }
    out.into_iter().map(|(_, text)| text).collect()
}

/// What was scored: tokens, and those of each document.
#[derive(Clone, PartialEq)]
struct Read {
    tokens: Option<u64>,
    documents: BTreeSet<(String, Option<u64>)>,
}

impl Read {
    fn of(v: &Value) -> Read {
        let one = |d: &Value| (d["name"].as_str().unwrap_or_default().to_string(), d["tokens"].as_u64());
        Read { tokens: v["tokens"].as_u64(), documents: documents(v).iter().map(one).collect() }
    }
}

fn documents(v: &Value) -> &[Value] {
    v["documents"].as_array().map_or(&[], Vec::as_slice)
}

impl Text<'_> {
    /// Writes tables and pictures.
    ///
    /// # Errors
    /// A picture that cannot be drawn.
    pub(super) fn write(&self, page: &mut Page) -> Result<()> {
        let first = self.first();
        let lengths: Vec<f64> = documents(first.own).iter().filter_map(|d| d["tokens"].as_f64()).collect();
        let tokens = thousands(first.own["tokens"].as_u64().unwrap_or(0) as usize);
        let documents = match lengths.len() {
            1 => "one document".to_string(),
            n => format!("{n} documents"),
        };
        page.heading(&format!("{}: {tokens} tokens of {documents}", self.name));
        let beside = if self.rows.len() > 1 { format!(" Differences are to {}.", first.name) } else { String::new() };
        page.table(&format!("Perplexity of whole documents.{beside}"), &self.perplexities());
        if self.rows.iter().any(|r| r.own["words_seen"].is_object()) {
            let alike = self.rows.iter().all(|r| same_words(r.own, first.own));
            let note = if alike {
                ""
            } else {
                " Where the window differs, other words stand beyond it; they are not compared."
            };
            let caption = format!("Nats per token of words by where they last stood.{beside}{note}");
            page.table(&caption, &self.recurring());
        }
        self.pictures(page, lengths.iter().copied().fold(0.0, f64::max))
    }

    /// Curves by position and by distance, and memory against perplexity; `longest` is the longest document's length.
    fn pictures(&self, page: &mut Page, longest: f64) -> Result<()> {
        let first = self.first();
        // the last bucket reaches further than any document
        let end = |to: f64| if longest > 0.0 { to.min(longest) } else { to };
        let buckets = |v: &Value, known: &dyn Fn(&Value) -> bool| -> Vec<(f64, f64)> {
            let one = |b: &Value| Some((end(b["to"].as_f64()?), b["loss"].as_f64()?));
            v.as_array().map(|a| a.iter().filter(|b| known(b)).filter_map(one).collect()).unwrap_or_default()
        };
        let distances = |v: &Value| -> Vec<(f64, f64)> {
            // other words where the window differs
            let of_first = &first.own["words_seen"]["by_distance"];
            let known = |b: &Value| of_first.as_array().is_none_or(|a| a.iter().any(|f| same_bucket(f, b)));
            buckets(&v["words_seen"]["by_distance"], &known)
        };
        let memory = |v: &Value| Some((v["memory_bytes"].as_f64()?, v["perplexity"].as_f64()?));
        let nats = "nats per token";
        let position = self.series(&|v| buckets(&v["by_position"], &|_| true));
        if any(&position) {
            let svg = plot::lines("Loss by position", "up to this token of a document", nats, true, &position)?;
            page.picture(format!("position-{}.svg", self.name), svg);
        }
        let distance = self.series(&distances);
        if any(&distance) {
            let title = "Loss of words seen beyond the window";
            let svg = plot::lines(title, "tokens since the word last stood, up to", nats, true, &distance)?;
            page.picture(format!("distance-{}.svg", self.name), svg);
        }
        let memory = self.series(&|v| memory(v).into_iter().collect());
        if memory.iter().flat_map(|s| &s.points).any(|p| p.0 > 0.0) {
            let svg = plot::dots("Context memory against perplexity", "context memory", "perplexity", &memory)?;
            page.picture(format!("memory-{}.svg", self.name), svg);
        }
        Ok(())
    }

    /// What the others are compared with.
    fn first(&self) -> &Row<'_> {
        &self.rows[0]
    }

    /// Curves of all rows at their places.
    fn series(&self, points: &dyn Fn(&Value) -> Vec<(f64, f64)>) -> Vec<Series> {
        let places = self.rows.iter().map(|r| r.place + 1).max().unwrap_or(0);
        let mut all = vec![Series { name: String::new(), points: Vec::new() }; places];
        for row in &self.rows {
            all[row.place] = Series { name: row.name.clone(), points: points(row.own) };
        }
        all
    }

    fn perplexities(&self) -> String {
        let headings = [
            "run",
            "memory, KiB",
            "state, KiB",
            "nats/token",
            "perplexity",
            "per word",
            "bits/byte",
            "memory knocked out, nats",
            "another's memory, nats",
            "nats minus the first run's, ± SD over documents",
            "better in",
            "tokens/s",
        ];
        self.table(&headings, |row| {
            let v = row.own;
            let kib = |v: &Value| v.as_f64().map_or(NOTHING.into(), |b| thousands((b / 1024.0).round() as usize));
            let others = row.others.map(|other| {
                let d = other.and_then(|o| difference(o, v, "/loss"));
                d.map_or(NOTHING.into(), |d| format!("{:+.4}", d.mean))
            });
            let mut cells =
                vec![row.name.clone(), kib(&v["memory_bytes"]), kib(&v["state_bytes"]), number(&v["loss"], 4)];
            cells.extend(
                [("perplexity", 2), ("word_perplexity", 1), ("bits_per_byte", 4)].map(|(k, d)| number(&v[k], d)),
            );
            cells.extend(others);
            cells.extend(self.minus(row, "/loss"));
            cells.push(v["tokens_per_second"].as_f64().map_or(NOTHING.into(), |x| thousands(x.round() as usize)));
            cells
        })
    }

    fn recurring(&self) -> String {
        let headings = [
            "run",
            "word never",
            "in the window",
            "beyond",
            "beyond, against the first run",
            "pair never",
            "in the window",
            "beyond",
            "word beyond minus the first run's, ± SD over documents",
            "better in",
            "words beyond",
        ];
        let first = self.first().own;
        self.table(&headings, |row| {
            let v = row.own;
            let classes = |unit: &str| ["new", "window", "beyond"].map(|class| number(&v[unit][class]["loss"], 4));
            let [ours, theirs] = [v, first].map(|v| v["words_seen"]["beyond"]["loss"].as_f64());
            let alike = row.place != self.first().place && same_words(v, first);
            let percent = ours.zip(theirs).filter(|_| alike).map(|(a, b)| format!("{:+.1} %", 100.0 * (a / b - 1.0)));
            let mut cells = vec![row.name.clone()];
            cells.extend(classes("words_seen"));
            cells.push(percent.unwrap_or(NOTHING.into()));
            cells.extend(classes("pairs_seen"));
            let minus = alike.then(|| self.minus(row, "/words_seen/beyond/loss"));
            cells.extend(minus.unwrap_or([NOTHING.into(), NOTHING.into()]));
            let beyond = v["words_seen"]["beyond"]["tokens"].as_u64();
            cells.push(beyond.map_or(NOTHING.into(), |n| thousands(n as usize)));
            cells
        })
    }

    fn table(&self, headings: &[&str], cells: impl Fn(&Row) -> Vec<String>) -> String {
        let rows: Vec<Vec<String>> = self.rows.iter().map(cells).collect();
        let headings: Vec<String> = headings.iter().map(|h| h.to_string()).collect();
        table(&headings, &rows)
    }

    /// Mean difference from the first run over documents with its spread, and in how many of them it is below.
    fn minus(&self, row: &Row, pointer: &str) -> [String; 2] {
        let beside = (row.place != self.first().place).then_some(self.first().own);
        beside.and_then(|f| difference(row.own, f, pointer)).map_or([NOTHING.into(), NOTHING.into()], |d| {
            [format!("{:+.4} ± {:.4}", d.mean, d.spread), format!("{} of {}", d.below, d.n)]
        })
    }
}

fn any(series: &[Series]) -> bool {
    series.iter().any(|s| !s.points.is_empty())
}

/// Whether the same number of words stands beyond the window: with another window they are others.
fn same_words(a: &Value, b: &Value) -> bool {
    let beyond = |v: &Value| v["words_seen"]["beyond"]["tokens"].as_u64();
    beyond(a) == beyond(b)
}

fn same_bucket(a: &Value, b: &Value) -> bool {
    ["from", "to", "tokens"].iter().all(|key| a[key] == b[key])
}

/// A paired comparison over documents.
struct Difference {
    mean: f64,
    /// Standard deviation over documents.
    spread: f64,
    /// Documents where it is below zero.
    below: usize,
    n: usize,
}

/// `a − b` at `pointer` of every document that both have.
fn difference(a: &Value, b: &Value, pointer: &str) -> Option<Difference> {
    let of = |v: &Value| -> BTreeMap<String, f64> {
        let documents = v["documents"].as_array().cloned().unwrap_or_default();
        let scored = documents.iter().filter(|d| d["tokens"].as_u64() > Some(0));
        scored.filter_map(|d| Some((d["name"].as_str()?.to_string(), d.pointer(pointer)?.as_f64()?))).collect()
    };
    let (a, b) = (of(a), of(b));
    let all: Vec<f64> = a.iter().filter_map(|(name, a)| Some(a - b.get(name)?)).collect();
    let n = all.len();
    if n == 0 {
        return None;
    }
    let mean = all.iter().sum::<f64>() / n as f64;
    let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n.max(2) - 1) as f64;
    Some(Difference { mean, spread: variance.sqrt(), below: all.iter().filter(|x| **x < 0.0).count(), n })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::report;
    use serde_json::json;

    fn eval(reads: &str, tokens: u64, loss: f64, beyond: u64) -> Value {
        json!({
            "reads": reads, "tokens": tokens, "loss": loss, "perplexity": loss.exp(), "memory_bytes": 4096,
            "documents": [{ "name": "a", "tokens": tokens, "loss": loss }],
            "by_position": [{ "from": 0, "to": 1024, "tokens": tokens, "loss": loss }],
            "words_seen": { "beyond": { "tokens": beyond, "loss": loss }, "by_distance": [
                { "from": 2, "to": 4, "tokens": beyond, "loss": 7.5 }, { "from": 4, "to": 8, "tokens": 5, "loss": 7.25 }] },
        })
    }

    fn run(name: &str, evals: &[(&str, Value)]) -> Run {
        let evals = evals.iter().map(|(file, v)| (file.to_string(), v.clone())).collect();
        Run { name: name.into(), evals, ..Run::default() }
    }

    #[test]
    fn only_what_was_scored_alike_stands_side_by_side() {
        let runs = [
            run("one", &[("test.json", eval("own", 900, 4.0, 50)), ("valid.json", eval("own", 500, 3.0, 20))]),
            run("two", &[("out.json", eval("nothing", 500, 3.5, 20)), ("valid.json", eval("own", 100, 2.0, 20))]),
            run("three", &[("more.json", eval("own", 500, 2.7, 20)), ("valid.json", eval("own", 500, 3.3, 30))]),
        ];
        let texts = texts(&runs);
        let named = |t: &Text| t.rows.iter().map(|r| (r.name.clone(), r.place)).collect::<Vec<_>>();
        assert_eq!(texts.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["test", "valid", "valid-2"]);
        assert_eq!(named(&texts[1]), [("one".into(), 0), ("three".into(), 2), ("three (valid)".into(), 3)]);
        assert_eq!(named(&texts[2]), [("two".into(), 1)]);
        // knocked out on another text
        assert!(texts[2].rows[0].others[0].is_none());
        // other words beyond another window are not compared
        let table = texts[1].recurring();
        assert!(table.contains("-10.0 %") && !table.contains("+10.0 %"), "{table}");
        assert_eq!(table.matches('%').count(), 1);
        let page = report("t", &runs).unwrap();
        assert!(
            page.html.contains("valid: 500 tokens of one document") && page.html.contains("Differences are to one.")
        );
        let names: Vec<&str> = page.pictures.iter().map(|(n, _)| n.as_str()).collect();
        for part in ["position-test.svg", "memory-valid.svg", "distance-valid-2.svg"] {
            assert!(names.contains(&part), "{names:?}");
        }
        let distance = &page.pictures.iter().find(|(n, _)| n == "distance-valid.svg").unwrap().1;
        // three times what all three have in common, twice what two have
        assert_eq!(distance.matches("<circle").count(), 5);
    }
}
