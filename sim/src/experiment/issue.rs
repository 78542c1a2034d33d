//! Puts on the agenda what the coordinator asks of nodes, with the virtual time at which each is done, and gives the work
//! to the crew. Whom it asks is decided in `rounds::step`; how long things take, in `systems`.

use std::collections::BTreeSet;

use fedge_coordinator::rounds::state::{AssignmentId, Phase, Work, WorkStatus};
use fedge_proto::update::max_payload_bytes;

use super::driver::{Driver, Happening};
use super::systems::{Load, Lot, Schedule};
use super::work::{Job, Source, Training, plan};
use super::{Experiment, ExperimentError, Trainer};

impl Driver<'_> {
    /// Everything that is asked for and not on the agenda yet.
    pub(super) fn issue(&mut self) -> Result<(), ExperimentError> {
        if matches!(self.state.phase, Phase::Evaluating { .. }) {
            self.issue_evaluation();
        }
        self.issue_training()
    }

    fn issue_training(&mut self) -> Result<(), ExperimentError> {
        let cohort = self.state.cohort().filter(|_| matches!(self.state.phase, Phase::Training { .. }));
        let all = cohort.into_iter().flatten().chain(&self.state.outstanding);
        let new =
            all.filter(|(id, work)| matches!(work.status, WorkStatus::Assigned) && !self.scheduled.contains_key(id));
        let mut new: Vec<(AssignmentId, Work)> = new.map(|(id, work)| (*id, work.clone())).collect();
        // By node, so that who straggles does not hang on ids, which are digests.
        new.sort_by(|a, b| a.1.node.cmp(&b.1.node));
        let Experiment { systems, seed, .. } = self.experiment;
        let epochs = self.task.training.epochs;
        let lots = match self.is_asynchronous() {
            true => (0..new.len() as u64).map(|place| systems.lot(*seed, self.issued + place, epochs)).collect(),
            false => systems.lots(*seed, self.state.round, new.len(), epochs),
        };
        for ((assignment, work), lot) in new.into_iter().zip(lots) {
            self.schedule(assignment, &work, lot)?;
        }
        Ok(())
    }

    fn schedule(&mut self, assignment: AssignmentId, work: &Work, lot: Lot) -> Result<(), ExperimentError> {
        let Some((place, node, speed)) = self.fleet.find(&work.node) else { return Ok(()) };
        let Experiment { systems, .. } = self.experiment;
        let epochs = self.task.training.epochs;
        let up = max_payload_bytes(&self.task.updates.coding(), &self.base.tensors());
        let load = Load { samples: node.train.len(), epochs, down: self.down(place), up };
        let deadline_ms = match self.state.phase {
            Phase::Training { deadline_ms, .. } if !self.is_asynchronous() => deadline_ms,
            _ => work.issued_ms.saturating_add(self.task.rounds.deadline_s.saturating_mul(1000)),
        };
        let partial = self.task.strategy.client().accept_partial;
        let key = match systems.schedule(self.now_ms, deadline_ms, load, speed, lot, partial) {
            Schedule::Arrives { at_ms, epochs } => {
                let job = self.training(place, assignment, epochs)?;
                self.tally.due += 1;
                Some(self.put(at_ms, Happening::Arrives { assignment }, Some(job)))
            }
            Schedule::Vanishes { at_ms } => Some(self.put(at_ms, Happening::Vanishes { assignment }, None)),
            Schedule::Late => None,
        };
        self.scheduled.insert(assignment, key);
        Ok(())
    }

    /// A node is given the newest version whenever it is asked: what it trains is the base of now.
    fn training(&self, place: usize, assignment: AssignmentId, epochs: u32) -> Result<Job, ExperimentError> {
        let Experiment { population, trainer, seed, .. } = self.experiment;
        let rows = population.nodes.get(place).map(|node| node.train.clone()).unwrap_or_default();
        let source = match (trainer, &population.data) {
            (Trainer::FixedVector, _) => {
                Source::Vector { seed: *seed, node: place as u64, examples: rows.len() as u64 }
            }
            (Trainer::Real, None) => return Err(ExperimentError::NoData),
            (Trainer::Real, Some(data)) => {
                Source::Samples(data.select(rows).map_err(|e| ExperimentError::Plan(e.to_string()))?)
            }
        };
        let (plan, terms) = plan(&self.task, &self.state, assignment, epochs).map_err(ExperimentError::Plan)?;
        let partial = epochs < self.task.training.epochs;
        let memory = self.fleet.memory(place);
        let base = self.base.clone();
        Ok(Job::Train(Box::new(Training { assignment, base, source, plan, terms, partial, memory })))
    }

    fn issue_evaluation(&mut self) {
        let Phase::Evaluating { checks, .. } = &self.state.phase else { return };
        let new = checks.iter().filter(|(_, (id, _))| !self.scheduled.contains_key(id));
        let new: Vec<(AssignmentId, String)> = new.map(|(node, (id, _))| (*id, node.clone())).collect();
        for (assignment, name) in new {
            let Some((place, node, speed)) = self.fleet.find(&name) else { continue };
            let Some(data) = &self.experiment.population.data else { continue };
            let Ok(data) = data.select(node.held_out.clone()) else { continue };
            let down = self.down(place);
            let at_ms = self.now_ms + self.experiment.systems.evaluation_ms(data.len(), down, speed);
            let job = Job::Evaluate { model: self.base.model.clone(), data };
            let key = self.put(at_ms, Happening::Evaluated { assignment }, Some(job));
            self.scheduled.insert(assignment, Some(key));
        }
    }

    /// Whom the coordinator finds when it looks for evaluators: some of those who are there and have held-out samples,
    /// and those who train for an asynchronous task, whom it leaves alone.
    pub(super) fn evaluators(&self) -> BTreeSet<String> {
        let Experiment { seed, evaluators, .. } = *self.experiment;
        let (every, last) = (self.task.rounds.evaluate_every, self.state.round >= self.task.rounds.count);
        let wanted = every > 0 && (last || self.state.round.is_multiple_of(every));
        let mut found = match wanted {
            true => self.fleet.evaluators(seed, self.state.round, evaluators),
            false => BTreeSet::new(),
        };
        let training = self.state.outstanding.values().filter(|work| matches!(work.status, WorkStatus::Assigned));
        found.extend(training.map(|work| work.node.clone()));
        found
    }

    /// Takes off the agenda what nobody waits for any more.
    pub(super) fn drop_unawaited(&mut self) {
        let trains = matches!(self.state.phase, Phase::Training { .. }) || self.is_asynchronous();
        let (state, crew, agenda) = (&self.state, &mut self.crew, &mut self.agenda);
        self.scheduled.retain(|assignment, key| {
            let training = trains && state.work(*assignment).is_some_and(|work| work.status.is_open());
            let awaited = training || state.evaluator(*assignment).is_some();
            if let (false, Some(key)) = (awaited, key) {
                crew.discard(*key);
                agenda.remove(key);
            }
            awaited
        });
    }

    /// Bytes that a node has to fetch before it works on the newest version.
    fn down(&mut self, place: usize) -> u64 {
        let control = self.task.strategy.client().control_variates;
        let bytes = match self.fleet.fetch(place, self.base.id.number) {
            true => {
                let beside = self.base.server.as_ref().filter(|_| control).map_or(0, |server| server.size_bytes);
                self.base.model.bytes().len() as u64 + beside
            }
            false => 0,
        };
        self.tally.bytes_down += bytes;
        bytes
    }

    fn put(&mut self, at_ms: u64, happening: Happening, job: Option<Job>) -> (u64, u64) {
        self.issued += 1;
        let key = (at_ms, self.issued);
        self.agenda.insert(key, happening);
        if let Some(job) = job {
            self.crew.put(key, job);
        }
        key
    }
}
