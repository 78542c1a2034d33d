//! Tests of `work`: what an update holds and what it leaves behind, with training that gives what a test says.
//! Training itself is tested in its own room.

use std::sync::Mutex;

use fedge_models::Digest;
use fedge_proto::update::Decoder;

use super::super::convert::test_assignments;
use super::super::fake::Fake;
use super::super::learner::{Evaluated, Holdings, Job};
use super::super::outbox::Metrics;
use super::*;
use crate::training::{Objective, Optimizer};

/// A device whose training gives this; what it was asked for last is kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fixed {
    pub delta: Vec<f32>,
    pub steps: u64,
    pub asked: Arc<Mutex<Option<Run>>>,
    /// Training says this instead.
    pub failure: Arc<Mutex<Option<String>>>,
    /// Training waits until it is given up.
    pub waits: bool,
}

#[tonic::async_trait]
impl Learner for Fixed {
    async fn holdings(&self) -> Holdings {
        Holdings::default()
    }

    async fn serve(&self, _: &Client, _: &Version, _: f64) -> Result<(), String> {
        Ok(())
    }

    async fn train(&self, _: &Client, _: &Version, run: Run) -> Result<Job, String> {
        let fixed = self.clone();
        *self.asked.lock().unwrap() = Some(run.clone());
        Ok(Box::new(move || {
            while fixed.waits && !run.cancel.load(Ordering::Relaxed) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            if let Some(failure) = fixed.failure.lock().unwrap().clone() {
                return Err(failure);
            }
            let metrics = Metrics {
                steps: fixed.steps,
                loss_first: 1.0,
                loss_last: 0.5,
                loss_base: run.loss_base.then_some(2.0),
                partial: run.until.is_some(),
                duration_ms: 1,
            };
            let tensors = Arc::from([fixed.delta.len()]);
            Ok(Trained { delta: fixed.delta, tensors, statistics: vec![], examples: 7, own: None, metrics })
        }))
    }

    async fn evaluate(&self, _: &Client, _: &Version, _: &Objective, _: f64) -> Result<Evaluated, String> {
        let precision = "float".to_owned();
        Ok(Evaluated { examples: 3, correct_float: 2, correct_served: 1, loss: 0.5, precision })
    }
}

/// A node's folder and a coordinator.
pub(crate) struct Room {
    pub folder: tempfile::TempDir,
    pub fake: Fake,
    pub client: Client,
}

impl Room {
    pub(crate) async fn new() -> Room {
        let (fake, client) = Fake::start().await;
        Room { folder: tempfile::tempdir().unwrap(), fake, client }
    }

    pub(crate) fn workshop(&self, fixed: &Fixed) -> Workshop {
        let path = |name: &str| self.folder.path().join(name);
        Workshop {
            learner: Arc::new(fixed.clone()),
            outbox: Outbox::open(path("outbox")).unwrap(),
            memory: Memory::open(path("memory")).unwrap(),
            downloads: Arc::new(Downloads::open(path("incoming")).unwrap()),
        }
    }

    async fn train(&self, fixed: &Fixed, training: &Training) -> Result<(), String> {
        let cancel = Arc::default();
        self.workshop(fixed).train(&self.client, training.clone(), cancel).await
    }

    /// Trains, and then the update counts; gives its values as the coordinator decodes them.
    async fn round(&self, fixed: &Fixed, training: &Training) -> Vec<f32> {
        self.train(fixed, training).await.unwrap();
        let sent = self.sent(fixed, training);
        self.workshop(fixed).keep(training.id).unwrap();
        sent
    }

    fn sent(&self, fixed: &Fixed, training: &Training) -> Vec<f32> {
        let update = self.workshop(fixed).outbox.get(training.id).unwrap();
        let len = fixed.delta.len();
        let payload = update.payload.into_file(0).unwrap();
        let mut values = vec![0.0; len];
        let mut decoder = Decoder::new(payload, &training.terms.coding, &[len]).unwrap();
        assert_eq!(decoder.read(&mut values).unwrap(), len);
        values
    }
}

fn training(number: u8) -> Training {
    match test_assignments::train(number) {
        super::super::convert::Assignment::Train { id, task, base, plan, terms, deadline, .. } => {
            Training { id, task, base, plan: *plan, terms, deadline }
        }
        other => panic!("{other:?}"),
    }
}

fn top_k(share: f32) -> Coding {
    Coding { encoding: Encoding::TopK, top_k: share, zstd: false }
}

