//! What the targets share.

use serde_json::{Value, json};

/// Edits a document by the fuzzer's bytes: every pair of them chooses a value, counted through the document in order, and what
/// becomes of it. So the fuzzer gets behind the parser, where bytes alone seldom do.
pub fn edit(mut document: Value, data: &[u8]) -> Value {
    for pair in data.chunks_exact(2).take(64) {
        let n = count(&document);
        let old = nth(&mut document, &mut (pair[1] as usize % n)).clone();
        let value = nth(&mut document, &mut (pair[0] as usize * 7 % n));
        *value = match pair[1] % 20 {
            0 => Value::Null,
            1 => json!([]),
            2 => json!({}),
            3 => json!(""),
            4 => json!(0),
            5 => json!(-1),
            6 => json!(u64::MAX),
            7 => json!(u32::MAX),
            8 => json!(1u64 << 63),
            9 => json!(1e300),
            10 => json!(true),
            11 => json!("##"),
            12 => json!("(a*)*\\1(?=b)"),
            13 => json!([value.clone(), value.clone()]),
            14 => json!([["a", "b"], ["b", "a"]]),
            15 => json!({ "type": value.clone() }),
            16 => json!(value.to_string()),
            _ => old,
        };
    }
    document
}

/// Values in a document, itself the first.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(all) => all.iter().map(count).sum(),
        Value::Object(all) => all.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Value, n: &mut usize) -> &'a mut Value {
    if *n == 0 {
        return value;
    }
    *n -= 1;
    let parts: Vec<&mut Value> = match value {
        Value::Array(all) => all.iter_mut().collect(),
        Value::Object(all) => all.values_mut().collect(),
        _ => unreachable!("n is below the count"),
    };
    for part in parts {
        let inside = count(part);
        if *n < inside {
            return nth(part, n);
        }
        *n -= inside;
    }
    unreachable!("n is below the count")
}

/// Panics that a reader catches itself are refusals: without this, libFuzzer ends at them. Those that reach it still do.
pub fn caught_panics_are_refusals() {
    std::panic::set_hook(Box::new(|_| {}));
}
