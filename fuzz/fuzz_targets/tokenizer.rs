//! No bytes crash the reader of `tokenizer.json`, and what it accepts encodes and decodes every text.
#![no_main]

use std::sync::LazyLock;

use infini::text::Tokenizer;
use infini_fuzz::{caught_panics_are_refusals, edit};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(init: caught_panics_are_refusals(), |data: &[u8]| {
    read(data, data);
    if let Some((base, edits)) = data.split_first() {
        read(edit(BASES[*base as usize % BASES.len()].clone(), edits).to_string().as_bytes(), edits);
    }
});

/// A tokenizer of each kind that is read.
static BASES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let texts = ["the cat and the dog and the theatre 12", "a cat"];
    let ours = Tokenizer::train(texts.iter().map(|t| t.to_string()), 280).expect("trains").to_json();
    let seeds: [&[u8]; 4] = [
        &ours,
        include_bytes!("../seeds/tokenizer/wordpiece.json"),
        include_bytes!("../seeds/tokenizer/unigram.json"),
        include_bytes!("../seeds/tokenizer/sentencepiece.json"),
    ];
    seeds.iter().map(|json| serde_json::from_slice(json).expect("JSON")).collect()
});

fn read(json: &[u8], text: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(json) else { return };
    let text = String::from_utf8_lossy(text);
    let ids = tokenizer.encode(&text);
    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "an id beyond the vocabulary");
    tokenizer.decode(&ids);
    tokenizer.special_at(&text);
    let mut streamed = Vec::new();
    let mut stream = tokenizer.stream();
    text.chars().for_each(|c| stream.push(c.encode_utf8(&mut [0; 4]), &mut streamed));
    stream.finish(&mut streamed);
    assert_eq!(streamed, ids);
}
