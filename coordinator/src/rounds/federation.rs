//! The federation service: what nodes ask for and report. Each call is checked, translated and handed on.
//! Decisions are `step`'s, persistence is `driver`'s; who may call is decided by the authorization layer before.

use std::io::SeekFrom;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fedge_models::operators::CATALOGUE_VERSION;
use fedge_proto::federation::{
    DeclineReply, DeclineRequest, DownloadRequest, EvaluationReceipt, EvaluationReport, HeartbeatReply,
    HeartbeatRequest, HelloReply, HelloRequest, PollReply, PollRequest, UploadReceipt, UploadRequest,
    federation_server::Federation,
};
use fedge_proto::identity::SpiffeId;
use fedge_proto::model::Chunk;
use fedge_proto::transfer::CHUNK_BYTES;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::driver::Rounds;
use super::upload::Uploads;

/// The one version of the federation protocol so far.
pub const PROTOCOL: u32 = 1;
/// Longest time that a poll is held.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Most lineages that one node may report on.
const MAX_SERVING: usize = 256;

/// A stream of file pieces.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

/// The service that nodes call.
#[derive(Debug)]
pub struct FederationService {
    rounds: Arc<Rounds>,
    uploads: Uploads,
    heartbeat_interval: Duration,
}

impl FederationService {
    /// Serves these rounds; nodes are asked for a heartbeat at this interval.
    pub fn new(rounds: Arc<Rounds>, heartbeat_interval: Duration) -> FederationService {
        FederationService { uploads: Uploads::new(rounds.clone()), rounds, heartbeat_interval }
    }
}

#[tonic::async_trait]
impl Federation for FederationService {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let node = node_id(&request)?;
        let hello = request.into_inner();
        if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL) {
            return Err(Status::failed_precondition(format!(
                "this coordinator speaks federation protocol {PROTOCOL}, the node speaks {} to {}: update the older one",
                hello.protocol_min, hello.protocol_max
            )));
        }
        if hello.catalogue < CATALOGUE_VERSION {
            return Err(Status::failed_precondition(format!(
                "the node trains operator catalogue {}, this coordinator publishes for {CATALOGUE_VERSION}: update the node",
                hello.catalogue
            )));
        }
        let (software, address) = (convert::text(&hello.software), convert::text(&hello.inference_address));
        tracing::info!(%node, %software, inference = %address, "node connected");
        self.rounds.nodes().hello(&node, &software, &address);
        let heartbeat_interval_ms = u32::try_from(self.heartbeat_interval.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(HelloReply { protocol: PROTOCOL, heartbeat_interval_ms }))
    }

    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollReply>, Status> {
        let node = node_id(&request)?;
        let PollRequest { wait_ms, seen } = request.into_inner();
        self.require_session(self.rounds.nodes().seen(&node))?;
        let deadline = tokio::time::Instant::now() + MAX_WAIT.min(Duration::from_millis(wait_ms.into()));
        let mut board = self.rounds.board();
        loop {
            let current = board.borrow_and_update().clone();
            let reply = convert::poll_reply(&current, &node, self.rounds.now_ms());
            if reply.seen != seen {
                return Ok(Response::new(reply));
            }
            match tokio::time::timeout_at(deadline, board.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Status::unavailable("the coordinator is shutting down")),
                Err(_) => return Ok(Response::new(reply)),
            }
        }
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatReply>, Status> {
        let node = node_id(&request)?;
        let serving = request.into_inner().serving.into_iter().take(MAX_SERVING).map(convert::serving).collect();
        self.require_session(self.rounds.nodes().heartbeat(&node, serving))?;
        Ok(Response::new(HeartbeatReply {}))
    }

    type DownloadStream = ChunkStream;

    async fn download(&self, request: Request<DownloadRequest>) -> Result<Response<ChunkStream>, Status> {
        let node = node_id(&request)?;
        let DownloadRequest { digest, offset } = request.into_inner();
        let digest = convert::digest("digest", &digest).map_err(Status::invalid_argument)?;
        let row = self.rounds.store().model_by_digest(digest).await.map_err(internal)?;
        let Some(row) = row else {
            return Err(Status::not_found(format!("no model version has digest {digest}")));
        };
        let rounds = self.rounds.clone();
        tracing::debug!(%node, %digest, offset, "download");
        let counted = move |bytes| rounds.count_download(digest, bytes);
        model_file(&self.rounds, &row.manifest.name, row.manifest.number, offset, counted).await.map(Response::new)
    }

    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Result<Response<UploadReceipt>, Status> {
        let node = node_id(&request)?;
        self.uploads.receive(&node, request.into_inner()).await.map(Response::new)
    }

    async fn report_evaluation(
        &self,
        request: Request<EvaluationReport>,
    ) -> Result<Response<EvaluationReceipt>, Status> {
        let node = node_id(&request)?;
        let (id, evaluation) = convert::evaluation(request.get_ref()).map_err(Status::invalid_argument)?;
        if !self.rounds.evaluated(&node, id, evaluation).await.map_err(internal)? {
            tracing::debug!(%node, assignment = %id, "an evaluation came after its round");
        }
        Ok(Response::new(EvaluationReceipt {}))
    }

    async fn decline(&self, request: Request<DeclineRequest>) -> Result<Response<DeclineReply>, Status> {
        let node = node_id(&request)?;
        let message = request.into_inner();
        let id = convert::assignment(&message.assignment_id).map_err(Status::invalid_argument)?;
        let reason = convert::text(&message.reason);
        tracing::warn!(%node, assignment = %id, %reason, "assignment declined");
        self.rounds.decline(&node, id, reason).await.map_err(internal)?;
        Ok(Response::new(DeclineReply {}))
    }
}

