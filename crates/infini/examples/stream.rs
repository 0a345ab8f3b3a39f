//! Streams a text file through a model and shows that its state does not grow.
//!
//! `cargo run --release -p infini --example stream -- FILE [MODEL]`

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use infini::folder;
use infini::session::{Session, ask};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: stream FILE [MODEL]")?;
    let model = arguments.next().unwrap_or_else(|| "models/passkey".into());
    let loaded = folder::load(Path::new(&model))?;

    let mut session = Session::new(&loaded);
    session.begin(std::slice::from_ref(&file));
    let mut input = BufReader::new(File::open(&file)?);
    let mut rest = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = input.read(&mut buffer)?;
        rest.extend_from_slice(&buffer[..n]);
        // a character that the buffer cut in two waits for its other half
        let whole = match std::str::from_utf8(&rest) {
            Ok(text) => text.len(),
            Err(e) if e.error_len().is_none() && n > 0 => e.valid_up_to(),
            Err(e) => return Err(e.into()),
        };
        session.push(std::str::from_utf8(&rest[..whole])?)?;
        rest.drain(..whole);
        println!("{:>10} tokens read, state of {} bytes", session.state().position(), session.state().size_bytes());
        if n == 0 {
            break;
        }
    }
    session.finish()?;

    let stop = [".".to_string()];
    println!("The pass key is {}", ask(&loaded, session.state(), " What is the pass key? The pass key is", 16, &stop)?);
    Ok(())
}
