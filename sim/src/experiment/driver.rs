//! The loop of an experiment: feeds the coordinator's `step` with what virtual nodes do, in the order of virtual time.
//! What to do is decided in `step`; how long it takes, in `systems`; the work itself, in `work`, on other threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fedge_coordinator::rounds::state::{
    AssignmentId, Evaluation, Phase, RoundOutcome, RoundRecord, TaskState, TrainedUpdate,
};
use fedge_coordinator::rounds::step::{self, Admission, Effect, Event, View};
use fedge_node::training::Dataset;

use super::aggregation::{Sum, Version};
use super::crew::{Crew, Key};
use super::fleet::Fleet;
use super::report::{News, Round, Score};
use super::systems::{Load, Schedule};
use super::tally::{self, Tally};
use super::work::{Done, Job, Kind, Trained, Training, plan};
use super::{Experiment, ExperimentError, Finished, Trainer};

/// Samples of the test set that one thread asks at a time.
const TEST_PART: usize = 500;

/// What happens at an instant of virtual time.
#[derive(Debug)]
enum Happening {
    /// An update arrives; its training is the crew's job of the same key.
    Arrives { assignment: AssignmentId, partial: bool },
    /// The coordinator notices that a node is gone.
    Vanishes { node: String },
    /// A node reports its evaluation, the crew's job of the same key.
    Evaluated { assignment: AssignmentId },
}

