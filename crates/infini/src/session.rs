//! Read once, ask for ever: a document streamed into a memory file, and questions to it.

use std::path::Path;

use infini_format::io::{Io, Lock};
use infini_format::memory::MemoryHeader;
use serde::{Deserialize, Serialize};

use crate::conversation::History;
use crate::error::{Error, Result};
use crate::folder::Loaded;
use crate::generate::greedy;
use crate::model::Want;
use crate::state::State;
use crate::text::EncodeStream;

/// Tokens read per call of the model, so that progress and interrupts are prompt.
const CHUNK: usize = 4096;

/// How far a document has been read: kept in the memory file, so that reading can go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Bytes of plain text whose tokens are in the memory.
    pub bytes: u64,
    /// Of these, the bytes that were there before the reading under way began.
    #[serde(default)]
    pub from: u64,
    /// Whether the document was read to its end.
    pub complete: bool,
    /// The conversation that followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<History>,
}

/// A document being read.
#[derive(Debug)]
pub struct Session<'a> {
    loaded: &'a Loaded,
    state: State,
    header: MemoryHeader,
    progress: Progress,
    stream: EncodeStream<'a>,
    ids: Vec<u32>,
}

impl<'a> Session<'a> {
    /// A session that has read nothing.
    pub fn new(loaded: &'a Loaded) -> Self {
        let header = MemoryHeader {
            partner: loaded.identity.clone(),
            generation: 0,
            position: 0,
            sources: Vec::new(),
            settings: serde_json::Value::Null,
        };
        Session {
            state: loaded.model.state(1),
            stream: loaded.tokenizer.stream(),
            loaded,
            header,
            progress: Progress::default(),
            ids: loaded.tokenizer.begin().to_vec(),
        }
    }

    /// Restores a memory file. Nothing is read again: the next [`Session::push`] goes on where the
    /// saved text ended.
    ///
    /// # Errors
    /// A file that is damaged, or of another model, tokenizer or segment length.
    pub fn open(loaded: &'a Loaded, io: &dyn Io, path: &Path) -> Result<Self> {
        let (state, header) = State::load(&loaded.model, &loaded.identity, io, path)?;
        if state.batch() != 1 {
            return Err(Error::Memory(format!("bad memory file: {}: {} rows, not 1", path.display(), state.batch())));
        }
        let progress: Progress = serde_json::from_value(header.settings.clone())
            .map_err(|e| Error::Memory(format!("bad memory file: {}: settings: {e}", path.display())))?;
        let stream = if progress.bytes == 0 { loaded.tokenizer.stream() } else { loaded.tokenizer.resume_stream() };
        Ok(Session { loaded, state, header, progress, stream, ids: Vec::new() })
    }

    /// A reading of `sources` begins, after everything that is there.
    pub fn begin(&mut self, sources: &[String]) {
        self.header.sources.extend_from_slice(sources);
        self.progress.from = self.progress.bytes;
        self.progress.complete = false;
    }

    /// Names of what was read.
    pub fn sources(&self) -> &[String] {
        &self.header.sources
    }

    /// How far the document has been read.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Takes the state and the turns of a conversation that began with this memory, to be saved.
    pub fn converse(&mut self, state: State, history: History) {
        self.state = state;
        self.progress.chat = Some(history);
    }

    /// The state as it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How often this memory was saved.
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// Reads the next part of the text. A tail whose tokens are not certain yet waits for more.
    ///
    /// # Errors
    /// Full attention that has run out of [room](crate::model::Model::room).
    pub fn push(&mut self, text: &str) -> Result<()> {
        let waiting = self.stream.pending();
        self.stream.push(text, &mut self.ids);
        self.progress.bytes += (waiting + text.len() - self.stream.pending()) as u64;
        self.read()
    }

    /// The text has ended: reads what waits.
    ///
    /// # Errors
    /// As [`Session::push`].
    pub fn finish(&mut self) -> Result<()> {
        self.progress.bytes += self.stream.pending() as u64;
        let stream = std::mem::replace(&mut self.stream, self.loaded.tokenizer.resume_stream());
        stream.finish(&mut self.ids);
        self.read()?;
        self.progress.complete = true;
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let ids = std::mem::take(&mut self.ids);
        self.loaded.model.check_room(&self.state, ids.len())?;
        for chunk in ids.chunks(CHUNK) {
            self.loaded.model.forward(&mut self.state, chunk, Want::Last);
        }
        Ok(())
    }

    /// Writes the memory file, its generation one higher. Text that waits is not in it, and
    /// [`Progress::bytes`] says so.
    ///
    /// # Errors
    /// The disk's, or another writer holding the file.
    pub fn save(&mut self, io: &dyn Io, path: &Path, lock: Option<&Lock>) -> Result<()> {
        let mut header = self.header.clone();
        header.generation += 1;
        header.position = self.state.position();
        header.settings = serde_json::to_value(&self.progress).expect("plain data");
        self.state.save(io, path, &header, lock)?;
        self.header = header;
        Ok(())
    }
}

/// Continues `question` after everything in `state`, which stays as it is.
///
/// The answer ends before a newline or one of `stop`, or after `max_tokens`; blanks around it are
/// stripped.
///
/// # Errors
/// An empty question, and full attention without [room](crate::model::Model::room) for it.
pub fn ask(loaded: &Loaded, state: &State, question: &str, max_tokens: usize, stop: &[String]) -> Result<String> {
    let ids = loaded.tokenizer.encode(question);
    if ids.is_empty() {
        return Err(Error::Input("the question is empty".into()));
    }
    let mut state = state.fork();
    loaded.model.check_room(&state, ids.len() + max_tokens)?;
    loaded.model.forward(&mut state, &ids, Want::Last);
    let end = |text: &str| {
        let from = text.len() - text.trim_start().len();
        let ends = stop.iter().map(String::as_str).chain(["\n"]).filter_map(|s| text[from..].find(s));
        ends.min().map(|i| from + i)
    };
    let over = |row: &[u32]| row.last().is_some_and(|id| loaded.end.contains(id));
    let ended = |row: &[u32]| over(row) || end(&loaded.tokenizer.decode(row)).is_some();
    let mut out = greedy(&loaded.model, &mut state, max_tokens, &ended).remove(0);
    if over(&out) {
        out.pop();
    }
    let text = loaded.tokenizer.decode(&out);
    let end = end(&text).unwrap_or(text.len());
    Ok(text[..end].trim().to_string())
}
