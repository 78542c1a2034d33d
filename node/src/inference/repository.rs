//! Which version of each model is served: lookups without a lock that is held, swaps that no request notices.
//! Versions are made in `prepare`; when to swap is decided by the node's driver.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwapOption;

use super::Serving;

/// The models that a node serves, one version of each at a time.
#[derive(Debug, Default)]
pub struct ModelRepository {
    slots: RwLock<BTreeMap<String, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    current: ArcSwapOption<Serving>,
    swaps: AtomicU64,
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
    /// Another version is served.
    #[error("version {version} of model {name:?} is not served; version {served} is")]
    UnknownVersion {
        /// The model's name.
        name: String,
        /// The version that was asked for.
        version: String,
        /// The version that is served.
        served: u64,
    },
}

impl ModelRepository {
    /// A repository that knows no model.
    pub fn new() -> ModelRepository {
        ModelRepository::default()
    }

    /// Makes a model known before its first version is ready: until then the server as a whole is not ready.
    pub fn expect(&self, name: &str) {
        self.slot_or_new(name);
    }

    /// Serves this version from now on and gives the one before it. Requests that run finish on the old one.
    pub fn swap(&self, serving: Serving) -> Option<Arc<Serving>> {
        let slot = self.slot_or_new(&serving.manifest().name);
        let previous = slot.current.swap(Some(Arc::new(serving)));
        slot.swaps.fetch_add(1, Ordering::Relaxed);
        previous
    }

    /// Stops serving a model and forgets it.
    pub fn remove(&self, name: &str) -> Option<Arc<Serving>> {
        let slot = self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        slot.current.swap(None)
    }

    /// The served version of a model. `version` is empty for the current one, or its number.
    pub fn get(&self, name: &str, version: &str) -> Result<Arc<Serving>, LookupError> {
        if !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(LookupError::NotANumber { version: shorten(version) });
        }
        let slot =
            self.slot(name).ok_or_else(|| LookupError::UnknownModel { name: shorten(name), known: self.names() })?;
        let serving = slot.current.load_full().ok_or_else(|| LookupError::NotReady { name: name.to_owned() })?;
        let served = serving.manifest().number;
        if version.is_empty() || version.parse() == Ok(served) {
            return Ok(serving);
        }
        Err(LookupError::UnknownVersion { name: name.to_owned(), version: shorten(version), served })
    }

    /// The served version of a model, if there is one.
    pub fn current(&self, name: &str) -> Option<Arc<Serving>> {
        self.slot(name)?.current.load_full()
    }

    /// All known models, sorted.
    pub fn names(&self) -> Vec<String> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// How many versions of a model were swapped in so far; 0 where it is unknown.
    pub fn versions_served(&self, name: &str) -> u64 {
        self.slot(name).map_or(0, |slot| slot.swaps.load(Ordering::Relaxed))
    }

    /// Whether there is a model, and every known model has a ready version.
    pub fn ready(&self) -> bool {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        !slots.is_empty() && slots.values().all(|slot| slot.current.load().is_some())
    }

    fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn slot_or_new(&self, name: &str) -> Arc<Slot> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(name.to_owned()).or_default())
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

/// A name from a request, cut to a length that fits a message.
fn shorten(name: &str) -> String {
    name.chars().take(80).collect()
}
