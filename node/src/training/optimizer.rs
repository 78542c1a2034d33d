//! Steps from gradients: SGD and Adam, with weight decay, FedProx's proximal term and SCAFFOLD's correction; clipping; and
//! running statistics. On the CPU in place (`slices`), elsewhere by the backend's operations (`tensors`).
//! Gradients come from the tape; which parameters are stepped is `trainer`'s.

mod slices;
mod tensors;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;

use burn::backend::{Backend, TensorMetadata};

use super::Optimizer;
use super::backend::{Plain, PlainTensor, Tensor};

/// State of the optimizer between steps.
pub(super) struct Stepper<B: Backend> {
    now: Now,
    /// SGD's velocity, or Adam's first and second moment, of each parameter by index; none until its first step.
    moments: Vec<[Option<Tensor<B>>; 2]>,
}

/// What a step of one parameter goes by.
#[derive(Clone, Copy)]
struct Now {
    optimizer: Optimizer,
    proximal_mu: f32,
    /// Steps that were begun.
    steps: u64,
    /// The schedule's factor.
    rate: f32,
}

impl Now {
    /// λ, and whether it acts on the weights alone (AdamW).
    fn decay(&self) -> (f32, bool) {
        match self.optimizer {
            Optimizer::Sgd { weight_decay, .. } => (weight_decay, false),
            Optimizer::Adam { weight_decay, decoupled, .. } => (weight_decay, decoupled),
        }
    }

    /// The rate of this step, η times the schedule's factor.
    fn rate(&self) -> f32 {
        self.rate * self.optimizer.learning_rate()
    }

    /// Adam's rate with the first moment's bias taken out, and the root of the second's.
    fn unbiased(&self, beta1: f32, beta2: f32) -> (f32, f32) {
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let corrected = |beta: f32| 1.0 - f64::from(beta).powi(steps);
        ((f64::from(self.rate()) / corrected(beta1)) as f32, corrected(beta2).sqrt() as f32)
    }
}

impl<B: Backend> Stepper<B> {
    /// For `parameters` parameters; each is addressed by its index below that.
    pub(super) fn new(optimizer: Optimizer, proximal_mu: f32, parameters: usize) -> Stepper<B> {
        let mut moments = Vec::new();
        moments.resize_with(parameters, || [None, None]);
        Stepper { now: Now { optimizer, proximal_mu, steps: 0, rate: 1.0 }, moments }
    }

    /// Begins a step at the schedule's factor; all parameters are stepped before the next one begins.
    pub(super) fn begin(&mut self, rate: f32) {
        self.now.steps += 1;
        self.now.rate = rate;
    }
}

/// What is added to a parameter's gradient.
pub(super) struct Terms<'a, B: Backend> {
    /// FedProx's w₀, the values at the beginning of the run; looked at where μ is not 0.
    pub start: Option<&'a Tensor<B>>,
    /// SCAFFOLD's c − c_i.
    pub correction: Option<&'a Tensor<B>>,
}

/// How parameters are held and stepped on a backend: by its operations, or in a better way of its own.
pub(super) trait Store: Backend {
    /// Steps the parameter of this index:
    /// g ← g + λw + μ(w − w₀) + (c − c_i), then the optimizer's own step; AdamW's λ acts on the weights alone.
    fn step(
        stepper: &mut Stepper<Self>,
        index: usize,
        values: &mut Tensor<Self>,
        gradient: Tensor<Self>,
        terms: &Terms<'_, Self>,
    ) {
        if let Some(moments) = stepper.moments.get_mut(index) {
            tensors::step::<Self>(&stepper.now, values, gradient, moments, terms);
        }
    }

    /// Scales gradients down so that their common L2 norm is at most `limit`, as `torch.nn.utils.clip_grad_norm_` does.
    fn clip(gradients: &mut [Option<Tensor<Self>>], limit: f32) {
        tensors::clip::<Self>(gradients, limit);
    }

    /// Moves a running statistic towards a batch's: running ← m·running + (1 − m)·batch, with m ONNX's momentum. `factor`
    /// is 1 for a mean and n/(n−1) for a variance over n values: PyTorch keeps the unbiased one.
    fn follow(running: &mut Tensor<Self>, batch: Tensor<Self>, momentum: f32, factor: f32) {
        tensors::follow::<Self>(running, batch, momentum, factor);
    }
}

#[cfg(feature = "wgpu")]
impl Store for burn_wgpu::Wgpu {}

impl Store for Plain {
    fn step(
        stepper: &mut Stepper<Plain>,
        index: usize,
        values: &mut PlainTensor,
        mut gradient: PlainTensor,
        terms: &Terms<'_, Plain>,
    ) {
        let Some([first, second]) = stepper.moments.get_mut(index) else { return };
        let numbers = |tensor: &Option<&PlainTensor>| tensor.map(|tensor| tensor.to_contiguous());
        let (start, correction) = (numbers(&terms.start), numbers(&terms.correction));
        fn slice(tensor: &Option<PlainTensor>) -> &[f32] {
            tensor.as_ref().map_or(&[], |tensor| tensor.storage::<f32>())
        }
        // In place, so that nothing else holds its numbers and they need no copy.
        gradient = gradient.to_contiguous();
        let shape = values.shape().to_vec();
        let (values, slopes) = (values.storage_mut::<f32>(), gradient.storage_mut::<f32>());
        slices::add_terms(&stepper.now, values, slopes, slice(&start), slice(&correction));
        // An empty moment starts as zeros, as torch's first step does: momentum times zero plus the slope is the slope.
        let zeros = |moment: &mut Option<PlainTensor>, len: usize| {
            moment.get_or_insert_with(|| super::engine::from(vec![0.0f32; len], shape.clone()));
        };
        match stepper.now.optimizer {
            Optimizer::Sgd { momentum: 0.0, .. } => slices::descend(&stepper.now, values, slopes),
            Optimizer::Sgd { .. } => {
                zeros(first, values.len());
                let Some(velocity) = first else { return };
                slices::roll(&stepper.now, values, slopes, velocity.storage_mut::<f32>());
            }
            Optimizer::Adam { .. } => {
                zeros(first, values.len());
                zeros(second, values.len());
                let (Some(first), Some(second)) = (first, second) else { return };
                let moments = (first.storage_mut::<f32>(), second.storage_mut::<f32>());
                slices::adapt(&stepper.now, values, slopes, moments);
            }
        }
        super::spare::give_gradient::<f32>(gradient);
    }

    fn clip(gradients: &mut [Option<PlainTensor>], limit: f32) {
        for gradient in gradients.iter_mut().flatten() {
            *gradient = gradient.to_contiguous();
        }
        let squares = gradients.iter().flatten().flat_map(|gradient| gradient.storage::<f32>());
        let norm = squares.map(|slope| f64::from(*slope) * f64::from(*slope)).sum::<f64>().sqrt();
        let factor = f64::from(limit) / (norm + 1e-6);
        if factor < 1.0 {
            for gradient in gradients.iter_mut().flatten() {
                gradient.storage_mut::<f32>().iter_mut().for_each(|slope| *slope *= factor as f32);
            }
        }
    }

    fn follow(running: &mut PlainTensor, batch: PlainTensor, momentum: f32, factor: f32) {
        let batch = batch.to_contiguous();
        for (running, batch) in running.storage_mut::<f32>().iter_mut().zip(batch.storage::<f32>()) {
            *running = momentum * *running + (1.0 - momentum) * factor * batch;
        }
    }
}
