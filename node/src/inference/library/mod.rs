//! A standalone node's models: loads what a folder holds, follows its changes, loads and unloads on request.
//! What a change is, `folder` decides; how a model is prepared, `prepare`; serving is the repository's.

mod folder;
mod load;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Mutex as AsyncMutex;

pub use self::folder::{FoundModel, is_model_name};
pub use self::settings::Settings;

use self::folder::{FileStamp, Settling};
use super::executor::ExecutorOptions;
use super::repository::{IndexEntry, ModelRepository};
use super::serving::Serving;

/// When the library loads what is in its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// At start, and whenever the folder changes; it is looked at this often.
    Poll(Duration),
    /// When asked to.
    Explicit,
}

/// How the library works.
#[derive(Clone, Debug)]
pub struct LibraryOptions {
    /// When it loads.
    pub control: Control,
    /// How long nothing of a model may have changed before it is read.
    pub settle: Duration,
    /// How requests are run where a model's settings say nothing.
    pub executor: ExecutorOptions,
    /// Called after models were loaded: gives memory that loading took back to the system.
    pub loaded: fn(),
}

impl Default for LibraryOptions {
    /// Looks every second, and reads what has rested for a second.
    fn default() -> LibraryOptions {
        LibraryOptions {
            control: Control::Poll(Duration::from_secs(1)),
            settle: Duration::from_secs(1),
            executor: ExecutorOptions::default(),
            loaded: || {},
        }
    }
}

