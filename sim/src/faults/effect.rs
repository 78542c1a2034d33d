//! The names of everything that a host does to the world, of everything that can go wrong, and which of these can meet.
//! Where an effect happens is in the hosts, whether a fault strikes it in `env`.

/// Something that a host does and that a fault can strike before, in the middle or afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Effect {
    /// Coordinator: the file of an update that has not arrived whole is made, or cut to where the upload goes on.
    SpoolOpen,
    /// Coordinator: a chunk is appended.
    SpoolAppend,
    /// Coordinator: a whole update is synced.
    SpoolSync,
    /// Coordinator: it gets its lasting name.
    SpoolName,
    /// Coordinator: the spool's folder is synced.
    SpoolFolderSync,
    /// Coordinator: an update that is not needed any more is removed.
    SpoolRemove,
    /// Coordinator: a step that accepts updates is recorded.
    RecordUpdates,
    /// Coordinator: a step that ends a round is recorded.
    RecordRound,
    /// Coordinator: a step that brings a new version is recorded.
    RecordVersion,
    /// Coordinator: another step is recorded.
    RecordStep,
    /// Coordinator: a task is recorded.
    RecordTask,
    /// Coordinator: the clock alone is recorded.
    RecordClock,
    /// Coordinator: an update is added to the sums.
    Fold,
    /// Coordinator: leftovers of the next version are removed.
    VersionClear,
    /// Coordinator: the next version is written.
    VersionWrite,
    /// Coordinator: it is synced.
    VersionSync,
    /// Coordinator: it gets its name.
    VersionName,
    /// Coordinator: its folder is synced.
    VersionFolderSync,
    /// Coordinator: what the strategy keeps is written.
    KeptWrite,
    /// Coordinator: it is synced.
    KeptSync,
    /// Coordinator: it gets its name.
    KeptName,
    /// Coordinator: its folder is synced.
    KeptFolderSync,
    /// Coordinator: what the strategy kept before is removed.
    KeptRemove,
    /// Coordinator: it starts and reads what there is.
    Load,
    /// Coordinator: it starts and removes what a crash left in the spool.
    SpoolSweep,
    /// Node: it trains.
    Train,
    /// Node: what an update leaves behind is written.
    LeftoverWrite,
    /// Node: it is synced.
    LeftoverSync,
    /// Node: it gets its name.
    LeftoverName,
    /// Node: an update is written.
    UpdateWrite,
    /// Node: it is synced.
    UpdateSync,
    /// Node: it gets its name.
    UpdateName,
    /// Node: the outbox's folder is synced.
    OutboxFolderSync,
    /// Node: what a counted update left behind becomes valid.
    MemoryName,
    /// Node: the memories' folder is synced.
    MemoryFolderSync,
    /// Node: an update that is answered is removed.
    OutboxRemove,
    /// Node: it starts and looks for what it has not sent.
    Recover,
    /// Node's message: a session.
    Hello,
    /// Node's message: alive.
    Heartbeat,
    /// Node's message: what is there to do?
    Poll,
    /// Node's message: a version, please.
    Fetch,
    /// Node's message: how much of an update is there?
    FindUpload,
    /// Node's message: an upload begins.
    UploadBegin,
    /// Node's message: a part of an update.
    UploadChunk,
    /// Node's message: that was all of it.
    UploadCommit,
    /// Node's message: it can't do that.
    Decline,
    /// Node's message: how the version does on its held-out part.
    Report,
    /// Coordinator's message: the session is open.
    Welcome,
    /// Coordinator's message: a heartbeat, a refusal or a report was heard.
    Heard,
    /// Coordinator's message: what there is to do.
    Instructions,
    /// Coordinator's message: a version.
    File,
    /// Coordinator's message: how much of an update is there.
    Offset,
    /// Coordinator's message: an update is on disk.
    Receipt,
    /// Coordinator's message: it is not.
    Refusal,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Fault {
    /// The host dies before the effect.
    CrashBefore,
    /// The host dies in the middle of it.
    CrashDuring,
    /// The host dies after it, before it knows.
    CrashAfter,
    /// The process stands still for a while after it.
    Pause,
    /// The disk is full, for a while.
    DiskFull,
    /// The disk can't be written at all, for a while.
    ReadOnly,
    /// The message is lost.
    Loss,
    /// It comes twice.
    Duplicate,
    /// A later one comes before it.
    Reorder,
    /// It comes late.
    Delay,
    /// The node and the coordinator can't hear each other, for a while.
    Partition,
    /// The connection breaks: nothing more of the upload arrives, nor its answer.
    Cut,
    /// The node is slow.
    Slow,
    /// The host's wall clock has jumped forward.
    ClockForward,
    /// The host's wall clock has jumped backward.
    ClockBackward,
}

