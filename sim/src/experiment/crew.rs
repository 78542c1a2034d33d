//! A crew of threads that work off jobs in the order of their keys, a bounded number ahead of who waits for them.
//! What a job is, `work` says; when it is due, `driver` says.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

/// How often a wait looks whether it should stop.
const GLANCE: Duration = Duration::from_millis(50);

/// A job's place: virtual time, then the order of issue.
pub(super) type Key = (u64, u64);

type Order<J> = (Key, J, Arc<AtomicBool>);
type Answer<R> = (Key, thread::Result<R>);

/// Threads that work for one driver. Results that nobody took yet are bounded by the number of threads, so that the
/// memory of a round does not grow with its cohort.
pub(super) struct Crew<J, R> {
    orders: Sender<Order<J>>,
    answers: Receiver<Answer<R>>,
    threads: usize,
    waiting: BTreeMap<Key, J>,
    running: BTreeMap<Key, Arc<AtomicBool>>,
    done: BTreeMap<Key, R>,
    unwanted: BTreeSet<Key>,
}

impl<J: Send, R: Send> Crew<J, R> {
    /// Starts the threads; they end with the scope, after the crew is dropped. `work` gets a flag that says when its
    /// result is not wanted any more.
    pub(super) fn start<'scope, 'env, F>(scope: &'scope Scope<'scope, 'env>, threads: usize, work: F) -> Crew<J, R>
    where
        J: 'scope,
        R: 'scope,
        F: Fn(J, &Arc<AtomicBool>) -> R + Send + Sync + 'scope,
    {
        let (orders, received) = mpsc::channel::<Order<J>>();
        let (answer, answers) = mpsc::channel::<Answer<R>>();
        let (received, work) = (Arc::new(Mutex::new(received)), Arc::new(work));
        for _ in 0..threads {
            let (received, work, answer) = (received.clone(), work.clone(), answer.clone());
            scope.spawn(move || {
                loop {
                    let order = received.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((key, job, unwanted)) = order else { return };
                    let result = catch_unwind(AssertUnwindSafe(|| work(job, &unwanted)));
                    if answer.send((key, result)).is_err() {
                        return;
                    }
                }
            });
        }
        let (waiting, running, done) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Crew { orders, answers, threads, waiting, running, done, unwanted: BTreeSet::new() }
    }

    /// Adds a job. Keys are unlike each other.
    pub(super) fn put(&mut self, key: Key, job: J) {
        self.waiting.insert(key, job);
        self.dispatch(None);
    }

    /// Gives up a job, whether it waits, runs or is done.
    pub(super) fn discard(&mut self, key: Key) {
        self.waiting.remove(&key);
        self.done.remove(&key);
        if let Some(unwanted) = self.running.get(&key) {
            unwanted.store(true, Ordering::Relaxed);
            self.unwanted.insert(key);
        }
    }

    /// Waits for the result of a job that was put; `None` when `stop` was set meanwhile, and all jobs are given up then.
    pub(super) fn take(&mut self, key: Key, stop: &AtomicBool) -> Option<R> {
        loop {
            self.dispatch(Some(key));
            if let Some(result) = self.done.remove(&key) {
                return Some(result);
            }
            if stop.load(Ordering::Relaxed) {
                self.waiting.clear();
                self.running.values().for_each(|unwanted| unwanted.store(true, Ordering::Relaxed));
                return None;
            }
            match self.answers.recv_timeout(GLANCE) {
                Ok((key, result)) => {
                    self.running.remove(&key);
                    let result = result.unwrap_or_else(|panic| resume_unwind(panic));
                    if !self.unwanted.remove(&key) {
                        self.done.insert(key, result);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The threads live as long as `orders`, which is ours.
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Hands out jobs, earliest first: as many again as there are threads lie ready, so that none waits for the driver.
    /// Only a job that someone waits for is begun while the results of as many others have not been taken.
    fn dispatch(&mut self, wanted: Option<Key>) {
        let ahead = 2 * self.threads;
        while self.running.len() < ahead {
            let Some((&key, _)) = self.waiting.first_key_value() else { return };
            if self.running.len() + self.done.len() >= 2 * ahead && wanted.is_none_or(|wanted| key > wanted) {
                return;
            }
            let Some(job) = self.waiting.remove(&key) else { return };
            let unwanted = Arc::new(AtomicBool::new(false));
            self.running.insert(key, unwanted.clone());
            if self.orders.send((key, job, unwanted)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    static GO: AtomicBool = AtomicBool::new(false);

    #[test]
    fn results_are_taken_in_any_order_and_few_lie_about() {
        let finished = AtomicUsize::new(0);
        thread::scope(|scope| {
            let mut crew = Crew::start(scope, 2, |job: u64, _: &Arc<AtomicBool>| {
                finished.fetch_add(1, Ordering::SeqCst);
                job * 2
            });
            for job in 0..100 {
                crew.put((job, 0), job);
            }
            assert_eq!(crew.take((0, 0), &GO), Some(0));
            thread::sleep(Duration::from_millis(50));
            assert!(finished.load(Ordering::SeqCst) <= 10, "{finished:?}");
            assert_eq!(crew.take((70, 0), &GO), Some(140), "a later one is reached through those before it");
            for job in (1..70).chain(71..100) {
                assert_eq!(crew.take((job, 0), &GO), Some(job * 2));
            }
        });
    }

    #[test]
    fn a_job_that_was_given_up_gives_nothing_and_its_flag_is_set() {
        thread::scope(|scope| {
            let mut crew = Crew::start(scope, 1, |wait: bool, unwanted: &Arc<AtomicBool>| {
                while wait && !unwanted.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            });
            crew.put((1, 0), true);
            crew.put((2, 0), false);
            crew.discard((1, 0));
            assert_eq!(crew.take((2, 0), &GO), Some(()));
        });
    }

    #[test]
    fn a_stop_ends_the_wait_and_the_running_jobs() {
        thread::scope(|scope| {
            let mut crew = Crew::start(scope, 1, |(), unwanted: &Arc<AtomicBool>| {
                while !unwanted.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            });
            crew.put((1, 0), ());
            assert_eq!(crew.take((1, 0), &AtomicBool::new(true)), None);
        });
    }

    #[test]
    fn a_panic_of_a_job_comes_out_where_it_is_waited_for() {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            thread::scope(|scope| {
                let mut crew = Crew::start(scope, 1, |(), _: &Arc<AtomicBool>| -> u64 { panic!("a bug") });
                crew.put((1, 0), ());
                crew.take((1, 0), &GO)
            })
        }));
        assert!(caught.is_err());
    }
}
