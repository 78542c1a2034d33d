//! Sends files to nodes: a version, whole or as a delta against the one that the node holds; a task's control variate.
//! Files are read as they are sent, from the offset that the node asks for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use fedge_models::Digest;
use fedge_proto::federation::{DownloadBegin, DownloadReply, DownloadRequest, Form, download_reply::Part};
use fedge_proto::model::Chunk;
use fedge_proto::transfer::CHUNK_BYTES;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::convert;
use super::delta::Deltas;
use super::driver::Rounds;

/// A stream of file pieces.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;
/// A stream of a download's parts.
pub type DownloadStream = Pin<Box<dyn Stream<Item = Result<DownloadReply, Status>> + Send>>;

/// Answers a node's download.
///
/// # Errors
/// NOT_FOUND for a digest that stands for nothing, INVALID_ARGUMENT for one that is none, INTERNAL for an unreadable file.
pub async fn download(
    rounds: &std::sync::Arc<Rounds>,
    deltas: &Deltas,
    request: DownloadRequest,
) -> Result<DownloadStream, Status> {
    let digest = convert::digest("digest", &request.digest).map_err(Status::invalid_argument)?;
    let (path, form, lineage) = find(rounds, deltas, digest, &request).await?;
    let size_bytes = tokio::fs::metadata(&path).await.map_err(|e| unreadable(&path, &e))?.len();
    // An offset into another form, or beyond the end, means nothing here: begin again.
    let resumes = request.form() == form && request.offset <= size_bytes;
    let offset = if resumes { request.offset } else { 0 };
    let begin = DownloadBegin { form: form.into(), size_bytes, offset };
    let counter = rounds.clone();
    let counted = move |bytes| counter.count_download(&lineage, bytes);
    let chunks = file_chunks(path, offset, counted).await?;
    let begin = DownloadReply { part: Some(Part::Begin(begin)) };
    let chunks = chunks.map(|chunk| chunk.map(|chunk| DownloadReply { part: Some(Part::Chunk(chunk)) }));
    Ok(Box::pin(tokio_stream::once(Ok(begin)).chain(chunks)))
}

async fn find(
    rounds: &Rounds,
    deltas: &Deltas,
    digest: Digest,
    request: &DownloadRequest,
) -> Result<(PathBuf, Form, String), Status> {
    let store = rounds.store();
    let Some(row) = store.model_by_digest(digest).await.map_err(convert::unavailable)? else {
        let (path, lineage) = rounds.server_state_file(digest).ok_or_else(|| {
            Status::not_found(format!("neither a model version nor a running task's state has digest {digest}"))
        })?;
        return Ok((path, Form::Whole, lineage));
    };
    if let Ok(held) = convert::digest("held", &request.held) {
        match deltas.get(store, held, &row).await {
            Ok(Some(path)) => return Ok((path, Form::Delta, row.manifest.name)),
            Ok(None) => {}
            // The whole file does as well.
            Err(error) => tracing::warn!(%error, "no delta could be made"),
        }
    }
    let path = store.model_path(&row.manifest.name, row.manifest.number);
    Ok((path, Form::Whole, row.manifest.name))
}

/// The pieces of a file from an offset, read as they are sent. `counted` hears of each piece's size.
///
/// # Errors
/// INTERNAL names the file.
pub async fn file_chunks(
    path: PathBuf,
    offset: u64,
    counted: impl Fn(u64) + Send + 'static,
) -> Result<ChunkStream, Status> {
    let opening = path.clone();
    let open = move || {
        let mut file = File::open(opening)?;
        file.seek(SeekFrom::Start(offset)).map(|_| file)
    };
    let mut file = blocking(open).await.map_err(|e| unreadable(&path, &e))?;
    let (tx, rx) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut at = offset;
        loop {
            let read = move || piece(&mut file, at).map(|chunk| (chunk, file));
            let chunk = match blocking(read).await {
                Ok((None, _)) => break,
                Ok((Some(chunk), again)) => {
                    file = again;
                    chunk
                }
                Err(error) => {
                    let _ = tx.send(Err(unreadable(&path, &error))).await;
                    break;
                }
            };
            at += chunk.data.len() as u64;
            counted(chunk.data.len() as u64);
            // The caller may be gone.
            if tx.send(Ok(chunk)).await.is_err() {
                break;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(rx)))
}

/// The chunk at this offset, where the file stands; none at its end.
fn piece(file: &mut File, offset: u64) -> std::io::Result<Option<Chunk>> {
    let left = file.metadata()?.len().saturating_sub(offset).min(CHUNK_BYTES as u64);
    let mut data = Vec::with_capacity(usize::try_from(left).unwrap_or(CHUNK_BYTES));
    file.take(left).read_to_end(&mut data)?;
    let chunk = Chunk { offset, crc32: crc32fast::hash(&data), data: data.into() };
    Ok((!chunk.data.is_empty()).then_some(chunk))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

fn unreadable(path: &Path, error: &std::io::Error) -> Status {
    tracing::error!(path = %path.display(), %error, "a file can't be sent");
    Status::internal(format!("reading {}: {error}", path.display()))
}