fn fixed(delta: &[f32], steps: u64) -> Fixed {
    Fixed { delta: delta.to_vec(), steps, ..Fixed::default() }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[tokio::test]
async fn a_plain_update_holds_the_values_and_leaves_nothing_behind() {
    let room = Room::new().await;
    let fixed = fixed(&[1.0, -2.5, 0.0], 4);
    assert_eq!(room.round(&fixed, &training(1)).await, fixed.delta);
    assert_eq!(room.round(&fixed, &training(2)).await, fixed.delta);
    assert_eq!(std::fs::read_dir(room.folder.path().join("memory")).unwrap().count(), 0);
    let run = fixed.asked.lock().unwrap().clone().unwrap();
    assert_eq!((run.loss_base, run.until), (false, None));
}

#[tokio::test]
async fn what_an_encoding_lost_is_in_the_next_counted_update_of_the_task_and_in_no_other() {
    let room = Room::new().await;
    let with = |number: u8, task: &str| {
        let mut training = training(1);
        training.id.0[0] = number;
        (training.terms.coding, training.task) = (top_k(0.5), task.to_owned());
        training
    };
    let fixed = fixed(&[4.0, 3.0], 1);
    // Of two values the larger one is sent; the other one waits.
    assert_eq!(room.round(&fixed, &with(1, "a")).await, [4.0, 0.0]);
    assert_eq!(room.round(&fixed, &with(2, "a")).await, [0.0, 6.0]);
    // One that never counts changes nothing: not the residual of before, [4, 0].
    room.train(&fixed, &with(3, "a")).await.unwrap();
    room.workshop(&fixed).outbox.discard(with(3, "a").id);
    assert_eq!(room.round(&fixed, &with(4, "a")).await, [8.0, 0.0]);
    assert_eq!(room.round(&fixed, &with(5, "b")).await, [4.0, 0.0], "another task has its own");
    assert_eq!(room.round(&fixed, &with(6, "a")).await, [4.0, 0.0], "and the first one's is gone");
}

#[tokio::test]
async fn the_rounding_follows_from_the_assignment() {
    let room = Room::new().await;
    let delta: Vec<f32> = (0..300).map(|i| (i as f32).sin()).collect();
    let fixed = fixed(&delta, 1);
    let training = [1, 1, 2].map(|number| {
        let mut training = training(number);
        training.terms.coding.encoding = Encoding::Int8;
        training
    });
    let mut sent = Vec::new();
    for training in &training {
        room.train(&fixed, training).await.unwrap();
        sent.push(room.sent(&fixed, training));
    }
    assert!(sent[0] == sent[1] && sent[0] != sent[2]);
}

#[tokio::test]
async fn scaffolds_correction_and_own_control_variate_are_those_computed_by_hand() {
    let room = Room::new().await;
    let server = room.fake.put(bytes(&[1.0, 2.0]));
    let mut training = training(1);
    training.plan.optimizer = Optimizer::sgd(0.5, 0.0, 0.0);
    let fixed = fixed(&[-3.0, 1.5], 3);
    let correction = || {
        let run = fixed.asked.lock().unwrap().clone().unwrap();
        run.plan.correction.map(|c| c.to_vec())
    };
    // c and c_i are zero; c_i⁺ = 0 − 0 + (x − y)/(3 · 0.5) = [2, −1].
    training.terms.control = Some(Control::Zeros);
    room.round(&fixed, &training).await;
    assert_eq!(correction(), None);
    // Now c = [1, 2]: c − c_i = [−1, 3], and c_i⁺ = [1, −3] + [2, −1] = [3, −4].
    training.id.0[0] = 2;
    training.terms.control = Some(Control::File { digest: server, size_bytes: 8 });
    room.round(&fixed, &training).await;
    assert_eq!(correction(), Some(vec![-1.0, 3.0]));
    // The server forgot its own: −c_i.
    training.id.0[0] = 3;
    training.terms.control = Some(Control::Zeros);
    room.train(&fixed, &training).await.unwrap();
    assert_eq!(correction(), Some(vec![-3.0, 4.0]));
}

#[tokio::test]
async fn the_control_variate_counts_what_was_sent_and_not_what_was_lost() {
    let room = Room::new().await;
    let mut training = training(1);
    training.terms.coding = top_k(0.5);
    training.terms.control = Some(Control::Zeros);
    training.plan.optimizer = Optimizer::sgd(0.5, 0.0, 0.0);
    let fixed = fixed(&[-4.0, 3.0], 2);
    assert_eq!(room.round(&fixed, &training).await, [-4.0, 0.0]);
    training.id.0[0] = 2;
    room.train(&fixed, &training).await.unwrap();
    let run = fixed.asked.lock().unwrap().clone().unwrap();
    assert_eq!(run.plan.correction.unwrap()[..], [-4.0, 0.0], "minus c_i = −4/(2 · 0.5)");
}

#[tokio::test]
async fn terms_reach_the_training_and_what_it_says_reaches_the_coordinator() {
    let room = Room::new().await;
    let mut training = training(1);
    (training.terms.accept_partial, training.terms.loss_base) = (true, true);
    let fixed = fixed(&[1.0], 4);
    room.train(&fixed, &training).await.unwrap();
    let run = fixed.asked.lock().unwrap().clone().unwrap();
    assert_eq!(run.until, Some(training.deadline.end_of_training()));
    let announcement = room.workshop(&fixed).outbox.get(training.id).unwrap().announcement;
    assert_eq!((announcement.metrics.loss_base, announcement.metrics.partial), (Some(2.0), true));
    assert_eq!((announcement.examples, announcement.key.task.as_str()), (7, "t"));
}

#[tokio::test]
async fn a_control_variate_of_another_size_and_a_disk_that_takes_nothing_are_told_in_a_sentence() {
    let room = Room::new().await;
    let mut training = training(1);
    training.terms.control = Some(Control::File { digest: Digest::of(b"none"), size_bytes: 8 });
    let fixed = fixed(&[1.0], 4);
    let error = room.train(&fixed, &training).await.unwrap_err();
    assert!(error.contains("control variate") && error.contains("no such file"), "{error}");
    training.terms.control = None;
    let workshop = room.workshop(&fixed);
    std::fs::remove_dir(room.folder.path().join("outbox")).unwrap();
    let error = workshop.train(&room.client, training, Arc::default()).await.unwrap_err();
    assert!(error.contains("outbox"), "{error}");
}

#[tokio::test]
async fn work_that_was_given_up_leaves_no_update() {
    let room = Room::new().await;
    let fixed = Fixed { waits: true, ..fixed(&[1.0], 4) };
    let cancel: Arc<AtomicBool> = Arc::default();
    let workshop = room.workshop(&fixed);
    let (flag, client) = (cancel.clone(), room.client.clone());
    let task = tokio::spawn(async move { workshop.train(&client, training(1), flag).await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    cancel.store(true, Ordering::Relaxed);
    assert!(task.await.unwrap().unwrap_err().contains("given up"));
    assert_eq!(room.workshop(&fixed).outbox.found(), []);
}
