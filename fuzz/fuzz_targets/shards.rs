//! The reader of token shards survives any bytes, also those whose checksums hold.
#![no_main]

use infini_format::hash::sha256;
use infini_format::shards::Shard;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    if let Some(mended) = mend(data) {
        read(mended);
    }
});

/// What opens has all the tokens it promises, or says which block is damaged.
fn read(bytes: Vec<u8>) {
    let Ok(shard) = Shard::parse(bytes) else { return };
    let mut tokens = Vec::new();
    if shard.read(0, shard.tokens(), &mut tokens).is_ok() {
        assert_eq!(tokens.len() as u64, shard.tokens());
        assert!(tokens.iter().all(|t| u64::from(*t) < shard.vocab_size()));
    }
}

/// The same bytes with digests of index and header that hold.
fn mend(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let number = |at: usize| Some(u64::from_le_bytes(*data.get(at..)?.first_chunk()?));
    let width = u64::from(u32::from_le_bytes(*data.get(12..)?.first_chunk()?));
    let index = number(24)?.checked_mul(width)?.checked_add(144)?;
    let index = digest(data.get(usize::try_from(index).ok()?..)?);
    bytes.get_mut(80..112)?.copy_from_slice(&index);
    let header = digest(&bytes[..112]);
    bytes.get_mut(112..144)?.copy_from_slice(&header);
    Some(bytes)
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    let hex = sha256(bytes);
    (0..32).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal")).collect()
}
