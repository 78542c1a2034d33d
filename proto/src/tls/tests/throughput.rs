//! What a transfer costs beneath everything else: one connection over loopback, with our TLS, CRC and SHA-256 at both
//! ends. Figures for people.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::runtime::Builder;
use tokio_stream::{Stream, StreamExt};
use tonic::Streaming;
use tonic::body::Body;
use tonic::client::Grpc as ClientGrpc;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::server::{ClientStreamingService, Grpc, NamedService, ServerStreamingService};
use tonic_prost::ProstCodec;

use super::*;
use crate::model::Chunk;
use crate::transfer::{MAX_MESSAGE_BYTES, Receiver, chunks};

const BYTES: usize = 100 << 20;
const RUNS: usize = 20;
const TAKE: &str = "/files/take";
const GIVE: &str = "/files/give";

/// The server's settings of HTTP/2; 0 stands for what tonic does by itself.
#[derive(Clone, Copy, Debug)]
struct Settings {
    window_kib: u32,
    frame_kib: u32,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// Takes and gives a file.
#[derive(Clone)]
struct Files(Bytes);

impl NamedService for Files {
    const NAME: &'static str = "files";
}

/// The chunks of a file, and after them its digest, with the CRC 0.
fn sent(data: Bytes) -> impl Stream<Item = Chunk> + Send + 'static {
    let mut hash = Sha256::new();
    let mut pieces = chunks(data, 0);
    let mut ended = false;
    tokio_stream::iter(std::iter::from_fn(move || match pieces.next() {
        Some(chunk) => {
            hash.update(&chunk.data);
            Some(chunk)
        }
        None if !ended => {
            ended = true;
            Some(Chunk { data: hash.finalize_reset().to_vec().into(), ..Chunk::default() })
        }
        None => None,
    }))
}

async fn received(mut stream: Streaming<Chunk>, len: usize) {
    let mut receiver = Receiver::new(len as u64);
    while let Some(chunk) = stream.message().await.unwrap() {
        if chunk.crc32 == 0 {
            return receiver.finish(chunk.data[..].try_into().unwrap()).unwrap();
        }
        receiver.accept(&chunk).unwrap();
    }
    panic!("no digest came");
}

impl ClientStreamingService<Chunk> for Files {
    type Response = Chunk;
    type Future = Answer<Chunk>;

    fn call(&mut self, request: Request<Streaming<Chunk>>) -> Self::Future {
        let len = self.0.len();
        Box::pin(async move {
            received(request.into_inner(), len).await;
            Ok(Response::new(Chunk::default()))
        })
    }
}

impl ServerStreamingService<Chunk> for Files {
    type Response = Chunk;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, _: Request<Chunk>) -> Self::Future {
        let stream: Self::ResponseStream = Box::pin(sent(self.0.clone()).map(Ok));
        Box::pin(async move { Ok(Response::new(stream)) })
    }
}

impl tower::Service<http::Request<Body>> for Files {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let files = self.clone();
        let codec = ProstCodec::<Chunk, Chunk>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Box::pin(async move {
            match request.uri().path() {
                TAKE => Ok(grpc.client_streaming(files, request).await),
                _ => Ok(grpc.server_streaming(files, request).await),
            }
        })
    }
}

/// CPU time of this thread in seconds; 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn server_with(settings: Settings) -> Server {
    let some = |kib: u32| (kib > 0).then_some(kib << 10);
    Server::builder()
        .initial_stream_window_size(some(settings.window_kib))
        .initial_connection_window_size(some(settings.window_kib))
        .max_frame_size(some(settings.frame_kib))
}

