//! Files from and to the broker; those from it are proven to be the ones that were meant.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_proto::v1::file_part::Part;
use berth_proto::{MAX_CHUNK, MAX_FILE, v1};
use futures_util::{Stream, StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Status;

use crate::client::{Backoff, CallError, Client};

/// The kind of a file that holds a template's modules.
pub(crate) const MODULES: &str = "modules";
/// How long the next part may take to arrive.
const SILENCE: Duration = Duration::from_secs(30);
/// Attempts before the job fails; each begins anew.
const ATTEMPTS: u32 = 5;

/// Why a file did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("the broker did not send the file")]
    Call(#[from] CallError),
    #[error("the broker did not send the file: {0}")]
    Refused(String),
    #[error("the file arrived broken: {0}")]
    Broken(String),
    #[error("the download stopped: nothing arrived for {} seconds", SILENCE.as_secs())]
    Silent,
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

impl TransferError {
    /// Whether another attempt may end otherwise.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Call(CallError::Unreachable(_)) | Self::Silent | Self::Broken(_))
    }
}

impl From<Status> for TransferError {
    fn from(status: Status) -> Self {
        Self::Call(status.into())
    }
}

/// Writes the file `file_id` to `to`.
pub(crate) async fn download(
    client: &Client,
    wanted: v1::DownloadFileRequest,
    to: &Path,
) -> Result<(), TransferError> {
    let mut backoff = Backoff::new();
    for _ in 1..ATTEMPTS {
        match attempt(client, wanted.clone(), to).await {
            Err(error) if error.may_pass() => {
                tracing::warn!(%error, file.id = wanted.file_id, "download failed; again");
            }
            settled => return settled,
        }
        backoff.wait().await;
    }
    attempt(client, wanted, to).await
}

async fn attempt(
    client: &Client,
    wanted: v1::DownloadFileRequest,
    to: &Path,
) -> Result<(), TransferError> {
    let wrong = |source| TransferError::Write { path: to.to_owned(), source };
    let mut parts = client.download(wanted).await?;
    let mut file = File::create(to).await.map_err(wrong)?;
    let mut check = None;
    loop {
        let next = tokio::time::timeout(SILENCE, parts.message()).await;
        let Some(message) = next.map_err(|_| TransferError::Silent)?? else { break };
        if !message.error.is_empty() {
            return Err(TransferError::Refused(message.error));
        }
        let part = message.part.and_then(|part| part.part);
        match (part, &mut check) {
            (Some(Part::Header(header)), None) => check = Some(Check::new(header)?),
            (Some(Part::Chunk(chunk)), Some(check)) => {
                check.take(&chunk)?;
                file.write_all(&chunk.data).await.map_err(wrong)?;
            }
            _ => return Err(broken("a part is out of order")),
        }
    }
    file.flush().await.map_err(wrong)?;
    check.ok_or_else(|| broken("it has no header"))?.finish()
}

/// Stores the file at `path` as one of `kind` for the job that this daemon holds; returns its id.
/// Of the file no more than a few pieces are in memory.
pub(crate) async fn upload(
    client: &Client,
    job: &v1::Job,
    (kind, path): (&str, &Path),
) -> Result<String, TransferError> {
    let header = describe(kind, path.to_owned()).await?;
    if header.size > MAX_FILE {
        let size = header.size;
        let message = format!("it has {size} bytes, at most {MAX_FILE} are stored");
        return Err(TransferError::Refused(message));
    }
    let mut backoff = Backoff::new();
    let mut attempt = 1;
    loop {
        let file = File::open(path).await.map_err(|source| unreadable(path, source))?;
        let messages = messages(job, header.clone(), file);
        match client.upload(messages).await.map_err(TransferError::from) {
            Ok(stored) if stored.error.is_empty() => return Ok(stored.file_id),
            Ok(refused) => return Err(TransferError::Refused(refused.error)),
            Err(error) if error.may_pass() && attempt < ATTEMPTS => {
                tracing::warn!(%error, kind, "upload failed; again");
                backoff.wait().await;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn unreadable(path: &Path, source: io::Error) -> TransferError {
    TransferError::Read { path: path.to_owned(), source }
}

/// What a file is, by reading it once.
async fn describe(kind: &str, path: PathBuf) -> Result<v1::FileHeader, TransferError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut hash = Sha256::new();
        let mut file = std::fs::File::open(&path).map_err(|source| unreadable(&path, source))?;
        let mut buffer = vec![0; 64 * 1024];
        let mut size = 0;
        loop {
            match file.read(&mut buffer).map_err(|source| unreadable(&path, source))? {
                0 => return Ok::<_, TransferError>((hash.finalize().to_vec(), size)),
                read => {
                    hash.update(&buffer[..read]);
                    size += read as u64;
                }
            }
        }
    });
    let (sha256, size) = read.await.map_err(|_| broken("reading it was interrupted"))??;
    let chunks = u32::try_from(size.div_ceil(MAX_CHUNK as u64)).unwrap_or(u32::MAX);
    Ok(v1::FileHeader { kind: kind.to_owned(), sha256, size, chunks })
}

/// A header and chunks in order, each read when it is sent. Where reading fails the chunks end, and
/// the broker says what is missing.
fn messages(
    job: &v1::Job,
    header: v1::FileHeader,
    file: File,
) -> impl Stream<Item = v1::UploadFileRequest> + Send + 'static {
    let sha256 = header.sha256.clone();
    let part = |part| Some(v1::FilePart { part: Some(part) });
    let first = v1::UploadFileRequest {
        part: part(Part::Header(header)),
        job_id: job.id.clone(),
        lease_token: job.lease_token.clone(),
    };
    let chunks = stream::unfold((file, 0), move |(mut file, index)| {
        let sha256 = sha256.clone();
        async move {
            let mut data = Vec::new();
            (&mut file).take(MAX_CHUNK as u64).read_to_end(&mut data).await.ok()?;
            let chunk = Part::Chunk(v1::FileChunk { sha256, index, data });
            let empty = matches!(&chunk, Part::Chunk(it) if it.data.is_empty());
            let message = v1::UploadFileRequest { part: part(chunk), ..Default::default() };
            (!empty).then_some((message, (file, index + 1)))
        }
    });
    stream::iter([first]).chain(chunks)
}

fn broken(what: &str) -> TransferError {
    TransferError::Broken(what.to_owned())
}

/// What has arrived of a file, held against its header.
struct Check {
    header: v1::FileHeader,
    hash: Sha256,
    size: u64,
    chunks: u32,
}

impl Check {
    fn new(header: v1::FileHeader) -> Result<Self, TransferError> {
        if header.size > MAX_FILE {
            let message = format!("it has {} bytes, at most {MAX_FILE} are accepted", header.size);
            return Err(TransferError::Refused(message));
        }
        Ok(Self { header, hash: Sha256::new(), size: 0, chunks: 0 })
    }

    fn take(&mut self, chunk: &v1::FileChunk) -> Result<(), TransferError> {
        if chunk.index != self.chunks || chunk.sha256 != self.header.sha256 {
            return Err(broken("a chunk belongs elsewhere"));
        }
        if chunk.data.len() > MAX_CHUNK {
            return Err(broken("a chunk is too large"));
        }
        self.size += chunk.data.len() as u64;
        self.chunks += 1;
        if self.size > self.header.size {
            return Err(broken("it has more bytes than its header says"));
        }
        self.hash.update(&chunk.data);
        Ok(())
    }

    fn finish(self) -> Result<(), TransferError> {
        if self.size != self.header.size || self.chunks != self.header.chunks {
            return Err(broken("it has fewer parts than its header says"));
        }
        if self.hash.finalize()[..] != self.header.sha256[..] {
            return Err(broken("its hash is another"));
        }
        Ok(())
    }
}
