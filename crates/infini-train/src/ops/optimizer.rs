//! Gradients and AdamW: in place on the CPU backend's buffers, as tensor ops elsewhere.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use burn_flex::FlexTensor;

use super::Body;
use super::kernel::slice;
use infini_kernels::optim::{self, AdamW};

/// The gradient of one parameter.
#[derive(Clone, Debug)]
pub struct Gradient(Tensor<1>);

/// AdamW's two moments of one parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    mean: Tensor<1>,
    square: Tensor<1>,
}

/// The buffer of a tensor without autodiff on the CPU backend.
fn plain(x: Tensor<1>) -> FlexTensor {
    x.try_into_primitive::<Flex>().expect("a tensor of the CPU backend")
}

/// Writes into a buffer that nobody else holds, else into a copy.
fn edit(x: &mut Tensor<1>, f: impl FnOnce(&mut [f32])) {
    let mut buffer = plain(x.extract());
    if buffer.layout().start_offset() != 0 || buffer.storage::<f32>().len() != buffer.layout().num_elements() {
        buffer = buffer.to_contiguous();
    }
    f(buffer.storage_mut::<f32>());
    *x = Tensor::from_primitive::<Flex>(buffer);
}

impl Gradient {
    /// Takes the gradient of a leaf out of `grads`; `None` if the loss does not depend on it.
    pub fn take(leaf: &Tensor<1>, grads: &mut Gradients) -> Option<Gradient> {
        leaf.grad_remove(grads).map(Gradient)
    }

    /// Adds another batch's gradient.
    pub fn add(&mut self, body: Body, other: Gradient) {
        match body {
            Body::Kernel => {
                let other = plain(other.0);
                edit(&mut self.0, |x| optim::accumulate(x, slice(&other)));
            }
            Body::Composed => self.0 = self.0.clone() + other.0,
        }
    }

    /// Sum of squares in f64; NaN or infinite if any element is.
    pub fn sum_squares(&self, body: Body) -> f64 {
        match body {
            Body::Kernel => optim::sum_squares(slice(&plain(self.0.clone()))),
            Body::Composed => self.0.clone().square().sum().into_scalar::<f64>(),
        }
    }

    /// Values in f64.
    pub fn to_f64(&self) -> Vec<f64> {
        self.0.to_data_dtype(DType::F64).try_into_vec().expect("f64 was asked for")
    }
}

impl Moments {
    /// Zeros for a parameter of `n` elements.
    pub fn zeros(n: usize, device: &Device) -> Moments {
        Moments::from_values(vec![0.0; n], vec![0.0; n], device)
    }

    /// Moments as they were saved.
    pub fn from_values(mean: Vec<f32>, square: Vec<f32>, device: &Device) -> Moments {
        let device = device.clone().without_autodiff();
        let tensor = |x: Vec<f32>| {
            let n = x.len();
            Tensor::from_data(TensorData::new(x, [n]), (&device, DType::F32))
        };
        Moments { mean: tensor(mean), square: tensor(square) }
    }

    /// Both moments in f32.
    pub fn to_vecs(&self) -> [Vec<f32>; 2] {
        [&self.mean, &self.square].map(|x| x.to_data_dtype(DType::F32).try_into_vec().expect("f32 was asked for"))
    }

    /// One step (from 1) of AdamW on a tracked leaf; the gradient is multiplied by `scale` first. The old leaf must
    /// not be part of a graph any more, or the update works on a copy.
    pub fn update(&mut self, body: Body, set: &AdamW, step: u64, scale: f32, leaf: &mut Tensor<1>, gradient: Gradient) {
        match body {
            Body::Kernel => {
                let value = leaf.extract().try_into_primitive::<Autodiff<Flex>>().expect("a leaf of the CPU backend");
                let mut value = Tensor::<1>::from_primitive::<Flex>(value.into_primitive());
                let gradient = plain(gradient.0);
                edit(&mut value, |p| {
                    edit(&mut self.mean, |m| {
                        edit(&mut self.square, |v| optim::adamw(set, step, scale, p, slice(&gradient), m, v));
                    });
                });
                *leaf = value.autodiff().require_grad();
            }
            Body::Composed => {
                let g = gradient.0 * scale;
                let blend = |old: &Tensor<1>, new: Tensor<1>, beta: f32| old.clone() * beta + new * (1.0 - beta);
                self.mean = blend(&self.mean, g.clone(), set.beta1);
                self.square = blend(&self.square, g.square(), set.beta2);
                let unbiased = |x: &Tensor<1>, beta: f32| x.clone() / (1.0 - f64::from(beta).powf(step as f64));
                let direction = unbiased(&self.mean, set.beta1) / (unbiased(&self.square, set.beta2).sqrt() + set.eps);
                let value = leaf.extract().without_autodiff();
                let value = value.clone() * (1.0 - set.lr * set.weight_decay) - direction * set.lr;
                *leaf = value.autodiff().require_grad();
            }
        }
    }
}
