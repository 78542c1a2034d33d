//! Named places where a test may end the process, as a power failure would: between two steps that make something last.
//! Without the feature `failpoints` (the default) there are none.
//!
//! `FAILPOINTS="outbox-announced=return"` ends the process there; `1*off->return` at the second time (crate `fail`).

/// Ends the process here where a test asked for it by this name.
#[macro_export]
macro_rules! kill_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name, |_| $crate::killpoint::kill($name));
    };
}

/// Reads `FAILPOINTS`; for the beginning of a process.
pub fn arm() {
    #[cfg(feature = "failpoints")]
    if std::env::var_os("FAILPOINTS").is_some() {
        // Kept for ever: dropping it would disarm the points.
        std::mem::forget(fail::FailScenario::setup());
    }
}

/// SIGKILL: nothing is flushed, nothing is told.
#[cfg(feature = "failpoints")]
pub fn kill(name: &str) -> ! {
    eprintln!("killed at {name}");
    #[cfg(unix)]
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}