/// Why a model can't be served. What was served before goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// The folder can't be read.
    #[error("the model repository can't be read: {0}")]
    Unreadable(String),
    /// There is no such model.
    #[error("failed to load {0:?}: the model repository holds no such model with a version")]
    Unknown(String),
    /// None of its versions, or not all, could be loaded.
    #[error("failed to load {name:?}: {problem}")]
    Failed {
        /// The model.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// The models in a folder.
#[derive(Debug)]
pub struct Library {
    root: PathBuf,
    repository: Arc<ModelRepository>,
    options: LibraryOptions,
    settling: AsyncMutex<Settling>,
    /// Files that served versions were read from, by model and number.
    loaded: Mutex<BTreeMap<(String, u64), Vec<FileStamp>>>,
    unloaded: Mutex<BTreeSet<String>>,
}

impl Library {
    /// The models of this folder, served by `repository`.
    pub fn new(root: PathBuf, repository: Arc<ModelRepository>, options: LibraryOptions) -> Library {
        let settling = AsyncMutex::new(Settling::new(options.settle));
        Library { root, repository, options, settling, loaded: Mutex::default(), unloaded: Mutex::default() }
    }

    /// Looks at the folder once and loads, or gives up, what has changed and settled. Models load side by side.
    ///
    /// # Errors
    /// The folder can't be read; models that can't be loaded are logged and in the index.
    pub async fn look(&self) -> Result<(), LibraryError> {
        let mut settling = self.settling.lock().await;
        let root = self.root.clone();
        let found = blocking(move || folder::scan(&root)).await.map_err(LibraryError::Unreadable)?;
        let found = found.map_err(|error| LibraryError::Unreadable(format!("{}: {error}", self.root.display())))?;
        let changes = settling.observe(Instant::now(), SystemTime::now(), &found);
        let mut applied = Vec::new();
        for (name, model) in changes {
            let Some(model) = model else {
                tracing::info!(model = %name, "a model is gone from the repository");
                self.forget(&name);
                continue;
            };
            // New files end an unload.
            locked(&self.unloaded).remove(&name);
            self.repository.expect(&name);
            applied.push(async move {
                if let Err(error) = self.apply(&name, &model).await {
                    tracing::error!(model = %name, %error, "a model is not loaded as it is on disk");
                }
                let now = folder::scan_model(&self.root.join(&name)).ok();
                (now.as_ref() != Some(&model)).then_some(name)
            });
        }
        let any = !applied.is_empty();
        let changed = join_all(applied).await;
        if any {
            (self.options.loaded)();
        }
        for changed in changed.into_iter().flatten() {
            // It was written to while it was read: the next look decides again.
            settling.set(&changed, None);
        }
        Ok(())
    }

    /// Looks at the folder as often as the options say, for ever.
    pub async fn watch(&self) {
        let Control::Poll(every) = self.options.control else { return std::future::pending().await };
        let mut reported = false;
        loop {
            tokio::time::sleep(every).await;
            match self.look().await {
                Ok(()) => reported = false,
                Err(error) if !reported => {
                    tracing::error!(%error, "models stay as they are");
                    reported = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Loads a model as it is on disk now, or loads it again.
    ///
    /// # Errors
    /// [`LibraryError`]; what was served before goes on.
    pub async fn load(&self, name: &str) -> Result<(), LibraryError> {
        let mut settling = self.settling.lock().await;
        let unknown = || LibraryError::Unknown(name.chars().take(80).collect());
        if !is_model_name(name) {
            return Err(unknown());
        }
        let folder = self.root.join(name);
        let found = blocking(move || folder::scan_model(&folder)).await.map_err(LibraryError::Unreadable)?;
        let model = found.ok().filter(|model| !model.versions.is_empty()).ok_or_else(unknown)?;
        self.apply(name, &model).await?;
        (self.options.loaded)();
        locked(&self.unloaded).remove(name);
        settling.set(name, Some(model));
        Ok(())
    }

    /// Stops serving a model until it is loaded again or its files change. Unknown ones need nothing.
    pub async fn unload(&self, name: &str) {
        let _settling = self.settling.lock().await;
        if self.repository.names().iter().any(|known| known == name) {
            self.forget(name);
            locked(&self.unloaded).insert(name.to_owned());
        }
    }

    /// Models that are in the folder and were unloaded or never loaded.
    pub async fn unloaded(&self) -> Vec<IndexEntry> {
        let known = self.repository.names();
        let unloaded = locked(&self.unloaded).clone();
        let root = self.root.clone();
        let there = blocking(move || folder::scan(&root).unwrap_or_default()).await.unwrap_or_default();
        let hidden = there.into_iter().filter(|(name, _)| !known.contains(name));
        hidden
            .map(|(name, model)| {
                let reason = if unloaded.contains(&name) { "unloaded" } else { "not loaded" };
                let version = model.versions.keys().last().copied();
                IndexEntry { name, version, ready: false, reason: reason.to_owned() }
            })
            .collect()
    }

    fn forget(&self, name: &str) {
        self.repository.remove(name);
        locked(&self.loaded).retain(|(model, _), _| model != name);
    }

    /// Serves the versions that the policy wants; those that are served from the same files stay.
    async fn apply(&self, name: &str, model: &FoundModel) -> Result<(), LibraryError> {
        let failed = |problem: String| LibraryError::Failed { name: name.to_owned(), problem };
        let folder = self.root.join(name);
        let read = {
            let folder = folder.clone();
            blocking(move || Settings::read(&folder)).await
        };
        let settings = Arc::new(read.and_then(|settings| settings).map_err(failed)?);
        let there: Vec<u64> = model.versions.keys().copied().collect();
        let wanted = settings.version_policy.choose(&there);
        if wanted.is_empty() {
            return Err(failed(format!("its version policy chooses none of the versions {there:?}")));
        }
        let before = self.repository.versions(name);
        let (mut serve, mut problems): (Vec<Arc<Serving>>, Vec<String>) = (Vec::new(), Vec::new());
        // Recorded when they are served: whoever asked for this may go away before.
        let mut stamps = Vec::new();
        for number in wanted {
            // Files of the model itself count as files of each version.
            let stamp: Vec<FileStamp> = model.files.iter().chain(&model.versions[&number]).cloned().collect();
            let key = (name.to_owned(), number);
            let same = locked(&self.loaded).get(&key) == Some(&stamp);
            if let Some(serving) = before.iter().find(|serving| same && serving.manifest().number == number) {
                serve.push(Arc::clone(serving));
                continue;
            }
            let (folder, settings, owned) = (folder.clone(), Arc::clone(&settings), name.to_owned());
            let loaded = blocking(move || load::load(&folder, &owned, number, &settings)).await;
            match loaded.and_then(|loaded| loaded) {
                Ok(serving) => {
                    stamps.push((key, stamp));
                    serve.push(Arc::new(serving));
                }
                Err(problem) => {
                    self.repository.note_problem(name, number, problem.clone());
                    problems.push(format!("version {number}: {problem}"));
                }
            }
        }
        if !problems.is_empty() {
            // What can't be replaced goes on.
            let kept =
                before.iter().filter(|old| serve.iter().all(|new| new.manifest().number != old.manifest().number));
            let kept: Vec<Arc<Serving>> = kept.cloned().collect();
            serve.extend(kept);
        }
        if !serve.is_empty() {
            self.repository.configure(name, settings.options(&self.options.executor));
            self.repository.serve_all(name, serve);
            locked(&self.loaded).extend(stamps);
            let served: BTreeSet<u64> = self.repository.versions(name).iter().map(|s| s.manifest().number).collect();
            locked(&self.loaded).retain(|(model, number), _| model != name || served.contains(number));
        }
        if problems.is_empty() { Ok(()) } else { Err(failed(problems.join("; "))) }
    }
}

/// Runs blocking work; a panic of it is a problem like any other.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("loading was interrupted: {error}"))
}

async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    // Each waits for a thread of the runtime; polled together, those threads work side by side.
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).map(Some).collect();
    let mut results = Vec::with_capacity(waiting.len());
    std::future::poll_fn(move |cx| {
        for slot in &mut waiting {
            if let Some(future) = slot
                && let std::task::Poll::Ready(result) = future.as_mut().poll(cx)
            {
                results.push(result);
                *slot = None;
            }
        }
        if waiting.iter().all(Option::is_none) {
            std::task::Poll::Ready(std::mem::take(&mut results))
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
