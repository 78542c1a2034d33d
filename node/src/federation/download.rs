//! Fetches files by digest: streamed into a staged file, continued where a broken connection or a restart left it.
//! What the files are for, and applying deltas to others, is the matter of `shelf` and `work`.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedge_models::Digest;
use fedge_proto::federation::{DownloadBegin, DownloadReply, DownloadRequest, Form as WireForm, download_reply::Part};
use fedge_proto::model::Chunk;
use fedge_proto::transfer::{Receiver, TransferError};
use tokio::sync::Mutex;
use tonic::{Status, Streaming};

use super::enrol::is_transient;
use super::learner::Client;
use super::record;

/// Largest file that is fetched: protobuf's bound on a model.
pub const MAX_BYTES: u64 = 2 << 30;
/// Longest silence within a download.
const SILENCE: Duration = Duration::from_secs(30);
/// Attempts that bring nothing new before the last one.
const ATTEMPTS: u32 = 40;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Unfinished transfers that stay on disk to be continued.
const KEPT: usize = 3;

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The connection or the coordinator.
    #[error("{}", .0.message())]
    Call(Box<Status>),
    /// Nothing came for a while.
    #[error("nothing came for {} s", .0.as_secs())]
    Silence(Duration),
    /// The coordinator's answer does not fit the question.
    #[error("the coordinator answered with {0}")]
    Answer(String),
    /// The bytes came damaged.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Too large.
    #[error("the file has {0} bytes, this node takes at most {MAX_BYTES}")]
    TooLarge(u64),
    /// This side's disk.
    #[error("cannot stage a transfer in {}: {source}", path.display())]
    Disk {
        /// The staged file or its folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl DownloadError {
    /// May the same attempt succeed later?
    fn may_pass(&self) -> bool {
        match self {
            DownloadError::Call(status) => is_transient(status) || status.code() == tonic::Code::DataLoss,
            DownloadError::Silence(_) | DownloadError::Transfer(_) => true,
            DownloadError::Answer(_) | DownloadError::TooLarge(_) | DownloadError::Disk { .. } => false,
        }
    }
}

impl From<Status> for DownloadError {
    fn from(status: Status) -> Self {
        DownloadError::Call(Box::new(status))
    }
}

/// How a transfer gives a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The file itself, with the right digest.
    Whole,
    /// A delta against the file of this digest. Whether it is sound is seen when it is applied.
    Delta(Digest),
}

/// A transfer that is complete: a file that is removed with this value.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    form: Form,
}

impl Fetched {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn form(&self) -> Form {
        self.form
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        discard(&self.path);
    }
}

/// The node's transfers in: a folder of staged files, one transfer at a time.
#[derive(Debug)]
pub struct Downloads {
    folder: PathBuf,
    silence: Duration,
    /// Several parts of a node ask at once, also for the same file.
    one: Mutex<()>,
}

impl Downloads {
    /// Stages in this folder, which is made.
    ///
    /// # Errors
    /// [`DownloadError::Disk`].
    pub fn open(folder: PathBuf) -> Result<Downloads, DownloadError> {
        std::fs::create_dir_all(&folder).map_err(|source| DownloadError::Disk { path: folder.clone(), source })?;
        Ok(Downloads { folder, silence: SILENCE, one: Mutex::default() })
    }

    /// Fetches the file of this digest and length, or a delta that makes it of the file `held`, whichever the coordinator
    /// prefers. Goes on after broken connections with what has come already, as long as each brings something new.
    ///
    /// # Errors
    /// [`DownloadError`]; what has come stays for the next call.
    pub async fn fetch(
        &self,
        client: &Client,
        digest: Digest,
        size_bytes: u64,
        held: Option<Digest>,
    ) -> Result<Fetched, DownloadError> {
        if size_bytes > MAX_BYTES {
            return Err(DownloadError::TooLarge(size_bytes));
        }
        let _one = self.one.lock().await;
        self.forget_old(digest);
        let wanted = Wanted { digest, size_bytes, held };
        let (mut pause, mut fruitless) = (BACKOFF.0, 0);
        loop {
            let before = self.staged(&wanted);
            let error = match self.attempt(client.clone(), &wanted, before).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            if self.staged(&wanted).1 > before.1 {
                (pause, fruitless) = (BACKOFF.0, 0);
            }
            if !error.may_pass() || fruitless == ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(%digest, %error, retry_in = ?pause, "a download broke off; it goes on where it ended");
            tokio::time::sleep(pause).await;
            (pause, fruitless) = ((pause * 2).min(BACKOFF.1), fruitless + 1);
        }
    }

