//! Translates the federation's wire types into the node's own; wire types end here.
//! A message that can't be translated is an error that names the field; nothing is decided here. Plans: `convert_plan`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fedge_models::package::check_name;
use fedge_models::{Digest, Manifest};
use fedge_proto::federation::{self as wire, poll_reply};
use fedge_proto::model::ModelVersion;
use fedge_proto::update::{Coding, Encoding};

use super::pacing::Deadline;
use crate::training::{Objective, Plan, Resources};

#[path = "convert_plan.rs"]
mod plan;

pub use plan::plan;

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
        /// Whose work it is: what an update leaves behind is remembered for its task.
        task: String,
        /// For logs.
        round: u64,
        /// What to train.
        base: Version,
        /// How; its `resources` are the node's own choice.
        plan: Box<Plan>,
        /// What is sent.
        terms: Terms,
        /// Until when.
        deadline: Deadline,
    },
    /// Evaluate this version on the held-out part.
    Evaluate {
        /// What the report answers.
        id: AssignmentId,
        /// For logs.
        round: u64,
        /// What to evaluate.
        version: Version,
        /// By which loss.
        objective: Objective,
    },
}

/// What a task asks of an update beside the training itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// How the payload is written.
    pub coding: Coding,
    /// Whether training ends before the deadline with what it has then, instead of coming too late.
    pub accept_partial: bool,
    /// Whether the base's mean loss on the training samples is reported (q-FedAvg).
    pub loss_base: bool,
    /// SCAFFOLD: the server's control variate.
    pub control: Option<Control>,
}

/// SCAFFOLD's c: a file of little-endian float32, one an exchanged parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// All zeros: before the first round.
    Zeros,
    /// The file of this digest.
    File {
        /// SHA-256 of the file.
        digest: Digest,
        /// Its length.
        size_bytes: u64,
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

/// Translates a poll's reply, which came at `received`. `resources` are what the node gives to training.
///
/// # Errors
/// A sentence that names the field.
pub fn instructions(reply: wire::PollReply, resources: Resources, received: Instant) -> Result<Instructions, String> {
    let serve = reply
        .serve
        .into_iter()
        .map(|s| Ok((version(s.version)?, f64::from(s.int8_tolerance).clamp(0.0, 1.0))))
        .collect::<Result<Vec<_>, String>>()?;
    let assignment = match reply.assignment {
        None => None,
        Some(poll_reply::Assignment::Train(a)) => Some(train(a, resources, received)?),
        Some(poll_reply::Assignment::Evaluate(a)) => Some(Assignment::Evaluate {
            id: assignment_id(&a.assignment_id)?,
            round: a.round,
            version: version(a.version)?,
            objective: plan::evaluation_objective(a.loss, a.loss_options)?,
        }),
    };
    Ok(Instructions { seen: reply.seen, serve, assignment })
}

/// An encoding as it is announced.
pub fn wire_coding(coding: &Coding) -> wire::Coding {
    let encoding = match coding.encoding {
        Encoding::F32 => wire::Encoding::F32,
        Encoding::F16 => wire::Encoding::F16,
        Encoding::Int8 => wire::Encoding::Int8,
        Encoding::TopK => wire::Encoding::TopK,
    };
    wire::Coding { encoding: encoding.into(), top_k: coding.top_k, zstd: coding.zstd }
}

fn train(train: wire::TrainAssignment, resources: Resources, received: Instant) -> Result<Assignment, String> {
    let wire_plan = train.plan.ok_or("the assignment lacks its plan")?;
    Ok(Assignment::Train {
        id: assignment_id(&train.assignment_id)?,
        task: task(train.task_id)?,
        round: train.round,
        base: version(train.base)?,
        terms: terms(&wire_plan)?,
        plan: Box::new(plan(wire_plan, &train.assignment_id, resources)?),
        deadline: Deadline::new(received, Duration::from_millis(train.deadline_ms)),
    })
}

/// The task's id names files of this node.
fn task(id: String) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=128).contains(&id.len()) && id.bytes().all(allowed) && !id.starts_with('.') {
        return Ok(id);
    }
    let shown: String = id.chars().take(80).collect();
    Err(format!("task_id {shown:?} is not 1 to 128 of a-z, A-Z, 0-9, '.', '_' and '-' that begin with no '.'"))
}

/// What a plan says about what is sent.
///
/// # Errors
/// A sentence that names the field.
pub fn terms(plan: &wire::TrainingPlan) -> Result<Terms, String> {
    let wire = plan.coding.ok_or("the plan lacks its coding")?;
    let encoding = match wire.encoding() {
        wire::Encoding::F32 => Encoding::F32,
        wire::Encoding::F16 => Encoding::F16,
        wire::Encoding::Int8 => Encoding::Int8,
        wire::Encoding::TopK => Encoding::TopK,
        wire::Encoding::Unspecified => return Err(format!("encoding {} is unknown to this node", wire.encoding)),
    };
    let coding = Coding { encoding, top_k: wire.top_k, zstd: wire.zstd };
    coding.validate().map_err(|e| e.to_string())?;
    let control = match &plan.control {
        None => None,
        Some(control) if control.digest.is_empty() => Some(Control::Zeros),
        Some(control) => {
            let digest = control.digest.as_slice().try_into().map(Digest::from_bytes);
            let digest = digest
                .map_err(|_| format!("control.digest has {} bytes, expected 32 or none", control.digest.len()))?;
            Some(Control::File { digest, size_bytes: control.size_bytes })
        }
    };
    Ok(Terms { coding, accept_partial: plan.accept_partial, loss_base: plan.loss_base, control })
}

