//! Takes in an upload's chunks: a small update into memory, a larger one into the spool, appended to what is there already.
//! Each chunk is checked as it comes, the whole against its digest.

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use fedge_models::WriteBehind;
use fedge_proto::federation::{UploadRequest, upload_request::Part};
use fedge_proto::transfer::{Receiver, TransferError};
use tonic::Streaming;

use super::convert::{self, Begin};
use super::fold::Payload;
use super::refusal::UploadError;
use crate::store::spool::{Entry, ROW_BYTES, Spool, SpoolError};

/// Longest silence within an upload.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// A payload that came whole.
#[derive(Debug)]
pub(super) enum Received {
    /// A small one.
    Row(prost::bytes::Bytes),
    /// The spool's unfinished file, and where it lies.
    File(WriteBehind, PathBuf),
}

impl Received {
    /// Where it can be read.
    pub(super) fn payload(&self) -> Payload {
        match self {
            Received::Row(bytes) => Payload::Row(bytes.clone()),
            Received::File(_, path) => Payload::File(path.clone()),
        }
    }
}

/// Receives the chunks and the commit that follow `begin`.
///
/// # Errors
/// [`UploadError`]; what came of a large update stays, unless the disk failed, so that the next connection goes on from there.
pub(super) async fn receive(
    stream: &mut Streaming<UploadRequest>,
    begin: &Begin,
    spool: &Spool,
) -> Result<Received, UploadError> {
    if begin.update.bytes <= ROW_BYTES {
        return small(stream, begin).await;
    }
    let entry = Entry { assignment: begin.assignment.0, sha256: begin.update.sha256 };
    let (mut file, mut receiver) = open(begin, spool, entry).await?;
    loop {
        match next(stream).await? {
            Part::Begin(_) => return Err(UploadError::Protocol("a second `begin` within an upload".into())),
            Part::Chunk(chunk) => {
                // Hashing and writing takes some hundred microseconds: not on a thread that others wait for.
                let spool = spool.clone();
                let work = move || -> Result<_, UploadError> {
                    receiver.accept(&chunk)?;
                    // Of a sync that failed the kernel may take for written what it could not write: begin anew.
                    file.write_all(&chunk.data).inspect_err(|_| spool.discard(&entry)).map_err(disk)?;
                    fail::fail_point!("spool_chunk_written");
                    Ok((file, receiver))
                };
                (file, receiver) = blocking(work).await?;
            }
            Part::Commit(commit) => {
                check_commit(begin, &commit.sha256)?;
                if let Err(error) = receiver.finish(begin.update.sha256) {
                    // More chunks can't mend it: the next attempt begins again.
                    if matches!(error, TransferError::Digest { .. }) {
                        spool.discard(&entry);
                    }
                    return Err(error.into());
                }
                return Ok(Received::File(file, spool.part_path(&entry)));
            }
        }
    }
}

async fn small(stream: &mut Streaming<UploadRequest>, begin: &Begin) -> Result<Received, UploadError> {
    if begin.offset != 0 {
        return Err(UploadError::Broken(format!("chunks begin at {}, nothing is here of this update", begin.offset)));
    }
    let mut receiver = Receiver::new(begin.update.bytes);
    let mut bytes = Vec::new();
    loop {
        match next(stream).await? {
            Part::Begin(_) => return Err(UploadError::Protocol("a second `begin` within an upload".into())),
            Part::Chunk(chunk) => {
                receiver.accept(&chunk)?;
                bytes.extend_from_slice(&chunk.data);
            }
            Part::Commit(commit) => {
                check_commit(begin, &commit.sha256)?;
                receiver.finish(begin.update.sha256)?;
                return Ok(Received::Row(bytes.into()));
            }
        }
    }
}

/// The spool's file, cut to where this upload goes on, and a receiver that has seen what lies there.
async fn open(begin: &Begin, spool: &Spool, entry: Entry) -> Result<(WriteBehind, Receiver), UploadError> {
    let (spool, announced, offset) = (spool.clone(), begin.update.bytes, begin.offset);
    blocking(move || {
        let mut file = spool.begin(&entry, announced).map_err(|error| match error {
            SpoolError::Full { .. } => UploadError::SpoolFull(error.to_string()),
            SpoolError::File { .. } => UploadError::Disk(error.to_string()),
        })?;
        let there = file.metadata().map_err(disk)?.len();
        if offset > there {
            let text = format!("chunks begin at byte {offset}, {there} are here: ask with FindUpload");
            return Err(UploadError::Broken(text));
        }
        file.set_len(offset).map_err(disk)?;
        file.seek(SeekFrom::Start(0)).map_err(disk)?;
        let receiver = Receiver::resume(announced, &mut file).map_err(|e| UploadError::Disk(e.to_string()))?;
        Ok((WriteBehind::new(file), receiver))
    })
    .await
}

fn check_commit(begin: &Begin, sha256: &[u8]) -> Result<(), UploadError> {
    let sha256 = convert::sha256(sha256).map_err(UploadError::Protocol)?;
    if sha256 == begin.update.sha256 {
        return Ok(());
    }
    Err(UploadError::Protocol("`commit` names another digest than `begin`".into()))
}

/// The next part of an upload.
pub(super) async fn next(stream: &mut Streaming<UploadRequest>) -> Result<Part, UploadError> {
    let message = tokio::time::timeout(CHUNK_TIMEOUT, stream.message()).await;
    let message = message.map_err(|_| UploadError::Broken("nothing came for 30 s: the upload is given up".into()))?;
    let message = message.map_err(|e| UploadError::Broken(format!("the upload broke off: {}", e.message())))?;
    match message {
        Some(message) => message.part.ok_or_else(|| UploadError::Protocol("a part of an upload is empty".into())),
        // A node that can't read its file any further ends so.
        None => Err(UploadError::Broken("the upload ended without `commit`".into())),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UploadError> + Send + 'static,
) -> Result<T, UploadError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| UploadError::Disk(e.to_string()))?
}

fn disk(error: std::io::Error) -> UploadError {
    UploadError::Disk(error.to_string())
}
