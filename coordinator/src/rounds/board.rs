//! What pollers and watchers may look at without asking the driver, which puts up a new one after each step; and the
//! news, which wakes those nodes whose instructions changed. Nothing changes by looking at it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::discriminant;
use std::sync::{Arc, Mutex, PoisonError};

use fedge_models::Digest;
use tokio::sync::Notify;

use super::state::TaskState;
use super::task::TaskSpec;
use crate::store::models::ModelRow;

/// What int8 may lose on a lineage that no task trains.
const DEFAULT_INT8_TOLERANCE: f32 = 0.02;

/// The newest versions and the running tasks.
#[derive(Debug, Default)]
pub struct Board {
    /// The newest version of each lineage, and what int8 may lose on it.
    pub serve: Vec<(ModelRow, f32)>,
    /// Older versions that nodes of asynchronous tasks still train.
    pub bases: BTreeMap<Digest, ModelRow>,
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
    pub fn new(newest: Vec<ModelRow>, tasks: BTreeMap<String, TaskView>) -> Board {
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
        Board { serve, bases: BTreeMap::new(), tasks }
    }

    /// The row of a version that is served or trained.
    pub(super) fn row(&self, digest: Digest) -> Option<&ModelRow> {
        let served = self.serve.iter().map(|(row, _)| row).find(|row| row.manifest.digest == digest);
        served.or_else(|| self.bases.get(&digest))
    }

    /// Versions that are trained and have no row here.
    pub(super) fn missing_bases(&self) -> BTreeSet<Digest> {
        let states = self.tasks.values().map(|task| &task.state);
        let open = states.flat_map(|state| state.assignments().filter_map(|id| state.work(id)));
        let bases = open.filter(|work| work.status.is_open()).map(|work| work.base.digest);
        bases.filter(|digest| self.row(*digest).is_none()).collect()
    }
}

/// Whose instructions a new board changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Everyone,
    These(BTreeSet<String>),
}

/// Whom to wake when `new` replaces `old`. In the middle of a round an answer changes nobody's instructions but its node's
/// own, which hears the answer itself; an asynchronous task gives out single assignments.
pub(super) fn news(old: &Board, new: &Board) -> Told {
    let served =
        |board: &Board| board.serve.iter().map(|(row, t)| (row.manifest.digest, t.to_bits())).collect::<Vec<_>>();
    let place = |task: &TaskView| (discriminant(&task.state.phase), task.state.round, task.state.base.digest);
    let same_tasks = old.tasks.len() == new.tasks.len()
        && new.tasks.iter().all(|(id, task)| old.tasks.get(id).is_some_and(|old| place(old) == place(task)));
    if !same_tasks || served(old) != served(new) {
        return Told::Everyone;
    }
    let issued = new.tasks.iter().filter_map(|(id, task)| Some((old.tasks.get(id)?, task)));
    let issued = issued.filter(|(old, new)| old.state.issued != new.state.issued).flat_map(|(old, new)| {
        let added = new.state.assignments().filter(|id| old.state.work(*id).is_none());
        added.filter_map(|id| new.state.work(id)).map(|work| work.node.clone())
    });
    Told::These(issued.collect())
}

/// Wakes nodes that wait for instructions. A call that came while nobody waited wakes the next one who does.
#[derive(Debug, Default)]
pub struct News {
    waiting: Mutex<HashMap<String, Arc<Notify>>>,
}

impl News {
    /// What wakes this node.
    pub fn of(&self, node: &str) -> Arc<Notify> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(node.to_owned()).or_default().clone()
    }

    pub(super) fn tell(&self, told: &Told) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Told::Everyone => waiting.values().for_each(|notify| notify.notify_one()),
            Told::These(nodes) => nodes.iter().filter_map(|node| waiting.get(node)).for_each(|n| n.notify_one()),
        }
    }
}
