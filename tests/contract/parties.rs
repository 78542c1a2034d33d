//! The parties of an upload: a coordinator's real service in this process, nodes with certificates of its authority, updates.
//! What they do to each other is in `uploads`.

use std::time::SystemTime;

use fedge_coordinator::config::{Advertise, Certificate, Config, Listen, Nodes, StoreLimits};
use fedge_coordinator::init;
use fedge_coordinator::registry::authority::{Authority, LEAF_LIFETIME, Subject};
use fedge_models::Model;
use fedge_proto::federation::federation_client::FederationClient;
use fedge_proto::federation::{
    Coding, Encoding, HeartbeatRequest, HelloRequest, PollRequest, ServingStatus, TrainAssignment, TrainingMetrics,
    UploadBegin, UploadCommit, UploadReceipt, UploadRequest, poll_reply::Assignment, upload_request::Part,
};
use fedge_proto::identity::{Role, SharedIdentity};
use fedge_proto::model::Chunk;
use fedge_proto::operators::operators_client::OperatorsClient;
use fedge_proto::operators::{CreateTaskRequest, PublishBegin, PublishRequest, ShowTaskRequest, Task, publish_request};
use fedge_proto::tls::connect;
use fedge_proto::transfer::chunks;
use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use tonic::Status;
use tonic::transport::Channel;

/// A coordinator in this process, and its first operator.
pub(crate) struct Coordinator {
    authority: Authority,
    address: String,
    operators: OperatorsClient<Channel>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
    pub(crate) folder: tempfile::TempDir,
}

impl Coordinator {
    pub(crate) async fn start() -> Coordinator {
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<std::net::TcpListener> =
            (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> = ports.iter().map(|p| p.local_addr().unwrap().to_string()).collect();
        drop(ports);
        let [federation, enrolment, operators] = [0, 1, 2].map(|i| addresses[i].clone());
        let config = Config {
            listen: Listen {
                federation: federation.clone(),
                enrolment: enrolment.clone(),
                operators: operators.clone(),
            },
            advertise: Advertise { federation: federation.clone(), enrolment, operators: operators.clone() },
            certificate: Certificate { names: vec!["127.0.0.1".into()] },
            nodes: Nodes { heartbeat_ms: 1000, liveness_ms: 600_000 },
            store: StoreLimits::default(),
        };
        let home = folder.path().join("coordinator");
        init::init(&home, "fedge.test", &config).await.unwrap();
        let authority = Authority::load(&init::authority_folder(&home)).unwrap();
        let operator = init::operator_identity(&home).load().unwrap();
        let mut coordinator = Coordinator {
            authority,
            address: federation,
            operators: OperatorsClient::new(
                fedge_proto::tls::connect_lazy(&operators, &SharedIdentity::new(operator), Role::Coordinator).unwrap(),
            ),
            stop: None,
            task: None,
            folder,
        };
        coordinator.run(config).await;
        coordinator
    }

    /// Runs it on its folder until `stop`.
    async fn run(&mut self, config: Config) {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let home = self.folder.path().join("coordinator");
        self.task = Some(tokio::spawn(async move {
            let shutdown = async move {
                let _ = stopped.await;
            };
            let ready = move |_: &Config| ready.send(()).unwrap();
            fedge_coordinator::server::run(&home, config, ready, shutdown).await.unwrap();
        }));
        self.stop = Some(stop);
        is_ready.await.unwrap();
    }

    pub(crate) async fn publish(&mut self, bytes: Vec<u8>) -> Model {
        let model = Model::from_bytes(bytes.clone()).unwrap();
        let begin = PublishBegin {
            name: "m".into(),
            labels: vec![],
            preprocessing: String::new(),
            size_bytes: bytes.len() as u64,
            sha256: Sha256::digest(&bytes).to_vec(),
        };
        let parts = std::iter::once(publish_request::Part::Begin(begin))
            .chain(chunks(bytes.into(), 0).map(publish_request::Part::Chunk));
        let stream = tokio_stream::iter(parts.map(|part| PublishRequest { part: Some(part) }));
        self.operators.publish_model(stream).await.unwrap();
        model
    }

    pub(crate) async fn create_task(&mut self, specification: &str) -> String {
        let request = CreateTaskRequest { specification: specification.into() };
        self.operators.create_task(request).await.unwrap().into_inner().id
    }

    pub(crate) async fn show(&mut self, id: &str) -> Task {
        self.operators.show_task(ShowTaskRequest { id: id.into() }).await.unwrap().into_inner()
    }

    /// A node with training samples and an open session.
    pub(crate) async fn node(&self, name: &str) -> Node {
        let subject = Subject { role: Role::Node, id: name.into(), host_names: vec![] };
        let (identity, _) = self.authority.issue_identity(&subject, LEAF_LIFETIME, SystemTime::now()).unwrap();
        let channel = connect(&self.address, &SharedIdentity::new(identity), Role::Coordinator).await.unwrap();
        let mut node = Node { client: FederationClient::new(channel) };
        node.hello().await;
        node
    }
}

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) client: FederationClient<Channel>,
}

