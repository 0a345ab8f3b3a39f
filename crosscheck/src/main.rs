//! Reads a GGUF file with `infini-format` and with candle-core: same tensors, same shapes, same values.
//!
//! `cargo xtask crosscheck FILE`

use std::error::Error;
use std::fs::File;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use infini_format::gguf::Gguf;
use infini_format::io::RealIo;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: crosscheck FILE.gguf")?;
    let ours = Gguf::read(&RealIo, path.as_ref())?;
    let mut file = File::open(&path)?;
    let theirs = Content::read(&mut file)?;
    assert_eq!(ours.iter().count(), theirs.tensor_infos.len(), "tensors");
    assert_eq!(ours.metadata.len(), theirs.metadata.len(), "keys");
    let (mut values, mut worst, mut kinds) = (0u64, 0f32, std::collections::BTreeMap::new());
    for (name, t) in ours.iter() {
        let other = theirs.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        assert_eq!(t.shape, other.dims(), "{name}");
        let (a, b) = (t.to_f32(), other.flatten_all()?.to_vec1::<f32>()?);
        for (x, y) in a.iter().zip(&b) {
            worst = worst.max((x - y).abs() / y.abs().max(1e-3));
        }
        values += a.len() as u64;
        *kinds.entry(format!("{:?}", t.quant)).or_insert(0) += 1;
    }
    println!("{} tensors, {values} values, {kinds:?}: worst relative difference {worst:e}", theirs.tensor_infos.len());
    if worst > 1e-6 { Err("the readers disagree".into()) } else { Ok(()) }
}
