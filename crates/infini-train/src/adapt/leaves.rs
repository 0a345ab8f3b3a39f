//! What is learned: tensors by name, with their moments.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use infini_format::tensors::{Tensor as Stored, TensorFile, TensorView, serialize};
use infini_kernels::optim::{AdamW, clip_scale};

use crate::error::{Error, Result};
use crate::ops::{Body, Gradient, Moments};

/// One tensor that is learned.
#[derive(Debug)]
struct Leaf {
    name: &'static str,
    shape: Vec<usize>,
    value: Tensor<1>,
    moments: Moments,
}

/// All of them.
#[derive(Debug)]
pub struct Leaves {
    leaves: Vec<Leaf>,
    device: Device,
    updates: u64,
}

impl Leaves {
    /// Tracked tensors of these values on `device`, which has autodiff.
    pub fn new(values: Vec<(&'static str, Vec<usize>, Vec<f32>)>, device: &Device) -> Self {
        let leaf = |(name, shape, x): (&'static str, Vec<usize>, Vec<f32>)| {
            let (n, moments) = (x.len(), Moments::zeros(x.len(), device));
            assert_eq!(shape.iter().product::<usize>(), n, "{name}: its shape is {shape:?}");
            let value = Tensor::<1>::from_data(TensorData::new(x, [n]), (device, DType::F32)).require_grad();
            Leaf { name, shape, value, moments }
        };
        Leaves { leaves: values.into_iter().map(leaf).collect(), device: device.clone(), updates: 0 }
    }

    fn leaf(&self, name: &str) -> &Leaf {
        self.leaves.iter().find(|l| l.name == name).unwrap_or_else(|| panic!("nothing learned is called {name}"))
    }

    /// Whether a tensor of that name is learned.
    pub fn has(&self, name: &str) -> bool {
        self.leaves.iter().any(|l| l.name == name)
    }

    /// A tensor in its shape.
    ///
    /// # Panics
    /// If there is none of that name and rank.
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let leaf = self.leaf(name);
        let shape: [usize; D] = leaf.shape.clone().try_into().unwrap_or_else(|s| panic!("{name} has shape {s:?}"));
        leaf.value.clone().reshape(shape)
    }

    /// The values of a tensor.
    pub fn values(&self, name: &str) -> Vec<f32> {
        host(self.leaf(name).value.clone())
    }

    /// Numbers that are learned.
    pub fn numbers(&self) -> usize {
        self.leaves.iter().map(|l| l.shape.iter().product::<usize>()).sum()
    }

    /// Forgets the moments: a stage begins.
    pub fn restart(&mut self) {
        for l in &mut self.leaves {
            l.moments = Moments::zeros(l.shape.iter().product(), &self.device);
        }
        self.updates = 0;
    }

    /// One step of Adam with the learning rate of each tensor; the global norm of the gradients is clipped. The first
    /// tensor whose gradient is not finite is returned, and nothing is changed.
    pub fn update(
        &mut self,
        body: Body,
        grads: &mut Gradients,
        rate: &dyn Fn(&str) -> f64,
        clip: f64,
    ) -> Option<String> {
        let gradients: Vec<_> = self.leaves.iter().map(|l| Gradient::take(&l.value, grads)).collect();
        let mut sum = 0.0;
        for (l, g) in self.leaves.iter().zip(&gradients) {
            let squares = g.as_ref().map_or(0.0, |g| g.sum_squares(body));
            if !squares.is_finite() {
                return Some(format!("the gradient of {}", l.name));
            }
            sum += squares;
        }
        self.updates += 1;
        let scale = clip_scale(sum.sqrt(), clip);
        for (l, g) in self.leaves.iter_mut().zip(gradients) {
            let lr = rate(l.name) as f32;
            if let Some(g) = g.filter(|_| lr > 0.0) {
                let set = AdamW { lr, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.0 };
                l.moments.update(body, &set, self.updates, scale, &mut l.value, g);
            }
        }
        None
    }

    /// Values and moments as the bytes of a file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        for l in &self.leaves {
            let [mean, square] = l.moments.to_vecs();
            for (kind, x) in [("value", host(l.value.clone())), ("mean", mean), ("square", square)] {
                tensors.push((format!("{}.{kind}", l.name), Stored::f32(&l.shape, &x).map_err(Error::file)?));
            }
        }
        let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        let texts = BTreeMap::from([("updates".to_string(), self.updates.to_string())]);
        serialize(&views, &texts).map_err(Error::file)
    }

    /// Puts everything where [`Leaves::to_bytes`] found it.
    ///
    /// # Errors
    /// Bytes that are not of these tensors.
    pub fn restore(&mut self, bytes: Vec<u8>) -> Result<()> {
        let file = TensorFile::parse(bytes).map_err(Error::file)?;
        let updates = file.metadata.get("updates").and_then(|u| u.parse().ok());
        self.updates = updates.ok_or_else(|| Error::File("bad checkpoint: it does not count its updates".into()))?;
        for l in &mut self.leaves {
            let get = |kind: &str| {
                let view = file.get(&format!("{}.{kind}", l.name)).map_err(Error::file)?;
                if view.shape != l.shape {
                    return Err(Error::File(format!("bad checkpoint: {}.{kind} has shape {:?}", l.name, view.shape)));
                }
                view.to_f32().map_err(Error::file)
            };
            let (value, mean, square) = (get("value")?, get("mean")?, get("square")?);
            let data = TensorData::new(value, [l.shape.iter().product::<usize>()]);
            l.value = Tensor::<1>::from_data(data, (&self.device, DType::F32)).require_grad();
            l.moments = Moments::from_values(mean, square, &self.device);
        }
        Ok(())
    }
}

/// The values of a tensor, in a row.
pub fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.detach().into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for")
}
