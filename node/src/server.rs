//! The node's gRPC server: its bounds and its services, for a node of a fleet and for a standalone one.
//! What the services answer is theirs; where connections come from, and when they end, is said by the caller.

use std::sync::Arc;
use std::time::Duration;

use fedge_proto::authorization::{AnonymousCallers, AuthorizationLayer};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::calls::CallLayer;
use crate::inference::{Inference, InferenceService, Library, ServiceOptions, health};
use crate::samples::{self, SampleStore};

/// Age at which a connection is asked to end, and its certificate looked at again.
pub(crate) const CONNECTION_AGE: Duration = Duration::from_secs(3600);

/// What the server answers with.
#[derive(Debug)]
pub struct Services {
    /// Answers requests.
    pub inference: Inference,
    /// Loads and unloads models on request; none on a node of a fleet.
    pub library: Option<Arc<Library>>,
    /// Takes labels; none: there is no feedback service.
    pub samples: Option<SampleStore>,
    /// How the inference service works.
    pub options: ServiceOptions,
}

/// What every call passes: it is named, then it is admitted.
pub type Layers = Stack<AuthorizationLayer, Stack<CallLayer, Identity>>;

/// All of a node's services behind the authorization table. Health follows the models until `stop`.
///
/// # Errors
/// Descriptors that are none.
pub fn router(
    services: Services,
    anonymous: AnonymousCallers,
    calls: CallLayer,
    stop: &CancellationToken,
) -> Result<Router<Layers>, tonic_reflection::server::Error> {
    let repository = Arc::clone(services.inference.repository());
    let (health, following) = health::health(Arc::clone(&repository));
    tokio::spawn(stop.clone().run_until_cancelled_owned(following));
    let feedback = services.samples.map(|samples| samples::feedback::service(repository, samples));
    let inference = InferenceService::new(services.inference, services.library, services.options);
    Ok(Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(Some(256))
        .http2_max_header_list_size(Some(16 * 1024))
        .http2_max_pending_accept_reset_streams(Some(20))
        // An open connection outlives its certificate otherwise; calls in flight end in peace.
        .max_connection_age(CONNECTION_AGE)
        .layer(calls)
        .layer(AuthorizationLayer::new(anonymous))
        .add_service(inference.into_server())
        .add_service(health)
        .add_service(health::reflection()?)
        .add_optional_service(feedback))
}
