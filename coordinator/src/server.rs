//! Assembles the coordinator: configuration, CA, store, rounds, three listeners; runs until it is told to stop.
//! Only wiring lives here: each room does its own work.

use std::fs::{File, TryLockError};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fedge_proto::authorization::{AnonymousCallers, AuthorizationLayer};
use fedge_proto::federation::federation_server::FederationServer;
use fedge_proto::identity::Identity;
use fedge_proto::operators::operators_server::OperatorsServer;
use fedge_proto::tls::{
    ClientAuth, Limits, MAX_FRAME_BYTES, ReloadableServerConfig, SERVER_WINDOW_BYTES, TlsError, incoming, server_config,
};
use fedge_proto::transfer::MAX_MESSAGE_BYTES;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::admin::OperatorsService;
use crate::config::Config;
use crate::init::{self, InitError};
use crate::registry::authority::{Authority, LEAF_LIFETIME};
use crate::registry::certificates::DenyList;
use crate::registry::enrolment::EnrolmentService;
use crate::registry::nodes::NodeRegistry;
use crate::rounds::driver::Rounds;
use crate::rounds::federation::FederationService;
use crate::store::Store;

/// How often revocations by other processes and the age of the own certificate are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(10);
/// Age at which a connection is asked to end, and its certificate looked at again.
const CONNECTION_AGE: Duration = Duration::from_secs(3600);
/// Longest time that open calls get to end at shutdown.
const DRAIN: Duration = Duration::from_secs(1);

