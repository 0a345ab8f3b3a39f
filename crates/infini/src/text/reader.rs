//! Documents as one text: files, folders and standard input, in plain text, Markdown, HTML and EPUB.
//!
//! Plain text is read in blocks, so memory stays constant however long it is. Folders are read
//! with everything below them, sorted by name, the names of files kept as headings.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use encoding_rs::{Encoding, UTF_8};

use super::decode::{self, Decoder, NoText};
use super::epub::Epub;
use super::markup;
use crate::error::{Error, Result};

/// Largest HTML or Markdown document, which has to be in memory as a whole.
pub const MAX_MARKUP: u64 = 32 << 20;
/// Largest EPUB.
pub const MAX_EPUB: u64 = 256 << 20;
/// Most files below a folder.
pub const MAX_FILES: usize = 100_000;
/// Bytes of a piece, about.
const PIECE: usize = 64 << 10;

/// A part of the text, at most about 100 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// The name of the document that begins with this piece.
    pub source: Option<String>,
    /// Something that the user should know, for example an encoding that was detected.
    pub note: Option<String>,
}

#[derive(Clone, Debug)]
struct Input {
    /// None: standard input.
    path: Option<PathBuf>,
    name: String,
    /// Found in a folder: gets a heading, and is passed over if it is no text.
    found: bool,
}

/// The text of some documents, piece by piece. The same documents give the same text.
pub struct Reader {
    inputs: VecDeque<Input>,
    total: Option<u64>,
    open: Option<Open>,
    /// Whether anything but blanks was read.
    some: bool,
    /// Notes for the next piece.
    notes: Vec<String>,
    /// After an error, or the end.
    finished: bool,
}

/// The document being read.
enum Open {
    Plain { name: String, decoder: Decoder<Box<dyn Read>> },
    Epub { name: String, book: Epub<BufReader<File>>, chapter: Cut },
    Whole(Cut),
}

/// A text in memory that is given in pieces.
#[derive(Default)]
struct Cut {
    text: String,
    at: usize,
}