/// An experiment that is running.
pub(super) struct Driver<'a> {
    experiment: &'a Experiment,
    observer: &'a mut dyn FnMut(News<'_>),
    stop: &'a AtomicBool,
    crew: Crew<Job, Done>,
    fleet: Fleet<'a>,
    state: TaskState,
    now_ms: u64,
    agenda: BTreeMap<Key, Happening>,
    /// Numbers what was put on the agenda or given to the crew.
    issued: u64,
    base: Arc<Version>,
    sum: Sum,
    tally: Tally,
    rounds: Vec<Round>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        experiment: &'a Experiment,
        crew: Crew<Job, Done>,
        observer: &'a mut dyn FnMut(News<'_>),
        stop: &'a AtomicBool,
    ) -> Driver<'a> {
        let base = Version::first(experiment.model.clone());
        Driver {
            fleet: Fleet::new(&experiment.population, &experiment.systems, experiment.seed),
            state: TaskState::new(format!("{}-1", experiment.task.model), base.id.clone()),
            sum: Sum::on(base.clone()),
            experiment,
            observer,
            stop,
            crew,
            now_ms: 0,
            agenda: BTreeMap::new(),
            issued: 0,
            base,
            tally: Tally::default(),
            rounds: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Finished, ExperimentError> {
        let start = Round::start(self.test()?);
        self.tell(start);
        self.event(&Event::Tick)?;
        while !matches!(self.state.phase, Phase::Ended { .. }) {
            if self.stop.load(Ordering::Relaxed) {
                self.event(&Event::Cancelled)?;
            } else {
                self.advance()?;
            }
        }
        let stopped = self.stop.load(Ordering::Relaxed);
        Ok(Finished { rounds: self.rounds, model: self.base.model.clone(), stopped })
    }

    /// Goes on to the next instant at which something happens, or at which the coordinator's patience ends.
    fn advance(&mut self) -> Result<(), ExperimentError> {
        let limit_ms = match &self.state.phase {
            Phase::Training { deadline_ms, .. } | Phase::Evaluating { deadline_ms, .. } => *deadline_ms,
            Phase::Waiting { not_before_ms } => *not_before_ms,
            Phase::Aggregating { .. } | Phase::Ended { .. } => self.now_ms,
        };
        match self.agenda.first_key_value() {
            Some((key, _)) if key.0 <= limit_ms => {
                let Some((key, happening)) = self.agenda.pop_first() else { return Ok(()) };
                self.now_ms = self.now_ms.max(key.0);
                self.happen(key, happening)
            }
            _ => {
                self.now_ms = self.now_ms.max(limit_ms);
                let waited = matches!(self.state.phase, Phase::Waiting { .. });
                self.event(&Event::Tick)?;
                match waited && matches!(self.state.phase, Phase::Waiting { .. }) {
                    // Everybody is there between rounds, so a round that does not begin now never will.
                    true => Err(self.experiment.too_few_nodes()),
                    false => Ok(()),
                }
            }
        }
    }

    fn happen(&mut self, key: Key, happening: Happening) -> Result<(), ExperimentError> {
        match happening {
            Happening::Vanishes { node } => {
                self.fleet.vanish(&node);
                self.event(&Event::Tick)
            }
            Happening::Arrives { assignment, partial } => match self.crew.take(key, self.stop) {
                Some(Done::Trained(result)) => self.arrive(assignment, partial, result),
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
                    self.event(&Event::Evaluated(assignment, evaluation))
                }
                Some(Done::Evaluated(Err(reason))) => self.event(&Event::Declined(assignment, reason)),
                _ => Ok(()),
            },
        }
    }

    /// An update is at the coordinator: admitted, checked, folded, committed, in its order.
    fn arrive(
        &mut self,
        assignment: AssignmentId,
        partial: bool,
        result: Result<Trained, String>,
    ) -> Result<(), ExperimentError> {
        self.tally.came += 1;
        let (round, done, of) = (self.state.round, self.tally.came, self.tally.due);
        (self.observer)(News::Progress { round, done, of });
        let Trained { delta, update } = match result {
            Ok(trained) => trained,
            Err(reason) => return self.event(&Event::Declined(assignment, reason)),
        };
        if step::admit(&self.state, assignment, Some(update.sha256)) != Admission::Open {
            return Ok(());
        }
        match self.fold(&delta, &update) {
            Ok(()) => {
                if partial {
                    self.tally.partial.insert(assignment);
                }
                self.event(&Event::UpdateCommitted(assignment, update))
            }
            Err(reason) => self.event(&Event::Declined(assignment, reason)),
        }
    }

    fn fold(&mut self, delta: &[f32], update: &TrainedUpdate) -> Result<(), String> {
        let folded = self.sum.check(delta, update.examples).and_then(|()| self.sum.add(delta, update.examples));
        folded.map_err(|error| format!("its update was refused: {error}"))
    }

    /// Decide, then act.
    fn event(&mut self, event: &Event) -> Result<(), ExperimentError> {
        let drawn: BTreeSet<String>;
        let available = match event {
            Event::Aggregated(..) => {
                let Experiment { seed, evaluators, .. } = *self.experiment;
                drawn = self.fleet.evaluators(seed, self.state.round, evaluators);
                &drawn
            }
            _ => self.fleet.available(),
        };
        let placeholder = TaskState::new(String::new(), self.base.id.clone());
        let state = std::mem::replace(&mut self.state, placeholder);
        let view = View { now_ms: self.now_ms, available };
        let was = (state.round, std::mem::discriminant(&state.phase));
        let (next, effects) = step::step(&self.experiment.task, state, event, view);
        self.state = next;
        // The round that is over is recorded before the next one, which the same step may have begun, is entered.
        for effect in &effects {
            if let Effect::RecordRound(record) = effect {
                self.record(record)?;
            }
        }
        if was != (self.state.round, std::mem::discriminant(&self.state.phase)) {
            self.enter()?;
        }
        match effects.iter().any(|effect| matches!(effect, Effect::Aggregate { .. })) {
            true => self.aggregate(),
            false => Ok(()),
        }
    }

    fn aggregate(&mut self) -> Result<(), ExperimentError> {
        let event = match self.sum.mint(self.experiment.task.strategy) {
            Ok(version) => {
                self.base = version;
                Event::Aggregated(self.base.id.clone())
            }
            Err(error) => Event::AggregationFailed(error.to_string()),
        };
        self.event(&event)
    }

    fn record(&mut self, record: &RoundRecord) -> Result<(), ExperimentError> {
        let mut round = tally::figures(record, &self.tally, self.base.id.number, self.now_ms);
        let every = self.experiment.test_every.max(1);
        let is_last = record.round >= self.experiment.task.rounds.count;
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

    /// A phase has begun: what was due in the one before is not any more, and what is asked for now is put on the agenda.
    fn enter(&mut self) -> Result<(), ExperimentError> {
        for key in std::mem::take(&mut self.agenda).into_keys() {
            self.crew.discard(key);
        }
        // Who vanished during the training is back when it is over.
        self.fleet.come_back();
        match &self.state.phase {
            Phase::Training { .. } => self.issue_training()?,
            Phase::Evaluating { .. } => self.issue_evaluation(),
            Phase::Waiting { .. } | Phase::Aggregating { .. } | Phase::Ended { .. } => {}
        }
        Ok(())
    }

    fn issue_training(&mut self) -> Result<(), ExperimentError> {
        let Phase::Training { deadline_ms, work, .. } = &self.state.phase else { return Ok(()) };
        let deadline_ms = *deadline_ms;
        let cohort: Vec<(AssignmentId, String)> =
            work.iter().map(|(node, work)| (work.assignment, node.clone())).collect();
        self.sum = Sum::on(self.base.clone());
        self.tally = Tally::default();
        let Experiment { systems, task, seed, .. } = self.experiment;
        let lots = systems.lots(*seed, self.state.round, cohort.len(), task.training.epochs);
        for ((assignment, name), lot) in cohort.into_iter().zip(lots) {
            let Some((place, node, speed)) = self.fleet.find(&name) else { continue };
            let down = self.down(place);
            let up = self.base.weights.values().len() as u64 * 4;
            let load = Load { samples: node.train.len(), epochs: task.training.epochs, down, up };
            match systems.schedule(self.now_ms, deadline_ms, load, speed, lot, false) {
                Schedule::Arrives { at_ms, epochs } => {
                    let job = self.training(place, assignment, epochs)?;
                    let partial = epochs < task.training.epochs;
                    self.tally.due += 1;
                    self.put(at_ms, Happening::Arrives { assignment, partial }, Some(job));
                }
                Schedule::Vanishes { at_ms } => self.put(at_ms, Happening::Vanishes { node: name }, None),
                Schedule::Late => {}
            }
        }
        Ok(())
    }

    fn training(&self, place: usize, assignment: AssignmentId, epochs: u32) -> Result<Job, ExperimentError> {
        let Experiment { population, trainer, task, seed, .. } = self.experiment;
        let rows = population.nodes.get(place).map(|node| node.train.clone()).unwrap_or_default();
        let examples = rows.len() as u64;
        let kind = match (trainer, &population.data) {
            (Trainer::FixedVector, _) => Kind::Vector { seed: *seed, node: place as u64 },
            (Trainer::Real, None) => return Err(ExperimentError::NoData),
            (Trainer::Real, Some(data)) => Kind::Samples {
                data: data.select(rows).map_err(|e| ExperimentError::Plan(e.to_string()))?,
                plan: plan(&task.training, assignment, epochs).map_err(ExperimentError::Plan)?,
            },
        };
        Ok(Job::Train(Training { base: self.base.clone(), kind, examples }))
    }

    fn issue_evaluation(&mut self) {
        let Phase::Evaluating { checks, .. } = &self.state.phase else { return };
        let asked: Vec<(AssignmentId, String)> = checks.iter().map(|(node, (id, _))| (*id, node.clone())).collect();
        for (assignment, name) in asked {
            let Some((place, node, speed)) = self.fleet.find(&name) else { continue };
            let Some(data) = &self.experiment.population.data else { continue };
            let Ok(data) = data.select(node.held_out.clone()) else { continue };
            let down = self.down(place);
            let at_ms = self.now_ms + self.experiment.systems.evaluation_ms(data.len(), down, speed);
            let job = Job::Evaluate { model: self.base.model.clone(), data };
            self.put(at_ms, Happening::Evaluated { assignment }, Some(job));
        }
    }

    /// Bytes that a node has to fetch before it works on the newest version.
    fn down(&mut self, place: usize) -> u64 {
        let bytes = match self.fleet.fetch(place, self.base.id.number) {
            true => self.base.model.bytes().len() as u64,
            false => 0,
        };
        self.tally.bytes_down += bytes;
        bytes
    }

    fn put(&mut self, at_ms: u64, happening: Happening, job: Option<Job>) {
        self.issued += 1;
        let key = (at_ms, self.issued);
        self.agenda.insert(key, happening);
        if let Some(job) = job {
            self.crew.put(key, job);
        }
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
