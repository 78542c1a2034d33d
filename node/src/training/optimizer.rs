//! Steps from gradients: SGD and Adam, with weight decay, FedProx's proximal term and SCAFFOLD's correction.
//! Gradients come from the tape; which parameters are stepped, and clipping, is `trainer`'s.

use super::Optimizer;

/// State of the optimizer between steps.
pub(super) struct Stepper {
    optimizer: Optimizer,
    proximal_mu: f32,
    /// Steps that were begun.
    steps: u64,
    /// SGD's velocity or Adam's first moment of each parameter by index; empty until its first step.
    first: Vec<Vec<f32>>,
    /// Adam's second moment.
    second: Vec<Vec<f32>>,
}

impl Stepper {
    /// For `parameters` parameters; each is addressed by its index below that.
    pub(super) fn new(optimizer: Optimizer, proximal_mu: f32, parameters: usize) -> Stepper {
        let none = || vec![Vec::new(); parameters];
        Stepper { optimizer, proximal_mu, steps: 0, first: none(), second: none() }
    }

    /// Begins a step; all parameters are stepped before the next one begins.
    pub(super) fn begin(&mut self) {
        self.steps += 1;
    }

    /// Steps one parameter in place, with its gradient as scratch. `rate` is the schedule's factor. `start` are its values
    /// at the beginning of the run (FedProx's w₀), looked at where μ is not 0; `correction` is SCAFFOLD's c − c_i, or empty.
    /// The other slices have one length.
    ///
    /// g ← g + λw + μ(w − w₀) + (c − c_i), then the optimizer's own step; AdamW's λ acts on the weights alone.
    pub(super) fn step(
        &mut self,
        index: usize,
        rate: f32,
        values: &mut [f32],
        gradient: &mut [f32],
        start: &[f32],
        correction: &[f32],
    ) {
        let (decay, decoupled) = match self.optimizer {
            Optimizer::Sgd { weight_decay, .. } => (weight_decay, false),
            Optimizer::Adam { weight_decay, decoupled, .. } => (weight_decay, decoupled),
        };
        // A loop a term: each is as fast as memory, and a run without extras pays for none.
        if decoupled && decay != 0.0 {
            let kept = 1.0 - rate * self.optimizer.learning_rate() * decay;
            values.iter_mut().for_each(|value| *value *= kept);
        } else if decay != 0.0 {
            gradient.iter_mut().zip(&*values).for_each(|(slope, value)| *slope += decay * value);
        }
        if self.proximal_mu != 0.0 {
            let moved = values.iter().zip(start).map(|(value, start)| value - start);
            gradient.iter_mut().zip(moved).for_each(|(slope, moved)| *slope += self.proximal_mu * moved);
        }
        gradient.iter_mut().zip(correction).for_each(|(slope, correction)| *slope += correction);
        match self.optimizer {
            Optimizer::Sgd { learning_rate, momentum, nesterov, .. } => {
                self.descend(index, rate * learning_rate, momentum, nesterov, values, gradient);
            }
            Optimizer::Adam { learning_rate, beta1, beta2, epsilon, .. } => {
                self.adapt(index, rate * learning_rate, [beta1, beta2, epsilon], values, gradient);
            }
        }
    }

    fn descend(
        &mut self,
        index: usize,
        rate: f32,
        momentum: f32,
        nesterov: bool,
        values: &mut [f32],
        gradient: &[f32],
    ) {
        let Some(velocity) = self.first.get_mut(index).filter(|_| momentum != 0.0) else {
            values.iter_mut().zip(gradient).for_each(|(value, slope)| *value -= rate * slope);
            return;
        };
        // Momentum times zero plus the slope is the slope: an empty velocity starts as zeros, as torch's first step does.
        velocity.resize(values.len(), 0.0);
        for ((value, slope), velocity) in values.iter_mut().zip(gradient).zip(velocity) {
            *velocity = momentum * *velocity + slope;
            *value -= rate * if nesterov { slope + momentum * *velocity } else { *velocity };
        }
    }

