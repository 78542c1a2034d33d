//! Assembles a node: identity, samples, models, the inference server and the federation; runs until it is told to stop.
//! Only wiring lives here: each room does its own work.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fedge_proto::identity::{Identity, IdentityDirectory, IdentityError, Role, SharedIdentity};
use fedge_proto::tls::{ConnectError, TlsError, connect_lazy};
use tokio_util::sync::CancellationToken;

use crate::calls::{TraceError, Traces};
use crate::config::{Config, ConfigError, KeepChoice};
use crate::doors::{Addresses, Doors};
use crate::drift::DriftWatch;
use crate::federation::download::{DownloadError, Downloads};
use crate::federation::driver;
use crate::federation::edge::{Edge, EdgeOptions};
use crate::federation::memory::Memory;
use crate::federation::outbox::Outbox;
use crate::federation::record::RecordError;
use crate::federation::renewal::{self, RenewalError};
use crate::federation::session::Session;
use crate::federation::shelf::Shelf;
use crate::federation::versions::Versions;
use crate::federation::work::Workshop;
use crate::inference::{ExecutorOptions, Inference, KeepPolicy, ModelRepository, ServiceOptions};
use crate::samples::{self, FileError, SampleError, SampleStore, file};
use crate::server::Services;
use crate::status::{NodeStatus, StatusFile};

