//! Translates between the wire's types and the rounds' own. Wire types end here.
//! Nothing is decided here: a message that can't be translated is refused with what is wrong in it. Plans are in `plan`.

use fedge_models::Digest;
use fedge_proto::federation::{
    self as wire, EvaluateAssignment, PollReply, ServeInstruction, TrainAssignment, poll_reply,
};
use fedge_proto::model::ModelVersion;
use fedge_proto::operators::{NodeRound, RoundSummary, Task};
use fedge_proto::update::{Coding, Encoding};

use super::board::{Board, TaskView};
use super::state::{
    AssignmentId, CheckStatus, Evaluation, Phase, RoundOutcome, TaskOutcome, TrainedUpdate, WorkStatus,
};
use super::task::TaskSpec;
use crate::aggregate::fixed_point::MAX_EXAMPLES;
use crate::registry::nodes::NodeServing;
use crate::store::models::ModelRow;
use crate::store::tasks::{RoundRow, TaskRow};

mod plan;

pub use plan::{training_plan, training_plan_of};

/// Longest text that a node may send along (a reason, an address).
const MAX_TEXT: usize = 1000;

/// The first message of an upload.
#[derive(Debug, Clone)]
pub struct Begin {
    /// What it answers.
    pub assignment: AssignmentId,
    /// The version that was trained.
    pub base: Digest,
    /// The parameter layout of the deltas.
    pub layout: Digest,
    /// How the values are written.
    pub coding: Coding,
    /// Where the chunks begin.
    pub offset: u64,
    /// Size, digest, weight and metrics; its norm is not known yet.
    pub update: TrainedUpdate,
}

/// Checks the first message of an upload.
///
/// # Errors
/// A sentence that names the field.
pub fn begin(message: wire::UploadBegin) -> Result<Begin, String> {
    let coding = message.coding.ok_or("the upload does not say its coding")?;
    if message.examples == 0 || message.examples > MAX_EXAMPLES {
        return Err(format!("examples = {}: an update's weight is 1 to {MAX_EXAMPLES}", message.examples));
    }
    let metrics = message.metrics.unwrap_or_default();
    let losses = [Some(metrics.loss_first), Some(metrics.loss_last), metrics.loss_base];
    if losses.iter().flatten().any(|loss| !loss.is_finite()) {
        return Err("the training loss is not finite".into());
    }
    Ok(Begin {
        assignment: assignment(&message.assignment_id)?,
        base: digest("base", &message.base)?,
        layout: digest("layout", &message.layout)?,
        coding: coding_of(&coding)?,
        offset: message.offset,
        update: TrainedUpdate {
            examples: message.examples,
            sha256: sha256(&message.sha256)?,
            bytes: message.size_bytes,
            steps: metrics.steps,
            loss_first: metrics.loss_first,
            loss_last: metrics.loss_last,
            duration_ms: metrics.duration_ms,
            loss_base: metrics.loss_base,
            partial: metrics.partial,
            squared_norm: 0.0,
        },
    })
}

fn coding_of(coding: &wire::Coding) -> Result<Coding, String> {
    let encoding = match coding.encoding() {
        wire::Encoding::F32 => Encoding::F32,
        wire::Encoding::F16 => Encoding::F16,
        wire::Encoding::Int8 => Encoding::Int8,
        wire::Encoding::TopK => Encoding::TopK,
        wire::Encoding::Unspecified => return Err(format!("encoding {} is unknown here", coding.encoding)),
    };
    Ok(Coding { encoding, top_k: coding.top_k, zstd: coding.zstd })
}

fn wire_coding(coding: &Coding) -> wire::Coding {
    let encoding = match coding.encoding {
        Encoding::F32 => wire::Encoding::F32,
        Encoding::F16 => wire::Encoding::F16,
        Encoding::Int8 => wire::Encoding::Int8,
        Encoding::TopK => wire::Encoding::TopK,
    };
    wire::Coding { encoding: encoding.into(), top_k: coding.top_k, zstd: coding.zstd }
}

/// A failure of the store, as a status.
pub fn unavailable(error: impl std::fmt::Display) -> tonic::Status {
    tracing::error!(%error, "store");
    tonic::Status::unavailable(format!("the coordinator's store failed: {error}"))
}

/// Checks a node's evaluation.
///
/// # Errors
/// A sentence that names the field.
pub fn evaluation(message: &wire::EvaluationReport) -> Result<(AssignmentId, Evaluation), String> {
    let id = assignment(&message.assignment_id)?;
    if message.correct_float > message.examples || message.correct_served > message.examples {
        return Err(format!("more right answers than the {} examples", message.examples));
    }
    if !message.loss.is_finite() {
        return Err("the evaluation loss is not finite".into());
    }
    if message.precision != "int8" && message.precision != "float" {
        return Err(format!("precision {:?} is neither \"int8\" nor \"float\"", text(&message.precision)));
    }
    let evaluation = Evaluation {
        examples: message.examples,
        correct_float: message.correct_float,
        correct_served: message.correct_served,
        loss: message.loss,
        precision: message.precision.clone(),
    };
    Ok((id, evaluation))
}

