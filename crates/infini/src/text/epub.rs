//! EPUB: a zip archive of XHTML chapters in the order of its spine.

use std::io::{Read, Seek};

use html5gum::{StartTag, Token, Tokenizer};
use zip::ZipArchive;

use super::{decode, markup};

/// Most entries of an archive.
pub const MAX_ENTRIES: usize = 20_000;
/// Most bytes of one unpacked chapter,
pub const MAX_CHAPTER: u64 = 32 << 20;
/// and of all together.
pub const MAX_UNPACKED: u64 = 512 << 20;

/// Chapters, unpacked one at a time.
pub struct Epub<R> {
    archive: ZipArchive<R>,
    chapters: std::vec::IntoIter<String>,
    unpacked: u64,
}

impl<R: Read + Seek> Epub<R> {
    /// Opens an archive and reads its table of chapters. The error says what is wrong with the file.
    pub fn open(source: R) -> Result<Self, String> {
        let archive = ZipArchive::new(source).map_err(|e| format!("no EPUB: {e}"))?;
        if archive.len() > MAX_ENTRIES {
            return Err(format!("{} entries, at most {MAX_ENTRIES} are read", archive.len()));
        }
        let mut epub = Epub { archive, chapters: Vec::new().into_iter(), unpacked: 0 };
        let container = epub.text("META-INF/container.xml")?;
        let root = tags(&container).find(|t| local(&t.name) == "rootfile").and_then(|t| attribute(&t, "full-path"));
        let root = root.ok_or("no EPUB: its container names no root file")?;
        let package = epub.text(&root)?;
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut items = std::collections::HashMap::new();
        let mut chapters = Vec::new();
        for tag in tags(&package) {
            match local(&tag.name) {
                "item" if attribute(&tag, "media-type").is_some_and(|m| m.contains("html")) => {
                    if let (Some(id), Some(href)) = (attribute(&tag, "id"), attribute(&tag, "href")) {
                        items.insert(id, href);
                    }
                }
                "itemref" => {
                    if let Some(href) = attribute(&tag, "idref").and_then(|id| items.get(&id)) {
                        chapters.push(resolve(folder, href));
                    }
                }
                _ => {}
            }
        }
        if chapters.is_empty() {
            return Err("no EPUB: its spine lists no chapter".into());
        }
        epub.chapters = chapters.into_iter();
        Ok(epub)
    }

    /// The text of the next chapter that holds any; None after the last.
    pub fn next(&mut self) -> Result<Option<String>, String> {
        while let Some(name) = self.chapters.next() {
            let text = markup::xhtml(&self.text(&name)?);
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        let entry = self.archive.by_name(name).map_err(|e| format!("{name}: {e}"))?;
        let most = MAX_CHAPTER.min(MAX_UNPACKED - self.unpacked);
        let mut bytes = Vec::new();
        // The size that the archive declares is not to be trusted: count what comes out.
        entry.take(most + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
        if bytes.len() as u64 > most {
            return Err(format!("{name}: unpacks to more than {most} bytes"));
        }
        self.unpacked += bytes.len() as u64;
        let (text, _) = decode::decode(&bytes).map_err(|_| format!("{name}: is no text"))?;
        Ok(text)
    }
}

fn tags(xml: &str) -> impl Iterator<Item = StartTag<()>> {
    Tokenizer::new(xml).filter_map(|token| match token {
        Ok(Token::StartTag(tag)) => Some(tag),
        _ => None,
    })
}

/// A name without its namespace.
fn local(name: &[u8]) -> &str {
    let name = std::str::from_utf8(name).unwrap_or_default();
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

fn attribute(tag: &StartTag<()>, name: &str) -> Option<String> {
    let value = tag.attributes.iter().find(|(n, _)| n.as_slice() == name.as_bytes())?.1;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The entry that a reference names, seen from a folder of the archive.
fn resolve(folder: &str, href: &str) -> String {
    let href = percent_decoded(href.split('#').next().unwrap_or_default());
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in href.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
            }
            (b, ..) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::{Cursor, Write};
    use zip::write::{SimpleFileOptions, ZipWriter};

    /// A zip archive of files.
    pub(in super::super) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, text) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    pub(in super::super) const CONTAINER: &str =
        r#"<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>"#;
    pub(in super::super) const PACKAGE: &str = r#"<opf:package><opf:manifest>
        <opf:item id="b" href="two%20b.xhtml" media-type="application/xhtml+xml"/>
        <opf:item id="a" href="../one.xhtml#x" media-type="application/xhtml+xml"/>
        <opf:item id="i" href="i.png" media-type="image/png"/></opf:manifest>
        <opf:spine><opf:itemref idref="a"/><opf:itemref idref="i"/><opf:itemref idref="b"/></opf:spine></opf:package>"#;

    #[test]
    fn chapters_come_in_the_order_of_the_spine() {
        let zip = archive(&[
            ("META-INF/container.xml", CONTAINER),
            ("OPS/book.opf", PACKAGE),
            ("OPS/two b.xhtml", "<html><head><title>x</title></head><body><p>Second.</p></body></html>"),
            ("one.xhtml", "<p>First.</p>"),
        ]);
        let mut epub = Epub::open(Cursor::new(&zip)).unwrap();
        assert_eq!(epub.next().unwrap().as_deref(), Some("First."));
        assert_eq!(epub.next().unwrap().as_deref(), Some("Second."));
        assert_eq!(epub.next().unwrap(), None);
    }

    #[test]
    fn broken_books_and_bombs_are_refused() {
        let refused = |zip: &[u8], why: &str| {
            let chapters = |mut e: Epub<_>| std::iter::from_fn(|| e.next().transpose()).collect::<Result<Vec<_>, _>>();
            let e = Epub::open(Cursor::new(zip)).and_then(chapters).unwrap_err();
            assert!(e.contains(why), "{e}");
        };
        refused(b"not a zip", "no EPUB");
        refused(&archive(&[("x", "y")]), "container.xml");
        refused(&archive(&[("META-INF/container.xml", "<container/>")]), "root file");
        refused(&archive(&[("META-INF/container.xml", CONTAINER), ("OPS/book.opf", "<package/>")]), "spine");
        let parts = [("META-INF/container.xml", CONTAINER), ("OPS/book.opf", PACKAGE)];
        refused(&archive(&parts), "one.xhtml");
        let bomb = " ".repeat(MAX_CHAPTER as usize + 1);
        let zip = archive(&[parts[0], parts[1], ("one.xhtml", &bomb)]);
        assert!(zip.len() < 100_000);
        refused(&zip, "unpacks to more");
        for n in 0..zip.len().min(400) {
            // A cut archive is an error, never a panic.
            assert!(Epub::open(Cursor::new(&zip[..n])).is_err());
        }
    }
}
