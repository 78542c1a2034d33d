//! A coordinator whose disk is full, read-only or damaged: it says so, loses nothing that it acknowledged, and goes on when
//! the disk does. The small disk is a memory file system, which only root can mount; elsewhere these tests say that they skip.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Coordinator, wait_for};
use crate::kills::{Fleet, LARGE, TASK};

/// A disk of its own for a coordinator, unmounted when dropped.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(at: &Path, bytes: usize) -> Option<Disk> {
        std::fs::create_dir_all(at).expect("a folder");
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "fedge-test"], at);
        mounted.then(|| Disk { path: at.to_owned() })
    }

    fn set_read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        assert!(mount(&["-o", option], &self.path));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    Command::new("mount").args(arguments).arg(at).output().is_ok_and(|output| output.status.success())
}

/// A fleet whose coordinator lives on a disk of 40 MB, with a task that waits for its nodes.
fn fleet_on_a_small_disk() -> Option<(Fleet, Disk, String)> {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = Disk::mount(&folder.path().join("coordinator"), 40 << 20) else {
        // CI runs as root: there it is a failure.
        assert!(std::env::var_os("CI").is_none(), "no file system could be mounted");
        eprintln!("skipped: only root can mount the small disk that this test needs");
        return None;
    };
    let fleet = Fleet::join(Coordinator::start_in(folder), LARGE);
    assert!(fleet.publish().status.success());
    let task = fleet.coordinator.create_task(TASK);
    Some((fleet, disk, task))
}

#[test]
fn a_full_disk_is_reported_and_the_round_goes_on_when_there_is_room_again() {
    let Some((mut fleet, disk, task)) = fleet_on_a_small_disk() else { return };
    let filler = disk.path.join("filler");
    // The write that does not fit any more is what is wanted.
    let _ = std::fs::write(&filler, vec![1u8; 64 << 20]);
    fleet.start_nodes();
    wait_for("word of the full disk", || fleet.log().contains("No space left").then_some(()));
    std::fs::remove_file(filler).expect("the filler goes");
    assert_eq!(fleet.outcome(&task), Fleet::undisturbed(LARGE));
}

/// Two updates are acknowledged, the third node died over its own, and then the coordinator was killed.
fn stopped_in_mid_round(fleet: &mut Fleet, task: &str) {
    fleet.start_nodes_of("nodes", None);
    fleet.start_nodes_of("late", Some("outbox_before_sync"));
    wait_for("two updates", || {
        let status = fleet.coordinator.task(task)["status"].as_str().unwrap_or_default().to_owned();
        status.contains("2 of 3 updates arrived").then_some(())
    });
    fleet.coordinator.kill();
}

#[test]
fn a_read_only_disk_is_reported_at_the_start_and_what_was_acknowledged_is_still_there_afterwards() {
    let Some((mut fleet, disk, task)) = fleet_on_a_small_disk() else { return };
    stopped_in_mid_round(&mut fleet, &task);
    disk.set_read_only(true);
    let mut run = crate::harness::fedge();
    run.args(["coordinator", "run", "--dir"]).arg(fleet.coordinator.home());
    let error = crate::harness::fail(&mut run).to_lowercase();
    assert!(error.contains("read-only") || error.contains("readonly"), "{error}");
    disk.set_read_only(false);
    fleet.coordinator.restart();
    fleet.start_nodes_of("late", None);
    assert_eq!(fleet.outcome(&task), Fleet::undisturbed(LARGE));
}

#[test]
fn an_acknowledged_update_that_the_disk_damaged_fails_its_round_by_name_and_never_counts() {
    let mut fleet = Fleet::join(Coordinator::start(), LARGE);
    assert!(fleet.publish().status.success());
    let task = fleet.coordinator.create_task(TASK);
    stopped_in_mid_round(&mut fleet, &task);
    let spool = std::fs::read_dir(fleet.coordinator.home().join("store/spool")).expect("the spool");
    let file = spool.flatten().map(|entry| entry.path()).find(|path| path.extension().is_none()).expect("an update");
    let mut bytes = std::fs::read(&file).expect("an update");
    bytes[1000] ^= 1;
    std::fs::write(&file, bytes).expect("an update");
    fleet.coordinator.restart();
    fleet.start_nodes_of("late", None);
    let ended = fleet.coordinator.wait_for_end(&task);
    let rounds = ended["rounds"].as_array().expect("rounds");
    assert_eq!(rounds[0]["outcome"], "failed", "{ended}");
    assert!(rounds[0]["reason"].as_str().is_some_and(|reason| reason.contains("damaged")), "{}", rounds[0]);
    assert!(rounds[1..].iter().all(|round| round["outcome"] == "aggregated"), "{ended}");
    assert_eq!((ended["state"].as_str(), ended["newest_version"].as_u64()), (Some("finished"), Some(3)));
}
