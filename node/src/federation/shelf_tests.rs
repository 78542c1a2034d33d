//! Tests of `shelf`: versions that come whole, as deltas, as bad deltas, and those that go.
//! Broken connections are in `download`'s tests.

use std::collections::BTreeMap;

use fedge_models::{Model, Preprocessing};

use super::*;
use crate::federation::fake::Fake;

const MODEL: &[u8] = include_bytes!("../../../models/zoo/digits_cnn.onnx");

/// The demo's model with all weights scaled: another version of its lineage.
fn model(number: u64) -> Model {
    let model = Model::from_bytes(MODEL).unwrap();
    let scaled = model.weights().values().iter().map(|w| w * (1.0 + number as f32 * 1e-3)).collect();
    model.with_weights(&fedge_models::Weights::new(model.layout().clone(), scaled).unwrap()).unwrap()
}

fn version(number: u64, model: &Model) -> Version {
    let manifest = Manifest {
        schema: 1,
        name: "digits".into(),
        number,
        digest: model.digest(),
        layout: model.layout().digest(),
        labels: vec![],
        preprocessing: Preprocessing::default(),
        parent: None,
        task: None,
        round: None,
    };
    Version { manifest: Arc::new(manifest), size_bytes: model.bytes().len() as u64 }
}

struct Room {
    folder: tempfile::TempDir,
    fake: Fake,
    client: Client,
    models: BTreeMap<u64, Model>,
}

impl Room {
    /// With so many versions.
    async fn new(versions: u64) -> Room {
        let (fake, client) = Fake::start().await;
        let models: BTreeMap<u64, Model> = (1..=versions).map(|number| (number, model(number))).collect();
        models.values().for_each(|model| _ = fake.put(model.bytes().to_vec()));
        Room { folder: tempfile::tempdir().unwrap(), fake, client, models }
    }

    fn shelf(&self) -> Shelf {
        let downloads = Arc::new(Downloads::open(self.folder.path().join("incoming")).unwrap());
        Shelf::new(self.folder.path().join("models"), downloads, 2)
    }

    async fn hold(&self, number: u64) -> Package {
        let folder = self.shelf().hold(&self.client, &version(number, &self.models[&number])).await.unwrap();
        Package::read(&folder).unwrap()
    }

    fn delta(&self, old: u64, new: u64) -> Vec<u8> {
        let [old, new] = [&self.models[&old], &self.models[&new]].map(|m| m.bytes().to_vec());
        let mut delta = Vec::new();
        model_delta::encode(&old[..], old.len() as u64, &new[..], new.len() as u64, &mut delta).unwrap();
        delta
    }

    fn offer(&self, old: u64, new: u64, delta: Vec<u8>) {
        let key = (self.models[&old].digest(), self.models[&new].digest());
        self.fake.state().deltas.insert(key, delta.into());
    }

    fn asked(&self) -> usize {
        self.fake.state().downloads.len()
    }
}

#[tokio::test]
async fn a_version_comes_once_and_the_newest_two_stay() {
    let room = Room::new(4).await;
    for number in [1, 2, 2, 3, 4] {
        assert_eq!(room.hold(number).await.model.digest(), room.models[&number].digest());
    }
    assert_eq!(room.asked(), 4);
    let mut left = numbers(&room.folder.path().join("models/digits"));
    left.sort_unstable();
    assert_eq!((left, room.shelf().newest()), (vec![3, 4], vec![("digits".to_owned(), 4)]));
}

#[tokio::test]
async fn a_delta_against_the_version_on_disk_makes_the_next_one() {
    let room = Room::new(2).await;
    room.hold(1).await;
    let delta = room.delta(1, 2);
    assert!(delta.len() < MODEL.len(), "{}", delta.len());
    room.offer(1, 2, delta);
    assert_eq!(room.hold(2).await.model.bytes(), room.models[&2].bytes());
    let state = room.fake.state();
    assert_eq!((state.downloads.len(), &state.downloads[1].held[..]), (2, &room.models[&1].digest().as_bytes()[..]));
}

#[tokio::test]
async fn a_bad_delta_is_followed_by_the_whole_file() {
    for damage in ["cut", "changed", "of another version"] {
        let room = Room::new(3).await;
        room.hold(1).await;
        let mut delta = room.delta(1, 2);
        match damage {
            "cut" => delta.truncate(delta.len() / 2),
            "changed" => *delta.last_mut().unwrap() ^= 1,
            _ => delta = room.delta(1, 3),
        }
        room.offer(1, 2, delta);
        assert_eq!(room.hold(2).await.model.bytes(), room.models[&2].bytes(), "{damage}");
        let state = room.fake.state();
        assert_eq!((state.downloads.len(), state.downloads[2].held.len()), (3, 0), "{damage}");
    }
}

#[tokio::test]
async fn a_version_of_another_history_makes_room_for_the_one_that_is_wanted() {
    let room = Room::new(2).await;
    room.hold(1).await;
    let other = version(1, &room.models[&2]);
    let folder = room.shelf().hold(&room.client, &other).await.unwrap();
    assert_eq!(Package::read(&folder).unwrap().model.digest(), room.models[&2].digest());
    // A folder without a manifest is none.
    std::fs::remove_file(folder.join(MANIFEST_FILE)).unwrap();
    room.hold(1).await;
}

#[tokio::test]
async fn what_is_not_ours_stays_and_what_does_not_come_leaves_nothing() {
    let room = Room::new(1).await;
    let lineage = room.folder.path().join("models/digits");
    for name in ["1", "2", "9", "10", "stray"] {
        std::fs::create_dir_all(lineage.join(name)).unwrap();
    }
    prune(&lineage, 10, 2);
    let mut left = numbers(&lineage);
    left.sort_unstable();
    assert_eq!(left, [9, 10]);
    assert!(lineage.join("stray").exists());
    let unknown = version(11, &model(7));
    let error = room.shelf().hold(&room.client, &unknown).await.unwrap_err().to_string();
    assert!(error.contains("fetching the model") && !lineage.join("11").exists(), "{error}");
}
