//! Translates the federation's wire types into the node's own; wire types end here.
//! A message that can't be translated is an error that names the field; nothing is decided here.

use std::fmt;
use std::sync::Arc;

use fedge_models::{Digest, Manifest};
use fedge_proto::federation::{self as wire, poll_reply, training_plan};
use fedge_proto::model::ModelVersion;

use crate::training::{Loss, Optimizer, Plan};

/// The id that an update or an evaluation answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentId(pub [u8; 16]);

impl fmt::Display for AssignmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AssignmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A model version that the coordinator names.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// The package's manifest: name, number, digest, labels, preprocessing.
    pub manifest: Arc<Manifest>,
    /// Size of the ONNX file.
    pub size_bytes: u64,
}

/// What the node is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Assignment {
    /// Train this version on the local samples and send the update.
    Train {
        /// What the update answers.
        id: AssignmentId,
        /// For logs.
        round: u64,
        /// What to train.
        base: Version,
        /// How; its `threads` are the node's own choice.
        plan: Plan,
    },
    /// Evaluate this version on the held-out part.
    Evaluate {
        /// What the report answers.
        id: AssignmentId,
        /// For logs.
        round: u64,
        /// What to evaluate.
        version: Version,
    },
}

impl Assignment {
    /// What its answer cites.
    pub fn id(&self) -> AssignmentId {
        match self {
            Assignment::Train { id, .. } | Assignment::Evaluate { id, .. } => *id,
        }
    }
}

/// What a poll told.
#[derive(Debug, Clone, PartialEq)]
pub struct Instructions {
    /// To be sent with the next poll.
    pub seen: u64,
    /// Versions to serve, with the accuracy that int8 may lose on each, 0..=1.
    pub serve: Vec<(Version, f64)>,
    /// What to do.
    pub assignment: Option<Assignment>,
}

/// Translates a poll's reply. `threads` is the node's bound on training.
///
/// # Errors
/// A sentence that names the field.
pub fn instructions(reply: wire::PollReply, threads: usize) -> Result<Instructions, String> {
    let serve = reply
        .serve
        .into_iter()
        .map(|s| Ok((version(s.version)?, f64::from(s.int8_tolerance).clamp(0.0, 1.0))))
        .collect::<Result<Vec<_>, String>>()?;
    let assignment = match reply.assignment {
        None => None,
        Some(poll_reply::Assignment::Train(a)) => Some(Assignment::Train {
            id: assignment_id(&a.assignment_id)?,
            round: a.round,
            base: version(a.base)?,
            plan: plan(a.plan.ok_or("the assignment lacks its plan")?, &a.assignment_id, threads)?,
        }),
        Some(poll_reply::Assignment::Evaluate(a)) => Some(Assignment::Evaluate {
            id: assignment_id(&a.assignment_id)?,
            round: a.round,
            version: version(a.version)?,
        }),
    };
    Ok(Instructions { seen: reply.seen, serve, assignment })
}

fn assignment_id(bytes: &[u8]) -> Result<AssignmentId, String> {
    let id = bytes.try_into().map_err(|_| format!("assignment_id has {} bytes, expected 16", bytes.len()))?;
    Ok(AssignmentId(id))
}

fn version(version: Option<ModelVersion>) -> Result<Version, String> {
    let version = version.ok_or("a model version is missing")?;
    let manifest: Manifest =
        serde_json::from_str(&version.manifest).map_err(|e| format!("the manifest of {:?}: {e}", version.name))?;
    let digest = version.digest.as_slice().try_into().map(Digest::from_bytes).ok();
    if digest != Some(manifest.digest) || version.name != manifest.name || version.number != manifest.number {
        return Err(format!("version {} of {:?} is not the one in its manifest", version.number, version.name));
    }
    Ok(Version { manifest: Arc::new(manifest), size_bytes: version.size_bytes })
}

