//! A node's host: does what the real driver does, in its order, on the virtual disk and network.
//! What it does with its assignments is decided by the real `participant`, what it is told is translated by `convert`.

mod outbox;
mod sending;
mod session;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fedge_node::federation::convert::AssignmentId;
use fedge_node::federation::participant::{self, Effect as Decided, Event, Participant, Phase};
use rand::RngExt;

use self::sending::Sending;
use self::session::Call;
use self::work::Work;
use super::Bug;
use super::clock::Ms;
use super::coordinator::Setup;
use super::disk::{Disk, Id};
use super::effect::Effect;
use super::env::{Crash, Env, Trouble};
use super::invariants::Checks;
use super::message::{Body, Host, Sha};

/// First and longest pause between attempts at something that failed.
const BACKOFF_MS: (Ms, Ms) = (200, 3_000);
/// Events that wait for the participant, at most.
const MAIL: usize = 16;

/// What a node waits for.
#[derive(Debug, Clone, Copy)]
pub enum Timer {
    /// An event waits for the participant.
    Mail,
    /// A session is to be opened.
    Hello,
    /// The next heartbeat.
    Beat,
    /// The next poll.
    Poll,
    /// The work of this number goes on.
    Work(u64),
    /// The sending of this number goes on.
    Send(u64),
    /// What could not be kept is tried again.
    Keep,
    /// Refusals are said again.
    Decline,
    /// Nothing came of a call.
    CallEnds(u64),
    /// A call's connection broke.
    Broken(u64),
}

/// A node: what lasts, and the process, if it is alive.
#[derive(Debug)]
pub struct Node {
    host: Host,
    disk: Disk,
    setup: Arc<Setup>,
    habits: Habits,
    /// Counts trainings, so that no two learn the same.
    trainings: u32,
    pub(super) process: Option<Process>,
}

/// What kind of node it is.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Lineages that it has samples of.
    pub samples: Vec<u8>,
    /// Time of a training.
    pub training_ms: Ms,
    /// How often it can't do its work, of 100.
    pub declines: u32,
    /// What its encoding keeps multiples of.
    pub coarseness: i32,
    /// Bytes of an upload's chunks.
    pub chunk_bytes: usize,
}

/// What a crash takes away.
#[derive(Debug, Default)]
pub struct Process {
    participant: Participant,
    mail: VecDeque<Event>,
    calls: BTreeMap<u64, Call>,
    connected: bool,
    polling: bool,
    seen: u64,
    pauses: [Ms; 2],
    /// The task of the assignments that it was told of last.
    tasks: VecDeque<(Id, u8)>,
    /// Counts works and sendings.
    serial: u64,
    work: Option<Work>,
    sending: Option<Sending>,
    /// Counted updates that the disk did not let it keep yet.
    unkept: Vec<Id>,
    /// Refusals that did not arrive yet.
    declines: Vec<(Id, u32)>,
    /// Versions that it has.
    versions: Vec<(Sha, Vec<u8>)>,
    drafts: u32,
}

impl Node {
    /// A node whose process has not been started.
    pub fn new(host: Host, setup: Arc<Setup>, habits: Habits) -> Node {
        Node { host, disk: Disk::default(), setup, habits, trainings: 0, process: None }
    }

    /// The process starts and looks for what it has not sent.
    ///
    /// # Errors
    /// It dies again.
    pub fn start(&mut self, env: &mut Env) -> Result<(), Crash> {
        let Ok(struck) = env.begin(self.host, Effect::Recover) else { return Err(Crash) };
        if struck.in_the_middle() {
            return env.end(self.host, struck);
        }
        self.process = Some(Process { pauses: [BACKOFF_MS.0; 2], ..Process::default() });
        let mut found = self.found();
        if env.bug == Some(Bug::ReusesAnAssignment) {
            // As if what was sent before the crash had never been.
            found.drain(..).for_each(|id| drop(self.discard(env, id)));
        }
        if let Some(newest) = found.pop() {
            // Only the newest can still count: a node has one assignment at a time.
            for stale in found {
                self.discard(env, stale)?;
            }
            env.note(format_args!("node {}: found {}", self.host, super::trace::Short(&newest)));
            self.event(env, Event::Found(AssignmentId(newest)))?;
        }
        let after = env.rng.random_range(1..200);
        env.node_timer(self.host, after, Timer::Hello);
        env.node_timer(self.host, after + 20, Timer::Poll);
        env.end(self.host, struck)
    }

