//! Translates a training plan of the wire into the trainer's own.
//! Everything else of the federation's wire is in `convert`.

use fedge_models::Selection;
use fedge_proto::federation::{self as wire, training_plan};

use crate::training::{Augmentation, Loss, Objective, Optimizer, Plan, Resources, Schedule};

/// Most characters of patterns, and most class weights.
const MAX_ENTRIES: usize = 65_536;

/// A training plan for one assignment, run with what this node gives.
///
/// # Errors
/// A sentence that names the field.
pub fn plan(plan: wire::TrainingPlan, assignment: &[u8], resources: Resources) -> Result<Plan, String> {
    // Each node and round shuffles its own way: the assignment's id stands for both.
    let mut salt = [0; 8];
    salt.iter_mut().zip(assignment).for_each(|(s, byte)| *s = *byte);
    let schedule = match plan.schedule() {
        wire::Schedule::Unspecified if plan.schedule != 0 => {
            return Err(format!("schedule {} is unknown to this node", plan.schedule));
        }
        wire::Schedule::Unspecified | wire::Schedule::Constant => Schedule::Constant,
        wire::Schedule::Linear => Schedule::Linear,
        wire::Schedule::Cosine => Schedule::Cosine,
    };
    let trained = match (plan.trained.is_empty(), plan.biases_and_norms) {
        (true, false) => Selection::All,
        (true, true) => Selection::BiasesAndNorms,
        (false, true) => return Err("trained names parameters beside biases_and_norms".into()),
        (false, false) if too_long(&plan.trained) => return Err("trained names too many patterns".into()),
        (false, false) => Selection::Named(plan.trained.clone().into()),
    };
    if too_long(&plan.local) {
        return Err("local names too many patterns".into());
    }
    let plan = Plan {
        objective: objective(plan.loss, plan.loss_options.clone())?,
        optimizer: optimizer(&plan)?,
        schedule,
        warmup_steps: plan.warmup_steps,
        clip_norm: plan.clip_norm,
        trained,
        local: plan.local.clone().into(),
        frozen_statistics: plan.frozen_statistics,
        augmentation: Augmentation { flip: plan.flip, crop: plan.crop },
        epochs: plan.epochs,
        batch_size: plan.batch_size,
        seed: plan.seed ^ u64::from_le_bytes(salt),
        proximal_mu: plan.proximal_mu,
        // It needs what the node remembers: `work` puts it in.
        correction: None,
        resources,
    };
    plan.validate().map_err(|e| e.to_string())?;
    Ok(plan)
}

fn too_long(patterns: &[String]) -> bool {
    patterns.len() > MAX_ENTRIES || patterns.iter().map(String::len).sum::<usize>() > MAX_ENTRIES
}

/// By which loss a version is evaluated; coordinators of before say nothing and mean cross-entropy.
pub(super) fn evaluation_objective(loss: i32, options: Option<wire::LossOptions>) -> Result<Objective, String> {
    if loss == 0 { Ok(Loss::CrossEntropy.into()) } else { objective(loss, options) }
}

fn objective(loss: i32, options: Option<wire::LossOptions>) -> Result<Objective, String> {
    let options = options.unwrap_or_default();
    if options.class_weights.len() > MAX_ENTRIES {
        return Err(format!("class_weights has {} entries, above {MAX_ENTRIES}", options.class_weights.len()));
    }
    let loss = match wire::Loss::try_from(loss) {
        Ok(wire::Loss::CrossEntropy) => Loss::CrossEntropy,
        Ok(wire::Loss::BinaryCrossEntropy) => Loss::BinaryCrossEntropy,
        Ok(wire::Loss::MeanSquaredError) => Loss::MeanSquaredError,
        Ok(wire::Loss::MeanAbsoluteError) => Loss::MeanAbsoluteError,
        Ok(wire::Loss::Huber) => Loss::Huber { delta: options.huber_delta },
        Ok(wire::Loss::Unspecified) | Err(_) => return Err(format!("loss {loss} is unknown to this node")),
    };
    Ok(Objective {
        loss,
        label_smoothing: options.label_smoothing,
        class_weights: (!options.class_weights.is_empty()).then(|| options.class_weights.into()),
    })
}

fn optimizer(plan: &wire::TrainingPlan) -> Result<Optimizer, String> {
    match plan.optimizer {
        Some(training_plan::Optimizer::Sgd(sgd)) => Ok(Optimizer::Sgd {
            learning_rate: sgd.learning_rate,
            momentum: sgd.momentum,
            weight_decay: sgd.weight_decay,
            nesterov: sgd.nesterov,
        }),
        Some(training_plan::Optimizer::Adam(adam)) => Ok(Optimizer::Adam {
            learning_rate: adam.learning_rate,
            beta1: adam.beta1,
            beta2: adam.beta2,
            epsilon: adam.epsilon,
            weight_decay: adam.weight_decay,
            decoupled: adam.decoupled,
        }),
        None => Err("the optimizer is unknown to this node".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::training::Device;

    fn sent() -> wire::TrainingPlan {
        wire::TrainingPlan {
            epochs: 1,
            batch_size: 8,
            loss: wire::Loss::Huber.into(),
            loss_options: Some(wire::LossOptions { huber_delta: 0.5, ..Default::default() }),
            optimizer: Some(training_plan::Optimizer::Adam(wire::Adam {
                learning_rate: 0.1,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                weight_decay: 0.0,
                decoupled: true,
            })),
            schedule: wire::Schedule::Cosine.into(),
            trained: vec!["fc*".into()],
            flip: true,
            crop: 4,
            ..Default::default()
        }
    }

    #[test]
    fn every_option_arrives() {
        let resources = Resources { threads: 2, device: Device::Gpu };
        let found = plan(sent(), &[], resources).unwrap();
        assert_eq!(found.objective.loss, Loss::Huber { delta: 0.5 });
        assert!(matches!(found.optimizer, Optimizer::Adam { decoupled: true, .. }));
        assert_eq!(found.augmentation, Augmentation { flip: true, crop: 4 });
        assert_eq!((found.schedule, found.resources), (Schedule::Cosine, resources));
        assert_eq!(found.trained, Selection::Named(["fc*".to_owned()].into()));
    }

    #[test]
    fn what_this_node_does_not_know_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut wire::TrainingPlan)| {
            let mut sent = sent();
            change(&mut sent);
            plan(sent, &[], Resources::default()).unwrap_err()
        };
        assert!(refused(&|plan| plan.loss = 99).contains("loss 99"));
        assert!(refused(&|plan| plan.schedule = 99).contains("schedule 99"));
        assert!(refused(&|plan| plan.optimizer = None).contains("optimizer"));
        assert!(refused(&|plan| plan.biases_and_norms = true).contains("biases_and_norms"));
        assert!(evaluation_objective(0, None).unwrap() == Loss::CrossEntropy.into());
    }
}
