//! Mean loss of a model on non-overlapping windows of a text, each read from nothing.
//!
//! ```sh
//! cargo run --release --example nll -- MODEL TEXT CONTEXT
//! ```

use std::path::Path;

use infini::folder;
use infini::model::Want;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, text, context] = &args[..] else {
        return Err("usage: nll MODEL TEXT CONTEXT".into());
    };
    let loaded = folder::load(Path::new(model))?;
    let (ids, context) = (loaded.tokenizer.encode(&std::fs::read_to_string(text)?), context.parse::<usize>()?);
    let v = loaded.model.config().vocab_size;
    let (mut sum, mut n) = (0.0, 0);
    for (i, window) in ids.chunks_exact(context).enumerate() {
        let logits = loaded.model.forward(&mut loaded.model.state(1), window, Want::All);
        let of = |(row, id): (&[f32], &u32)| {
            let top = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
            let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
            sum.ln() - f64::from(row[*id as usize] - top)
        };
        let losses: Vec<f64> = logits.chunks(v).zip(&window[1..]).map(of).collect();
        println!("window {i}: {:.5}", losses.iter().sum::<f64>() / losses.len() as f64);
        (sum, n) = (sum + losses.iter().sum::<f64>(), n + losses.len());
    }
    println!(
        "{} tokens, first {:?}; {n} scored, mean loss {:.5}",
        ids.len(),
        &ids[..10.min(ids.len())],
        sum / n as f64
    );
    Ok(())
}
