//! Where training runs: a private thread pool at low priority that survives panics.
//! Serving comes first, so nothing of training runs on the caller's threads or on rayon's global pool.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::TrainingError;

/// Runs `work` on a pool of its own and waits for it. burn's kernels spread over the pool they run in, so `threads`
/// bounds the whole run. On Linux each thread runs at nice +10. A panic becomes [`TrainingError::Panicked`].
pub(super) fn run<T: Send>(
    threads: usize,
    work: impl FnOnce() -> Result<T, TrainingError> + Send,
) -> Result<T, TrainingError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("fedge-train-{index}"))
        .start_handler(|_| lower_priority())
        .build()
        .map_err(|error| TrainingError::Pool { threads, problem: error.to_string() })?;
    // Unwind safety: all that `work` built is dropped by the unwinding; burn's own global state is behind
    // parking_lot mutexes, which do not poison.
    catch_unwind(AssertUnwindSafe(|| pool.install(work)))
        .unwrap_or_else(|panic| Err(TrainingError::Panicked { message: message(panic.as_ref()) }))
}

/// Linux gives each thread a nice value of its own, so this lowers the pool's thread and nothing else. Elsewhere the
/// value belongs to the process, serving included, and stays as it is.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "training threads keep the normal priority");
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_next_run_works() {
        let error = run::<()>(2, || panic!("odd dtype {}", 7)).unwrap_err();
        assert!(error.to_string().contains("odd dtype 7"), "{error}");
        assert_eq!(run(2, || Ok(rayon::current_num_threads())).unwrap(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn training_threads_are_nice_and_the_caller_is_not() {
        let own = rustix::process::getpriority_process(None).unwrap();
        let inside = run(1, || Ok(rustix::process::getpriority_process(None))).unwrap().unwrap();
        assert_eq!(inside, (own + 10).min(19));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), own);
    }
}
