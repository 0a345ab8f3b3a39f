//! Named f32 tensors that fit a configuration.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::{Init, ModelConfig};
use crate::error::{Error, Result};

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
        let parameters = config.parameters();
        for p in &parameters {
            let Some((shape, data)) = tensors.get(&p.name) else {
                return Err(Error::Model(format!("{} is missing from the weights", p.name)));
            };
            if *shape != p.shape || data.len() != p.shape.iter().product::<usize>() {
                return Err(Error::Model(format!(
                    "{} has shape {shape:?}, the configuration says {:?}",
                    p.name, p.shape
                )));
            }
            if let Some(i) = data.iter().position(|x| !x.is_finite()) {
                return Err(Error::Model(format!("{} holds {} at element {i}", p.name, data[i])));
            }
        }
        if let Some(name) = tensors.keys().find(|n| !parameters.iter().any(|p| p.name == **n)) {
            return Err(Error::Model(format!("{name} is in the weights but not in the configuration")));
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
