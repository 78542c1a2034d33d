//! What nodes and the coordinator say to each other: the federation's calls, each with the number of its call.
//! How a message travels is in `env`; what it leads to is the hosts'.

use fedge_proto::federation::PollReply;

use super::disk::Id;
use super::effect::Effect;

/// Host 0 is the coordinator, node n is host n + 1.
pub type Host = u8;

/// The coordinator.
pub const COORDINATOR: Host = 0;

/// A SHA-256.
pub type Sha = [u8; 32];

/// The number at the end of a task's id; ids are counted over all lineages.
pub fn task_number(id: &str) -> u8 {
    id.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Who sent it.
    pub from: Host,
    /// Who gets it.
    pub to: Host,
    /// The call that it belongs to; an upload is one call.
    pub call: u64,
    /// Counts the messages that were sent.
    pub order: u64,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone)]
pub enum Body {
    /// A session, please.
    Hello,
    /// Alive, with samples for these lineages.
    Heartbeat(Vec<u8>),
    /// What is there to do? With what was seen last.
    Poll(u64),
    /// The version with this digest, please.
    Fetch(Sha),
    /// How much of this update is there?
    Find(Id, Sha),
    /// An upload begins.
    Begin(Box<Begin>),
    /// A part of it, from this byte on.
    Chunk(u64, Vec<u8>),
    /// That was all of it.
    Commit,
    /// This can't be done.
    Decline(Id),
    /// This was evaluated.
    Report(Id),
    /// The session is open.
    Welcome,
    /// No session: say hello first.
    NoSession,
    /// It was heard.
    Heard,
    /// The coordinator's disk failed, or it is overloaded: try again.
    TryAgain,
    /// What there is to do.
    Instructions(Box<PollReply>),
    /// A version; none: there is no such.
    File(Option<Vec<u8>>),
    /// Bytes of an update that are there.
    Offset(u64),
    /// The update is on disk.
    Counted,
    /// It never will be, and why.
    Refused(&'static str),
}

/// The first message of an upload.
#[derive(Debug, Clone)]
pub struct Begin {
    /// What it answers.
    pub id: Id,
    /// What was trained.
    pub base: Sha,
    /// Digest of the payload.
    pub sha256: Sha,
    /// Its size.
    pub bytes: u64,
    /// Where the chunks begin.
    pub offset: u64,
    /// Weight in the average.
    pub examples: u64,
}

impl Body {
    /// The effect of sending it.
    pub fn effect(&self) -> Effect {
        match self {
            Body::Hello => Effect::Hello,
            Body::Heartbeat(_) => Effect::Heartbeat,
            Body::Poll(_) => Effect::Poll,
            Body::Fetch(_) => Effect::Fetch,
            Body::Find(..) => Effect::FindUpload,
            Body::Begin(_) => Effect::UploadBegin,
            Body::Chunk(..) => Effect::UploadChunk,
            Body::Commit => Effect::UploadCommit,
            Body::Decline(_) => Effect::Decline,
            Body::Report(_) => Effect::Report,
            Body::Welcome => Effect::Welcome,
            Body::NoSession | Body::Heard => Effect::Heard,
            Body::TryAgain | Body::Refused(_) => Effect::Refusal,
            Body::Instructions(_) => Effect::Instructions,
            Body::File(_) => Effect::File,
            Body::Offset(_) => Effect::Offset,
            Body::Counted => Effect::Receipt,
        }
    }
}
