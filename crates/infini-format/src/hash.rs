//! SHA-256, written as 64 lower-case hexadecimal digits.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::io::IoError;
use crate::{At, Explain};

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of `bytes` as they are, for binary formats.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of a file's bytes, read in blocks: a file of any size takes constant memory.
///
/// # Errors
/// [`IoError::Failed`] when the file cannot be opened or read.
pub fn sha256_file(path: &Path) -> Result<String, At<IoError>> {
    let failed = |error| IoError::Failed { action: "read", error }.at(path);
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 18];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(n) => hasher.update(&block[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// The first twelve digits, for messages. Shorter texts are returned whole.
pub fn short(hex: &str) -> &str {
    hex.get(..12).unwrap_or(hex)
}

/// Whether `text` has the form of a hash: 64 lower-case hexadecimal digits.
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        // FIPS 180-4 examples
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(short(&sha256(b"abc")), "ba7816bf8f01");
        assert_eq!(short("ba78"), "ba78");
        assert!(is_hash(&sha256(b"")) && !is_hash("BA") && !is_hash(&"G".repeat(64)));
    }

    #[test]
    fn a_file_has_the_digest_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        let bytes: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(sha256_file(&path).unwrap(), sha256(&bytes));
        let missing = sha256_file(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none") && missing.ends_with("check the path"), "{missing}");
    }
}
