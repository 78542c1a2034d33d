//! `model.toml`: what a standalone node is told about one model: labels, preprocessing, versions, batching and queue.
//! Every key has a default; a model without the file has them all.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use fedge_models::Preprocessing;
use serde::{Deserialize, Serialize};

use super::super::batching::BatchingOptions;
use super::super::executor::ExecutorOptions;
use super::super::repository::ModelOptions;
use super::super::version_policy::VersionPolicy;
use super::folder::SETTINGS_FILE;

/// Largest settings or labels file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A model's settings. Unknown keys are errors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Class names, in the order of the output.
    pub labels: Vec<String>,
    /// A text file in the model's folder with a class name a line, instead of `labels`.
    pub labels_file: Option<String>,
    /// A .csv or .npz file in the model's folder whose samples calibrate int8; without one the model runs in float.
    pub calibration_file: Option<String>,
    /// Done to raw samples.
    pub preprocessing: Preprocessing,
    /// Names of the clients that may ask it, as their identities have them; absent: all. Operators always may.
    pub clients: Option<BTreeSet<String>>,
    /// Which versions are served.
    pub version_policy: VersionPolicy,
    /// Runs at a time; 0: the node's `inference.threads`.
    pub instances: usize,
    /// Samples that requests are put together to, at most; 1: never; absent: up to 32 where it is seen to pay.
    pub max_batch_size: Option<usize>,
    /// Sizes that are worth waiting for.
    pub preferred_batch_size: Vec<usize>,
    /// How long the first request waits for others while the model is busy.
    pub max_queue_delay_microseconds: u64,
    /// Requests that may wait; 0: 256.
    pub max_queue_size: usize,
    /// Longest wait of a request that names none; 0: any.
    pub default_timeout_microseconds: u64,
    /// Levels of priority, 1 the most urgent; 0: none.
    pub priority_levels: u32,
    /// The level of requests that name none; 0: the last.
    pub default_priority_level: u32,
}

impl Settings {
    /// Reads `model.toml` of a model's folder, and the labels file that it names.
    ///
    /// # Errors
    /// A sentence with the file, the key and what is allowed.
    pub fn read(folder: &Path) -> Result<Settings, String> {
        let Some(text) = read(folder, SETTINGS_FILE)? else { return Ok(Settings::default()) };
        let mut settings: Settings = toml::from_str(&text).map_err(|error| format!("{SETTINGS_FILE}: {error}"))?;
        if let Some(file) = &settings.labels_file {
            let labels =
                read(folder, file)?.ok_or_else(|| format!("{SETTINGS_FILE}: labels_file: there is no {file:?}"))?;
            settings.labels = labels.lines().map(|line| line.trim().to_owned()).collect();
        }
        settings.check().map_err(|(key, problem)| format!("{SETTINGS_FILE}: {key}: {problem}"))?;
        Ok(settings)
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// The key, and what is allowed.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let refused = |key: &'static str, problem: &'static str| Err((key, problem));
        if self.labels.iter().any(|label| label.len() > 256) {
            return refused("labels", "at most 256 bytes each");
        }
        if self.max_batch_size == Some(0) || self.max_batch_size.is_some_and(|size| size > 4096) {
            return refused("max_batch_size", "1 to 4096");
        }
        if self.preferred_batch_size.iter().any(|size| !(1..=self.max_batch_size.unwrap_or(32)).contains(size)) {
            return refused("preferred_batch_size", "each 1 to max_batch_size");
        }
        if self.instances > 256 || self.max_queue_size > 1 << 20 || self.priority_levels > 256 {
            return refused("instances, max_queue_size or priority_levels", "at most 256, 1048576 and 256");
        }
        if self.default_priority_level > self.priority_levels {
            return refused("default_priority_level", "at most priority_levels");
        }
        if self.max_queue_delay_microseconds > 10_000_000 {
            return refused("max_queue_delay_microseconds", "at most 10000000 (10 s)");
        }
        if self.calibration_file.iter().chain(&self.labels_file).any(|name| !is_file_name(name)) {
            return refused("calibration_file or labels_file", "a file name in the model's folder, without a path");
        }
        Ok(())
    }

