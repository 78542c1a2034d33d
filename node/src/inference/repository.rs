//! Which versions of each model are served: lookups without a lock that is held, swaps that no request notices.
//! Versions are made in `prepare`; when to swap is decided by the node's driver, or by the folder of a standalone node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwap;
use fedge_proto::identity::{Role, SpiffeId};
use tokio::sync::watch;

use super::Serving;
use super::answer::InferError;
use super::executor::{Executor, ExecutorOptions};
use super::request::shorten;
use super::version_policy::VersionPolicy;

/// The models that a node serves, one or more versions of each.
#[derive(Debug)]
pub struct ModelRepository {
    slots: RwLock<BTreeMap<String, Arc<Slot>>>,
    /// Of models that have none of their own.
    options: ExecutorOptions,
    /// Of models that may come.
    own: BTreeMap<String, ModelOptions>,
    changed: watch::Sender<u64>,
}

/// One model: its versions and what runs them.
#[derive(Debug)]
pub struct Slot {
    /// Ascending; empty while none is ready.
    versions: ArcSwap<Vec<Arc<Serving>>>,
    executor: Executor,
    options: ModelOptions,
    swaps: AtomicU64,
    problems: Mutex<BTreeMap<u64, String>>,
}

/// How one model is served.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOptions {
    /// How its requests are run.
    pub executor: ExecutorOptions,
    /// Names of the clients that may ask it; `None`: all.
    pub clients: Option<BTreeSet<String>>,
    /// Which of its versions are served.
    pub version_policy: VersionPolicy,
}

/// A model or version that is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// No model of this name is known.
    #[error("unknown model {name:?}; this node knows {}", list(known))]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// The names that are known.
        known: Vec<String>,
    },
    /// The model is known, but none of its versions is ready yet.
    #[error("model {name:?} has no ready version yet; try again when ModelReady answers true")]
    NotReady {
        /// The model's name.
        name: String,
    },
    /// A version that is no number.
    #[error("model version {version:?} is not a number; give the digits of a version, or nothing for the current one")]
    NotANumber {
        /// The version that was asked for.
        version: String,
    },
    /// Other versions are served.
    #[error("version {version} of model {name:?} is not served; version {} is", list_numbers(served))]
    UnknownVersion {
        /// The model's name.
        name: String,
        /// The version that was asked for.
        version: String,
        /// The versions that are served.
        served: Vec<u64>,
    },
}

/// A version in the repository's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model.
    pub name: String,
    /// The version; `None` where none was loaded.
    pub version: Option<u64>,
    /// Whether it is served.
    pub ready: bool,
    /// Why it is not.
    pub reason: String,
}

impl Default for ModelRepository {
    fn default() -> ModelRepository {
        ModelRepository::new()
    }
}

impl ModelRepository {
    /// A repository that knows no model.
    pub fn new() -> ModelRepository {
        ModelRepository::with_options(ExecutorOptions::default())
    }

    /// As [`ModelRepository::new`]; models run with these options unless they have others.
    pub fn with_options(options: ExecutorOptions) -> ModelRepository {
        ModelRepository { slots: RwLock::default(), options, own: BTreeMap::new(), changed: watch::Sender::new(0) }
    }

    /// A model of this name, should one come, has these options.
    pub fn foresee(&mut self, name: &str, options: ModelOptions) {
        self.own.insert(name.to_owned(), options);
    }

    /// Makes a model known before its first version is ready: until then the server as a whole is not ready.
    pub fn expect(&self, name: &str) {
        self.slot_or_new(name);
    }

