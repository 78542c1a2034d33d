//! An update on its way: how much is there, begin, chunks, commit; again and again until it is counted or refused.
//! What the outcome leads to is decided in `participant`.

use fedge_node::federation::convert::AssignmentId;
use fedge_node::federation::participant::Event;
use rand::RngExt;

use super::session::Call;
use super::{BACKOFF_MS, Node, Timer};
use crate::faults::clock::Ms;
use crate::faults::disk::Id;
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env};
use crate::faults::message::{Begin, Body, COORDINATOR};
use crate::faults::trace::Short;

/// Patience with an upload that was sent whole.
const RECEIPT_MS: Ms = 5_000;

/// An update that is being sent.
#[derive(Debug)]
pub(super) struct Sending {
    id: Id,
    serial: u64,
    pause: Ms,
    /// The upload's call and the byte that comes next.
    upload: Option<(u64, usize)>,
}

impl Node {
    pub(super) fn begin_sending(&mut self, env: &mut Env, id: Id) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        process.serial += 1;
        let serial = process.serial;
        process.sending = Some(Sending { id, serial, pause: BACKOFF_MS.0, upload: None });
        self.sending_goes_on(env, serial)
    }

    /// The next attempt, or the next part of the present one.
    pub(super) fn sending_goes_on(&mut self, env: &mut Env, serial: u64) -> Result<(), Crash> {
        let Some(sending) = self.sending(serial) else { return Ok(()) };
        let (id, upload) = (sending.id, sending.upload);
        let Some(update) = self.get(id) else {
            return self.sent(env, serial, Event::Refused(AssignmentId(id)));
        };
        let Some((call, at)) = upload else {
            return self.call(env, Call::Find(serial), Body::Find(id, update.sha256)).map(drop);
        };
        let chunk = update.payload.get(at..).unwrap_or_default();
        if chunk.is_empty() {
            env.node_timer(self.host, RECEIPT_MS, Timer::CallEnds(call));
            return env.send(self.host, COORDINATOR, call, Body::Commit);
        }
        let chunk = chunk.get(..self.habits.chunk_bytes).unwrap_or(chunk).to_vec();
        if let Some(sending) = self.sending(serial) {
            sending.upload = Some((call, at + chunk.len()));
        }
        let slower = env.slowness(self.host, Effect::UploadChunk);
        let after = env.rng.random_range(1..30) * slower;
        env.node_timer(self.host, after, Timer::Send(serial));
        env.send(self.host, COORDINATOR, call, Body::Chunk(at as u64, chunk))
    }

    /// The coordinator said how much is there.
    pub(super) fn upload_found(&mut self, env: &mut Env, serial: u64, body: Option<Body>) -> Result<(), Crash> {
        let Some(sending) = self.sending(serial) else { return Ok(()) };
        let id = sending.id;
        let (Some(Body::Offset(offset)), Some(update)) = (body, self.get(id)) else {
            return self.attempt_again(env, serial);
        };
        let begin = Begin {
            id,
            base: update.base,
            sha256: update.sha256,
            bytes: update.payload.len() as u64,
            offset,
            examples: update.examples,
        };
        env.checks.sends(self.host, id, update.sha256);
        env.note(format_args!("node {}: sends {} from byte {offset}", self.host, Short(&id)));
        let call = self.call(env, Call::Upload(serial), Body::Begin(Box::new(begin)))?;
        if let Some(sending) = self.sending(serial) {
            sending.upload = Some((call, usize::try_from(offset).unwrap_or(usize::MAX)));
        }
        let after = env.rng.random_range(1..20);
        env.node_timer(self.host, after, Timer::Send(serial));
        Ok(())
    }

    /// The coordinator answered an upload, or nothing came of it.
    pub(super) fn upload_answered(&mut self, env: &mut Env, serial: u64, body: Option<Body>) -> Result<(), Crash> {
        let Some(sending) = self.sending(serial) else { return Ok(()) };
        let id = AssignmentId(sending.id);
        match body {
            Some(Body::Counted) => self.sent(env, serial, Event::Counted(id)),
            Some(Body::Refused(reason)) => {
                env.note(format_args!("node {}: {} is refused: {reason}", self.host, Short(&id.0)));
                self.sent(env, serial, Event::Refused(id))
            }
            _ => self.attempt_again(env, serial),
        }
    }

    fn attempt_again(&mut self, env: &mut Env, serial: u64) -> Result<(), Crash> {
        let Some(sending) = self.sending(serial) else { return Ok(()) };
        let pause = sending.pause;
        sending.pause = (pause * 2).min(BACKOFF_MS.1);
        sending.upload = None;
        // What is still planned for the attempt that failed is void.
        let Some(process) = &mut self.process else { return Ok(()) };
        process.serial += 1;
        let serial = process.serial;
        if let Some(sending) = &mut process.sending {
            sending.serial = serial;
        }
        env.node_timer(self.host, pause, Timer::Send(serial));
        Ok(())
    }

    fn sent(&mut self, env: &mut Env, serial: u64, event: Event) -> Result<(), Crash> {
        if let Some(process) = &mut self.process {
            process.sending.take_if(|sending| sending.serial == serial);
        }
        self.post(env, event);
        Ok(())
    }

    fn sending(&mut self, serial: u64) -> Option<&mut Sending> {
        self.process.as_mut().and_then(|process| process.sending.as_mut()).filter(|sending| sending.serial == serial)
    }
}
