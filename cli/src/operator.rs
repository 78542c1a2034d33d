//! The connection to the coordinator's operators' port, and the calls that several commands share.
//! What a command makes of the answers is its own matter.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use fedge_models::{Digest, Manifest, Model, Preprocessing};
use fedge_proto::identity::{IdentityDirectory, Role, SharedIdentity};
use fedge_proto::model::ModelVersion;
use fedge_proto::operators::operators_client::OperatorsClient;
use fedge_proto::operators::{DownloadModelRequest, PublishBegin, PublishRequest, publish_request::Part};
use fedge_proto::tls;
use fedge_proto::transfer::{MAX_MESSAGE_BYTES, Receiver, chunks};
use tonic::transport::Channel;

use crate::output;

/// Who asks the coordinator.
#[derive(Debug, Clone, Args)]
pub(crate) struct OperatorFlags {
    /// The operator's identity directory
    #[arg(long, value_name = "DIR", default_value = "fedge-coordinator/operator", env = "FEDGE_IDENTITY")]
    identity: PathBuf,
}

impl OperatorFlags {
    /// Connects with this identity.
    pub(crate) async fn connect(&self) -> anyhow::Result<Operator> {
        Operator::connect(&self.identity).await
    }
}

/// A connected operator.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    client: OperatorsClient<Channel>,
}

impl Operator {
    /// Connects with the identity of this directory, renewed first if half of its life is over.
    pub(crate) async fn connect(directory: &Path) -> anyhow::Result<Operator> {
        let directory = IdentityDirectory::new(directory);
        let identity = current_identity(&directory).await?;
        let address = directory.connection()?.operators;
        let channel = tls::connect(&address, &identity, Role::Coordinator).await?;
        let client = OperatorsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Operator { client })
    }

    /// The generated client.
    pub(crate) fn client(&self) -> OperatorsClient<Channel> {
        self.client.clone()
    }

    /// Sends a model file as version 1 of a lineage.
    pub(crate) async fn publish(
        &self,
        name: &str,
        model: &Model,
        labels: Vec<String>,
        preprocessing: &Preprocessing,
    ) -> anyhow::Result<ModelVersion> {
        let bytes = prost::bytes::Bytes::copy_from_slice(model.bytes());
        let begin = PublishBegin {
            name: name.to_owned(),
            labels,
            preprocessing: serde_json::to_string(preprocessing)?,
            size_bytes: bytes.len() as u64,
            sha256: Digest::of(&bytes).as_bytes().to_vec(),
        };
        let bar = output::bytes_bar(bytes.len() as u64, "publishing");
        let sent = bar.clone();
        let parts = std::iter::once(Part::Begin(begin)).chain(chunks(bytes, 0).map(move |chunk| {
            sent.inc(chunk.data.len() as u64);
            Part::Chunk(chunk)
        }));
        let stream = tokio_stream::iter(parts.map(|part| PublishRequest { part: Some(part) }));
        let reply = self.client().publish_model(stream).await;
        bar.finish_and_clear();
        Ok(reply.map_err(refused)?.into_inner())
    }

    /// Fetches a version's ONNX file; number 0 is the newest.
    pub(crate) async fn download(&self, name: &str, number: u64) -> anyhow::Result<(Manifest, Model)> {
        let request = DownloadModelRequest { name: name.to_owned(), number };
        let mut stream = self.client().download_model(request).await.map_err(refused)?.into_inner();
        let head = stream.message().await.map_err(refused)?;
        let Some(version) = head.and_then(|h| h.version) else { bail!("the coordinator sent no version") };
        let manifest: Manifest = serde_json::from_str(&version.manifest).context("the version's manifest")?;
        let mut receiver = Receiver::new(version.size_bytes);
        let bar = output::bytes_bar(version.size_bytes, "fetching");
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await.map_err(refused)? {
            let Some(chunk) = message.chunk else { continue };
            receiver.accept(&chunk)?;
            bytes.extend_from_slice(&chunk.data);
            bar.inc(chunk.data.len() as u64);
        }
        bar.finish_and_clear();
        receiver.finish(*manifest.digest.as_bytes())?;
        Ok((manifest, Model::from_bytes(bytes)?))
    }
}

/// The identity of a directory, renewed first if half of its life is over.
pub(crate) async fn current_identity(directory: &IdentityDirectory) -> anyhow::Result<SharedIdentity> {
    if !directory.exists() {
        bail!(
            "no identity in {}: give --identity DIR (or FEDGE_IDENTITY), such as the folder `operator` that \
             `fedge coordinator init` made, or join with `fedge enrol`",
            directory.path().display()
        );
    }
    #[cfg(feature = "node")]
    {
        use fedge_node::federation::renewal;
        let now = std::time::SystemTime::now();
        match renewal::renew_if_due(directory, now).await {
            Ok(renewal) => return Ok(SharedIdentity::new(renewal.identity().clone())),
            // What is still valid is used; what has ended is reported with the reason.
            Err(error) if directory.load()?.expired(now) => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "the certificate could not be renewed yet"),
        }
    }
    Ok(SharedIdentity::new(directory.load()?))
}

/// A call's failure in the server's own words.
pub(crate) fn refused(status: tonic::Status) -> anyhow::Error {
    match status.message() {
        // What hyper says when a connection breaks under a call.
        text if text.contains("h2 protocol error") || text.contains("transport error") => {
            anyhow::anyhow!("the connection was lost ({text}); is the other side still running? try again")
        }
        "" => anyhow::anyhow!("the server answered {:?}", status.code()),
        message => anyhow::anyhow!("{message}"),
    }
}
