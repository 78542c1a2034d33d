//! The Open Inference Protocol over HTTP: paths, methods, codes and compression; with the binary extension.
//! Bodies are read in `decode` and written in `encode`; connections are `http`'s, answers `answer`'s.

mod compression;
mod decode;
mod encode;
mod unread;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use fedge_proto::authorization::{AnonymousCallers, check};
use fedge_proto::identity::SpiffeId;
use fedge_proto::tls::Peer;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use prost::bytes::Bytes;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::answer::{InferError, Inference};
use super::describe;
use super::library::Library;
use super::repository::LookupError;
use super::service::ServiceOptions;
use crate::calls::ErrorText;

/// Longest time that a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
const JSON_LENGTH: &str = "inference-header-content-length";

/// What answers HTTP.
#[derive(Clone, Debug)]
pub struct Rest {
    /// Answers requests.
    pub inference: Inference,
    /// Loads and unloads models; none on a node of a fleet.
    pub library: Option<Arc<Library>>,
    /// Bounds, as for gRPC.
    pub options: ServiceOptions,
    /// What callers without a certificate may do.
    pub anonymous: AnonymousCallers,
}

/// All paths of the protocol. A request's extensions say who is calling ([`Peer`]).
pub fn router(rest: Rest) -> Router {
    let model = |path: &str, method: axum::routing::MethodRouter<Rest>| {
        let versioned = format!("/v2/models/{{model}}/versions/{{version}}{path}");
        (format!("/v2/models/{{model}}{path}"), versioned, method)
    };
    let mut router = Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload));
    for (path, versioned, method) in [
        model("", get(model_metadata)),
        model("/ready", get(model_ready)),
        model("/config", get(model_config)),
        model("/stats", get(model_statistics)),
        model("/infer", post(infer)),
    ] {
        router = router.route(&path, method.clone()).route(&versioned, method);
    }
    let router = router.fallback(unknown).method_not_allowed_fallback(not_allowed);
    router.layer(axum::middleware::from_fn(unread::keep)).with_state(rest)
}

/// Health alone, for the plaintext port of metrics: probes of Kubernetes have no certificates.
pub(crate) fn health_router(inference: Inference) -> Router {
    let ready = |State(inference): State<Inference>| async move { empty(inference.repository().ready()) };
    Router::new()
        .route("/v2/health/live", get(|| async { empty(true) }))
        .route("/v2/health/ready", get(ready))
        .with_state(inference)
}

type Version = axum::extract::RawPathParams;
type Reply = Result<Response, Failed>;

/// A request without an answer: `{"error": "..."}`.
struct Failed(StatusCode, String);

