//! The largest file from a daemon to the broker and back.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_proto::v1::file_part::Part;
use berth_proto::v1::provisioner_service_client::ProvisionerServiceClient;
use berth_proto::{API_VERSION, KEY_HEADER, MAX_CHUNK, MAX_FILE, MAX_MESSAGE, v1};
use hdrhistogram::Histogram;
use reqwest::Method;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::api::Api;
use crate::data::{self, Base};
use crate::figure::{Cell, histogram, mebibytes, micros, quantile};
use crate::report::{Report, Table};
use crate::stage::{Estate, Stage, settle_statistics};

/// The import that the daemon holds while it sends, and its version.
const JOB: &str = "10000000-0000-0000-0000-00000000000a";

/// How long each part took.
struct Found {
    sent: Histogram<u64>,
    read: Histogram<u64>,
    /// Postgres alone writes as many bytes.
    written: Histogram<u64>,
}

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("transfer").await?;
    Base::of(true).load(&mut estate.sql).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let api = Api::start(stage, &estate).await?;
    let grpc = format!("127.0.0.1:{}", berth_devstack::free_port()?);
    let more = [("BERTH_GRPC__ADDR", grpc.as_str())];
    let broker = stage.start(("provisioner-broker", 0), &estate, &estate.url, &more).await?;
    let key = json!({ "name": "bench" });
    let made = api.client.send(Method::POST, "/organizations/default/provisionerkeys", &key);
    let key = made.await?["key"].as_str().context("a key")?.to_owned();
    let mut daemon = Daemon::register(&grpc, &key).await?;
    let job = given_job(&mut estate, &mut daemon).await?;

    let rounds = if stage.quick { 2 } else { 10 };
    let mut found = Found { sent: histogram(), read: histogram(), written: histogram() };
    let before = broker.memory()?;
    for round in 0..rounds {
        found.written.saturating_record(micros(write_alone(&mut estate).await?));
        let (took, file) = daemon.send(&job, round).await?;
        found.sent.saturating_record(micros(took));
        let sql =
            format!("update template_versions set modules_file_id = '{file}' where id = '{JOB}'");
        estate.sql.rows(&sql).await?;
        let (took, bytes) = daemon.read(&file).await?;
        report.check(bytes == MAX_FILE, || format!("{bytes} bytes came back"));
        found.read.saturating_record(micros(took));
    }
    let pieces = estate.sql.count("select count(*) from file_pieces").await?;
    let expected = rounds * MAX_FILE.div_ceil(MAX_CHUNK as u64);
    report.check(pieces == expected, || format!("{pieces} pieces are stored, not {expected}"));
    report.table(table(&found));
    report.table(memory(before, broker.memory()?));
    report.note(format!(
        "{rounds} files of {} MiB, each of other content, one after the other, over loopback; the \
         daemon's side is this program and makes the bytes as it sends them; hashes are checked at \
         both ends",
        MAX_FILE >> 20
    ));
    drop(daemon);
    broker.stop().await?;
    api.service.stop().await?;
    stage.remove(estate).await
}

/// As many bytes as a file has, written by one statement of Postgres' own.
async fn write_alone(estate: &mut Estate) -> anyhow::Result<Duration> {
    estate.sql.rows("create table if not exists bench_pieces (index int, data bytea)").await?;
    estate.sql.rows("alter table bench_pieces alter column data set storage external").await?;
    let pieces = MAX_FILE / MAX_CHUNK as u64;
    let began = Instant::now();
    let sql = format!(
        "insert into bench_pieces
         select n, convert_to(repeat('x', {MAX_CHUNK}), 'utf8') from generate_series(1, {pieces}) n"
    );
    estate.sql.rows(&sql).await?;
    let took = began.elapsed();
    estate.sql.rows("truncate bench_pieces").await?;
    Ok(took)
}

/// An import that the daemon holds from now on. Its lease outlasts the run.
async fn given_job(estate: &mut Estate, daemon: &mut Daemon) -> anyhow::Result<v1::Job> {
    let sql = format!(
        "with it as (
             select o.id as organization, u.id as person
             from organizations o join organization_members m on m.organization_id = o.id
             join users u on u.id = m.user_id where o.is_default and u.username <> 'prebuilds' limit 1
         ), version as (
             insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                                            created_at, updated_at)
             select '{JOB}', organization, 'bench', '{JOB}', 'terraform', person, now(), now() from it
         )
         insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                       file_id, input, created_at, updated_at)
         select '{JOB}', organization, person, 'template_version_import', 'terraform', 2, '{JOB}',
                '{{\"template_version_id\": \"{JOB}\"}}', now(), now() from it"
    );
    estate.sql.rows(&sql).await?;
    let job = daemon.acquire().await?;
    let sql = format!(
        "update provisioner_jobs set lease_expires_at = now() + interval '1 day' where id = '{}'",
        job.id
    );
    estate.sql.rows(&sql).await?;
    Ok(job)
}

/// This program as a daemon.
struct Daemon {
    client: ProvisionerServiceClient<Channel>,
    key: AsciiMetadataValue,
    id: String,
    _messages: mpsc::Sender<v1::RegisterRequest>,
    _answers: Streaming<v1::RegisterResponse>,
}

