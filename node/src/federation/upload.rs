//! Sends a persisted update until its outcome is known: streamed from its file, continued where it broke off.
//! What becomes of the update then is decided in `participant`.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fedge_proto::federation::{
    FindUploadRequest, TrainingMetrics, UploadBegin, UploadCommit, UploadReceipt, UploadRequest, upload_request::Part,
};
use fedge_proto::model::Chunk;
use fedge_proto::transfer::CHUNK_BYTES;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::convert::{AssignmentId, wire_coding};
use super::enrol::is_transient;
use super::learner::Client;
use super::outbox::{Outbox, Update};
use super::session::call;

/// First and longest pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Longest time in which nothing of an upload moves: neither a chunk leaves nor a receipt comes.
const SILENCE: Duration = Duration::from_secs(120);

/// What became of a sent update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It is on the coordinator's disk and part of its round.
    Counted,
    /// It will never count, and why.
    Refused(String),
}

enum Attempt {
    Done(Delivery),
    TryAgain(Status),
}

/// Sends an update until it is counted or refused for good. `client` gives a client of the connection of the moment.
pub async fn deliver(client: impl Fn() -> Client, outbox: &Outbox, id: AssignmentId) -> Delivery {
    let mut pause = BACKOFF.0;
    let mut again = false;
    loop {
        let opened = open(outbox, id, again).await;
        let update = match opened {
            Ok(update) => update,
            Err(error) => {
                tracing::error!(%error, "an update is lost; the round goes on without it");
                return Delivery::Refused(error);
            }
        };
        let attempt = match offset(client(), id, &update, again).await {
            Ok(offset) => send(client(), id, update, offset).await,
            Err(status) => Attempt::TryAgain(status),
        };
        match attempt {
            Attempt::Done(delivery) => return delivery,
            Attempt::TryAgain(status) => {
                let reason = status.message();
                tracing::warn!(assignment = %id, %reason, retry_in = ?pause, "update not sent yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
        again = true;
    }
}

/// Opens the update. At later attempts its payload is looked at too: what is damaged here will never arrive whole.
async fn open(outbox: &Outbox, id: AssignmentId, verify: bool) -> Result<Update, String> {
    let outbox = outbox.clone();
    let work = move || {
        let mut update = outbox.get(id)?;
        if verify {
            update.payload.verify(update.sha256)?;
        }
        Ok::<_, super::record::RecordError>(update)
    };
    let opened = tokio::task::spawn_blocking(work).await;
    opened.map_err(|e| format!("reading an update was interrupted: {e}"))?.map_err(|e| e.to_string())
}

/// Where the chunks begin: the first time at 0, later where the coordinator's part ends.
async fn offset(mut client: Client, id: AssignmentId, update: &Update, again: bool) -> Result<u64, Status> {
    if !again {
        return Ok(0);
    }
    let request = FindUploadRequest { assignment_id: id.0.to_vec(), sha256: update.sha256.as_bytes().to_vec() };
    match call(client.find_upload(request)).await {
        Ok(found) if found.offset <= update.payload.bytes => Ok(found.offset),
        Err(status) if is_transient(&status) => Err(status),
        // Whatever this means, the upload itself gets the last word.
        Ok(_) | Err(_) => Ok(0),
    }
}

async fn send(mut client: Client, id: AssignmentId, update: Update, offset: u64) -> Attempt {
    let moved = Arc::new(AtomicU64::new(0));
    // Two chunks wait at most: the rest stays in the file.
    let (parts, stream) = mpsc::channel(2);
    let counter = moved.clone();
    // It ends when `stream` is dropped, at the latest with this call.
    tokio::task::spawn_blocking(move || read(id, update, offset, &parts, &counter));
    let mut upload = std::pin::pin!(client.upload(ReceiverStream::new(stream)));
    let mut seen = 0;
    let answer = loop {
        match tokio::time::timeout(SILENCE, &mut upload).await {
            Ok(answer) => break answer.map(tonic::Response::into_inner),
            Err(_) if moved.load(Ordering::Relaxed) != seen => seen = moved.load(Ordering::Relaxed),
            Err(_) => break Err(Status::deadline_exceeded("nothing of the upload moved for two minutes")),
        }
    };
    judge(answer)
}

/// Gives the update to the connection, part by part. Blocks where the connection is slower than the disk.
fn read(id: AssignmentId, update: Update, offset: u64, parts: &mpsc::Sender<UploadRequest>, moved: &AtomicU64) {
    let tell = |part| {
        moved.fetch_add(1, Ordering::Relaxed);
        parts.blocking_send(UploadRequest { part: Some(part) }).is_ok()
    };
    let size = update.payload.bytes;
    let commit = UploadCommit { sha256: update.sha256.as_bytes().to_vec() };
    if !tell(Part::Begin(begin(id, &update, offset))) {
        return;
    }
    // A file that can't be read ends the stream before its commit: the coordinator refuses that, and it is tried again.
    let Ok(mut file) = update.payload.into_file(offset).inspect_err(|error| tracing::error!(%error)) else { return };
    let mut at = offset;
    while at < size {
        let len = (size - at).min(CHUNK_BYTES as u64);
        let mut data = Vec::with_capacity(len as usize);
        let got = (&mut file).take(len).read_to_end(&mut data);
        if got.as_ref().ok() != Some(&(len as usize)) {
            tracing::error!(assignment = %id, at, ?got, "an update can't be read");
            return;
        }
        if !tell(Part::Chunk(Chunk { offset: at, crc32: crc32fast::hash(&data), data: data.into() })) {
            return;
        }
        at += len;
    }
    tell(Part::Commit(commit));
}

fn begin(id: AssignmentId, update: &Update, offset: u64) -> UploadBegin {
    let announcement = &update.announcement;
    let metrics = &announcement.metrics;
    UploadBegin {
        assignment_id: id.0.to_vec(),
        base: announcement.base.as_bytes().to_vec(),
        layout: announcement.key.layout.as_bytes().to_vec(),
        size_bytes: update.payload.bytes,
        coding: Some(wire_coding(&announcement.coding)),
        examples: announcement.examples,
        metrics: Some(TrainingMetrics {
            steps: metrics.steps,
            loss_first: metrics.loss_first,
            loss_last: metrics.loss_last,
            duration_ms: metrics.duration_ms,
            loss_base: metrics.loss_base,
            partial: metrics.partial,
        }),
        sha256: update.sha256.as_bytes().to_vec(),
        offset,
    }
}

fn judge(answer: Result<UploadReceipt, Status>) -> Attempt {
    match answer {
        Ok(receipt) if receipt.counted => Attempt::Done(Delivery::Counted),
        Ok(_) => Attempt::Done(Delivery::Refused("it came after its round".into())),
        Err(status) if may_succeed_later(&status) => Attempt::TryAgain(status),
        Err(status) => Attempt::Done(Delivery::Refused(status.message().to_owned())),
    }
}

/// May the same upload succeed later? A damaged transfer may, too.
fn may_succeed_later(status: &Status) -> bool {
    is_transient(status) || matches!(status.code(), Code::DataLoss | Code::Internal)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::federation::fake::Fake;
    use crate::federation::memory::Leftover;
    use crate::federation::outbox::tests::{announcement, put};

    const ID: AssignmentId = AssignmentId([7; 16]);

    fn payload() -> Vec<u8> {
        (0..CHUNK_BYTES * 3 + 17).map(|i| (i % 251) as u8).collect()
    }

    struct Room {
        folder: tempfile::TempDir,
        outbox: Outbox,
        fake: Fake,
        client: Client,
    }

    impl Room {
        async fn new() -> Room {
            let folder = tempfile::tempdir().unwrap();
            let outbox = Outbox::open(folder.path().join("outbox")).unwrap();
            put(&outbox, ID, &payload(), Leftover::default());
            let (fake, client) = Fake::start().await;
            Room { folder, outbox, fake, client }
        }

        async fn deliver(&self) -> Delivery {
            deliver(|| self.client.clone(), &self.outbox, ID).await
        }

        fn arrived(&self) -> (Vec<u8>, bool) {
            self.fake.state().uploads[&ID.0.to_vec()].clone()
        }
    }

    #[tokio::test]
    async fn an_update_is_sent_at_once_with_all_that_is_said_with_it() {
        let room = Room::new().await;
        assert_eq!(room.deliver().await, Delivery::Counted);
        assert_eq!(room.arrived(), (payload(), true));
        let state = room.fake.state();
        assert_eq!((state.begins.len(), state.finds, state.chunks), (1, 0, 4));
        let begin = &state.begins[0];
        assert_eq!((begin.size_bytes, begin.offset, begin.examples), (payload().len() as u64, 0, 3));
        assert_eq!(begin.base, announcement().base.as_bytes());
        assert_eq!(begin.coding, Some(wire_coding(&announcement().coding)));
        let metrics = begin.metrics.unwrap();
        assert_eq!((metrics.loss_base, metrics.partial, metrics.steps), (Some(0.1), true, 1));
    }

    #[tokio::test]
    async fn a_connection_that_breaks_at_any_chunk_costs_no_chunk_twice() {
        for at in 0..=4 {
            let room = Room::new().await;
            room.fake.state().breaks = [at].into();
            assert_eq!(room.deliver().await, Delivery::Counted);
            assert_eq!(room.arrived(), (payload(), true));
            let state = room.fake.state();
            let there = (at * CHUNK_BYTES).min(payload().len()) as u64;
            assert_eq!((state.chunks, state.finds, state.begins[1].offset), (4, 1, there));
        }
    }

    #[tokio::test]
    async fn a_refusal_ends_it_and_an_overload_does_not() {
        let room = Room::new().await;
        room.fake.state().refusals = [Status::resource_exhausted("busy"), Status::failed_precondition("over")].into();
        assert_eq!(room.deliver().await, Delivery::Refused("over".into()));
        assert_eq!(room.fake.state().begins.len(), 2);
        assert_eq!(room.fake.state().chunks, 4, "what has come is not sent again");
    }

    #[tokio::test]
    async fn an_update_that_was_damaged_on_disk_is_given_up() {
        let room = Room::new().await;
        let path = std::fs::read_dir(room.folder.path().join("outbox")).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let Delivery::Refused(reason) = room.deliver().await else { panic!("counted") };
        assert!(reason.contains("digest"), "{reason}");
        assert_eq!(room.fake.state().begins.len(), 1);
    }
}
