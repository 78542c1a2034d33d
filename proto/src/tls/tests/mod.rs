//! Tests over real sockets on 127.0.0.1: what connects, and what is refused with which sentence.
//! This file holds the server under test; the tests are beside it.

mod connections;
mod refusals;
mod throughput;

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::*;
use crate::authorization::{AnonymousCallers, AuthorizationLayer};
use crate::feedback::feedback_client::FeedbackClient;
use crate::feedback::feedback_server::{Feedback, FeedbackServer};
use crate::feedback::{AddReply, AddRequest, LabelReply, LabelRequest};
use crate::identity::testing::TestAuthority;
use crate::identity::{Identity, Role, SharedIdentity, SpiffeId};

/// A node that serves feedback, which operators and clients may give.
struct TestServer {
    address: String,
    config: ReloadableServerConfig,
    task: JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(identity: &Identity, auth: ClientAuth) -> TestServer {
    serve_with(identity, auth, AuthorizationLayer::new(AnonymousCallers::EnrolmentOnly)).await
}

async fn serve_with(identity: &Identity, auth: ClientAuth, rules: AuthorizationLayer) -> TestServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = ReloadableServerConfig::new(server_config(identity, auth).unwrap());
    let connections = incoming(listener, config.clone(), Limits::default());
    let task = tokio::spawn(async move {
        let server = Server::builder().layer(rules).add_service(FeedbackServer::new(Echo));
        server.serve_with_incoming(connections).await.unwrap();
    });
    TestServer { address, config, task }
}

/// Answers with the length of the caller's id, so that tests see that the handler got it.
struct Echo;

#[tonic::async_trait]
impl Feedback for Echo {
    async fn label(&self, request: Request<LabelRequest>) -> Result<Response<LabelReply>, Status> {
        let caller = request.extensions().get::<SpiffeId>().map_or(0, |id| id.to_string().len());
        Ok(Response::new(LabelReply { index: u32::try_from(caller).unwrap() }))
    }

    async fn add(&self, _request: Request<AddRequest>) -> Result<Response<AddReply>, Status> {
        Ok(Response::new(AddReply { index: 0, duplicate: false }))
    }
}

fn shared(identity: Identity) -> SharedIdentity {
    SharedIdentity::new(identity)
}

async fn call(channel: Channel) -> Result<u32, Status> {
    FeedbackClient::new(channel).label(LabelRequest::default()).await.map(|reply| reply.into_inner().index)
}

/// Why a client with this identity is refused.
async fn refusal(server: &TestServer, client: Identity) -> String {
    match connect(&server.address, &shared(client), Role::Node).await {
        Ok(_) => panic!("the connection was accepted"),
        Err(error) => error.to_string(),
    }
}

/// A handshake without gRPC.
async fn handshake(address: &str, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().unwrap(), stream).await
}
