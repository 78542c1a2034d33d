//! Kills its own process, as `kill -9` would, when it passes a named point: `FEDGE_KILL_AT=name` or `name:3` for the third
//! time. The points are in the rooms' code, under their feature `failpoints`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Arms the point that the environment names.
pub fn arm() {
    let Ok(wanted) = std::env::var("FEDGE_KILL_AT") else { return };
    let (name, passes) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let left = AtomicU64::new(passes.parse().unwrap_or(1));
    let kill = move || {
        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal may take a moment; nothing may happen after the point.
            loop {
                std::thread::park();
            }
        }
    };
    if let Err(error) = fail::cfg_callback(name, kill) {
        eprintln!("FEDGE_KILL_AT={wanted}: {error}");
        std::process::exit(2);
    }
}
