//! Tests of `download`: what is fetched, fetched again and not fetched, from a coordinator that breaks off.
//! Deltas are applied in `shelf`'s tests.

use fedge_proto::transfer::CHUNK_BYTES;

use super::*;
use crate::federation::fake::Fake;

/// Five chunks and a bit.
fn data() -> Vec<u8> {
    (0..CHUNK_BYTES * 5 + 17).map(|i| (i % 251) as u8).collect()
}

struct Room {
    folder: tempfile::TempDir,
    fake: Fake,
    client: Client,
}

impl Room {
    async fn new() -> Room {
        let (fake, client) = Fake::start().await;
        Room { folder: tempfile::tempdir().unwrap(), fake, client }
    }

    /// As after a restart: nothing is known but what is on disk.
    fn downloads(&self) -> Downloads {
        Downloads::open(self.folder.path().join("incoming")).unwrap()
    }

    fn staged(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("incoming")).unwrap().count()
    }
}

#[tokio::test]
async fn a_file_is_fetched_into_a_file_that_goes_when_it_is_done_with() {
    let room = Room::new().await;
    let digest = room.fake.put(data());
    let fetched = room.downloads().fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
    assert_eq!((fetched.form(), std::fs::read(fetched.path()).unwrap()), (Form::Whole, data()));
    drop(fetched);
    assert_eq!(room.staged(), 0);
    assert_eq!(room.fake.state().chunks, 6);
}

#[tokio::test]
async fn a_connection_that_breaks_at_any_chunk_costs_no_chunk_twice() {
    let room = Room::new().await;
    let digest = room.fake.put(data());
    for at in 0..=6 {
        room.fake.state().chunks = 0;
        room.fake.state().breaks = [at].into();
        let fetched = room.downloads().fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
        assert_eq!(std::fs::read(fetched.path()).unwrap(), data());
        // One that was on its way when the connection broke may be sent again.
        assert!((6..=7).contains(&room.fake.state().chunks), "broken at {at}: {} chunks", room.fake.state().chunks);
    }
    room.fake.state().chunks = 0;
    room.fake.state().breaks = [1, 1, 1, 1, 1, 1].into();
    room.downloads().fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
    assert_eq!(room.fake.state().chunks, 6, "broken after every chunk");
}

#[tokio::test]
async fn a_restarted_node_goes_on_with_what_is_on_disk() {
    let room = Room::new().await;
    let digest = room.fake.put(data());
    room.fake.state().breaks = [3].into();
    room.fake.state().hang = true;
    let downloads = room.downloads();
    let half = downloads.fetch(&room.client, digest, data().len() as u64, None);
    // Killed while it waits for the fourth chunk.
    assert!(tokio::time::timeout(Duration::from_millis(500), half).await.is_err());
    drop(downloads);
    let fetched = room.downloads().fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
    assert_eq!(std::fs::read(fetched.path()).unwrap(), data());
    let state = room.fake.state();
    assert_eq!((state.downloads[1].offset, state.downloads[1].form()), (3 << 20, WireForm::Whole));
    assert_eq!(state.chunks, 6);
}

#[tokio::test]
async fn a_coordinator_that_says_nothing_more_is_asked_again() {
    let room = Room::new().await;
    let digest = room.fake.put(data());
    room.fake.state().breaks = [2].into();
    room.fake.state().hang = true;
    let downloads = Downloads { silence: Duration::from_millis(300), ..room.downloads() };
    downloads.fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
    assert_eq!(room.fake.state().downloads[1].offset, 2 << 20);
}

#[tokio::test]
async fn what_was_damaged_on_disk_is_fetched_anew() {
    let room = Room::new().await;
    let digest = room.fake.put(data());
    let downloads = room.downloads();
    let mut half = data()[..CHUNK_BYTES * 2].to_vec();
    half[7] ^= 1;
    std::fs::write(downloads.path(digest, Form::Whole), half).unwrap();
    let fetched = downloads.fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
    assert_eq!(std::fs::read(fetched.path()).unwrap(), data());
    assert_eq!(room.fake.state().downloads.iter().map(|d| d.offset).collect::<Vec<_>>(), [2 << 20, 0]);
    // Longer than the file: no beginning of it.
    std::fs::write(downloads.path(digest, Form::Whole), [data(), data()].concat()).unwrap();
    drop(fetched);
    downloads.fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
}

#[tokio::test]
async fn a_delta_is_continued_as_a_delta_and_against_the_same_version_alone() {
    let room = Room::new().await;
    let (digest, held, other) = (room.fake.put(data()), Digest::of(b"held"), Digest::of(b"other"));
    let delta: Vec<u8> = data()[..CHUNK_BYTES * 3].to_vec();
    room.fake.state().deltas.insert((held, digest), delta.clone().into());
    room.fake.state().breaks = [1].into();
    let fetched = room.downloads().fetch(&room.client, digest, data().len() as u64, Some(held)).await.unwrap();
    assert_eq!((fetched.form(), std::fs::read(fetched.path()).unwrap()), (Form::Delta(held), delta));
    {
        let state = room.fake.state();
        assert_eq!((state.downloads[1].offset, state.downloads[1].form()), (1 << 20, WireForm::Delta));
    }
    let path = room.downloads().path(digest, Form::Delta(held));
    drop(fetched);
    std::fs::write(path, b"half a delta").unwrap();
    let fetched = room.downloads().fetch(&room.client, digest, data().len() as u64, Some(other)).await.unwrap();
    assert_eq!((fetched.form(), room.fake.state().downloads[2].offset), (Form::Whole, 0));
}

#[tokio::test]
async fn answers_that_do_not_fit_the_question_are_refused() {
    let room = Room::new().await;
    let digest = room.fake.put(data());
    let downloads = room.downloads();
    let error = |result: Result<Fetched, DownloadError>| result.unwrap_err().to_string();
    let size = data().len() as u64;
    let found = error(downloads.fetch(&room.client, digest, size - 1, None).await);
    assert!(found.contains(&size.to_string()), "{found}");
    let found = error(downloads.fetch(&room.client, digest, MAX_BYTES + 1, None).await);
    assert!(found.contains("at most"), "{found}");
    let found = error(downloads.fetch(&room.client, Digest::of(b"none"), size, None).await);
    assert!(found.contains("no such file"), "{found}");
    // A file that is not what its name says is fetched once, not forty times.
    let wrong = Digest::of(b"wrong");
    room.fake.state().files.insert(wrong, data().into());
    let found = error(downloads.fetch(&room.client, wrong, size, None).await);
    assert!(found.contains("SHA-256"), "{found}");
    assert_eq!(room.fake.state().downloads.iter().filter(|d| d.digest == wrong.as_bytes()).count(), 1);
    assert_eq!(room.staged(), 0);
}

#[tokio::test]
async fn of_transfers_that_were_given_up_the_newest_alone_stay() {
    let room = Room::new().await;
    let downloads = room.downloads();
    for name in 0..5u8 {
        std::fs::write(downloads.path(Digest::of(&[name]), Form::Whole), b"half").unwrap();
    }
    let digest = room.fake.put(data());
    downloads.fetch(&room.client, digest, data().len() as u64, None).await.unwrap();
    assert_eq!(room.staged(), KEPT);
}
