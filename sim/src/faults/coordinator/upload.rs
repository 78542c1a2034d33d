//! One upload: begin, chunks into memory or the spool, verification; a broken one goes on where it stopped.
//! Whether it counts is decided in `step`, when it is recorded is `answers`' matter.

use std::sync::Arc;

use fedge_coordinator::aggregate::fixed_point::Scales;
use fedge_coordinator::rounds::state::{AssignmentId, TrainedUpdate};
use fedge_models::Digest;
use rand::RngExt;

use super::answers::Answer;
use super::folds::short;
use super::{Coordinator, Timer};
use crate::faults::Bug;
use crate::faults::arithmetic::check;
use crate::faults::clock::Ms;
use crate::faults::disk::{Folder, Id, Name};
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env, Trouble};
use crate::faults::message::{Begin, Body, COORDINATOR, Host, Sha};

/// Longest silence within an upload.
const SILENCE_MS: Ms = 4_000;

/// An upload that is under way.
#[derive(Debug)]
pub(super) struct Upload {
    call: u64,
    begin: Begin,
    scales: Arc<Scales>,
    /// A small one.
    row: Option<Vec<u8>>,
    received: u64,
    parts: u64,
}

impl Coordinator {
    pub(super) fn find_upload(
        &mut self,
        env: &mut Env,
        node: Host,
        call: u64,
        id: Id,
        sha256: Sha,
    ) -> Result<(), Crash> {
        let open = self.admission(node, AssignmentId(id), None).0 == Answer::Open;
        let part = self.disk.read(Name::Part(id, short(&sha256))).filter(|_| open);
        env.send(COORDINATOR, node, call, Body::Offset(part.map_or(0, |part| part.len() as u64)))
    }

    pub(super) fn upload_begins(&mut self, env: &mut Env, node: Host, call: u64, begin: Begin) -> Result<(), Crash> {
        let Some(process) = &self.process else { return Ok(()) };
        match process.uploads.get(&node) {
            Some(upload) if upload.call == call => return Ok(()),
            Some(_) => return env.send(COORDINATOR, node, call, Body::TryAgain),
            None => {}
        }
        let id = AssignmentId(begin.id);
        let (answer, task) = self.admission(node, id, Some(begin.sha256));
        let (Answer::Open, Some(running)) = (&answer, task.and_then(|task| process.tasks.get(&task))) else {
            return match answer {
                Answer::Duplicate => self.receipt(env, node, call, id, &begin.sha256),
                answer => self.earlier(env, node, call, id, &begin.sha256, &answer),
            };
        };
        let base = running.state.work(id).map(|work| *work.base.digest.as_bytes());
        if base != Some(begin.base) || begin.bytes != running.base.values.len() as u64 * 4 {
            self.give_up_on(env, node, id);
            return env.send(COORDINATOR, node, call, Body::Refused("base or size"));
        }
        let row = (begin.bytes <= self.setup.row_bytes).then(Vec::new);
        let scales = running.base.scales.clone();
        let (received, in_memory) = (begin.offset, row.is_some());
        let upload = Upload { call, begin, scales, row, received, parts: 0 };
        if in_memory && received > 0 {
            return env.send(COORDINATOR, node, call, Body::TryAgain);
        }
        if !in_memory {
            match self.open_spool(env, &upload.begin) {
                Err(Trouble::Crash) => return Err(Crash),
                Ok(true) => {}
                Ok(false) | Err(Trouble::Disk) => return env.send(COORDINATOR, node, call, Body::TryAgain),
            }
        }
        if let Some(process) = &mut self.process {
            process.uploads.insert(node, upload);
        }
        env.coordinator_timer(SILENCE_MS, Timer::UploadSilent(node, call, 0));
        Ok(())
    }

