//! What a running node tells `fedge node status`: a small file in its folder, replaced whole at each change.
//! Nothing reads it to decide anything.

use std::path::{Path, PathBuf};

use fedge_models::Digest;
use serde::{Deserialize, Serialize};

/// Name of the file in the node's folder.
pub const FILE_NAME: &str = "status.json";

/// A running node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its process.
    pub pid: u32,
    /// Its identity, a SPIFFE id.
    pub identity: String,
    /// Where it serves inference, ip:port.
    pub inference_address: String,
    /// "mutual TLS" or "plaintext".
    pub transport: String,
    /// Whether the coordinator answers.
    pub connected: bool,
    /// Why not.
    pub last_error: Option<String>,
    /// What it does for the federation, in words.
    pub work: String,
    /// Why it does not train now; empty: it would.
    #[serde(default)]
    pub resting: String,
    /// What it serves.
    pub serving: Vec<ServedModel>,
    /// What is wrong with its data files.
    pub data_problems: Vec<String>,
}

/// One lineage on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// Lineage.
    pub model: String,
    /// Version that is served; 0 while none is.
    pub number: u64,
    /// Its digest.
    pub digest: Option<Digest>,
    /// "int8" or "float"; empty while none is served.
    pub precision: String,
    /// Why float, where int8 was wanted.
    pub float_reason: String,
    /// Labelled samples to train on.
    pub training_samples: u64,
    /// Labelled samples that are never trained on.
    pub held_out_samples: u64,
    /// What changed in the requests since the served version came: "input" or "confidence"; empty: nothing that was seen.
    #[serde(default)]
    pub drift: String,
    /// Changes that were seen since the node started.
    #[serde(default)]
    pub drift_alarms: u64,
}

/// Where the status is written.
#[derive(Debug, Clone)]
pub struct StatusFile(PathBuf);

impl StatusFile {
    /// The status file of a node's folder.
    pub fn of(folder: &Path) -> StatusFile {
        StatusFile(folder.join(FILE_NAME))
    }

    /// Replaces the status. A failure is logged: the node goes on.
    pub fn write(&self, status: &NodeStatus) {
        let staged = self.0.with_extension("json.part");
        let written = serde_json::to_vec_pretty(status)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&staged, text))
            .and_then(|()| std::fs::rename(&staged, &self.0));
        if let Err(error) = written {
            tracing::warn!(path = %self.0.display(), %error, "the status could not be written");
        }
    }

    /// Reads the status; none where no node ran yet.
    ///
    /// # Errors
    /// A file that can't be read or is no status.
    pub fn read(&self) -> std::io::Result<Option<NodeStatus>> {
        match std::fs::read(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(std::io::Error::other),
        }
    }

    /// Forgets the status, when the node stops.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
