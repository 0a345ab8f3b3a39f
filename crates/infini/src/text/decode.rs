//! Bytes to text: UTF-8, or whatever other encoding they are found to be in.

use std::io::{self, Cursor, Read};

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{DecoderResult, Encoding, UTF_8};

/// Bytes that are decoded at once.
const BLOCK: usize = 32 << 10;
/// Bytes that the guess of an encoding looks at.
const SAMPLE: usize = 4 << 20;
/// Bytes of a stream that cannot be read twice which decide about its encoding.
pub const START: usize = 1 << 20;

/// Why bytes are no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoText {
    /// A byte of value 0.
    Binary,
    /// A PDF.
    Pdf,
}

/// Finds the encoding of everything that `source` gives, with the length of its byte order mark.
pub fn detect(mut source: impl Read) -> io::Result<Result<(&'static Encoding, usize), NoText>> {
    let mut head = Vec::with_capacity(BLOCK);
    source.by_ref().take(BLOCK as u64).read_to_end(&mut head)?;
    if let Some(mark) = Encoding::for_bom(&head) {
        return Ok(Ok(mark));
    }
    if head.starts_with(b"%PDF-") {
        return Ok(Err(NoText::Pdf));
    }
    let mut source = Cursor::new(head).chain(source);
    let mut block = vec![0; BLOCK];
    let mut text = vec![0; BLOCK * 3 + 16];
    let mut utf8 = Some(UTF_8.new_decoder_without_bom_handling());
    let mut sample = Vec::new();
    loop {
        let n = source.read(&mut block)?;
        if block[..n].contains(&0) {
            return Ok(Err(NoText::Binary));
        }
        if let Some(decoder) = &mut utf8
            && let (DecoderResult::Malformed(..), ..) =
                decoder.decode_to_utf8_without_replacement(&block[..n], &mut text, n == 0)
        {
            utf8 = None;
        }
        if n == 0 {
            break;
        }
        let more = SAMPLE.saturating_sub(sample.len()).min(n);
        sample.extend_from_slice(&block[..more]);
    }
    if utf8.is_some() {
        return Ok(Ok((UTF_8, 0)));
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(&sample, true);
    Ok(Ok((detector.guess(None, Utf8Detection::Deny), 0)))
}

/// Text of a source in blocks; line ends become `\n`.
pub struct Decoder<R> {
    source: R,
    decoder: encoding_rs::Decoder,
    /// A `\r` was the last character.
    carriage: bool,
    done: bool,
    /// Whether bytes made no sense and U+FFFD stands for them.
    pub malformed: bool,
}

impl<R: Read> Decoder<R> {
    /// Decodes `source`, after its byte order mark.
    pub fn new(source: R, encoding: &'static Encoding) -> Self {
        let decoder = encoding.new_decoder_without_bom_handling();
        Decoder { source, decoder, carriage: false, done: false, malformed: false }
    }

    /// The next text, empty only at the end.
    pub fn next(&mut self) -> io::Result<String> {
        let mut text = String::new();
        let mut block = vec![0; BLOCK];
        while text.is_empty() && !self.done {
            let n = self.source.read(&mut block)?;
            self.done = n == 0;
            text.reserve(self.decoder.max_utf8_buffer_length(n).unwrap_or(4 * BLOCK) + 1);
            let (_, _, malformed) = self.decoder.decode_to_string(&block[..n], &mut text, self.done);
            self.malformed |= malformed;
            text = self.line_ends(text);
        }
        Ok(text)
    }

    /// `\r\n` and `\r` to `\n`; a `\r` at the end waits for what follows.
    fn line_ends(&mut self, text: String) -> String {
        if !self.carriage && !text.contains('\r') {
            return text;
        }
        let mut all = if self.carriage { String::from("\r") } else { String::new() };
        all += &text;
        self.carriage = !self.done && all.ends_with('\r');
        if self.carriage {
            all.pop();
        }
        all.replace("\r\n", "\n").replace('\r', "\n")
    }

    /// All of the rest.
    pub fn all(mut self) -> io::Result<(String, bool)> {
        let mut text = String::new();
        loop {
            let next = self.next()?;
            if next.is_empty() {
                return Ok((text, self.malformed));
            }
            text += &next;
        }
    }
}

/// A whole document in memory as text, with the name of its encoding if that is not UTF-8.
pub fn decode(bytes: &[u8]) -> Result<(String, Option<&'static str>), NoText> {
    let never = "memory can be read";
    let (encoding, mark) = detect(bytes).expect(never)?;
    let (text, _) = Decoder::new(&bytes[mark..], encoding).all().expect(never);
    Ok((text, (encoding != UTF_8).then(|| encoding.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_found() {
        let german = "Der Bär fraß süße Äpfel, während die Gänse über die Straße liefen. ".repeat(20);
        let russian = "Все счастливые семьи похожи друг на друга. ".repeat(20);
        for (text, encoding) in [
            (german.as_str(), encoding_rs::WINDOWS_1252),
            (russian.as_str(), encoding_rs::WINDOWS_1251),
            (russian.as_str(), encoding_rs::KOI8_U),
        ] {
            let (bytes, _, lossy) = encoding.encode(text);
            assert!(!lossy);
            let (decoded, name) = decode(&bytes).unwrap();
            assert_eq!((decoded.as_str(), name), (text, Some(encoding.name())));
        }
        assert_eq!(decode(german.as_bytes()).unwrap(), (german.clone(), None));
        assert_eq!(decode(b"plain").unwrap(), ("plain".into(), None));
        assert_eq!(decode(b"").unwrap(), (String::new(), None));
        assert_eq!(decode(b"\xef\xbb\xbfmark").unwrap(), ("mark".into(), None));
        let utf16: Vec<u8> =
            std::iter::once(0xfeff).chain("Zürich".encode_utf16()).flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode(&utf16).unwrap(), ("Zürich".into(), Some("UTF-16LE")));
        assert_eq!(decode(b"a\0b"), Err(NoText::Binary));
        assert_eq!(decode(b"%PDF-1.7\n"), Err(NoText::Pdf));
    }

    #[test]
    fn a_character_across_blocks_is_whole() {
        let text = format!("{}é{}", "a".repeat(BLOCK - 1), "ü".repeat(BLOCK));
        assert_eq!(decode(text.as_bytes()).unwrap(), (text, None));
        // A stray byte at the very end of a large file is found too.
        let mut bytes = "word ".repeat(50_000).into_bytes();
        bytes.push(0xe4);
        let (decoded, name) = decode(&bytes).unwrap();
        assert!(name.is_some() && decoded.starts_with("word word"));
    }

    /// Gives its bytes one at a time.
    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(1);
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn line_ends_become_newlines_wherever_blocks_end() {
        let text = b"a\r\nb\rc\n\r\n\rd\r";
        for (got, malformed) in
            [Decoder::new(&text[..], UTF_8).all().unwrap(), Decoder::new(Slowly(text), UTF_8).all().unwrap()]
        {
            assert_eq!((got.as_str(), malformed), ("a\nb\nc\n\n\nd\n", false));
        }
        assert!(Decoder::new(&b"a\xffb"[..], UTF_8).all().unwrap().1);
    }
}
