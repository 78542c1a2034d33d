//! Sessions, polls and downloads: who is there, what a node is told, the versions it asks for.
//! What a node is told follows from the real board and the real `poll_reply`.

use std::collections::{BTreeMap, BTreeSet};

use fedge_coordinator::rounds::board::{Board, TaskView};
use fedge_coordinator::rounds::convert;
use fedge_models::Digest;
use fedge_proto::federation::{PollReply, poll_reply::Assignment};

use super::{Coordinator, Timer};
use crate::faults::clock::Ms;
use crate::faults::disk::Name;
use crate::faults::env::{Crash, Env};
use crate::faults::invariants::{Checks, Invariant};
use crate::faults::message::{Body, COORDINATOR, Host, Sha};

/// A node counts as available for so long after its last message.
const LIVENESS_MS: Ms = 5_000;
/// A poll is held for so long.
const HOLD_MS: Ms = 6_000;

/// A node's session.
#[derive(Debug)]
pub(super) struct Session {
    last_seen: Ms,
    samples: Vec<u8>,
}

/// A poll that waits for news.
#[derive(Debug)]
pub(super) struct Held {
    call: u64,
    seen: u64,
}

impl Coordinator {
    pub(super) fn hello(&mut self, env: &mut Env, node: Host, call: u64) -> Result<(), Crash> {
        let last_seen = env.time();
        let Some(process) = &mut self.process else { return Ok(()) };
        let session = process.sessions.entry(node).or_insert(Session { last_seen, samples: Vec::new() });
        session.last_seen = last_seen;
        env.send(COORDINATOR, node, call, Body::Welcome)
    }

    pub(super) fn heartbeat(&mut self, env: &mut Env, node: Host, call: u64, samples: &[u8]) -> Result<(), Crash> {
        let known = self.seen(env, node);
        if let Some(session) = self.process.as_mut().and_then(|process| process.sessions.get_mut(&node)) {
            session.samples = samples.to_vec();
        }
        env.send(COORDINATOR, node, call, if known { Body::Heard } else { Body::NoSession })
    }

    pub(super) fn poll(&mut self, env: &mut Env, node: Host, call: u64, seen: u64) -> Result<(), Crash> {
        if !self.seen(env, node) {
            return env.send(COORDINATOR, node, call, Body::NoSession);
        }
        let Some(reply) = self.reply(env, node) else { return Ok(()) };
        if reply.seen != seen {
            return env.send(COORDINATOR, node, call, Body::Instructions(Box::new(reply)));
        }
        if let Some(process) = &mut self.process {
            process.held.insert(node, Held { call, seen });
        }
        env.coordinator_timer(HOLD_MS, Timer::PollEnds(node, call));
        Ok(())
    }

