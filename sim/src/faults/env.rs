//! What hosts live in: clocks, timers, and the faults that strike their effects. Every effect of a host passes here; messages
//! go on in `network`. What the hosts do is theirs; which faults wait for what was drawn in `scenario`.

use std::collections::BTreeSet;
use std::fmt;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Bug;
use super::clock::{Ms, Queue};
use super::coverage::Coverage;
use super::effect::{Effect, Fault};
use super::invariants::Checks;
use super::message::{COORDINATOR, Host, Message};
use super::scenario::{Act, Incident, Network, Scenario, Strike};
use super::trace::Trace;
use super::{coordinator, node};

/// Something that is planned.
#[derive(Debug)]
pub enum Happening {
    /// A message arrives.
    Arrival(Message),
    /// A timer of the coordinator; of this life of its process.
    Coordinator(u32, coordinator::Timer),
    /// A timer of a node; of this life of its process.
    Node(Host, u32, node::Timer),
    /// A process is started again.
    Start(Host),
    /// A fault whose time has come.
    Incident(Incident),
    /// An operator's wish for a task.
    Act(Act, u8),
}

/// The process dies here.
#[derive(Debug)]
pub struct Crash;

/// Why an effect did not happen.
#[derive(Debug)]
pub enum Trouble {
    /// The process dies here.
    Crash,
    /// The disk refused it.
    Disk,
}

impl From<Crash> for Trouble {
    fn from(_: Crash) -> Self {
        Trouble::Crash
    }
}

/// What strikes an effect that has begun.
#[derive(Debug)]
#[must_use]
pub struct Struck(Option<Fault>);

impl Struck {
    /// The process dies in the middle: the effect may be half done.
    pub fn in_the_middle(&self) -> bool {
        self.0 == Some(Fault::CrashDuring)
    }
}

/// What of the world is one host's.
#[derive(Debug, Default)]
pub(super) struct Place {
    life: u32,
    pub(super) busy_until: Ms,
    disk: Option<(Fault, Ms)>,
    pub(super) partitioned_until: Ms,
    slow: (u64, Ms),
    wall_offset_ms: i64,
    /// The last jump of the wall clock, and the effects that have met it.
    jump: Option<(Fault, u64)>,
    /// The last messages of and to a node that were heard.
    pub(super) heard: [u64; 2],
}

/// The world around the hosts.
#[derive(Debug)]
pub struct Env {
    /// Virtual time.
    pub now: Ms,
    /// Whose event this is.
    pub host: Option<Host>,
    /// What is still to happen.
    pub queue: Queue<Happening>,
    /// Chance, of this seed.
    pub rng: ChaCha8Rng,
    /// From here on nothing goes wrong.
    pub quiet_at: Ms,
    /// What struck what.
    pub coverage: Coverage,
    /// The log.
    pub trace: Trace,
    /// What must always hold.
    pub checks: Checks,
    /// A bug that the hosts have, in tests of the tests.
    pub bug: Option<Bug>,
    /// Time that a pause within the present event has taken.
    lag: Ms,
    pub(super) network: Network,
    strikes: Vec<Strike>,
    places: Vec<Place>,
    pub(super) cut: BTreeSet<u64>,
    pub(super) sent: u64,
    calls: u64,
}

