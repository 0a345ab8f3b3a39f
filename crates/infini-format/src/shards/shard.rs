//! One shard, hostile until checked.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{About, BLOCK, ENTRY, HEADER, MAGIC, ShardError, VERSION, to_hex, width};
use crate::io::IoError;
use crate::{At, Explain, hash, limits};

/// Bytes that can be read at any place.
pub trait ReadAt: Send + Sync {
    /// How many there are.
    ///
    /// # Errors
    /// The disk's.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, and the disk's.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let n = std::os::windows::fs::FileExt::seek_read(self, buffer, offset)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (buffer, offset) = (&mut buffer[n..], offset + n as u64);
        }
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// One document's entry in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    /// Token of the shard at which it ends.
    pub end: u64,
    /// Bytes and words of the whole document's text; 0 where it goes on.
    pub bytes: u64,
    pub words: u64,
    /// Whether it goes on in the next shard.
    pub continues: bool,
}

/// What was seen of a file when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<std::time::SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Stamp {
        Stamp {
            len: meta.len(),
            modified: meta.modified().ok(),
            #[cfg(unix)]
            inode: {
                use std::os::unix::fs::MetadataExt;
                (meta.dev(), meta.ino())
            },
        }
    }
}

/// The numbers and digests of a header.
#[derive(Clone, Debug)]
struct Header {
    width: usize,
    vocab_size: u64,
    tokens: u64,
    documents: u64,
    names: u64,
    tokenizer: [u8; 32],
    index: [u8; 32],
}

impl Header {
    /// Bytes of the index, and of the file; `None` above what a file can have.
    fn sizes(&self) -> Option<(u64, u64)> {
        let data = self.tokens.checked_mul(self.width as u64)?;
        let entries = self.documents.checked_mul(ENTRY as u64)?;
        let index = entries.checked_add(self.names)?.checked_add(data.div_ceil(BLOCK as u64).checked_mul(32)?)?;
        Some((index, data.checked_add(index)?.checked_add(HEADER as u64)?))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.width as u32).to_le_bytes());
        for n in [self.vocab_size, self.tokens, self.documents, self.names] {
            out.extend(n.to_le_bytes());
        }
        out.extend(self.tokenizer);
        out.extend(self.index);
        let digest = hash::digest(&out);
        out.extend(digest);
        out
    }

    fn parse(bytes: &[u8; HEADER]) -> Result<Header, ShardError> {
        if bytes[..8] != MAGIC {
            return Err(ShardError::NotAShard);
        }
        let small = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
        let large = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
        let digest = |at: usize| *bytes[at..].first_chunk::<32>().expect("inside the header");
        if small(8) > VERSION {
            return Err(ShardError::NewerVersion { found: small(8), known: VERSION });
        }
        if hash::digest(&bytes[..HEADER - 32]) != digest(HEADER - 32) {
            return Err(ShardError::HeaderDamaged);
        }
        let header = Header {
            width: small(12) as usize,
            vocab_size: large(16),
            tokens: large(24),
            documents: large(32),
            names: large(40),
            tokenizer: digest(48),
            index: digest(80),
        };
        let bad = |what, value| Err(ShardError::BadHeader { what, value });
        match &header {
            h if h.vocab_size == 0 || h.vocab_size > 1 << 32 => bad("the vocabulary", h.vocab_size),
            h if h.width != width(h.vocab_size) => bad("the width of a token", h.width as u64),
            h if h.documents > limits::SHARD_DOCUMENTS => bad("the number of documents", h.documents),
            h if h.names > limits::SHARD_NAMES => bad("the bytes of names", h.names),
            h if h.tokens == 0 || h.sizes().is_none() => bad("the number of tokens", h.tokens),
            _ => Ok(header),
        }
    }
}