    /// Makes a model known with options of its own. A known one gets them together with a new queue; requests in the old
    /// one are still answered.
    pub fn configure(&self, name: &str, options: ModelOptions) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = match slots.get(name) {
            Some(slot) if slot.options == options => return,
            Some(old) => Slot {
                versions: ArcSwap::new(old.versions.load_full()),
                swaps: AtomicU64::new(old.swaps.load(Ordering::Relaxed)),
                problems: Mutex::new(old.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()),
                ..Slot::new(options)
            },
            None => Slot::new(options),
        };
        slots.insert(name.to_owned(), Arc::new(slot));
    }

    /// Serves this version alone from now on and gives the newest one before it. Requests that run finish on the old one.
    pub fn swap(&self, serving: Serving) -> Option<Arc<Serving>> {
        let name = serving.manifest().name.clone();
        self.serve_all(&name, vec![Arc::new(serving)]).pop()
    }

    /// Serves these versions of a model, and gives those before. Requests that run finish on them.
    pub fn serve_all(&self, name: &str, mut versions: Vec<Arc<Serving>>) -> Vec<Arc<Serving>> {
        versions.sort_by_key(|version| version.manifest().number);
        let slot = self.slot_or_new(name);
        {
            let mut problems = slot.problems.lock().unwrap_or_else(PoisonError::into_inner);
            versions.iter().for_each(|version| drop(problems.remove(&version.manifest().number)));
        }
        let previous = slot.versions.swap(Arc::new(versions));
        slot.swaps.fetch_add(1, Ordering::Relaxed);
        self.changed.send_modify(|count| *count += 1);
        previous.as_ref().clone()
    }

    /// A version could not be loaded, for this reason.
    pub fn note_problem(&self, name: &str, version: u64, reason: String) {
        let slot = self.slot_or_new(name);
        slot.problems.lock().unwrap_or_else(PoisonError::into_inner).insert(version, reason);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Stops serving a model and forgets it. Gives its newest version.
    pub fn remove(&self, name: &str) -> Option<Arc<Serving>> {
        let slot = self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        self.changed.send_modify(|count| *count += 1);
        slot.versions.swap(Arc::default()).last().cloned()
    }

    /// The served version of a model. `version` is empty for the highest one, or its number.
    pub fn get(&self, name: &str, version: &str) -> Result<Arc<Serving>, LookupError> {
        self.find(name, version).map(|(_, serving)| serving)
    }

    /// As [`ModelRepository::get`], with the slot whose executor runs it.
    pub(super) fn find(&self, name: &str, version: &str) -> Result<(Arc<Slot>, Arc<Serving>), LookupError> {
        if !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(LookupError::NotANumber { version: shorten(version) });
        }
        let slot = self.slot(name).ok_or_else(|| self.unknown(name, None))?;
        slot.version(name, version).map(|serving| (slot, serving))
    }

    /// As [`ModelRepository::find`], for this caller: others' models and versions are not told.
    pub(crate) fn find_for(
        &self,
        name: &str,
        version: &str,
        caller: Option<&SpiffeId>,
    ) -> Result<(Arc<Slot>, Arc<Serving>), InferError> {
        if !self.admits(name, caller) {
            let caller = caller.map(ToString::to_string).unwrap_or_default();
            return Err(InferError::Denied { model: shorten(name), caller });
        }
        self.find(name, version).map_err(|error| match error {
            LookupError::UnknownModel { .. } => self.unknown(name, caller).into(),
            error => error.into(),
        })
    }

    fn unknown(&self, name: &str, caller: Option<&SpiffeId>) -> LookupError {
        let known = self.names().into_iter().filter(|known| self.admits(known, caller)).collect();
        LookupError::UnknownModel { name: shorten(name), known }
    }

    /// The highest served version of a model, if there is one.
    pub fn current(&self, name: &str) -> Option<Arc<Serving>> {
        self.slot(name)?.versions.load().last().cloned()
    }

    /// All served versions of a model, ascending.
    pub fn versions(&self, name: &str) -> Vec<Arc<Serving>> {
        self.slot(name).map(|slot| slot.versions.load().as_ref().clone()).unwrap_or_default()
    }

    /// Requests of a model that wait for a thread.
    pub fn waiting(&self, name: &str) -> usize {
        self.slot(name).map_or(0, |slot| slot.executor.waiting())
    }

    /// How a model is served.
    pub fn options(&self, name: &str) -> Option<ModelOptions> {
        self.slot(name).map(|slot| slot.options.clone())
    }

    /// Whether this caller may ask the model; what is not known is nobody's secret.
    pub fn admits(&self, name: &str, caller: Option<&SpiffeId>) -> bool {
        self.slot(name).is_none_or(|slot| slot.admits(caller))
    }

    /// All known models, sorted.
    pub fn names(&self) -> Vec<String> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// How many times versions of a model were swapped in so far; 0 where it is unknown.
    pub fn versions_served(&self, name: &str) -> u64 {
        self.slot(name).map_or(0, |slot| slot.swaps.load(Ordering::Relaxed))
    }

    /// Whether there is a model, and every known model has a ready version.
    pub fn ready(&self) -> bool {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        !slots.is_empty() && slots.values().all(|slot| !slot.versions.load().is_empty())
    }

    /// Every version that is served or could not be, by name and number.
    pub fn index(&self) -> Vec<IndexEntry> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut index = Vec::new();
        for (name, slot) in slots {
            let mut versions: BTreeMap<u64, (bool, String)> = BTreeMap::new();
            for (number, reason) in slot.problems.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                versions.insert(*number, (false, reason.clone()));
            }
            for version in slot.versions.load().iter() {
                // A version whose newer files failed to load is still there, with the reason.
                versions.entry(version.manifest().number).or_default().0 = true;
            }
            let entry = |version, ready, reason| IndexEntry { name: name.clone(), version, ready, reason };
            if versions.is_empty() {
                index.push(entry(None, false, String::new()));
            }
            index.extend(versions.into_iter().map(|(number, (ready, reason))| entry(Some(number), ready, reason)));
        }
        index
    }

    /// Counts changes of what is served, for those that wait for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn slot_or_new(&self, name: &str) -> Arc<Slot> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let otherwise = || ModelOptions { executor: self.options.clone(), ..ModelOptions::default() };
            Arc::new(Slot::new(self.own.get(name).cloned().unwrap_or_else(otherwise)))
        };
        Arc::clone(slots.entry(name.to_owned()).or_insert_with(new))
    }
}

