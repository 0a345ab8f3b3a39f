//! Named f32 tensors that fit a configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use infini_format::tensors::TensorFile;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::{Init, ModelConfig};
use crate::error::{Error, Result};
use crate::folder::at;

/// Weights by name, each as long as its shape says.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Weights {
    /// Takes tensors that are exactly those of `config`.
    ///
    /// # Errors
    /// A missing, surplus or wrongly sized tensor, or one that holds NaN or infinity, by name.
    pub fn new(config: &ModelConfig, tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Result<Self> {
        let shapes = tensors.iter().map(|(name, (shape, _))| (name.as_str(), shape.as_slice())).collect();
        fit(config, &shapes)?;
        for (name, (shape, data)) in &tensors {
            if data.len() != shape.iter().product::<usize>() {
                return Err(Error::Model(format!("{name} has shape {shape:?} and {} values", data.len())));
            }
            finite(name, data)?;
        }
        Ok(Weights { tensors: tensors.into_iter().map(|(n, (_, d))| (n, d)).collect() })
    }

    /// Fresh weights: each parameter from its own stream of `seed`, so that adding one changes no other.
    pub fn init(config: &ModelConfig, seed: u64) -> Self {
        let tensors = config.parameters().into_iter().map(|p| {
            let n = p.shape.iter().product();
            let data = match &p.init {
                Init::Constant(x) => vec![*x; n],
                Init::Values(v) => v.clone(),
                Init::Normal(std) => {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    rng.set_stream(fnv1a(&p.name));
                    (0..n).map(|_| std * normal(&mut rng)).collect()
                }
            };
            (p.name, data)
        });
        Weights { tensors: tensors.collect() }
    }

    /// The values of `name`.
    ///
    /// # Panics
    /// If the configuration has no such parameter.
    pub fn get(&self, name: &str) -> &[f32] {
        self.tensors.get(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    /// Takes the values of `name` out.
    ///
    /// # Panics
    /// As [`Weights::get`].
    pub fn take(&mut self, name: &str) -> Vec<f32> {
        self.tensors.remove(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    /// Rounds every value to bf16, as a model folder of that type holds them. A model whose matrices are bf16 numbers
    /// keeps them in two bytes each, and decodes twice as fast where memory is what bounds it.
    pub fn round_to_bf16(&mut self) {
        for x in self.tensors.values_mut().flatten() {
            *x = half::bf16::from_f32(*x).to_f32();
        }
    }

    /// Names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.tensors.iter().map(|(n, d)| (n.as_str(), d.as_slice()))
    }
}

/// Whether tensors of these shapes are exactly those of a configuration.
fn fit(config: &ModelConfig, shapes: &BTreeMap<&str, &[usize]>) -> Result<()> {
    let parameters = config.parameters();
    for p in &parameters {
        let Some(shape) = shapes.get(p.name.as_str()) else {
            return Err(Error::Model(format!("{} is missing from the weights", p.name)));
        };
        if *shape != p.shape {
            return Err(Error::Model(format!("{} has shape {shape:?}, the configuration says {:?}", p.name, p.shape)));
        }
    }
    match shapes.keys().find(|n| !parameters.iter().any(|p| p.name == **n)) {
        Some(name) => Err(Error::Model(format!("{name} is in the weights but not in the configuration"))),
        None => Ok(()),
    }
}

fn finite(name: &str, data: &[f32]) -> Result<()> {
    match data.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(Error::Model(format!("{name} holds {} at element {i}", data[i]))),
        None => Ok(()),
    }
}

/// Weights where they lie, in the types of their files: each becomes f32 when it is asked for, so that a model can be put
/// together with one of them in f32 at a time.
pub(crate) struct Source {
    config: ModelConfig,
    /// The file or folder, for errors.
    path: PathBuf,
    values: Values,
}

/// The values of a parameter, by its name.
pub(crate) type Values = Box<dyn Fn(&str) -> Result<Vec<f32>>>;

impl Source {
    /// Tensors of `shapes` that are exactly those of `config`, whose values `values` gives.
    ///
    /// # Errors
    /// A missing, surplus or wrongly shaped tensor, by name.
    pub fn new(config: &ModelConfig, path: PathBuf, shapes: &BTreeMap<&str, &[usize]>, values: Values) -> Result<Self> {
        fit(config, shapes).map_err(|e| at(&path, e))?;
        Ok(Source { config: config.clone(), path, values })
    }

    /// The tensors of safetensors files whose names are `wanted`.
    ///
    /// # Errors
    /// As [`Source::new`]; a tensor in two files.
    pub fn of_files(
        config: &ModelConfig,
        path: PathBuf,
        files: Vec<TensorFile>,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut shapes = BTreeMap::new();
        for (name, t) in files.iter().flat_map(TensorFile::iter).filter(|(name, _)| wanted(name)) {
            if shapes.insert(name, t.shape).is_some() {
                return Err(at(&path, Error::Model(format!("{name} is in two files"))));
            }
        }
        fit(config, &shapes).map_err(|e| at(&path, e))?;
        let values = move |name: &str| {
            let t = files.iter().find_map(|f| f.get(name).ok()).expect("it was there before");
            t.to_f32().map_err(|e| Error::Model(format!("{name}: {e}")))
        };
        Ok(Source { config: config.clone(), path, values: Box::new(values) })
    }

    /// The values of `name`.
    ///
    /// # Errors
    /// Values that are no numbers of f32, NaN or infinity.
    pub fn get(&self, name: &str) -> Result<Vec<f32>> {
        let data = (self.values)(name).map_err(|e| at(&self.path, e))?;
        finite(name, &data).map_err(|e| at(&self.path, e))?;
        Ok(data)
    }

    /// All of them in f32.
    ///
    /// # Errors
    /// As [`Source::get`].
    pub fn weights(&self) -> Result<Weights> {
        let tensors = self.config.parameters().into_iter().map(|p| Ok((p.name.clone(), self.get(&p.name)?)));
        Ok(Weights { tensors: tensors.collect::<Result<_>>()? })
    }
}

/// A standard normal number (Box and Muller; only basic f64 functions, so a seed gives the same
/// weights on every machine to the last bits of libm).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_a_normal_spread() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let x: Vec<f32> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.03, "{mean} {var}");
    }
}