    async fn attempt(
        &self,
        mut client: Client,
        wanted: &Wanted,
        (form, offset): (Form, u64),
    ) -> Result<Fetched, DownloadError> {
        let request = DownloadRequest {
            digest: wanted.digest.as_bytes().to_vec(),
            offset,
            held: wanted.held.map(|held| held.as_bytes().to_vec()).unwrap_or_default(),
            form: match (offset, form) {
                (0, _) => WireForm::Unspecified,
                (_, Form::Whole) => WireForm::Whole,
                (_, Form::Delta(_)) => WireForm::Delta,
            }
            .into(),
        };
        let reply = tokio::time::timeout(self.silence, client.download(request)).await;
        let mut stream = reply.map_err(|_| DownloadError::Silence(self.silence))??.into_inner();
        let begin = self.begin(&mut stream).await?;
        let form = wanted.check(&begin, form, offset)?;
        let path = self.path(wanted.digest, form);
        self.receive(&mut stream, &begin, &path, (form == Form::Whole).then_some(wanted.digest)).await?;
        Ok(Fetched { path, form })
    }

    /// Takes the chunks into the staged file. A whole file is checked against its digest; one that fails is thrown away.
    async fn receive(
        &self,
        stream: &mut Streaming<DownloadReply>,
        begin: &DownloadBegin,
        path: &Path,
        digest: Option<Digest>,
    ) -> Result<(), DownloadError> {
        let (at, digest, offset, size) =
            (path.to_owned(), digest.map(|d| *d.as_bytes()), begin.offset, begin.size_bytes);
        let staged = blocking(path, move || Staged::open(&at, size, offset, digest.is_some()));
        let mut staged = staged.await?;
        while let Some(chunk) = self.chunk(stream).await? {
            // Hashing and writing takes some hundred microseconds: not on a thread that others wait for.
            staged = blocking(path, move || staged.take(&chunk).map(|()| staged)).await?;
        }
        let receiver = staged.receiver;
        if receiver.complete().is_err() {
            return Err(Status::unavailable(format!("{} of {size} bytes came", receiver.received())).into());
        }
        let Some(digest) = digest else { return Ok(()) };
        receiver.finish(digest).map_err(|error| {
            discard(path);
            // Where nothing of before was in it, the next attempt would bring the same.
            if offset == 0 { DownloadError::Answer(error.to_string()) } else { error.into() }
        })
    }

    async fn begin(&self, stream: &mut Streaming<DownloadReply>) -> Result<DownloadBegin, DownloadError> {
        match self.next(stream).await? {
            Some(Part::Begin(begin)) => Ok(begin),
            _ => Err(DownloadError::Answer("a transfer without its beginning".into())),
        }
    }

    async fn chunk(&self, stream: &mut Streaming<DownloadReply>) -> Result<Option<Chunk>, DownloadError> {
        match self.next(stream).await? {
            Some(Part::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Part::Begin(_)) => Err(DownloadError::Answer("a second beginning within a transfer".into())),
            None => Ok(None),
        }
    }

    async fn next(&self, stream: &mut Streaming<DownloadReply>) -> Result<Option<Part>, DownloadError> {
        let message = tokio::time::timeout(self.silence, stream.message()).await;
        let message = message.map_err(|_| DownloadError::Silence(self.silence))??;
        match message.map(|m| m.part) {
            Some(None) => Err(DownloadError::Answer("an empty message".into())),
            Some(part) => Ok(part),
            None => Ok(None),
        }
    }

