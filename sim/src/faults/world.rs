//! The loop: what happens next happens to its host; crashes, pauses and the end of faults come from here. After each event
//! the invariants are looked at. What hosts do is theirs, what strikes them is `env`'s.

use std::sync::Arc;

use super::arithmetic::Lineage;
use super::clock::Ms;
use super::coordinator::{Coordinator, Setup};
use super::env::{Crash, Env, Happening};
use super::invariants::{Checks, Invariant};
use super::message::{COORDINATOR, Host};
use super::node::{Habits, Node};
use super::scenario::{Act, Incident, Scenario};
use super::{Bug, Outcome};

/// After the faults, each round may take twice its deadlines and this.
const SLACK_MS: Ms = 60_000;
/// Events that a run may take: a loop without time is no progress.
const MOST_EVENTS: u64 = 400_000;

/// One run.
#[derive(Debug)]
pub struct World {
    seed: u64,
    env: Env,
    coordinator: Coordinator,
    nodes: Vec<Node>,
    ends_at: Ms,
    events: u64,
}

impl World {
    /// The world of a seed, before anything happens.
    pub fn new(seed: u64, bug: Option<Bug>, trace: bool) -> World {
        let scenario = Scenario::of(seed);
        let lineages: Vec<Arc<Lineage>> = scenario
            .lineages
            .iter()
            .enumerate()
            .filter_map(|(index, len)| Lineage::new(index as u8, *len).ok().map(Arc::new))
            .collect();
        let setup = Arc::new(Setup {
            nodes: (1..=scenario.nodes.len()).map(|node| format!("n{node:02}")).collect(),
            tasks: scenario.tasks.clone(),
            row_bytes: scenario.row_bytes,
            spool_bytes: scenario.spool_bytes,
            lineages,
            began: std::time::Instant::now(),
        });
        let checks = Checks::new(&setup.lineages);
        let mut env = Env::new(seed, &scenario, checks, bug, trace);
        let nodes = scenario.nodes.iter().enumerate().map(|(index, plan)| {
            let samples = plan.samples.iter().enumerate().filter(|(_, has)| **has).map(|(lineage, _)| lineage as u8);
            let habits = Habits {
                samples: samples.collect(),
                training_ms: plan.training_ms,
                declines: plan.declines,
                coarseness: scenario.coarseness,
                chunk_bytes: 16,
            };
            Node::new(index as Host + 1, setup.clone(), habits)
        });
        let nodes: Vec<Node> = nodes.collect();
        for host in 0..=nodes.len() {
            env.queue.push(host as Ms, Happening::Start(host as Host));
        }
        let ends_at = scenario.quiet_at + SLACK_MS + rounds_ms(&setup);
        World { seed, env, coordinator: Coordinator::new(setup), nodes, ends_at, events: 0 }
    }

