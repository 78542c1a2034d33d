//! The node's configuration file: keys, defaults, checked ranges. The commented file that `join` writes is in `commented`.
//! What the keys do is up to the rooms that are named beside them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::drift::DriftOptions;
use crate::federation::budget::Budget;
use crate::inference::library::Settings;
use crate::samples::Replay;
use crate::samples::file::BadRows;
use crate::training::{Device, Resources};

mod commented;

/// Name of the file in the node's folder.
pub const FILE_NAME: &str = "node.toml";

/// `node.toml`. Unknown keys are errors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The inference server.
    pub inference: Inference,
    /// Local training.
    pub training: Training,
    /// Health and metrics.
    pub metrics: Metrics,
    /// The sample store.
    pub samples: Samples,
    /// Traces of requests.
    pub telemetry: Telemetry,
    /// How single models of the fleet are served, by name.
    pub model: BTreeMap<String, Settings>,
    /// Drift detection.
    pub drift: Drift,
    /// Files of labelled samples, read at start; what was read before is not counted twice.
    pub data: Vec<DataFile>,
}

/// The inference server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inference {
    /// ip:port of gRPC.
    pub listen: String,
    /// ip:port of HTTP; empty: none.
    pub http: String,
    /// Without TLS; on loopback only.
    pub plaintext: bool,
    /// Share of single-sample requests whose input is kept for a later label, 0..=1.
    pub keep: f64,
    /// Which requests are in that share.
    pub keep_policy: KeepChoice,
    /// Threads that run models; 0: one a core.
    pub threads: usize,
}

/// Which requests' inputs are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepChoice {
    /// Any, by chance.
    #[default]
    Sampled,
    /// Those whose two greatest outputs are nearest to each other.
    Uncertain,
}

impl Default for Inference {
    fn default() -> Self {
        Inference {
            listen: "0.0.0.0:8001".into(),
            http: String::new(),
            plaintext: false,
            keep: 1.0,
            keep_policy: KeepChoice::Sampled,
            threads: 0,
        }
    }
}

/// Health and metrics, in plaintext for whoever reaches the port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// ip:port; empty: none.
    pub listen: String,
}

/// Traces of requests, to an OpenTelemetry collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// `http://HOST:PORT` of a collector that takes OTLP/gRPC; empty: no traces.
    pub otlp_endpoint: String,
    /// Share of the requests that are traced where their `traceparent` does not decide, 0..=1.
    pub trace_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Telemetry {
        Telemetry { otlp_endpoint: String::new(), trace_ratio: 1.0 }
    }
}

/// Local training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Threads of the low-priority training pool, 1..=256.
    pub threads: usize,
    /// What training computes on: `cpu` or `gpu`.
    pub device: Device,
    /// Samples that earlier trainings saw, for each new one; negative: all that the store holds.
    pub replay: f64,
    /// Share of the time in which training computes, 0.01..=1.
    pub share: f64,
    /// When it may run, `HH:MM-HH:MM` of the device's own time; empty: always.
    pub hours: String,
    /// Only while the device does not run on its battery.
    pub mains_power: bool,
    /// Loss on the held-out samples that a trained model may have, in multiples of its base's; 0: any. Ordinary rounds of the
    /// digits were seen to rise to 5 times, and averaging mends that.
    pub worst_loss: f32,
}

impl Training {
    /// What a training sees of the store.
    pub fn replay(&self) -> Replay {
        if self.replay < 0.0 { Replay::All } else { Replay::Ratio(self.replay) }
    }

    /// What training may use of the machine.
    pub fn resources(&self) -> Resources {
        Resources { threads: self.threads, device: self.device }
    }

    /// Takes the device of training into use.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where it is not there.
    pub fn check_device(&self) -> Result<(), ConfigError> {
        self.device.check().map(|_| ()).map_err(|problem| ConfigError::Value {
            key: "training.device",
            value: format!("{:?}", self.device.to_string()),
            problem: problem.to_string(),
        })
    }

    /// When training runs, and how hard.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where the hours are none.
    pub fn budget(&self) -> Result<Budget, ConfigError> {
        let hours = (!self.hours.is_empty()).then(|| self.hours.parse()).transpose();
        let hours = hours.map_err(|problem: &str| ConfigError::Value {
            key: "training.hours",
            value: format!("{:?}", self.hours),
            problem: problem.to_owned(),
        })?;
        Ok(Budget { share: self.share, hours, mains_power: self.mains_power })
    }
}

