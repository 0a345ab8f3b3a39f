//! Golden files: every executor against numbers that another implementation computed.
//!
//! Files of kind `op` hold one Infini-attention, files of kind `model` a whole decoder with its loss and
//! every gradient. Executors: the f64 reference, the f32 kernels at every SIMD level of this machine, and
//! the composed tensor ops in f32 and f64.

mod model;
mod op;

pub use model::verify;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use infini_format::io::RealIo;
use infini_format::tensors::TensorFile;
use infini_kernels::conformance::{self, Deviation, Tensor};
use infini_kernels::simd::{self, Level};

/// One executor on one file.
#[derive(Clone, Debug)]
pub struct Row {
    /// `reference f64`, `kernels avx512`, `composed f32`, …
    pub executor: String,
    /// Every tensor that was compared.
    pub tensors: Vec<Deviation>,
}

impl Row {
    /// The tensor furthest beyond (or nearest to) its bound.
    pub fn worst(&self) -> &Deviation {
        let ratio = |d: &Deviation| d.error / d.bound;
        self.tensors.iter().max_by(|a, b| ratio(a).total_cmp(&ratio(b))).expect("a row compares at least one tensor")
    }

    /// Whether every tensor is within its bound.
    pub fn passed(&self) -> bool {
        self.tensors.iter().all(Deviation::passed)
    }
}

/// All executors on one file.
#[derive(Clone, Debug)]
pub struct Report {
    /// `op` or `model`.
    pub kind: String,
    /// One row an executor.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether every executor passed.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(Row::passed)
    }
}

/// Checks a golden file.
///
/// # Errors
/// A file that cannot be read or is no golden file: what happened, where, how to mend it.
pub fn check_file(path: &Path) -> Result<Report, String> {
    let file = TensorFile::read(&RealIo, path).map_err(|e| e.to_string())?;
    check(&file).map_err(|e| format!("not checked: {}: {e}", path.display()))
}

/// Checks a parsed golden file.
///
/// # Errors
/// A tensor or setting that is missing, misshapen or unknown.
pub fn check(file: &TensorFile) -> Result<Report, String> {
    let text = |key: &str| file.metadata.get(key).cloned().ok_or(format!("metadata {key} is missing: no golden file"));
    if text("format")? != "1" {
        return Err(format!("format {} is not known: use a newer version", text("format")?));
    }
    let (kind, settings) = (text("kind")?, text("settings")?);
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let data = if view.dtype.is_float() {
            view.to_f64()
        } else {
            view.to_i64().map(|x| x.into_iter().map(|x| x as f64).collect())
        };
        let data = data.map_err(|e| e.to_string())?;
        tensors.insert(name.to_owned(), Tensor { shape: view.shape.to_vec(), data });
    }
    let rows = match kind.as_str() {
        "op" => op::check(&settings, tensors)?,
        "model" => model::check(&settings, tensors)?,
        _ => return Err(format!("kind {kind} is neither op nor model")),
    };
    Ok(Report { kind, rows })
}

/// Runs `f` at every SIMD level; one caller at a time, since a level is the process's.
fn at_every_level<T>(mut f: impl FnMut(Level) -> T) -> Vec<T> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let results = Level::available().into_iter().map(|level| {
        simd::force(Some(level));
        f(level)
    });
    let results = results.collect();
    simd::force(None);
    results
}

fn deviation(tensor: String, x: &[f64], expected: &[f64], bound: f64) -> Deviation {
    Deviation { tensor, error: conformance::error(x, expected), rms: conformance::rms(x, expected), bound }
}

fn number(settings: &serde_json::Value, key: &str) -> Result<f64, String> {
    settings[key].as_f64().ok_or(format!("setting {key} is no number"))
}

fn size(settings: &serde_json::Value, key: &str) -> Result<usize, String> {
    settings[key].as_u64().map(|n| n as usize).ok_or(format!("setting {key} is no size"))
}

fn word<T>(settings: &serde_json::Value, key: &str, known: impl Fn(&str) -> Option<T>) -> Result<T, String> {
    let name = settings[key].as_str().unwrap_or_default();
    known(name).ok_or(format!("setting {key} = {name:?} is not known"))
}
