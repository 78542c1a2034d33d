//! The coordinator's configuration file: keys, defaults, checked ranges, and the commented file that `init` writes.
//! What the keys do is up to the rooms that are named beside them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fedge_proto::enrolment::Addresses;
use fedge_proto::tls::check_address;
use serde::{Deserialize, Serialize};

/// Name of the file in the coordinator's folder.
pub const FILE_NAME: &str = "coordinator.toml";

/// `coordinator.toml`. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen, `ip:port` each.
    #[serde(default)]
    pub listen: Listen,
    /// How nodes and operators reach those ports, `host:port` each.
    pub advertise: Advertise,
    /// The coordinator's own certificate.
    pub certificate: Certificate,
    /// Liveness of nodes.
    #[serde(default)]
    pub nodes: Nodes,
    /// What is kept on disk.
    #[serde(default)]
    pub store: StoreLimits,
}

/// What is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreLimits {
    /// Bytes that updates may take until their round closes, at least 1 MiB. Beyond it nodes wait.
    pub spool_max_bytes: u64,
}

impl Default for StoreLimits {
    fn default() -> Self {
        StoreLimits { spool_max_bytes: 64 << 30 }
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Mutual TLS, nodes.
    pub federation: String,
    /// Server TLS, join tokens and renewals.
    pub enrolment: String,
    /// Mutual TLS, operators.
    pub operators: String,
}

impl Default for Listen {
    fn default() -> Self {
        Listen { federation: "0.0.0.0:7443".into(), enrolment: "0.0.0.0:7444".into(), operators: "0.0.0.0:7445".into() }
    }
}

/// How others reach the ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// For nodes.
    pub federation: String,
    /// For joining and renewing.
    pub enrolment: String,
    /// For operators.
    pub operators: String,
}

impl Advertise {
    /// As those who enrol are told.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            federation: self.federation.clone(),
            enrolment: self.enrolment.clone(),
            operators: self.operators.clone(),
        }
    }
}

/// The coordinator's own certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// DNS names and IP addresses that it is valid for.
    pub names: Vec<String>,
}

/// Liveness of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nodes {
    /// Milliseconds between a node's heartbeats, 100..=60000.
    pub heartbeat_ms: u64,
    /// A node that was silent for this long is not waited for, at least twice the heartbeat.
    pub liveness_ms: u64,
}

impl Default for Nodes {
    fn default() -> Self {
        Nodes { heartbeat_ms: 2000, liveness_ms: 10_000 }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not there or not readable.
    #[error("cannot read {}: {source}; `fedge coordinator init` makes a coordinator's folder", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, a wrong type, a missing or an unknown key.
    #[error("{} does not parse: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and key.
        reason: String,
    },
    /// A value that can't be.
    #[error("{}: {key} = {value}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads and checks `coordinator.toml` in a coordinator's folder.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and what to write instead.
    pub fn load(folder: &Path) -> Result<Config, ConfigError> {
        let path = folder.join(FILE_NAME);
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let config: Config =
            toml::from_str(&text).map_err(|e| ConfigError::Syntax { path: path.clone(), reason: e.to_string() })?;
        config.check(&path)?;
        Ok(config)
    }

