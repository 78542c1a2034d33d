//! The loop of an experiment: feeds the coordinator's `step` with what virtual nodes do, in the order of virtual time.
//! What to do is decided in `step`; what is asked of nodes, and when they are done, is put on the agenda in `issue`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fedge_coordinator::rounds::fold::Payload;
use fedge_coordinator::rounds::state::{
    AssignmentId, Evaluation, Phase, RoundOutcome, RoundRecord, TaskState, WorkStatus,
};
use fedge_coordinator::rounds::step::{self, Admission, Effect, Event, View};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_node::training::Dataset;

use super::aggregation::{self, Version};
use super::crew::{Crew, Key};
use super::fleet::Fleet;
use super::report::{News, Round, Score};
use super::tally::{self, Tally};
use super::work::{Done, Job, Update};
use super::{Experiment, ExperimentError, Finished};

/// Samples of the test set that one thread asks at a time.
const TEST_PART: usize = 500;

/// What happens at an instant of virtual time.
#[derive(Debug)]
pub(super) enum Happening {
    /// An update arrives; its training is the crew's job of the same key.
    Arrives { assignment: AssignmentId },
    /// The coordinator notices that the node of an assignment is gone.
    Vanishes { assignment: AssignmentId },
    /// A node reports its evaluation, the crew's job of the same key.
    Evaluated { assignment: AssignmentId },
}