    /// A timer has run out.
    ///
    /// # Errors
    /// The process dies.
    pub fn timer(&mut self, env: &mut Env, timer: Timer) -> Result<(), Crash> {
        match timer {
            Timer::Mail => match self.process.as_mut().and_then(|process| process.mail.pop_front()) {
                Some(event) => self.event(env, event),
                None => Ok(()),
            },
            Timer::Hello => self.hello(env),
            Timer::Beat => self.beat(env),
            Timer::Poll => self.poll(env),
            Timer::Work(serial) => self.work_goes_on(env, serial),
            Timer::Send(serial) => self.sending_goes_on(env, serial),
            Timer::Keep => self.keep_again(env),
            Timer::Decline => self.decline_again(env),
            Timer::CallEnds(call) | Timer::Broken(call) => self.call_fails(env, call),
        }
    }

    /// A message has arrived.
    ///
    /// # Errors
    /// The process dies.
    pub fn hear(&mut self, env: &mut Env, call: u64, body: Body) -> Result<(), Crash> {
        match self.process.as_mut().and_then(|process| process.calls.remove(&call)) {
            Some(kind) => self.answered(env, kind, Some(body)),
            // The answer of a call that was given up, or the second copy of one.
            None => Ok(()),
        }
    }

    fn call_fails(&mut self, env: &mut Env, call: u64) -> Result<(), Crash> {
        match self.process.as_mut().and_then(|process| process.calls.remove(&call)) {
            Some(kind) => self.answered(env, kind, None),
            None => Ok(()),
        }
    }

    /// An event for the participant, which takes one after the other.
    fn post(&mut self, env: &mut Env, event: Event) {
        let Some(process) = &mut self.process else { return };
        process.mail.push_back(event);
        let after = env.rng.random_range(0..3);
        env.node_timer(self.host, after, Timer::Mail);
    }

    fn event(&mut self, env: &mut Env, event: Event) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let (state, effects) = participant::step(std::mem::take(&mut process.participant), event);
        process.participant = state;
        for effect in effects {
            self.act(env, effect)?;
        }
        Ok(())
    }

    fn act(&mut self, env: &mut Env, effect: Decided) -> Result<(), Crash> {
        match effect {
            Decided::Start(assignment) => self.begin_work(env, &assignment),
            Decided::Cancel(id) => {
                env.note(format_args!("node {}: gives up {}", self.host, super::trace::Short(&id.0)));
                if let Some(process) = &mut self.process {
                    process.work.take_if(|work| work.id == id.0);
                }
                self.discard(env, id.0)
            }
            Decided::Send(id) => self.begin_sending(env, id.0),
            Decided::Keep(id) => self.counted(env, id.0),
            Decided::Discard(id) => {
                env.note(format_args!("node {}: discards {}", self.host, super::trace::Short(&id.0)));
                self.discard(env, id.0)
            }
            Decided::Decline(id, reason) => {
                env.note(format_args!("node {}: declines {}: {reason}", self.host, super::trace::Short(&id.0)));
                if let Some(process) = &mut self.process {
                    process.declines.push((id.0, 0));
                }
                self.decline_again(env)
            }
        }
    }

    /// An update was counted: what it left behind becomes valid.
    fn counted(&mut self, env: &mut Env, id: Id) -> Result<(), Crash> {
        env.note(format_args!("node {}: keeps {}", self.host, super::trace::Short(&id)));
        match self.keep(env, id) {
            Err(Trouble::Crash) => Err(Crash),
            Err(Trouble::Disk) => {
                if let Some(process) = &mut self.process {
                    process.unkept.push(id);
                }
                env.node_timer(self.host, 500, Timer::Keep);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn keep_again(&mut self, env: &mut Env) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        for id in std::mem::take(&mut process.unkept) {
            self.counted(env, id)?;
        }
        Ok(())
    }

    /// Nothing is on its way and nothing is under way.
    pub fn is_at_rest(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.participant.phase == Phase::Idle && process.mail.is_empty() && process.unkept.is_empty()
        })
    }

    /// The host dies.
    pub fn crash(&mut self, env: &mut Env) {
        self.process = None;
        self.disk.crash(&mut env.rng);
    }

    /// Queues and files within their bounds.
    pub fn check_bounds(&self, checks: &mut Checks) {
        let Some(process) = &self.process else { return };
        checks.bound("events waiting at a node", process.mail.len(), MAIL);
        checks.bound("calls of a node", process.calls.len(), 16);
        checks.bound("refusals waiting at a node", process.declines.len(), 8);
        // An update that is not answered, and one that was given up or is not kept yet.
        checks.bound("files of a node", self.disk.list(super::disk::Folder::Outbox).len(), 6);
    }
}