    /// Opens the unfinished file, cut to where the upload goes on, and promises it its place. False: the quota is used up,
    /// or less is there than the node believes.
    fn open_spool(&mut self, env: &mut Env, begin: &Begin) -> Result<bool, Trouble> {
        let entry = (begin.id, short(&begin.sha256));
        let part = Name::Part(entry.0, entry.1);
        let Some(process) = &mut self.process else { return Ok(false) };
        // An earlier payload of the same assignment that was not finished goes.
        let unfinished = |o: &([u8; 16], [u8; 4])| self.disk.read(Name::Spooled(o.0, o.1)).is_none();
        let others = process.promised.keys().copied().filter(|o| o.0 == entry.0 && *o != entry && unfinished(o));
        for other in others.collect::<Vec<_>>() {
            self.disk.remove(Name::Part(other.0, other.1));
            process.promised.remove(&other);
        }
        let used: u64 = process.promised.iter().filter(|(other, _)| **other != entry).map(|(_, bytes)| bytes).sum();
        if used + begin.bytes > self.setup.spool_bytes {
            return Ok(false);
        }
        let struck = env.begin(COORDINATOR, Effect::SpoolOpen)?;
        self.disk.create(part);
        process.promised.insert(entry, begin.bytes);
        let there = self.disk.read(part).map_or(0, <[u8]>::len);
        if !struck.in_the_middle() {
            self.disk.cut(part, begin.offset as usize);
        }
        env.end(COORDINATOR, struck)?;
        Ok(begin.offset <= there as u64)
    }

    pub(super) fn upload_goes_on(
        &mut self,
        env: &mut Env,
        node: Host,
        call: u64,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(upload) = process.uploads.get_mut(&node).filter(|upload| upload.call == call) else { return Ok(()) };
        if at != upload.received || at + bytes.len() as u64 > upload.begin.bytes {
            return self.end_upload(env, node, call, Body::TryAgain);
        }
        upload.received += bytes.len() as u64;
        upload.parts += 1;
        let (parts, part) = (upload.parts, Name::Part(upload.begin.id, short(&upload.begin.sha256)));
        if let Some(row) = &mut upload.row {
            row.extend_from_slice(bytes);
        } else {
            match self.append(env, part, bytes) {
                Err(Trouble::Crash) => return Err(Crash),
                Ok(true) => {}
                Ok(false) | Err(Trouble::Disk) => return self.end_upload(env, node, call, Body::TryAgain),
            }
        }
        env.coordinator_timer(SILENCE_MS, Timer::UploadSilent(node, call, parts));
        Ok(())
    }

    /// False: the file is gone, for its round is over.
    fn append(&mut self, env: &mut Env, part: Name, bytes: &[u8]) -> Result<bool, Trouble> {
        let struck = env.begin(COORDINATOR, Effect::SpoolAppend)?;
        let len = if struck.in_the_middle() { env.rng.random_range(0..=bytes.len()) } else { bytes.len() };
        let there = self.disk.append(part, bytes.get(..len).unwrap_or_default());
        env.end(COORDINATOR, struck)?;
        Ok(there)
    }

