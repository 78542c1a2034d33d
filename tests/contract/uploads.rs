//! Uploads of a node that breaks every rule, against the coordinator's real service over mutual TLS: each is refused with
//! its own error, counted for its task, and the round goes on with the good ones.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fedge_models::Model;
use fedge_proto::federation::{
    Coding, Encoding, FindUploadRequest, TrainAssignment, TrainingMetrics, UploadBegin, UploadCommit,
    upload_request::Part,
};
use fedge_proto::model::Chunk;
use prost::bytes::Bytes;
use tonic::Code;

use crate::parties::{Coordinator, Node, Update};

fn digits() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo/digits_cnn.onnx")).unwrap()
}

const TASK: &str = "model = \"m\"\n[rounds]\ncount = 2\nmin_nodes = 2\nevaluate_every = 0\n";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_bad_update_is_refused_by_its_own_name_and_the_round_goes_on() {
    let mut coordinator = Coordinator::start().await;
    let model = coordinator.publish(digits()).await;
    let parameters = model.layout().exchanged_len();
    // Two nodes are good; the others are bad for good, each in its own way.
    let wrong = [
        "bad-base",
        "bad-layout",
        "bad-coding",
        "bad-size",
        "bad-nan",
        "bad-infinity",
        "bad-huge",
        "bad-steps",
        "bad-oversized",
    ];
    let mut good = vec![coordinator.node("good-0").await, coordinator.node("good-1").await];
    let mut bad = Vec::new();
    for name in wrong {
        bad.push(coordinator.node(name).await);
    }
    let task = coordinator.create_task(TASK).await;
    let mut first = Vec::new();
    for node in &mut good {
        let assignment = node.assignment().await;
        first.push(Update::new(&assignment, &model, vec![0.25; parameters]));
    }
    for (name, node) in wrong.iter().zip(&mut bad) {
        let assignment = node.assignment().await;
        let mut values = vec![0.25; parameters];
        values[7] = match *name {
            "bad-nan" => f32::NAN,
            "bad-infinity" => f32::NEG_INFINITY,
            "bad-huge" => 1e9,
            _ => 0.25,
        };
        let update = Update::new(&assignment, &model, values);
        let (parts, code, says) = match *name {
            "bad-base" => (update.with(|b| b.base[0] ^= 1), Code::FailedPrecondition, "trained on version"),
            "bad-layout" => (update.with(|b| b.layout[0] ^= 1), Code::FailedPrecondition, "layout"),
            "bad-coding" => {
                let half = Coding { encoding: Encoding::F16.into(), ..update.begin.coding.unwrap() };
                (update.with(|b| b.coding = Some(half)), Code::InvalidArgument, "the task wants")
            }
            "bad-size" => {
                let short = Update::new(&assignment, &model, vec![0.25; parameters - 1]);
                (short.parts(), Code::InvalidArgument, "parameters need")
            }
            // More than the model could need: refused before a byte is kept.
            "bad-oversized" => (update.with(|b| b.size_bytes = 1 << 50), Code::InvalidArgument, "parameters need"),
            "bad-steps" => {
                let metrics = TrainingMetrics { steps: 1000, ..update.begin.metrics.unwrap() };
                (update.with(|b| b.metrics = Some(metrics)), Code::InvalidArgument, "the plan allows")
            }
            "bad-huge" => (update.parts(), Code::InvalidArgument, "more than"),
            _ => (update.parts(), Code::InvalidArgument, "not finite"),
        };
        let refused = node.send(parts).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}: {refused}");
        assert!(refused.message().contains(says), "{name}: {}", refused.message());
    }
    damaged_on_the_way(&mut good[0], &first[0]).await;
    // Another identity can't answer an assignment, even with the very bytes.
    let replayed = good[1].send(first[0].parts()).await.unwrap_err();
    assert_eq!(replayed.code(), Code::PermissionDenied, "{replayed}");

    for (node, update) in good.iter_mut().zip(&first) {
        assert!(node.send(update.parts()).await.unwrap().counted);
    }
    let again = good[0].send(first[0].parts()).await.unwrap();
    assert_eq!(again.sha256, first[0].begin.sha256, "the same bytes get the same receipt");
    let second = good[0].assignment().await;
    assert_eq!(second.round, 2, "the round went on");
    // A stale round: what was not sent in time is refused, and what was counted stays counted.
    let late = Update::new(&assignment_of(&first[0]), &model, vec![0.5; parameters]);
    assert_eq!(good[0].send(late.parts()).await.unwrap_err().code(), Code::AlreadyExists);
    let late = bad[0].send(first[1].with(|b| b.assignment_id = vec![9; 16])).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late}");

    let shown = coordinator.show(&task).await;
    for slug in ["base_version", "layout", "coding", "size", "not_finite", "out_of_range", "steps"] {
        assert!(shown.refused.get(slug).is_some_and(|n| *n >= 1), "{slug}: {:?}", shown.refused);
    }
    for slug in ["chunks", "digest", "protocol", "foreign_assignment", "conflict"] {
        assert!(shown.refused.get(slug).is_some_and(|n| *n >= 1), "{slug}: {:?}", shown.refused);
    }
    assert_eq!(shown.refused["not_finite"], 2);
    assert_eq!((shown.rounds[0].outcome.as_str(), shown.newest_version), ("aggregated", 2));
    let declined = shown.rounds[0].nodes.iter().filter(|n| n.outcome == "declined").count();
    assert_eq!(declined, wrong.len(), "what can never be right is not waited for");
}

