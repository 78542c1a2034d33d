//! `grpc.health.v1` and server reflection, as probes and grpcurl use them.
//! Health follows the models: it serves while every known model has a ready version.

use std::sync::Arc;

use fedge_proto::inference::grpc_inference_service_server::SERVICE_NAME;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use super::repository::ModelRepository;

/// The health service, for the server as a whole ("") and for inference by its name; others are NOT_FOUND. The future
/// keeps both in step with the models, for ever.
pub fn health(repository: Arc<ModelRepository>) -> (HealthServer<impl Health>, impl Future<Output = ()> + Send) {
    let (reporter, server) = tonic_health::server::health_reporter();
    (server, follow(repository, reporter))
}

async fn follow(repository: Arc<ModelRepository>, reporter: HealthReporter) {
    let mut changes = repository.changes();
    loop {
        changes.mark_unchanged();
        let status = if repository.ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", SERVICE_NAME] {
            reporter.set_service_status(service, status).await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Describes the node's services to whoever asks; an error where the descriptors in the program are no descriptors.
pub fn reflection() -> Result<ServerReflectionServer<impl ServerReflection>, tonic_reflection::server::Error> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(fedge_proto::NODE_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
}
