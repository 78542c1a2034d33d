//! What a seed stands for: nodes, tasks, network, operators and everything that goes wrong, all drawn before the run.
//! How it is acted out is `world`'s and the hosts'.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::clock::Ms;
use super::effect::{Effect, Fault, Kind};

/// Everything that a seed decides before the run.
#[derive(Debug)]
pub struct Scenario {
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// Exchanged values of each lineage, 4..=16.
    pub lineages: Vec<usize>,
    /// Task files, in TOML, each with its lineage.
    pub tasks: Vec<(u8, String)>,
    /// What operators do, and when.
    pub acts: Vec<(Ms, Act, u8)>,
    /// Updates up to this size are rows of the database.
    pub row_bytes: u64,
    /// Quota of the spool.
    pub spool_bytes: u64,
    /// Encoding keeps multiples of this of an update's integers, the node keeps the rest.
    pub coarseness: i32,
    /// The network when nothing strikes it.
    pub network: Network,
    /// Faults that wait for an effect.
    pub strikes: Vec<Strike>,
    /// Faults that wait for a time.
    pub incidents: Vec<(Ms, Incident)>,
    /// From here on nothing goes wrong any more.
    pub quiet_at: Ms,
}

/// A node.
#[derive(Debug)]
pub struct NodePlan {
    /// Whether it has samples for each lineage.
    pub samples: Vec<bool>,
    /// Time of a training.
    pub training_ms: Ms,
    /// How often it can't do its work, of 100.
    pub declines: u32,
}

/// The network's everyday.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Of 1000 messages.
    pub lost: u32,
    /// Of 1000 messages.
    pub duplicated: u32,
    /// Of 1000 messages: up to 3 s late.
    pub late: u32,
    /// Of 1000 parts of an upload: the connection breaks there.
    pub cut: u32,
    /// Usual time of a message.
    pub usual_ms: Ms,
}

/// A fault that strikes an effect when it happens for the (`skip` + 1)th time.
#[derive(Debug, Clone, Copy)]
pub struct Strike {
    /// What is struck.
    pub effect: Effect,
    /// By what.
    pub fault: Fault,
    /// Occurrences to let pass.
    pub skip: u32,
}

/// A fault at a time. Host 0 is the coordinator, node n is host n + 1.
#[derive(Debug, Clone, Copy)]
pub enum Incident {
    /// The host's process dies.
    Crash(u8),
    /// The host's process stands still.
    Pause(u8, Ms),
    /// The host's disk is full, or can't be written.
    Disk(u8, Fault, Ms),
    /// A node and the coordinator can't hear each other.
    Partition(u8, Ms),
    /// A node works so many times slower.
    Slow(u8, u64, Ms),
    /// The host's wall clock jumps by so many milliseconds.
    Clock(u8, i64),
}

/// What an operator does to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Act {
    /// Creates it.
    Create,
    /// Holds it after the round.
    Pause,
    /// Lets it go on.
    Resume,
    /// Ends it.
    Cancel,
}

impl Act {
    /// All of them.
    pub const ALL: [Act; 4] = [Act::Create, Act::Pause, Act::Resume, Act::Cancel];