fn assignment_id(bytes: &[u8]) -> Result<AssignmentId, String> {
    let id = bytes.try_into().map_err(|_| format!("assignment_id has {} bytes, expected 16", bytes.len()))?;
    Ok(AssignmentId(id))
}

fn version(version: Option<ModelVersion>) -> Result<Version, String> {
    let version = version.ok_or("a model version is missing")?;
    let manifest: Manifest =
        serde_json::from_str(&version.manifest).map_err(|e| format!("the manifest of {:?}: {e}", version.name))?;
    // It names a folder of this node.
    check_name(&manifest.name).map_err(|problem| format!("the manifest of a version: {problem}"))?;
    let digest = version.digest.as_slice().try_into().map(Digest::from_bytes).ok();
    if digest != Some(manifest.digest) || version.name != manifest.name || version.number != manifest.number {
        return Err(format!("version {} of {:?} is not the one in its manifest", version.number, version.name));
    }
    Ok(Version { manifest: Arc::new(manifest), size_bytes: version.size_bytes })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod test_assignments {
    use std::sync::LazyLock;

    use super::*;

    /// One time for all, so that equal assignments are equal.
    static RECEIVED: LazyLock<Instant> = LazyLock::new(Instant::now);

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

    pub(crate) fn wire_train(number: u8) -> wire::TrainAssignment {
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
                optimizer: Some(wire::training_plan::Optimizer::Sgd(wire::Sgd {
                    learning_rate: 0.1,
                    momentum: 0.0,
                    ..Default::default()
                })),
                coding: Some(wire::Coding { encoding: wire::Encoding::F32.into(), top_k: 0.0, zstd: false }),
                ..Default::default()
            }),
            deadline_ms: 1000,
        }
    }

    fn of(assignment: poll_reply::Assignment) -> Result<Assignment, String> {
        let reply = wire::PollReply { seen: 1, serve: vec![], assignment: Some(assignment) };
        instructions(reply, Resources::default(), *RECEIVED).map(|i| i.assignment.unwrap())
    }

    pub(crate) fn train(number: u8) -> Assignment {
        of(poll_reply::Assignment::Train(wire_train(number))).unwrap()
    }

    pub(crate) fn wire_evaluate(number: u8) -> wire::EvaluateAssignment {
        wire::EvaluateAssignment {
            assignment_id: vec![number; 16],
            task_id: "t".into(),
            round: 1,
            version: Some(wire_version(number.into())),
            deadline_ms: 1000,
            loss: 0,
            loss_options: None,
        }
    }

    pub(crate) fn evaluate(number: u8) -> Assignment {
        of(poll_reply::Assignment::Evaluate(wire_evaluate(number))).unwrap()
    }

    #[test]
    fn messages_that_lack_or_contradict_something_are_refused_by_field() {
        type Change = fn(&mut wire::TrainAssignment);
        let plan =
            |change: fn(&mut wire::TrainingPlan)| move |a: &mut wire::TrainAssignment| change(a.plan.as_mut().unwrap());
        let refused = |text: &str, change: &dyn Fn(&mut wire::TrainAssignment)| {
            let mut assignment = wire_train(1);
            change(&mut assignment);
            let error = of(poll_reply::Assignment::Train(assignment)).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        };
        let whole: [(&str, Change); 6] = [
            ("assignment_id", |a| _ = a.assignment_id.pop()),
            ("plan", |a| a.plan = None),
            ("manifest", |a| a.base.as_mut().unwrap().digest[0] ^= 1),
            ("task_id", |a| a.task_id = "../a".into()),
            ("task_id", |a| a.task_id.clear()),
            ("a-z", |a| {
                let base = a.base.as_mut().unwrap();
                (base.name, base.manifest) = ("../a".into(), base.manifest.replace("\"digits\"", "\"../a\""));
            }),
        ];
        whole.iter().for_each(|(text, change)| refused(text, change));
        refused("epochs", &plan(|p| p.epochs = 0));
        refused("coding", &plan(|p| p.coding = None));
        refused("encoding 9", &plan(|p| p.coding.as_mut().unwrap().encoding = 9));
        refused("top_k", &plan(|p| p.coding.as_mut().unwrap().encoding = wire::Encoding::TopK.into()));
        refused(
            "control.digest",
            &plan(|p| p.control = Some(wire::ControlVariate { digest: vec![1; 31], size_bytes: 4 })),
        );
    }

    #[test]
    fn every_coding_is_announced_as_it_was_asked_for_and_an_empty_control_variate_is_zeros() {
        for encoding in [wire::Encoding::F32, wire::Encoding::F16, wire::Encoding::Int8, wire::Encoding::TopK] {
            let asked = wire::Coding { encoding: encoding.into(), top_k: 0.25, zstd: true };
            let mut assignment = wire_train(1);
            let plan = assignment.plan.as_mut().unwrap();
            (plan.coding, plan.control) = (Some(asked), Some(wire::ControlVariate::default()));
            let Assignment::Train { terms, .. } = of(poll_reply::Assignment::Train(assignment)).unwrap() else {
                unreachable!()
            };
            assert_eq!((wire_coding(&terms.coding), terms.control), (asked, Some(Control::Zeros)));
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