impl Cut {
    /// The next piece, empty at the end.
    fn next(&mut self) -> String {
        let end = self.text.floor_char_boundary(self.text.len().min(self.at + PIECE));
        let piece = self.text[self.at..end].to_owned();
        self.at = end;
        piece
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

impl Reader {
    /// Finds the documents: files, folders, `-` for standard input.
    ///
    /// # Errors
    /// No input, one that does not exist or cannot be listed, an empty file or folder.
    pub fn open(inputs: &[PathBuf]) -> Result<Self> {
        let mut all = VecDeque::new();
        let mut total = Some(0u64);
        for path in inputs {
            if path.as_os_str() == "-" {
                all.push_back(Input { path: None, name: "standard input".into(), found: false });
                total = None;
                continue;
            }
            let meta = fs::metadata(path).map_err(|e| Error::io("cannot read", path, e))?;
            if meta.is_dir() {
                let files = files_below(path, false)?;
                if files.is_empty() {
                    return Err(Error::Input(format!("empty folder: {}: holds no file to read", path.display())));
                }
                for (file, size) in files {
                    total = total.map(|t| t.saturating_add(size));
                    let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().replace('\\', "/");
                    all.push_back(Input { path: Some(file), name, found: true });
                }
                continue;
            }
            if meta.is_file() && meta.len() == 0 {
                return Err(Error::Input(format!("empty file: {}: there is nothing to read", path.display())));
            }
            total = if meta.is_file() { total.map(|t| t.saturating_add(meta.len())) } else { None };
            all.push_back(Input { path: Some(path.clone()), name: path.display().to_string(), found: false });
        }
        if all.is_empty() {
            return Err(Error::Input("no input: name a file, a folder, or - for standard input".into()));
        }
        Ok(Reader { inputs: all, total, open: None, some: false, notes: Vec::new(), finished: false })
    }

    /// Names of the documents, in order.
    pub fn sources(&self) -> Vec<String> {
        self.inputs.iter().map(|i| i.name.clone()).collect()
    }

    /// Bytes of all files, None if that is not known beforehand.
    pub fn total_bytes(&self) -> Option<u64> {
        self.total
    }

    /// The next piece, None at the end.
    fn step(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(open) = &mut self.open {
                let text = open.next(&mut self.notes)?;
                if text.is_empty() {
                    self.open = None;
                    continue;
                }
                self.some |= text.contains(|c: char| !c.is_whitespace());
                return Ok(Some(Piece { text, source: None, note: self.take_notes() }));
            }
            let Some(input) = self.inputs.pop_front() else {
                if !self.some {
                    return Err(Error::Input("empty input: there is no text in it: nothing was read".into()));
                }
                let note = self.take_notes();
                return Ok(note.map(|note| Piece { note: Some(note), ..Piece::default() }));
            };
            self.open = self.start(&input)?;
            if self.open.is_some() {
                let mut text = String::from(if self.some { "\n\n" } else { "" });
                if input.found {
                    text += &format!("# {}\n\n", input.name);
                }
                return Ok(Some(Piece { text, source: Some(input.name), note: self.take_notes() }));
            }
        }
    }

    fn take_notes(&mut self) -> Option<String> {
        let notes = std::mem::take(&mut self.notes);
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    /// Opens a document; None if it is passed over.
    fn start(&mut self, input: &Input) -> Result<Option<Open>> {
        let Some(path) = &input.path else {
            return self.stream(input, Box::new(std::io::stdin().lock())).map(Some);
        };
        let io = |e| Error::io("cannot read", path, e);
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return self.stream(input, Box::new(file)).map(Some);
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match extension.as_str() {
            "epub" => {
                within(input, meta.len(), MAX_EPUB)?;
                let book = Epub::open(BufReader::new(file)).map_err(|why| bad(&input.name, &why))?;
                Ok(Some(Open::Epub { name: input.name.clone(), book, chapter: Cut::default() }))
            }
            "html" | "htm" | "xhtml" | "md" | "markdown" => {
                within(input, meta.len(), MAX_MARKUP)?;
                let mut bytes = Vec::new();
                file.take(MAX_MARKUP + 1).read_to_end(&mut bytes).map_err(io)?;
                within(input, bytes.len() as u64, MAX_MARKUP)?;
                let (text, encoding) = match decode::decode(&bytes) {
                    Ok(decoded) => decoded,
                    Err(why) => return self.no_text(input, why),
                };
                if let Some(name) = encoding {
                    self.notes.push(format!("{}: read as {name}", input.name));
                }
                let text = match extension.as_str() {
                    "xhtml" => markup::xhtml(&text),
                    "html" | "htm" => markup::html(&text),
                    _ => markup::markdown(&text),
                };
                Ok(Some(Open::Whole(Cut { text, at: 0 })))
            }
            _ => {
                let mut file = file;
                let (encoding, mark) = match decode::detect(&file).map_err(io)? {
                    Ok(found) => found,
                    Err(why) => return self.no_text(input, why),
                };
                file.seek(std::io::SeekFrom::Start(mark as u64)).map_err(io)?;
                Ok(Some(self.plain(input, Box::new(file), encoding)))
            }
        }
    }

    /// A stream that cannot be read twice: its beginning decides.
    fn stream(&mut self, input: &Input, mut source: Box<dyn Read>) -> Result<Open> {
        let mut head = Vec::new();
        let io = |e| Error::io("cannot read", &input.name, e);
        source.by_ref().take(decode::START as u64).read_to_end(&mut head).map_err(io)?;
        // The end of the beginning may cut a character in two.
        let sample = match std::str::from_utf8(&head) {
            Err(e) if e.error_len().is_none() && head.len() == decode::START => &head[..e.valid_up_to()],
            _ => &head,
        };
        let (encoding, mark) = decode::detect(sample).map_err(io)?.map_err(|why| no_text(&input.name, why))?;
        head.drain(..mark);
        Ok(self.plain(input, Box::new(Cursor::new(head).chain(source)), encoding))
    }

    fn plain(&mut self, input: &Input, source: Box<dyn Read>, encoding: &'static Encoding) -> Open {
        if encoding != UTF_8 {
            self.notes.push(format!("{}: read as {}", input.name, encoding.name()));
        }
        Open::Plain { name: input.name.clone(), decoder: Decoder::new(source, encoding) }
    }

    /// A file that is no text: passed over with a note if it was found in a folder.
    fn no_text(&mut self, input: &Input, why: NoText) -> Result<Option<Open>> {
        if !input.found {
            return Err(no_text(&input.name, why));
        }
        self.notes.push(format!("{}: is no text and was passed over", input.name));
        Ok(None)
    }
}

impl Open {
    /// The next text, empty at the end.
    fn next(&mut self, notes: &mut Vec<String>) -> Result<String> {
        match self {
            Open::Plain { name, decoder } => {
                let text = decoder.next().map_err(|e| Error::io("cannot read", &*name, e))?;
                if decoder.malformed {
                    decoder.malformed = false;
                    notes.push(format!("{name}: holds bytes that are no characters, U+FFFD stands for them"));
                }
                Ok(text)
            }
            Open::Epub { name, book, chapter } => {
                let piece = chapter.next();
                if !piece.is_empty() {
                    return Ok(piece);
                }
                let Some(text) = book.next().map_err(|why| bad(name, &why))? else { return Ok(String::new()) };
                let gap = if chapter.text.is_empty() { "" } else { "\n\n" };
                *chapter = Cut { text: gap.to_owned() + &text, at: 0 };
                Ok(chapter.next())
            }
            Open::Whole(cut) => Ok(cut.next()),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        if self.finished {
            return None;
        }
        let step = self.step();
        self.finished = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}

fn bad(name: &str, why: &str) -> Error {
    Error::Input(format!("{name}: {why}"))
}

fn no_text(name: &str, why: NoText) -> Error {
    match why {
        NoText::Binary => bad(name, "holds bytes of value 0 and is no text: save it as UTF-8 text"),
        NoText::Pdf => bad(name, "is a PDF: turn it into text first, for example with pdftotext"),
    }
}

fn within(input: &Input, size: u64, most: u64) -> Result<()> {
    if size > most {
        return Err(bad(&input.name, &format!("{size} bytes, at most {most} are read: split it")));
    }
    Ok(())
}

/// Every file below a folder with its size, sorted by path, the `empty` ones too if wanted. Hidden ones are left out,
/// links to folders are not followed.
pub(crate) fn files_below(folder: &Path, empty: bool) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let io = |e| Error::io("cannot list", &folder, e);
        for entry in fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if entry.file_type().map_err(io)?.is_dir() {
                folders.push(path);
            } else if let Ok(meta) = fs::metadata(&path)
                && meta.is_file()
                && (empty || meta.len() > 0)
            {
                files.push((path, meta.len()));
            }
            if files.len() + folders.len() > MAX_FILES {
                return Err(bad(
                    &folder.display().to_string(),
                    &format!("more than {MAX_FILES} files below the folder"),
                ));
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::super::epub::tests::{CONTAINER, PACKAGE, archive};
    use super::*;

    fn read(inputs: &[PathBuf]) -> Result<(String, Vec<String>, Vec<String>)> {
        let (mut text, mut sources, mut notes) = (String::new(), Vec::new(), Vec::new());
        for piece in Reader::open(inputs)? {
            let piece = piece?;
            assert!(piece.text.len() < 2 * PIECE);
            text += &piece.text;
            sources.extend(piece.source);
            notes.extend(piece.note);
        }
        Ok((text, sources, notes))
    }

    #[test]
    fn folders_are_read_in_order_with_headings() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write("b.md", b"# Title\n\nSome *text*.\n");
        write("a/z.html", b"<p>Web &amp; page");
        write("a.txt", b"\xef\xbb\xbfPlain\r\ntext");
        write("c.png", b"\x89PNG\0\0");
        write("d.txt", &encoding_rs::WINDOWS_1252.encode(&"Süße Äpfel für die Bären. ".repeat(9)).0);
        write(".hidden", b"no");
        write("empty", b"");
        write(
            "e.epub",
            &archive(&[
                ("META-INF/container.xml", CONTAINER),
                ("OPS/book.opf", PACKAGE),
                ("OPS/two b.xhtml", "<p>Second."),
                ("one.xhtml", "<p>First."),
            ]),
        );
        let (text, sources, notes) = read(&[dir.path().to_owned()]).unwrap();
        let apples = "Süße Äpfel für die Bären. ".repeat(9);
        assert_eq!(
            text,
            format!(
                "# a/z.html\n\nWeb & page\n\n# a.txt\n\nPlain\ntext\n\n# b.md\n\nTitle\n\nSome text.\n\n# d.txt\n\n\
                 {apples}\n\n# e.epub\n\nFirst.\n\nSecond."
            )
        );
        assert_eq!(sources, ["a/z.html", "a.txt", "b.md", "d.txt", "e.epub"]);
        assert_eq!(notes, ["c.png: is no text and was passed over; d.txt: read as windows-1252"]);
        assert_eq!(read(&[dir.path().to_owned()]).unwrap().0, text);
        // Named files have no heading, and are refused if they are no text.
        let files = [dir.path().join("a.txt"), dir.path().join("b.md")];
        assert_eq!(read(&files).unwrap().0, "Plain\ntext\n\nTitle\n\nSome text.");
        assert_eq!(Reader::open(&files).unwrap().total_bytes(), Some(36));
        assert!(read(&[dir.path().join("c.png")]).unwrap_err().to_string().contains("no text"));
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let refused = |inputs: &[PathBuf], why: &str| {
            let e = read(inputs).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        };
        refused(&[], "no input");
        refused(&[dir.path().to_owned()], "empty folder");
        refused(&[path("none")], "cannot read");
        fs::write(path("empty"), "").unwrap();
        refused(&[path("empty")], "empty file");
        fs::write(path("blank"), " \n\t\n").unwrap();
        refused(&[path("blank")], "empty input");
        fs::write(path("x.html"), "<script>no</script>").unwrap();
        refused(&[path("x.html")], "empty input");
        fs::write(path("x.pdf"), "%PDF-1.4").unwrap();
        refused(&[path("x.pdf")], "pdftotext");
        fs::write(path("x.epub"), "PK").unwrap();
        refused(&[path("x.epub")], "x.epub: no EPUB");
        File::create(path("large.md")).unwrap().set_len(MAX_MARKUP + 1).unwrap();
        refused(&[path("large.md")], "split it");
    }

    #[test]
    fn long_text_comes_in_pieces_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let text = "Ein Wörtchen nach dem anderen. ".repeat(20_000);
        let path = dir.path().join("long.txt");
        fs::write(&path, &text).unwrap();
        assert!(Reader::open(std::slice::from_ref(&path)).unwrap().count() > 10);
        assert_eq!(read(std::slice::from_ref(&path)).unwrap().0, text);
        // The same through a stream that cannot be read twice.
        let mut reader = Reader::open(&[path]).unwrap();
        let input = Input { path: None, name: "stream".into(), found: false };
        let mut open = reader.stream(&input, Box::new(Cursor::new(text.clone().into_bytes()))).unwrap();
        let mut streamed = String::new();
        loop {
            let next = open.next(&mut Vec::new()).unwrap();
            if next.is_empty() {
                break;
            }
            streamed += &next;
        }
        assert!(streamed == text);
    }
}
