//! How a model comes from the hub into the hub's own cache, which other programs share.
//!
//! [`hf_hub`] knows addresses and the cache, and downloads; here is what a model consists of, that what has come is what
//! the hub says it is, and that a name stands for a whole model: a revision is pinned first, its files are fetched by that
//! commit, and only then does the cache learn that the revision is this commit.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use infini::folder::{self, ADAPTER, INDEX, WEIGHTS};
use infini_format::hash::sha256_file;
use sha1::{Digest, Sha1};

use super::HubModel;
use crate::progress::Progress;

/// Files without which a folder is no model.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files that a model may have.
const OPTIONAL: [&str; 5] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", ADAPTER, INDEX];

/// The folder or file of a model that was pulled, by this or another program.
///
/// # Errors
/// A model that is not there, or not whole.
pub fn find(model: &HubModel) -> Result<PathBuf> {
    let cached = cache()?.repo(model.revision(&model.revision));
    let place = match &model.file {
        Some(file) => cached.get(file),
        None => cached.get(NEEDED[0]).and_then(|path| path.parent().map(Path::to_path_buf)),
    };
    let whole = |place: &PathBuf| {
        let there = |names: Vec<String>| names.iter().all(|name| place.join(name).exists());
        place.is_file() || folder::weight_files(place).is_ok_and(there)
    };
    place.filter(whole).with_context(|| format!("the model was not downloaded yet: {model}: run `infini pull {model}`"))
}

/// Gets what is not there yet of a model; returns its place and whether anything was downloaded.
///
/// # Errors
/// A hub that cannot be reached or refuses, a model that cannot be read here, a download that is not what the hub says.
pub fn pull(model: &HubModel) -> Result<(PathBuf, bool)> {
    let remote = Remote::new(model)?;
    let snapshot = remote.cached.pointer_path(&remote.commit);
    let mut new = false;
    if let Some(file) = &model.file {
        remote.demand(file)?;
        new |= remote.get(file)?;
    } else {
        for name in NEEDED {
            remote.demand(name)?;
            new |= remote.get(name)?;
        }
        // before gigabytes of it are downloaded
        folder::config(&snapshot)?;
        let single = remote.has(WEIGHTS);
        for name in OPTIONAL.into_iter().filter(|name| remote.has(name) && !(single && *name == INDEX)) {
            new |= remote.get(name)?;
        }
        for name in folder::weight_files(&snapshot)? {
            remote.demand(&name)?;
            new |= remote.get(&name)?;
        }
    }
    let named = remote.cache.repo(model.revision(&model.revision));
    named.create_ref(&remote.commit).with_context(|| format!("cannot write: {}", remote.cache.path().display()))?;
    Ok((model.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)), new))
}

impl HubModel {
    fn revision(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.into())
    }

    /// What an error of the hub's means.
    fn explain(&self, what: &str, e: &ApiError) -> anyhow::Error {
        let status = match e {
            ApiError::RequestError(e) => match **e {
                ureq::Error::StatusCode(status) => status,
                _ => 0,
            },
            ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) | ApiError::ParseIntError(_) => {
                return anyhow!("the hub's answer is not understood: {what}: {e}: is HF_ENDPOINT a mirror of the hub?");
            }
            _ => 0,
        };
        match status {
            401 => anyhow!(
                "the hub asks who you are (401): {what}: the name may be misspelt, or the model private: set HF_TOKEN to \
                 a token that may read it"
            ),
            403 => anyhow!(
                "the hub refuses (403): {what}: the model may have terms to be accepted on its page, with the account \
                 whose token is in HF_TOKEN"
            ),
            404 => anyhow!("the hub has no such model, revision or file (404): {what}: check the name: {self}"),
            _ => anyhow!(
                "the hub cannot be reached, or broke off: {what}: {e}: check the connection (HTTPS_PROXY and HF_ENDPOINT are honoured) and \
                 run the same command again, it goes on where it stopped"
            ),
        }
    }
}

fn cache() -> Result<Cache> {
    if std::env::var_os("HF_HOME").is_none() && std::env::home_dir().is_none() {
        bail!("no folder for models of the hub: neither HF_HOME nor HOME is set: set HF_HOME to a folder");
    }
    Ok(Cache::from_env())
}

/// One commit of a model, there and in the cache.
struct Remote<'a> {
    model: &'a HubModel,
    api: Api,
    repo: ApiRepo,
    cache: Cache,
    cached: CacheRepo,
    commit: String,
    files: Vec<String>,
}

