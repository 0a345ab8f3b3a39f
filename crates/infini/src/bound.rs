//! Files that belong to one base: what their metadata says, checked.

use std::collections::BTreeMap;

use infini_format::hash::is_hash;
use infini_format::tensors::TensorFile;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The metadata that [`header`] reads.
pub(crate) fn metadata(format: &str, version: &str, base: &str, config: &impl Serialize) -> BTreeMap<String, String> {
    let config = serde_json::to_string(config).expect("sizes are plain data");
    [("format", format), ("version", version), ("base", base), ("config", &config)]
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .into()
}

/// The base's hash and the configuration in the metadata of `file`, which has to be a `format` of `version`.
///
/// # Errors
/// A file of another kind or version, a base that is no SHA-256, a configuration that does not parse.
pub(crate) fn header<C: DeserializeOwned>(file: &TensorFile, format: &str, version: &str) -> Result<(String, C)> {
    let text = |key: &str| file.metadata.get(key).map_or("", String::as_str);
    if text("format") != format || text("version") != version {
        let (other, its) = (text("format"), text("version"));
        return Err(Error::Model(format!("is no {format} of version {version}: format {other:?}, version {its:?}")));
    }
    if !is_hash(text("base")) {
        return Err(Error::Model("names no base: base is not a SHA-256".into()));
    }
    let config = serde_json::from_str(text("config")).map_err(|e| Error::Model(format!("config: {e}")))?;
    Ok((text("base").to_string(), config))
}
