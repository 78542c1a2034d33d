//! Tests of `driver`: a node's whole part in rounds, against a coordinator in this process.
//! What is decided is in `participant`'s tests, what an update holds in `work`'s.

use fedge_proto::federation::{PollReply, poll_reply};
use fedge_proto::tls::connect_plaintext;

use super::super::convert::test_assignments::{wire_evaluate, wire_train};
use super::super::memory::Leftover;
use super::super::outbox::tests::put;
use super::super::work::tests::{Fixed, Room};
use super::*;
use crate::status::{NodeStatus, StatusFile};
use crate::training::Resources;

struct Node {
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(room: &Room, fixed: &Fixed) -> Node {
    let channel = connect_plaintext(&room.fake.address).await.unwrap();
    let status = NodeStatus {
        pid: 0,
        identity: String::new(),
        inference_address: String::new(),
        transport: String::new(),
        connected: false,
        last_error: None,
        work: String::new(),
        resting: String::new(),
        serving: vec![],
        data_problems: vec![],
    };
    let session =
        Session::new(channel, String::new(), Resources::default(), status, StatusFile::of(room.folder.path()));
    Node { task: tokio::spawn(run(session, room.workshop(fixed))) }
}

fn tell(room: &Room, assignment: Option<poll_reply::Assignment>) {
    let mut state = room.fake.state();
    let seen = state.poll.seen + 1;
    state.poll = PollReply { seen, serve: vec![], assignment };
}

fn train(number: u8) -> Option<poll_reply::Assignment> {
    let mut train = wire_train(number);
    let plan = train.plan.as_mut().unwrap();
    // So that it leaves something behind.
    plan.coding.as_mut().unwrap().encoding = fedge_proto::federation::Encoding::F16.into();
    Some(poll_reply::Assignment::Train(train))
}

async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited ten seconds for {what}");
}

fn fixed() -> Fixed {
    Fixed { delta: vec![1.0, 2.0, 0.1], steps: 3, ..Fixed::default() }
}

fn committed(room: &Room, number: u8) -> bool {
    room.fake.state().uploads.get(&vec![number; 16]).is_some_and(|(_, committed)| *committed)
}

fn files(room: &Room, folder: &str) -> usize {
    std::fs::read_dir(room.folder.path().join(folder)).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_becomes_an_update_once_and_its_memory_is_kept() {
    let room = Room::new().await;
    let _node = start(&room, &fixed()).await;
    for number in [1, 2] {
        tell(&room, train(number));
        wait_for("the update", || committed(&room, number)).await;
        wait_for("the memory", || files(&room, "memory/digits") == 1 && files(&room, "outbox") == 0).await;
    }
    tell(&room, Some(poll_reply::Assignment::Evaluate(wire_evaluate(3))));
    wait_for("the evaluation", || room.fake.state().evaluations.len() == 1).await;
    let state = room.fake.state();
    assert_eq!((state.begins.len(), state.evaluations[0].correct_float), (2, 2));
    assert!(!state.heartbeats.is_empty() && state.declined.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_from_before_a_restart_is_sent_and_older_ones_are_not() {
    let room = Room::new().await;
    let outbox = room.workshop(&fixed()).outbox;
    put(&outbox, AssignmentId([1; 16]), b"older", Leftover::default());
    std::thread::sleep(Duration::from_millis(20));
    put(&outbox, AssignmentId([2; 16]), b"newer", Leftover { residual: Some(&[1.0]), ..Leftover::default() });
    let _node = start(&room, &fixed()).await;
    wait_for("the update", || committed(&room, 2)).await;
    wait_for("the end of it", || files(&room, "outbox") == 0 && files(&room, "memory/digits") == 1).await;
    assert_eq!(room.fake.state().begins.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_declined_with_its_reason_and_a_round_that_is_over_is_given_up() {
    let room = Room::new().await;
    let failing = Fixed { failure: Arc::new(Some("no samples".to_owned()).into()), ..fixed() };
    let node = start(&room, &failing).await;
    tell(&room, train(1));
    wait_for("the refusal", || room.fake.state().declined.len() == 1).await;
    assert_eq!(room.fake.state().declined[0].reason, "no samples");
    drop(node);
    let waiting = Fixed { waits: true, ..fixed() };
    let _node = start(&room, &waiting).await;
    tell(&room, train(2));
    wait_for("the beginning", || waiting.asked.lock().unwrap().is_some()).await;
    tell(&room, None);
    tell(&room, None);
    let run = waiting.asked.lock().unwrap().clone().unwrap();
    wait_for("the end", || run.cancel.load(Ordering::Relaxed)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((files(&room, "outbox"), room.fake.state().begins.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_cannot_be_kept_stops_the_next_training_until_it_can() {
    let room = Room::new().await;
    let _node = start(&room, &fixed()).await;
    room.fake.state().refusals = [tonic::Status::resource_exhausted("not yet")].into();
    tell(&room, train(1));
    wait_for("the first attempt", || room.fake.state().refusals.is_empty()).await;
    // A file in the way of the lineage's folder.
    let blocked = room.folder.path().join("memory/digits");
    std::fs::write(&blocked, b"").unwrap();
    wait_for("the update", || committed(&room, 1)).await;
    tell(&room, train(2));
    wait_for("the refusal", || room.fake.state().declined.len() == 1).await;
    let reason = room.fake.state().declined[0].reason.clone();
    assert!(reason.contains("can't be kept") && reason.contains("digits"), "{reason}");
    assert_eq!(files(&room, "outbox"), 2, "the update and its memory stay");
    std::fs::remove_file(&blocked).unwrap();
    tell(&room, train(3));
    wait_for("the third update", || committed(&room, 3)).await;
    wait_for("its memory", || files(&room, "memory/digits") == 1 && files(&room, "outbox") == 0).await;
}
