//! `infini inspect`: what a model or a memory is made of.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use infini::config::{Group, LayerKind, MixName, ModelConfig, NullSlot, Write};
use infini::plot;
use infini_format::hash::{sha256_file, short};
use infini_format::io::{PUBLIC, RealIo, atomic_write};
use infini_format::memory::read_memory;
use infini_format::tensors::TensorFile;
use serde_json::{Value, json};

use crate::console::{Outcome, Table, commas, say};
use crate::models;
use crate::report::JsonFlag;

/// Show a model's settings, sizes and gates, or what a memory holds
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  infini inspect models/passkey
  infini inspect runs/passkey --plot gates.svg --json -
  infini inspect book.mem")]
pub struct Inspect {
    /// Model folder or memory file
    #[arg(value_name = "DIR|FILE.mem", default_value = models::DEFAULT)]
    path: PathBuf,
    /// Draw the gates of a model, or the write rates of a memory, head by layer, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    json: JsonFlag,
}

/// What is to be shown: lines, JSON fields, and a picture's title and values per layer and head.
struct Shown {
    lines: Vec<String>,
    fields: Value,
    title: String,
    heads: Vec<(usize, Vec<f64>)>,
}

impl Inspect {
    /// Shows it.
    pub fn run(&self) -> Result<Outcome> {
        self.json.check()?;
        let shown = if is_memory(&self.path) { memory(&self.path)? } else { model(&models::find(&self.path)?)? };
        if let Some(path) = &self.plot {
            if shown.heads.iter().all(|(_, heads)| heads.is_empty()) {
                bail!("nothing to plot: {}: no layer mixes a memory through a gate", self.path.display());
            }
            let svg = plot::heads(&shown.title, &shown.heads)?;
            atomic_write(&RealIo, path, PUBLIC, svg.as_bytes())?;
        }
        if !self.json.on_stdout() {
            say(shown.lines.join("\n"))?;
        }
        self.json.write(shown.fields)?;
        Ok(Outcome::Done)
    }
}

fn model(dir: &Path) -> Result<Shown> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read: {}", path.display()))?;
    let config: ModelConfig = serde_json::from_str(&text).with_context(|| format!("bad model: {}", path.display()))?;
    config.check()?;
    let weights = TensorFile::read(&RealIo, &dir.join("model.safetensors"))?;
    let hash = sha256_file(&dir.join("model.safetensors"))?;

    let mut sizes = [
        ("matrices", Group::Matrix, 0),
        ("embedding, norms, convolutions", Group::Plain, 0),
        ("gates", Group::Gate, 0),
    ];
    for p in config.parameters() {
        let n = p.shape.iter().product::<usize>();
        sizes.iter_mut().filter(|s| s.1 == p.group).for_each(|s| s.2 += n);
    }
    let total: usize = sizes.iter().map(|s| s.2).sum();

    let mut lines = vec![
        format!("model       {}  (weights {})", dir.display(), short(&hash)),
        format!(
            "decoder     {} layers × {} wide, {} heads × {} ({} key/value), feed-forward {}, vocabulary {}",
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.head_width(),
            config.kv_heads(),
            config.intermediate_size,
            config.vocab_size
        ),
        format!(
            "infini      {}",
            serde_json::to_string(&config.infini)?.replace(['"', '{', '}'], "").replace(',', ", ")
        ),
        format!("parameters  {}", commas(total as u64)),
    ];
    lines.extend(sizes.iter().map(|(name, _, n)| format!("  {:>10}  {name}", commas(*n as u64))));

    let mut table =
        Table::new(&["layer", "kind", "head", "memory share g", "null slot c", "write at rest", "|q| |k| |v| |o|"]);
    let (mut layers, mut heads) = (Vec::new(), Vec::new());
    for l in 0..config.num_hidden_layers {
        let layer = Layer::read(&config, &weights, l)?;
        layer.rows(&mut table);
        layers.push(layer.json());
        if !layer.share.is_empty() {
            heads.push((l, layer.share));
        }
    }
    lines.extend([String::new(), table.to_string()]);
    let fields = json!({
        "model": dir, "weights": hash, "config": config, "parameters": total,
        "matrices": sizes[0].2, "plain": sizes[1].2, "gates": sizes[2].2, "layers": layers,
    });
    Ok(Shown { lines, fields, title: "Share of the memory in a head's output".into(), heads })
}

/// The learned scalars of one layer's attention.
struct Layer {
    index: usize,
    kind: LayerKind,
    heads: usize,
    /// σ(β) or σ(gate bias) per query head; empty where nothing is mixed.
    share: Vec<f64>,
    /// c per key/value head.
    null_slot: Vec<f64>,
    /// Write strength at a zero input per key/value head; empty if everything is written.
    write: Vec<f64>,
    /// Frobenius norms of the q, k, v and output projections.
    norms: [f64; 4],
}