/// One transfer by a client and a server with a thread each; seconds of the whole, of the client's CPU, of the server's.
fn transfer(data: &Bytes, path: &'static str, settings: Settings) -> [f64; 3] {
    let authority = TestAuthority::new("a");
    let (server, client) = (authority.identity(Role::Coordinator, "c"), shared(authority.identity(Role::Node, "n")));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (done, stop) = tokio::sync::oneshot::channel::<()>();
    let files = Files(data.clone());
    let serving = std::thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let config = ReloadableServerConfig::new(server_config(&server, ClientAuth::Required).unwrap());
            let connections = incoming(listener, config, Limits::default());
            server_with(settings)
                .add_service(files)
                .serve_with_incoming_shutdown(connections, async { drop(stop.await) })
                .await
                .unwrap();
        });
        cpu_seconds()
    });
    let data = data.clone();
    let sending = std::thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let channel = connect(&address, &client, Role::Coordinator).await.unwrap();
            let (before, started) = (cpu_seconds(), Instant::now());
            let mut grpc = ClientGrpc::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<Chunk, Chunk>::default();
            let path = PathAndQuery::from_static(path);
            if path == TAKE {
                grpc.client_streaming(Request::new(sent(data)), path, codec).await.unwrap();
            } else {
                let reply = grpc.server_streaming(Request::new(Chunk::default()), path, codec).await;
                received(reply.unwrap().into_inner(), data.len()).await;
            }
            drop((done, grpc));
            [started.elapsed().as_secs_f64(), cpu_seconds() - before]
        })
    });
    let [whole, client] = sending.join().unwrap();
    [whole, client, serving.join().unwrap()]
}

#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_100_mebibytes_over_one_connection() {
    let data: Bytes = (0..BYTES).map(|index| (index * 31 % 251) as u8).collect::<Vec<_>>().into();
    let windows = [(0, 0), (64, 0), (256, 0), (1024, 32), (1024, 64), (1024, 128), (1024, 256), (4096, 64)];
    let uploads = windows.map(|(window_kib, frame_kib)| (TAKE, Settings { window_kib, frame_kib }));
    // In this direction the client's settings count, which are those of `connect`.
    let downloads = [(GIVE, Settings { window_kib: 0, frame_kib: 0 })];
    for (path, settings) in uploads.into_iter().chain(downloads) {
        // The least of each is what other work on the machine disturbed least.
        let least = |a: [f64; 3], b: [f64; 3]| [a[0].min(b[0]), a[1].min(b[1]), a[2].min(b[2])];
        let [whole, client, server] =
            (0..RUNS).map(|_| transfer(&data, path, settings)).fold([f64::INFINITY; 3], least);
        let rate = BYTES as f64 / whole / 1e6;
        println!("{path} {settings:?}: {rate:.0} MB/s; CPU of the client {client:.3} s, of the server {server:.3} s");
    }
}

/// Memory that this process holds, in KiB; 0 where the system does not say.
fn resident_kib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
}

#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn memory_of_idle_connections_both_ends_together() {
    const CONNECTIONS: usize = 300;
    let data: Bytes = vec![7; 4 << 20].into();
    let authority = TestAuthority::new("a");
    // What one run frees the next would use, so that a process can measure only one setting.
    let settings = Settings { window_kib: SERVER_WINDOW_BYTES >> 10, frame_kib: MAX_FRAME_BYTES >> 10 };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let identity = authority.identity(Role::Coordinator, "c");
    let config = ReloadableServerConfig::new(server_config(&identity, ClientAuth::Required).unwrap());
    let connections = incoming(listener, config, Limits::default());
    let router = server_with(settings).add_service(Files(data.clone()));
    let server = tokio::spawn(router.serve_with_incoming(connections));
    let client = shared(authority.identity(Role::Node, "n"));
    let mut open = Vec::new();
    // The first ones fill what is there once, whatever the number of connections.
    let mut before = 0.0;
    for index in 0..CONNECTIONS + 20 {
        if index == 20 {
            before = resident_kib();
        }
        open.push(connect(&address, &client, Role::Coordinator).await.unwrap());
    }
    let connected = resident_kib();
    for channel in open.iter().skip(20) {
        let mut grpc = ClientGrpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let (path, codec) = (PathAndQuery::from_static(TAKE), ProstCodec::<Chunk, Chunk>::default());
        grpc.client_streaming(Request::new(sent(data.clone())), path, codec).await.unwrap();
    }
    let [fresh, used] = [connected, resident_kib()].map(|now| (now - before) / CONNECTIONS as f64);
    println!("{CONNECTIONS} connections: {fresh:.0} KiB when connected, {used:.0} KiB after a transfer");
    server.abort();
}
