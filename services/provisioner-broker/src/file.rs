//! Files on their way: in chunks, in order, counted and hashed. A failed transfer is an error
//! message, not a broken stream.

use berth_db::import::{self, NewFile};
use berth_db::job::Locked;
use berth_domain::id::{FileId, OrganizationId};
use berth_proto::v1::file_part::Part;
use berth_proto::{MAX_CHUNK, MAX_FILE, v1};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::broker::Broker;
use crate::complete::{Checked, Report, check};
use crate::error::{id, of_db};

/// Chunks that wait for a slow reader: with their size, the memory that one download takes.
const WAITING: usize = 2;
/// What a daemon is told of a file that is not there or not its organization's.
const NO_FILE: &str = "no such file";

/// Receives a file and stores it for the job's organization, piece by piece: never more than two
/// chunks of it are in memory.
#[tracing::instrument(name = "rpc.provisioner.upload_file", skip_all, err(level = "info"))]
pub(crate) async fn upload(
    broker: &Broker,
    organization: OrganizationId,
    mut incoming: Streaming<v1::UploadFileRequest>,
) -> Result<v1::UploadFileResponse, Status> {
    let _permit = broker
        .uploads
        .acquire()
        .await
        .map_err(|_| Status::unavailable("the broker stops: try again"))?;
    let first = incoming.message().await?.unwrap_or_default();
    let report = Report::new(organization, &first.job_id, &first.lease_token, &[])?;
    let Some(Part::Header(header)) = first.part.and_then(|it| it.part) else {
        return Ok(refused("the first message of an upload is the header"));
    };
    let job = holder(broker, &report).await?;
    let receiver = match Receiver::new(header) {
        Ok(receiver) => receiver,
        Err(reason) => return Ok(refused(&reason)),
    };
    let db = &broker.backbone.db;
    let (hash, kind) = (hex::encode(&receiver.header.sha256), receiver.header.kind.clone());
    let same = (hash.as_str(), kind.as_str());
    if let Some(file) =
        import::find_same_file(db, organization, job.initiator_id, same).await.map_err(of_db)?
    {
        // Once per content: the chunks need not come.
        return Ok(stored(file));
    }
    let id = FileId(broker.backbone.ids.next());
    import::begin_upload(db, id).await.map_err(of_db)?;
    let size = match receive(db, id, receiver, &mut incoming).await {
        Ok(Ok(size)) => size,
        Ok(Err(reason)) => {
            import::abandon_upload(db, id).await.map_err(of_db)?;
            return Ok(refused(&reason));
        }
        Err(status) => {
            import::abandon_upload(db, id).await.map_err(of_db)?;
            return Err(status);
        }
    };
    let new = NewFile {
        id,
        organization_id: organization,
        hash: &hash,
        kind: &kind,
        created_by: job.initiator_id,
        size,
        now: broker.backbone.clock.now(),
    };
    let file = import::insert_file(db, &new).await.map_err(of_db)?;
    if file != id {
        import::abandon_upload(db, id).await.map_err(of_db)?;
    }
    Ok(stored(file))
}

/// Stores what arrives until the file is whole, and gives its size; the inner error is why it is
/// refused.
async fn receive(
    db: &berth_db::Pool,
    id: FileId,
    mut receiver: Receiver,
    incoming: &mut Streaming<v1::UploadFileRequest>,
) -> Result<Result<i64, String>, Status> {
    let mut pieces = 0;
    while let Some(message) = incoming.message().await? {
        let Some(Part::Chunk(chunk)) = message.part.and_then(|it| it.part) else {
            return Ok(Err("only chunks follow the header".to_owned()));
        };
        if let Err(reason) = receiver.take(chunk) {
            return Ok(Err(reason));
        }
        while let Some(piece) = receiver.piece() {
            import::insert_piece(db, id, pieces, &piece).await.map_err(of_db)?;
            pieces += 1;
        }
    }
    let (rest, size) = match receiver.finish() {
        Ok(whole) => whole,
        Err(reason) => return Ok(Err(reason)),
    };
    if !rest.is_empty() {
        import::insert_piece(db, id, pieces, &rest).await.map_err(of_db)?;
    }
    Ok(Ok(size))
}

fn stored(file: FileId) -> v1::UploadFileResponse {
    v1::UploadFileResponse { file_id: file.to_string(), error: String::new() }
}

