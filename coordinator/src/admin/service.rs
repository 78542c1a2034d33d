//! The operators' gRPC service: each call is checked, answered from the store or handed to the rounds.
//! Publishing has its own file, `publish`.

use std::pin::Pin;
use std::sync::Arc;

use fedge_proto::model::ModelVersion;
use fedge_proto::operators::{
    CancelTaskRequest, CreateTaskRequest, DownloadModelReply, DownloadModelRequest, ListModelsReply, ListModelsRequest,
    ListNodesReply, ListNodesRequest, ListTasksReply, ListTasksRequest, ModelSummary, Node, NodeServing,
    PauseTaskRequest, PublishRequest, ResumeTaskRequest, ShowTaskRequest, Task, TaskEvent, WatchTaskRequest,
    operators_server::Operators, task_event::Event,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::rounds::driver::Rounds;
use crate::rounds::operations::CreateError;
use crate::rounds::{convert, download};
use crate::store::tasks::TaskRow;
use crate::store::wall_clock_ms;

/// How often a watcher hears what the task waits for, at least.
const STATUS_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// How often a watcher hears something, at most.
const STATUS_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// The service that operators call.
#[derive(Debug)]
pub struct OperatorsService {
    rounds: Arc<Rounds>,
}

impl OperatorsService {
    /// Serves these rounds.
    pub fn new(rounds: Arc<Rounds>) -> OperatorsService {
        OperatorsService { rounds }
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Operators for OperatorsService {
    async fn publish_model(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<ModelVersion>, Status> {
        let row = super::publish::publish(&self.rounds, request.into_inner()).await?;
        Ok(Response::new(convert::model_version(&row)))
    }

    async fn list_models(&self, _: Request<ListModelsRequest>) -> Result<Response<ListModelsReply>, Status> {
        let rows = self.rounds.store().models().await.map_err(convert::unavailable)?;
        let models = rows
            .iter()
            .map(|row| ModelSummary {
                version: Some(convert::model_version(row)),
                task_id: row.manifest.task.clone().unwrap_or_default(),
                round: row.manifest.round.unwrap_or(0),
                created_ms: row.created_ms,
            })
            .collect();
        Ok(Response::new(ListModelsReply { models }))
    }

    type DownloadModelStream = Boxed<DownloadModelReply>;

    async fn download_model(
        &self,
        request: Request<DownloadModelRequest>,
    ) -> Result<Response<Self::DownloadModelStream>, Status> {
        let DownloadModelRequest { name, number } = request.into_inner();
        let row = self.rounds.store().model(&name, number).await.map_err(convert::unavailable)?;
        let row = row.ok_or_else(|| {
            Status::not_found(format!("no version {number} of a model named {:?}", convert::text(&name)))
        })?;
        let path = self.rounds.store().model_path(&row.manifest.name, row.manifest.number);
        let chunks = download::file_chunks(path, 0, |_| {}).await?;
        let head = DownloadModelReply { version: Some(convert::model_version(&row)), chunk: None };
        let rest = chunks.map(|c| c.map(|chunk| DownloadModelReply { version: None, chunk: Some(chunk) }));
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(head)).chain(rest))))
    }

    async fn create_task(&self, request: Request<CreateTaskRequest>) -> Result<Response<Task>, Status> {
        let created = self.rounds.create_task(request.into_inner().specification).await;
        let id = created.map_err(|error| match &error {
            CreateError::Task(_) | CreateError::Untrained { .. } => Status::invalid_argument(error.to_string()),
            CreateError::UnknownModel(_) => Status::not_found(error.to_string()),
            CreateError::Busy { .. } => Status::failed_precondition(error.to_string()),
            CreateError::Store(_) => Status::unavailable(error.to_string()),
        })?;
        self.find(&id).await.map(Response::new)
    }

    async fn list_tasks(&self, _: Request<ListTasksRequest>) -> Result<Response<ListTasksReply>, Status> {
        let mut tasks = Vec::new();
        for row in self.rounds.store().tasks().await.map_err(convert::unavailable)? {
            // The list is for finding; `show` has the rounds.
            tasks.push(Task { rounds: Vec::new(), ..self.describe(&row).await? });
        }
        Ok(Response::new(ListTasksReply { tasks }))
    }

    async fn show_task(&self, request: Request<ShowTaskRequest>) -> Result<Response<Task>, Status> {
        self.find(&request.into_inner().id).await.map(Response::new)
    }

    type WatchTaskStream = Boxed<TaskEvent>;

    async fn watch_task(&self, request: Request<WatchTaskRequest>) -> Result<Response<Self::WatchTaskStream>, Status> {
        let id = request.into_inner().id;
        self.find(&id).await?;
        let (tx, rx) = mpsc::channel(16);
        let service = OperatorsService::new(self.rounds.clone());
        tokio::spawn(async move {
            if let Err(status) = service.watch(&id, &tx).await {
                let _ = tx.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn pause_task(&self, request: Request<PauseTaskRequest>) -> Result<Response<Task>, Status> {
        self.pause(&request.into_inner().id, true).await
    }

    async fn resume_task(&self, request: Request<ResumeTaskRequest>) -> Result<Response<Task>, Status> {
        self.pause(&request.into_inner().id, false).await
    }

    async fn cancel_task(&self, request: Request<CancelTaskRequest>) -> Result<Response<Task>, Status> {
        let id = request.into_inner().id;
        self.find(&id).await?;
        if !self.rounds.cancel(&id).await.map_err(convert::unavailable)? {
            return Err(Status::failed_precondition(format!("task {} has ended already", convert::text(&id))));
        }
        self.find(&id).await.map(Response::new)
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesReply>, Status> {
        let nodes = self.rounds.nodes().list().into_iter().map(|(id, entry, available)| Node {
            id,
            available,
            last_seen_ms: entry.last_seen_ms,
            software: entry.software,
            inference_address: entry.inference_address,
            resting: entry.resting,
            serving: entry
                .serving
                .into_iter()
                .map(|s| NodeServing {
                    model_name: s.model,
                    number: s.number,
                    precision: s.precision,
                    float_reason: s.float_reason,
                    training_samples: s.training_samples,
                    held_out_samples: s.held_out_samples,
                    drift: s.drift,
                    drift_alarms: s.drift_alarms,
                })
                .collect(),
        });
        Ok(Response::new(ListNodesReply { nodes: nodes.collect() }))
    }
}

impl OperatorsService {
    async fn pause(&self, id: &str, paused: bool) -> Result<Response<Task>, Status> {
        self.find(id).await?;
        if !self.rounds.pause(id, paused).await.map_err(convert::unavailable)? {
            return Err(Status::failed_precondition(format!("task {} has ended already", convert::text(id))));
        }
        self.find(id).await.map(Response::new)
    }

    async fn find(&self, id: &str) -> Result<Task, Status> {
        let row = self.rounds.store().task(id).await.map_err(convert::unavailable)?;
        let row = row.ok_or_else(|| {
            Status::not_found(format!("no task {:?}: `fedge task list` shows all", convert::text(id)))
        })?;
        self.describe(&row).await
    }

    async fn describe(&self, row: &TaskRow) -> Result<Task, Status> {
        let store = self.rounds.store();
        let id = &row.state.task_id;
        let rounds = store.rounds(id, 0).await.map_err(convert::unavailable)?;
        let refused = store.refusals(id).await.map_err(convert::unavailable)?;
        Ok(convert::task(row, &rounds, refused, self.rounds.now_ms()))
    }

    /// Sends each round once, the status when it changes, and the end. Returns when the watcher is gone.
    async fn watch(&self, id: &str, tx: &mpsc::Sender<Result<TaskEvent, Status>>) -> Result<(), Status> {
        let mut board = self.rounds.board();
        let (mut sent_round, mut sent_status) = (0, String::new());
        loop {
            let status = convert::status(&board.borrow_and_update(), id, self.rounds.now_ms());
            let rows = self.rounds.store().rounds(id, sent_round).await.map_err(convert::unavailable)?;
            sent_round = rows.last().map_or(sent_round, |row| row.record.round);
            let mut events: Vec<Event> = rows.iter().map(convert::round_summary).map(Event::Round).collect();
            let ended = status.is_none();
            match status {
                // The seconds that are left are no news.
                Some(status) if status.split(" (").next() != Some(&sent_status) => {
                    status.split(" (").next().unwrap_or_default().clone_into(&mut sent_status);
                    events.push(Event::Status(status));
                }
                Some(_) => {}
                None => events.push(Event::Ended(self.find(id).await?)),
            }
            for event in events {
                if tx.send(Ok(TaskEvent { at_ms: wall_clock_ms(), event: Some(event) })).await.is_err() {
                    return Ok(());
                }
            }
            if ended {
                return Ok(());
            }
            // People read ten changes a second at most, and a busy task has hundreds.
            tokio::time::sleep(STATUS_PAUSE).await;
            let changed = tokio::time::timeout(STATUS_INTERVAL, board.changed()).await;
            if matches!(changed, Ok(Err(_))) || tx.is_closed() {
                return Ok(());
            }
        }
    }
}
