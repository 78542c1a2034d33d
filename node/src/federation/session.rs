//! The node's connection to its coordinator: hello, heartbeats, polls; it survives the coordinator's restarts.
//! What the instructions lead to is decided elsewhere; transfers are in `upload` and `download`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fedge_models::operators::CATALOGUE_VERSION;
use fedge_proto::FEDERATION_PROTOCOL;
use fedge_proto::federation::federation_client::FederationClient;
use fedge_proto::federation::{HeartbeatRequest, HelloRequest, PollRequest, ServingStatus};
use fedge_proto::transfer::MAX_MESSAGE_BYTES;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::convert::{self, Version};
use super::enrol::is_transient;
use super::learner::{Client, Learner};
use super::participant::Event;
use crate::status::{NodeStatus, StatusFile};
use crate::training::Resources;

/// How long the coordinator may hold a poll.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// Grace on top, before a poll counts as lost.
const POLL_GRACE: Duration = Duration::from_secs(15);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts at a short call before the last one.
const ATTEMPTS: u32 = 40;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A session with the coordinator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Session {
    channel: Channel,
    inference_address: String,
    resources: Resources,
    status: Arc<Mutex<NodeStatus>>,
    file: StatusFile,
}

impl Session {
    /// A session over this channel. Nothing is sent yet.
    pub fn new(
        channel: Channel,
        inference_address: String,
        resources: Resources,
        status: NodeStatus,
        file: StatusFile,
    ) -> Session {
        Session { channel, inference_address, resources, status: Arc::new(Mutex::new(status)), file }
    }

    /// A client of the federation service.
    pub fn client(&self) -> Client {
        FederationClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Notes what the node is doing, for `fedge node status`.
    pub fn tell_work(&self, work: String) {
        self.change(|status| status.work = work);
    }

    /// Notes what the node serves and holds, for the next heartbeat and for `fedge node status`.
    pub async fn tell_serving(&self, learner: &dyn Learner) {
        let holdings = learner.holdings().await;
        self.change(|status| {
            status.serving = holdings.models;
            status.data_problems = holdings.data_problems;
            status.resting = holdings.resting;
        });
    }

    async fn hello(&self) -> Result<Duration, Status> {
        let request = HelloRequest {
            protocol_min: FEDERATION_PROTOCOL,
            protocol_max: FEDERATION_PROTOCOL,
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
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (serving, resting) = (status.serving, status.resting);
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
                drift: s.drift,
                drift_alarms: s.drift_alarms,
            })
            .collect();
        call(self.client().heartbeat(HeartbeatRequest { serving, resting })).await.map(|_| ())
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
pub async fn keep_alive(session: Session, learner: Arc<dyn Learner>) {
    let mut pause = BACKOFF.0;
    loop {
        match session.hello().await {
            Ok(interval) => {
                pause = BACKOFF.0;
                tracing::info!("connected to the coordinator");
                let status = beat(&session, &*learner, interval).await;
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
async fn beat(session: &Session, learner: &dyn Learner, interval: Duration) -> Status {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        session.tell_serving(learner).await;
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
        // What time is left is counted from here.
        let received = Instant::now();
        let instructions = match reply.map(|r| convert::instructions(r, session.resources, received)) {
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

/// A short call with its timeout.
///
/// # Errors
/// Its failure, or that no answer came.
pub async fn call<T>(reply: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
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
