//! The coordinator starts: reads its tasks, sweeps its folders, begins the sums again, and waits for its nodes again.
//! What it finds has to be whole: that is what recording in the right order is for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fedge_coordinator::rounds::board::Board;
use fedge_coordinator::rounds::state::{AssignmentId, Phase, TaskState};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_models::Digest;

use super::running::{Base, Running};
use super::{Coordinator, Process, TICK_MS, Timer, survive};
use crate::faults::arithmetic::values_of;
use crate::faults::database::TaskRow;
use crate::faults::disk::{Folder, Name};
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env, Trouble};
use crate::faults::invariants::Invariant;
use crate::faults::message::COORDINATOR;

impl Coordinator {
    /// The process starts.
    ///
    /// # Errors
    /// It dies again.
    pub fn start(&mut self, env: &mut Env) -> Result<(), Crash> {
        let struck = match env.begin(COORDINATOR, Effect::Load) {
            Err(_) => return Err(Crash),
            Ok(struck) => struck,
        };
        if struck.in_the_middle() {
            return env.end(COORDINATOR, struck);
        }
        env.note(format_args!("coordinator: starts at {} ms", self.database.elapsed_ms));
        let mut process = Process {
            tasks: BTreeMap::new(),
            board: Board::default(),
            sessions: BTreeMap::new(),
            awaited: BTreeMap::new(),
            waiting: Vec::new(),
            persisting: false,
            uploads: BTreeMap::new(),
            held: BTreeMap::new(),
            sums: BTreeMap::new(),
            jobs: BTreeMap::new(),
            generations: 0,
            promised: BTreeMap::new(),
            clock_base_ms: self.database.elapsed_ms,
            started: env.time(),
            saved_ms: self.database.elapsed_ms,
        };
        for row in self.database.running() {
            let Some(running) = self.load(env, &row) else { continue };
            process.awaited.entry(running.spec.model.clone()).or_default().extend(awaited(&running.state));
            process.tasks.insert(row.state.task_id.clone(), running);
        }
        let known: BTreeSet<AssignmentId> =
            process.tasks.values().flat_map(|running| running.state.assignments()).collect();
        let ids: Vec<String> = process.tasks.keys().cloned().collect();
        self.process = Some(process);
        survive(self.sweep(env, &known))?;
        ids.iter().for_each(|id| self.fold_again(env, id));
        self.put_up_board(env)?;
        env.coordinator_timer(TICK_MS, Timer::Tick);
        env.end(COORDINATOR, struck)
    }

    fn load(&self, env: &mut Env, row: &TaskRow) -> Option<Running> {
        let spec = TaskSpec::parse(&row.text).ok();
        // As text, the way the real store keeps it.
        let text = serde_json::to_string(&row.state).unwrap_or_default();
        let state = serde_json::from_str::<TaskState>(&text).ok().filter(|state| *state == row.state);
        let base = spec.as_ref().and_then(|spec| self.base(&spec.model, row.state.base.number, &row.state.base.digest));
        match (spec, state, base) {
            (Some(spec), Some(state), Some(base)) => {
                Some(Running { spec: Arc::new(spec), index: row.index, state, base, sum: None, making: None })
            }
            (spec, state, base) => {
                let what = format!(
                    "{} can't be loaded: file {}, state {}, base {}",
                    row.state.task_id,
                    spec.is_some(),
                    state.is_some(),
                    base.is_some()
                );
                env.checks.fail(Invariant::RecordsAreSound, what);
                None
            }
        }
    }

    /// Reads and checks a version.
    pub(super) fn base(&self, lineage: &str, number: u64, digest: &Digest) -> Option<Base> {
        let (index, lineage) = self.setup.lineage(lineage)?;
        let file = self.disk.read(Name::Version(index, number)).filter(|file| Digest::of(file) == *digest)?;
        let values = values_of(file);
        let scales = lineage.scales(&values).ok()?;
        Some(Base { number, digest: *digest, values: Arc::new(values), scales })
    }

    /// Removes what a crash left behind, and counts what stays against the quota.
    fn sweep(&mut self, env: &mut Env, known: &BTreeSet<AssignmentId>) -> Result<(), Trouble> {
        let struck = env.begin(COORDINATOR, Effect::SpoolSweep)?;
        let files = self.disk.list(Folder::Spool);
        let half = files.len() / 2;
        for (index, name) in files.into_iter().enumerate() {
            let (Name::Part(id, sha) | Name::Spooled(id, sha)) = name else { continue };
            if struck.in_the_middle() && index >= half {
                break;
            }
            if !known.contains(&AssignmentId(id)) {
                self.disk.remove(name);
            } else if let Some(process) = &mut self.process {
                let bytes = self.disk.read(name).map_or(0, |file| file.len() as u64);
                process.promised.insert((id, sha), bytes);
            }
        }
        let tasks = self.process.iter().flat_map(|process| process.tasks.values());
        let kept: BTreeSet<Name> = tasks
            .filter(|running| running.state.server.is_some())
            .map(|running| Name::Kept(running.index, running.state.base.number))
            .collect();
        for name in self.disk.list(Folder::Kept).into_iter().filter(|name| !kept.contains(name)) {
            self.disk.remove(name);
        }
        Ok(env.end(COORDINATOR, struck)?)
    }
}

/// Nodes that a task waits for.
fn awaited(state: &TaskState) -> Vec<String> {
    let work = state.cohort().into_iter().flatten().chain(&state.outstanding);
    let nodes = work.map(|(_, work)| work.node.clone());
    match &state.phase {
        Phase::Evaluating { checks, .. } => nodes.chain(checks.keys().cloned()).collect(),
        _ => nodes.collect(),
    }
}
