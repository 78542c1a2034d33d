//! The federation service: what nodes ask for and report. Each call is checked, translated and handed on.
//! Decisions are `step`'s, persistence is `driver`'s; who may call is decided by the authorization layer before.

use std::sync::Arc;
use std::time::Duration;

use fedge_models::operators::CATALOGUE_VERSION;
use fedge_proto::FEDERATION_PROTOCOL;
use fedge_proto::federation::{
    DeclineReply, DeclineRequest, DownloadRequest, EvaluationReceipt, EvaluationReport, FindUploadReply,
    FindUploadRequest, HeartbeatReply, HeartbeatRequest, HelloReply, HelloRequest, PollReply, PollRequest,
    UploadReceipt, UploadRequest, federation_server::Federation,
};
use fedge_proto::identity::SpiffeId;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::delta::Deltas;
use super::download::{self, DownloadStream};
use super::driver::Rounds;
use super::upload::Uploads;

/// Longest time that a poll is held.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Most lineages that one node may report on.
const MAX_SERVING: usize = 256;

/// The service that nodes call.
#[derive(Debug)]
pub struct FederationService {
    rounds: Arc<Rounds>,
    uploads: Uploads,
    deltas: Deltas,
    heartbeat_interval: Duration,
}

impl FederationService {
    /// Serves these rounds; nodes are asked for a heartbeat at this interval.
    pub fn new(rounds: Arc<Rounds>, heartbeat_interval: Duration) -> FederationService {
        FederationService {
            uploads: Uploads::new(rounds.clone()),
            rounds,
            deltas: Deltas::default(),
            heartbeat_interval,
        }
    }
}

#[tonic::async_trait]
impl Federation for FederationService {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let node = node_id(&request)?;
        let hello = request.into_inner();
        if !(hello.protocol_min..=hello.protocol_max).contains(&FEDERATION_PROTOCOL) {
            return Err(Status::failed_precondition(format!(
                "this coordinator speaks federation protocol {FEDERATION_PROTOCOL}, the node speaks {} to {}: update the older one",
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
        Ok(Response::new(HelloReply { protocol: FEDERATION_PROTOCOL, heartbeat_interval_ms }))
    }

    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollReply>, Status> {
        let node = node_id(&request)?;
        let PollRequest { wait_ms, seen } = request.into_inner();
        self.require_session(self.rounds.nodes().seen(&node))?;
        let deadline = tokio::time::Instant::now() + MAX_WAIT.min(Duration::from_millis(wait_ms.into()));
        let (board, news) = (self.rounds.board(), self.rounds.news().of(&node));
        loop {
            let current = board.borrow().clone();
            let reply = convert::poll_reply(&current, &node, self.rounds.now_ms());
            if reply.seen != seen || tokio::time::timeout_at(deadline, news.notified()).await.is_err() {
                return Ok(Response::new(reply));
            }
        }
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatReply>, Status> {
        let node = node_id(&request)?;
        let HeartbeatRequest { serving, resting } = request.into_inner();
        let serving = serving.into_iter().take(MAX_SERVING).map(convert::serving).collect();
        self.require_session(self.rounds.nodes().heartbeat(&node, serving, convert::text(&resting)))?;
        Ok(Response::new(HeartbeatReply {}))
    }

    type DownloadStream = DownloadStream;

    async fn download(&self, request: Request<DownloadRequest>) -> Result<Response<DownloadStream>, Status> {
        let node = node_id(&request)?;
        let request = request.into_inner();
        tracing::debug!(%node, offset = request.offset, "download");
        download::download(&self.rounds, &self.deltas, request).await.map(Response::new)
    }

    async fn find_upload(&self, request: Request<FindUploadRequest>) -> Result<Response<FindUploadReply>, Status> {
        let node = node_id(&request)?;
        let FindUploadRequest { assignment_id, sha256 } = request.into_inner();
        let id = convert::assignment(&assignment_id).map_err(Status::invalid_argument)?;
        let sha256 = convert::sha256(&sha256).map_err(Status::invalid_argument)?;
        let offset = self.uploads.arrived(&node, id, sha256).await;
        Ok(Response::new(FindUploadReply { offset }))
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
        if !self.rounds.evaluated(&node, id, evaluation).await.map_err(convert::unavailable)? {
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
        self.rounds.decline(&node, id, reason).await.map_err(convert::unavailable)?;
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

/// The id in the caller's certificate; the authorization layer put it there.
fn node_id<T>(request: &Request<T>) -> Result<String, Status> {
    let identity = request.extensions().get::<SpiffeId>();
    let identity = identity.ok_or_else(|| Status::unauthenticated("no certificate: nodes call with their own"))?;
    Ok(identity.id().to_owned())
}
