//! Documents for language modelling: files as documents of their own, and their token shards.
//!
//! Unlike [`Reader`], which makes one text of all inputs, every file stays a document here, and one that
//! holds no text is named and passed over, not an error: a corpus of a million files has some of those.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use infini_format::hash::sha256;
use infini_format::io::RealIo;
use infini_format::shards::{About, Writer};

use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::text::reader::{Reader, files_below};
use crate::text::unwrap::Unwrap;

/// Tokens after which a shard is full.
pub const SHARD_TOKENS: u64 = 1 << 25;

/// A file, or standard input, that is one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// How it is called in results: its path within the folder that was named, or the file's name.
    pub name: String,
    path: PathBuf,
    /// Bytes of the file; `None` for standard input.
    pub size: Option<u64>,
}

/// Takes ids and the bytes of text so far, and says whether to read on.
pub type Take<'a> = &'a mut dyn FnMut(&[u32], u64) -> Result<ControlFlow<()>>;

/// What was read of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Bytes of its text.
    pub bytes: u64,
    /// Words of its text: runs without white space.
    pub words: u64,
    /// What the user should know of it.
    pub notes: Vec<String>,
    /// Whether the reader was told to stop before the end.
    pub stopped: bool,
}

/// The documents of files, folders (everything below, sorted) and `-`.
///
/// # Errors
/// An input that does not exist, no input at all.
pub fn sources(inputs: &[PathBuf]) -> Result<Vec<Source>> {
    let mut all = Vec::new();
    for path in inputs {
        if path == Path::new("-") {
            all.push(Source { name: "stdin".into(), path: path.clone(), size: None });
            continue;
        }
        let meta = std::fs::metadata(path).map_err(|e| Error::io("cannot read", path, e))?;
        if meta.is_dir() {
            for (file, size) in files_below(path, true)? {
                let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().replace('\\', "/");
                all.push(Source { name, path: file, size: Some(size) });
            }
        } else {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            all.push(Source { name, path: path.clone(), size: Some(meta.len()) });
        }
    }
    if all.is_empty() {
        return Err(Error::Input("no input: name a file, a folder that holds some, or - for standard input".into()));
    }
    Ok(all)
}

impl Source {
    /// Reads the document and hands over its ids, piece by piece, with the bytes of text so far. Bytes that are no
    /// characters are named in the notes; a file that cannot be read as text is an error.
    ///
    /// # Errors
    /// A file without text, or that cannot be read; what `take` returns.
    pub fn encode(&self, tokenizer: &Tokenizer, unwrap: bool, take: Take) -> Result<Read> {
        let mut read = Read::default();
        let mut stream = tokenizer.stream();
        let mut joiner = Unwrap::default();
        let (mut ids, mut joined, mut in_word) = (Vec::new(), String::new(), false);
        for piece in Reader::open(std::slice::from_ref(&self.path))? {
            let piece = piece?;
            read.notes.extend(piece.note);
            let text = if unwrap {
                joined.clear();
                joiner.push(&piece.text, &mut joined);
                &joined
            } else {
                &piece.text
            };
            read.bytes += text.len() as u64;
            for c in text.chars() {
                let word = !c.is_whitespace();
                read.words += u64::from(word && !in_word);
                in_word = word;
            }
            stream.push(text, &mut ids);
            if take(&ids, read.bytes)?.is_break() {
                read.stopped = true;
                return Ok(read);
            }
            ids.clear();
        }
        stream.finish(&mut ids);
        read.stopped = take(&ids, read.bytes)?.is_break();
        Ok(read)
    }
}

/// How a corpus is made.
#[derive(Debug)]
pub struct Options<'a> {
    /// Encodes the texts.
    pub tokenizer: &'a Tokenizer,
    /// Whether hard line ends are joined ([`Unwrap`]).
    pub unwrap: bool,
    /// Tokens after which a shard is full; [`SHARD_TOKENS`] as a rule.
    pub shard_tokens: u64,
    /// Set from outside to stop; the shards written so far are kept.
    pub stop: &'a AtomicBool,
}

