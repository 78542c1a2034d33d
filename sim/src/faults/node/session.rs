//! A node's calls: session, heartbeats, polls, refusals; each is given up after a while and made again.
//! What the answers lead to is decided in `participant`; uploads are in `sending`.

use fedge_node::federation::convert;
use fedge_node::federation::participant::Event;
use fedge_node::training::Resources;
use fedge_proto::federation::{PollReply, poll_reply::Assignment};

use super::{BACKOFF_MS, Node, Timer};
use crate::faults::clock::Ms;
use crate::faults::disk::Id;
use crate::faults::env::{Crash, Env};
use crate::faults::invariants::Invariant;
use crate::faults::message::{Body, COORDINATOR, task_number};

const CALL_MS: Ms = 2_500;
const POLL_MS: Ms = 9_000;
const BEAT_MS: Ms = 1_500;
/// Attempts at a short call before it is given up.
const ATTEMPTS: u32 = 40;
/// Assignments whose tasks are remembered.
const TASKS: usize = 8;

/// What a call is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    Hello,
    Beat,
    Poll,
    /// Of the work of this number.
    Fetch(u64),
    Report(u64),
    /// Of the sending of this number.
    Find(u64),
    Upload(u64),
    Decline(Id),
}

impl Node {
    /// Makes a call.
    pub(super) fn call(&mut self, env: &mut Env, kind: Call, body: Body) -> Result<u64, Crash> {
        let call = env.call();
        if let Some(process) = &mut self.process {
            process.calls.insert(call, kind);
        }
        let patience = if matches!(kind, Call::Poll) { POLL_MS } else { CALL_MS };
        if !matches!(kind, Call::Upload(_)) {
            env.node_timer(self.host, patience, Timer::CallEnds(call));
        }
        env.send(self.host, COORDINATOR, call, body)?;
        Ok(call)
    }

    pub(super) fn hello(&mut self, env: &mut Env) -> Result<(), Crash> {
        self.call(env, Call::Hello, Body::Hello).map(drop)
    }

    pub(super) fn beat(&mut self, env: &mut Env) -> Result<(), Crash> {
        if !self.process.as_ref().is_some_and(|process| process.connected) {
            return Ok(());
        }
        let samples = self.habits.samples.clone();
        self.call(env, Call::Beat, Body::Heartbeat(samples)).map(drop)
    }

    pub(super) fn poll(&mut self, env: &mut Env) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if std::mem::replace(&mut process.polling, true) {
            return Ok(());
        }
        let seen = process.seen;
        self.call(env, Call::Poll, Body::Poll(seen)).map(drop)
    }

    /// Says the refusals that did not arrive yet.
    pub(super) fn decline_again(&mut self, env: &mut Env) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let under_way =
            |id: &Id| process.calls.values().any(|call| matches!(call, Call::Decline(other) if other == id));
        let next = process.declines.iter().map(|(id, _)| *id).find(|id| !under_way(id));
        match next {
            Some(id) => self.call(env, Call::Decline(id), Body::Decline(id)).map(drop),
            None => Ok(()),
        }
    }

    /// A call was answered, or nothing came of it.
    pub(super) fn answered(&mut self, env: &mut Env, kind: Call, body: Option<Body>) -> Result<(), Crash> {
        match kind {
            Call::Hello => {
                let welcome = matches!(body, Some(Body::Welcome));
                let pause = self.pause(0, welcome);
                if let Some(process) = &mut self.process {
                    process.connected = welcome;
                }
                let (after, next) = if welcome { (1, Timer::Beat) } else { (pause, Timer::Hello) };
                env.node_timer(self.host, after, next);
                Ok(())
            }
            Call::Beat => {
                let heard = matches!(body, Some(Body::Heard));
                if let Some(process) = &mut self.process {
                    process.connected = heard;
                }
                let (after, next) = if heard { (BEAT_MS, Timer::Beat) } else { (1, Timer::Hello) };
                env.node_timer(self.host, after, next);
                Ok(())
            }
            Call::Poll => self.polled(env, body),
            Call::Decline(id) => {
                let heard = matches!(body, Some(Body::Heard));
                if let Some(process) = &mut self.process {
                    for (_, attempts) in process.declines.iter_mut().filter(|(other, _)| *other == id) {
                        *attempts += 1;
                    }
                    process.declines.retain(|(other, attempts)| *other != id || !(heard || *attempts > ATTEMPTS));
                }
                env.node_timer(self.host, if heard { 1 } else { 400 }, Timer::Decline);
                Ok(())
            }
            Call::Fetch(serial) => self.fetched(env, serial, body),
            Call::Report(serial) => self.reported(env, serial, body),
            Call::Find(serial) => self.upload_found(env, serial, body),
            Call::Upload(serial) => self.upload_answered(env, serial, body),
        }
    }

    fn polled(&mut self, env: &mut Env, body: Option<Body>) -> Result<(), Crash> {
        let told = matches!(body, Some(Body::Instructions(_)));
        let pause = self.pause(1, told);
        let Some(process) = &mut self.process else { return Ok(()) };
        process.polling = false;
        // A coordinator that was started again has to tell everything again.
        process.seen = 0;
        env.node_timer(self.host, if told { 2 } else { pause }, Timer::Poll);
        if let Some(Body::Instructions(reply)) = body {
            process.seen = reply.seen;
            self.instructed(env, *reply);
        }
        Ok(())
    }

    fn instructed(&mut self, env: &mut Env, reply: PollReply) {
        let told = match &reply.assignment {
            Some(Assignment::Train(train)) => Some((train.assignment_id.clone(), train.task_id.clone())),
            Some(Assignment::Evaluate(evaluate)) => Some((evaluate.assignment_id.clone(), evaluate.task_id.clone())),
            None => None,
        };
        let told = told.and_then(|(id, task)| Some((Id::try_from(id).ok()?, task_number(&task))));
        if let (Some(told), Some(process)) = (told, &mut self.process) {
            process.tasks.retain(|(id, _)| *id != told.0);
            process.tasks.push_back(told);
            if process.tasks.len() > TASKS {
                process.tasks.pop_front();
            }
        }
        // Deadlines on the node's own clock are its training's matter, which is simulated: any moment will do.
        match convert::instructions(reply, Resources::default(), self.setup.began) {
            Ok(instructions) => self.post(env, Event::Instructed(instructions.assignment)),
            Err(problem) => env.checks.fail(Invariant::RecordsAreSound, format!("a poll's reply: {problem}")),
        }
    }

    /// The pause after a failure; after a success, the first one again.
    fn pause(&mut self, which: usize, success: bool) -> Ms {
        let Some(pause) = self.process.as_mut().and_then(|process| process.pauses.get_mut(which)) else { return 0 };
        let now = *pause;
        *pause = if success { BACKOFF_MS.0 } else { (now * 2).min(BACKOFF_MS.1) };
        now
    }
}
