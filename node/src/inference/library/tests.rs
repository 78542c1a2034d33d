//! Tests of a library on a real folder: versions, policies, changes under way, failed loads, load and unload.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use fedge_proto::inference::model_version_policy::{PolicyChoice, Specific};
use tempfile::TempDir;

use super::super::test_fixtures::{package, two_inputs, zoo};
use super::*;

struct Folder {
    root: TempDir,
    library: Library,
}

fn folder() -> Folder {
    let root = TempDir::new().unwrap();
    let repository = Arc::new(ModelRepository::new());
    let options = LibraryOptions { settle: Duration::from_millis(30), ..LibraryOptions::default() };
    let library = Library::new(root.path().to_owned(), repository, options);
    Folder { root, library }
}

impl Folder {
    /// Writes a version whole: beside its place, then renamed.
    fn put(&self, name: &str, number: u64, onnx: &[u8]) {
        let model = self.root.path().join(name);
        let stage = model.join(".stage");
        fs::create_dir_all(&stage).unwrap();
        fs::write(stage.join("model.onnx"), onnx).unwrap();
        let place = model.join(number.to_string());
        let _ = fs::remove_dir_all(&place);
        fs::rename(stage, place).unwrap();
    }

    async fn settle(&self) {
        for _ in 0..3 {
            self.library.look().await.unwrap();
            tokio::time::sleep(Duration::from_millis(35)).await;
        }
    }

    fn served(&self, name: &str) -> Vec<u64> {
        self.library.repository.versions(name).iter().map(|serving| serving.manifest().number).collect()
    }
}

fn digits(number: u64) -> Vec<u8> {
    package(number).model.bytes().to_vec()
}

fn settings(folder: &Folder, name: &str, text: &str) {
    fs::write(folder.root.path().join(name).join("model.toml"), text).unwrap();
}

#[tokio::test]
async fn the_newest_version_is_served_and_a_newer_one_replaces_it() {
    let folder = folder();
    folder.put("digits", 1, &digits(1));
    folder.put("Sum.of-two", 7, &two_inputs());
    folder.settle().await;
    assert_eq!((folder.served("digits"), folder.served("Sum.of-two")), (vec![1], vec![7]));
    assert!(folder.library.repository.ready());
    folder.put("digits", 2, &digits(2));
    folder.settle().await;
    assert_eq!(folder.served("digits"), [2]);
    let serving = folder.library.repository.current("digits").unwrap();
    assert_eq!(serving.manifest().digest, package(2).manifest.digest);
}

#[tokio::test]
async fn a_version_that_stays_is_not_loaded_again() {
    let folder = folder();
    folder.put("digits", 1, &digits(1));
    settings(&folder, "digits", "[version_policy]\nall = true\n");
    folder.settle().await;
    let first = folder.library.repository.current("digits").unwrap();
    folder.put("digits", 2, &digits(2));
    folder.settle().await;
    assert_eq!(folder.served("digits"), [1, 2]);
    assert!(Arc::ptr_eq(&first, &folder.library.repository.get("digits", "1").unwrap()));
}

#[tokio::test]
async fn a_version_that_can_not_be_loaded_leaves_the_old_one_and_says_why() {
    let folder = folder();
    folder.put("digits", 1, &digits(1));
    folder.settle().await;
    let old = folder.library.repository.current("digits").unwrap();
    folder.put("digits", 2, &digits(2)[..20_000]);
    folder.settle().await;
    assert_eq!(folder.served("digits"), [1]);
    assert!(Arc::ptr_eq(&old, &folder.library.repository.current("digits").unwrap()));
    let index = folder.library.repository.index();
    let failed = index.iter().find(|entry| entry.version == Some(2)).unwrap();
    assert!(!failed.ready && failed.reason.contains("truncated"), "{failed:?}");
    let error = folder.library.load("digits").await.unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("truncated"), "{error}");
    folder.put("digits", 2, &digits(2));
    folder.settle().await;
    assert_eq!(folder.served("digits"), [2]);
    assert!(folder.library.repository.index().iter().all(|entry| entry.ready && entry.reason.is_empty()));
}

