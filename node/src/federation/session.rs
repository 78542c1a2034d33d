//! The node's connection to its coordinator: hello, heartbeats, polls, uploads; it survives the coordinator's restarts.
//! What the instructions lead to is decided elsewhere: this file speaks and listens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fedge_models::operators::CATALOGUE_VERSION;
use fedge_proto::federation::federation_client::FederationClient;
use fedge_proto::federation::{
    Encoding, HeartbeatRequest, HelloRequest, PollRequest, ServingStatus, TrainingMetrics, UploadBegin, UploadCommit,
    UploadRequest, upload_request::Part,
};
use fedge_proto::transfer::{MAX_MESSAGE_BYTES, chunks};
use prost::bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::convert::{self, AssignmentId, Version};
use super::enrol::is_transient;
use super::outbox::Announcement;
use super::participant::Event;
use super::work::Workshop;
use crate::status::{NodeStatus, ServedModel, StatusFile};

const PROTOCOL: u32 = 1;
/// How long the coordinator may hold a poll.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// Grace on top, before a poll counts as lost.
const POLL_GRACE: Duration = Duration::from_secs(15);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts at a short call before the last one.
const ATTEMPTS: u32 = 40;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What became of a sent update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It is on the coordinator's disk.
    Counted,
    /// It will never count, and why.
    Refused(String),
    /// Something on the way failed.
    TryAgain(String),
}

/// A session with the coordinator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Session {
    channel: Channel,
    inference_address: String,
    training_threads: usize,
    status: Arc<Mutex<NodeStatus>>,
    file: StatusFile,
}

impl Session {
    /// A session over this channel. Nothing is sent yet.
    pub fn new(
        channel: Channel,
        inference_address: String,
        training_threads: usize,
        status: NodeStatus,
        file: StatusFile,
    ) -> Session {
        Session { channel, inference_address, training_threads, status: Arc::new(Mutex::new(status)), file }
    }

    /// A client of the federation service.
    pub fn client(&self) -> FederationClient<Channel> {
        FederationClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Notes what the node is doing, for `fedge node status`.
    pub fn tell_work(&self, work: String) {
        self.change(|status| status.work = work);
    }

    /// Notes what the node serves and holds, for the next heartbeat and for `fedge node status`.
    pub async fn tell_serving(&self, workshop: &Workshop) {
        let repository = workshop.versions.repository();
        let mut serving = Vec::new();
        for name in repository.names() {
            let counts = match workshop.samples.counts(&name).await {
                Ok(counts) => counts,
                Err(error) => {
                    tracing::error!(%error, "the sample store can't be read");
                    continue;
                }
            };
            let current = repository.current(&name);
            let current = current.as_deref();
            serving.push(ServedModel {
                number: current.map_or(0, |s| s.manifest().number),
                digest: current.map(|s| s.manifest().digest),
                precision: current.map(|s| s.precision().name().to_owned()).unwrap_or_default(),
                float_reason: current.and_then(|s| s.float_reason()).unwrap_or_default().to_owned(),
                training_samples: counts.training,
                held_out_samples: counts.held_out,
                model: name,
            });
        }
        let data_problems = workshop.versions.data_problems();
        self.change(|status| {
            status.serving = serving;
            status.data_problems = data_problems;
        });
    }

    /// Sends an update once.
    pub async fn send(&self, id: AssignmentId, announcement: Announcement, payload: Bytes) -> Delivery {
        let sha256 = announcement.sha256.as_bytes().to_vec();
        let begin = UploadBegin {
            assignment_id: id.0.to_vec(),
            base: announcement.base.as_bytes().to_vec(),
            layout: announcement.layout.as_bytes().to_vec(),
            size_bytes: payload.len() as u64,
            encoding: Encoding::F32.into(),
            examples: announcement.examples,
            metrics: Some(TrainingMetrics {
                steps: announcement.steps,
                loss_first: announcement.loss_first,
                loss_last: announcement.loss_last,
                duration_ms: announcement.duration_ms,
            }),
        };
        let parts = std::iter::once(Part::Begin(begin))
            .chain(chunks(payload, 0).map(Part::Chunk))
            .chain(std::iter::once(Part::Commit(UploadCommit { sha256 })));
        let stream = tokio_stream::iter(parts.map(|part| UploadRequest { part: Some(part) }));
        match self.client().upload(stream).await.map(tonic::Response::into_inner) {
            Ok(receipt) if receipt.counted => Delivery::Counted,
            Ok(_) => Delivery::Refused("it came after its round".into()),
            Err(status) if may_succeed_later(&status) => Delivery::TryAgain(status.message().to_owned()),
            Err(status) => Delivery::Refused(status.message().to_owned()),
        }
    }

    async fn hello(&self) -> Result<Duration, Status> {
        let request = HelloRequest {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            catalogue: CATALOGUE_VERSION,
            software: concat!("fedge ", env!("CARGO_PKG_VERSION")).into(),
            inference_address: self.inference_address.clone(),
        };
        let reply = call(self.client().hello(request)).await?;
        self.change(|status| {
            status.connected = true;
            status.last_error = None;
        });
        Ok(Duration::from_millis(u64::from(reply.heartbeat_interval_ms).clamp(50, 60_000)))
    }

    async fn heartbeat(&self) -> Result<(), Status> {
        let serving = self.status.lock().unwrap_or_else(PoisonError::into_inner).serving.clone();
        let serving = serving
            .into_iter()
            .map(|s| ServingStatus {
                model_name: s.model,
                number: s.number,
                digest: s.digest.map(|d| d.as_bytes().to_vec()).unwrap_or_default(),
                precision: s.precision,
                float_reason: s.float_reason,
                training_samples: s.training_samples,
                held_out_samples: s.held_out_samples,
            })
            .collect();
        call(self.client().heartbeat(HeartbeatRequest { serving })).await.map(|_| ())
    }

    fn lost(&self, status: &Status) {
        self.change(|s| {
            s.connected = false;
            s.last_error = Some(status.message().to_owned());
        });
    }

    fn change(&self, change: impl FnOnce(&mut NodeStatus)) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let before = status.clone();
        change(&mut status);
        if *status != before {
            self.file.write(&status);
        }
    }
}