    pub(super) fn upload_ends(&mut self, env: &mut Env, node: Host, call: u64) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(upload) = process.uploads.get_mut(&node).filter(|upload| upload.call == call) else { return Ok(()) };
        // It is not silent any more: it waits for this side.
        upload.parts += 1;
        let (begin, id) = (upload.begin.clone(), AssignmentId(upload.begin.id));
        let part = Name::Part(begin.id, short(&begin.sha256));
        let payload = upload.row.clone().or_else(|| self.disk.read(part).map(<[u8]>::to_vec)).unwrap_or_default();
        if upload.received < begin.bytes || payload.len() as u64 != begin.bytes {
            return self.end_upload(env, node, call, Body::TryAgain);
        }
        let (row, scales) = (upload.row.take(), upload.scales.clone());
        if Digest::of(&payload).as_bytes() != &begin.sha256 {
            // More chunks can't mend it: the next attempt begins again.
            self.discard(&begin);
            return self.end_upload(env, node, call, Body::TryAgain);
        }
        let Ok(squared_norm) = check(&scales, &payload) else {
            self.discard(&begin);
            self.give_up_on(env, node, id);
            return self.end_upload(env, node, call, Body::Refused("values"));
        };
        if row.is_none() {
            match self.finish(env, &begin) {
                Err(Trouble::Crash) => return Err(Crash),
                Err(Trouble::Disk) => return self.end_upload(env, node, call, Body::TryAgain),
                Ok(()) => {}
            }
        }
        let update = TrainedUpdate {
            examples: begin.examples,
            sha256: begin.sha256,
            bytes: begin.bytes,
            steps: 1,
            loss_first: 2.0,
            loss_last: 1.0,
            duration_ms: 1,
            loss_base: Some(1.5),
            partial: false,
            squared_norm,
        };
        self.commit(env, node, call, id, update, row)
    }

    /// Gives a verified update its lasting name.
    fn finish(&mut self, env: &mut Env, begin: &Begin) -> Result<(), Trouble> {
        let (part, name) = (Name::Part(begin.id, short(&begin.sha256)), Name::Spooled(begin.id, short(&begin.sha256)));
        let struck = env.begin(COORDINATOR, Effect::SpoolSync).inspect_err(|_| {
            // What a failed sync did not write, no later sync writes: the next attempt begins again.
            self.disk.fail_sync(part);
            self.discard(begin);
        })?;
        let there = struck.in_the_middle() || self.disk.sync(part);
        env.end(COORDINATOR, struck)?;
        let struck = env.begin(COORDINATOR, Effect::SpoolName)?;
        let there = there && self.disk.rename(part, name);
        env.end(COORDINATOR, struck)?;
        if env.bug != Some(Bug::SkipsAFolderSync) {
            let struck = env.begin(COORDINATOR, Effect::SpoolFolderSync)?;
            if !struck.in_the_middle() {
                self.disk.sync_folder(Folder::Spool);
            }
            env.end(COORDINATOR, struck)?;
        }
        // Its round is over, and the file went with it.
        if there { Ok(()) } else { Err(Trouble::Disk) }
    }

    fn discard(&mut self, begin: &Begin) {
        let entry = (begin.id, short(&begin.sha256));
        self.disk.remove(Name::Part(entry.0, entry.1));
        if self.disk.read(Name::Spooled(entry.0, entry.1)).is_none()
            && let Some(process) = &mut self.process
        {
            process.promised.remove(&entry);
        }
    }

    /// Answers an upload and frees the node's place.
    pub(super) fn end_upload(&mut self, env: &mut Env, node: Host, call: u64, body: Body) -> Result<(), Crash> {
        if let Some(process) = &mut self.process
            && process.uploads.get(&node).is_some_and(|upload| upload.call == call)
        {
            process.uploads.remove(&node);
        }
        if call == 0 { Ok(()) } else { env.send(COORDINATOR, node, call, body) }
    }

    /// An upload's connection broke, or nothing came for too long.
    pub(super) fn upload_is_silent(&mut self, env: &mut Env, node: Host, call: u64, part: u64) -> Result<(), Crash> {
        let Some(process) = &self.process else { return Ok(()) };
        let upload = process.uploads.get(&node).filter(|upload| upload.call == call);
        if upload.is_some_and(|upload| part == u64::MAX || upload.parts == part) {
            return self.end_upload(env, node, call, Body::TryAgain);
        }
        Ok(())
    }

    /// Removes everything of an assignment whose round is over.
    pub(super) fn remove_spooled(&mut self, env: &mut Env, id: AssignmentId) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let entries: Vec<_> = process.promised.keys().copied().filter(|entry| entry.0 == id.0).collect();
        for entry in entries {
            match env.begin(COORDINATOR, Effect::SpoolRemove) {
                Err(Trouble::Crash) => return Err(Crash),
                // It stays until the next start.
                Err(Trouble::Disk) => {}
                Ok(struck) => {
                    self.disk.remove(Name::Spooled(entry.0, entry.1));
                    if !struck.in_the_middle() {
                        self.disk.remove(Name::Part(entry.0, entry.1));
                    }
                    process.promised.remove(&entry);
                    env.end(COORDINATOR, struck)?;
                }
            }
        }
        Ok(())
    }
}