/// Why the coordinator does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its folder.
    #[error(transparent)]
    Init(#[from] InitError),
    /// Another process runs it.
    #[error("{} is in use: another coordinator runs on this folder; stop it first", .0.display())]
    Running(PathBuf),
    /// The lock of its folder.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A port.
    #[error("cannot listen on {address} ({key}): {source}; {hint}")]
    Listen {
        /// Key of the configuration.
        key: &'static str,
        /// ip:port.
        address: String,
        /// Why not.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Its certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A listener broke.
    #[error("serving {0}: {1}")]
    Serve(&'static str, String),
}

/// Runs the coordinator of `folder` until `shutdown` is ready; `ready` is called once all ports listen.
///
/// # Errors
/// [`ServerError`] says which port, file or certificate is in the way.
pub async fn run(
    folder: &Path,
    config: Config,
    ready: impl FnOnce(&Config),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    let _lock = lock(folder)?;
    let authority = Arc::new(Authority::load(&init::authority_folder(folder)).map_err(InitError::from)?);
    let store = Store::open(&init::store_folder(folder)).await.map_err(InitError::from)?;
    let identity = current_identity(folder, &config, &authority, &store).await?;
    let mutual = ReloadableServerConfig::new(server_config(&identity, ClientAuth::Required)?);
    let open = ReloadableServerConfig::new(server_config(&identity, ClientAuth::None)?);
    let nodes = Arc::new(NodeRegistry::new(Duration::from_millis(config.nodes.liveness_ms)));
    let denied = DenyList::load(store.pool()).await.map_err(InitError::from)?;
    let federation_port = listen("listen.federation", &config.listen.federation).await?;
    let enrolment_port = listen("listen.enrolment", &config.listen.enrolment).await?;
    let operators_port = listen("listen.operators", &config.listen.operators).await?;
    let rounds = Rounds::load(store.clone(), nodes, config.store.spool_max_bytes).await.map_err(InitError::from)?;
    let stop_ticks = CancellationToken::new();
    let ticks = rounds.spawn_ticks(stop_ticks.clone());

    let (stop, _) = watch::channel(false);
    let layer = AuthorizationLayer::new(AnonymousCallers::EnrolmentOnly).with_revoked(denied.hook());
    let serving = {
        let federation_service = FederationService::new(rounds.clone(), config.heartbeat());
        let federation_service = FederationServer::new(federation_service).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let enrolment_service =
            EnrolmentService::server(authority.clone(), store.pool().clone(), config.advertise.addresses());
        let operators_service =
            OperatorsServer::new(OperatorsService::new(rounds)).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let accept = |listener, tls: &ReloadableServerConfig| incoming(listener, tls.clone(), Limits::default());
        let federation = builder().layer(layer.clone()).add_service(federation_service);
        let enrolment_router = builder().layer(layer.clone()).add_service(enrolment_service);
        let operators_router = builder().layer(layer).add_service(operators_service);
        [
            (
                "federation",
                tokio::spawn(federation.serve_with_incoming_shutdown(accept(federation_port, &mutual), stopped(&stop))),
            ),
            (
                "enrolment",
                tokio::spawn(
                    enrolment_router.serve_with_incoming_shutdown(accept(enrolment_port, &open), stopped(&stop)),
                ),
            ),
            (
                "operators",
                tokio::spawn(
                    operators_router.serve_with_incoming_shutdown(accept(operators_port, &mutual), stopped(&stop)),
                ),
            ),
        ]
    };
    let housekeeping = tokio::spawn(keep_house(
        folder.to_owned(),
        config.clone(),
        authority,
        store,
        denied,
        [(mutual, ClientAuth::Required), (open, ClientAuth::None)],
    ));
    ready(&config);
    shutdown.await;
    tracing::info!("shutting down");
    let _ = stop.send(true);
    stop_ticks.cancel();
    housekeeping.abort();
    let deadline = tokio::time::Instant::now() + DRAIN;
    for (name, server) in serving {
        // Open long polls would hold the process; what they ask can be asked again.
        if let Ok(Ok(Err(error))) = tokio::time::timeout_at(deadline, server).await {
            return Err(ServerError::Serve(name, error.to_string()));
        }
    }
    let _ = ticks.await;
    Ok(())
}

/// Bounds of every connection (see the crate's notes on limits in ARCHITECTURE.md).
fn builder() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(Some(16))
        .initial_stream_window_size(SERVER_WINDOW_BYTES)
        .initial_connection_window_size(SERVER_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .concurrency_limit_per_connection(16)
        .http2_max_header_list_size(Some(16 * 1024))
        .http2_max_pending_accept_reset_streams(Some(20))
        // An open connection outlives its certificate otherwise; calls in flight end in peace.
        .max_connection_age(CONNECTION_AGE)
}

fn stopped(stop: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + use<> {
    let mut stop = stop.subscribe();
    async move {
        // An error means that the sender is gone: stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// Holds the folder for this process: two drivers on one database would tear its tasks apart.
fn lock(folder: &Path) -> Result<File, ServerError> {
    let path = folder.join("coordinator.lock");
    let failed = |source| ServerError::Lock { path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServerError::Running(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(ServerError::Lock { path, source }),
    }
}

async fn listen(key: &'static str, address: &str) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| {
        let hint = match source.kind() {
            std::io::ErrorKind::AddrInUse => "another process has this port: stop it or choose another port",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need rights that this process lacks",
            _ => "check the address in coordinator.toml",
        };
        ServerError::Listen { key, address: address.to_owned(), source, hint }
    })
}

/// The server's identity, issued anew when it is past half of its life or its names changed.
async fn current_identity(
    folder: &Path,
    config: &Config,
    authority: &Authority,
    store: &Store,
) -> Result<Identity, InitError> {
    let directory = init::server_identity(folder);
    let subject = init::server_subject(config)?;
    let now = SystemTime::now();
    if let Ok(identity) = directory.load()
        && !identity.needs_renewal(now)
        && identity.host_names() == subject.host_names
    {
        return Ok(identity);
    }
    let (identity, issued) = authority.issue_identity(&subject, LEAF_LIFETIME, now)?;
    init::record(store, &issued, now).await?;
    directory.store(&identity, &init::connection(authority, config))?;
    tracing::info!(serial = %issued.serial, "the coordinator's certificate was issued anew");
    Ok(identity)
}

/// Looks at revocations and at the age of the own certificate, for ever.
async fn keep_house(
    folder: PathBuf,
    config: Config,
    authority: Arc<Authority>,
    store: Store,
    denied: DenyList,
    listeners: [(ReloadableServerConfig, ClientAuth); 2],
) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        if let Err(error) = denied.refresh(store.pool()).await {
            tracing::error!(%error, "the list of revoked certificates could not be read");
        }
        match current_identity(&folder, &config, &authority, &store).await {
            Ok(identity) => {
                for (listener, auth) in &listeners {
                    match server_config(&identity, *auth) {
                        Ok(tls) => listener.replace(tls),
                        Err(error) => tracing::error!(%error, "the renewed certificate can't be used"),
                    }
                }
            }
            Err(error) => tracing::error!(%error, "the coordinator's certificate could not be renewed"),
        }
    }
}