fn with<T>(key: &AsciiMetadataValue, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(KEY_HEADER, key.clone());
    request
}

impl Daemon {
    async fn register(addr: &str, key: &str) -> anyhow::Result<Self> {
        let key = AsciiMetadataValue::try_from(key)?;
        let client = ProvisionerServiceClient::connect(format!("http://{addr}")).await?;
        let mut client =
            client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        let (messages, sent) = mpsc::channel(4);
        let hello = v1::register_request::Message::Hello(v1::Hello {
            name: "bench".into(),
            version: "1".into(),
            api_version: API_VERSION.into(),
            provisioner_types: vec!["terraform".into()],
            capacity: 1,
            ..Default::default()
        });
        messages.send(v1::RegisterRequest { message: Some(hello) }).await?;
        let answers = client.register(with(&key, ReceiverStream::new(sent))).await?;
        let mut answers = answers.into_inner();
        let first = answers.message().await?.and_then(|it| it.message);
        let Some(v1::register_response::Message::Accepted(accepted)) = first else {
            anyhow::bail!("not accepted: {first:?}");
        };
        Ok(Self { client, key, id: accepted.daemon_id, _messages: messages, _answers: answers })
    }

    async fn acquire(&mut self) -> anyhow::Result<v1::Job> {
        let request = v1::AcquireJobRequest {
            daemon_id: self.id.clone(),
            wait_seconds: 20,
            ..Default::default()
        };
        let answer = self.client.acquire_job(with(&self.key, request)).await?;
        answer.into_inner().job.context("a job is queued")
    }

    /// Sends a file; how long it took, and the file's id.
    async fn send(&mut self, job: &v1::Job, round: u64) -> anyhow::Result<(Duration, String)> {
        let chunks = u32::try_from(MAX_FILE.div_ceil(MAX_CHUNK as u64))?;
        let mut hash = Sha256::new();
        (0..chunks).for_each(|index| hash.update(content(round, index)));
        let sha256 = hash.finalize().to_vec();
        let header = v1::FileHeader {
            kind: "modules".into(),
            sha256: sha256.clone(),
            size: MAX_FILE,
            chunks,
        };
        let part = |part| Some(v1::FilePart { part: Some(part) });
        let first = v1::UploadFileRequest {
            part: part(Part::Header(header)),
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
        };
        let rest = (0..chunks).map(move |index| {
            let data = content(round, index);
            let chunk = Part::Chunk(v1::FileChunk { sha256: sha256.clone(), index, data });
            v1::UploadFileRequest { part: part(chunk), ..Default::default() }
        });
        let messages = tokio_stream::iter([first].into_iter().chain(rest));
        let began = Instant::now();
        let stored = self.client.upload_file(with(&self.key, messages)).await?.into_inner();
        anyhow::ensure!(stored.error.is_empty(), "the file was refused: {}", stored.error);
        Ok((began.elapsed(), stored.file_id))
    }

    /// Reads a file; how long it took, and how many bytes came.
    async fn read(&mut self, file: &str) -> anyhow::Result<(Duration, u64)> {
        let began = Instant::now();
        let request = v1::DownloadFileRequest { daemon_id: self.id.clone(), file_id: file.into() };
        let mut parts = self.client.download_file(with(&self.key, request)).await?.into_inner();
        let (mut bytes, mut hash, mut header) = (0, Sha256::new(), None);
        while let Some(message) = parts.message().await? {
            anyhow::ensure!(message.error.is_empty(), "no download: {}", message.error);
            match message.part.and_then(|it| it.part) {
                Some(Part::Header(it)) => header = Some(it),
                Some(Part::Chunk(chunk)) => {
                    bytes += chunk.data.len() as u64;
                    hash.update(&chunk.data);
                }
                None => {}
            }
        }
        let header = header.context("a header")?;
        anyhow::ensure!(hash.finalize()[..] == header.sha256[..], "another content came back");
        Ok((began.elapsed(), bytes))
    }
}

/// Bytes that are the same in no two chunks.
fn content(round: u64, index: u32) -> Vec<u8> {
    let mut data = vec![7; MAX_CHUNK];
    data[..8].copy_from_slice(&round.to_be_bytes());
    data[8..12].copy_from_slice(&index.to_be_bytes());
    data
}

fn table(found: &Found) -> Table {
    let columns = ["of 100 MiB", "files", "p50 ms", "max ms"];
    let mut table = Table::new("A file of 100 MiB", &columns);
    for (name, times) in [
        ("daemon to broker, stored", &found.sent),
        ("broker to daemon, checked", &found.read),
        ("(as many bytes, one statement of Postgres alone)", &found.written),
    ] {
        table.row([name.into(), times.len().into(), quantile(times, 0.5), quantile(times, 1.0)]);
    }
    table
}

fn memory(before: (u64, u64), after: (u64, u64)) -> Table {
    let mut table = Table::new("Memory of the broker", &["when", "MiB", "most so far MiB"]);
    for (name, (now, most)) in [("before the first file", before), ("after the last", after)] {
        table.row([Cell::from(name), mebibytes(now), mebibytes(most)]);
    }
    table
}
