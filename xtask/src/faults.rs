//! Runs the fault tests of all crates and keeps their counts.

use std::fmt::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{cargo, root};

/// One line that a fault test printed: `what: run N, lost N, refused N, panicked N`.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    what: String,
    counts: [u64; 4],
}

/// What was taken out to see a row's test fail, by the beginning of the row's name. Whoever adds a fault adds its line.
const SEEN_TO_FAIL: [(&str, &str); 18] = [
    ("R1 `infini train`", "restoring the optimiser's moments"),
    ("R1 checkpoint", "writing the manifest last"),
    ("R2 `infini read`", "replacing by a rename"),
    ("R2 memory", "replacing by a rename"),
    ("R3 checkpoint", "replacing by a rename"),
    ("R3 memory", "replacing by a rename"),
    ("R4 checkpoint", "the sync before the rename; the rename; writing the manifest last"),
    ("R4 memory", "the sync before the rename; the rename"),
    ("R6 flipped bits, checkpoint", "checksums and seal; the seal alone"),
    ("R6 flipped bits, memory", "checksums and seal; the seal alone"),
    ("R6 flipped bits, small", "checksums and seal; the seal alone"),
    ("R7 cut memory", "the check that a file ends where its header says"),
    ("R8", "the check that numbers are finite"),
    ("R9 malformed", "the bound on the header's length"),
    ("R11", "the bound on the header's length"),
    ("R14", "the check of the configuration"),
    ("R15", "the comparison of the hashes"),
    ("R30", "restoring the window's keys"),
];

const COUNTS: [&str; 4] = ["run", "lost", "refused", "panicked"];

impl Row {
    fn parse(line: &str) -> Option<Row> {
        let (what, counts) = line.rsplit_once(": ")?;
        let mut numbers = counts.trim().split(", ");
        let mut row = Row { what: String::new(), counts: [0; 4] };
        for (name, count) in COUNTS.iter().zip(&mut row.counts) {
            *count = numbers.next()?.strip_prefix(name)?.trim().parse().ok()?;
        }
        // the test harness writes `test NAME ... ` in front when it runs on one thread
        row.what = what.rsplit(" ... ").next()?.trim().to_string();
        numbers.next().is_none().then_some(row)
    }
}

impl Row {
    /// What its test was seen to fail without.
    fn guard(&self) -> &'static str {
        SEEN_TO_FAIL.iter().find(|(row, _)| self.what.starts_with(row)).map_or("–", |(_, guard)| guard)
    }

    /// 11 of `R11 malformed …`.
    fn number(&self) -> u32 {
        let digits: String = self.what.chars().skip(1).take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(u32::MAX)
    }
}

/// Runs them and writes the table.
pub fn run(long: bool) -> Result<()> {
    let mut command = cargo(&["test", "--workspace", "--test", "faults*", "--", "--nocapture"]);
    if long {
        command.env("INFINI_FAULTS_LONG", "1");
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let mut rows: Vec<Row> = text.lines().filter_map(Row::parse).collect();
    rows.sort_by_key(|r| (r.number(), r.what.clone()));
    if rows.is_empty() || !output.status.success() {
        bail!("the fault tests failed: {}", output.status);
    }
    let (_, sections) = parts();
    write(&(table(&rows, long) + &sections))?;
    println!("{} rows in {PAGE}", rows.len());
    match rows.iter().find(|r| r.counts[1] + r.counts[3] > 0) {
        Some(r) => bail!("{}: {} lost, {} panicked", r.what, r.counts[1], r.counts[3]),
        None => Ok(()),
    }
}

const PAGE: &str = "docs/results/faults.md";

fn write(text: &str) -> Result<()> {
    std::fs::write(root().join(PAGE), text).with_context(|| format!("cannot write {PAGE}"))
}

/// The page's table, and the sections behind it, which others write.
fn parts() -> (String, String) {
    let page = std::fs::read_to_string(root().join(PAGE)).unwrap_or_default();
    let at = page.find("\n## ").unwrap_or(page.len());
    (page[..at].into(), page[at..].into())
}

/// The section of the page with this heading, empty if there is none.
pub fn read_section(heading: &str) -> String {
    let (_, sections) = parts();
    sections.find(heading).map_or_else(String::new, |at| sections[at..].into())
}

/// Writes the last section of the page, which begins with its heading.
pub fn write_section(heading: &str, section: &str) -> Result<()> {
    let (table, sections) = parts();
    let before = sections.find(heading).map_or(sections.as_str(), |at| &sections[..at]);
    let between = if before.is_empty() { "\n" } else { "" };
    write(&format!("{table}{before}{between}{section}"))
}

fn table(rows: &[Row], long: bool) -> String {
    let form = if long { " --long" } else { "" };
    let mut out = format!(
        "# Faults\n\nMade by `cargo xtask faults{form}`. *Run* counts faults that were injected: processes killed, disk calls failed, files \
         damaged.\n*Lost*: a save that was acknowledged and did not load, or a damaged file that was taken for good. *Refused*: \
         answered with an error,\nas it should be. *Seen to fail without*: guards that were taken out, each alone, and the test of the row failed.\n\n\
         | fault | run | lost | refused | panicked | seen to fail without |\n|---|---|---|---|---|---|\n"
    );
    for r in rows {
        let [run, lost, refused, panicked] = r.counts;
        writeln!(out, "| {} | {run} | {lost} | {refused} | {panicked} | {} |", r.what, r.guard()).expect("a string");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_counts_are_found() {
        let row = Row { what: "R6: every byte".into(), counts: [4096, 0, 4095, 1] };
        for line in [
            "R6: every byte: run 4096, lost 0, refused 4095, panicked 1",
            "test a::b ... R6: every byte: run 4096, lost 0, refused 4095, panicked 1",
        ] {
            assert_eq!(Row::parse(line).as_ref(), Some(&row), "{line}");
        }
        assert_eq!(row.number(), 6);
        assert_eq!(Row::parse("test result: ok. 3 passed; 0 failed"), None);
        assert_eq!(Row::parse("x: run 1, lost 0, refused 0"), None);
        assert!(table(&[row], true).ends_with("| R6: every byte | 4096 | 0 | 4095 | 1 | – |\n"));
        let row = Row { what: "R15 memory of another model".into(), counts: [1, 0, 1, 0] };
        assert!(table(&[row], false).ends_with("| 1 | 0 | 1 | 0 | the comparison of the hashes |\n"));
    }
}