    /// As [`Settings::check`], for a model of a fleet: what comes with its versions can't be set at a node.
    ///
    /// # Errors
    /// The key, and what is allowed.
    pub fn check_of_fleet(&self) -> Result<(), (&'static str, &'static str)> {
        let given = [
            ("labels", !self.labels.is_empty()),
            ("labels_file", self.labels_file.is_some()),
            ("calibration_file", self.calibration_file.is_some()),
            ("preprocessing", self.preprocessing != Preprocessing::default()),
            ("version_policy", self.version_policy != VersionPolicy::default()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err((key, "comes from the coordinator with each version: leave it out")),
            None => self.check(),
        }
    }

    /// How the model is served; `node` is what the node does where the model says nothing.
    pub fn options(&self, node: &ExecutorOptions) -> ModelOptions {
        ModelOptions {
            executor: self.executor(node),
            clients: self.clients.clone(),
            version_policy: self.version_policy.clone(),
        }
    }

    fn executor(&self, node: &ExecutorOptions) -> ExecutorOptions {
        let or = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
        let mut preferred = self.preferred_batch_size.clone();
        preferred.sort_unstable();
        // Where batching was asked for, requests meet in the queue.
        let batching = self.max_batch_size.is_some_and(|size| size > 1) || !preferred.is_empty();
        ExecutorOptions {
            threads: or(self.instances, node.threads),
            max_waiting: or(self.max_queue_size, node.max_waiting),
            batching: BatchingOptions {
                max_batch_size: self.max_batch_size,
                preferred_batch_size: preferred,
                max_queue_delay: Duration::from_micros(self.max_queue_delay_microseconds),
            },
            default_timeout: Some(self.default_timeout_microseconds).filter(|us| *us > 0).map(Duration::from_micros),
            priority_levels: self.priority_levels,
            default_priority: if self.default_priority_level == 0 {
                self.priority_levels
            } else {
                self.default_priority_level
            },
            inline: if batching { Duration::ZERO } else { node.inline },
        }
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && name != ".." && name != "."
}

fn read(folder: &Path, name: &str) -> Result<Option<String>, String> {
    let path = folder.join(name);
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{name}: {error}")),
    };
    if !metadata.is_file() {
        return Err(format!("{name}: is not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(format!("{name}: has {} bytes, more than {MAX_BYTES}", metadata.len()));
    }
    std::fs::read_to_string(&path).map(Some).map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("labels.txt"), "cat\ndog\n").unwrap();
        std::fs::write(folder.path().join(SETTINGS_FILE), text).unwrap();
        Settings::read(folder.path())
    }

    #[test]
    fn every_key_is_read_and_wrong_ones_are_refused_by_name() {
        let read = settings(
            "labels_file = \"labels.txt\"\nmax_batch_size = 8\npreferred_batch_size = [8, 4]\ninstances = 3\n\
             max_queue_delay_microseconds = 500\n[version_policy]\nspecific = [1, 3]\n[preprocessing]\nscale = 0.5\n",
        )
        .unwrap();
        assert_eq!((read.labels.len(), read.preprocessing.scale), (2, 0.5));
        let executor = read.executor(&ExecutorOptions::default());
        assert_eq!((executor.threads, executor.batching.preferred_batch_size), (3, vec![4, 8]));
        assert_eq!(executor.inline, Duration::ZERO);
        for (text, key) in [
            ("batch = 1", "batch"),
            ("max_batch_size = 0", "max_batch_size"),
            ("max_batch_size = 4\npreferred_batch_size = [8]", "preferred_batch_size"),
            ("labels_file = \"../labels.txt\"", "labels_file"),
            ("labels_file = \"none.txt\"", "none.txt"),
            ("default_priority_level = 2", "default_priority_level"),
            ("[version_policy]\nnewest = 1", "newest"),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