/// What breaks on its way is refused and may be sent again.
async fn damaged_on_the_way(node: &mut Node, update: &Update) {
    let begin = || Part::Begin(update.begin.clone());
    let commit = || Part::Commit(UploadCommit { sha256: update.begin.sha256.clone() });
    let chunk = update.chunks().remove(0);
    let cut = |at: usize, from: usize| {
        let data = chunk.data.slice(from..at);
        Part::Chunk(Chunk { offset: from as u64, crc32: crc32fast::hash(&data), data })
    };
    let len = chunk.data.len();
    let flipped = {
        let mut data = chunk.data.to_vec();
        data[11] ^= 1;
        Part::Chunk(Chunk { offset: 0, crc32: crc32fast::hash(&data), data: data.into() })
    };
    let damaged = Part::Chunk(Chunk { crc32: chunk.crc32 ^ 1, ..chunk.clone() });
    let surplus =
        Part::Chunk(Chunk { offset: len as u64, crc32: crc32fast::hash(b"x"), data: Bytes::from_static(b"x") });
    let whole = || Part::Chunk(chunk.clone());
    for (what, parts, code) in [
        ("out of order", vec![begin(), cut(len, 100), cut(100, 0), commit()], Code::DataLoss),
        ("duplicated", vec![begin(), cut(100, 0), cut(100, 0), commit()], Code::DataLoss),
        ("truncated", vec![begin(), cut(100, 0), commit()], Code::DataLoss),
        ("damaged", vec![begin(), damaged, commit()], Code::DataLoss),
        ("surplus", vec![begin(), whole(), surplus, commit()], Code::DataLoss),
        ("another digest", vec![begin(), flipped, commit()], Code::DataLoss),
        ("no commit", vec![begin(), whole()], Code::DataLoss),
        ("two begins", vec![begin(), begin()], Code::InvalidArgument),
        ("no begin", vec![whole(), commit()], Code::InvalidArgument),
        (
            "another commit",
            vec![begin(), whole(), Part::Commit(UploadCommit { sha256: vec![1; 32] })],
            Code::InvalidArgument,
        ),
    ] {
        let refused = node.send(parts).await.unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused}");
    }
}

