//! What pollers and watchers may look at without asking the driver; the driver puts up a new one after each step.
//! Nothing changes by looking at it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::state::TaskState;
use super::task::TaskSpec;
use crate::store::models::ModelRow;

/// What int8 may lose on a lineage that no task trains.
const DEFAULT_INT8_TOLERANCE: f32 = 0.02;

/// The newest versions and the running tasks.
#[derive(Debug, Default)]
pub struct Board {
    /// Counts the changes.
    pub counter: u64,
    /// The newest version of each lineage, and what int8 may lose on it.
    pub serve: Vec<(ModelRow, f32)>,
    /// Running tasks.
    pub tasks: BTreeMap<String, TaskView>,
}

/// A running task as pollers and watchers see it.
#[derive(Debug, Clone)]
pub struct TaskView {
    /// What it is.
    pub spec: Arc<TaskSpec>,
    /// Where it is.
    pub state: TaskState,
}

impl Board {
    /// A board of the newest version of each lineage and the running tasks.
    pub fn new(counter: u64, newest: Vec<ModelRow>, tasks: BTreeMap<String, TaskView>) -> Board {
        let tolerance = |name: &str| {
            let task = tasks.values().find(|t| t.spec.model == name);
            task.map_or(DEFAULT_INT8_TOLERANCE, |t| t.spec.serving.int8_tolerance)
        };
        let serve = newest
            .into_iter()
            .map(|row| {
                let tolerance = tolerance(&row.manifest.name);
                (row, tolerance)
            })
            .collect();
        Board { counter, serve, tasks }
    }
}