    /// What has come already: the form whose staged file is there, and its length. A delta is gone on with before a
    /// whole file, where both are: it was begun later.
    fn staged(&self, wanted: &Wanted) -> (Form, u64) {
        let forms = wanted.held.map(Form::Delta).into_iter().chain([Form::Whole]);
        let lengths = forms.map(|form| {
            let length = self.path(wanted.digest, form).metadata().map_or(0, |m| m.len());
            // Longer than the file: no beginning of it.
            (form, if length <= wanted.size_bytes { length } else { 0 })
        });
        lengths.into_iter().find(|(_, length)| *length > 0).unwrap_or((Form::Whole, 0))
    }

    fn path(&self, digest: Digest, form: Form) -> PathBuf {
        self.folder.join(match form {
            Form::Whole => format!("{digest}.whole"),
            Form::Delta(held) => format!("{digest}.delta-{held}"),
        })
    }

    /// Removes what other transfers left, but for the newest ones.
    fn forget_old(&self, digest: Digest) {
        let wanted = digest.to_string();
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let others = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with(&wanted));
        let mut others: Vec<_> =
            others.map(|entry| (entry.metadata().and_then(|m| m.modified()).ok(), entry.path())).collect();
        others.sort_unstable_by(|a, b| b.cmp(a));
        others.iter().skip(KEPT).for_each(|(_, path)| discard(path));
    }
}

/// The staged file of a transfer that goes on, and what checks it.
struct Staged {
    file: File,
    receiver: Receiver,
}

/// What goes wrong with a chunk.
enum Fault {
    Disk(std::io::Error),
    Transfer(TransferError),
}

impl Staged {
    /// Opens or makes the file, cut to `offset`. Where the whole has a digest, what is there already is read for it.
    fn open(path: &Path, size: u64, offset: u64, has_digest: bool) -> Result<Staged, Fault> {
        let open = || {
            let mut file = File::options().create(true).truncate(false).write(true).read(true).open(path)?;
            file.set_len(offset)?;
            let receiver = match has_digest {
                true => Receiver::resume(size, &file).map_err(std::io::Error::other)?,
                false => Receiver::without_digest(size, offset),
            };
            file.seek(SeekFrom::Start(offset))?;
            Ok(Staged { file, receiver })
        };
        open().map_err(Fault::Disk)
    }

    /// On its way to the disk chunk by chunk: what the next attempt finds is what has come.
    fn take(&mut self, chunk: &Chunk) -> Result<(), Fault> {
        self.receiver.accept(chunk).map_err(Fault::Transfer)?;
        self.file.write_all(&chunk.data).map_err(Fault::Disk)
    }
}

/// Runs work with the staged file `path` on a thread where it may block.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, DownloadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::Disk(std::io::Error::other(error)))).map_err(|fault| match fault {
        Fault::Disk(source) => DownloadError::Disk { path: path.to_owned(), source },
        Fault::Transfer(error) => error.into(),
    })
}

struct Wanted {
    digest: Digest,
    size_bytes: u64,
    held: Option<Digest>,
}

impl Wanted {
    /// Checks what the coordinator is about to send, and gives its form.
    fn check(&self, begin: &DownloadBegin, asked: Form, offset: u64) -> Result<Form, DownloadError> {
        let answer = |text: String| Err(DownloadError::Answer(text));
        let form = match (begin.form(), self.held) {
            (WireForm::Whole, _) => Form::Whole,
            (WireForm::Delta, Some(held)) => Form::Delta(held),
            (WireForm::Delta, None) => return answer("a delta, where nothing is held".into()),
            (WireForm::Unspecified, _) => return answer(format!("a transfer of form {}", begin.form)),
        };
        let size = begin.size_bytes;
        if form == Form::Whole && size != self.size_bytes {
            return answer(format!("a file of {size} bytes, where the version has {}", self.size_bytes));
        }
        if size > self.size_bytes {
            return answer(format!("a delta of {size} bytes for a file of {}", self.size_bytes));
        }
        if begin.offset != 0 && (begin.offset != offset || form != asked) {
            return answer(format!(
                "a transfer from byte {} of {form:?}, asked was {offset} of {asked:?}",
                begin.offset
            ));
        }
        Ok(form)
    }
}

fn discard(path: &Path) {
    if let Err(error) = record::remove(path) {
        tracing::warn!(%error, "a staged transfer stays behind");
    }
}

#[cfg(test)]
#[path = "download_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
