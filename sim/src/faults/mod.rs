//! Deterministic simulation of rounds under faults: one coordinator, some nodes, virtual clock, disks and network, all from
//! one seed. The deciders are the real ones; what is simulated is what they stand on, and what goes wrong with it.

mod arithmetic;
mod clock;
mod coordinator;
pub mod coverage;
mod database;
mod disk;
pub mod effect;
mod env;
pub mod invariants;
mod ledger;
mod message;
mod network;
mod node;
pub mod scenario;
mod sweep;
mod trace;
mod world;

use self::clock::Ms;
use self::coverage::Coverage;
use self::invariants::Violation;
pub use self::sweep::{Sweep, sweep};

/// A bug that the hosts can be given, to see that the invariants find it. Production code has none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The coordinator acknowledges an update, then records it.
    AcknowledgesBeforeRecording,
    /// When sums are begun again, what was folded is folded once more.
    FoldsTwice,
    /// A counted update is forgotten before what it left behind is valid.
    LosesAResidual,
    /// After a crash, a node trains an assignment again that it had answered.
    ReusesAnAssignment,
    /// A version or a round's record and the state that follows are two transactions.
    RoundClosesTwice,
    /// The update that completes a round is not folded.
    ForgetsALateUpdate,
    /// Elapsed time is taken from the wall clock.
    ClockRunsBackward,
    /// An update's name is not synced.
    SkipsAFolderSync,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 8] = [
        Bug::AcknowledgesBeforeRecording,
        Bug::FoldsTwice,
        Bug::LosesAResidual,
        Bug::ReusesAnAssignment,
        Bug::RoundClosesTwice,
        Bug::ForgetsALateUpdate,
        Bug::ClockRunsBackward,
        Bug::SkipsAFolderSync,
    ];

    /// Its name on a command line.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// What a seed led to.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What did not hold, if something did not. The run ended there.
    pub violation: Option<Violation>,
    /// A hash of the log: equal seeds, equal hashes.
    pub hash: u64,
    /// The log, where it was wanted.
    pub lines: Vec<String>,
    /// What struck what.
    pub coverage: Coverage,
    /// Events that happened.
    pub events: u64,
    /// Virtual time at the end.
    pub ended_ms: Ms,
}

/// Runs a seed. `bug`: given to the hosts; `trace`: keep the log's lines.
pub fn run(seed: u64, bug: Option<Bug>, trace: bool) -> Outcome {
    world::World::new(seed, bug, trace).run()
}

/// The command that runs a seed again and shows what happens.
pub fn command(seed: u64, bug: Option<Bug>) -> String {
    let bug = bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
    format!("cargo run --release -p fedge-sim --example faults -- --seed {seed}{bug} --trace")
}
