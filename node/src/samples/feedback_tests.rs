//! Tests of the feedback service through its RPCs' functions; over the wire it is tested with inference.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tempfile::TempDir;
use tonic::Code;

use super::super::{Counts, Limits};
use super::*;
use crate::inference::test_fixtures::{PIXELS, serving};

async fn node() -> (FeedbackService, TempDir) {
    let directory = TempDir::new().unwrap();
    let limits = Limits { max_pending: 2, ..Limits::default() };
    let samples = SampleStore::open(&directory.path().join("samples.db"), limits).await.unwrap();
    let repository = Arc::new(ModelRepository::new());
    repository.swap(serving(1));
    (FeedbackService { repository, samples }, directory)
}

fn name(name: &str) -> Option<ClassLabel> {
    Some(ClassLabel { value: Some(Value::Name(name.to_owned())) })
}

fn index(index: u32) -> Option<ClassLabel> {
    Some(ClassLabel { value: Some(Value::Index(index)) })
}

async fn add(
    service: &FeedbackService,
    model: &str,
    input: &[f32],
    label: Option<ClassLabel>,
) -> Result<AddReply, Status> {
    let request = AddRequest { model_name: model.to_owned(), input: input.to_vec(), label };
    service.add(Request::new(request)).await.map(Response::into_inner)
}

async fn label(service: &FeedbackService, id: &str, label: Option<ClassLabel>) -> Result<LabelReply, Status> {
    service.label(Request::new(LabelRequest { sample_id: id.to_owned(), label })).await.map(Response::into_inner)
}

#[tokio::test]
async fn a_whole_sample_is_kept_once() {
    let (service, _directory) = node().await;
    let added = add(&service, "digits", &[1.0; PIXELS], name("7")).await.unwrap();
    assert_eq!(added, AddReply { index: 7, duplicate: false });
    let again = add(&service, "digits", &[1.0; PIXELS], index(7)).await.unwrap();
    assert_eq!(again, AddReply { index: 7, duplicate: true });
    let counts = service.samples.counts("digits").await.unwrap();
    assert_eq!(counts.training + counts.held_out, 1);
}

#[tokio::test]
async fn each_wrong_sample_is_refused_with_its_reason() {
    let (service, _directory) = node().await;
    let good = [1.0; PIXELS];
    let nan = [f32::NAN; PIXELS];
    for (model, input, label, code, expected) in [
        ("letters", &good[..], index(1), Code::NotFound, "unknown model \"letters\""),
        (
            "digits",
            &good[..63],
            index(1),
            Code::InvalidArgument,
            "takes 64 values a sample (shape [1, 8, 8]), but 63 came",
        ),
        ("digits", &[], index(1), Code::InvalidArgument, "but 0 came"),
        ("digits", &nan[..], index(1), Code::InvalidArgument, "element 0 (from 0) is NaN"),
        ("digits", &good[..], name("cat"), Code::InvalidArgument, "unknown name \"cat\"; known labels are 0, 1, 2"),
        ("digits", &good[..], index(10), Code::InvalidArgument, "unknown index 10; known labels are 0, 1, 2"),
        ("digits", &good[..], None, Code::InvalidArgument, "label: is missing"),
    ] {
        let status = add(&service, model, input, label).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(expected), "{status}");
    }
    assert_eq!(service.samples.counts("digits").await.unwrap(), Counts::default());
}

#[tokio::test]
async fn each_wrong_label_for_an_answer_is_refused_and_the_answer_can_still_be_labelled() {
    let (service, _directory) = node().await;
    let mut ids = Vec::new();
    for value in [1.0, 2.0, 3.0] {
        ids.push(service.samples.keep_pending("digits", &[value; PIXELS]).await.unwrap().to_string());
    }
    for (id, given, code) in [
        (ids[0].as_str(), index(1), Code::FailedPrecondition),
        (&SampleId::mint().to_string(), index(1), Code::NotFound),
        ("7", index(1), Code::InvalidArgument),
        (&ids[1], name("cat"), Code::InvalidArgument),
        (&ids[1], None, Code::InvalidArgument),
    ] {
        assert_eq!(label(&service, id, given).await.unwrap_err().code(), code, "{id}");
    }
    assert_eq!(label(&service, &ids[1], name("4")).await.unwrap(), LabelReply { index: 4 });
    let status = label(&service, &ids[1], name("4")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("labelled already"), "{status}");
}