impl Default for Training {
    fn default() -> Self {
        Training {
            threads: 1,
            device: Device::Cpu,
            replay: -1.0,
            share: 1.0,
            hours: String::new(),
            mains_power: false,
            worst_loss: 10.0,
        }
    }
}

/// Bounds of the sample store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Samples {
    /// Labelled samples, at least 1.
    pub max_samples: u64,
    /// Bytes of their inputs, at least 1024.
    pub max_bytes: u64,
    /// Answered requests whose inputs wait for a label.
    pub max_pending: u64,
    /// Seconds that they wait, at least 1.
    pub pending_ttl_s: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Samples { max_samples: 100_000, max_bytes: 512 << 20, max_pending: 1000, pending_ttl_s: 86_400 }
    }
}

/// Drift detection on what is asked and answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drift {
    /// Whether to look.
    pub enabled: bool,
    /// Answered inputs that make the reference, 20..=5000.
    pub reference: usize,
    /// Latest ones that are compared with it, 20..=5000.
    pub window: usize,
    /// Probability of a false alarm in one comparison, above 0 and at most 0.05.
    pub level: f64,
}

impl Default for Drift {
    fn default() -> Self {
        let DriftOptions { reference, window, level, .. } = DriftOptions::default();
        Drift { enabled: true, reference, window, level }
    }
}

impl Drift {
    /// The detector's options; none: it is off.
    pub fn options(&self) -> Option<DriftOptions> {
        let Drift { enabled, reference, window, level } = *self;
        enabled.then(|| DriftOptions { reference, window, level, ..DriftOptions::default() })
    }
}

/// A file of labelled samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// The lineage that it is for; none: for every one.
    #[serde(default)]
    pub model: Option<String>,
    /// `.csv`, `.npz`, IDX, or a folder with a folder of pictures for each class.
    pub path: PathBuf,
    /// What becomes of rows that are wrong.
    #[serde(default)]
    pub bad_rows: BadRows,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A setting of a model that can't be.
    #[error("[model.{name}] {key}: {problem}")]
    Model {
        /// The model.
        name: String,
        /// The key.
        key: &'static str,
        /// What is allowed.
        problem: &'static str,
    },
    /// Not readable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, a wrong type or an unknown key.
    #[error("{} does not parse: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and key.
        reason: String,
    },
    /// A value that can't be.
    #[error("{key} = {value}: {problem}")]
    Value {
        /// The key, dotted.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        problem: String,
    },
}

