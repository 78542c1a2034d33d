//! The network: how a message travels, and what strikes it on its way. Messages may be lost, come late, twice or in another
//! order; a connection may break within an upload. What is said is in `message`, which faults wait in `env`.

use rand::RngExt;

use super::clock::Ms;
use super::effect::{Effect, Fault};
use super::env::{Crash, Env, Happening};
use super::message::{Body, COORDINATOR, Host, Message};
use super::scenario::Network;
use super::{coordinator, node};

/// The network when faults are over.
const QUIET: Network = Network { lost: 0, duplicated: 0, late: 0, cut: 0, usual_ms: 5 };

impl Env {
    /// Sends a message.
    ///
    /// # Errors
    /// The process dies, before or after.
    pub fn send(&mut self, from: Host, to: Host, call: u64, body: Body) -> Result<(), Crash> {
        let effect = body.effect();
        self.coverage.effect(effect);
        let fault = self.strike(effect);
        if let Some(fault) = fault {
            self.note(format_args!("FAULT {fault:?} at {effect:?} of {from}"));
            // Whether a message is overtaken is seen where it arrives.
            if fault != Fault::Reorder {
                self.coverage.strike(effect, fault);
            }
        }
        if fault == Some(Fault::CrashBefore) {
            return Err(Crash);
        }
        let network = if self.is_quiet() { QUIET } else { self.network };
        let lost = self.is_lost(from.max(to), call, effect, fault, network);
        let late = self.lateness(effect, fault, network);
        let twice = fault == Some(Fault::Duplicate) || self.everyday(effect, Fault::Duplicate, network.duplicated);
        self.sent += 1;
        if !lost {
            let message = Message { from, to, call, order: self.sent, body };
            if twice {
                let at = self.time() + late + self.rng.random_range(1..2_000);
                self.queue.push(at, Happening::Arrival(message.clone()));
            }
            let at = self.time() + late + self.rng.random_range(1..=2 * network.usual_ms);
            self.queue.push(at, Happening::Arrival(message));
        }
        match fault {
            Some(Fault::CrashAfter) => Err(Crash),
            Some(Fault::Pause) => {
                self.pause(from);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn is_lost(&mut self, node: Host, call: u64, effect: Effect, fault: Option<Fault>, network: Network) -> bool {
        match fault {
            Some(Fault::Loss) => return true,
            Some(Fault::Cut) => self.cut(node, call),
            Some(Fault::Partition) => {
                let until = self.now + self.rng.random_range(500..8_000);
                self.place_mut(node).partitioned_until = until;
                return true;
            }
            _ if self.is_partitioned(node) => {
                self.coverage.strike(effect, Fault::Partition);
                return true;
            }
            _ if Fault::Cut.can_strike(effect) && self.everyday(effect, Fault::Cut, network.cut) => {
                self.cut(node, call);
            }
            _ if self.everyday(effect, Fault::Loss, network.lost) => return true,
            _ => {}
        }
        self.cut.contains(&call)
    }

    fn lateness(&mut self, effect: Effect, fault: Option<Fault>, network: Network) -> Ms {
        let late =
            if self.everyday(effect, Fault::Delay, network.late) { self.rng.random_range(1_000..3_000) } else { 0 };
        match fault {
            Some(Fault::Delay) => late + self.rng.random_range(1_000..6_000),
            Some(Fault::Reorder) => late + self.rng.random_range(50..1_500),
            _ => late,
        }
    }

    /// What happens so many times of 1000.
    fn everyday(&mut self, effect: Effect, fault: Fault, of_1000: u32) -> bool {
        let happens = of_1000 > 0 && self.rng.random_range(0..1_000) < of_1000;
        if happens {
            self.coverage.strike(effect, fault);
        }
        happens
    }

    /// Whether a message that arrives is heard; a message that was overtaken is counted.
    pub fn arrives(&mut self, message: &Message) -> bool {
        let node = message.from.max(message.to);
        let effect = message.body.effect();
        if self.is_partitioned(node) {
            self.coverage.strike(effect, Fault::Partition);
            return false;
        }
        if self.cut.contains(&message.call) {
            return false;
        }
        let direction = usize::from(message.to == COORDINATOR);
        let heard = &mut self.place_mut(node).heard[direction];
        if message.order < *heard {
            self.coverage.strike(effect, Fault::Reorder);
        } else {
            *heard = message.order;
        }
        true
    }

    fn cut(&mut self, node: Host, call: u64) {
        self.cut.insert(call);
        // Either side may hear of it at once, or has to find out by its own patience.
        if self.rng.random_bool(0.5) {
            let after = self.rng.random_range(1..200);
            self.node_timer(node, after, node::Timer::Broken(call));
        }
        if self.rng.random_bool(0.5) {
            let after = self.rng.random_range(1..200);
            self.coordinator_timer(after, coordinator::Timer::UploadSilent(node, call, u64::MAX));
        }
    }

    fn is_partitioned(&self, node: Host) -> bool {
        self.place(node).is_some_and(|place| place.partitioned_until > self.now)
    }
}