fn assignment_of(update: &Update) -> TrainAssignment {
    TrainAssignment {
        assignment_id: update.begin.assignment_id.clone(),
        base: Some(fedge_proto::model::ModelVersion { digest: update.begin.base.clone(), ..Default::default() }),
        plan: Some(fedge_proto::federation::TrainingPlan { coding: update.begin.coding, ..Default::default() }),
        ..TrainAssignment::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_goes_on_where_its_connection_broke() {
    let mut coordinator = Coordinator::start().await;
    let (bytes, parameters) = crate::linear::linear(3 << 20);
    let model = coordinator.publish(bytes).await;
    let task = coordinator.create_task(&TASK.replace("min_nodes = 2", "min_nodes = 1")).await;
    let mut node = coordinator.node("edge").await;
    let assignment = node.assignment().await;
    let update = Update::new(&assignment, &model, (0..parameters).map(|i| (i % 97) as f32 / 4096.0).collect());
    let pieces = update.chunks();
    assert!(pieces.len() >= 3);
    let find =
        FindUploadRequest { assignment_id: update.begin.assignment_id.clone(), sha256: update.begin.sha256.clone() };
    let mut offset = 0;
    for piece in &pieces[..pieces.len() - 1] {
        // A connection that carries one chunk and breaks.
        let broken = vec![Part::Begin(UploadBegin { offset, ..update.begin.clone() }), Part::Chunk(piece.clone())];
        node.send(broken).await.unwrap_err();
        let found = node.client.find_upload(find.clone()).await.unwrap().into_inner().offset;
        assert_eq!(found, piece.offset + piece.data.len() as u64, "nothing that arrived is sent again");
        offset = found;
    }
    let ahead = UploadBegin { offset: offset + 1, ..update.begin.clone() };
    let refused = node.send(vec![Part::Begin(ahead)]).await.unwrap_err();
    assert!(refused.code() == Code::DataLoss && refused.message().contains("FindUpload"), "{refused}");
    let rest = vec![
        Part::Begin(UploadBegin { offset, ..update.begin.clone() }),
        Part::Chunk(pieces.last().unwrap().clone()),
        Part::Commit(UploadCommit { sha256: update.begin.sha256.clone() }),
    ];
    assert!(node.send(rest).await.unwrap().counted);
    let second = node.assignment().await;
    assert_eq!(second.round, 2);
    assert_eq!(coordinator.show(&task).await.newest_version, 2);
    let spool = coordinator.folder.path().join("coordinator/store/spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0, "the round's files are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_come_at_once_are_all_kept_and_each_counts_once() {
    let mut coordinator = Coordinator::start().await;
    let model = coordinator.publish(digits()).await;
    let parameters = model.layout().exchanged_len();
    let mut nodes = Vec::new();
    for index in 0..24 {
        nodes.push(coordinator.node(&format!("edge-{index:02}")).await);
    }
    let task = coordinator.create_task(&TASK.replace("min_nodes = 2", "min_nodes = 24")).await;
    let ready = Arc::new(tokio::sync::Barrier::new(nodes.len()));
    let mut running = tokio::task::JoinSet::new();
    for (index, mut node) in nodes.into_iter().enumerate() {
        let (model, ready) = (model.clone(), ready.clone());
        running.spawn(async move {
            let assignment = node.assignment().await;
            let update = Update::new(&assignment, &model, vec![index as f32 / 1024.0; parameters]);
            ready.wait().await;
            assert!(node.send(update.parts()).await.unwrap().counted);
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let shown = loop {
        let shown = coordinator.show(&task).await;
        if shown.newest_version == 2 {
            break shown;
        }
        assert!(tokio::time::Instant::now() < deadline, "{shown:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(shown.rounds[0].nodes.iter().filter(|n| n.outcome == "trained").count(), 24);
    let path = coordinator.folder.path().join("coordinator/store/models/m/2/model.onnx");
    let moved = Model::from_path(&path).unwrap().weights();
    // All nodes have equal weights: the mean is that of 0/1024 to 23/1024.
    let mean = (0..24).map(|i| f64::from(i) / 1024.0).sum::<f64>() / 24.0;
    for (new, old) in moved.values().iter().zip(model.weights().values()) {
        assert!((f64::from(*new) - f64::from(*old) - mean).abs() < 1e-7);
    }
}