impl Env {
    /// The world of a seed, before anything happens.
    pub fn new(seed: u64, scenario: &Scenario, checks: Checks, bug: Option<Bug>, keep_trace: bool) -> Env {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1);
        let mut queue = Queue::default();
        for (at, incident) in &scenario.incidents {
            queue.push(*at, Happening::Incident(*incident));
        }
        for (at, act, task) in &scenario.acts {
            queue.push(*at, Happening::Act(*act, *task));
        }
        Env {
            now: 0,
            host: None,
            queue,
            rng,
            quiet_at: scenario.quiet_at,
            coverage: Coverage::default(),
            trace: Trace::new(keep_trace),
            checks,
            bug,
            lag: 0,
            network: scenario.network,
            strikes: scenario.strikes.clone(),
            places: (0..=scenario.nodes.len()).map(|_| Place::default()).collect(),
            cut: BTreeSet::new(),
            sent: 0,
            calls: 0,
        }
    }

    /// Logs a line.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    /// The time of a process that stood still within this event.
    pub fn time(&self) -> Ms {
        self.now + self.lag
    }

    /// The next event begins, of this host.
    pub fn turn(&mut self, at: Ms, host: Option<Host>) {
        self.now = at;
        self.host = host;
        self.lag = 0;
    }

    /// Until when a host's process stands still.
    pub fn busy_until(&self, host: Host) -> Ms {
        self.place(host).map_or(0, |place| place.busy_until)
    }

    /// Counts the lives of a host's process.
    pub fn life(&self, host: Host) -> u32 {
        self.place(host).map_or(0, |place| place.life)
    }

    /// A host's process died: what it planned is void, and it is started again soon.
    pub fn died(&mut self, host: Host) {
        let most = if self.is_quiet() { 500 } else { 6_000 };
        let back = self.now + self.rng.random_range(50..most);
        let now = self.now;
        let place = self.place_mut(host);
        place.life += 1;
        place.busy_until = now;
        self.queue.push(back, Happening::Start(host));
    }

    /// The host's wall clock, milliseconds since 1970.
    pub fn wall_ms(&self, host: Host) -> i64 {
        1_700_000_000_000 + self.time() as i64 + self.place(host).map_or(0, |place| place.wall_offset_ms)
    }

    /// How many times slower a host works at present; counted against the effect.
    pub fn slowness(&mut self, host: Host, effect: Effect) -> u64 {
        let now = self.now;
        match self.place(host) {
            Some(place) if place.slow.1 > now && place.slow.0 > 1 => {
                let factor = place.slow.0;
                self.coverage.strike(effect, Fault::Slow);
                factor
            }
            _ => 1,
        }
    }

    /// Whether faults are over.
    pub fn is_quiet(&self) -> bool {
        self.now >= self.quiet_at
    }

    /// A number for a new call.
    pub fn call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    /// A timer of the coordinator.
    pub fn coordinator_timer(&mut self, after: Ms, timer: coordinator::Timer) {
        let (at, life) = (self.time() + after, self.life(COORDINATOR));
        self.queue.push(at, Happening::Coordinator(life, timer));
    }

    /// A timer of a node.
    pub fn node_timer(&mut self, host: Host, after: Ms, timer: node::Timer) {
        let (at, life) = (self.time() + after, self.life(host));
        self.queue.push(at, Happening::Node(host, life, timer));
    }

    /// Plans an operator's wish again. After the faults nobody holds a task any more.
    pub fn act_again(&mut self, act: Act, task: u8) {
        if act == Act::Pause && self.is_quiet() {
            return;
        }
        self.queue.push(self.time() + 700, Happening::Act(act, task));
    }

    /// An effect of a host begins.
    ///
    /// # Errors
    /// [`Trouble`]: it does not happen.
    pub fn begin(&mut self, host: Host, effect: Effect) -> Result<Struck, Trouble> {
        self.coverage.effect(effect);
        self.meet_jump(host, effect);
        if let Some((fault, _)) = self.place(host).and_then(|p| p.disk).filter(|(_, until)| *until > self.now)
            && fault.can_strike(effect)
        {
            self.coverage.strike(effect, fault);
            return Err(Trouble::Disk);
        }
        let Some(fault) = self.strike(effect) else { return Ok(Struck(None)) };
        self.note(format_args!("FAULT {fault:?} at {effect:?} of {host}"));
        if fault != Fault::ClockForward && fault != Fault::ClockBackward {
            self.coverage.strike(effect, fault);
        }
        match fault {
            Fault::CrashBefore => Err(Trouble::Crash),
            Fault::DiskFull | Fault::ReadOnly => {
                let until = self.now + self.rng.random_range(100..3_000);
                self.place_mut(host).disk = Some((fault, until));
                Err(Trouble::Disk)
            }
            Fault::Slow => {
                let until = self.now + self.rng.random_range(1_000..20_000);
                self.place_mut(host).slow = (self.rng.random_range(3..15), until);
                Ok(Struck(None))
            }
            Fault::ClockForward | Fault::ClockBackward => {
                let size = self.rng.random_range(1_000..1_000_000_000i64);
                self.jump(host, if fault == Fault::ClockForward { size } else { -size });
                self.meet_jump(host, effect);
                Ok(Struck(None))
            }
            fault => Ok(Struck(Some(fault))),
        }
    }

    /// An effect has happened, or half of it.
    ///
    /// # Errors
    /// The process dies.
    pub fn end(&mut self, host: Host, struck: Struck) -> Result<(), Crash> {
        match struck.0 {
            Some(Fault::CrashDuring | Fault::CrashAfter) => Err(Crash),
            Some(Fault::Pause) => {
                self.pause(host);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Acts out a fault whose time has come; a crash is the world's.
    pub fn incident(&mut self, incident: Incident) {
        if self.is_quiet() {
            return;
        }
        self.note(format_args!("FAULT {incident:?}"));
        let now = self.now;
        match incident {
            Incident::Crash(_) => {}
            Incident::Pause(host, ms) => self.place_mut(host).busy_until = now + ms,
            Incident::Disk(host, fault, ms) => self.place_mut(host).disk = Some((fault, now + ms)),
            Incident::Partition(node, ms) => self.place_mut(node).partitioned_until = now + ms,
            Incident::Slow(node, factor, ms) => self.place_mut(node).slow = (factor, now + ms),
            Incident::Clock(host, ms) => self.jump(host, ms),
        }
    }

    /// Faults end now, if they have not yet.
    pub fn quiet_down(&mut self) {
        self.quiet_at = self.quiet_at.min(self.now);
        let now = self.now;
        for place in &mut self.places {
            place.disk = None;
            place.partitioned_until = now;
            place.slow = (1, now);
            place.busy_until = place.busy_until.min(now);
        }
    }

    pub(super) fn strike(&mut self, effect: Effect) -> Option<Fault> {
        if self.is_quiet() {
            return None;
        }
        let mut due = None;
        for (index, strike) in self.strikes.iter_mut().enumerate().filter(|(_, s)| s.effect == effect) {
            match strike.skip.checked_sub(1) {
                Some(rest) => strike.skip = rest,
                None => due = due.or(Some(index)),
            }
        }
        due.map(|index| self.strikes.swap_remove(index).fault)
    }

    pub(super) fn pause(&mut self, host: Host) {
        let ms = self.rng.random_range(200..8_000);
        self.lag += ms;
        let until = self.time();
        let place = self.place_mut(host);
        place.busy_until = place.busy_until.max(until);
    }

    fn jump(&mut self, host: Host, ms: i64) {
        let fault = if ms > 0 { Fault::ClockForward } else { Fault::ClockBackward };
        let place = self.place_mut(host);
        place.wall_offset_ms += ms;
        place.jump = Some((fault, 0));
    }

    fn meet_jump(&mut self, host: Host, effect: Effect) {
        let Some((fault, met)) = self.place(host).and_then(|place| place.jump) else { return };
        let bit = 1u64 << effect as u32;
        if fault.can_strike(effect) && met & bit == 0 {
            self.place_mut(host).jump = Some((fault, met | bit));
            self.coverage.strike(effect, fault);
        }
    }

    pub(super) fn place(&self, host: Host) -> Option<&Place> {
        self.places.get(usize::from(host))
    }

    pub(super) fn place_mut(&mut self, host: Host) -> &mut Place {
        let last = self.places.len() - 1;
        &mut self.places[usize::from(host).min(last)]
    }
}
