//! What operators want of the rounds: create, pause, resume, cancel; and that a model was published.
//! What comes of it is decided in `step` and persisted by `driver`.

use std::sync::Arc;

use super::base::BaseError;
use super::driver::{Rounds, uncancelled};
use super::running::Running;
use super::step::Event;
use super::task::{TaskError, TaskSpec};
use crate::store::StoreError;

/// Why a task could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The file.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The file asks for what the model does not have.
    #[error("model {model:?} does not go with the task's [training]: {problem}")]
    Untrained {
        /// The lineage.
        model: String,
        /// Which pattern, and what there is.
        problem: String,
    },
    /// No such lineage.
    #[error("no model named {0:?} is published: `fedge model list` shows what is, `fedge model publish` adds one")]
    UnknownModel(String),
    /// One running task a lineage.
    #[error("task {task} is running on model {model:?}: wait for its end or cancel it")]
    Busy {
        /// The running task.
        task: String,
        /// The lineage.
        model: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Rounds {
    /// Starts a task on the newest version of its lineage.
    ///
    /// # Errors
    /// [`CreateError`] says what is wrong with the file, or which task is in the way.
    pub async fn create_task(self: &Arc<Self>, specification: String) -> Result<String, CreateError> {
        let rounds = self.clone();
        uncancelled(async move { rounds.create_task_now(&specification).await }).await
    }

    async fn create_task_now(&self, specification: &str) -> Result<String, CreateError> {
        let spec = TaskSpec::parse(specification)?;
        let mut tasks = self.tasks.lock().await;
        if let Some((task, _)) = tasks.iter().find(|(_, t)| t.spec.model == spec.model) {
            return Err(CreateError::Busy { task: task.clone(), model: spec.model });
        }
        let Some(model) = self.store.model(&spec.model, 0).await? else {
            return Err(CreateError::UnknownModel(spec.model));
        };
        let earlier = self.store.tasks().await?;
        let mut number = earlier.len() + 1;
        while earlier.iter().any(|t| t.state.task_id == format!("{}-{number}", spec.model)) {
            number += 1;
        }
        let id = format!("{}-{number}", spec.model);
        let running = Running::create(&self.store, spec, id.clone(), &model).map_err(|error| match error {
            BaseError::Store(error) => CreateError::Store(error),
            BaseError::Exchange(problem) => CreateError::Untrained { model: model.manifest.name.clone(), problem },
        })?;
        self.store.insert_task(specification, &running.spec.model, &running.state).await?;
        tracing::info!(task = %id, model = %running.spec.model, "task created");
        self.take_downloaded(&running.spec.model);
        tasks.insert(id.clone(), running);
        self.refresh_board(&tasks, false).await?;
        Ok(id)
    }

    /// A model was published: tell the nodes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn published(&self) -> Result<(), StoreError> {
        let tasks = self.tasks.lock().await;
        self.refresh_board(&tasks, true).await
    }

    /// Ends a running task. False: there is none of this id.
    ///
    /// # Errors
    /// [`StoreError`] if the end could not be persisted.
    pub async fn cancel(self: &Arc<Self>, task_id: &str) -> Result<bool, StoreError> {
        let (rounds, id) = (self.clone(), task_id.to_owned());
        uncancelled(async move { rounds.event(&id, Event::Cancelled, None).await }).await
    }

    /// Holds a task after the round that is under way (true), or lets it go on. False: there is no such running task.
    ///
    /// # Errors
    /// [`StoreError`] if it could not be persisted.
    pub async fn pause(self: &Arc<Self>, task_id: &str, paused: bool) -> Result<bool, StoreError> {
        let (rounds, id) = (self.clone(), task_id.to_owned());
        uncancelled(async move { rounds.event(&id, Event::Paused(paused), None).await }).await
    }
}
