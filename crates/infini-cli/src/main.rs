//! The `infini` command: reads the flags, runs one command, says how it ended.
//!
//! Exit codes: 0 done, 1 failed or a check missed, 2 wrong usage.

mod bench;
mod cache;
mod cli;
mod commands;
mod console;
mod hub;
mod models;
mod progress;
mod report;
mod sampling;
mod signals;

use std::process::ExitCode;

use infini_kernels::heap::Keep;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Keep<MiMalloc> = Keep::new(MiMalloc);

fn main() -> ExitCode {
    match cli::run() {
        Ok(console::Outcome::Done) => ExitCode::SUCCESS,
        Ok(console::Outcome::Missed) => ExitCode::from(1),
        // `infini … | head` is no failure
        Err(e) if console::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            console::complain(&e);
            ExitCode::from(if e.is::<console::Usage>() { 2 } else { 1 })
        }
    }
}
