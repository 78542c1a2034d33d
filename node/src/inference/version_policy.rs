//! Which of a model's versions are served, as Triton's model configuration says it.
//! Where versions come from is `library`'s and the federation's.

use serde::{Deserialize, Serialize};

/// Which of the versions that there are, are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionPolicy {
    /// The highest so many.
    Latest(usize),
    /// All.
    All(bool),
    /// These.
    Specific(Vec<u64>),
}

impl Default for VersionPolicy {
    fn default() -> VersionPolicy {
        VersionPolicy::Latest(1)
    }
}

impl VersionPolicy {
    /// The versions to serve, of those that there are (ascending).
    pub fn choose(&self, there: &[u64]) -> Vec<u64> {
        match self {
            VersionPolicy::Latest(count) => there[there.len().saturating_sub((*count).max(1))..].to_vec(),
            VersionPolicy::All(_) => there.to_vec(),
            VersionPolicy::Specific(wanted) => there.iter().copied().filter(|number| wanted.contains(number)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_chooses_among_the_versions_that_there_are() {
        let there = [1, 2, 5];
        assert_eq!(VersionPolicy::default().choose(&there), [5]);
        assert_eq!(VersionPolicy::Latest(2).choose(&there), [2, 5]);
        assert_eq!(VersionPolicy::Latest(9).choose(&there), there);
        assert_eq!(VersionPolicy::All(true).choose(&there), there);
        assert_eq!(VersionPolicy::Specific(vec![1, 4]).choose(&there), [1]);
        assert_eq!(VersionPolicy::default().choose(&[]), [] as [u64; 0]);
    }
}