impl Layer {
    fn read(config: &ModelConfig, weights: &TensorFile, index: usize) -> Result<Self> {
        let kind = config.layer_kind(index);
        let get = |name: &str| -> Result<Vec<f64>> {
            Ok(weights.get(&format!("model.layers.{index}.self_attn.{name}"))?.to_f64()?)
        };
        let norm = |name: &str| get(name).map(|w| w.iter().map(|x| x * x).sum::<f64>().sqrt());
        let norms = [norm("q_proj.weight")?, norm("k_proj.weight")?, norm("v_proj.weight")?, norm("o_proj.weight")?];
        let mut layer = Layer {
            index,
            kind,
            heads: config.num_attention_heads,
            share: Vec::new(),
            null_slot: Vec::new(),
            write: Vec::new(),
            norms,
        };
        if kind != LayerKind::Infini {
            return Ok(layer);
        }
        let sigmoid = |x: &f64| 1.0 / (1.0 + (-x).exp());
        let i = &config.infini;
        layer.share = match i.mix {
            MixName::Head => get("infini.beta")?,
            MixName::Token => get("infini.gate.bias")?,
            MixName::Add => Vec::new(),
        };
        layer.share = layer.share.iter().map(sigmoid).collect();
        layer.null_slot = match i.null_slot {
            NullSlot::Fixed(c) => vec![c; config.kv_heads()],
            NullSlot::Learned(_) if weights.contains(&format!("model.layers.{index}.self_attn.infini.c_raw")) => {
                get("infini.c_raw")?.iter().map(|x| x.exp().ln_1p()).collect()
            }
            NullSlot::Learned(_) => Vec::new(),
        };
        if i.write != Write::All {
            let strength = |x: &f64| match i.write {
                Write::All => 1.0,
                Write::Soft => sigmoid(x),
                Write::Clip => (1.2 * sigmoid(x) - 0.1).clamp(0.0, 1.0),
                Write::Hard => f64::from(u8::from(*x > 0.0)),
            };
            layer.write = get("infini.write.bias")?.iter().map(strength).collect();
        }
        Ok(layer)
    }

    /// One line a head, a bar for the share of the memory.
    fn rows(&self, table: &mut Table) {
        let kind = format!("{:?}", self.kind).to_lowercase();
        let norms = self.norms.map(|n| format!("{n:.2}")).join(" ");
        let heads = if self.kind == LayerKind::Infini { self.heads } else { 1 };
        for h in 0..heads {
            // the key/value head that query head h shares
            let kv = |v: &[f64]| v.get(h * v.len() / heads.max(1)).map_or("-".to_string(), |x| format!("{x:.3}"));
            let share = self.share.get(h).map_or("-".to_string(), |g| {
                let full = (g * 10.0).round() as usize;
                format!("{}{} {g:.3}", "█".repeat(full), "·".repeat(10 - full))
            });
            let first = |s: &str| if h == 0 { s.to_string() } else { String::new() };
            let head = if self.kind == LayerKind::Infini { h.to_string() } else { "-".into() };
            table.row(&[
                first(&self.index.to_string()),
                first(&kind),
                head,
                share,
                kv(&self.null_slot),
                kv(&self.write),
                first(&norms),
            ]);
        }
    }

    fn json(&self) -> Value {
        json!({
            "layer": self.index, "kind": format!("{:?}", self.kind).to_lowercase(), "memory_share": self.share,
            "null_slot": self.null_slot, "write_at_rest": self.write,
            "norms": { "q": self.norms[0], "k": self.norms[1], "v": self.norms[2], "o": self.norms[3] },
        })
    }
}

/// Any file but a GGUF file.
fn is_memory(path: &Path) -> bool {
    path.is_file() && path.extension().is_none_or(|e| e != "gguf")
}

fn memory(path: &Path) -> Result<Shown> {
    let (header, file) = read_memory(&RealIo, path)?;
    let mut lines = vec![
        format!("memory      {}  (weights {})", path.display(), short(&header.partner.weights)),
        format!("tokens      {}, {} saves", commas(header.position), header.generation),
        format!("sources     {}", header.sources.join(", ")),
        String::new(),
    ];
    let mut table = Table::new(&["layer", "head", "tokens", "written", "mean w", "|M|", "|z|"]);
    let (mut layers, mut rates) = (Vec::new(), Vec::new());
    let names: Vec<&str> = file.names().collect();
    let norm = |name: &str, heads: usize| -> Result<Vec<f64>> {
        if !file.contains(name) {
            return Ok(Vec::new());
        }
        let data = file.get(name)?.to_f64()?;
        Ok(data.chunks((data.len() / heads).max(1)).map(|c| c.iter().map(|x| x * x).sum::<f64>().sqrt()).collect())
    };
    let last = names.iter().filter_map(|n| n.strip_prefix("layers.")?.split('.').next()?.parse::<usize>().ok()).max();
    for l in 0..last.map_or(0, |l| l + 1) {
        if !file.contains(&format!("layers.{l}.m")) {
            continue;
        }
        let stats = file.get(&format!("layers.{l}.writes"))?.to_f64()?;
        let heads = (stats.len() - 1) / 2;
        let (m, z) = (norm(&format!("layers.{l}.m"), heads)?, norm(&format!("layers.{l}.z"), heads)?);
        let tokens = stats[0].max(1.0);
        for h in 0..heads {
            let (open, strength) = (stats[1 + h], stats[1 + heads + h]);
            let share = 100.0 * open / tokens;
            let cell = |v: &[f64]| v.get(h).map_or("-".to_string(), |x| format!("{x:.2}"));
            table.row(&[
                if h == 0 { l.to_string() } else { String::new() },
                h.to_string(),
                commas(stats[0] as u64),
                format!("{} ({share:.4} %)", commas(open as u64)),
                format!("{:.2e}", strength / tokens),
                cell(&m),
                cell(&z),
            ]);
        }
        rates.push((l, stats[1..=heads].iter().map(|open| open / tokens).collect()));
        layers.push(json!({
            "layer": l, "tokens": stats[0], "written": stats[1..=heads], "strength": stats[heads + 1..], "norm_m": m, "norm_z": z,
        }));
    }
    lines.push(table.to_string());
    let fields = json!({
        "memory": path, "tokens": header.position, "generation": header.generation, "sources": header.sources,
        "weights": header.partner.weights, "layers": layers,
    });
    Ok(Shown { lines, fields, title: "Share of tokens that a head wrote".into(), heads: rates })
}