/// An assignment id of the wire.
///
/// # Errors
/// A sentence with the length that came.
pub fn assignment(bytes: &[u8]) -> Result<AssignmentId, String> {
    let id = bytes.try_into().map_err(|_| format!("assignment_id has {} bytes, expected 16", bytes.len()))?;
    Ok(AssignmentId(id))
}

/// A SHA-256 of the wire.
///
/// # Errors
/// A sentence with the length that came.
pub fn sha256(bytes: &[u8]) -> Result<[u8; 32], String> {
    bytes.try_into().map_err(|_| format!("sha256 has {} bytes, expected 32", bytes.len()))
}

/// A model or layout digest of the wire.
///
/// # Errors
/// A sentence that names the field.
pub fn digest(field: &str, bytes: &[u8]) -> Result<Digest, String> {
    let bytes = bytes.try_into().map_err(|_| format!("{field} has {} bytes, expected 32", bytes.len()))?;
    Ok(Digest::from_bytes(bytes))
}

/// Text of the wire, cut to what logs and tables can bear.
pub fn text(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

/// What a node says that it serves.
pub fn serving(status: wire::ServingStatus) -> NodeServing {
    NodeServing {
        model: text(&status.model_name),
        number: status.number,
        precision: text(&status.precision),
        float_reason: text(&status.float_reason),
        training_samples: status.training_samples,
        held_out_samples: status.held_out_samples,
        drift: text(&status.drift),
        drift_alarms: status.drift_alarms,
    }
}

/// A version as the wire names it.
pub fn model_version(row: &ModelRow) -> ModelVersion {
    ModelVersion {
        name: row.manifest.name.clone(),
        number: row.manifest.number,
        digest: row.manifest.digest.as_bytes().to_vec(),
        size_bytes: row.size_bytes,
        manifest: row.manifest_json.clone(),
    }
}

/// What a node has to serve and to do, by the board.
pub fn poll_reply(board: &Board, node: &str, now_ms: u64) -> PollReply {
    let serve = board.serve.iter().map(|(row, int8_tolerance)| ServeInstruction {
        version: Some(model_version(row)),
        int8_tolerance: *int8_tolerance,
    });
    // Of several tasks the round that began first is worked on first, so that none takes another's node away.
    let assignments = board.tasks.iter().filter_map(|(id, task)| {
        let assignment = assignment_of(board, id, task, node, now_ms)?;
        Some((task.state.phase.started_ms()?, id, assignment))
    });
    let assignment = assignments.min_by_key(|(started_ms, id, _)| (*started_ms, *id)).map(|(.., a)| a);
    let mut reply = PollReply { seen: 0, serve: serve.collect(), assignment };
    reply.seen = fingerprint(&reply);
    reply
}

fn assignment_of(
    board: &Board,
    task_id: &str,
    task: &TaskView,
    node: &str,
    now_ms: u64,
) -> Option<poll_reply::Assignment> {
    let now = |deadline_ms: u64| deadline_ms.saturating_sub(now_ms);
    if let Some((id, work)) = task.state.training_of(node) {
        let deadline_ms = match (&task.state.phase, task.spec.strategy.client().asynchronous) {
            (Phase::Training { deadline_ms, .. }, None) => *deadline_ms,
            _ => work.issued_ms.saturating_add(task.spec.rounds.deadline_s.saturating_mul(1000)),
        };
        return Some(poll_reply::Assignment::Train(TrainAssignment {
            assignment_id: id.0.to_vec(),
            task_id: task_id.to_owned(),
            round: task.state.round,
            base: Some(model_version(board.row(work.base.digest)?)),
            plan: Some(training_plan(&task.spec, &task.state)),
            deadline_ms: now(deadline_ms),
        }));
    }
    let id = task.state.evaluation_of(node)?;
    let Phase::Evaluating { deadline_ms, .. } = task.state.phase else { return None };
    Some(poll_reply::Assignment::Evaluate(EvaluateAssignment {
        assignment_id: id.0.to_vec(),
        task_id: task_id.to_owned(),
        round: task.state.round,
        version: Some(model_version(board.row(task.state.base.digest)?)),
        deadline_ms: now(deadline_ms),
        loss: plan::loss(&task.spec).into(),
        loss_options: Some(plan::loss_options(&task.spec)),
    }))
}

/// Changes when the reply says something new; the time left is no news.
fn fingerprint(reply: &PollReply) -> u64 {
    let mut parts: Vec<u8> = Vec::new();
    for instruction in &reply.serve {
        parts.extend(instruction.version.iter().flat_map(|v| v.digest.iter().copied()));
        parts.extend(instruction.int8_tolerance.to_le_bytes());
    }
    match &reply.assignment {
        Some(poll_reply::Assignment::Train(a)) => parts.extend(&a.assignment_id),
        Some(poll_reply::Assignment::Evaluate(a)) => parts.extend(&a.assignment_id),
        None => {}
    }
    let digest = Digest::of(&parts);
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    // 0 stands for "nothing seen yet".
    u64::from_le_bytes(first).max(1)
}

/// A task as operators see it.
pub fn task(row: &TaskRow, rounds: &[RoundRow], refused: std::collections::BTreeMap<String, u64>, now_ms: u64) -> Task {
    let spec = TaskSpec::parse(&row.specification).ok();
    let state = match &row.state.phase {
        Phase::Ended { outcome: TaskOutcome::Finished } => "finished",
        Phase::Ended { outcome: TaskOutcome::Cancelled } => "cancelled",
        _ if row.state.paused => "paused",
        _ => "running",
    };
    Task {
        id: row.state.task_id.clone(),
        specification: row.specification.clone(),
        model_name: spec.as_ref().map(|s| s.model.clone()).unwrap_or_default(),
        state: state.to_owned(),
        rounds_done: rounds.len() as u64,
        rounds_total: spec.as_ref().map_or(0, |s| s.rounds.count),
        newest_version: row.state.base.number,
        status: spec.map_or_else(String::new, |s| super::status::describe(&s, &row.state, now_ms)),
        rounds: rounds.iter().map(round_summary).collect(),
        refused,
        created_ms: row.created_ms,
    }
}

/// What a running task waits for, in words; none: it does not run.
pub fn status(board: &Board, id: &str, now_ms: u64) -> Option<String> {
    let task = board.tasks.get(id)?;
    Some(super::status::describe(&task.spec, &task.state, now_ms))
}

/// A finished round as operators see it.
pub fn round_summary(row: &RoundRow) -> RoundSummary {
    let record = &row.record;
    let (outcome, reason, version) = match &record.outcome {
        RoundOutcome::Aggregated(version) => ("aggregated", String::new(), Some(version)),
        RoundOutcome::Failed(reason) => ("failed", reason.clone(), None),
    };
    let done: Vec<&Evaluation> = record
        .checks
        .values()
        .filter_map(|(_, status)| match status {
            CheckStatus::Done(evaluation) => Some(evaluation),
            _ => None,
        })
        .collect();
    let examples: u64 = done.iter().map(|e| e.examples).sum();
    let loss: f64 = done.iter().map(|e| f64::from(e.loss) * e.examples as f64).sum();
    RoundSummary {
        round: record.round,
        outcome: outcome.to_owned(),
        reason,
        version: version.map_or(0, |v| v.number),
        digest: version.map(|v| v.digest.as_bytes().to_vec()).unwrap_or_default(),
        nodes: node_rounds(row),
        duration_ms: record.duration_ms,
        bytes_up: row.bytes_up,
        bytes_down: row.bytes_down,
        evaluated_examples: examples,
        correct_float: done.iter().map(|e| e.correct_float).sum(),
        correct_served: done.iter().map(|e| e.correct_served).sum(),
        loss: if examples == 0 { 0.0 } else { loss / examples as f64 },
    }
}

fn node_rounds(row: &RoundRow) -> Vec<NodeRound> {
    let record = &row.record;
    let newest = match &record.outcome {
        RoundOutcome::Aggregated(version) => version.number,
        RoundOutcome::Failed(_) => 0,
    };
    let mut rows = Vec::new();
    for work in record.work.values() {
        let mut entry = NodeRound { node: work.node.clone(), ..NodeRound::default() };
        entry.staleness = newest.saturating_sub(work.base.number + 1);
        match &work.status {
            WorkStatus::Trained(update) => {
                entry.outcome = if update.partial { "partial" } else { "trained" }.into();
                entry.examples = update.examples;
                entry.steps = update.steps;
                entry.loss_first = update.loss_first;
                entry.loss_last = update.loss_last;
                entry.duration_ms = update.duration_ms;
            }
            WorkStatus::Declined(reason) => {
                entry.outcome = "declined".into();
                entry.reason.clone_from(reason);
            }
            WorkStatus::Lost => entry.outcome = "lost".into(),
            WorkStatus::Assigned => entry.outcome = "late".into(),
        }
        rows.push(entry);
    }
    rows.sort_by(|a, b| a.node.cmp(&b.node));
    for (node, (_, status)) in &record.checks {
        if let CheckStatus::Done(evaluation) = status {
            let index = rows.iter().position(|row| row.node == *node).unwrap_or_else(|| {
                rows.push(NodeRound { node: node.clone(), ..NodeRound::default() });
                rows.len() - 1
            });
            let Some(entry) = rows.get_mut(index) else { continue };
            entry.evaluated_examples = evaluation.examples;
            entry.correct_float = evaluation.correct_float;
            entry.correct_served = evaluation.correct_served;
            entry.precision.clone_from(&evaluation.precision);
        }
    }
    rows
}
