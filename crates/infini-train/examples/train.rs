//! Trains a configuration: `cargo run -p infini-train --example train -- --config FILE --out DIR [--data DIR]
//! [--threads N] [--set key=value]…`

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use infini_train::{Config, Device, Event, Options, Resume, train};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut config, mut out, mut data, mut set) = (PathBuf::new(), PathBuf::from("run"), None, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--config" => config = value.into(),
            "--out" => out = value.into(),
            "--data" => data = Some(PathBuf::from(value)),
            "--threads" => rayon::ThreadPoolBuilder::new().num_threads(value.parse()?).build_global()?,
            "--set" => set.push(value),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let config = Config::parse(&std::fs::read_to_string(config)?, &set)?;
    let stop = AtomicBool::new(false);
    let device = Device::flex();
    let options = Options { out: &out, data_dir: data.as_deref(), resume: Resume::Auto, device, stop: &stop };
    let every = config.train.log_every;
    let summary = train(&config, &options, &mut |event| match event {
        Event::Start { parameters, memory, resumed, warning } => {
            println!("{parameters} parameters, about {} MiB", memory.total() >> 20);
            warning.iter().for_each(|w| println!("{w}"));
            resumed.iter().for_each(|s| println!("going on from step {s}"));
        }
        Event::Step(p) if (p.step.step + 1).is_multiple_of(every) || p.step.skipped.is_some() => {
            let s = p.step;
            println!(
                "{:6} loss {:.4} answer {:.4} accuracy {:.3} all {:.4} norm {:.2} {:.0} tok/s eta {:.0} s {} {}",
                s.step + 1,
                s.loss,
                s.answer_loss.unwrap_or(f64::NAN),
                s.answer_accuracy.unwrap_or(f64::NAN),
                s.token_loss,
                s.gradient_norm,
                p.tokens_per_second,
                p.eta,
                s.layers.iter().map(|l| format!("{l:.3?}")).collect::<String>(),
                s.skipped.as_deref().unwrap_or_default(),
            );
        }
        _ => {}
    })?;
    println!("{} steps, {} tokens, {:.1} s", summary.step, summary.tokens, summary.seconds);
    Ok(())
}
