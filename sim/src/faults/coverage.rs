//! Counts how often each fault really struck each effect, and in which phase an operator came; shows it as a table.
//! What has to occur is in `effect`.

use std::fmt::Write as _;

use super::effect::{Effect, Fault};
use super::scenario::Act;

const FAULTS: usize = Fault::ALL.len();

/// The phases of a task, as the table of operators names them.
pub const PHASES: [&str; 4] = ["waiting", "training", "aggregating", "evaluating"];

/// How often what happened.
#[derive(Debug, Clone)]
pub struct Coverage {
    struck: Vec<u64>,
    done: Vec<u64>,
    acts: [[u64; PHASES.len()]; Act::ALL.len()],
}

impl Default for Coverage {
    fn default() -> Self {
        let (struck, done) = (vec![0; Effect::ALL.len() * FAULTS], vec![0; Effect::ALL.len()]);
        Coverage { struck, done, acts: Default::default() }
    }
}

impl Coverage {
    /// An effect happens.
    pub fn effect(&mut self, effect: Effect) {
        if let Some(count) = self.done.get_mut(effect as usize) {
            *count += 1;
        }
    }

    /// A fault strikes an effect.
    pub fn strike(&mut self, effect: Effect, fault: Fault) {
        if let Some(count) = self.struck.get_mut(effect as usize * FAULTS + fault as usize) {
            *count += 1;
        }
    }

    /// An operator acts on a task that is in this phase, an index of [`PHASES`].
    pub fn act(&mut self, act: Act, phase: usize) {
        if let Some(count) = self.acts.get_mut(act as usize).and_then(|row| row.get_mut(phase)) {
            *count += 1;
        }
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Coverage) {
        let add = |sums: &mut [u64], counts: &[u64]| sums.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        add(&mut self.struck, &other.struck);
        add(&mut self.done, &other.done);
        self.acts.iter_mut().zip(&other.acts).for_each(|(sums, counts)| add(sums, counts));
    }

    /// How often this fault struck this effect.
    pub fn struck(&self, effect: Effect, fault: Fault) -> u64 {
        self.struck.get(effect as usize * FAULTS + fault as usize).copied().unwrap_or_default()
    }

    /// What never happened although it can, in words.
    pub fn missing(&self) -> Vec<String> {
        let pairs = Effect::ALL.iter().flat_map(|effect| Fault::ALL.iter().map(move |fault| (*effect, *fault)));
        let pairs = pairs.filter(|(effect, fault)| fault.can_strike(*effect) && self.struck(*effect, *fault) == 0);
        let mut missing: Vec<String> = pairs.map(|(effect, fault)| format!("{fault:?} at {effect:?}")).collect();
        for (act, row) in Act::ALL.iter().zip(&self.acts) {
            let phases = PHASES.iter().zip(row).enumerate().filter(|(phase, (_, n))| act.can_meet(*phase) && **n == 0);
            missing.extend(phases.map(|(_, (phase, _))| format!("{act:?} while {phase}")));
        }
        missing
    }

    /// Both tables, in Markdown: effects × faults, and operators' acts × phases. A dash: can't meet.
    pub fn table(&self) -> String {
        let mut text = String::from("| effect | times |");
        for fault in Fault::ALL {
            let _ = write!(text, " {} |", words(&format!("{fault:?}")));
        }
        text.push_str("\n|---|--:|");
        text.push_str(&"--:|".repeat(FAULTS));
        for effect in Effect::ALL {
            let times = self.done.get(effect as usize).copied().unwrap_or_default();
            let _ = write!(text, "\n| {} | {times} |", words(&format!("{effect:?}")));
            for fault in Fault::ALL {
                let _ = match fault.can_strike(effect) {
                    true => write!(text, " {} |", self.struck(effect, fault)),
                    false => write!(text, " – |"),
                };
            }
        }
        text.push_str("\n\n| operator |");
        for phase in PHASES {
            let _ = write!(text, " {phase} |");
        }
        text.push_str("\n|---|");
        text.push_str(&"--:|".repeat(PHASES.len()));
        for (act, row) in Act::ALL.iter().zip(&self.acts) {
            let _ = write!(text, "\n| {} |", words(&format!("{act:?}")));
            for (phase, times) in row.iter().enumerate() {
                let _ = match act.can_meet(phase) {
                    true => write!(text, " {times} |"),
                    false => write!(text, " – |"),
                };
            }
        }
        text.push('\n');
        text
    }
}

/// `SpoolFolderSync` → `spool folder sync`.
fn words(name: &str) -> String {
    let mut text = String::new();
    for (index, letter) in name.chars().enumerate() {
        if letter.is_uppercase() && index > 0 {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_occurred_is_missing_until_it_does() {
        let mut coverage = Coverage::default();
        assert!(coverage.missing().contains(&"CrashDuring at SpoolSync".to_owned()));
        assert!(!coverage.missing().iter().any(|pair| pair == "Loss at SpoolSync"));
        let mut other = Coverage::default();
        other.strike(Effect::SpoolSync, Fault::CrashDuring);
        coverage.add(&other);
        assert!(!coverage.missing().contains(&"CrashDuring at SpoolSync".to_owned()));
        assert!(coverage.table().contains("| spool sync | 0 | 0 | 1 | 0 |"));
    }
}
