//! The ports of a node: gRPC, HTTP and metrics, each bound before anything else is started, each ended by one token.
//! What is answered there is `server`'s and `inference`'s; identities are read by the caller.

use std::net::SocketAddr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use fedge_proto::authorization::AnonymousCallers;
use fedge_proto::identity::Identity;
use fedge_proto::tls::{
    ClientAuth, Connection, Incoming, Limits, ReloadableServerConfig, incoming, plaintext_incoming, server_config,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::calls::{CallLayer, Traces};
use crate::config::Config;
use crate::http;
use crate::inference::rest::{self, Rest};
use crate::inference::{Inference, metrics};
use crate::run::RunError;
use crate::server::{self, Services};

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The Open Inference Protocol over gRPC.
    pub grpc: SocketAddr,
    /// The same over HTTP.
    pub http: Option<SocketAddr>,
    /// Health and metrics.
    pub metrics: Option<SocketAddr>,
}

/// Bound ports on which nothing is answered yet.
#[derive(Debug)]
pub(crate) struct Doors {
    grpc: TcpListener,
    http: Option<TcpListener>,
    metrics: Option<TcpListener>,
    pub(crate) addresses: Addresses,
}

/// Uses a renewed identity from the next connection on.
pub(crate) type OnRenewal = Box<dyn FnMut(&Identity) + Send>;

impl Doors {
    /// Binds the ports of a configuration.
    pub(crate) async fn bind(config: &Config) -> Result<Doors, RunError> {
        let grpc = listen("inference.listen", config.inference_address()?).await?;
        let http = match config.http_address()? {
            Some(address) => Some(listen("inference.http", address).await?),
            None => None,
        };
        let metrics = match config.metrics_address()? {
            Some(address) => Some(listen("metrics.listen", address).await?),
            None => None,
        };
        let at = |listener: &TcpListener| listener.local_addr().ok();
        let addresses = Addresses {
            grpc: at(&grpc).unwrap_or(config.inference_address()?),
            http: http.as_ref().and_then(at),
            metrics: metrics.as_ref().and_then(at),
        };
        Ok(Doors { grpc, http, metrics, addresses })
    }

    /// Answers on all of them until `stop`: over TLS with this identity, in plaintext without one. Gives the server, whose
    /// task ends once its callers have left, and what a renewed identity is told to.
    pub(crate) fn open(
        self,
        services: Services,
        identity: Option<&Identity>,
        traces: Traces,
        stop: &CancellationToken,
    ) -> Result<(tokio::task::JoinHandle<Result<(), tonic::transport::Error>>, OnRenewal), RunError> {
        let anonymous = match identity {
            Some(_) => AnonymousCallers::EnrolmentOnly,
            None => AnonymousCallers::LocalInference,
        };
        let calls = CallLayer::new(traces);
        let mut renewals: Vec<OnRenewal> = Vec::new();
        if let Some(listener) = self.metrics {
            let router = metrics_router(services.inference.clone());
            tokio::spawn(http::serve_open(listener, router, stop.clone()));
        }
        if let Some(listener) = self.http {
            let rest = Rest {
                inference: services.inference.clone(),
                library: services.library.clone(),
                options: services.options.clone(),
                anonymous,
            };
            let (accepted, renewed) = accept(listener, identity, &[b"h2", b"http/1.1"])?;
            renewals.push(renewed);
            let peer = |connection: &Connection| Some(connection.peer().clone());
            tokio::spawn(http::serve(accepted, rest::router(rest).layer(calls.clone()), peer, stop.clone()));
        }
        let (accepted, renewed) = accept(self.grpc, identity, &[b"h2"])?;
        renewals.push(renewed);
        let router =
            server::router(services, anonymous, calls, stop).map_err(|e| RunError::Reflection(e.to_string()))?;
        let server = tokio::spawn(router.serve_with_incoming_shutdown(accepted, stop.clone().cancelled_owned()));
        let renewed = move |identity: &Identity| renewals.iter_mut().for_each(|renewed| renewed(identity));
        Ok((server, Box::new(renewed)))
    }
}

fn accept(
    listener: TcpListener,
    identity: Option<&Identity>,
    protocols: &'static [&'static [u8]],
) -> Result<(Incoming, OnRenewal), RunError> {
    let Some(identity) = identity else {
        return Ok((plaintext_incoming(listener, Limits::default())?, Box::new(|_| {})));
    };
    let config = move |identity: &Identity| {
        server_config(identity, ClientAuth::Required).map(|mut config| {
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            config
        })
    };
    let tls = ReloadableServerConfig::new(config(identity)?);
    let accepted = incoming(listener, tls.clone(), Limits::default());
    let renewed = move |identity: &Identity| match config(identity) {
        Ok(config) => tls.replace(config),
        Err(error) => tracing::error!(%error, "the renewed certificate can't be used for serving"),
    };
    Ok((accepted, Box::new(renewed)))
}

fn metrics_router(inference: Inference) -> Router {
    let (repository, drift) = (inference.repository().clone(), inference.drift().cloned());
    let render = move || {
        let mut text = metrics::render(&repository);
        if let Some(drift) = &drift {
            text.push_str(&drift.metrics());
        }
        async move { ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response() }
    };
    rest::health_router(inference).route("/metrics", get(render))
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| {
        let hint = match source.kind() {
            std::io::ErrorKind::AddrInUse => "another process has this port: stop it or choose another one",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need rights that this process lacks",
            _ => "check the address",
        };
        RunError::Listen { address, key, source, hint }
    })
}