/// A shard that is open for reading.
pub struct Shard {
    source: Box<dyn ReadAt>,
    header: Header,
    digest: String,
    entries: Vec<Entry>,
    blocks: Vec<[u8; 32]>,
    checked: Vec<AtomicBool>,
    stamp: Option<Stamp>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Shard {
    /// Opens a file and checks all but its tokens.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(path: &Path) -> Result<Shard, At<ShardError>> {
        let failed = |error| ShardError::Io(IoError::Failed { action: "read", error });
        let open = || {
            let meta = fs::metadata(path).map_err(failed)?;
            if !meta.is_file() {
                return Err(ShardError::NotAShard);
            }
            let file = File::open(path).map_err(failed)?;
            let stamp = Stamp::of(&file.metadata().map_err(failed)?);
            Ok(Shard { stamp: Some(stamp), ..Shard::parse(file)? })
        };
        open().map_err(|e| e.at(path))
    }

    /// Checks all but the tokens of a shard's bytes.
    ///
    /// # Errors
    /// Whatever is wrong with them. Nothing is allocated for what the bytes only claim to hold.
    pub fn parse(source: impl ReadAt + 'static) -> Result<Shard, ShardError> {
        let failed = |error| ShardError::Io(IoError::Failed { action: "read", error });
        let len = source.size().map_err(failed)?;
        let short = |expected| {
            move |error: io::Error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ShardError::Truncated { len, expected },
                _ => failed(error),
            }
        };
        let mut bytes = [0; HEADER];
        let start = (len as usize).min(HEADER);
        source.read_exact_at(&mut bytes[..start], 0).map_err(failed)?;
        if start < 8 || bytes[..8] != MAGIC {
            return Err(ShardError::NotAShard);
        }
        if start < HEADER {
            return Err(ShardError::Truncated { len, expected: HEADER as u64 });
        }
        let header = Header::parse(&bytes)?;
        let (index_len, total) = header.sizes().expect("checked by the header");
        if len < total {
            return Err(ShardError::Truncated { len, expected: total });
        }
        if len > total {
            return Err(ShardError::TrailingBytes { len, expected: total });
        }
        // The file is as long as the index claims: what is allocated here is there.
        let mut index = vec![0; usize::try_from(index_len).map_err(|_| ShardError::IndexDamaged)?];
        source.read_exact_at(&mut index, total - index_len).map_err(short(total))?;
        if hash::digest(&index) != header.index {
            return Err(ShardError::IndexDamaged);
        }
        let entries = entries(&header, &index)?;
        let digests = &index[index.len() - blocks(&header) * 32..];
        let blocks: Vec<[u8; 32]> = digests.chunks_exact(32).map(|d| *d.first_chunk().expect("32 bytes")).collect();
        let checked = blocks.iter().map(|_| AtomicBool::new(false)).collect();
        let digest = hash::sha256(&bytes);
        Ok(Shard { source: Box::new(source), header, digest, entries, blocks, checked, stamp: None })
    }

    /// Tokens in it.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> u64 {
        self.header.vocab_size
    }

    /// SHA-256 of the tokenizer.
    pub fn tokenizer(&self) -> String {
        to_hex(&self.header.tokenizer)
    }

    /// SHA-256 of the header, which stands for the whole file.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Appends tokens `from..to` to `out`.
    ///
    /// # Errors
    /// [`ShardError::BlockDamaged`], [`ShardError::BadToken`], [`ShardError::Truncated`], the disk's.
    ///
    /// # Panics
    /// If the shard does not hold them.
    pub fn read(&self, from: u64, to: u64, out: &mut Vec<u32>) -> Result<(), ShardError> {
        assert!(from <= to && to <= self.header.tokens, "tokens {from}..{to} of {}", self.header.tokens);
        if from == to {
            return Ok(());
        }
        let width = self.header.width as u64;
        let (first, last) = (from * width, to * width);
        for block in first / BLOCK as u64..last.div_ceil(BLOCK as u64) {
            self.check_block(block as usize)?;
        }
        let mut bytes = vec![0; (last - first) as usize];
        self.fill(&mut bytes, first)?;
        out.reserve((to - from) as usize);
        for (i, token) in bytes.chunks_exact(width as usize).enumerate() {
            let id = match token {
                [a, b] => u32::from(u16::from_le_bytes([*a, *b])),
                _ => u32::from_le_bytes(*token.first_chunk().expect("four bytes")),
            };
            if u64::from(id) >= self.header.vocab_size {
                return Err(ShardError::BadToken {
                    at: from + i as u64,
                    token: id,
                    vocab_size: self.header.vocab_size,
                });
            }
            out.push(id);
        }
        Ok(())
    }

    /// Makes sure that the file of that name is still the one that was opened, as it was.
    ///
    /// # Errors
    /// [`ShardError::Changed`].
    pub fn check_unchanged(&self, path: &Path) -> Result<(), ShardError> {
        let now = fs::metadata(path).ok().map(|m| Stamp::of(&m));
        if self.stamp.is_some() && now != self.stamp { Err(ShardError::Changed) } else { Ok(()) }
    }

    fn check_block(&self, block: usize) -> Result<(), ShardError> {
        if self.checked[block].load(Ordering::Relaxed) {
            return Ok(());
        }
        let data = self.header.tokens * self.header.width as u64;
        let at = (block * BLOCK) as u64;
        let mut bytes = vec![0; (data - at).min(BLOCK as u64) as usize];
        self.fill(&mut bytes, at)?;
        if hash::digest(&bytes) != self.blocks[block] {
            return Err(ShardError::BlockDamaged { offset: HEADER as u64 + at });
        }
        self.checked[block].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Token bytes from `at` on.
    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<(), ShardError> {
        self.source.read_exact_at(bytes, HEADER as u64 + at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ShardError::Changed,
            _ => ShardError::Io(IoError::Failed { action: "read", error }),
        })
    }
}