impl FederationService {
    fn require_session(&self, known: bool) -> Result<(), Status> {
        if known {
            return Ok(());
        }
        Err(Status::failed_precondition("no session: say hello first (the coordinator was restarted)"))
    }
}

/// The pieces of a version's ONNX file from an offset, read as they are sent.
pub async fn model_file(
    rounds: &Rounds,
    name: &str,
    number: u64,
    offset: u64,
    counted: impl Fn(u64) + Send + 'static,
) -> Result<ChunkStream, Status> {
    let path = rounds.store().models_folder().join(name).join(number.to_string()).join("model.onnx");
    let unreadable = {
        let path = path.clone();
        move |e: std::io::Error| Status::internal(format!("reading {}: {e}", path.display()))
    };
    let mut file = tokio::fs::File::open(&path).await.map_err(&unreadable)?;
    file.seek(SeekFrom::Start(offset)).await.map_err(&unreadable)?;
    let (tx, rx) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut at = offset;
        loop {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            let piece = match (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await {
                Ok(0) => break,
                Ok(len) => {
                    let chunk = Chunk { offset: at, crc32: crc32fast::hash(&data), data: data.into() };
                    at += len as u64;
                    counted(len as u64);
                    Ok(chunk)
                }
                Err(e) => Err(unreadable(e)),
            };
            // The caller is gone, or the file broke: either way this was the last piece.
            if piece.is_err() || tx.is_closed() {
                let _ = tx.send(piece).await;
                break;
            }
            if tx.send(piece).await.is_err() {
                break;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(rx)))
}

/// The id in the caller's certificate; the authorization layer put it there.
fn node_id<T>(request: &Request<T>) -> Result<String, Status> {
    let identity = request.extensions().get::<SpiffeId>();
    let identity = identity.ok_or_else(|| Status::unauthenticated("no certificate: nodes call with their own"))?;
    Ok(identity.id().to_owned())
}

fn internal(error: crate::store::StoreError) -> Status {
    tracing::error!(%error, "store");
    Status::unavailable(format!("the coordinator's store failed: {error}"))
}
