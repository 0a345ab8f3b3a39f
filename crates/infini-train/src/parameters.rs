//! The weights as named leaves of the autodiff graph.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use infini::config::{Group, ModelConfig};
use infini::weights::Weights;

/// One parameter.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Name in the model file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Optimiser group.
    pub group: Group,
    /// The values in one row, tracked.
    pub value: Tensor<1>,
}

/// All parameters of a decoder, in the order of [`ModelConfig::parameters`].
#[derive(Clone, Debug)]
pub struct Parameters {
    leaves: Vec<Leaf>,
    index: BTreeMap<String, usize>,
}

impl Parameters {
    /// Tracked copies of `weights` on `device` in floating-point type `dtype`.
    ///
    /// # Panics
    /// If `weights` are not those of `config`, or `device` has no autodiff.
    pub fn new(config: &ModelConfig, weights: &Weights, device: &Device, dtype: DType) -> Self {
        assert!(device.is_autodiff(), "parameters need a device with autodiff");
        let leaves: Vec<Leaf> = config
            .parameters()
            .into_iter()
            .map(|p| {
                let values = weights.get(&p.name);
                let data = TensorData::new(values.to_vec(), [values.len()]);
                let value = Tensor::<1>::from_data(data, (device, dtype)).require_grad();
                Leaf { name: p.name, shape: p.shape, group: p.group, value }
            })
            .collect();
        let index = leaves.iter().enumerate().map(|(i, l)| (l.name.clone(), i)).collect();
        Parameters { leaves, index }
    }

    /// A parameter in its shape.
    ///
    /// # Panics
    /// If there is none of that name, or its rank is another.
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let leaf = &self.leaves[*self.index.get(name).unwrap_or_else(|| panic!("no parameter {name}"))];
        let shape: [usize; D] = leaf.shape.clone().try_into().unwrap_or_else(|s| panic!("{name} has shape {s:?}"));
        leaf.value.clone().reshape(shape)
    }

    /// The leaves in order.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// The leaves in order, to be replaced by an update.
    pub fn leaves_mut(&mut self) -> &mut [Leaf] {
        &mut self.leaves
    }

    /// A copy of the values, for a model file.
    ///
    /// # Panics
    /// If the device cannot be read.
    pub fn weights(&self) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let copy = |l: &Leaf| {
            let values =
                l.value.clone().detach().into_data_dtype(DType::F32).try_into_vec::<f32>().expect("f32 was asked for");
            (l.name.clone(), (l.shape.clone(), values))
        };
        self.leaves.iter().map(copy).collect()
    }
}
