//! A coordinator for tests, in this process: serves files and takes updates, and breaks off where a test wants it.
//! It decides nothing: tests put into it what it answers.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use fedge_models::Digest;
use fedge_proto::federation::federation_server::{Federation, FederationServer};
use fedge_proto::federation::{
    DeclineReply, DeclineRequest, DownloadBegin, DownloadReply, DownloadRequest, EvaluationReceipt, EvaluationReport,
    FindUploadReply, FindUploadRequest, Form, HeartbeatReply, HeartbeatRequest, HelloReply, HelloRequest, PollReply,
    PollRequest, UploadBegin, UploadReceipt, UploadRequest, download_reply, upload_request::Part,
};
use fedge_proto::tls::connect_plaintext;
use fedge_proto::transfer::{MAX_MESSAGE_BYTES, Receiver, chunks};
use prost::bytes::Bytes;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::learner::Client;

/// What a test sets and looks at.
#[derive(Default)]
pub(crate) struct State {
    /// Files by digest, and deltas by (held, new).
    pub files: BTreeMap<Digest, Bytes>,
    pub deltas: BTreeMap<(Digest, Digest), Bytes>,
    /// For each transfer that is to break: after how many chunks. Then none breaks.
    pub breaks: VecDeque<usize>,
    /// A transfer breaks by saying nothing more, instead of by an error.
    pub hang: bool,
    /// Every download that was asked for.
    pub downloads: Vec<DownloadRequest>,
    /// Chunks that went out or came in.
    pub chunks: usize,
    /// Updates by assignment: what has come, and whether it was committed.
    pub uploads: BTreeMap<Vec<u8>, (Vec<u8>, bool)>,
    /// Every upload's beginning, and how often an offset was asked for.
    pub begins: Vec<UploadBegin>,
    pub finds: usize,
    /// Errors that uploads end with instead of receipts, one each.
    pub refusals: VecDeque<Status>,
    /// What polls tell; the newest is told again and again.
    pub poll: PollReply,
    pub heartbeats: Vec<HeartbeatRequest>,
    pub declined: Vec<DeclineRequest>,
    pub evaluations: Vec<EvaluationReport>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    /// Where it listens, host:port.
    pub address: String,
}