fn blocks(header: &Header) -> usize {
    (header.tokens * header.width as u64).div_ceil(BLOCK as u64) as usize
}

/// The documents of an index whose length and checksum hold.
fn entries(header: &Header, index: &[u8]) -> Result<Vec<Entry>, ShardError> {
    let n = header.documents as usize;
    let names = &index[n * ENTRY..n * ENTRY + header.names as usize];
    let (mut end, mut name_end) = (0, 0);
    let mut out = Vec::with_capacity(n);
    for (i, entry) in index[..n * ENTRY].chunks_exact(ENTRY).enumerate() {
        let bad = |why| ShardError::BadIndex { document: i as u64, why };
        let number = |j: usize| u64::from_le_bytes(*entry[8 * j..].first_chunk().expect("inside the entry"));
        let [this, bytes, words, name] = [0, 1, 2, 3].map(number);
        if this <= end || this > header.tokens {
            return Err(bad("ends before it begins, or after the shard"));
        }
        if name < name_end || name > header.names || name - name_end > limits::NAME_BYTES as u64 * 16 {
            return Err(bad("has a name that is none"));
        }
        let text =
            std::str::from_utf8(&names[name_end as usize..name as usize]).map_err(|_| bad("has no UTF-8 name"))?;
        let continues = match entry[ENTRY - 1] {
            0 => false,
            1 if i + 1 == n => true,
            _ => return Err(bad("goes on without being the last")),
        };
        out.push(Entry { name: text.into(), end: this, bytes, words, continues });
        (end, name_end) = (this, name);
    }
    if end != header.tokens || name_end != header.names {
        return Err(ShardError::BadIndex { document: n as u64, why: "is missing" });
    }
    Ok(out)
}

/// The bytes of a shard with these tokens, little-endian already, and its header's digest.
pub(super) fn encode(about: &About, tokenizer: [u8; 32], data: &[u8], entries: &[Entry]) -> (Vec<u8>, String) {
    let mut index = Vec::new();
    let mut name_end = 0u64;
    for e in entries {
        name_end += e.name.len() as u64;
        for n in [e.end, e.bytes, e.words, name_end] {
            index.extend(n.to_le_bytes());
        }
        index.push(u8::from(e.continues));
    }
    entries.iter().for_each(|e| index.extend(e.name.as_bytes()));
    data.chunks(BLOCK).for_each(|block| index.extend(hash::digest(block)));
    let width = width(about.vocab_size);
    let header = Header {
        width,
        vocab_size: about.vocab_size,
        tokens: (data.len() / width) as u64,
        documents: entries.len() as u64,
        names: name_end,
        tokenizer,
        index: hash::digest(&index),
    };
    let header = header.to_bytes();
    let digest = hash::sha256(&header);
    let mut out = header;
    out.reserve_exact(data.len() + index.len());
    out.extend_from_slice(data);
    out.extend(index);
    (out, digest)
}
