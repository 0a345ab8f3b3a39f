//! What commands say: lines on stdout, complaints on stderr, numbers a person can read.

use std::fmt;
use std::io::{self, Write};

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It ran, and what it checked did not hold: exit code 1.
    Missed,
}

/// The flags make no sense together: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error of wrong usage.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// Writes a line to stdout; a closed pipe is an error that `main` takes for an end.
pub fn say(line: impl fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Writes a line to stderr. If even that fails there is nobody to tell.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Prints an error on one line.
pub fn complain(error: &anyhow::Error) {
    note(format_args!("error: {error:#}"));
}

/// Whether the reader of our output has gone.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(broken))
}

/// `1,048,576`.
pub fn commas(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    let mut x = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if x < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{x:.1} {unit}") };
        }
        x /= 1024.0;
    }
    format!("{x:.1} TiB")
}

/// `2 h 03 min`, `4 min 05 s` or `6.7 s`.
pub fn seconds(s: f64) -> String {
    let whole = s as u64;
    match whole {
        0..60 => format!("{s:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Aligned columns: numbers to the right, words to the left.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its headings.
    pub fn new(headings: &[&str]) -> Self {
        Table { rows: vec![headings.iter().map(|h| h.to_string()).collect()] }
    }

    /// Adds a row; a short one leaves cells empty.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let number = |s: &String| s.is_empty() || s == "-" || s.starts_with(|c: char| c.is_ascii_digit());
        let numbers: Vec<bool> =
            (0..columns).map(|c| self.rows.iter().skip(1).filter_map(|r| r.get(c)).all(number)).collect();
        for (i, row) in self.rows.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let (w, gap) = (widths[c], if c == 0 { "" } else { "  " });
                line += &if numbers[c] { format!("{gap}{cell:>w$}") } else { format!("{gap}{cell:<w$}") };
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            ["0", "999", "1,000", "1,048,576"],
            [0, 999, 1000, 1 << 20].map(commas).each_ref().map(|s| s.as_str())
        );
        assert_eq!((bytes(1023), bytes(1536), bytes(3 << 30)), ("1023 B".into(), "1.5 KiB".into(), "3.0 GiB".into()));
        assert_eq!(
            (seconds(6.66), seconds(245.0), seconds(7400.0)),
            ("6.7 s".into(), "4 min 05 s".into(), "2 h 03 min".into())
        );
    }

    #[test]
    fn a_table_is_aligned() {
        let mut t = Table::new(&["place", "n", "verdict"]);
        t.row(&["start".into(), "7".into(), "recalled".into()]);
        t.row(&["end".into(), "1,000".into()]);
        assert_eq!(t.to_string(), "place      n  verdict\nstart      7  recalled\nend    1,000");
    }

    #[test]
    fn a_closed_pipe_is_recognised_under_context() {
        let e = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("while writing");
        assert!(is_broken_pipe(&e) && !is_broken_pipe(&usage("no")));
    }
}