/// Versions of a lineage that stay on disk: the served one and the one before.
const KEPT_VERSIONS: usize = 2;
/// Longest time that open calls get to end at shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another process runs it.
    #[error("{} is in use: another node runs on this folder; stop it first", .0.display())]
    Running(PathBuf),
    /// The lock of its folder.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Its folder has no identity.
    #[error("{} holds no identity: join first, with `fedge node join --dir DIR --coordinator HOST:7444 --token TOKEN`", .0.display())]
    NotJoined(PathBuf),
    /// An identity of another role.
    #[error("{} holds the identity of {}, not of a node", .0.display(), .1.with_article())]
    Role(PathBuf, Role),
    /// Its certificate is over and can't be renewed.
    #[error("the certificate can't be renewed: {0}")]
    Renewal(#[from] RenewalError),
    /// A port.
    #[error("cannot listen on {address} ({key}): {source}; {hint}")]
    Listen {
        /// ip:port.
        address: SocketAddr,
        /// The key of the configuration.
        key: &'static str,
        /// Why not.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The coordinator's address.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The sample store.
    #[error(transparent)]
    Samples(#[from] SampleError),
    /// A data file.
    #[error(transparent)]
    Data(#[from] FileError),
    /// The outbox or the memory.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The folder of transfers.
    #[error(transparent)]
    Incoming(#[from] DownloadError),
    /// The model repository.
    #[error("{0}")]
    Models(String),
    /// Where traces go.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// The server's description of itself.
    #[error("server reflection: {0}")]
    Reflection(String),
    /// The server broke.
    #[error("serving inference: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The identity directory of a node's folder.
pub fn identity_directory(folder: &Path) -> IdentityDirectory {
    IdentityDirectory::new(folder.join("identity"))
}

/// Runs the node of `folder` until `shutdown` is ready; `ready` is called with the bound addresses once it listens.
///
/// # Errors
/// [`RunError`] says which file, port or certificate is in the way.
pub async fn run(
    folder: &Path,
    config: Config,
    ready: impl FnOnce(Addresses),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    // What can be seen to be wrong without the coordinator is said before anything starts.
    for data in &config.data {
        file::check(&data.path, data.bad_rows)?;
    }
    let _lock = lock(folder)?;
    let directory = identity_directory(folder);
    let identity = usable_identity(&directory).await?;
    let coordinator = directory.connection()?;
    let samples = SampleStore::open(&folder.join("samples.db"), sample_limits(&config)).await?;
    let doors = Doors::bind(&config).await?;
    let addresses = doors.addresses;
    let bound = addresses.grpc;

    let mut repository = ModelRepository::with_options(executor_options(&config));
    for (name, settings) in &config.model {
        repository.foresee(name, settings.options(&executor_options(&config)));
    }
    let repository = Arc::new(repository);
    let downloads = Arc::new(Downloads::open(folder.join("incoming"))?);
    let memory = Memory::open(folder.join("memory"))?;
    let shelf = Shelf::new(folder.join("models"), downloads.clone(), KEPT_VERSIONS);
    let versions =
        Arc::new(Versions::new(shelf, repository.clone(), samples.clone(), config.data.clone(), memory.clone()));
    let drift = config.drift.options().map(DriftWatch::new);
    let training = &config.training;
    training.check_device()?;
    let options =
        EdgeOptions { replay: training.replay(), budget: training.budget()?, worst_loss: training.worst_loss };
    let workshop = Workshop {
        learner: Arc::new(Edge::new(versions.clone(), samples.clone(), drift.clone(), options)),
        outbox: Outbox::open(folder.join("outbox"))?,
        memory,
        downloads,
    };
    let shared = SharedIdentity::new(identity.clone());
    let stop = CancellationToken::new();

    let options = service_options(&config);
    let inference =
        Inference::new(repository.clone(), Some(samples.clone()), options.keep, options.limits).watching(drift);
    let services = Services { inference, library: None, samples: Some(samples.clone()), options };
    let shown = (!config.inference.plaintext).then_some(&identity);
    let traces = traces(&config, Some(&identity))?;
    let (server, renewed) = doors.open(services, shown, traces.clone(), &stop)?;
    let renewal = tokio::spawn(renewal::keep_renewed(directory, shared.clone(), renewed, stop.clone()));

    let status_file = StatusFile::of(folder);
    let status = NodeStatus {
        pid: std::process::id(),
        identity: identity.id().to_string(),
        inference_address: bound.to_string(),
        transport: if config.inference.plaintext { "plaintext" } else { "mutual TLS" }.into(),
        connected: false,
        last_error: None,
        work: "idle".into(),
        resting: String::new(),
        serving: Vec::new(),
        data_problems: Vec::new(),
    };
    status_file.write(&status);
    ready(addresses);
    versions.restore().await;
    let channel = connect_lazy(&coordinator.federation, &shared, Role::Coordinator)?;
    let session = Session::new(channel, bound.to_string(), config.training.resources(), status, status_file.clone());
    let federation = tokio::spawn(driver::run(session, workshop));

    shutdown.await;
    tracing::info!("shutting down");
    federation.abort();
    stop.cancel();
    let served = tokio::time::timeout(DRAIN, server).await;
    let _ = renewal.await;
    samples.close().await;
    let _ = tokio::task::spawn_blocking(move || traces.finish()).await;
    status_file.remove();
    match served {
        Ok(Ok(result)) => result.map_err(RunError::Serve),
        // Callers that did not end in time are cut off.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// The identity of the folder; one that has ended is renewed before anything else.
pub(crate) async fn usable_identity(directory: &IdentityDirectory) -> Result<Identity, RunError> {
    let identity = directory.load()?;
    if identity.id().role() != Role::Node {
        return Err(RunError::Role(directory.path().to_owned(), identity.id().role()));
    }
    let now = SystemTime::now();
    if identity.expired(now) {
        return Ok(renewal::renew(directory, now).await?);
    }
    Ok(identity)
}

/// Holds the folder of a node that has joined for this process, as long as the file is open: it has one outbox.
///
/// # Errors
/// [`RunError`]: not joined, or another process runs it.
pub fn lock(folder: &Path) -> Result<File, RunError> {
    if !identity_directory(folder).exists() {
        return Err(RunError::NotJoined(folder.to_owned()));
    }
    let path = folder.join("node.lock");
    let failed = |source| RunError::Lock { path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunError::Running(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(RunError::Lock { path, source }),
    }
}

fn sample_limits(config: &Config) -> samples::Limits {
    samples::Limits {
        max_samples: config.samples.max_samples,
        max_bytes: config.samples.max_bytes,
        max_pending: config.samples.max_pending,
        pending_ttl: Duration::from_secs(config.samples.pending_ttl_s),
    }
}

fn service_options(config: &Config) -> ServiceOptions {
    let keep = config.inference.keep;
    ServiceOptions {
        keep: match config.inference.keep_policy {
            _ if keep <= 0.0 => KeepPolicy::Off,
            KeepChoice::Sampled => KeepPolicy::Sampled(keep),
            KeepChoice::Uncertain => KeepPolicy::Uncertain(keep),
        },
        ..ServiceOptions::default()
    }
}

/// Where the configuration sends traces of the node with this identity, or of one without.
pub(crate) fn traces(config: &Config, identity: Option<&Identity>) -> Result<Traces, TraceError> {
    let instance = identity.map_or_else(|| std::process::id().to_string(), |identity| identity.id().to_string());
    Traces::to(&config.telemetry.otlp_endpoint, config.telemetry.trace_ratio, &instance)
}

/// How models run where nothing says otherwise.
pub(crate) fn executor_options(config: &Config) -> ExecutorOptions {
    let defaults = ExecutorOptions::default();
    let threads = config.inference.threads;
    ExecutorOptions { threads: if threads > 0 { threads } else { defaults.threads }, ..defaults }
}
