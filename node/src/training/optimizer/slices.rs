//! Steps in place on plain numbers. All slices of one parameter have one length; an empty term is none.

use super::{Now, Optimizer};

/// g ← g + λw + μ(w − w₀) + (c − c_i); a decoupled λ takes ηλw off the weights.
pub(super) fn add_terms(now: &Now, values: &mut [f32], gradient: &mut [f32], start: &[f32], correction: &[f32]) {
    let (decay, decoupled) = now.decay();
    // A loop a term: each is as fast as memory, and a run without extras pays for none.
    if decoupled && decay != 0.0 {
        let kept = 1.0 - now.rate() * decay;
        values.iter_mut().for_each(|value| *value *= kept);
    } else if decay != 0.0 {
        gradient.iter_mut().zip(&*values).for_each(|(slope, value)| *slope += decay * value);
    }
    if now.proximal_mu != 0.0 {
        let moved = values.iter().zip(start).map(|(value, start)| value - start);
        gradient.iter_mut().zip(moved).for_each(|(slope, moved)| *slope += now.proximal_mu * moved);
    }
    gradient.iter_mut().zip(correction).for_each(|(slope, correction)| *slope += correction);
}

/// Plain descent.
pub(super) fn descend(now: &Now, values: &mut [f32], gradient: &[f32]) {
    let rate = now.rate();
    values.iter_mut().zip(gradient).for_each(|(value, slope)| *value -= rate * slope);
}

/// Descent with momentum.
pub(super) fn roll(now: &Now, values: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
    let (rate, Optimizer::Sgd { momentum, nesterov, .. }) = (now.rate(), now.optimizer) else { return };
    for ((value, slope), velocity) in values.iter_mut().zip(gradient).zip(velocity) {
        *velocity = momentum * *velocity + slope;
        *value -= rate * if nesterov { slope + momentum * *velocity } else { *velocity };
    }
}

/// Adam.
pub(super) fn adapt(now: &Now, values: &mut [f32], gradient: &[f32], (first, second): (&mut [f32], &mut [f32])) {
    let Optimizer::Adam { beta1, beta2, epsilon, .. } = now.optimizer else { return };
    let (rate, root) = now.unbiased(beta1, beta2);
    for (((value, slope), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
        *first = beta1 * *first + (1.0 - beta1) * slope;
        *second = beta2 * *second + (1.0 - beta2) * slope * slope;
        *value -= rate * *first / (second.sqrt() / root + epsilon);
    }
}