/// An experiment that is running.
pub(super) struct Driver<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) task: Arc<TaskSpec>,
    observer: &'a mut dyn FnMut(News<'_>),
    stop: &'a AtomicBool,
    pub(super) crew: Crew<Job, Done>,
    pub(super) fleet: Fleet<'a>,
    pub(super) state: TaskState,
    pub(super) now_ms: u64,
    pub(super) agenda: BTreeMap<Key, Happening>,
    /// Assignments that were put on the agenda, or that never will come about.
    pub(super) scheduled: BTreeMap<AssignmentId, Option<Key>>,
    /// Numbers what was put on the agenda or given to the crew.
    pub(super) issued: u64,
    pub(super) base: Arc<Version>,
    sums: aggregation::Round,
    /// Updates that came while no round could take them: of an asynchronous task's next buffer.
    early: BTreeMap<AssignmentId, Payload>,
    pub(super) tally: Tally,
    rounds: Vec<Round>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        experiment: &'a Experiment,
        crew: Crew<Job, Done>,
        observer: &'a mut dyn FnMut(News<'_>),
        stop: &'a AtomicBool,
    ) -> Result<Driver<'a>, ExperimentError> {
        let task = Arc::new(experiment.task.clone());
        let base = Version::first(experiment.model.clone(), &task);
        let base = base.map_err(|error| ExperimentError::Plan(error.to_string()))?;
        Ok(Driver {
            fleet: Fleet::new(&experiment.population, &experiment.systems, experiment.seed),
            state: TaskState::new(format!("{}-1", task.model), base.id.clone()),
            sums: aggregation::Round::new(task.clone(), &base),
            experiment,
            task,
            observer,
            stop,
            crew,
            now_ms: 0,
            agenda: BTreeMap::new(),
            scheduled: BTreeMap::new(),
            issued: 0,
            base,
            early: BTreeMap::new(),
            tally: Tally::default(),
            rounds: Vec::new(),
        })
    }

    pub(super) fn run(mut self) -> Result<Finished, ExperimentError> {
        let start = Round::start(self.test()?);
        self.tell(start);
        self.event(&Event::Tick, None)?;
        while !matches!(self.state.phase, Phase::Ended { .. }) {
            if self.stop.load(Ordering::Relaxed) {
                self.event(&Event::Cancelled, None)?;
            } else {
                self.advance()?;
            }
        }
        let stopped = self.stop.load(Ordering::Relaxed);
        Ok(Finished { rounds: self.rounds, model: self.base.model.clone(), stopped })
    }

    pub(super) fn is_asynchronous(&self) -> bool {
        self.task.strategy.client().asynchronous.is_some()
    }

    /// Goes on to the next instant at which something happens, or at which the coordinator's patience ends.
    fn advance(&mut self) -> Result<(), ExperimentError> {
        let limit_ms = self.patience_ms();
        match self.agenda.first_key_value() {
            Some((key, _)) if key.0 <= limit_ms => {
                let Some((key, happening)) = self.agenda.pop_first() else { return Ok(()) };
                self.now_ms = self.now_ms.max(key.0);
                self.happen(key, happening)
            }
            _ => {
                let was_ms = self.now_ms;
                self.now_ms = was_ms.max(limit_ms);
                let waited = matches!(self.state.phase, Phase::Waiting { .. }) && was_ms >= limit_ms;
                self.event(&Event::Tick, None)?;
                match waited && matches!(self.state.phase, Phase::Waiting { .. }) {
                    // Everybody is there between rounds, so a round that does not begin now never will.
                    true => Err(self.experiment.too_few_nodes()),
                    false => Ok(()),
                }
            }
        }
    }

    /// When the coordinator acts though nothing happens: at a deadline, or when a pause is over.
    fn patience_ms(&self) -> u64 {
        let wait_ms = self.task.rounds.deadline_s.saturating_mul(1000);
        match &self.state.phase {
            Phase::Training { work, .. } if self.is_asynchronous() => {
                let open = work.values().filter(|work| work.status.is_open());
                let overdue = open.map(|work| work.issued_ms.saturating_add(wait_ms)).min();
                // Nobody trains: those that declined are asked again after a pause.
                overdue.unwrap_or(self.now_ms.saturating_add(1000))
            }
            Phase::Training { deadline_ms, .. } | Phase::Evaluating { deadline_ms, .. } => *deadline_ms,
            Phase::Waiting { not_before_ms } => *not_before_ms,
            Phase::Aggregating { .. } | Phase::Ended { .. } => self.now_ms,
        }
    }

    fn happen(&mut self, key: Key, happening: Happening) -> Result<(), ExperimentError> {
        match happening {
            Happening::Vanishes { assignment } => {
                if let Some(work) = self.state.work(assignment) {
                    self.fleet.vanish(&work.node);
                }
                self.event(&Event::Tick, None)
            }
            Happening::Arrives { assignment } => match self.crew.take(key, self.stop) {
                Some(Done::Trained(result)) => self.arrive(assignment, result),
                _ => Ok(()),
            },
            Happening::Evaluated { assignment } => match self.crew.take(key, self.stop) {
                Some(Done::Evaluated(Ok(done))) => {
                    let evaluation = Evaluation {
                        examples: done.examples,
                        correct_float: done.correct,
                        correct_served: done.correct,
                        loss: done.loss,
                        precision: "float".to_owned(),
                    };
                    self.event(&Event::Evaluated(assignment, evaluation), None)
                }
                Some(Done::Evaluated(Err(reason))) => self.event(&Event::Declined(assignment, reason), None),
                _ => Ok(()),
            },
        }
    }

    /// An update is at the coordinator: admitted, checked, committed and folded, in its order.
    fn arrive(&mut self, assignment: AssignmentId, result: Result<Box<Update>, String>) -> Result<(), ExperimentError> {
        self.tally.came += 1;
        let (round, done, of) = (self.state.round, self.tally.came, self.tally.due);
        (self.observer)(News::Progress { round, done, of });
        let Update { payload, mut facts, leftover } = match result {
            Ok(update) => *update,
            Err(reason) => return self.event(&Event::Declined(assignment, reason), None),
        };
        let Some(work) = self.state.work(assignment) else { return Ok(()) };
        match step::admit(&self.task, &self.state, assignment, Some(facts.sha256)) {
            Admission::Open => {}
            Admission::Stale(versions) => {
                let reason = format!("its base is {versions} versions old, more than the strategy takes");
                return self.event(&Event::Declined(assignment, reason), None);
            }
            Admission::Duplicate | Admission::Conflict | Admission::Closed => return Ok(()),
        }
        match self.sums.check(&self.base, work, &facts, &payload) {
            Err(reason) => self.event(&Event::Declined(assignment, reason), None),
            Ok(squared_norm) => {
                facts.squared_norm = squared_norm;
                // It counts: from now on the node remembers what it left behind.
                if let (Some((place, ..)), Some(leftover)) = (self.fleet.find(&work.node), leftover) {
                    self.fleet.remember(place, leftover);
                }
                self.event(&Event::UpdateCommitted(assignment, facts), Some((assignment, payload)))
            }
        }
    }

    /// Decide, then act. `came`: the update that the event commits.
    fn event(&mut self, event: &Event, came: Option<(AssignmentId, Payload)>) -> Result<(), ExperimentError> {
        let drawn = matches!(event, Event::Aggregated(..)).then(|| self.evaluators());
        let available = drawn.as_ref().unwrap_or_else(|| self.fleet.available());
        let placeholder = TaskState::new(String::new(), self.base.id.clone());
        let state = std::mem::replace(&mut self.state, placeholder);
        let view = View { now_ms: self.now_ms, available, resting: &BTreeSet::new(), drifting: &BTreeMap::new() };
        let was = (state.round, std::mem::discriminant(&state.phase));
        let (next, effects) = step::step(&self.task, state, event, view);
        self.state = next;
        // The round that is over is recorded before the next one, which the same step may have begun, is entered.
        for effect in &effects {
            if let Effect::RecordRound(record) = effect {
                self.record(record)?;
            }
        }
        let changed = was != (self.state.round, std::mem::discriminant(&self.state.phase));
        if changed {
            self.enter(was.0 != self.state.round);
        }
        if let Some((assignment, payload)) = came
            && !self.sums.fold(&self.base, &self.state, assignment, &payload)
        {
            self.early.insert(assignment, payload);
        }
        if changed || self.is_asynchronous() {
            self.issue()?;
        }
        match effects.iter().any(|effect| matches!(effect, Effect::Aggregate { .. })) {
            true => self.aggregate(),
            false => Ok(()),
        }
    }

    fn aggregate(&mut self) -> Result<(), ExperimentError> {
        let event = match self.sums.mint(&self.base, &self.state) {
            Ok(version) => {
                self.base = version;
                Event::Aggregated(self.base.id.clone(), self.base.server.clone())
            }
            Err(error) => Event::AggregationFailed(error.to_string()),
        };
        self.event(&event, None)?;
        // The step above saw the evaluators alone.
        self.event(&Event::Tick, None)
    }

    /// Another phase: who vanished during the one before is back. A new round begins with empty sums and the updates that
    /// came before it.
    fn enter(&mut self, new_round: bool) {
        self.fleet.come_back();
        self.drop_unawaited();
        if !new_round {
            return;
        }
        self.sums.forget();
        self.tally = Tally::default();
        for (assignment, payload) in std::mem::take(&mut self.early) {
            let awaited = self.state.work(assignment).is_some_and(|w| matches!(w.status, WorkStatus::Trained(_)));
            if awaited && !self.sums.fold(&self.base, &self.state, assignment, &payload) {
                self.early.insert(assignment, payload);
            }
        }
    }

    fn record(&mut self, record: &RoundRecord) -> Result<(), ExperimentError> {
        let mut round = tally::figures(record, &self.tally, self.base.id.number, self.now_ms);
        let every = self.experiment.test_every.max(1);
        let is_last = record.round >= self.task.rounds.count;
        let made = matches!(record.outcome, RoundOutcome::Aggregated(_));
        if made && (is_last || record.round.is_multiple_of(every)) {
            round.test = self.test()?;
        }
        self.tell(round);
        Ok(())
    }

    fn tell(&mut self, round: Round) {
        (self.observer)(News::Round(&round));
        self.rounds.push(round);
    }

    /// Asks the newest version about the test set, in parts on all threads; `None` without a test set or when stopped.
    fn test(&mut self) -> Result<Option<Score>, ExperimentError> {
        let Some(test) = &self.experiment.population.test else { return Ok(None) };
        let rows: Vec<u32> = (0..test.len() as u32).collect();
        let parts: Result<Vec<Dataset>, _> = rows.chunks(TEST_PART).map(|part| test.select(part.into())).collect();
        let parts = parts.map_err(|e| ExperimentError::Test(e.to_string()))?;
        let mut keys = Vec::with_capacity(parts.len());
        for data in parts {
            self.issued += 1;
            let key = (self.now_ms, self.issued);
            self.crew.put(key, Job::Evaluate { model: self.base.model.clone(), data });
            keys.push(key);
        }
        let mut scores = Vec::with_capacity(keys.len());
        for key in keys {
            match self.crew.take(key, self.stop) {
                Some(Done::Evaluated(Ok(part))) => {
                    scores.push(Score { examples: part.examples, correct: part.correct, loss: part.loss.into() });
                }
                Some(Done::Evaluated(Err(problem))) => return Err(ExperimentError::Test(problem)),
                Some(Done::Trained(_)) | None => return Ok(None),
            }
        }
        Ok(Score::sum(scores))
    }
}
