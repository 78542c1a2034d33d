//! A task's training plan as the wire tells it to nodes.
//! Everything else of the rounds' wire is in `convert`.

use fedge_proto::federation::{self as wire, training_plan};

use super::super::state::TaskState;
use super::super::task::TaskSpec;
use super::super::training::{Group, Loss, OptimizerName, Schedule, Trained};
use super::wire_coding;

/// A task's training plan as nodes get it in this state.
pub fn training_plan(spec: &TaskSpec, state: &TaskState) -> wire::TrainingPlan {
    // Before the first round the server's control variate is all zeros, and there is no file.
    let control = spec.strategy.client().control_variates.then(|| match &state.server {
        Some(server) => {
            wire::ControlVariate { digest: server.digest.as_bytes().to_vec(), size_bytes: server.size_bytes }
        }
        None => wire::ControlVariate::default(),
    });
    wire::TrainingPlan { control, ..training_plan_of(spec) }
}

/// What a task's file says of training, without the server's control variate.
pub fn training_plan_of(spec: &TaskSpec) -> wire::TrainingPlan {
    let (plan, client) = (&spec.training, spec.strategy.client());
    let schedule = match plan.schedule {
        Schedule::Constant => wire::Schedule::Constant,
        Schedule::Linear => wire::Schedule::Linear,
        Schedule::Cosine => wire::Schedule::Cosine,
    };
    let (trained, biases_and_norms) = match &plan.trained {
        Trained::Group(group) => (Vec::new(), *group == Group::BiasesAndNorms),
        Trained::Patterns(patterns) => (patterns.clone(), false),
    };
    wire::TrainingPlan {
        epochs: plan.epochs,
        batch_size: plan.batch_size,
        seed: plan.seed,
        loss: loss(spec).into(),
        optimizer: Some(optimizer(spec)),
        proximal_mu: plan.proximal_mu,
        coding: Some(wire_coding(&spec.updates.coding())),
        accept_partial: client.accept_partial,
        loss_base: client.loss_base,
        control: None,
        loss_options: Some(loss_options(spec)),
        schedule: schedule.into(),
        warmup_steps: plan.warmup_steps,
        clip_norm: plan.clip_norm,
        trained,
        biases_and_norms,
        frozen_statistics: plan.frozen_statistics,
        local: plan.local.clone(),
        flip: plan.flip,
        crop: plan.crop,
    }
}

/// What a task minimises.
pub(super) fn loss(spec: &TaskSpec) -> wire::Loss {
    match spec.training.loss {
        Loss::CrossEntropy => wire::Loss::CrossEntropy,
        Loss::BinaryCrossEntropy => wire::Loss::BinaryCrossEntropy,
        Loss::MeanSquaredError => wire::Loss::MeanSquaredError,
        Loss::MeanAbsoluteError => wire::Loss::MeanAbsoluteError,
        Loss::Huber => wire::Loss::Huber,
    }
}

/// The loss's options.
pub(super) fn loss_options(spec: &TaskSpec) -> wire::LossOptions {
    wire::LossOptions {
        huber_delta: spec.training.huber_delta,
        label_smoothing: spec.training.label_smoothing,
        class_weights: spec.training.class_weights.clone(),
    }
}

fn optimizer(spec: &TaskSpec) -> training_plan::Optimizer {
    let plan = &spec.training;
    let adam = |decoupled| {
        training_plan::Optimizer::Adam(wire::Adam {
            learning_rate: plan.learning_rate,
            beta1: plan.beta1,
            beta2: plan.beta2,
            epsilon: plan.epsilon,
            weight_decay: plan.weight_decay,
            decoupled,
        })
    };
    match plan.optimizer {
        OptimizerName::Adam => adam(false),
        OptimizerName::Adamw => adam(true),
        OptimizerName::Sgd => training_plan::Optimizer::Sgd(wire::Sgd {
            learning_rate: plan.learning_rate,
            momentum: plan.momentum,
            weight_decay: plan.weight_decay,
            nesterov: plan.nesterov,
        }),
    }
}