impl<'a> Remote<'a> {
    /// Asks the hub what the model has.
    fn new(model: &'a HubModel) -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let cache = cache()?;
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_progress(false)
            .with_user_agent("infini", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = set("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').into());
        }
        if let Some(token) = set("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        let api = builder.build()?;
        let info =
            api.repo(model.revision(&model.revision)).info().map_err(|e| model.explain(&model.to_string(), &e))?;
        if !plain(&info.sha) {
            bail!("the hub's answer is not understood: {model}: {} is no commit", info.sha);
        }
        Ok(Remote {
            repo: api.repo(model.revision(&info.sha)),
            cached: cache.repo(model.revision(&info.sha)),
            commit: info.sha,
            files: info.siblings.into_iter().map(|f| f.rfilename).collect(),
            model,
            api,
            cache,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.files.iter().any(|f| f == name)
    }

    fn demand(&self, name: &str) -> Result<()> {
        if self.has(name) {
            return Ok(());
        }
        let gguf: Vec<&str> = self.files.iter().filter(|f| f.ends_with(".gguf")).map(String::as_str).collect();
        let or = match &gguf[..] {
            [] => "models in safetensors with a tokenizer.json, and GGUF files, are read".into(),
            files => format!("it has GGUF files, name one: hf:{}/FILE.gguf: {}", self.model.repo, files.join(", ")),
        };
        bail!("the model has no {name}: {}: {or}", self.model)
    }

    /// Gets a file, unless it is there and right; whether it was downloaded.
    fn get(&self, name: &str) -> Result<bool> {
        let url = self.repo.url(name);
        let failed = |e: ApiError| self.model.explain(&url, &e);
        let meta = self.api.metadata(&url).map_err(failed)?;
        if meta.commit_hash() != self.commit || !plain(meta.etag()) {
            bail!("the hub's answer is not understood: {url}: commit {}, tag {}", meta.commit_hash(), meta.etag());
        }
        let place = self.cached.pointer_path(&self.commit).join(name);
        let blob = self.cached.blob_path(meta.etag());
        let part = blob.with_extension("part");
        let size = meta.size() as u64;
        let right = |path: &Path| is(path, size, meta.etag());
        let io = |path: &Path| format!("cannot write: {}", path.display());
        if right(&place)? {
            return Ok(false);
        }
        // whole, but interrupted before it got its name
        if fs::metadata(&part).is_ok_and(|m| m.len() >= size) {
            if right(&part)? {
                fs::rename(&part, &blob).with_context(|| io(&blob))?;
            } else {
                remove(&[&part])?;
            }
        }
        // of another revision, too
        if right(&blob)? {
            fs::create_dir_all(place.parent().expect("a folder")).with_context(|| io(&place))?;
            remove(&[&place])?;
            fs::hard_link(&blob, &place).or_else(|_| fs::copy(&blob, &place).map(drop)).with_context(|| io(&place))?;
            return Ok(false);
        }
        remove(&[&place, &blob])?;
        self.repo.download_with_progress(name, Shown::default()).map_err(failed)?;
        if !right(&place)? {
            remove(&[&place, &blob])?;
            bail!("the download is not the file it should be: {url}: its size or hash differs; try again");
        }
        Ok(true)
    }
}

/// Removes those of the files that are there.
fn remove(paths: &[&Path]) -> Result<()> {
    for path in paths {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove: {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A hash or the like: what can be the name of a file in the cache.
fn plain(tag: &str) -> bool {
    !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Whether the file has this size and, where the hub's tag for it is a hash (SHA-256 of large files, Git's of small ones),
/// this hash.
fn is(path: &Path, size: u64, tag: &str) -> Result<bool> {
    if !fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == size) {
        return Ok(false);
    }
    let hex = tag.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(match tag.len() {
        64 if hex => sha256_file(path)? == tag,
        40 if hex => {
            let bytes = fs::read(path).with_context(|| format!("cannot read: {}", path.display()))?;
            let hash = Sha1::new().chain_update(format!("blob {size}\0")).chain_update(bytes).finalize();
            hash.iter().map(|b| format!("{b:02x}")).collect::<String>() == tag
        }
        _ => true,
    })
}

/// A download, shown as it goes on.
#[derive(Default)]
struct Shown {
    progress: Option<Progress>,
    /// Bytes, once what was there before is known.
    done: Option<u64>,
}

impl hf_hub::api::Progress for Shown {
    fn init(&mut self, size: usize, name: &str) {
        let progress = Progress::new(format!("downloading {name}"), "bytes", Some(size as u64));
        *self = Shown { progress: Some(progress), done: None };
    }

    fn update(&mut self, n: usize) {
        let Some(progress) = &mut self.progress else { return };
        match &mut self.done {
            None => {
                progress.begin_at(n as u64);
                self.done = Some(n as u64);
            }
            Some(done) => {
                *done += n as u64;
                progress.set(*done);
            }
        }
    }

    fn finish(&mut self) {
        self.progress = None;
    }
}