impl Config {
    /// Reads `node.toml` in a node's folder; a folder without one has the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and what to write instead.
    pub fn load(folder: &Path) -> Result<Config, ConfigError> {
        let path = folder.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let config: Config = toml::from_str(&text).map_err(|e| ConfigError::Syntax { path, reason: e.to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// Checks ranges and addresses.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check(&self) -> Result<(), ConfigError> {
        self.inference_address()?;
        self.http_address()?;
        self.metrics_address()?;
        let refuse = |key, value: &dyn std::fmt::Display, problem: &str| {
            Err(ConfigError::Value { key, value: value.to_string(), problem: problem.to_owned() })
        };
        let (inference, samples) = (&self.inference, &self.samples);
        if !(0.0..=1.0).contains(&inference.keep) {
            return refuse("inference.keep", &inference.keep, "a share, 0 to 1");
        }
        if inference.threads > 256 {
            return refuse("inference.threads", &inference.threads, "0 (one a core) to 256");
        }
        if !(1..=256).contains(&self.training.threads) {
            return refuse("training.threads", &self.training.threads, "1 to 256");
        }
        if !(0.0..=1.0).contains(&self.telemetry.trace_ratio) {
            return refuse("telemetry.trace_ratio", &self.telemetry.trace_ratio, "a share, 0 to 1");
        }
        for (name, settings) in &self.model {
            settings.check_of_fleet().map_err(|(key, problem)| ConfigError::Model {
                name: name.clone(),
                key,
                problem,
            })?;
        }
        if !(self.training.replay.is_finite() && self.training.replay <= 1e6) {
            return refuse(
                "training.replay",
                &self.training.replay,
                "a number up to 1000000; negative: the whole store",
            );
        }
        self.training.budget()?;
        if !(0.01..=1.0).contains(&self.training.share) {
            return refuse("training.share", &self.training.share, "0.01 to 1");
        }
        let worst = self.training.worst_loss;
        if !(worst == 0.0 || (1.0..=1e6).contains(&worst)) {
            return refuse("training.worst_loss", &worst, "0 (any), or 1 to 1000000");
        }
        if samples.max_samples == 0 {
            return refuse("samples.max_samples", &samples.max_samples, "at least 1");
        }
        if samples.max_bytes < 1024 {
            return refuse("samples.max_bytes", &samples.max_bytes, "at least 1024");
        }
        for (key, value) in [("drift.reference", self.drift.reference), ("drift.window", self.drift.window)] {
            if !(20..=5000).contains(&value) {
                return refuse(key, &value, "20 to 5000");
            }
        }
        if !(self.drift.level > 0.0 && self.drift.level <= 0.05) {
            return refuse("drift.level", &self.drift.level, "above 0, at most 0.05");
        }
        if samples.pending_ttl_s == 0 {
            return refuse("samples.pending_ttl_s", &samples.pending_ttl_s, "at least 1");
        }
        Ok(())
    }

    /// Where to serve inference.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when it is no ip:port, or plaintext beyond loopback.
    pub fn inference_address(&self) -> Result<SocketAddr, ConfigError> {
        self.inference_port("inference.listen", &self.inference.listen)
    }

    /// Where to serve inference over HTTP, if anywhere.
    ///
    /// # Errors
    /// As [`Config::inference_address`].
    pub fn http_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let http = &self.inference.http;
        if http.is_empty() { Ok(None) } else { self.inference_port("inference.http", http).map(Some) }
    }

    /// Where to serve health and metrics, if anywhere.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when it is no ip:port.
    pub fn metrics_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let listen = &self.metrics.listen;
        if listen.is_empty() { Ok(None) } else { socket_address("metrics.listen", listen).map(Some) }
    }

    fn inference_port(&self, key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
        let address = socket_address(key, text)?;
        if self.inference.plaintext && !address.ip().is_loopback() {
            let problem = "plaintext is allowed on loopback only: use 127.0.0.1 or [::1], or serve with TLS";
            return Err(ConfigError::Value { key, value: text.to_owned(), problem: problem.to_owned() });
        }
        Ok(address)
    }
}

fn socket_address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    let problem = |e| format!("{e}; expected ip:port, such as 0.0.0.0:8001");
    text.parse().map_err(|e| ConfigError::Value { key, value: text.to_owned(), problem: problem(e) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
        Config::load(folder.path())
    }

    #[test]
    fn the_commented_file_holds_the_defaults() {
        assert_eq!(load(&Config::commented()).unwrap(), Config::default());
        assert_eq!(load("").unwrap(), Config::default());
    }

    #[test]
    fn unknown_keys_and_values_out_of_range_are_refused_by_name() {
        for (text, key) in [
            ("[inference]\nlisten_on = \"x\"", "listen_on"),
            ("[inference]\nlisten = \"8001\"", "inference.listen"),
            ("[inference]\nplaintext = true", "inference.listen"),
            ("[inference]\nkeep = 1.5", "inference.keep"),
            ("[inference]\nplaintext = true\nlisten = \"[::1]:1\"\nhttp = \"0.0.0.0:2\"", "inference.http"),
            ("[metrics]\nlisten = \"8002\"", "metrics.listen"),
            ("[training]\nthreads = 0", "training.threads"),
            ("[telemetry]\ntrace_ratio = 2.0", "telemetry.trace_ratio"),
            ("[model.digits]\nlabels = [\"0\"]", "[model.digits] labels"),
            ("[model.digits]\nmax_batch_size = 0", "max_batch_size"),
            ("[training]\nreplay = nan", "training.replay"),
            ("[training]\nshare = 0.0", "training.share"),
            ("[training]\nhours = \"at night\"", "training.hours"),
            ("[training]\nworst_loss = 0.5", "training.worst_loss"),
            ("[drift]\nwindow = 1", "drift.window"),
            ("[drift]\nlevel = 0.5", "drift.level"),
            ("[samples]\nmax_samples = 0", "samples.max_samples"),
            ("[[data]]\nfile = \"x.csv\"", "file"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