/// A training plan for one assignment.
///
/// # Errors
/// A sentence that names the field.
pub fn plan(plan: wire::TrainingPlan, assignment: &[u8], threads: usize) -> Result<Plan, String> {
    let loss = match plan.loss() {
        wire::Loss::CrossEntropy => Loss::CrossEntropy,
        wire::Loss::Unspecified => return Err(format!("loss {} is unknown to this node", plan.loss)),
    };
    let Some(training_plan::Optimizer::Sgd(sgd)) = plan.optimizer else {
        return Err("the optimizer is unknown to this node".into());
    };
    // Each node and round shuffles its own way: the assignment's id stands for both.
    let mut salt = [0; 8];
    salt.iter_mut().zip(assignment).for_each(|(s, byte)| *s = *byte);
    let plan = Plan {
        loss,
        optimizer: Optimizer::Sgd {
            learning_rate: sgd.learning_rate,
            momentum: sgd.momentum,
            weight_decay: sgd.weight_decay,
        },
        epochs: plan.epochs,
        batch_size: plan.batch_size,
        seed: plan.seed ^ u64::from_le_bytes(salt),
        proximal_mu: plan.proximal_mu,
        threads,
    };
    plan.validate().map_err(|e| e.to_string())?;
    Ok(plan)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod test_assignments {
    use super::*;

    pub(crate) fn version(number: u64) -> Version {
        let digest = Digest::of(&number.to_le_bytes());
        let manifest = Manifest {
            schema: 1,
            name: "digits".into(),
            number,
            digest,
            layout: digest,
            labels: vec![],
            preprocessing: fedge_models::Preprocessing::default(),
            parent: None,
            task: None,
            round: None,
        };
        Version { manifest: Arc::new(manifest), size_bytes: 8 }
    }

    pub(crate) fn wire_version(number: u64) -> ModelVersion {
        let manifest = version(number).manifest;
        ModelVersion {
            name: manifest.name.clone(),
            number,
            digest: manifest.digest.as_bytes().to_vec(),
            size_bytes: 8,
            manifest: serde_json::to_string(&*manifest).unwrap(),
        }
    }

    fn wire_train(number: u8) -> wire::TrainAssignment {
        wire::TrainAssignment {
            assignment_id: vec![number; 16],
            task_id: "t".into(),
            round: 1,
            base: Some(wire_version(number.into())),
            plan: Some(wire::TrainingPlan {
                epochs: 1,
                batch_size: 32,
                seed: 0,
                loss: wire::Loss::CrossEntropy.into(),
                optimizer: Some(training_plan::Optimizer::Sgd(wire::Sgd {
                    learning_rate: 0.1,
                    momentum: 0.0,
                    weight_decay: 0.0,
                })),
                proximal_mu: 0.0,
            }),
            deadline_ms: 1000,
        }
    }

    fn reply(assignment: poll_reply::Assignment) -> wire::PollReply {
        wire::PollReply { seen: 1, serve: vec![], assignment: Some(assignment) }
    }

    pub(crate) fn train(number: u8) -> Assignment {
        instructions(reply(poll_reply::Assignment::Train(wire_train(number))), 1).unwrap().assignment.unwrap()
    }

    pub(crate) fn evaluate(number: u8) -> Assignment {
        let assignment = wire::EvaluateAssignment {
            assignment_id: vec![number; 16],
            task_id: "t".into(),
            round: 1,
            version: Some(wire_version(number.into())),
            deadline_ms: 1000,
        };
        instructions(reply(poll_reply::Assignment::Evaluate(assignment)), 1).unwrap().assignment.unwrap()
    }

    #[test]
    fn messages_that_lack_or_contradict_something_are_refused_by_field() {
        let mut short = wire_train(1);
        short.assignment_id.pop();
        let mut no_plan = wire_train(1);
        no_plan.plan = None;
        let mut other_digest = wire_train(1);
        other_digest.base.as_mut().unwrap().digest[0] ^= 1;
        let mut wild = wire_train(1);
        wild.plan.as_mut().unwrap().epochs = 0;
        for (assignment, text) in
            [(short, "assignment_id"), (no_plan, "plan"), (other_digest, "manifest"), (wild, "epochs")]
        {
            let error = instructions(reply(poll_reply::Assignment::Train(assignment)), 1).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn two_assignments_of_one_plan_shuffle_differently() {
        let seeds = [1, 2].map(|n| match train(n) {
            Assignment::Train { plan, .. } => plan.seed,
            Assignment::Evaluate { .. } => 0,
        });
        assert_ne!(seeds[0], seeds[1]);
    }
}
