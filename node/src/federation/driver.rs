//! The one loop of a node's part in the federation: hears instructions, feeds `participant`, persists, then acts.
//! What to do is decided in `participant`; the work itself is in `work`, model versions in `versions`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fedge_proto::federation::DeclineRequest;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::convert::{Assignment, AssignmentId, Version};
use super::participant::{self, Effect, Event, Participant, Phase};
use super::session::{self, Delivery, Session};
use super::work::Workshop;

/// First and longest pause between attempts at something that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Runs the node's part in the federation until the task is aborted.
pub async fn run(session: Session, workshop: Workshop) {
    let (events, inbox) = mpsc::channel(16);
    let (serve, wanted) = watch::channel(Vec::new());
    let background = [
        tokio::spawn(session::keep_alive(session.clone(), workshop.clone())),
        tokio::spawn(session::listen(session.clone(), events.clone(), serve.clone())),
        tokio::spawn(keep_served(session.clone(), workshop.clone(), wanted)),
    ];
    let _background = AbortOnDrop(background.into());
    let mut driver = Driver { session, workshop, events, serve, state: Participant::default(), work: None };
    driver.run(inbox).await;
}

struct Driver {
    session: Session,
    workshop: Workshop,
    events: mpsc::Sender<Event>,
    serve: watch::Sender<Vec<(Version, f64)>>,
    state: Participant,
    work: Option<(AssignmentId, Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Driver {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Event>) {
        // Only the newest can still count: a node has one assignment at a time.
        let mut found = self.workshop.outbox.found();
        if let Some(id) = found.pop() {
            found.into_iter().for_each(|stale| self.workshop.outbox.remove(stale));
            tracing::info!(assignment = %id, "an update from before the restart is sent again");
            self.event(Event::Found(id));
        }
        while let Some(event) = inbox.recv().await {
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        let (state, effects) = participant::step(std::mem::take(&mut self.state), event);
        self.state = state;
        for effect in effects {
            self.act(effect);
        }
        self.session.tell_work(match &self.state.phase {
            Phase::Idle => "idle".to_owned(),
            Phase::Working(Assignment::Train { round, base, .. }) => {
                format!("training version {} in round {round}", base.manifest.number)
            }
            Phase::Working(Assignment::Evaluate { version, .. }) => {
                format!("evaluating version {}", version.manifest.number)
            }
            Phase::Sending(_) => "sending its update".to_owned(),
        });
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Start(assignment) => self.start(assignment),
            Effect::Cancel(id) => {
                tracing::info!(assignment = %id, "the round moved on: its work is given up");
                if let Some((current, cancel, task)) = self.work.take_if(|(current, ..)| *current == id) {
                    cancel.store(true, Ordering::Relaxed);
                    task.abort();
                    self.workshop.outbox.remove(current);
                }
            }
            Effect::Send(id) => {
                let (session, workshop, events) = (self.session.clone(), self.workshop.clone(), self.events.clone());
                tokio::spawn(async move {
                    let counted = deliver(&session, &workshop, id).await;
                    let event = if counted { Event::Counted(id) } else { Event::Refused(id) };
                    let _ = events.send(event).await;
                });
            }
            Effect::Keep(id) | Effect::Discard(id) => self.workshop.outbox.remove(id),
            Effect::Decline(id, reason) => {
                tracing::warn!(assignment = %id, %reason, "assignment declined");
                let session = self.session.clone();
                tokio::spawn(async move {
                    let request = DeclineRequest { assignment_id: id.0.to_vec(), reason };
                    let decline = || {
                        let (mut client, request) = (session.client(), request.clone());
                        async move { client.decline(request).await }
                    };
                    if let Err(status) = session::persistently(decline).await {
                        tracing::warn!(assignment = %id, error = status.message(), "the refusal did not arrive");
                    }
                });
            }
        }
    }

    fn start(&mut self, assignment: Assignment) {
        let id = assignment.id();
        let cancel = Arc::new(AtomicBool::new(false));
        let (session, workshop, events) = (self.session.clone(), self.workshop.clone(), self.events.clone());
        let (flag, serve) = (cancel.clone(), self.serve.subscribe());
        let task = tokio::spawn(async move {
            let done = match assignment {
                Assignment::Train { round, base, plan, .. } => {
                    tracing::info!(round, version = base.manifest.number, "training");
                    workshop.train(&session.client(), id, &base, plan, flag).await.map(|()| Event::Trained(id))
                }
                Assignment::Evaluate { version, .. } => evaluate(&session, &workshop, id, &version, &serve).await,
            };
            let _ = events.send(done.unwrap_or_else(|reason| Event::Failed(id, reason))).await;
        });
        self.work = Some((id, cancel, task));
    }
}

async fn evaluate(
    session: &Session,
    workshop: &Workshop,
    id: AssignmentId,
    version: &Version,
    serve: &watch::Receiver<Vec<(Version, f64)>>,
) -> Result<Event, String> {
    let wanted = serve.borrow().iter().find(|(v, _)| v.manifest.name == version.manifest.name).map(|(_, t)| *t);
    let report = workshop.evaluate(&session.client(), id, version, wanted.unwrap_or(1.0)).await?;
    let tell = || {
        let (mut client, report) = (session.client(), report.clone());
        async move { client.report_evaluation(report).await }
    };
    session::persistently(tell).await.map_err(|status| status.message().to_owned())?;
    Ok(Event::Evaluated(id))
}

/// Sends a persisted update until it is counted (true) or refused for good.
async fn deliver(session: &Session, workshop: &Workshop, id: AssignmentId) -> bool {
    let mut pause = BACKOFF.0;
    loop {
        let outbox = workshop.outbox.clone();
        let read = tokio::task::spawn_blocking(move || outbox.get(id)).await;
        let (announcement, payload) = match read {
            Ok(Ok(update)) => update,
            Ok(Err(error)) => {
                tracing::error!(%error, "an update is lost; the round goes on without it");
                return false;
            }
            Err(error) => {
                tracing::error!(%error, "reading an update was interrupted");
                return false;
            }
        };
        match session.send(id, announcement, payload.into()).await {
            Delivery::Counted => {
                tracing::info!(assignment = %id, "update sent");
                return true;
            }
            Delivery::Refused(reason) => {
                tracing::warn!(assignment = %id, %reason, "update refused");
                return false;
            }
            Delivery::TryAgain(reason) => {
                tracing::warn!(assignment = %id, %reason, retry_in = ?pause, "update not sent yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Serves the newest version of each lineage; what fails is tried again, and the version before goes on serving.
async fn keep_served(session: Session, workshop: Workshop, mut wanted: watch::Receiver<Vec<(Version, f64)>>) {
    let mut pause = BACKOFF.0;
    loop {
        let versions = wanted.borrow_and_update().clone();
        let mut failed = false;
        for (version, tolerance) in &versions {
            if let Err(error) = workshop.versions.serve(&session.client(), version, *tolerance).await {
                failed = true;
                let manifest = &version.manifest;
                tracing::error!(model = %manifest.name, version = manifest.number, %error, "a version can't be served");
            }
        }
        session.tell_serving(&workshop).await;
        pause = if failed { (pause * 2).min(BACKOFF.1) } else { BACKOFF.0 };
        // Without news, look now and then: samples may have come that int8 was waiting for.
        let rest = if failed { pause } else { Duration::from_secs(5) };
        if let Ok(Err(_)) = tokio::time::timeout(rest, wanted.changed()).await {
            return;
        }
    }
}

struct AbortOnDrop(Vec<JoinHandle<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}
