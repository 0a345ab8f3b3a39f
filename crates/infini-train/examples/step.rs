//! Times training steps of a plain Llama: `--example step -- [hidden layers heads ffn tokens batch steps]`,
//! by default 256 4 4 704 512 4 10. Prints wall and processor time, after two steps that do not count.

use std::time::Instant;

use infini::config::{Activation, Attention, InfiniConfig, ModelConfig};
use infini::tasks::{Batch, DataConfig, Task};
use infini::weights::Weights;
use infini_kernels::heap::Keep;
use infini_train::config::TrainConfig;
use infini_train::{Config, Device, Trainer};
use mimalloc::MiMalloc;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: Keep<MiMalloc> = Keep::new(MiMalloc);

/// Random tokens.
struct Noise(usize);

impl Task for Noise {
    fn name(&self) -> &'static str {
        "noise"
    }

    fn min_tokens(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        self.0
    }

    fn batch(&self, rng: &mut ChaCha8Rng, batch: usize, tokens: usize) -> Batch {
        let n = batch * (tokens + 1);
        let tokens = (0..n).map(|_| rng.random_range(0..self.0 as u32)).collect();
        Batch { tokens, answer: vec![false; n], filler: vec![true; n], reset: None }
    }
}

/// Seconds that this thread was on a processor (Linux).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(stat.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut sizes = [256, 4, 4, 704, 512, 4, 10];
    for (size, arg) in sizes.iter_mut().zip(std::env::args().skip(1)) {
        *size = arg.parse()?;
    }
    let [hidden_size, layers, heads, intermediate_size, tokens, batch, steps] = sizes;
    let model = ModelConfig {
        vocab_size: 1024,
        hidden_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: 0,
        head_dim: 0,
        intermediate_size,
        hidden_act: Activation::Silu,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        max_position_embeddings: 0,
        attention: Attention::Full,
        infini: InfiniConfig::default(),
    };
    let train = TrainConfig { steps: 1 << 30, batch, tokens, token_loss: 1.0, ..TrainConfig::default() };
    let config = Config { model, data: DataConfig::default(), train };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| -> infini_train::Result<()> {
        let weights = Weights::init(&config.model, 0);
        let mut trainer = Trainer::new(&config, &weights, Box::new(Noise(1024)), &Device::flex())?;
        for _ in 0..2 {
            trainer.step(false)?;
        }
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let mut loss = 0.0;
        for _ in 0..steps {
            loss = trainer.step(false)?.loss;
        }
        let n = (steps * batch * tokens) as f64;
        let wall = start.elapsed().as_secs_f64();
        println!("loss {loss:.4}, {:.1} ms a step, {:.0} tok/s", 1e3 * wall / steps as f64, n / wall);
        if let (Some(cpu), Some(now)) = (cpu, cpu_seconds()) {
            println!(
                "on the processor: {:.1} ms a step, {:.0} tok/s",
                1e3 * (now - cpu) / steps as f64,
                n / (now - cpu)
            );
        }
        Ok(())
    })?;
    Ok(())
}
