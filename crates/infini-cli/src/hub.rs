//! Models of Hugging Face's hub, by their names there: `hf:OWNER/NAME`.

use std::fmt;

use anyhow::{Result, bail};

#[cfg(feature = "hub")]
mod remote;
#[cfg(feature = "hub")]
pub use remote::{find, pull};

/// What `hf:OWNER/NAME[/FILE.gguf][@REVISION]` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// Owner and name.
    pub repo: String,
    /// A GGUF file among the model's; without it, the model is a folder.
    pub file: Option<String>,
    /// A branch, tag or commit.
    pub revision: String,
}

impl HubModel {
    /// The model that `name` means; `None` if it is no name of the hub's.
    ///
    /// # Errors
    /// A name that begins like one and is none.
    pub fn parse(name: &str) -> Result<Option<Self>> {
        let Some(rest) = name.strip_prefix("hf:") else { return Ok(None) };
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let parts: Vec<&str> = path.split('/').collect();
        // all of it becomes part of addresses and of paths in the cache
        let plain = |s: &str| {
            !s.is_empty() && !s.starts_with('.') && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let file = (parts.len() > 2).then(|| parts[2..].join("/"));
        let fits = parts.len() >= 2 && file.as_ref().is_none_or(|f| f.ends_with(".gguf"));
        if !fits || !parts.iter().copied().chain(revision.split('/')).all(plain) {
            bail!(
                "no name of a model on the hub: {name}: write hf:OWNER/NAME or hf:OWNER/NAME/FILE.gguf, with @REVISION \
                 behind it if it is not main"
            );
        }
        Ok(Some(HubModel { repo: parts[..2].join("/"), file, revision: revision.into() }))
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// Without the hub there is nothing to find.
///
/// # Errors
/// Always: how to build with it.
#[cfg(not(feature = "hub"))]
pub fn find(model: &HubModel) -> Result<std::path::PathBuf> {
    bail!(
        "this program was built without Hugging Face's hub: {model}: build it with `cargo build --release --features hub`, \
         or download the model with the hub's own tools and give its folder"
    )
}

/// As [`find`].
///
/// # Errors
/// Always.
#[cfg(not(feature = "hub"))]
pub fn pull(model: &HubModel) -> Result<(std::path::PathBuf, bool)> {
    find(model).map(|path| (path, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub() {
        let parse = |name: &str| HubModel::parse(name).map_err(|e| e.to_string());
        assert_eq!(parse("smollm2"), Ok(None));
        for name in ["hf:a/b", "hf:a/b-1.5@v1", "hf:a/b/c.gguf", "hf:a/b/d/c.gguf@refs/pr/3"] {
            assert_eq!(parse(name).unwrap().unwrap().to_string(), name);
        }
        let model = parse("hf:a/b/d/c.gguf@refs/pr/3").unwrap().unwrap();
        assert_eq!((&*model.repo, model.file.as_deref(), &*model.revision), ("a/b", Some("d/c.gguf"), "refs/pr/3"));
        for name in
            ["hf:", "hf:a", "hf:a/", "hf:a/b/c", "hf:../b", "hf:a/b@../x", "hf:a/b/../c.gguf", "hf:a b/c", "hf:a/b@"]
        {
            assert!(parse(name).unwrap_err().contains("hf:OWNER/NAME"), "{name}");
        }
    }
}