    pub(super) fn poll_ends(&mut self, env: &mut Env, node: Host, call: u64) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if process.held.get(&node).is_none_or(|held| held.call != call) {
            return Ok(());
        }
        process.held.remove(&node);
        let Some(reply) = self.reply(env, node) else { return Ok(()) };
        env.send(COORDINATOR, node, call, Body::Instructions(Box::new(reply)))
    }

    pub(super) fn fetch(&mut self, env: &mut Env, node: Host, call: u64, digest: Sha) -> Result<(), Crash> {
        let digest = Digest::from_bytes(digest);
        let row = self.database.versions.values().find(|row| row.manifest.digest == digest);
        let Some(row) = row else { return env.send(COORDINATOR, node, call, Body::File(None)) };
        let (name, number) = (row.manifest.name.clone(), row.manifest.number);
        let lineage = self.setup.lineage(&name).map_or(0, |(index, _)| index);
        let file = self.disk.read(Name::Version(lineage, number)).filter(|file| Digest::of(file) == digest);
        let file = file.map(<[u8]>::to_vec);
        env.checks.require(file.is_some(), Invariant::RecordsAreSound, || {
            format!("version {number} of {name} is recorded, and its file is not there")
        });
        env.checks.announced(&name, number, &digest);
        env.send(COORDINATOR, node, call, Body::File(file))
    }

    /// Nodes that are alive and have samples of a lineage.
    pub(super) fn available(&self, env: &Env, model: &str) -> BTreeSet<String> {
        let Some(process) = &self.process else { return BTreeSet::new() };
        let lineage = self.setup.lineage(model).map_or(u8::MAX, |(index, _)| index);
        let alive = |session: &Session| env.time() < session.last_seen + LIVENESS_MS;
        let there = process.sessions.iter().filter(|(_, s)| alive(s) && s.samples.contains(&lineage));
        let mut available: BTreeSet<String> = there.map(|(node, _)| self.setup.name(*node).to_owned()).collect();
        // After a start, the nodes that tasks wait for get one liveness period to come back.
        if env.time() < process.started + LIVENESS_MS {
            available.extend(process.awaited.get(model).into_iter().flatten().cloned());
        }
        available
    }

    /// Puts up a new board and answers the polls for which it has news.
    pub(super) fn put_up_board(&mut self, env: &mut Env) -> Result<(), Crash> {
        let lineages = self.setup.lineages.iter();
        let newest = lineages.filter_map(|lineage| self.database.newest(&lineage.name).cloned()).collect();
        let Some(process) = &mut self.process else { return Ok(()) };
        let view = |running: &super::Running| TaskView { spec: running.spec.clone(), state: running.state.clone() };
        let tasks: BTreeMap<String, TaskView> =
            process.tasks.iter().map(|(id, running)| (id.clone(), view(running))).collect();
        let states = tasks.values().map(|view| &view.state);
        let bases: BTreeSet<Digest> = states
            .flat_map(|state| state.assignments().filter_map(|id| state.work(id)))
            .filter(|work| work.status.is_open())
            .map(|work| work.base.digest)
            .collect();
        let mut board = Board::new(newest, tasks);
        let rows = self.database.versions.values().filter(|row| bases.contains(&row.manifest.digest));
        board.bases = rows.map(|row| (row.manifest.digest, row.clone())).collect();
        process.board = board;
        let held: Vec<(Host, u64, u64)> =
            process.held.iter().map(|(node, held)| (*node, held.call, held.seen)).collect();
        for (node, call, seen) in held {
            let Some(reply) = self.reply(env, node).filter(|reply| reply.seen != seen) else { continue };
            if let Some(process) = &mut self.process {
                process.held.remove(&node);
            }
            env.send(COORDINATOR, node, call, Body::Instructions(Box::new(reply)))?;
        }
        Ok(())
    }

    fn seen(&mut self, env: &Env, node: Host) -> bool {
        let session = self.process.as_mut().and_then(|process| process.sessions.get_mut(&node));
        session.is_some_and(|session| {
            session.last_seen = env.time();
            true
        })
    }

    fn reply(&self, env: &mut Env, node: Host) -> Option<PollReply> {
        let now_ms = self.now_ms(env);
        let process = self.process.as_ref()?;
        let reply = convert::poll_reply(&process.board, self.setup.name(node), now_ms);
        announced(&mut env.checks, &reply);
        Some(reply)
    }
}

/// Every version that a reply names is the one that was recorded under its number.
fn announced(checks: &mut Checks, reply: &PollReply) {
    let served = reply.serve.iter().filter_map(|serve| serve.version.as_ref());
    let assigned = match &reply.assignment {
        Some(Assignment::Train(train)) => train.base.as_ref(),
        Some(Assignment::Evaluate(evaluate)) => evaluate.version.as_ref(),
        None => None,
    };
    for version in served.chain(assigned) {
        if let Ok(digest) = <[u8; 32]>::try_from(version.digest.as_slice()) {
            checks.announced(&version.name, version.number, &Digest::from_bytes(digest));
        }
    }
}
