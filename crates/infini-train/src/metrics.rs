//! The metrics of a run in three forms: `metrics.csv`, `metrics.jsonl` and a TensorBoard event file.
//!
//! All three only ever grow; a checkpoint notes how long they are, and resuming cuts them back to that.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::tensorboard;
use crate::trainer::{LayerStats, Step};

const FILES: [&str; 3] = ["metrics.csv", "metrics.jsonl", tensorboard::FILE];
const COLUMNS: &str = "step,tokens,loss,answer_loss,answer_accuracy,token_loss,penalty,gradient_norm,lr,\
                       tokens_per_second,seconds,skipped,write,open,gate\n";

/// The three files, open for appending.
#[derive(Debug)]
pub struct Metrics {
    files: [(PathBuf, File); 3],
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// What the step did.
    pub step: &'a Step,
    /// Tokens of the run so far.
    pub tokens: u64,
    /// Speed since the last row.
    pub tokens_per_second: f64,
    /// Seconds of training so far, those before a resume included.
    pub seconds: f64,
    /// Skipped steps so far.
    pub skipped: u64,
}

impl Metrics {
    /// Opens the files of a run folder, cut to the lengths of a checkpoint (`None`: from the beginning).
    ///
    /// # Errors
    /// The disk's; a file that is shorter than the checkpoint says.
    pub fn open(dir: &Path, lengths: Option<[u64; 3]>) -> Result<Metrics> {
        let mut opened = Vec::new();
        for (i, name) in FILES.into_iter().enumerate() {
            let path = dir.join(name);
            let failed = |e: std::io::Error| Error::File(format!("cannot open the metrics: {}: {e}", path.display()));
            let mut file =
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
            let length = lengths.map_or(0, |l| l[i]);
            let found = file.metadata().map_err(failed)?.len();
            if found < length {
                let why = format!("holds {found} bytes, the checkpoint was made at {length}");
                return Err(Error::Resume { path: path.display().to_string(), why });
            }
            file.set_len(length).map_err(failed)?;
            file.seek(SeekFrom::End(0)).map_err(failed)?;
            opened.push((path, file));
        }
        let mut metrics = Metrics { files: opened.try_into().expect("three files") };
        if lengths.is_none() {
            metrics.append(0, COLUMNS.as_bytes())?;
            let mut record = Vec::new();
            tensorboard::header(&mut record, now()).expect("a vector takes all bytes");
            metrics.append(2, &record)?;
        }
        Ok(metrics)
    }

    /// Appends a row to each file.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let s = row.step;
        let optional = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.6}"));
        let (write, open, gate) = (mean(s, |l| &l.write), mean(s, |l| &l.open), mean(s, |l| &l.gate));
        let line = format!(
            "{},{},{:.6},{},{},{:.6},{},{:.6},{:e},{:.1},{:.2},{},{},{},{}\n",
            s.step + 1,
            row.tokens,
            s.loss,
            optional(s.answer_loss),
            optional(s.answer_accuracy),
            s.token_loss,
            optional(s.penalty),
            s.gradient_norm,
            s.lr,
            row.tokens_per_second,
            row.seconds,
            row.skipped,
            optional(write),
            optional(open),
            optional(gate),
        );
        self.append(0, line.as_bytes())?;
        let json = serde_json::json!({
            "step": s.step + 1, "tokens": row.tokens, "loss": s.loss, "answer_loss": s.answer_loss,
            "answer_accuracy": s.answer_accuracy, "token_loss": s.token_loss, "penalty": s.penalty,
            "gradient_norm": s.gradient_norm, "lr": s.lr, "tokens_per_second": row.tokens_per_second,
            "seconds": row.seconds, "skipped": row.skipped, "layers": s.layers,
        });
        self.append(1, format!("{json}\n").as_bytes())?;
        let mut scalars: Vec<(String, f64)> = vec![
            ("train/loss".into(), s.loss),
            ("train/token_loss".into(), s.token_loss),
            ("train/gradient_norm".into(), s.gradient_norm),
            ("train/lr".into(), s.lr),
            ("speed/tokens_per_second".into(), row.tokens_per_second),
        ];
        let named = [
            ("train/answer_loss", s.answer_loss),
            ("train/answer_accuracy", s.answer_accuracy),
            ("gates/penalty", s.penalty),
            ("gates/write", write),
            ("gates/open", open),
            ("gates/memory", gate),
        ];
        scalars.extend(named.into_iter().filter_map(|(n, x)| Some((n.to_owned(), x?))));
        let mut record = Vec::new();
        tensorboard::scalars(&mut record, now(), s.step + 1, &scalars).expect("a vector takes all bytes");
        self.append(2, &record)
    }

    /// Brings everything to the disk and says how long the files are.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&mut self) -> Result<[u64; 3]> {
        let mut lengths = [0; 3];
        for ((path, file), length) in self.files.iter_mut().zip(&mut lengths) {
            let synced = file.sync_all().and_then(|()| file.metadata());
            *length =
                synced.map_err(|e| Error::File(format!("cannot save the metrics: {}: {e}", path.display())))?.len();
        }
        Ok(lengths)
    }

    fn append(&mut self, i: usize, bytes: &[u8]) -> Result<()> {
        let (path, file) = &mut self.files[i];
        file.write_all(bytes).map_err(|e| Error::File(format!("cannot write the metrics: {}: {e}", path.display())))
    }
}

/// Mean of one statistic over the heads of all memory layers.
fn mean(step: &Step, of: impl Fn(&LayerStats) -> &Vec<f32>) -> Option<f64> {
    let all: Vec<f64> = step.layers.iter().flat_map(|l| of(l).iter().map(|x| f64::from(*x))).collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
