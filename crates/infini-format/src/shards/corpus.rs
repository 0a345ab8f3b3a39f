//! All shards of a folder as one row of tokens.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{About, FORMAT, MANIFEST, Manifest, Shard, ShardError, VERSION, file_name};
use crate::io::{self, Io, IoError, RealIo};
use crate::{At, Explain, hash, limits, seal};

/// A document of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it came from.
    pub name: String,
    /// Its tokens, numbered through all shards.
    pub tokens: Range<u64>,
    /// Bytes of its text.
    pub bytes: u64,
    /// Words of its text: runs without white space.
    pub words: u64,
}

/// A corpus that is open for reading.
#[derive(Debug)]
pub struct Corpus {
    about: About,
    identity: String,
    /// First token, path and contents of each shard.
    shards: Vec<(u64, PathBuf, Shard)>,
    documents: Vec<Document>,
    len: u64,
}

impl Corpus {
    /// Opens a finished corpus; of the tokens themselves nothing is read yet.
    ///
    /// # Errors
    /// A corpus that is not there, not finished, or damaged, by its file.
    pub fn open(dir: &Path) -> Result<Corpus, At<ShardError>> {
        let manifest = read_manifest(&RealIo, dir)?;
        if !manifest.complete {
            return Err(ShardError::Incomplete { done: manifest.done }.at(dir));
        }
        let mut corpus = Corpus {
            about: manifest.about.clone(),
            identity: String::new(),
            shards: Vec::new(),
            documents: Vec::new(),
            len: 0,
        };
        let mut headers = String::new();
        let mut open: Option<Document> = None;
        for part in &manifest.shards {
            let path = dir.join(&part.file);
            let shard = Shard::open(&path)?;
            let same = shard.digest() == part.header
                && shard.tokens() == part.tokens
                && shard.vocab_size() == corpus.about.vocab_size
                && shard.tokenizer() == corpus.about.tokenizer;
            if !same {
                return Err(ShardError::OtherShard.at(&path));
            }
            headers += &part.header;
            let mut from = corpus.len;
            for entry in shard.entries() {
                let to = corpus.len + entry.end;
                let document = match open.take() {
                    Some(d) => Document { tokens: d.tokens.start..to, bytes: entry.bytes, words: entry.words, ..d },
                    None => {
                        Document { name: entry.name.clone(), tokens: from..to, bytes: entry.bytes, words: entry.words }
                    }
                };
                if entry.continues {
                    open = Some(document);
                } else {
                    corpus.documents.push(document);
                }
                from = to;
            }
            let first = corpus.len;
            corpus.len += part.tokens;
            corpus.shards.push((first, path, shard));
        }
        // a document that goes on ends with the corpus at the latest
        corpus.documents.extend(open);
        if corpus.len == 0 {
            return Err(ShardError::Empty.at(dir));
        }
        corpus.identity = hash::sha256(headers.as_bytes());
        Ok(corpus)
    }

    /// What its shards have in common.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// SHA-256 that stands for all tokens: another corpus has another.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The documents in order.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// All tokens.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a corpus without tokens does not open.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a range of tokens to `out`.
    ///
    /// # Errors
    /// A shard that is damaged there, or has changed since it was opened, by its file.
    ///
    /// # Panics
    /// If the corpus does not hold them.
    pub fn read(&self, tokens: Range<u64>, out: &mut Vec<u32>) -> Result<(), At<ShardError>> {
        assert!(tokens.start <= tokens.end && tokens.end <= self.len, "tokens {tokens:?} of {}", self.len);
        let mut at = tokens.start;
        while at < tokens.end {
            let i = self.shards.partition_point(|(first, ..)| *first <= at) - 1;
            let (first, path, shard) = &self.shards[i];
            let to = tokens.end.min(first + shard.tokens());
            shard
                .check_unchanged(path)
                .and_then(|()| shard.read(at - first, to - first, out))
                .map_err(|e| e.at(path))?;
            at = to;
        }
        Ok(())
    }
}

pub(super) fn read_manifest(io: &dyn Io, dir: &Path) -> Result<Manifest, At<ShardError>> {
    let path = dir.join(MANIFEST);
    let bytes = match io::read(io, &path, limits::MANIFEST_BYTES) {
        Ok(bytes) => bytes,
        Err(At { error: IoError::Failed { error, .. }, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ShardError::NoCorpus.at(dir));
        }
        Err(error) => return Err(error.map(ShardError::Io)),
    };
    parse_manifest(&bytes).map_err(|e| e.at(&path))
}

fn parse_manifest(bytes: &[u8]) -> Result<Manifest, ShardError> {
    // A newer version may seal otherwise and have other fields.
    #[derive(Deserialize)]
    struct Kind {
        format: String,
        version: u32,
    }
    match serde_json::from_slice(bytes) {
        Ok(Kind { format, .. }) if format != FORMAT => return Err(ShardError::NoCorpus),
        Ok(Kind { version: found, .. }) if found > VERSION => {
            return Err(ShardError::NewerVersion { found, known: VERSION });
        }
        Ok(_) if seal::holds(bytes) => {}
        _ => return Err(ShardError::ManifestDamaged),
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|_| ShardError::ManifestDamaged)?;
    // A hostile manifest can be sealed as well as an honest one: no path may leave the folder, no sum overflow.
    let named = manifest.shards.iter().enumerate().all(|(i, s)| s.file == file_name(i));
    let counted = manifest.shards.iter().try_fold(0u64, |n, s| n.checked_add(s.tokens)).is_some();
    if named && counted && hash::is_hash(&manifest.about.tokenizer) {
        Ok(manifest)
    } else {
        Err(ShardError::ManifestDamaged)
    }
}