impl Node {
    async fn hello(&mut self) {
        let hello = HelloRequest {
            protocol_min: fedge_proto::FEDERATION_PROTOCOL,
            protocol_max: fedge_proto::FEDERATION_PROTOCOL,
            catalogue: u32::MAX,
            software: "test".into(),
            inference_address: String::new(),
        };
        self.client.hello(hello).await.unwrap();
        let serving = ServingStatus {
            model_name: "m".into(),
            training_samples: 10,
            precision: "float".into(),
            ..ServingStatus::default()
        };
        self.client.heartbeat(HeartbeatRequest { serving: vec![serving], resting: String::new() }).await.unwrap();
    }

    /// The next assignment to train.
    pub(crate) async fn assignment(&mut self) -> TrainAssignment {
        let mut seen = 0;
        for _ in 0..100 {
            let reply = self.client.poll(PollRequest { wait_ms: 500, seen }).await.unwrap().into_inner();
            if let Some(Assignment::Train(assignment)) = reply.assignment {
                return assignment;
            }
            seen = reply.seen;
        }
        panic!("no assignment came");
    }

    pub(crate) async fn send(&mut self, parts: Vec<Part>) -> Result<UploadReceipt, Status> {
        let parts = parts.into_iter().map(|part| UploadRequest { part: Some(part) });
        self.client.upload(tokio_stream::iter(parts)).await.map(tonic::Response::into_inner)
    }
}

/// An update that is as it should be, to be spoilt.
#[derive(Clone)]
pub(crate) struct Update {
    pub(crate) begin: UploadBegin,
    payload: Bytes,
}

impl Update {
    pub(crate) fn new(assignment: &TrainAssignment, model: &Model, values: Vec<f32>) -> Update {
        let payload: Bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
        let begin = UploadBegin {
            assignment_id: assignment.assignment_id.clone(),
            base: assignment.base.as_ref().unwrap().digest.clone(),
            layout: model.layout().digest().as_bytes().to_vec(),
            size_bytes: payload.len() as u64,
            coding: Some(Coding {
                encoding: Encoding::F32.into(),
                ..assignment.plan.as_ref().unwrap().coding.unwrap()
            }),
            examples: 10,
            metrics: Some(TrainingMetrics { steps: 1, loss_first: 1.0, loss_last: 0.5, ..TrainingMetrics::default() }),
            sha256: Sha256::digest(&payload).to_vec(),
            offset: 0,
        };
        Update { begin, payload }
    }

    pub(crate) fn with(&self, change: impl FnOnce(&mut UploadBegin)) -> Vec<Part> {
        let mut update = self.clone();
        change(&mut update.begin);
        update.parts()
    }

    pub(crate) fn parts(&self) -> Vec<Part> {
        let commit = UploadCommit { sha256: self.begin.sha256.clone() };
        std::iter::once(Part::Begin(self.begin.clone()))
            .chain(self.chunks().into_iter().map(Part::Chunk))
            .chain([Part::Commit(commit)])
            .collect()
    }

    pub(crate) fn chunks(&self) -> Vec<Chunk> {
        chunks(self.payload.clone(), 0).collect()
    }
}