#[tokio::test]
async fn a_file_that_is_still_written_is_not_read() {
    let folder = folder();
    let place = folder.root.path().join("digits/1");
    fs::create_dir_all(&place).unwrap();
    let bytes = digits(1);
    for piece in bytes.chunks(bytes.len() / 8) {
        use std::io::Write;
        let path = place.join("model.onnx");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(piece).unwrap();
        folder.library.look().await.unwrap();
        assert!(folder.library.repository.index().is_empty(), "nothing was tried");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    folder.settle().await;
    assert_eq!(folder.served("digits"), [1]);
}

#[tokio::test]
async fn models_are_unloaded_and_loaded_on_request_and_a_removed_folder_ends_one() {
    let folder = folder();
    folder.put("digits", 1, &digits(1));
    folder.settle().await;
    folder.library.unload("digits").await;
    folder.library.unload("never heard of").await;
    folder.settle().await;
    assert_eq!(folder.served("digits"), [] as [u64; 0]);
    let unloaded = folder.library.unloaded().await;
    assert_eq!((unloaded[0].name.as_str(), unloaded[0].reason.as_str()), ("digits", "unloaded"));
    folder.library.load("digits").await.unwrap();
    assert_eq!((folder.served("digits"), folder.library.unloaded().await), (vec![1], vec![]));
    for name in ["letters", "../digits", "", ".stage"] {
        assert!(matches!(folder.library.load(name).await, Err(LibraryError::Unknown(_))), "{name}");
    }
    fs::remove_dir_all(folder.root.path().join("digits")).unwrap();
    folder.settle().await;
    assert!(folder.library.repository.names().is_empty());
}

#[tokio::test]
async fn settings_give_labels_preprocessing_and_int8() {
    let folder = folder();
    folder.put("digits", 1, &digits(1));
    fs::copy(zoo("digits.csv"), folder.root.path().join("digits/samples.csv")).unwrap();
    let text = "labels = [\"0\",\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]\ncalibration_file = \"samples.csv\"\n\
                max_batch_size = 4\n[preprocessing]\nscale = 0.0625\n";
    settings(&folder, "digits", text);
    folder.settle().await;
    let serving = folder.library.repository.current("digits").unwrap();
    assert_eq!((serving.precision().name(), serving.manifest().labels.len()), ("int8", 10));
    let options = folder.library.repository.options("digits").unwrap().executor;
    assert_eq!(options.batching.max_batch_size, Some(4));
    folder.library.repository.note_problem("digits", 7, "damaged".to_owned());
    settings(&folder, "digits", "labels = [\"one\"]");
    folder.settle().await;
    let error = folder.library.load("digits").await.unwrap_err().to_string();
    assert!(error.contains("names 1 classes"), "{error}");
    assert_eq!(folder.served("digits"), [1], "the version of before goes on");
    settings(&folder, "digits", "[version_policy]\nspecific = [1]\n");
    folder.settle().await;
    let repository = &folder.library.repository;
    assert!(repository.index().iter().any(|entry| entry.reason == "damaged"), "other options, the same problems");
    let options = repository.options("digits").unwrap();
    let config = crate::inference::describe::config(&repository.current("digits").unwrap(), &options, 8);
    let policy = config.version_policy.unwrap().policy_choice.unwrap();
    assert_eq!(policy, PolicyChoice::Specific(Specific { versions: vec![1] }));
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_an_error() {
    let repository = Arc::new(ModelRepository::new());
    let library = Library::new(Path::new("/nowhere/at/all").to_owned(), repository, LibraryOptions::default());
    assert!(library.look().await.unwrap_err().to_string().contains("/nowhere/at/all"));
}

#[tokio::test]
async fn only_the_clients_that_the_settings_name_may_ask() {
    use super::super::answer::{InferError, Inference};
    use super::super::keep::KeepPolicy;
    use super::super::request::{InferRequest, RequestLimits};
    use fedge_proto::identity::{Role, SpiffeId};

    let folder = folder();
    folder.put("digits", 1, &digits(1));
    settings(&folder, "digits", "clients = [\"till-3\"]\n");
    folder.settle().await;
    let repository = Arc::clone(&folder.library.repository);
    let inference = Inference::new(repository, None, KeepPolicy::Off, RequestLimits::default());
    let ask = async |role, id| {
        let caller = Some(SpiffeId::new("shop", role, id).unwrap());
        inference
            .infer(InferRequest { model: "digits".to_owned(), caller, ..InferRequest::default() })
            .await
            .unwrap_err()
    };
    // Those that may are told that the request has no input.
    assert!(matches!(ask(Role::Client, "till-3").await, InferError::Refused(_)));
    assert!(matches!(ask(Role::Operator, "boss").await, InferError::Refused(_)));
    let denied = ask(Role::Client, "till-4").await;
    assert!(denied.to_string().contains("till-4"), "{denied}");
    let seen = |id| {
        let caller = SpiffeId::new("shop", Role::Client, id).unwrap();
        (inference.lookup("digits", "", Some(&caller)).is_ok(), inference.served(Some(&caller)).len())
    };
    assert_eq!((seen("till-3"), seen("till-4")), ((true, 1), (false, 0)), "nor ask about it");
    let others = SpiffeId::new("shop", Role::Client, "till-4").unwrap();
    for (model, version) in [("letters", ""), ("digits", "9")] {
        let told = inference.lookup(model, version, Some(&others)).unwrap_err().to_string();
        assert!(!told.contains("knows \"digits\"") && !told.contains("version 1"), "nor hear what there is: {told}");
    }
    assert_eq!(tonic::Status::from(denied).code(), tonic::Code::PermissionDenied);
}