/// What [`prepare`] tells while it goes.
#[derive(Debug)]
pub enum Event<'a> {
    /// The work goes on where an earlier call stopped.
    Resumed {
        /// Documents that are done.
        documents: u64,
        /// Tokens that are there.
        tokens: u64,
    },
    /// Something that the user should know of a document.
    Note(&'a str),
    /// So much of the input is done.
    Progress {
        /// Bytes of text of this call.
        bytes: u64,
        /// Tokens of this call.
        tokens: u64,
    },
}

/// What became of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Documents of this call that hold tokens.
    pub documents: u64,
    /// Inputs of this call that hold none, each named in a note.
    pub passed_over: u64,
    /// Tokens of the whole corpus, 0 if it is not finished.
    pub tokens: u64,
    /// Bytes of text of this call.
    pub bytes: u64,
    /// Whether all inputs are in the corpus; if not, the same call goes on.
    pub finished: bool,
}

/// Encodes documents into the token shards of `out`; an interrupted call is gone on with by the same call.
///
/// # Errors
/// A folder that holds something else, the disk's errors. Inputs without text are no errors: see [`Event::Note`].
pub fn prepare(inputs: &[Source], out: &Path, o: &Options, on: &mut dyn FnMut(Event)) -> Result<Summary> {
    let file = |e: &dyn std::fmt::Display| Error::File(e.to_string());
    let json = o.tokenizer.to_json();
    let about = About { tokenizer: sha256(&json), vocab_size: o.tokenizer.vocab_size() as u64, unwrapped: o.unwrap };
    let list: String = inputs.iter().map(|s| format!("{}\t{:?}\n", s.name, s.size)).collect();
    let (mut writer, resumed) =
        Writer::begin(&RealIo, out, &about, &json, &sha256(list.as_bytes()), o.shard_tokens).map_err(|e| file(&e))?;
    if resumed.tokens > 0 {
        on(Event::Resumed { documents: resumed.done, tokens: resumed.tokens });
    }
    let mut sum = Summary::default();
    let mut tokens = 0;
    for source in inputs.iter().skip(usize::try_from(resumed.done).unwrap_or(usize::MAX)) {
        if o.stop.load(Ordering::Relaxed) {
            return Ok(sum);
        }
        writer.start(&source.name).map_err(|e| file(&e))?;
        let (before, first) = (sum.bytes, tokens);
        let read = source.encode(o.tokenizer, o.unwrap, &mut |ids, bytes| {
            writer.push(ids).map_err(|e| file(&e))?;
            tokens += ids.len() as u64;
            on(Event::Progress { bytes: before + bytes, tokens });
            Ok(if o.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        let read = match read {
            // the disk that is written to is no property of a document
            Err(e @ Error::File(_)) => return Err(e),
            // what was read of it before it failed stays: the tokens are in the shard
            Err(e) => {
                Read { notes: vec![format!("{}: passed over from here on: {e}", source.name)], ..Read::default() }
            }
            Ok(read) => read,
        };
        if read.stopped {
            return Ok(sum);
        }
        sum.bytes = before + read.bytes;
        read.notes.iter().for_each(|n| on(Event::Note(n)));
        if tokens == first {
            sum.passed_over += 1;
            if read.notes.is_empty() {
                on(Event::Note(&format!("{}: holds no text and was passed over", source.name)));
            }
        } else {
            sum.documents += 1;
        }
        writer.end(read.bytes, read.words).map_err(|e| file(&e))?;
    }
    sum.tokens = writer.finish().map_err(|e| file(&e))?;
    sum.finished = true;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::tokenizer;
    use infini_format::shards::Corpus;

    fn options(stop: &AtomicBool, shard_tokens: u64) -> Options<'_> {
        Options { tokenizer: tokenizer(), unwrap: true, shard_tokens, stop }
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        write("a.txt", "It was the\nbest of times. ".repeat(200).as_bytes());
        write("b.txt", b"");
        write("c.txt", b"caf\xe9 and caf\xe9 \xff\xfe again, or what it is; the usual words of a text".as_slice());
        write("d.bin", b"\0\x01\x02");
        write("sub/e.txt", "A longer one, \u{e9}t\u{e9}.\n".repeat(600).as_bytes());
        write("f.txt", b"   \n\n ");
        dir
    }

    #[test]
    fn documents_come_back_as_they_were_and_what_is_no_text_is_named() {
        let dir = folder();
        let out = tempfile::tempdir().unwrap();
        let inputs = sources(&[dir.path().into()]).unwrap();
        assert_eq!(inputs.len(), 6);
        let stop = AtomicBool::new(false);
        let mut notes = Vec::new();
        let corpus = out.path().join("corpus");
        let sum = prepare(&inputs, &corpus, &options(&stop, 1000), &mut |e| {
            if let Event::Note(n) = e {
                notes.push(n.to_string());
            }
        })
        .unwrap();
        assert!(sum.finished && sum.documents == 3 && sum.passed_over == 3, "{sum:?}");
        for name in ["b.txt", "c.txt", "d.bin", "f.txt"] {
            assert!(notes.iter().any(|n| n.contains(name)), "{name}: {notes:?}");
        }
        let read = Corpus::open(&corpus).unwrap();
        assert_eq!(read.len(), sum.tokens);
        let names: Vec<&str> = read.documents().iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["a.txt", "c.txt", "sub/e.txt"]);
        for (name, text) in [
            ("a.txt", "It was the best of times. ".repeat(200)),
            ("sub/e.txt", "A longer one, \u{e9}t\u{e9}. ".repeat(600)),
        ] {
            let d = read.documents().iter().find(|d| d.name == name).unwrap();
            let mut ids = Vec::new();
            read.read(d.tokens.clone(), &mut ids).unwrap();
            let text = text.trim_end();
            assert_eq!(ids, tokenizer().encode(text));
            assert_eq!((d.bytes, d.words), (text.len() as u64, text.split_whitespace().count() as u64));
        }
        let again = prepare(&inputs, &corpus, &options(&stop, 1000), &mut |_| {}).unwrap_err().to_string();
        assert!(again.contains("finished token shards"), "{again}");
    }

    #[test]
    fn an_interrupted_corpus_is_gone_on_with_to_the_same_bytes() {
        let dir = folder();
        let out = tempfile::tempdir().unwrap();
        let inputs = sources(&[dir.path().into()]).unwrap();
        let files = |dir: &Path| -> Vec<(String, Vec<u8>)> {
            let mut all: Vec<_> = std::fs::read_dir(dir)
                .unwrap()
                .map(|e| e.unwrap())
                .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
                .collect();
            all.sort();
            all
        };
        let whole = out.path().join("whole");
        prepare(&inputs, &whole, &options(&AtomicBool::new(false), 1000), &mut |_| {}).unwrap();
        let parts = out.path().join("parts");
        let mut calls = 0;
        loop {
            // stopped a little later every time
            let stop = AtomicBool::new(false);
            let mut events = 0;
            let sum = prepare(&inputs, &parts, &options(&stop, 1000), &mut |e| {
                if let Event::Progress { .. } = e {
                    events += 1;
                    stop.store(events > calls, Ordering::Relaxed);
                }
            })
            .unwrap();
            calls += 1;
            if sum.finished {
                break;
            }
        }
        assert!(calls > 2, "never interrupted");
        assert!(files(&whole) == files(&parts), "the interrupted corpus is another one");
        // other inputs are not gone on with
        let third = out.path().join("third");
        let stop = AtomicBool::new(false);
        let stopper = &mut |e: Event| {
            if let Event::Progress { tokens, .. } = e {
                stop.store(tokens > 0, Ordering::Relaxed);
            }
        };
        prepare(&inputs, &third, &options(&stop, 10), stopper).unwrap();
        std::fs::write(dir.path().join("a.txt"), "changed").unwrap();
        let changed = sources(&[dir.path().into()]).unwrap();
        let e = prepare(&changed, &third, &options(&AtomicBool::new(false), 10), &mut |_| {}).unwrap_err();
        assert!(e.to_string().contains("other inputs"), "{e}");
    }
}