    fn adapt(
        &mut self,
        index: usize,
        rate: f32,
        [beta1, beta2, epsilon]: [f32; 3],
        values: &mut [f32],
        gradient: &[f32],
    ) {
        let (Some(first), Some(second)) = (self.first.get_mut(index), self.second.get_mut(index)) else { return };
        first.resize(values.len(), 0.0);
        second.resize(values.len(), 0.0);
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let corrected = |beta: f32| 1.0 - f64::from(beta).powi(steps);
        let (rate, root) = ((f64::from(rate) / corrected(beta1)) as f32, corrected(beta2).sqrt() as f32);
        for (((value, slope), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
            *first = beta1 * *first + (1.0 - beta1) * slope;
            *second = beta2 * *second + (1.0 - beta2) * slope * slope;
            *value -= rate * *first / (second.sqrt() / root + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sgd(momentum: f32, weight_decay: f32, proximal_mu: f32) -> Stepper {
        Stepper::new(Optimizer::sgd(0.5, momentum, weight_decay), proximal_mu, 1)
    }

    #[test]
    fn a_plain_step_moves_against_the_gradient_at_the_scheduled_rate() {
        let mut values = [1.0, -2.0];
        sgd(0.0, 0.0, 0.0).step(0, 1.0, &mut values, &mut [2.0, 4.0], &[], &[]);
        assert_eq!(values, [0.0, -4.0]);
        sgd(0.0, 0.0, 0.0).step(0, 0.5, &mut values, &mut [2.0, 4.0], &[], &[]);
        assert_eq!(values, [-0.5, -5.0]);
    }

    #[test]
    fn momentum_adds_up_over_steps() {
        let (mut optimizer, mut values) = (sgd(0.5, 0.0, 0.0), [0.0]);
        optimizer.step(0, 1.0, &mut values, &mut [1.0], &[], &[]);
        assert_eq!(values, [-0.5]);
        optimizer.step(0, 1.0, &mut values, &mut [1.0], &[], &[]);
        assert_eq!(values, [-1.25]);
    }

    #[test]
    fn weight_decay_pulls_to_zero_and_the_proximal_term_to_the_start() {
        let mut values = [4.0];
        sgd(0.0, 0.5, 0.0).step(0, 1.0, &mut values, &mut [0.0], &[2.0], &[]);
        assert_eq!(values, [3.0]);
        let mut values = [4.0];
        sgd(0.0, 0.0, 0.5).step(0, 1.0, &mut values, &mut [0.0], &[2.0], &[]);
        assert_eq!(values, [3.5]);
    }

    #[test]
    fn the_correction_is_added_to_the_gradient() {
        // y − η(g − c_i + c) = 1 − 0.5 · (2 − 0.5 + 4) and −1 − 0.5 · (1 − 3 + 1); the terms before it still count.
        let (own, server) = ([0.5, 3.0], [4.0, 1.0]);
        let correction = [server[0] - own[0], server[1] - own[1]];
        let mut values = [1.0, -1.0];
        sgd(0.0, 0.0, 0.0).step(0, 1.0, &mut values, &mut [2.0, 1.0], &[], &correction);
        assert_eq!(values, [-1.75, -0.5]);
        let mut values = [4.0];
        sgd(0.0, 0.5, 0.5).step(0, 1.0, &mut values, &mut [1.0], &[2.0], &[-2.0]);
        assert_eq!(values, [3.0]);
    }

    /// Five steps on the gradients w², of torch 2.15 in float64.
    #[test]
    fn each_optimizer_steps_as_pytorchs_does() {
        let adam = |decoupled| Optimizer::Adam {
            learning_rate: 0.1,
            beta1: 0.8,
            beta2: 0.9,
            epsilon: 1e-3,
            weight_decay: 0.1,
            decoupled,
        };
        let nesterov = Optimizer::Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.1, nesterov: true };
        for (optimizer, expected) in [
            (nesterov, [0.011936, -1.015627]),
            (adam(false), [0.520609, -0.994137]),
            (adam(true), [0.486159, -0.962319]),
        ] {
            let (mut stepper, mut values) = (Stepper::new(optimizer, 0.0, 1), [1.0f32, -0.5]);
            for _ in 0..5 {
                let mut gradient = values.map(|value| value * value);
                stepper.begin();
                stepper.step(0, 1.0, &mut values, &mut gradient, &[], &[]);
            }
            assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{optimizer:?}: {values:?}");
        }
    }
}