/// What an effect acts on; decides which faults can strike it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes or names on the disk.
    Write,
    /// A transaction of the database.
    Transaction,
    /// Work that touches no disk, or only reads it.
    Work,
    /// A message on its way.
    Message,
}

impl Effect {
    /// All effects.
    pub const ALL: [Effect; 54] = {
        use Effect::*;
        [
            SpoolOpen,
            SpoolAppend,
            SpoolSync,
            SpoolName,
            SpoolFolderSync,
            SpoolRemove,
            RecordUpdates,
            RecordRound,
            RecordVersion,
            RecordStep,
            RecordTask,
            RecordClock,
            Fold,
            VersionClear,
            VersionWrite,
            VersionSync,
            VersionName,
            VersionFolderSync,
            KeptWrite,
            KeptSync,
            KeptName,
            KeptFolderSync,
            KeptRemove,
            Load,
            SpoolSweep,
            Train,
            LeftoverWrite,
            LeftoverSync,
            LeftoverName,
            UpdateWrite,
            UpdateSync,
            UpdateName,
            OutboxFolderSync,
            MemoryName,
            MemoryFolderSync,
            OutboxRemove,
            Recover,
            Hello,
            Heartbeat,
            Poll,
            Fetch,
            FindUpload,
            UploadBegin,
            UploadChunk,
            UploadCommit,
            Decline,
            Report,
            Welcome,
            Heard,
            Instructions,
            File,
            Offset,
            Receipt,
            Refusal,
        ]
    };

    /// What it acts on.
    pub fn kind(self) -> Kind {
        use Effect::*;
        match self {
            SpoolOpen | SpoolAppend | SpoolSync | SpoolName | SpoolFolderSync | SpoolRemove | VersionClear
            | VersionWrite | VersionSync | VersionName | VersionFolderSync | KeptWrite | KeptSync | KeptName
            | KeptFolderSync | KeptRemove | SpoolSweep | LeftoverWrite | LeftoverSync | LeftoverName | UpdateWrite
            | UpdateSync | UpdateName | OutboxFolderSync | MemoryName | MemoryFolderSync | OutboxRemove => Kind::Write,
            RecordUpdates | RecordRound | RecordVersion | RecordStep | RecordTask | RecordClock => Kind::Transaction,
            Fold | Load | Train | Recover => Kind::Work,
            Hello | Heartbeat | Poll | Fetch | FindUpload | UploadBegin | UploadChunk | UploadCommit | Decline
            | Report | Welcome | Heard | Instructions | File | Offset | Receipt | Refusal => Kind::Message,
        }
    }

    /// Whether the host writes down the wall clock's time with it.
    fn reads_the_wall_clock(self) -> bool {
        use Effect::*;
        matches!(
            self,
            RecordUpdates | RecordRound | RecordVersion | RecordStep | RecordTask | RecordClock | UpdateName | Load
        )
    }

    /// Whether a full disk makes it fail; a disk that can't be written makes every write and transaction fail.
    fn needs_room(self) -> bool {
        use Effect::*;
        !matches!(self, SpoolRemove | VersionClear | KeptRemove | SpoolSweep | OutboxRemove)
    }
}

impl Fault {
    /// All faults.
    pub const ALL: [Fault; 15] = {
        use Fault::*;
        [
            CrashBefore,
            CrashDuring,
            CrashAfter,
            Pause,
            DiskFull,
            ReadOnly,
            Loss,
            Duplicate,
            Reorder,
            Delay,
            Partition,
            Cut,
            Slow,
            ClockForward,
            ClockBackward,
        ]
    };

    /// Whether it can strike this effect. Those that can, have to, over the seeds of the default run.
    pub fn can_strike(self, effect: Effect) -> bool {
        let kind = effect.kind();
        match self {
            Fault::CrashBefore | Fault::CrashAfter | Fault::Pause => true,
            Fault::CrashDuring => kind != Kind::Message,
            Fault::DiskFull => matches!(kind, Kind::Write | Kind::Transaction) && effect.needs_room(),
            Fault::ReadOnly => matches!(kind, Kind::Write | Kind::Transaction),
            Fault::Loss | Fault::Duplicate | Fault::Reorder | Fault::Delay | Fault::Partition => kind == Kind::Message,
            Fault::Cut => {
                matches!(effect, Effect::UploadBegin | Effect::UploadChunk | Effect::UploadCommit | Effect::Receipt)
            }
            Fault::Slow => matches!(effect, Effect::Train | Effect::UploadChunk),
            Fault::ClockForward | Fault::ClockBackward => effect.reads_the_wall_clock(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_name_everything_once_and_in_order() {
        assert!(Effect::ALL.iter().enumerate().all(|(index, effect)| *effect as usize == index));
        assert!(Fault::ALL.iter().enumerate().all(|(index, fault)| *fault as usize == index));
    }
}
