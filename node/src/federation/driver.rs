//! The one loop of a node's part in the federation: hears instructions, feeds `participant`, persists, then acts.
//! What to do is decided in `participant`; the work itself is in `work`, model versions in `versions`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fedge_proto::federation::DeclineRequest;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::convert::{Assignment, AssignmentId, Version};
use super::learner::Learner;
use super::participant::{self, Effect, Event, Participant, Phase};
use super::session::{self, Session};
use super::upload::{self, Delivery};
use super::work::{Training, Workshop};
use crate::training::Objective;

/// First and longest pause between attempts at something that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Without news, served versions are looked at so often: samples may have come that int8 was waiting for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Runs the node's part in the federation until the task is aborted.
pub async fn run(session: Session, workshop: Workshop) {
    let (events, inbox) = mpsc::channel(16);
    let (serve, wanted) = watch::channel(Vec::new());
    let background = [
        tokio::spawn(session::keep_alive(session.clone(), workshop.learner.clone())),
        tokio::spawn(session::listen(session.clone(), events.clone(), serve.clone())),
        tokio::spawn(keep_served(session.clone(), workshop.learner.clone(), wanted)),
    ];
    let _background = AbortOnDrop(background.into());
    let mut driver =
        Driver { session, workshop, events, serve, state: Participant::default(), work: None, owed: Vec::new() };
    driver.run(inbox).await;
}

struct Driver {
    session: Session,
    workshop: Workshop,
    events: mpsc::Sender<Event>,
    serve: watch::Sender<Vec<(Version, f64)>>,
    state: Participant,
    work: Option<(AssignmentId, Arc<AtomicBool>, JoinHandle<()>)>,
    /// Counted updates whose memory could not be made valid yet: their tasks can't go on before.
    owed: Vec<AssignmentId>,
}

impl Driver {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Event>) {
        // Only the newest can still count: a node has one assignment at a time.
        let mut found = self.workshop.outbox.found();
        if let Some(id) = found.pop() {
            found.into_iter().for_each(|stale| self.workshop.outbox.discard(stale));
            tracing::info!(assignment = %id, "an update from before the restart is sent again");
            self.event(Event::Found(id)).await;
        }
        while let Some(event) = inbox.recv().await {
            self.event(event).await;
        }
    }

    async fn event(&mut self, event: Event) {
        let (state, effects) = participant::step(std::mem::take(&mut self.state), event);
        self.state = state;
        for effect in effects {
            self.act(effect).await;
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

    async fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Start(assignment) => self.start(assignment).await,
            Effect::Cancel(id) => {
                tracing::info!(assignment = %id, "the round moved on: its work is given up");
                if let Some((current, cancel, task)) = self.work.take_if(|(current, ..)| *current == id) {
                    cancel.store(true, Ordering::Relaxed);
                    task.abort();
                    self.workshop.outbox.discard(current);
                }
            }
            Effect::Send(id) => {
                let (session, workshop, events) = (self.session.clone(), self.workshop.clone(), self.events.clone());
                tokio::spawn(async move {
                    let event = match upload::deliver(|| session.client(), &workshop.outbox, id).await {
                        Delivery::Counted => {
                            tracing::info!(assignment = %id, "update sent");
                            Event::Counted(id)
                        }
                        Delivery::Refused(reason) => {
                            tracing::warn!(assignment = %id, %reason, "update refused");
                            Event::Refused(id)
                        }
                    };
                    let _ = events.send(event).await;
                });
            }
            // Before anything else is done: the next training needs what this one left behind.
            Effect::Keep(id) => {
                self.owed.push(id);
                if let Err(reason) = self.keep_owed().await {
                    tracing::error!(%reason, "tried again before the next training");
                }
            }
            Effect::Discard(id) => self.workshop.outbox.discard(id),
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

    async fn start(&mut self, assignment: Assignment) {
        let id = assignment.id();
        let cancel = Arc::new(AtomicBool::new(false));
        let (session, workshop, events) = (self.session.clone(), self.workshop.clone(), self.events.clone());
        let (flag, serve) = (cancel.clone(), self.serve.subscribe());
        let owed = self.keep_owed().await;
        let task = tokio::spawn(async move {
            let done = match (assignment, owed) {
                (Assignment::Train { .. }, Err(reason)) => Err(reason),
                (Assignment::Train { id, task, round, base, plan, terms, deadline }, Ok(())) => {
                    tracing::info!(round, version = base.manifest.number, "training");
                    let training = Training { id, task, base, plan: *plan, terms, deadline };
                    workshop.train(&session.client(), training, flag).await.map(|()| Event::Trained(id))
                }
                (Assignment::Evaluate { version, objective, .. }, _) => {
                    evaluate(&session, &workshop, id, (&version, &objective), &serve).await
                }
            };
            let _ = events.send(done.unwrap_or_else(|reason| Event::Failed(id, reason))).await;
        });
        self.work = Some((id, cancel, task));
    }

    /// Makes the memory of counted updates valid; at once, unless the disk was full or the like.
    async fn keep_owed(&mut self) -> Result<(), String> {
        // The oldest first: of two of one task, the newer one's memory is the one to stay.
        while let Some(id) = self.owed.first().copied() {
            let workshop = self.workshop.clone();
            let kept = tokio::task::spawn_blocking(move || workshop.keep(id)).await;
            kept.map_err(|e| format!("keeping was interrupted: {e}"))?
                .map_err(|e| format!("what the last update left behind can't be kept: {e}"))?;
            self.owed.remove(0);
        }
        Ok(())
    }
}

async fn evaluate(
    session: &Session,
    workshop: &Workshop,
    id: AssignmentId,
    (version, objective): (&Version, &Objective),
    serve: &watch::Receiver<Vec<(Version, f64)>>,
) -> Result<Event, String> {
    let wanted = serve.borrow().iter().find(|(v, _)| v.manifest.name == version.manifest.name).map(|(_, t)| *t);
    let report = workshop.evaluate(&session.client(), id, version, objective, wanted.unwrap_or(1.0)).await?;
    let tell = || {
        let (mut client, report) = (session.client(), report.clone());
        async move { client.report_evaluation(report).await }
    };
    session::persistently(tell).await.map_err(|status| status.message().to_owned())?;
    Ok(Event::Evaluated(id))
}

/// Serves the newest version of each lineage; what fails is tried again, and the version before goes on serving.
async fn keep_served(session: Session, learner: Arc<dyn Learner>, mut wanted: watch::Receiver<Vec<(Version, f64)>>) {
    let mut pause = BACKOFF.0;
    loop {
        let versions = wanted.borrow_and_update().clone();
        let mut failed = false;
        for (version, tolerance) in &versions {
            if let Err(error) = learner.serve(&session.client(), version, *tolerance).await {
                failed = true;
                let manifest = &version.manifest;
                tracing::error!(model = %manifest.name, version = manifest.number, %error, "a version can't be served");
            }
        }
        session.tell_serving(&*learner).await;
        pause = if failed { (pause * 2).min(BACKOFF.1) } else { BACKOFF.0 };
        let rest = if failed { pause } else { LOOK_AGAIN };
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

#[cfg(test)]
#[path = "driver_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
