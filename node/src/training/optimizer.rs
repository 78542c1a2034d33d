//! Stochastic gradient descent with momentum, weight decay, FedProx's proximal term and SCAFFOLD's correction.
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

    /// Steps one parameter in place, with its gradient as scratch. `start` are its values at the beginning of the run
    /// (FedProx's w₀), looked at where μ is not 0; `correction` is SCAFFOLD's c − c_i, or empty. The other slices have
    /// one length.
    ///
    /// g ← g + λw + μ(w − w₀) + (c − c_i); v ← βv + g, or g on the first step; w ← w − ηv.
    pub(super) fn step(
        &mut self,
        index: usize,
        values: &mut [f32],
        gradient: &mut [f32],
        start: &[f32],
        correction: &[f32],
    ) {
        let &mut Sgd { learning_rate, momentum, weight_decay, proximal_mu, .. } = self;
        // A loop a term: each is as fast as memory, and a run without extras pays for none.
        if weight_decay != 0.0 {
            gradient.iter_mut().zip(&*values).for_each(|(slope, value)| *slope += weight_decay * value);
        }
        if proximal_mu != 0.0 {
            let moved = values.iter().zip(start).map(|(value, start)| value - start);
            gradient.iter_mut().zip(moved).for_each(|(slope, moved)| *slope += proximal_mu * moved);
        }
        gradient.iter_mut().zip(correction).for_each(|(slope, correction)| *slope += correction);
        let Some(velocity) = self.velocities.get_mut(index).filter(|_| momentum != 0.0) else {
            values.iter_mut().zip(&*gradient).for_each(|(value, slope)| *value -= learning_rate * slope);
            return;
        };
        // Momentum times zero plus the slope is the slope: an empty velocity starts as zeros, as torch's first step does.
        velocity.resize(values.len(), 0.0);
        for ((value, slope), velocity) in values.iter_mut().zip(&*gradient).zip(velocity) {
            *velocity = momentum * *velocity + slope;
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
        sgd(0.0, 0.0, 0.0).step(0, &mut values, &mut [2.0, 4.0], &[], &[]);
        assert_eq!(values, [0.0, -4.0]);
    }

    #[test]
    fn momentum_adds_up_over_steps() {
        let (mut optimizer, mut values) = (sgd(0.5, 0.0, 0.0), [0.0]);
        optimizer.step(0, &mut values, &mut [1.0], &[], &[]);
        assert_eq!(values, [-0.5]);
        optimizer.step(0, &mut values, &mut [1.0], &[], &[]);
        assert_eq!(values, [-1.25]);
    }

    #[test]
    fn weight_decay_pulls_to_zero_and_the_proximal_term_to_the_start() {
        let mut values = [4.0];
        sgd(0.0, 0.5, 0.0).step(0, &mut values, &mut [0.0], &[2.0], &[]);
        assert_eq!(values, [3.0]);
        let mut values = [4.0];
        sgd(0.0, 0.0, 0.5).step(0, &mut values, &mut [0.0], &[2.0], &[]);
        assert_eq!(values, [3.5]);
    }

    #[test]
    fn the_correction_is_added_to_the_gradient() {
        // y − η(g − c_i + c) = 1 − 0.5 · (2 − 0.5 + 4) and −1 − 0.5 · (1 − 3 + 1); the terms before it still count.
        let (own, server) = ([0.5, 3.0], [4.0, 1.0]);
        let correction = [server[0] - own[0], server[1] - own[1]];
        let mut values = [1.0, -1.0];
        sgd(0.0, 0.0, 0.0).step(0, &mut values, &mut [2.0, 1.0], &[], &correction);
        assert_eq!(values, [-1.75, -0.5]);
        let mut values = [4.0];
        sgd(0.0, 0.5, 0.5).step(0, &mut values, &mut [1.0], &[2.0], &[-2.0]);
        assert_eq!(values, [3.0]);
    }
}