async fn holder(broker: &Broker, report: &Report) -> Result<Locked, Status> {
    // Only looked at: the transaction, and with it the lock, ends here.
    let mut work = broker.backbone.begin().await.map_err(of_db)?;
    match check(&mut work, report).await? {
        Checked::Held(job) => Ok(*job),
        Checked::Repeated => Err(Status::failed_precondition("the job has ended")),
    }
}

fn refused(reason: &str) -> v1::UploadFileResponse {
    v1::UploadFileResponse { file_id: String::new(), error: reason.to_owned() }
}

/// Checks a file against its header while it arrives, and cuts it into pieces of one size.
struct Receiver {
    header: v1::FileHeader,
    hash: Sha256,
    /// What makes no whole piece yet.
    rest: Vec<u8>,
    size: u64,
    next: u32,
}

impl Receiver {
    fn new(header: v1::FileHeader) -> Result<Self, String> {
        if header.size > MAX_FILE {
            return Err(format!("the file has {} bytes; at most {MAX_FILE} fit", header.size));
        }
        if header.sha256.len() != 32 {
            return Err("the header's sha256 does not have 32 bytes".to_owned());
        }
        if !matches!(header.kind.as_str(), "modules" | "archive") {
            return Err(format!("file kind {:?} is not modules or archive", header.kind));
        }
        Ok(Self { header, hash: Sha256::new(), rest: Vec::new(), size: 0, next: 0 })
    }

    fn take(&mut self, chunk: v1::FileChunk) -> Result<(), String> {
        if chunk.index != self.next || chunk.index >= self.header.chunks {
            let (got, want, all) = (chunk.index, self.next, self.header.chunks);
            return Err(format!("chunk {got} came where chunk {want} of {all} was due"));
        }
        if chunk.sha256 != self.header.sha256 {
            return Err(format!("chunk {} belongs to another file", chunk.index));
        }
        let len = chunk.data.len();
        if len > MAX_CHUNK {
            return Err(format!("chunk {} has {len} bytes; at most {MAX_CHUNK} fit", chunk.index));
        }
        self.size += len as u64;
        if self.size > self.header.size {
            return Err(format!("more bytes came than the {} announced", self.header.size));
        }
        self.hash.update(&chunk.data);
        if self.rest.is_empty() {
            self.rest = chunk.data;
        } else {
            self.rest.extend_from_slice(&chunk.data);
        }
        self.next += 1;
        Ok(())
    }

    /// A whole piece, once there is one.
    fn piece(&mut self) -> Option<Vec<u8>> {
        if self.rest.len() < MAX_CHUNK {
            return None;
        }
        let rest = self.rest.split_off(MAX_CHUNK);
        Some(std::mem::replace(&mut self.rest, rest))
    }

    /// The last piece and the size of all, if everything came that was announced.
    fn finish(self) -> Result<(Vec<u8>, i64), String> {
        let (size, chunks) = (self.header.size, self.header.chunks);
        if self.next != chunks || self.size != size {
            return Err(format!(
                "{} chunks with {} bytes came; {chunks} with {size} were announced",
                self.next, self.size
            ));
        }
        if self.hash.finalize()[..] != self.header.sha256[..] {
            return Err("the content does not have the announced sha256".to_owned());
        }
        Ok((self.rest, i64::try_from(size).unwrap_or(i64::MAX)))
    }
}

/// Sends a file that the organization uses, piece by piece out of Postgres.
pub(crate) fn download(
    broker: &Broker,
    organization: OrganizationId,
    request: &v1::DownloadFileRequest,
) -> mpsc::Receiver<Result<v1::DownloadFileResponse, Status>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let (broker, file) = (broker.clone(), request.file_id.clone());
    tokio::spawn(async move {
        let error = match send(&broker, organization, &file, &sender).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let message = v1::DownloadFileResponse { part: None, error };
        if sender.send(Ok(message)).await.is_err() {
            tracing::debug!("downloader gone before it could be told of an error");
        }
    });
    receiver
}

type Downloads = mpsc::Sender<Result<v1::DownloadFileResponse, Status>>;