    /// Checks ranges and addresses; `path` is named in errors.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let refuse = |key, value: &dyn std::fmt::Display, problem: String| {
            Err(ConfigError::Value { path: path.to_owned(), key, value: value.to_string(), problem })
        };
        for (key, address) in [
            ("listen.federation", &self.listen.federation),
            ("listen.enrolment", &self.listen.enrolment),
            ("listen.operators", &self.listen.operators),
        ] {
            if let Err(e) = address.parse::<std::net::SocketAddr>() {
                return refuse(key, address, format!("{e}; expected ip:port, such as 0.0.0.0:7443"));
            }
        }
        for (key, address) in [
            ("advertise.federation", &self.advertise.federation),
            ("advertise.enrolment", &self.advertise.enrolment),
            ("advertise.operators", &self.advertise.operators),
        ] {
            if let Err(e) = check_address(address) {
                return refuse(key, address, e.to_string());
            }
        }
        if self.certificate.names.is_empty() {
            return refuse("certificate.names", &"[]", "give the names under which nodes reach this machine".into());
        }
        let nodes = &self.nodes;
        if !(100..=60_000).contains(&nodes.heartbeat_ms) {
            return refuse("nodes.heartbeat_ms", &nodes.heartbeat_ms, "100 to 60000".into());
        }
        if nodes.liveness_ms < nodes.heartbeat_ms * 2 {
            return refuse("nodes.liveness_ms", &nodes.liveness_ms, "at least twice nodes.heartbeat_ms".into());
        }
        if self.store.spool_max_bytes < 1 << 20 {
            let value = &self.store.spool_max_bytes;
            return refuse("store.spool_max_bytes", value, "at least 1048576, and room for a round's updates".into());
        }
        Ok(())
    }

    /// How often nodes report.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.nodes.heartbeat_ms)
    }

    /// The file's text, with a comment for every key.
    pub fn commented(&self) -> String {
        let quoted: Vec<String> = self.certificate.names.iter().map(|n| format!("{n:?}")).collect();
        format!(
            "# fedge coordinator. Unknown keys are errors; FEDGE_* variables and flags override (`fedge coordinator run --help`).\n\
             #\n\
             # Backup: copy this whole folder while the coordinator is stopped, or its database with SQLite's backup command.\n\
             # CA rotation: the CA in ca/ lives ten years; to rotate it, init a new folder and let every node join it.\n\
             # Keep ca/ca-key.pem offline-safe: whoever has it can mint any identity.\n\
             \n\
             # Where to listen, ip:port.\n\
             [listen]\n\
             federation = {federation:?}   # nodes, mutual TLS\n\
             enrolment = {enrolment:?}    # join tokens and renewals, server TLS\n\
             operators = {operators:?}    # operators, mutual TLS\n\
             \n\
             # How nodes and operators reach those ports, host:port. They are told when they join.\n\
             [advertise]\n\
             federation = {a_federation:?}\n\
             enrolment = {a_enrolment:?}\n\
             operators = {a_operators:?}\n\
             \n\
             # DNS names and IP addresses that the coordinator's certificate is valid for.\n\
             [certificate]\n\
             names = [{names}]\n\
             \n\
             # A node reports every heartbeat_ms, also while it trains; one that was silent for liveness_ms is not waited for.\n\
             [nodes]\n\
             heartbeat_ms = {heartbeat}\n\
             liveness_ms = {liveness}\n\
             \n\
             # Disk that updates may take until their round closes, in bytes. Beyond it nodes wait and send again.\n\
             [store]\n\
             spool_max_bytes = {spool}\n",
            federation = self.listen.federation,
            enrolment = self.listen.enrolment,
            operators = self.listen.operators,
            a_federation = self.advertise.federation,
            a_enrolment = self.advertise.enrolment,
            a_operators = self.advertise.operators,
            names = quoted.join(", "),
            heartbeat = self.nodes.heartbeat_ms,
            liveness = self.nodes.liveness_ms,
            spool = self.store.spool_max_bytes,
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            listen: Listen::default(),
            advertise: Advertise {
                federation: "fedge.example:7443".into(),
                enrolment: "fedge.example:7444".into(),
                operators: "fedge.example:7445".into(),
            },
            certificate: Certificate { names: vec!["fedge.example".into(), "192.0.2.7".into()] },
            nodes: Nodes::default(),
            store: StoreLimits::default(),
        }
    }

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
        Config::load(folder.path())
    }

    #[test]
    fn the_commented_file_reads_back_equal() {
        assert_eq!(load(&config().commented()).unwrap(), config());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_line() {
        let error = load(&config().commented().replace("heartbeat_ms", "heart_beat")).unwrap_err().to_string();
        assert!(error.contains("heart_beat") && error.contains("line"), "{error}");
    }

    #[test]
    fn addresses_and_ranges_are_checked_by_key() {
        for (from, to, key) in [
            ("0.0.0.0:7443", "0.0.0.0", "listen.federation"),
            ("fedge.example:7445", "fedge.example", "advertise.operators"),
            ("heartbeat_ms = 2000", "heartbeat_ms = 1", "nodes.heartbeat_ms"),
            ("liveness_ms = 10000", "liveness_ms = 2000", "nodes.liveness_ms"),
            ("spool_max_bytes = 68719476736", "spool_max_bytes = 1", "store.spool_max_bytes"),
            ("[\"fedge.example\", \"192.0.2.7\"]", "[]", "certificate.names"),
        ] {
            let error = load(&config().commented().replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let folder = tempfile::tempdir().unwrap();
        let error = Config::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("fedge coordinator init"), "{error}");
    }
}