    /// Whether it can come in this phase of the task, an index of `coverage::PHASES`. A new task waits.
    pub fn can_meet(self, phase: usize) -> bool {
        self != Act::Create || phase == 0
    }
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of(seed: u64) -> Scenario {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let strikes = strikes(rng);
        let wants = |effects: &[Effect]| strikes.iter().any(|strike| effects.contains(&strike.effect));
        let count = if rng.random_ratio(1, 20) { rng.random_range(9..=20) } else { rng.random_range(3..=8) };
        let lineages: Vec<usize> = (0..rng.random_range(1..=2)).map(|_| rng.random_range(4..=16)).collect();
        let declines = if wants(&[Effect::Decline]) { 30 } else { *pick(rng, &[0, 0, 5, 15]) };
        let nodes: Vec<NodePlan> = (0..count)
            .map(|node| NodePlan {
                samples: lineages.iter().map(|_| node < 3 || rng.random_ratio(4, 5)).collect(),
                training_ms: rng.random_range(200..2_500),
                declines,
            })
            .collect();
        let quiet_at = rng.random_range(15_000..60_000);
        let (tasks, acts) = tasks(rng, &strikes, count, lineages.len(), quiet_at);
        let spooled = wants(&[
            Effect::SpoolOpen,
            Effect::SpoolAppend,
            Effect::SpoolSync,
            Effect::SpoolName,
            Effect::SpoolFolderSync,
            Effect::SpoolRemove,
            Effect::SpoolSweep,
        ]);
        let remembered = wants(&[
            Effect::LeftoverWrite,
            Effect::LeftoverSync,
            Effect::LeftoverName,
            Effect::MemoryName,
            Effect::MemoryFolderSync,
        ]);
        Scenario {
            row_bytes: if spooled || rng.random_ratio(2, 3) { 0 } else { 1 << 16 },
            // Room for a buffer (4 at most), one update more of every node, and one of each that grows.
            spool_bytes: (2 * count as u64 + 4) * lineages.iter().map(|len| *len as u64 * 4).sum::<u64>(),
            coarseness: if remembered { 8 } else { *pick(rng, &[1, 4, 8, 16]) },
            network: Network {
                lost: *pick(rng, &[0, 2, 10, 40]),
                duplicated: *pick(rng, &[0, 2, 10, 40]),
                late: *pick(rng, &[0, 2, 10, 40]),
                cut: *pick(rng, &[0, 5, 30]),
                usual_ms: *pick(rng, &[2, 10, 60]),
            },
            incidents: incidents(rng, count, quiet_at),
            nodes,
            lineages,
            tasks,
            acts,
            strikes,
            quiet_at,
        }
    }
}

fn pick<'a, T>(rng: &mut ChaCha8Rng, choices: &'a [T]) -> &'a T {
    &choices[rng.random_range(0..choices.len())]
}

/// Some pairs of effect and fault, all equally often, with what has to happen first for them to occur.
fn strikes(rng: &mut ChaCha8Rng) -> Vec<Strike> {
    let pairs: Vec<(Effect, Fault)> = Effect::ALL
        .iter()
        .flat_map(|effect| Fault::ALL.iter().map(move |fault| (*effect, *fault)))
        .filter(|(effect, fault)| fault.can_strike(*effect))
        .collect();
    let mut strikes = Vec::new();
    for _ in 0..rng.random_range(0..=8) {
        let (effect, fault) = *pick(rng, &pairs);
        let often = effect.kind() == Kind::Message || matches!(effect, Effect::RecordStep);
        let skip = rng.random_range(0..if often { 30 } else { 6 });
        strikes.push(Strike { effect, fault, skip });
        let crash = match effect {
            Effect::Load | Effect::SpoolSweep => Some(*pick(rng, &[Effect::RecordUpdates, Effect::Receipt])),
            Effect::Recover => Some(*pick(rng, &[Effect::OutboxFolderSync, Effect::UploadCommit])),
            _ => None,
        };
        let first = crash.map(|effect| Strike { effect, fault: Fault::CrashAfter, skip: rng.random_range(0..4) });
        strikes.extend(first);
    }
    strikes
}

fn incidents(rng: &mut ChaCha8Rng, nodes: usize, quiet_at: Ms) -> Vec<(Ms, Incident)> {
    let mut incidents = Vec::new();
    for _ in 0..rng.random_range(0..=6) {
        let node = rng.random_range(1..=nodes) as u8;
        let host = if rng.random_ratio(1, 3) { 0 } else { node };
        let (short, long) = (rng.random_range(200..4_000), rng.random_range(500..15_000));
        let jump = rng.random_range(1_000..1_000_000_000i64);
        incidents.push((
            rng.random_range(0..quiet_at),
            match rng.random_range(0..8) {
                0 => Incident::Crash(host),
                1 => Incident::Pause(host, long),
                2 => Incident::Disk(host, Fault::DiskFull, short),
                3 => Incident::Disk(host, Fault::ReadOnly, short),
                4 => Incident::Partition(node, long),
                5 => Incident::Slow(node, rng.random_range(4..20), long * 2),
                6 => Incident::Clock(host, jump),
                _ => Incident::Clock(host, -jump),
            },
        ));
    }
    incidents
}

