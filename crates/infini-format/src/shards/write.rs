//! Making a corpus, one document after the other, so that a crash costs at most a shard.

use std::path::{Path, PathBuf};

use super::corpus::read_manifest;
use super::shard::{Entry, encode};
use super::{About, FORMAT, MANIFEST, Manifest, Part, ShardError, TOKENIZER, VERSION, file_name, from_hex, width};
use crate::io::{self, Io, IoError, Lock, PUBLIC};
use crate::{At, Explain, limits, seal};

/// Writes a corpus. Nothing counts before the manifest names it.
pub struct Writer<'a> {
    io: &'a dyn Io,
    dir: PathBuf,
    lock: Lock,
    manifest: Manifest,
    tokenizer: [u8; 32],
    /// Tokens after which a shard is full.
    capacity: u64,
    data: Vec<u8>,
    entries: Vec<Entry>,
    name: Option<String>,
    /// Tokens of the open document that are to be passed over: they are in the corpus.
    skip: u64,
    /// Tokens of the open document so far.
    read: u64,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Where an interrupted writer stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Inputs that are wholly in the corpus.
    pub done: u64,
    /// Tokens in the corpus.
    pub tokens: u64,
}

impl<'a> Writer<'a> {
    /// Begins a corpus in `dir` (made if it is not there), or goes on with one of the same inputs. `tokenizer` are the
    /// bytes of the `tokenizer.json`, `inputs` a hash of all that decides what the documents are.
    ///
    /// # Errors
    /// [`ShardError::OtherCorpus`], [`ShardError::Finished`], a damaged manifest, the disk's, another writer's lock.
    pub fn begin(
        io: &'a dyn Io,
        dir: &Path,
        about: &About,
        tokenizer: &[u8],
        inputs: &str,
        capacity: u64,
    ) -> Result<(Writer<'a>, Resumed), At<ShardError>> {
        let disk = |action| move |error| ShardError::Io(IoError::Failed { action, error }).at(dir);
        match io.create_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.and_then(|()| io.sync_dir(io::parent(dir))).map_err(disk("make the folder"))?,
        }
        let lock = Lock::acquire(&dir.join(MANIFEST)).map_err(|e| e.map(ShardError::Io))?;
        let other = |what| Err(ShardError::OtherCorpus { what }.at(dir));
        let manifest = match read_manifest(io, dir) {
            Ok(old) if old.about.tokenizer != about.tokenizer => return other("another tokenizer"),
            Ok(old) if old.about != *about => return other("other settings"),
            Ok(old) if old.inputs != inputs => return other("other inputs"),
            Ok(old) if old.complete => return Err(ShardError::Finished.at(dir)),
            Ok(old) => Manifest { seal: seal::BLANK.into(), ..old },
            Err(At { error: ShardError::NoCorpus, .. }) => Manifest {
                format: FORMAT.into(),
                version: VERSION,
                about: about.clone(),
                inputs: inputs.into(),
                complete: false,
                done: 0,
                partial: 0,
                shards: Vec::new(),
                seal: seal::BLANK.into(),
            },
            Err(error) => return Err(error),
        };
        let tokenizer_hash = from_hex(&about.tokenizer).unwrap_or_default();
        io::atomic_write(io, &dir.join(TOKENIZER), PUBLIC, tokenizer).map_err(|e| e.map(ShardError::Io))?;
        let resumed = Resumed { done: manifest.done, tokens: manifest.shards.iter().map(|s| s.tokens).sum() };
        let writer = Writer {
            io,
            dir: dir.into(),
            lock,
            skip: manifest.partial,
            manifest,
            tokenizer: tokenizer_hash,
            capacity: capacity.max(1),
            data: Vec::new(),
            entries: Vec::new(),
            name: None,
            read: 0,
        };
        Ok((writer, resumed))
    }

    /// Begins the next document.
    ///
    /// # Errors
    /// [`ShardError::TooLarge`] for its name.
    ///
    /// # Panics
    /// If one is open.
    pub fn start(&mut self, name: &str) -> Result<(), At<ShardError>> {
        assert!(self.name.is_none(), "a document is open");
        let max = limits::NAME_BYTES as u64 * 16;
        if name.len() as u64 > max {
            return Err(ShardError::TooLarge { what: "the name of a document", max }.at(&self.dir));
        }
        self.name = Some(name.into());
        self.read = 0;
        Ok(())
    }

    /// Adds tokens to the open document.
    ///
    /// # Errors
    /// The disk's.
    ///
    /// # Panics
    /// If no document is open, or a token is outside the vocabulary.
    pub fn push(&mut self, tokens: &[u32]) -> Result<(), At<ShardError>> {
        let name = self.name.clone().expect("a document is open");
        let width = width(self.manifest.about.vocab_size);
        for token in tokens {
            assert!(u64::from(*token) < self.manifest.about.vocab_size, "token {token} is outside the vocabulary");
            self.read += 1;
            if self.read <= self.skip {
                continue;
            }
            // only now is it known that the document goes on
            if self.len() >= self.capacity {
                if self.entries.last().map_or(0, |e| e.end) < self.len() {
                    let entry = Entry { name: name.clone(), end: self.len(), bytes: 0, words: 0, continues: true };
                    self.entries.push(entry);
                }
                self.manifest.partial = self.read - 1;
                self.flush()?;
            }
            self.data.extend(&token.to_le_bytes()[..width]);
        }
        Ok(())
    }

    /// Ends the open document, whose whole text has so many bytes and words. A document without tokens leaves no trace.
    ///
    /// # Errors
    /// The disk's.
    ///
    /// # Panics
    /// If no document is open.
    pub fn end(&mut self, bytes: u64, words: u64) -> Result<(), At<ShardError>> {
        let name = self.name.take().expect("a document is open");
        let from = self.entries.last().map_or(0, |e| e.end);
        if self.len() > from {
            self.entries.push(Entry { name, end: self.len(), bytes, words, continues: false });
        }
        self.pass_over();
        // a shard ends with a document where it can
        if self.len() >= self.capacity.div_ceil(2) { self.flush() } else { Ok(()) }
    }

    /// Counts an input that gives no document.
    pub fn pass_over(&mut self) {
        self.manifest.done += 1;
        (self.manifest.partial, self.skip) = (0, 0);
    }

    /// Ends the corpus.
    ///
    /// # Errors
    /// [`ShardError::Empty`] if it holds nothing, the disk's.
    pub fn finish(mut self) -> Result<u64, At<ShardError>> {
        if !self.data.is_empty() {
            self.flush()?;
        }
        let tokens = self.manifest.shards.iter().map(|s| s.tokens).sum();
        if tokens == 0 {
            return Err(ShardError::Empty.at(&self.dir));
        }
        self.manifest.complete = true;
        self.write_manifest()?;
        Ok(tokens)
    }

    fn len(&self) -> u64 {
        (self.data.len() / width(self.manifest.about.vocab_size)) as u64
    }

    /// The shard first, then the manifest that names it.
    fn flush(&mut self) -> Result<(), At<ShardError>> {
        let (bytes, header) = encode(&self.manifest.about, self.tokenizer, &self.data, &self.entries);
        let file = file_name(self.manifest.shards.len());
        io::atomic_write(self.io, &self.dir.join(&file), PUBLIC, &bytes).map_err(|e| e.map(ShardError::Io))?;
        self.manifest.shards.push(Part { file, tokens: self.len(), header });
        self.data.clear();
        self.entries.clear();
        self.write_manifest()
    }

    fn write_manifest(&mut self) -> Result<(), At<ShardError>> {
        // the manifest in memory keeps its seal open
        let mut text = serde_json::to_vec(&self.manifest).expect("texts and numbers always serialise");
        seal::close(&mut text);
        if text.len() as u64 > limits::MANIFEST_BYTES {
            let max = limits::MANIFEST_BYTES;
            return Err(ShardError::TooLarge { what: "a list of shards", max }.at(&self.dir));
        }
        self.lock.atomic_write(self.io, PUBLIC, &text).map_err(|e| e.map(ShardError::Io))
    }
}