impl Fake {
    /// Starts one, and gives a client of it.
    pub(crate) async fn start() -> (Fake, Client) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Fake { state: Arc::default(), address: listener.local_addr().unwrap().to_string() };
        let service = FederationServer::new(fake.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = connect_plaintext(&fake.address).await.unwrap();
        (fake, Client::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves a file.
    pub(crate) fn put(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.state().files.insert(digest, bytes);
        digest
    }

    /// What this upload breaks after, and the chunks that it may still take.
    fn next_break(&self) -> usize {
        self.state().breaks.pop_front().unwrap_or(usize::MAX)
    }
}

type Downloads = Pin<Box<dyn tokio_stream::Stream<Item = Result<DownloadReply, Status>> + Send>>;

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(bytes.try_into().unwrap())
}

fn broken() -> Status {
    Status::unavailable("broken by the test")
}

#[tonic::async_trait]
impl Federation for Fake {
    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(HelloReply { protocol: 1, heartbeat_interval_ms: 50 }))
    }

    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollReply>, Status> {
        for _ in 0..request.get_ref().wait_ms / 10 {
            let reply = self.state().poll.clone();
            if reply.seen != request.get_ref().seen {
                return Ok(Response::new(reply));
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(Response::new(self.state().poll.clone()))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatReply>, Status> {
        self.state().heartbeats.push(request.into_inner());
        Ok(Response::new(HeartbeatReply {}))
    }

    type DownloadStream = Downloads;

    async fn download(&self, request: Request<DownloadRequest>) -> Result<Response<Downloads>, Status> {
        let request = request.into_inner();
        let new = digest(&request.digest);
        let (data, form, hang) = {
            let mut state = self.state();
            state.downloads.push(request.clone());
            let held = (!request.held.is_empty()).then(|| digest(&request.held));
            let delta = held.and_then(|held| state.deltas.get(&(held, new)).cloned());
            let whole = state.files.get(&new).cloned();
            match delta.filter(|_| request.form() != Form::Whole) {
                Some(delta) => (delta, Form::Delta, state.hang),
                None => (whole.ok_or_else(|| Status::not_found("no such file"))?, Form::Whole, state.hang),
            }
        };
        let asked = request.form() == form || request.offset == 0;
        let offset = if asked && request.offset <= data.len() as u64 { request.offset } else { 0 };
        let (fake, mut left) = (self.clone(), self.next_break());
        let (tx, rx) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let begin = DownloadBegin { form: form.into(), size_bytes: data.len() as u64, offset };
            let begin = DownloadReply { part: Some(download_reply::Part::Begin(begin)) };
            let _ = tx.send(Ok(begin)).await;
            for chunk in chunks(data, offset) {
                if left == 0 && hang {
                    return std::future::pending().await;
                } else if left == 0 {
                    let _ = tx.send(Err(broken())).await;
                    return;
                }
                left -= 1;
                fake.state().chunks += 1;
                let _ = tx.send(Ok(DownloadReply { part: Some(download_reply::Part::Chunk(chunk)) })).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn find_upload(&self, request: Request<FindUploadRequest>) -> Result<Response<FindUploadReply>, Status> {
        let mut state = self.state();
        state.finds += 1;
        let offset = state.uploads.get(&request.get_ref().assignment_id).map_or(0, |(bytes, _)| bytes.len() as u64);
        Ok(Response::new(FindUploadReply { offset }))
    }

    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Result<Response<UploadReceipt>, Status> {
        let mut stream = request.into_inner();
        let Some(Part::Begin(begin)) = stream.message().await?.and_then(|m| m.part) else {
            return Err(Status::invalid_argument("no beginning"));
        };
        let id = begin.assignment_id.clone();
        let mut bytes = self.state().uploads.get(&id).map(|(bytes, _)| bytes.clone()).unwrap_or_default();
        bytes.truncate(begin.offset as usize);
        self.state().begins.push(begin.clone());
        let mut receiver = Receiver::resume(begin.size_bytes, &bytes[..]).unwrap();
        let mut left = self.next_break();
        loop {
            match stream.message().await?.and_then(|m| m.part) {
                Some(Part::Chunk(chunk)) if left > 0 => {
                    receiver.accept(&chunk).map_err(|e| Status::data_loss(e.to_string()))?;
                    bytes.extend_from_slice(&chunk.data);
                    left -= 1;
                    let mut state = self.state();
                    state.chunks += 1;
                    state.uploads.insert(id.clone(), (bytes.clone(), false));
                }
                Some(Part::Commit(commit)) if left > 0 => {
                    let sha256 = commit.sha256.as_slice().try_into().unwrap();
                    receiver.finish(sha256).map_err(|e| Status::data_loss(e.to_string()))?;
                    if let Some(refusal) = self.state().refusals.pop_front() {
                        return Err(refusal);
                    }
                    self.state().uploads.insert(id.clone(), (bytes, true));
                    return Ok(Response::new(UploadReceipt {
                        assignment_id: id,
                        sha256: commit.sha256,
                        counted: true,
                    }));
                }
                _ => return Err(broken()),
            }
        }
    }

    async fn report_evaluation(
        &self,
        request: Request<EvaluationReport>,
    ) -> Result<Response<EvaluationReceipt>, Status> {
        self.state().evaluations.push(request.into_inner());
        Ok(Response::new(EvaluationReceipt {}))
    }

    async fn decline(&self, request: Request<DeclineRequest>) -> Result<Response<DeclineReply>, Status> {
        self.state().declined.push(request.into_inner());
        Ok(Response::new(DeclineReply {}))
    }
}
