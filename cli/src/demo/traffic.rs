//! The demo's client: steady inference requests to every node, none repeated, each answer checked; and accuracy on the
//! held-out digits, asked of running servers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fedge_proto::identity::{IdentityDirectory, Role};
use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use fedge_proto::inference::model_infer_request::InferInputTensor;
use fedge_proto::inference::{InferParameter, ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice};
use fedge_proto::tls;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::argmax;
use super::data::{CLASSES, Digit, PIXELS};
use super::fleet::Fleet;
use crate::operator::{current_identity, refused};

/// Requests a second to all nodes together; the demo promises 50.
const RATE: f64 = 80.0;
/// Samples of one request when accuracy is asked.
const BATCH: usize = 90;
/// Name under which the demo publishes its model.
pub(super) const MODEL_NAME: &str = "digits";

type Client = GrpcInferenceServiceClient<Channel>;

/// Connections to every node's server.
#[derive(Debug, Clone)]
pub(super) struct Clients(Vec<(String, Client)>);

/// One answer of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Answered {
    pub(super) version: u64,
    pub(super) digit: usize,
    pub(super) class: usize,
}

/// What the traffic saw so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) ok: u64,
    pub(super) failures: Vec<String>,
    pub(super) latencies: Vec<Duration>,
    pub(super) answers: Vec<Answered>,
    newest: BTreeMap<usize, u64>,
}

impl Seen {
    pub(super) fn versions(&self) -> BTreeSet<u64> {
        self.answers.iter().map(|a| a.version).collect()
    }

    /// The latency that this share of the requests stayed within.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }
}

/// A node's answers on the held-out digits.
#[derive(Debug, Clone)]
pub(super) struct Score {
    pub(super) node: String,
    pub(super) correct: u64,
    pub(super) total: u64,
    /// Versions that answered: more than one when a swap came in between.
    pub(super) versions: BTreeSet<u64>,
    pub(super) precisions: BTreeSet<String>,
}

impl Clients {
    /// Connects to every node with the client's identity.
    pub(super) async fn connect(fleet: &Fleet) -> anyhow::Result<Clients> {
        let identity = current_identity(&IdentityDirectory::new(Path::new(&fleet.client_identity))).await?;
        let mut clients = Vec::new();
        for node in &fleet.nodes {
            let channel = tls::connect(&node.address, &identity, Role::Node).await?;
            clients.push((node.process.name.clone(), GrpcInferenceServiceClient::new(channel)));
        }
        Ok(Clients(clients))
    }

    /// Asks every node about all digits.
    pub(super) async fn score(&self, digits: &[Digit]) -> anyhow::Result<Vec<Score>> {
        let mut scores = Vec::new();
        for (node, client) in &self.0 {
            let mut score = Score {
                node: node.clone(),
                correct: 0,
                total: digits.len() as u64,
                versions: BTreeSet::new(),
                precisions: BTreeSet::new(),
            };
            for batch in digits.chunks(BATCH) {
                let pixels = batch.iter().flat_map(|d| &d.pixels);
                let reply = client.clone().model_infer(request(String::new(), batch.len(), pixels)).await;
                let reply = reply.map_err(refused).with_context(|| node.clone())?.into_inner();
                let classes = classes(&reply, batch.len())?;
                score.correct += batch.iter().zip(&classes).filter(|(d, c)| d.label == **c).count() as u64;
                score.versions.insert(version(&reply)?);
                score.precisions.insert(text(&reply, "fedge_precision").unwrap_or_default());
            }
            scores.push(score);
        }
        Ok(scores)
    }

    /// Sends requests at a steady rate until the handle is aborted.
    pub(super) fn start_traffic(&self, digits: Arc<Vec<Digit>>) -> (Arc<Mutex<Seen>>, JoinHandle<()>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (clients, log) = (self.0.clone(), seen.clone());
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
            for number in 0usize.. {
                ticks.tick().await;
                let node = number % clients.len();
                let (_, client) = &clients[node];
                tokio::spawn(ask(client.clone(), node, number, digits.clone(), log.clone()));
            }
        });
        (seen, task)
    }
}

/// One request, not repeated, its answer checked and noted.
async fn ask(mut client: Client, node: usize, number: usize, digits: Arc<Vec<Digit>>, seen: Arc<Mutex<Seen>>) {
    let digit = number % digits.len();
    let before = lock(&seen).newest.get(&node).copied().unwrap_or(0);
    let started = Instant::now();
    let reply = client.model_infer(request(number.to_string(), 1, &digits[digit].pixels)).await;
    let latency = started.elapsed();
    let answer = reply.map_err(refused).and_then(|reply| {
        let reply = reply.into_inner();
        ensure!(reply.id == number.to_string(), "the reply has id {:?}, the request had {number}", reply.id);
        let (version, class) = (version(&reply)?, classes(&reply, 1)?[0]);
        ensure!(version >= before, "version {version} answered after version {before}");
        Ok(Answered { version, digit, class })
    });
    let mut seen = lock(&seen);
    match answer {
        Ok(answer) => {
            let newest = seen.newest.entry(node).or_default();
            *newest = answer.version.max(*newest);
            seen.ok += 1;
            seen.latencies.push(latency);
            seen.answers.push(answer);
        }
        Err(error) => seen.failures.push(format!("{error:#}")),
    }
}

pub(super) fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn request<'a>(id: String, rows: usize, pixels: impl IntoIterator<Item = &'a f32>) -> ModelInferRequest {
    let raw: Vec<u8> = pixels.into_iter().flat_map(|p| p.to_le_bytes()).collect();
    ModelInferRequest {
        model_name: MODEL_NAME.to_owned(),
        id,
        inputs: vec![InferInputTensor {
            name: "pixels".into(),
            datatype: "FP32".into(),
            shape: vec![rows as i64, 1, 8, (PIXELS / 8) as i64],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![raw.into()],
        ..ModelInferRequest::default()
    }
}

/// The classes of a well-formed reply to `rows` samples; at least one, as many as asked.
fn classes(reply: &ModelInferResponse, rows: usize) -> anyhow::Result<Vec<usize>> {
    let shape = reply.outputs.first().map(|o| o.shape.clone()).unwrap_or_default();
    ensure!(shape == [rows as i64, CLASSES as i64], "the output has shape {shape:?}");
    let raw = reply.raw_output_contents.first().context("the reply carries no raw output")?;
    let (values, rest) = raw.as_chunks::<4>();
    ensure!(values.len() == rows * CLASSES && rest.is_empty(), "the output has {} bytes", raw.len());
    let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
    ensure!(values.iter().all(|v| v.is_finite()), "an output is not finite");
    Ok(values.chunks(CLASSES).filter_map(argmax).collect())
}

fn version(reply: &ModelInferResponse) -> anyhow::Result<u64> {
    reply.model_version.parse().with_context(|| format!("version {:?} is no number", reply.model_version))
}

fn text(reply: &ModelInferResponse, key: &str) -> Option<String> {
    match reply.parameters.get(key) {
        Some(InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text)) }) => Some(text.clone()),
        _ => None,
    }
}
