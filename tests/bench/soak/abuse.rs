//! Callers that do not behave, a kind a function, each in a loop of its own; and models that change meanwhile.
//! What they do may fail in any way; what the node suffers is seen from outside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use fedge_proto::inference::infer_parameter::ParameterChoice;
use fedge_proto::inference::{InferParameter, RepositoryModelLoadRequest, RepositoryModelUnloadRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request};

use crate::good::rest_request;
use crate::small_models::request;
use crate::wire::{Doors, Stream, ask, post};
use crate::{Counts, small_models};

/// Kinds of abuse.
pub const KINDS: [&str; 14] = [
    "stream whose answers nobody reads",
    "reply that is read a few bytes at a time",
    "body that comes byte by byte",
    "cancelled call",
    "connection that is silent",
    "preface of HTTP/2 and silence",
    "head that is half sent",
    "handshake of TLS that is half done",
    "connection that is reset",
    "oversized message",
    "compressed bomb",
    "deadline that passes",
    "malformed frames",
    "streams that are reset at once",
];

/// How long a connection is held before it is given up.
const HELD: Duration = Duration::from_secs(4);
/// HTTP/2's preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const LARGEST_MESSAGE: usize = 16 << 20;

/// So many abusers of each kind.
pub fn start(doors: &Arc<Doors>, each: usize, stop: &Arc<AtomicBool>, counts: &Arc<Counts>) -> Vec<JoinHandle<()>> {
    let mut abusers = Vec::new();
    for kind in 0..KINDS.len() {
        for index in 0..each {
            let (doors, stop, counts) = (Arc::clone(doors), Arc::clone(stop), Arc::clone(counts));
            abusers.push(tokio::spawn(async move {
                let mut random = Random(1 + (kind * 1000 + index) as u64);
                while !stop.load(Ordering::Relaxed) {
                    // Whatever becomes of it, the next one comes.
                    let struck = timeout(Duration::from_secs(20), strike(&doors, kind, &mut random, &counts)).await;
                    counts.strikes[kind].fetch_add(1, Ordering::Relaxed);
                    if !matches!(struck, Ok(Ok(()))) {
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }));
        }
    }
    abusers
}

/// Waits until they have gone, a while; who hangs is cut off.
pub async fn wait(abusers: Vec<JoinHandle<()>>) {
    let until = tokio::time::Instant::now() + HELD + Duration::from_secs(2);
    for abuser in abusers {
        let cut = abuser.abort_handle();
        if tokio::time::timeout_at(until, abuser).await.is_err() {
            cut.abort();
        }
    }
}

async fn strike(doors: &Doors, kind: usize, random: &mut Random, counts: &Counts) -> anyhow::Result<()> {
    match kind {
        0 => unread_stream(doors).await,
        1 => slow_reader(doors).await,
        2 => slow_writer(doors).await,
        3 => cancelled(doors, random).await,
        4 => silent(doors, random, b"").await,
        5 => silent(doors, random, PREFACE).await,
        6 => half_head(doors, random).await,
        7 => half_handshake(doors, random).await,
        8 => reset(doors, random).await,
        9 => oversized(doors, random, counts).await,
        10 => bomb(doors, counts).await,
        11 => late(doors, random, counts).await,
        12 => malformed(doors, random).await,
        _ => rapid_reset(doors).await,
    }
}

/// Sends requests on a stream as long as it is let, and reads no answer.
async fn unread_stream(doors: &Doors) -> anyhow::Result<()> {
    let mut client = GrpcInferenceServiceClient::new(doors.channel().await?);
    let requests = tokio_stream::iter(std::iter::repeat_n(request("spare", 64), 500));
    let replies = client.model_stream_infer(requests).await?;
    sleep(HELD).await;
    drop(replies);
    Ok(())
}

async fn slow_reader(doors: &Doors) -> anyhow::Result<()> {
    let mut stream = doors.rest().await?;
    let request = rest_request("spare", 256);
    // Several at once: the replies have to wait in the node.
    for _ in 0..4 {
        stream.write_all(&request).await?;
    }
    let mut few = [0; 16];
    for _ in 0..40 {
        stream.read_exact(&mut few).await?;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn slow_writer(doors: &Doors) -> anyhow::Result<()> {
    let mut stream = doors.rest().await?;
    let request = rest_request("mlp", 1);
    let (start, rest) = request.split_at(200);
    stream.write_all(start).await?;
    for byte in rest.iter().take(40) {
        stream.write_all(&[*byte]).await?;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn cancelled(doors: &Doors, random: &mut Random) -> anyhow::Result<()> {
    let mut client = GrpcInferenceServiceClient::new(doors.channel().await?);
    for _ in 0..50 {
        let rows = 1 + random.below(64) as usize;
        let patience = Duration::from_micros(random.below(3000));
        // Too late is what is wanted; an answer in time is fine too.
        drop(timeout(patience, client.model_infer(request("cnn", rows))).await);
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn silent(doors: &Doors, random: &mut Random, first: &[u8]) -> anyhow::Result<()> {
    let address = [&doors.grpc, &doors.http, &doors.metrics][random.below(3) as usize];
    let mut stream: Box<dyn Stream> = match first {
        // Not even TLS is begun.
        [] => Box::new(TcpStream::connect(address).await?),
        _ => doors.open(address, b"h2").await?,
    };
    stream.write_all(first).await?;
    stream.flush().await?;
    sleep(HELD).await;
    Ok(())
}

async fn half_head(doors: &Doors, random: &mut Random) -> anyhow::Result<()> {
    let address = [&doors.http, &doors.metrics][random.below(2) as usize];
    let mut stream = doors.open(address, b"http/1.1").await?;
    let request = rest_request("mlp", 1);
    stream.write_all(&request[..20 + random.below(40) as usize]).await?;
    stream.flush().await?;
    sleep(HELD).await;
    Ok(())
}

/// The head of a TLS record that announces a ClientHello, and a part of it.
async fn half_handshake(doors: &Doors, random: &mut Random) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(if random.below(2) == 0 { &doors.grpc } else { &doors.http }).await?;
    stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 7, 7, 7]).await?;
    sleep(HELD).await;
    Ok(())
}

/// A request is sent and the connection reset before its answer.
async fn reset(doors: &Doors, random: &mut Random) -> anyhow::Result<()> {
    let stream = TcpStream::connect(&doors.http).await?;
    stream.set_zero_linger()?;
    let mut stream = stream;
    stream.write_all(&rest_request("spare", 8)).await?;
    sleep(Duration::from_micros(random.below(2000))).await;
    drop(stream);
    sleep(Duration::from_millis(10)).await;
    Ok(())
}

async fn oversized(doors: &Doors, random: &mut Random, counts: &Counts) -> anyhow::Result<()> {
    if random.below(2) == 0 {
        let mut client = GrpcInferenceServiceClient::new(doors.channel().await?);
        let mut large = request("mlp", 1);
        large.raw_input_contents = vec![vec![0; LARGEST_MESSAGE + 1000].into()];
        surprised(counts, client.model_infer(large).await.is_ok());
        let mut large = request("mlp", 1);
        large.inputs[0].shape = vec![1 << 40, 784];
        surprised(counts, client.model_infer(large).await.is_ok());
    } else {
        let mut stream = doors.rest().await?;
        let body = vec![b' '; LARGEST_MESSAGE + 1000];
        // The answer may come before all is sent, and the connection end with it.
        let answered = ask(&mut *stream, &post("/v2/models/mlp/infer", "", &body)).await;
        surprised(counts, answered.is_ok_and(|(status, _)| status == 200));
    }
    sleep(Duration::from_millis(200)).await;
    Ok(())
}

/// Zeros that gzip makes a thousandth of.
async fn bomb(doors: &Doors, counts: &Counts) -> anyhow::Result<()> {
    static BOMB: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let bomb = BOMB.get_or_init(|| {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let _ = encoder.write_all(&vec![b' '; 64 << 20]);
        encoder.finish().unwrap_or_default()
    });
    let mut stream = doors.rest().await?;
    let (status, _) = ask(&mut *stream, &post("/v2/models/mlp/infer", "Content-Encoding: gzip\r\n", bomb)).await?;
    surprised(counts, status == 200);
    sleep(Duration::from_millis(200)).await;
    Ok(())
}

async fn late(doors: &Doors, random: &mut Random, counts: &Counts) -> anyhow::Result<()> {
    let mut client = GrpcInferenceServiceClient::new(doors.channel().await?);
    for _ in 0..20 {
        let mut call = request("cnn", 32);
        if random.below(2) == 0 {
            let parameter = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(1)) };
            call.parameters.insert("timeout".to_owned(), parameter);
            // In time where nobody was before it.
            let outcome = client.model_infer(call).await.map_err(|status| status.code());
            // A connection that overload took is no answer.
            surprised(counts, matches!(outcome, Err(Code::Internal | Code::Unknown | Code::DataLoss)));
        } else {
            let mut call = Request::new(call);
            call.set_timeout(Duration::from_micros(200));
            drop(client.model_infer(call).await);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn malformed(doors: &Doors, random: &mut Random) -> anyhow::Result<()> {
    let noise: Vec<u8> = (0..random.below(4000)).map(|_| random.below(256) as u8).collect();
    let (mut stream, start): (Box<dyn Stream>, &[u8]) = match random.below(4) {
        0 => (Box::new(TcpStream::connect(&doors.grpc).await?), b""),
        1 => (doors.open(&doors.grpc, b"h2").await?, PREFACE),
        2 => (doors.open(&doors.http, b"http/1.1").await?, b"POST /v2/models/mlp/infer HTTP/1.1\r\n"),
        _ => {
            let mut stream = doors.rest().await?;
            let (status, _) = ask(&mut *stream, &post("/v2/models/mlp/infer", "", &noise)).await?;
            anyhow::ensure!(status == 400, "noise is answered {status}");
            return Ok(());
        }
    };
    stream.write_all(start).await?;
    stream.write_all(&noise).await?;
    stream.flush().await?;
    // Until the node hangs up, a second at most.
    let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut Vec::new())).await;
    Ok(())
}

/// HEADERS and RST_STREAM, again and again on one connection (CVE-2023-44487).
async fn rapid_reset(doors: &Doors) -> anyhow::Result<()> {
    let mut stream = doors.open(&doors.grpc, b"h2").await?;
    stream.write_all(PREFACE).await?;
    // :method POST, :scheme http, :path /, all from HPACK's static table.
    let header = [0x83, 0x86, 0x84];
    for number in (1u32..4000).step_by(2) {
        let id = number.to_be_bytes();
        let mut frames = vec![0, 0, header.len() as u8, 1, 4];
        frames.extend(id);
        frames.extend(header);
        frames.extend([0, 0, 4, 3, 0]);
        frames.extend(id);
        frames.extend([0, 0, 0, 8]);
        stream.write_all(&frames).await?;
    }
    stream.flush().await?;
    let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut Vec::new())).await;
    sleep(Duration::from_millis(100)).await;
    Ok(())
}

/// A connection that says nothing, or something half, for as long as it is kept.
pub async fn left_open(doors: &Doors, kind: usize) -> anyhow::Result<Box<dyn Stream>> {
    let (address, first): (&str, &[u8]) = match kind % 4 {
        0 => (&doors.grpc, PREFACE),
        1 => (&doors.http, b"POST /v2/models/mlp/infer HTTP/1.1\r\nContent-Le"),
        2 => (&doors.http, b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"),
        _ => return Ok(Box::new(TcpStream::connect(&doors.grpc).await?)),
    };
    let protocol: &[u8] = if kind.is_multiple_of(4) { b"h2" } else { b"http/1.1" };
    let mut stream = doors.open(address, protocol).await?;
    stream.write_all(first).await?;
    stream.flush().await?;
    Ok(stream)
}

fn surprised(counts: &Counts, surprise: bool) {
    counts.surprises.fetch_add(u64::from(surprise), Ordering::Relaxed);
}

/// A third model, which abusers ask and which comes and goes.
pub fn write_spare(models: &Path) -> anyhow::Result<()> {
    let version = models.join("spare").join("1");
    std::fs::create_dir_all(&version)?;
    small_models::write_version(&version, "mlp", 1)?;
    let old = std::time::SystemTime::now() - Duration::from_secs(60);
    std::fs::File::options().write(true).open(version.join("model.onnx"))?.set_modified(old)?;
    Ok(())
}

/// New versions of `mlp` and `cnn` by renames, and `spare` loaded and unloaded; gives how many of both. Half a second apart.
pub async fn change_models(
    doors: Arc<Doors>,
    models: PathBuf,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
) -> (u64, u64) {
    let (mut swapped, mut switched) = (0, 0);
    for number in 2u64.. {
        sleep(Duration::from_millis(500)).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let model = if number % 2 == 0 { "mlp" } else { "cnn" };
        swapped += u64::from(write(&models.join(model), model, number).is_ok());
        let Ok(channel) = doors.channel().await else { continue };
        let mut client = GrpcInferenceServiceClient::new(channel);
        let model_name = "spare".to_owned();
        let done = if number % 2 == 0 {
            let request = RepositoryModelUnloadRequest { model_name, ..Default::default() };
            client.repository_model_unload(request).await.map(drop)
        } else {
            let request = RepositoryModelLoadRequest { model_name, ..Default::default() };
            client.repository_model_load(request).await.map(drop)
        };
        surprised(&counts, done.as_ref().is_err_and(|status| status.code() != Code::Unavailable));
        switched += u64::from(done.is_ok());
    }
    (swapped, switched)
}

/// Writes a version beside and renames it; the last four stay.
fn write(folder: &Path, model: &str, number: u64) -> std::io::Result<()> {
    let (stage, place) = (folder.join(".stage"), folder.join(number.to_string()));
    std::fs::create_dir_all(&stage)?;
    small_models::write_version(&stage, model, number)?;
    std::fs::rename(&stage, &place)?;
    if let Some(old) = number.checked_sub(8) {
        let _ = std::fs::remove_dir_all(folder.join(old.to_string()));
    }
    Ok(())
}

/// Numbers that need no seed from outside: xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}
