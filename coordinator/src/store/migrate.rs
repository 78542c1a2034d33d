//! Reads task states and round records that earlier versions of fedge wrote, as JSON, into the form of this one.
//! Tables migrate by `migrations/`; old forms are kept in `fixtures/`.

use fedge_models::Digest;
use serde_json::{Map, Value, json};

use crate::rounds::state::STATE_SCHEMA;

/// Brings a task's state to the newest form.
///
/// # Errors
/// A sentence: the form is newer than this version of fedge, or none.
pub(super) fn task_state(mut state: Value) -> Result<Value, String> {
    match schema(&state)? {
        1 => {
            let base = state.get("base").cloned().unwrap_or_default();
            let phase = state.get_mut("phase").ok_or("it has no phase")?;
            let name = phase.get("phase").and_then(Value::as_str).unwrap_or_default().to_owned();
            // A version that is being evaluated was made of updates to the one before.
            let trained = if name == "evaluating" { before(&base) } else { base };
            for key in ["work", "trained"] {
                if let Some(work) = phase.get_mut(key) {
                    *work = by_assignment(work, &trained)?;
                }
            }
            if matches!(name.as_str(), "training" | "aggregating") {
                let population = phase.get("work").and_then(Value::as_object).map_or(0, Map::len);
                set(phase, "population", json!(population));
            }
            for (key, value) in [
                ("schema", json!(2)),
                ("server", Value::Null),
                ("issued", json!(0)),
                ("outstanding", json!({})),
                ("paused", json!(false)),
            ] {
                set(&mut state, key, value);
            }
            Ok(state)
        }
        schema if schema == u64::from(STATE_SCHEMA) => Ok(state),
        schema => Err(format!("schema {schema} is unknown to this version of fedge")),
    }
}

/// Brings a finished round's record to the newest form. Schema 1 had no number.
///
/// # Errors
/// As [`task_state`].
pub(super) fn round_record(mut record: Value) -> Result<Value, String> {
    if record.get("schema").is_some() {
        return match schema(&record)? {
            schema if schema == u64::from(STATE_SCHEMA) => Ok(record),
            schema => Err(format!("schema {schema} is unknown to this version of fedge")),
        };
    }
    let minted = record.pointer("/outcome/aggregated").cloned().unwrap_or_else(|| json!({ "number": 1 }));
    let work = record.get_mut("work").ok_or("it has no work")?;
    *work = by_assignment(work, &before(&minted))?;
    set(&mut record, "schema", json!(STATE_SCHEMA));
    Ok(record)
}

fn schema(value: &Value) -> Result<u64, String> {
    value.get("schema").and_then(Value::as_u64).ok_or_else(|| "it has no schema".to_owned())
}

/// The version before this one; its digest was not kept beside it.
fn before(version: &Value) -> Value {
    let number = version.get("number").and_then(Value::as_u64).unwrap_or(1);
    json!({ "number": number.saturating_sub(1), "digest": Digest::from_bytes([0; 32]) })
}

/// Schema 1 had a cohort's work by node, later ones have it by assignment.
fn by_assignment(work: &Value, base: &Value) -> Result<Value, String> {
    let mut by_assignment = Map::new();
    for (node, work) in work.as_object().ok_or("its work is no object")? {
        let id = work.get("assignment").and_then(Value::as_str).ok_or("an assignment has no id")?;
        let mut status = work.get("status").cloned().ok_or("an assignment has no status")?;
        if let Some(update) = status.get_mut("trained") {
            for (key, value) in [("loss_base", Value::Null), ("partial", json!(false)), ("squared_norm", json!(0.0))] {
                set(update, key, value);
            }
        }
        let work = json!({ "node": node, "base": base, "issued_ms": 0, "status": status });
        by_assignment.insert(id.to_owned(), work);
    }
    Ok(Value::Object(by_assignment))
}

fn set(value: &mut Value, key: &str, to: Value) {
    if let Some(object) = value.as_object_mut() {
        object.insert(key.to_owned(), to);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::rounds::state::{AssignmentId, Phase, RoundRecord, TaskState, WorkStatus};

    const STATES: &str = include_str!("fixtures/task_states_1.json");
    const RECORD: &str = include_str!("fixtures/round_record_1.json");

    #[test]
    fn states_of_schema_1_are_read_in_every_phase() {
        let states: Vec<Value> = serde_json::from_str(STATES).unwrap();
        assert_eq!(states.len(), 5);
        for old in states {
            let name = old.pointer("/phase/phase").unwrap().as_str().unwrap().to_owned();
            let state: TaskState = serde_json::from_value(task_state(old).unwrap()).unwrap();
            assert_eq!(state.schema, STATE_SCHEMA);
            match &state.phase {
                Phase::Training { work, population, .. } => {
                    let (id, work) = work.iter().next().unwrap();
                    assert_eq!((*id, work.node.as_str(), *population), (AssignmentId([7; 16]), "edge-a", 1));
                    assert!(matches!(&work.status, WorkStatus::Trained(u) if u.examples == 9 && u.loss_base.is_none()));
                    assert_eq!(work.base, state.base);
                }
                Phase::Evaluating { trained, .. } => {
                    assert_eq!(trained.values().next().unwrap().base.number, state.base.number - 1);
                }
                _ => assert!(!name.is_empty()),
            }
        }
    }

    #[test]
    fn records_of_schema_1_are_read() {
        let record: Value = serde_json::from_str(RECORD).unwrap();
        let record: RoundRecord = serde_json::from_value(round_record(record).unwrap()).unwrap();
        assert_eq!(record.work.len(), 2);
        assert!(record.work.values().all(|work| work.base.number == 1));
    }

    #[test]
    fn a_newer_schema_is_refused_by_its_number() {
        assert!(task_state(json!({ "schema": 99 })).unwrap_err().contains("99"));
        assert!(round_record(json!({ "schema": 99 })).unwrap_err().contains("99"));
    }
}