#[tracing::instrument(name = "rpc.provisioner.download_file", skip_all, fields(file.id = file))]
async fn send(
    broker: &Broker,
    organization: OrganizationId,
    file: &str,
    sender: &Downloads,
) -> Result<(), String> {
    let db = &broker.backbone.db;
    let failed = |error: berth_db::DbError| of_db(error).message().to_owned();
    let file: FileId = id(file, "file").map_err(|_| NO_FILE.to_owned())?;
    let found = import::find_used_file(db, organization, file).await.map_err(failed)?;
    let (kind, hash, size) = found.ok_or(NO_FILE)?;
    let sha256 = hex::decode(&hash).map_err(|_| "the file's stored hash is damaged".to_owned())?;
    let size = u64::try_from(size).unwrap_or_default();
    let piece = u64::try_from(MAX_CHUNK).expect("2 MiB fit");
    let chunks = u32::try_from(size.div_ceil(piece)).map_err(|_| "the file is too large")?;
    let header = v1::FileHeader { kind, sha256: sha256.clone(), size, chunks };
    if !pass_on(sender, Part::Header(header)).await {
        return Ok(());
    }
    for index in 0..chunks {
        let at = i32::try_from(index).map_err(|_| "the file is too large")?;
        let len = i32::try_from(MAX_CHUNK).expect("2 MiB fit");
        let data = import::read_piece(db, file, at, len).await.map_err(failed)?;
        let data = data.ok_or("the file was deleted while it was sent")?;
        let chunk = v1::FileChunk { sha256: sha256.clone(), index, data };
        if !pass_on(sender, Part::Chunk(chunk)).await {
            return Ok(());
        }
    }
    Ok(())
}

/// `false`: the reader is gone.
async fn pass_on(sender: &Downloads, part: Part) -> bool {
    let part = Some(v1::FilePart { part: Some(part) });
    sender.send(Ok(v1::DownloadFileResponse { part, error: String::new() })).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(data: &[u8], chunks: u32) -> v1::FileHeader {
        v1::FileHeader {
            kind: "modules".into(),
            sha256: Sha256::digest(data).to_vec(),
            size: data.len() as u64,
            chunks,
        }
    }

    fn chunk(header: &v1::FileHeader, index: u32, data: &[u8]) -> v1::FileChunk {
        v1::FileChunk { sha256: header.sha256.clone(), index, data: data.to_vec() }
    }

    #[test]
    fn a_file_in_order_arrives_whole() {
        let header = header(b"abcd", 2);
        let mut receiver = Receiver::new(header.clone()).unwrap();
        receiver.take(chunk(&header, 0, b"ab")).unwrap();
        receiver.take(chunk(&header, 1, b"cd")).unwrap();
        assert_eq!(receiver.piece(), None);
        assert_eq!(receiver.finish(), Ok((b"abcd".to_vec(), 4)));
    }

    #[test]
    fn chunks_of_any_size_become_pieces_of_one() {
        let data: Vec<u8> = (0..=250).cycle().take(MAX_CHUNK * 2 + 5).collect();
        let chunks: Vec<_> = data.chunks(MAX_CHUNK / 3 + 1).collect();
        let header = header(&data, u32::try_from(chunks.len()).unwrap());
        let mut receiver = Receiver::new(header.clone()).unwrap();
        let mut pieces = Vec::new();
        for (index, part) in (0..).zip(chunks) {
            receiver.take(chunk(&header, index, part)).unwrap();
            pieces.extend(receiver.piece());
        }
        let (rest, size) = receiver.finish().unwrap();
        assert!(pieces.iter().all(|piece| piece.len() == MAX_CHUNK) && rest.len() == 5);
        pieces.push(rest);
        assert_eq!((pieces.concat(), usize::try_from(size).unwrap()), (data.clone(), data.len()));
    }

    #[test]
    fn chunks_out_of_order_beyond_size_or_of_another_file_are_refused() {
        let header = header(b"abcd", 2);
        let mut receiver = Receiver::new(header.clone()).unwrap();
        assert!(receiver.take(chunk(&header, 1, b"cd")).unwrap_err().contains("chunk 1"));
        assert!(receiver.take(chunk(&header, 0, b"abcde")).unwrap_err().contains("4 announced"));
        let mut other = chunk(&header, 0, b"ab");
        other.sha256[0] ^= 1;
        assert!(receiver.take(other).unwrap_err().contains("another file"));
        assert!(receiver.finish().unwrap_err().contains("0 chunks"));
    }

    #[test]
    fn other_content_of_the_same_size_is_refused() {
        let header = header(b"abcd", 1);
        let mut receiver = Receiver::new(header.clone()).unwrap();
        receiver.take(chunk(&header, 0, b"abcx")).unwrap();
        assert!(receiver.finish().unwrap_err().contains("sha256"));
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_by_its_header() {
        let header = v1::FileHeader { size: MAX_FILE + 1, ..header(b"", 0) };
        assert!(Receiver::new(header).err().unwrap().contains("104857600"));
    }
}
