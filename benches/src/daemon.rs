//! Provisioner daemons that do nothing but talk to the broker.

use std::time::Duration;

use anyhow::Context as _;
use berth_proto::v1::complete_job_request::Result as Output;
use berth_proto::v1::provisioner_service_client::ProvisionerServiceClient;
use berth_proto::{API_VERSION, KEY_HEADER, v1};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::psql::Psql;
use crate::service::Service;
use crate::stage::{Estate, Stage};

/// How often a daemon says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The secret of the key.
const SECRET: &str = "bench";

/// A running broker of an organization of the data.
#[derive(Debug)]
pub(crate) struct Broker {
    /// The process.
    pub(crate) service: Service,
    url: String,
    key: AsciiMetadataValue,
}

/// A registered daemon, with a connection of its own. It leaves with this value.
#[derive(Debug)]
pub(crate) struct Daemon {
    client: ProvisionerServiceClient<Channel>,
    key: AsciiMetadataValue,
    id: String,
    heart: JoinHandle<()>,
    _told: Streaming<v1::RegisterResponse>,
}

impl Broker {
    /// Starts one for the first organization, with `postgres` as its way to the database.
    pub(crate) async fn start(
        stage: &Stage,
        estate: &mut Estate,
        replica: usize,
        (postgres, more): (&str, &[(&str, &str)]),
    ) -> anyhow::Result<Self> {
        let key = estate.sql.text(&key_row()).await?;
        let addr = format!("127.0.0.1:{}", berth_devstack::free_port()?);
        let mut settings = vec![("BERTH_GRPC__ADDR", addr.as_str())];
        settings.extend(more);
        let name = ("provisioner-broker", replica);
        let service = stage.start(name, estate, postgres, &settings).await?;
        let key = AsciiMetadataValue::try_from(format!("{key}-{SECRET}"))?;
        Ok(Self { service, url: format!("http://{addr}"), key })
    }

    /// Registers a daemon.
    pub(crate) async fn daemon(&self, name: &str) -> anyhow::Result<Daemon> {
        let channel = Channel::from_shared(self.url.clone())?.tcp_nodelay(true).connect().await?;
        let mut client = ProvisionerServiceClient::new(channel);
        let (beats, requests) = mpsc::channel(2);
        let hello = v1::register_request::Message::Hello(v1::Hello {
            name: name.to_owned(),
            version: "bench".to_owned(),
            api_version: API_VERSION.to_owned(),
            provisioner_types: vec!["exec".to_owned()],
            capacity: 1,
            ..v1::Hello::default()
        });
        beats.send(v1::RegisterRequest { message: Some(hello) }).await?;
        let request = with_key(&self.key, ReceiverStream::new(requests));
        let mut told = client.register(request).await?.into_inner();
        let first = told.message().await?.and_then(|it| it.message);
        let Some(v1::register_response::Message::Accepted(accepted)) = first else {
            anyhow::bail!("the broker did not accept {name}: {first:?}");
        };
        let heart = tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                let beat = v1::register_request::Message::Heartbeat(v1::Heartbeat::default());
                if beats.send(v1::RegisterRequest { message: Some(beat) }).await.is_err() {
                    return;
                }
            }
        });
        Ok(Daemon { client, key: self.key.clone(), id: accepted.daemon_id, heart, _told: told })
    }

    /// Registers as many.
    pub(crate) async fn daemons(&self, count: usize) -> anyhow::Result<Vec<Daemon>> {
        let mut daemons = Vec::with_capacity(count);
        for n in 0..count {
            let daemon = self.daemon(&format!("bench-{n}")).await;
            daemons.push(daemon.with_context(|| format!("daemon {n} of {count}"))?);
        }
        Ok(daemons)
    }
}

impl Daemon {
    /// Waits for a job.
    pub(crate) async fn acquire(&mut self, wait_seconds: u32) -> anyhow::Result<Option<v1::Job>> {
        let request = v1::AcquireJobRequest {
            daemon_id: self.id.clone(),
            wait_seconds,
            ..Default::default()
        };
        let answer = self.client.acquire_job(with_key(&self.key, request)).await?;
        Ok(answer.into_inner().job)
    }

    /// Reports success, with nothing made.
    pub(crate) async fn complete(&mut self, job: &v1::Job) -> anyhow::Result<()> {
        let result = match job.input {
            Some(v1::job::Input::WorkspaceBuild(_)) => {
                Output::WorkspaceBuild(v1::WorkspaceBuildResult::default())
            }
            _ => Output::TemplateDryRun(v1::TemplateDryRunResult::default()),
        };
        let request = v1::CompleteJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            timings: Vec::new(),
            result: Some(result),
        };
        self.client.complete_job(with_key(&self.key, request)).await?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

fn with_key<T>(key: &AsciiMetadataValue, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(KEY_HEADER, key.clone());
    request
}

/// Makes the key of the first organization, once, and tells its id.
fn key_row() -> String {
    format!(
        "
        insert into provisioner_keys (id, organization_id, name, secret_hash, created_at)
        values (bench_id('key', 0), bench_id('organization', 0), 'bench', sha256('{SECRET}'), now())
        on conflict do nothing;
        select bench_id('key', 0)"
    )
}

/// Queues dry runs of the first organization until so many wait.
pub(crate) async fn fill(sql: &mut Psql, wanted: u64) -> anyhow::Result<()> {
    sql.run(&format!(
        "
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                      file_id, input, created_at, updated_at)
        select uuidv7(), bench_id('organization', 0), bench_id('user', 0),
               'template_version_dry_run', 'exec', 2, bench_id('file', 0),
               jsonb_build_object('template_version_id', bench_id('history-version', 0)),
               clock_timestamp(), clock_timestamp()
        from generate_series(1, {wanted} - (
            select count(*) from provisioner_jobs
            where started_at is null and canceled_at is null and completed_at is null
        )) n"
    ))
    .await
}