    /// Runs to the end, or to the first violation.
    pub fn run(mut self) -> Outcome {
        while let Some((at, happening)) = self.env.queue.pop() {
            if let Some(host) = host_of(&happening)
                && self.env.busy_until(host) > at
            {
                let later = self.env.busy_until(host);
                self.env.queue.push(later, happening);
                continue;
            }
            self.env.turn(at, host_of(&happening));
            self.events += 1;
            self.happens(happening);
            self.look();
            if self.env.checks.violation().is_some() || self.is_over() {
                break;
            }
            if at > self.ends_at || self.events > MOST_EVENTS {
                let what = self.where_it_is();
                self.env.checks.fail(Invariant::EveryTaskEnds, what);
                break;
            }
        }
        self.end()
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Start(host) => {
                let outcome = match self.node(host) {
                    None => self.coordinator.start(&mut self.env),
                    Some(_) => self.with_node(host, Node::start),
                };
                self.unless_crashed(host, outcome);
            }
            Happening::Arrival(message) => {
                let to = message.to;
                if !self.env.arrives(&message) {
                    return;
                }
                let outcome = match self.node(to) {
                    None if self.coordinator.process.is_some() => self.coordinator.hear(&mut self.env, message),
                    None => Ok(()),
                    Some(_) => self.with_node(to, |node, env| node.hear(env, message.call, message.body)),
                };
                self.unless_crashed(to, outcome);
            }
            Happening::Coordinator(life, timer) => {
                if life == self.env.life(COORDINATOR) && self.coordinator.process.is_some() {
                    let outcome = self.coordinator.timer(&mut self.env, timer);
                    self.unless_crashed(COORDINATOR, outcome);
                }
            }
            Happening::Node(host, life, timer) => {
                if life == self.env.life(host) {
                    let outcome = self.with_node(host, |node, env| node.timer(env, timer));
                    self.unless_crashed(host, outcome);
                }
            }
            Happening::Incident(incident) => {
                self.env.incident(incident);
                if let Incident::Crash(host) = incident
                    && !self.env.is_quiet()
                    && self.is_alive(host)
                {
                    self.crash(host);
                }
            }
            Happening::Act(act, task) => self.act(act, task),
        }
    }

    fn act(&mut self, act: Act, task: u8) {
        if act == Act::Pause && self.env.is_quiet() {
            return;
        }
        let outcome = match self.coordinator.process {
            Some(_) => self.coordinator.act(&mut self.env, act, task),
            None => return self.env.act_again(act, task),
        };
        if let Err(Crash) = outcome {
            // The operator does not know whether it was done, and asks again.
            self.crash(COORDINATOR);
            self.env.act_again(act, task);
        }
    }

    fn unless_crashed(&mut self, host: Host, outcome: Result<(), Crash>) {
        if let Err(Crash) = outcome {
            self.crash(host);
        }
    }

    fn crash(&mut self, host: Host) {
        self.env.note(format_args!("host {host} dies"));
        match usize::from(host).checked_sub(1).and_then(|index| self.nodes.get_mut(index)) {
            None => {
                self.coordinator.process = None;
                self.coordinator.disk.crash(&mut self.env.rng);
            }
            Some(node) => node.crash(&mut self.env),
        }
        self.env.died(host);
    }

    fn is_alive(&self, host: Host) -> bool {
        match self.node(host) {
            None => self.coordinator.process.is_some(),
            Some(node) => node.process.is_some(),
        }
    }

    /// The invariants that are looked at after every event.
    fn look(&mut self) {
        self.coordinator.check_bounds(&mut self.env.checks);
        let mut touched = std::mem::take(&mut self.env.checks.touched);
        touched.extend(self.env.host);
        for host in touched {
            if let Some(node) = usize::from(host).checked_sub(1).and_then(|index| self.nodes.get(index)) {
                node.check_memories(&mut self.env);
                node.check_bounds(&mut self.env.checks);
            }
        }
    }

    /// All tasks ended, all nodes at rest. Faults end with the tasks.
    fn is_over(&mut self) -> bool {
        let all = self.coordinator.database.tasks.len() == self.coordinator.setup.tasks.len();
        if !all || !self.coordinator.is_done() {
            return false;
        }
        self.env.quiet_down();
        self.nodes.iter().all(Node::is_at_rest)
    }

    fn where_it_is(&self) -> String {
        let running = self.coordinator.database.running();
        let tasks: Vec<String> = running
            .iter()
            .map(|row| format!("{} in round {}: {:?}", row.state.task_id, row.state.round, row.state.phase))
            .collect();
        let busy = self.nodes.iter().filter(|node| !node.is_at_rest()).count();
        format!("still running: {tasks:?}; {busy} nodes are not at rest")
    }

    fn end(mut self) -> Outcome {
        if self.env.checks.violation().is_none() {
            self.env.checks.all_settled();
        }
        let violation = self.env.checks.violation().cloned();
        if let Some(violation) = &violation {
            self.env.note(format_args!("VIOLATION {violation}"));
        }
        Outcome {
            seed: self.seed,
            violation,
            hash: self.env.trace.hash(),
            coverage: self.env.coverage,
            events: self.events,
            ended_ms: self.env.now,
            lines: self.env.trace.into_lines(),
        }
    }

    fn node(&self, host: Host) -> Option<&Node> {
        usize::from(host).checked_sub(1).and_then(|index| self.nodes.get(index))
    }

    fn with_node(
        &mut self,
        host: Host,
        work: impl FnOnce(&mut Node, &mut Env) -> Result<(), Crash>,
    ) -> Result<(), Crash> {
        match usize::from(host).checked_sub(1).and_then(|index| self.nodes.get_mut(index)) {
            Some(node) => work(node, &mut self.env),
            None => Ok(()),
        }
    }
}

/// Whose event it is; a process that stands still does not see it.
fn host_of(happening: &Happening) -> Option<Host> {
    match happening {
        Happening::Arrival(message) => Some(message.to),
        Happening::Coordinator(..) | Happening::Act(..) => Some(COORDINATOR),
        Happening::Node(host, ..) | Happening::Start(host) => Some(*host),
        Happening::Incident(_) => None,
    }
}

/// Time that all rounds of all tasks may take when nothing goes wrong.
fn rounds_ms(setup: &Setup) -> Ms {
    let specs = setup.tasks.iter().filter_map(|(_, text)| fedge_coordinator::rounds::task::TaskSpec::parse(text).ok());
    specs
        .map(|spec| spec.rounds.count * 2 * (spec.rounds.deadline_s + spec.rounds.evaluation_deadline_s + 6) * 1_000)
        .sum()
}
