//! Stochastic gradient descent with momentum, weight decay and FedProx's proximal term, in one pass over memory.
//! Gradients come from the tape; which parameters are stepped, `trainer` decides.

use super::Optimizer;

/// State of the optimizer between steps.
pub(super) struct Sgd {
    learning_rate: f32,
    momentum: f32,
    weight_decay: f32,
    proximal_mu: f32,
    /// v of each parameter by index; empty until its first step, and for ever without momentum.
    velocities: Vec<Vec<f32>>,
}

impl Sgd {
    /// For `parameters` parameters; each is addressed by its index below that.
    pub(super) fn new(optimizer: Optimizer, proximal_mu: f32, parameters: usize) -> Sgd {
        let Optimizer::Sgd { learning_rate, momentum, weight_decay } = optimizer;
        Sgd { learning_rate, momentum, weight_decay, proximal_mu, velocities: vec![Vec::new(); parameters] }
    }

    /// Steps one parameter in place. `start` are its values at the beginning of the run (FedProx's w₀); all slices have
    /// one length.
    ///
    /// g ← g + λw + μ(w − w₀); v ← βv + g, or g on the first step; w ← w − ηv.
    pub(super) fn step(&mut self, index: usize, values: &mut [f32], gradient: &[f32], start: &[f32]) {
        let &mut Sgd { learning_rate, momentum, weight_decay, proximal_mu, .. } = self;
        let slope = |value: f32, gradient: f32, start: f32| {
            let mut slope = gradient;
            if weight_decay != 0.0 {
                slope += weight_decay * value;
            }
            if proximal_mu != 0.0 {
                slope += proximal_mu * (value - start);
            }
            slope
        };
        let Some(velocity) = self.velocities.get_mut(index).filter(|_| momentum != 0.0) else {
            for ((value, &gradient), &start) in values.iter_mut().zip(gradient).zip(start) {
                *value -= learning_rate * slope(*value, gradient, start);
            }
            return;
        };
        // Momentum times zero plus the slope is the slope: an empty velocity starts as zeros, as torch's first step does.
        velocity.resize(values.len(), 0.0);
        for (((value, &gradient), &start), velocity) in values.iter_mut().zip(gradient).zip(start).zip(velocity) {
            *velocity = momentum * *velocity + slope(*value, gradient, start);
            *value -= learning_rate * *velocity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sgd(momentum: f32, weight_decay: f32, proximal_mu: f32) -> Sgd {
        Sgd::new(Optimizer::Sgd { learning_rate: 0.5, momentum, weight_decay }, proximal_mu, 1)
    }

    #[test]
    fn a_plain_step_moves_against_the_gradient() {
        let mut values = [1.0, -2.0];
        sgd(0.0, 0.0, 0.0).step(0, &mut values, &[2.0, 4.0], &[0.0, 0.0]);
        assert_eq!(values, [0.0, -4.0]);
    }

    #[test]
    fn momentum_adds_up_over_steps() {
        let (mut optimizer, mut values) = (sgd(0.5, 0.0, 0.0), [0.0]);
        optimizer.step(0, &mut values, &[1.0], &[0.0]);
        assert_eq!(values, [-0.5]);
        optimizer.step(0, &mut values, &[1.0], &[0.0]);
        assert_eq!(values, [-1.25]);
    }

    #[test]
    fn weight_decay_pulls_to_zero_and_the_proximal_term_to_the_start() {
        let mut values = [4.0];
        sgd(0.0, 0.5, 0.0).step(0, &mut values, &[0.0], &[2.0]);
        assert_eq!(values, [3.0]);
        let mut values = [4.0];
        sgd(0.0, 0.0, 0.5).step(0, &mut values, &[0.0], &[2.0]);
        assert_eq!(values, [3.5]);
    }
}
