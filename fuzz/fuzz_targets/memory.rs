//! The memory reader survives any bytes, also those whose checksums hold.
#![no_main]

use infini_format::hash::sha256;
use infini_format::memory::{decode, encode};
use infini_format::tensors::{TensorFile, serialize};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    if let Some(mended) = mend(data) {
        read(mended);
    }
});

/// What is accepted is written and read back as the same.
fn read(bytes: Vec<u8>) {
    let Ok((header, file)) = decode(bytes) else { return };
    let views: Vec<_> = file.iter().collect();
    // Other spellings in the header may have been shorter than ours, which then breaks the limit.
    let Ok(bytes) = encode(&header, &views) else { return };
    let (again, file_again) = decode(bytes).expect("what was written is readable");
    assert_eq!(again, header);
    assert!(file_again.iter().eq(file.iter()));
}

/// The same tensors and texts with checksums that hold.
fn mend(data: &[u8]) -> Option<Vec<u8>> {
    let file = TensorFile::parse(data.to_vec()).ok()?;
    let list: Vec<String> = file.iter().map(|(name, t)| format!("{name:?}:\"{}\"", sha256(t.bytes))).collect();
    let mut texts = file.metadata.clone();
    texts.insert("tensors".into(), format!("{{{}}}", list.join(",")));
    texts.insert("seal".into(), "0".repeat(64));
    let views: Vec<_> = file.iter().collect();
    let mut bytes = serialize(&views, &texts).ok()?;
    let end = 8 + usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let marker = b"\"seal\":\"";
    let at = 8 + bytes[8..end].windows(marker.len()).position(|w| w == marker)? + marker.len();
    let digest = sha256(&bytes[8..end]);
    bytes[at..at + 64].copy_from_slice(digest.as_bytes());
    Some(bytes)
}
