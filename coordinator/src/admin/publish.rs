//! Publishing: a model file from an operator becomes version 1 of a lineage, or is refused with the reason.
//! What makes a model sound is decided in the crate `models`.

use fedge_models::float::FloatRunner;
use fedge_models::{Digest, Manifest, Model, Package, Preprocessing};
use fedge_proto::operators::{PublishBegin, PublishRequest, publish_request::Part};
use fedge_proto::transfer::Receiver;
use tonic::{Status, Streaming};

use crate::rounds::convert;
use crate::rounds::driver::Rounds;
use crate::store::models::ModelRow;

/// Largest model file.
const MAX_MODEL_BYTES: u64 = 2 << 30;
/// Most class labels.
const MAX_LABELS: usize = 100_000;

/// Receives, checks and stores a model.
///
/// # Errors
/// INVALID_ARGUMENT names what is wrong in the file; ALREADY_EXISTS when the name stands for another model.
pub(super) async fn publish(rounds: &Rounds, mut stream: Streaming<PublishRequest>) -> Result<ModelRow, Status> {
    let Some(Part::Begin(begin)) = stream.message().await?.and_then(|m| m.part) else {
        return Err(Status::invalid_argument("publishing begins with `begin`"));
    };
    if begin.size_bytes > MAX_MODEL_BYTES || begin.labels.len() > MAX_LABELS {
        return Err(Status::invalid_argument("the model is larger than 2 GiB or has more than 100000 labels"));
    }
    let sha256 = convert::sha256(&begin.sha256).map_err(Status::invalid_argument)?;
    let mut receiver = Receiver::new(begin.size_bytes);
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        let Some(Part::Chunk(chunk)) = message.part else {
            return Err(Status::invalid_argument("only chunks follow `begin`"));
        };
        receiver.accept(&chunk).map_err(|e| Status::data_loss(e.to_string()))?;
        bytes.extend_from_slice(&chunk.data);
    }
    receiver.finish(sha256).map_err(|e| Status::data_loss(e.to_string()))?;
    let package = tokio::task::spawn_blocking(move || check(begin, bytes))
        .await
        .map_err(|_| Status::invalid_argument("the model could not be read: it broke the reader"))?
        .map_err(Status::invalid_argument)?;
    store(rounds, package).await
}

fn check(begin: PublishBegin, bytes: Vec<u8>) -> Result<Package, String> {
    let model = Model::from_bytes(bytes).map_err(|e| e.to_string())?;
    let untrainable = model.untrainable();
    if !untrainable.is_empty() {
        let list: Vec<String> = untrainable.iter().take(10).map(ToString::to_string).collect();
        return Err(format!("nodes can't train this model: {}; `fedge model check` shows all", list.join("; ")));
    }
    // What tract can't load, no node can serve: better said now than by every node.
    FloatRunner::new(&model).map_err(|e| e.to_string())?;
    let preprocessing: Preprocessing = if begin.preprocessing.is_empty() {
        Preprocessing::default()
    } else {
        serde_json::from_str(&begin.preprocessing).map_err(|e| format!("preprocessing: {e}"))?
    };
    let manifest = Manifest {
        schema: 1,
        name: begin.name,
        number: 1,
        digest: model.digest(),
        layout: model.layout().digest(),
        labels: begin.labels,
        preprocessing,
        parent: None,
        task: None,
        round: None,
    };
    Package::new(manifest, model).map_err(|e| e.to_string())
}

async fn store(rounds: &Rounds, package: Package) -> Result<ModelRow, Status> {
    let unavailable = |e: crate::store::StoreError| Status::unavailable(e.to_string());
    let name = &package.manifest.name;
    if let Some(first) = rounds.store().model(name, 1).await.map_err(unavailable)? {
        let same: [Digest; 2] = [first.manifest.digest, package.manifest.digest];
        if same[0] == same[1] && first.manifest == package.manifest {
            return Ok(first);
        }
        return Err(Status::already_exists(format!(
            "model {name:?} is published already, as {}: only rounds make its next versions; publish under another name",
            first.manifest.digest
        )));
    }
    rounds.store().remove_unrecorded(name, 1).await.map_err(unavailable)?;
    let (store, written) = (rounds.store().clone(), package.clone());
    let written = tokio::task::spawn_blocking(move || store.write_package(&written)).await;
    written
        .map_err(|e| Status::unavailable(format!("writing the model was interrupted: {e}")))?
        .map_err(unavailable)?;
    fail::fail_point!("publish_written");
    let row = ModelRow::of(&package).map_err(unavailable)?;
    rounds.store().insert_model(&row).await.map_err(unavailable)?;
    rounds.published().await.map_err(unavailable)?;
    tracing::info!(model = %name, digest = %row.manifest.digest, "model published");
    Ok(row)
}