impl Slot {
    fn new(options: ModelOptions) -> Slot {
        Slot {
            versions: ArcSwap::default(),
            executor: Executor::new(options.executor.clone()),
            options,
            swaps: AtomicU64::default(),
            problems: Mutex::default(),
        }
    }

    /// The served version with this number, the highest one for none.
    fn version(&self, name: &str, version: &str) -> Result<Arc<Serving>, LookupError> {
        let versions = self.versions.load();
        let newest = versions.last().ok_or_else(|| LookupError::NotReady { name: name.to_owned() })?;
        let serving = match version {
            "" => Some(newest),
            digits => {
                digits.parse().ok().and_then(|number: u64| versions.iter().find(|v| v.manifest().number == number))
            }
        };
        serving.cloned().ok_or_else(|| LookupError::UnknownVersion {
            name: name.to_owned(),
            version: shorten(version),
            served: versions.iter().map(|version| version.manifest().number).collect(),
        })
    }

    /// Whether this caller may ask the model. Operators always may; callers without an identity only reach ports that
    /// serve everybody on the machine.
    pub(super) fn admits(&self, caller: Option<&SpiffeId>) -> bool {
        match (&self.options.clients, caller) {
            (Some(clients), Some(caller)) if caller.role() == Role::Client => clients.contains(caller.id()),
            _ => true,
        }
    }

    /// What runs this model's requests.
    pub(super) fn executor(&self) -> &Executor {
        &self.executor
    }
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "none yet".to_owned();
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let more = if names.len() > SHOWN { " and more" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn list_numbers(numbers: &[u64]) -> String {
    numbers.iter().rev().take(20).map(u64::to_string).collect::<Vec<_>>().join(", ")
}
