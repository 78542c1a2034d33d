//! The node's outbox and memory on the virtual disk, in the order of the real ones: what an update leaves behind comes
//! first and lasts before the update has a name; a counted one's rest is renamed, lasting, before it is removed.

use rand::RngExt;

use super::Node;
use crate::faults::Bug;
use crate::faults::disk::{Folder, Id, Name};
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env, Trouble};
use crate::faults::message::Sha;

/// An update as it lies on disk.
#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) task: u8,
    /// Whether it leaves something behind.
    pub(super) leftover: bool,
    /// Wall clock of its writing, which may have jumped.
    pub(super) written_ms: i64,
    pub(super) examples: u64,
    pub(super) base: Sha,
    pub(super) sha256: Sha,
    pub(super) payload: Vec<u8>,
}

impl Update {
    fn file(&self) -> Vec<u8> {
        let mut file = vec![self.task, u8::from(self.leftover)];
        file.extend(self.written_ms.to_le_bytes());
        file.extend(self.examples.to_le_bytes());
        file.extend(self.base);
        file.extend(self.sha256);
        file.extend(&self.payload);
        file
    }

    fn parse(file: &[u8]) -> Option<Update> {
        let (head, rest) = file.split_first_chunk::<2>()?;
        let (written, rest) = rest.split_first_chunk::<8>()?;
        let (examples, rest) = rest.split_first_chunk::<8>()?;
        let (base, rest) = rest.split_first_chunk::<32>()?;
        let (sha256, payload) = rest.split_first_chunk::<32>()?;
        let update = Update {
            task: head[0],
            leftover: head[1] == 1,
            written_ms: i64::from_le_bytes(*written),
            examples: u64::from_le_bytes(*examples),
            base: *base,
            sha256: *sha256,
            payload: payload.to_vec(),
        };
        (fedge_models::Digest::of(payload).as_bytes() == sha256).then_some(update)
    }
}

impl Node {
    /// Persists an update and what it leaves behind.
    pub(super) fn put(&mut self, env: &mut Env, id: Id, update: &Update, rest: Option<&[u8]>) -> Result<(), Trouble> {
        use Effect::{LeftoverName, LeftoverSync, LeftoverWrite, UpdateName, UpdateSync, UpdateWrite};
        if let Some(rest) = rest {
            self.write(env, Name::Leftover(id), rest, [LeftoverWrite, LeftoverSync, LeftoverName])?;
            self.sync_outbox(env)?;
        }
        self.write(env, Name::Update(id), &update.file(), [UpdateWrite, UpdateSync, UpdateName])?;
        self.sync_outbox(env)
    }

    fn sync_outbox(&mut self, env: &mut Env) -> Result<(), Trouble> {
        let struck = env.begin(self.host, Effect::OutboxFolderSync)?;
        if !struck.in_the_middle() {
            self.disk.sync_folder(Folder::Outbox);
        }
        Ok(env.end(self.host, struck)?)
    }

    /// Written without a name, synced, named.
    fn write(&mut self, env: &mut Env, name: Name, file: &[u8], effects: [Effect; 3]) -> Result<(), Trouble> {
        let [write, sync, rename] = effects;
        let number = self.process.as_mut().map_or(0, |process| {
            process.drafts += 1;
            process.drafts
        });
        let draft = Name::Draft(number);
        let struck = env.begin(self.host, write)?;
        self.disk.create(draft);
        let len = if struck.in_the_middle() { env.rng.random_range(0..=file.len()) } else { file.len() };
        let _ = self.disk.append(draft, file.get(..len).unwrap_or_default());
        env.end(self.host, struck)?;
        let struck = env.begin(self.host, sync).inspect_err(|_| {
            self.disk.fail_sync(draft);
            self.disk.remove(draft);
        })?;
        let _ = struck.in_the_middle() || self.disk.sync(draft);
        env.end(self.host, struck)?;
        let struck = env.begin(self.host, rename).inspect_err(|_| {
            self.disk.remove(draft);
        })?;
        let _ = self.disk.rename(draft, name);
        Ok(env.end(self.host, struck)?)
    }

    /// Reads an update back.
    pub(super) fn get(&self, id: Id) -> Option<Update> {
        self.disk.read(Name::Update(id)).and_then(Update::parse)
    }

