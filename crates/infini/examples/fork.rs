//! Saves what was read, restores it, forks it in two and asks both.
//!
//! `cargo run --release -p infini --example fork -- [MODEL]`

use std::path::Path;

use infini::folder;
use infini::session::{Session, ask};
use infini_format::io::RealIo;

const FILLER: &str = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
const QUESTION: &str = " What is the pass key? The pass key is";

fn key(digits: &str) -> String {
    format!(" The pass key is {digits}. Remember it. {digits} is the pass key.")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/passkey".into());
    let loaded = folder::load(Path::new(&model))?;
    let path = std::env::temp_dir().join(format!("infini-fork-{}.mem", std::process::id()));

    // What both branches share is read once.
    let mut session = Session::new(&loaded);
    session.begin(&["the beginning".to_string()]);
    session.push(&FILLER.repeat(200))?;
    session.finish()?;
    session.save(&RealIo, &path, None)?;
    println!("{} tokens in {} bytes", session.state().position(), std::fs::metadata(&path)?.len());

    // Each branch goes on from the file, and neither knows of the other.
    for digits in ["48213", "90577"] {
        let mut branch = Session::open(&loaded, &RealIo, &path)?;
        branch.begin(&[format!("the branch of {digits}")]);
        branch.push(&key(digits))?;
        branch.push(&FILLER.repeat(200))?;
        branch.finish()?;
        let answer = ask(&loaded, branch.state(), QUESTION, 16, &[".".to_string()])?;
        println!("told {digits}, answers {answer}");
    }
    std::fs::remove_file(&path)?;
    Ok(())
}