/// Opens the session, and opens it again when it is lost; sends heartbeats on a clock of its own, also while training.
pub async fn keep_alive(session: Session, workshop: Workshop) {
    let mut pause = BACKOFF.0;
    loop {
        match session.hello().await {
            Ok(interval) => {
                pause = BACKOFF.0;
                tracing::info!("connected to the coordinator");
                let status = beat(&session, &workshop, interval).await;
                session.lost(&status);
                if !is_no_session(&status) {
                    tracing::warn!(error = status.message(), "the coordinator is lost; connecting again");
                }
            }
            Err(status) => {
                session.lost(&status);
                tracing::warn!(error = status.message(), retry_in = ?pause, "the coordinator can't be reached");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Sends heartbeats until one fails.
async fn beat(session: &Session, workshop: &Workshop, interval: Duration) -> Status {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        session.tell_serving(workshop).await;
        if let Err(status) = session.heartbeat().await {
            return status;
        }
    }
}

/// Polls for instructions, for ever.
pub async fn listen(session: Session, events: mpsc::Sender<Event>, serve: watch::Sender<Vec<(Version, f64)>>) {
    let (mut seen, mut pause) = (0, BACKOFF.0);
    loop {
        let wait_ms = u32::try_from(POLL_WAIT.as_millis()).unwrap_or(u32::MAX);
        let mut client = session.client();
        let poll = client.poll(PollRequest { wait_ms, seen });
        let reply = match tokio::time::timeout(POLL_WAIT + POLL_GRACE, poll).await {
            Ok(reply) => reply.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("a poll was not answered")),
        };
        let instructions = match reply.map(|r| convert::instructions(r, session.training_threads)) {
            Ok(Ok(instructions)) => instructions,
            Ok(Err(reason)) => {
                tracing::error!(%reason, "the coordinator's instructions can't be understood; is this node too old?");
                tokio::time::sleep(BACKOFF.1).await;
                continue;
            }
            Err(status) => {
                // Hello is `keep_alive`'s; a restarted coordinator has to tell everything again.
                seen = 0;
                tracing::debug!(error = status.message(), "poll failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
                continue;
            }
        };
        pause = BACKOFF.0;
        seen = instructions.seen;
        serve.send_if_modified(|wanted| {
            let news = *wanted != instructions.serve;
            *wanted = instructions.serve;
            news
        });
        if events.send(Event::Instructed(instructions.assignment)).await.is_err() {
            return;
        }
    }
}

async fn call<T>(reply: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, reply).await {
        Ok(reply) => reply.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer within 30 s")),
    }
}

/// Makes a short call until it arrives, for some minutes: what it says is said by nobody else.
///
/// # Errors
/// The last failure, or the first one that repeating does not mend.
pub async fn persistently<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut pause = BACKOFF.0;
    for _ in 0..ATTEMPTS {
        match call(attempt()).await {
            Err(status) if is_transient(&status) => tokio::time::sleep(pause).await,
            done => return done,
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
    call(attempt()).await
}

fn is_no_session(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().starts_with("no session")
}

/// May the same upload succeed later? A damaged transfer may, too.
fn may_succeed_later(status: &Status) -> bool {
    is_transient(status) || matches!(status.code(), Code::DataLoss | Code::Internal)
}