impl axum::response::IntoResponse for Failed {
    fn into_response(self) -> Response {
        let mut response = json_response(self.0, encode::error(&self.1));
        response.extensions_mut().insert(ErrorText(self.1));
        response
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Failed {
        let code = match status.code() {
            Code::Ok => StatusCode::OK,
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failed(code, status.message().to_owned())
    }
}

impl From<InferError> for Failed {
    fn from(error: InferError) -> Failed {
        Status::from(error).into()
    }
}

impl From<LookupError> for Failed {
    fn from(error: LookupError) -> Failed {
        Status::from(error).into()
    }
}

impl Rest {
    /// Asks the same table as gRPC does, by the RPC of the same meaning. Gives who asks.
    fn admit(&self, request: &Request, method: &str) -> Result<Option<SpiffeId>, Failed> {
        let identity = request.extensions().get::<Peer>().and_then(|peer| peer.identity.clone());
        let role = identity.as_ref().map(SpiffeId::role);
        if role.is_none() && comes_from_a_page(request) {
            let problem = "requests of web pages are refused on a port that asks for no certificate";
            return Err(Failed(StatusCode::FORBIDDEN, problem.to_owned()));
        }
        check(&format!("/inference.GRPCInferenceService/{method}"), role, self.anonymous)?;
        Ok(identity)
    }
}

/// A page in a browser on this machine may send requests here, and, by a name of its own that leads to loopback, read the
/// answers (DNS rebinding). Programs send no `Origin` and ask for loopback by its name or address.
fn comes_from_a_page(request: &Request) -> bool {
    let host = request.uri().authority().map(|authority| authority.host());
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let named = named.and_then(|host| host.parse::<http::uri::Authority>().ok());
    let host = host.or(named.as_ref().map(|authority| authority.host())).unwrap_or("localhost");
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let local = host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback());
    !local || request.headers().contains_key(header::ORIGIN)
}

async fn server_metadata(State(rest): State<Rest>, request: Request) -> Reply {
    rest.admit(&request, "ServerMetadata")?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(ok(json!({ "name": "fedge", "version": version, "extensions": describe::EXTENSIONS })))
}

async fn live(State(rest): State<Rest>, request: Request) -> Reply {
    rest.admit(&request, "ServerLive")?;
    Ok(empty(true))
}

async fn ready(State(rest): State<Rest>, request: Request) -> Reply {
    rest.admit(&request, "ServerReady")?;
    Ok(empty(rest.inference.repository().ready()))
}

async fn model_ready(State(rest): State<Rest>, path: Version, request: Request) -> Reply {
    rest.admit(&request, "ModelReady")?;
    let (model, version) = names(&path);
    match rest.inference.repository().get(model, version) {
        Ok(_) => Ok(empty(true)),
        Err(error @ LookupError::NotANumber { .. }) => Err(error.into()),
        Err(_) => Ok(empty(false)),
    }
}

async fn model_metadata(State(rest): State<Rest>, path: Version, request: Request) -> Reply {
    let caller = rest.admit(&request, "ModelMetadata")?;
    let (model, version) = names(&path);
    let repository = rest.inference.repository();
    let serving = rest.inference.lookup(model, version, caller.as_ref())?;
    let numbers: Vec<u64> = repository.versions(model).iter().map(|version| version.manifest().number).collect();
    Ok(ok(encode::metadata(&describe::metadata(&serving, &numbers))))
}

async fn model_config(State(rest): State<Rest>, path: Version, request: Request) -> Reply {
    let caller = rest.admit(&request, "ModelConfig")?;
    let (model, version) = names(&path);
    let serving = rest.inference.lookup(model, version, caller.as_ref())?;
    let options = rest.inference.repository().options(model).unwrap_or_default();
    Ok(ok(encode::config(&describe::config(&serving, &options, rest.options.limits.max_batch))))
}

async fn model_statistics(State(rest): State<Rest>, path: Version, request: Request) -> Reply {
    let caller = rest.admit(&request, "ModelStatistics")?;
    let (model, version) = names(&path);
    let serving = rest.inference.lookup(model, version, caller.as_ref())?;
    let versions = if version.is_empty() { rest.inference.repository().versions(model) } else { vec![serving] };
    let stats: Vec<Value> = versions.iter().map(|serving| encode::statistics(&describe::statistics(serving))).collect();
    Ok(ok(json!({ "model_stats": stats })))
}

async fn all_statistics(State(rest): State<Rest>, request: Request) -> Reply {
    let caller = rest.admit(&request, "ModelStatistics")?;
    let versions = rest.inference.served(caller.as_ref()).into_iter();
    let stats: Vec<Value> = versions.map(|serving| encode::statistics(&describe::statistics(&serving))).collect();
    Ok(ok(json!({ "model_stats": stats })))
}

async fn infer(State(rest): State<Rest>, path: Version, request: Request) -> Reply {
    let caller = rest.admit(&request, "ModelInfer")?;
    let (model, version) = names(&path);
    let (parts, body) = request.into_parts();
    let header = json_length(&parts.headers)?;
    let body = read(&parts.headers, body, rest.options.max_message_bytes).await?;
    let mut request = decode::request(model, version, &body, header).map_err(InferError::from)?;
    request.caller = caller;
    request.call = parts.extensions.get().cloned();
    let all_binary = request.outputs.is_empty() && decode::wants_binary(&body, header);
    drop(body);
    let wanted: Vec<(String, bool)> =
        request.outputs.iter().map(|output| (output.name.clone(), output.binary == Some(true))).collect();
    let answer = rest.inference.infer(request).await?;
    let binary = |name: &str| all_binary || wanted.iter().any(|(wanted, binary)| *binary && wanted == name);
    let (body, json) = encode::answer(answer, binary);
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    let content = if json.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    if let Some(length) = json {
        headers.insert(JSON_LENGTH, HeaderValue::from(length));
    }
    let body = compression::compress(&parts.headers, body, headers);
    *response.body_mut() = Body::from(body);
    Ok(response)
}

async fn index(State(rest): State<Rest>, request: Request) -> Reply {
    let caller = rest.admit(&request, "RepositoryIndex")?;
    let (parts, body) = request.into_parts();
    let body = read(&parts.headers, body, rest.options.max_message_bytes).await?;
    let asked: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(no_json)? };
    let only_ready = asked.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let mut index = rest.inference.repository().index();
    if let Some(library) = &rest.library {
        index.extend(library.unloaded().await);
    }
    index.retain(|entry| rest.inference.repository().admits(&entry.name, caller.as_ref()));
    index.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    let entries = index.into_iter().filter(|entry| entry.ready || !only_ready).map(|entry| {
        let entry = describe::index_entry(entry);
        json!({ "name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason })
    });
    Ok(ok(entries.collect::<Vec<_>>().into()))
}

async fn load(State(rest): State<Rest>, path: Version, request: Request) -> Reply {
    rest.admit(&request, "RepositoryModelLoad")?;
    let (parts, body) = request.into_parts();
    let body = read(&parts.headers, body, rest.options.max_message_bytes).await?;
    let asked: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(no_json)? };
    if asked.get("parameters").and_then(Value::as_object).is_some_and(|parameters| !parameters.is_empty()) {
        let problem = "a configuration or a file can't be sent along; put it into the model repository";
        return Err(Failed(StatusCode::BAD_REQUEST, problem.to_owned()));
    }
    library(&rest)?.load(names(&path).0).await.map_err(Status::from)?;
    Ok(empty(true))
}

async fn unload(State(rest): State<Rest>, path: Version, request: Request) -> Reply {
    rest.admit(&request, "RepositoryModelUnload")?;
    library(&rest)?.unload(names(&path).0).await;
    Ok(empty(true))
}

async fn unknown(request: Request) -> Failed {
    let path: String = request.uri().path().chars().take(120).collect();
    Failed(StatusCode::NOT_FOUND, format!("no such path: {path:?}"))
}

async fn not_allowed(request: Request) -> Failed {
    Failed(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for this path", request.method()))
}

fn library(rest: &Rest) -> Result<&Arc<Library>, Failed> {
    let problem = "this node's models come from its coordinator: publish a version there, or run a standalone node";
    rest.library.as_ref().ok_or_else(|| Failed(StatusCode::BAD_REQUEST, problem.to_owned()))
}

/// The model and version of a path; no version is the highest.
fn names(path: &Version) -> (&str, &str) {
    let find = |wanted: &str| path.iter().find(|(name, _)| *name == wanted).map_or("", |(_, value)| value);
    (find("model"), find("version"))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Failed> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let problem = || Failed(StatusCode::BAD_REQUEST, "Inference-Header-Content-Length must be an integer".to_owned());
    length.map(Some).ok_or_else(problem)
}

/// A body, decompressed, of at most `limit` bytes before and after.
async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Failed> {
    let read = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, limit)).await;
    let too_large = || {
        let problem = format!("the body does not arrive whole, or has more than {limit} bytes");
        Failed(StatusCode::PAYLOAD_TOO_LARGE, problem)
    };
    let body = read
        .map_err(|_| Failed(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive".to_owned()))?
        .map_err(|_| too_large())?;
    compression::decompress(headers, body, limit).map_err(|problem| Failed(StatusCode::BAD_REQUEST, problem))
}

fn no_json(error: serde_json::Error) -> Failed {
    Failed(StatusCode::BAD_REQUEST, format!("the body is no JSON: {error}"))
}

fn ok(body: Value) -> Response {
    json_response(StatusCode::OK, body.to_string().into())
}

fn json_response(code: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The protocol says yes with 200 and no with 400, both without a body.
fn empty(yes: bool) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = if yes { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    response
}