    /// A counted update's rest becomes valid, then the update is forgotten. May be done again after a crash in between.
    pub(super) fn keep(&mut self, env: &mut Env, id: Id) -> Result<(), Trouble> {
        let Some(update) = self.get(id) else { return Ok(()) };
        let (leftover, memory) = (Name::Leftover(id), Name::Memory(update.task));
        if env.bug == Some(Bug::LosesAResidual) {
            // The update is forgotten before its rest is valid.
            let rest = self.disk.read(leftover).map(<[u8]>::to_vec);
            self.discard(env, id)?;
            self.disk.sync_folder(Folder::Outbox);
            if let Some(rest) = rest {
                self.write(env, memory, &rest, [Effect::LeftoverWrite, Effect::LeftoverSync, Effect::MemoryName])?;
                self.disk.sync_folder(Folder::Memories);
            }
            return Ok(());
        }
        if update.leftover {
            if self.disk.read(leftover).is_some() {
                let struck = env.begin(self.host, Effect::MemoryName)?;
                if !struck.in_the_middle() {
                    let _ = self.disk.rename(leftover, memory);
                }
                env.end(self.host, struck)?;
            }
            // Also where it was renamed before: a crash may have come before the sync.
            let struck = env.begin(self.host, Effect::MemoryFolderSync)?;
            if !struck.in_the_middle() {
                self.disk.sync_folder(Folder::Memories);
            }
            env.end(self.host, struck)?;
        }
        Ok(self.discard(env, id)?)
    }

    /// Forgets an update and what it would have left behind. What the disk does not let go stays for the next start.
    pub(super) fn discard(&mut self, env: &mut Env, id: Id) -> Result<(), Crash> {
        if self.disk.read(Name::Update(id)).is_none() && self.disk.read(Name::Leftover(id)).is_none() {
            return Ok(());
        }
        match env.begin(self.host, Effect::OutboxRemove) {
            Err(Trouble::Crash) => Err(Crash),
            Err(Trouble::Disk) => Ok(()),
            Ok(struck) => {
                self.disk.remove(Name::Update(id));
                env.end(self.host, struck)?;
                if self.disk.read(Name::Leftover(id)).is_none() {
                    return Ok(());
                }
                // An update that comes back after a crash must not come back without what it leaves behind.
                match self.sync_outbox(env) {
                    Err(Trouble::Crash) => Err(Crash),
                    Err(Trouble::Disk) => Ok(()),
                    Ok(()) => {
                        self.disk.remove(Name::Leftover(id));
                        Ok(())
                    }
                }
            }
        }
    }

    /// Updates that were not answered, the newest last; what was never announced is removed.
    pub(super) fn found(&mut self) -> Vec<Id> {
        let names = self.disk.list(Folder::Outbox);
        let mut found: Vec<(i64, Id)> = names
            .iter()
            .filter_map(|name| match name {
                Name::Update(id) => Some((self.get(*id)?.written_ms, *id)),
                _ => None,
            })
            .collect();
        found.sort_unstable();
        let known = |name: &Name| match name {
            Name::Update(id) | Name::Leftover(id) => found.iter().any(|(_, found)| found == id),
            _ => false,
        };
        for name in names.iter().filter(|name| !known(name)) {
            self.disk.remove(*name);
        }
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// What the node remembers of a task.
    pub(super) fn memory(&self, task: u8) -> Option<&[u8]> {
        self.disk.read(Name::Memory(task))
    }

    /// What the checks look at: of each task the valid memory, and what the updates in the outbox leave behind.
    pub fn check_memories(&self, env: &mut Env) {
        if self.process.is_none() {
            return;
        }
        for task in 1..=self.setup.tasks.len() as u8 {
            let names = self.disk.list(Folder::Outbox);
            let tentative: Vec<(Id, &[u8])> = names
                .iter()
                .filter_map(|name| match name {
                    Name::Update(id) if self.get(*id)?.task == task => {
                        Some((*id, self.disk.read(Name::Leftover(*id))?))
                    }
                    _ => None,
                })
                .collect();
            env.checks.remembers(self.host, task, self.memory(task), &tentative);
        }
    }
}