type Acts = Vec<(Ms, Act, u8)>;

fn tasks(
    rng: &mut ChaCha8Rng,
    strikes: &[Strike],
    nodes: usize,
    lineages: usize,
    quiet_at: Ms,
) -> (Vec<(u8, String)>, Acts) {
    let (mut tasks, mut acts) = (Vec::new(), Vec::new());
    for task in 0..rng.random_range(1..=2u8) {
        let lineage = if lineages > 1 { task % 2 } else { 0 };
        tasks.push((lineage, file(rng, strikes, nodes, lineage)));
        let begin = if task == 0 { 0 } else { rng.random_range(0..20_000) };
        acts.push((begin, Act::Create, task));
        if rng.random_ratio(1, 4) {
            let pause = begin + rng.random_range(0..12_000);
            acts.push((pause, Act::Pause, task));
            acts.push((pause + rng.random_range(1..8_000), Act::Resume, task));
        }
        if rng.random_ratio(1, 6) {
            acts.push((begin + rng.random_range(0..25_000), Act::Cancel, task));
        }
    }
    // Whatever was paused goes on before the end, also where the resumption came before the pause was heard.
    acts.extend((0..tasks.len() as u8).map(|task| (quiet_at + 1, Act::Resume, task)));
    (tasks, acts)
}

/// A task file.
fn file(rng: &mut ChaCha8Rng, strikes: &[Strike], nodes: usize, lineage: u8) -> String {
    let wants = |effects: &[Effect]| strikes.iter().any(|strike| effects.contains(&strike.effect));
    let kept =
        wants(&[Effect::KeptWrite, Effect::KeptSync, Effect::KeptName, Effect::KeptFolderSync, Effect::KeptRemove]);
    let name = match kept {
        true => *pick(rng, &["fedadam", "fedavgm"]),
        false => *pick(rng, &["fedavg", "fedavg", "fedadam", "fednova", "q-fedavg", "fedbuff", "fedbuff", "fedbuff"]),
    };
    let mut text = format!("model = \"m{lineage}\"\n[strategy]\nname = \"{name}\"\n");
    if name == "fedbuff" {
        let (size, staleness) = (rng.random_range(1..=4), rng.random_range(0..=3));
        text.push_str(&format!("buffer_size = {size}\nmax_staleness = {staleness}\n"));
    }
    let min_nodes = rng.random_range(1..=3);
    let cohort = if rng.random_bool(0.5) { 0 } else { rng.random_range(min_nodes..=nodes) };
    let over = if cohort > 0 && name != "fedbuff" { *pick(rng, &["0.0", "0.5", "1.0"]) } else { "0.0" };
    let report = wants(&[Effect::Report]);
    text.push_str(&format!(
        "[rounds]\ncount = {}\nmin_nodes = {min_nodes}\ncohort = {cohort}\nover_selection = {over}\ndeadline_s = {}\n\
         evaluate_every = {}\nevaluation_deadline_s = {}\nseed = {}\n[training]\nmomentum = 0.0\n",
        rng.random_range(1..=4),
        rng.random_range(4..=15),
        if report { 1 } else { rng.random_range(0..=2) },
        rng.random_range(2..=6),
        rng.random_range(0..1000),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedge_coordinator::rounds::task::TaskSpec;

    #[test]
    fn every_seeds_task_files_are_files_that_the_coordinator_takes() {
        for seed in 0..500 {
            for (_, text) in Scenario::of(seed).tasks {
                let refused = TaskSpec::parse(&text).err();
                assert_eq!(refused, None, "{text}");
            }
        }
    }

    #[test]
    fn a_seed_is_one_scenario() {
        assert_eq!(format!("{:?}", Scenario::of(7)), format!("{:?}", Scenario::of(7)));
        assert_ne!(format!("{:?}", Scenario::of(7)), format!("{:?}", Scenario::of(8)));
    }
}
