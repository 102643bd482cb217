//! The broker over real Postgres, NATS and gRPC. Replicas run in the test's own runtime.

use std::sync::Arc;
use std::time::Instant;

use berth_backbone::{Backbone, Clock};
use berth_bus::{Bus, BusConfig};
use berth_proto::v1::complete_job_request::Result as Output;
use berth_proto::v1::provisioner_service_client::ProvisionerServiceClient;
use berth_proto::{API_VERSION, KEY_HEADER, v1};
use berth_service_kit::Period;
use berth_testkit::{SOON, TestDatabase, servers, subject_space, wait_until};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

use crate::broker::Broker;
use crate::config::{Config, Limits, Tls};
use crate::register::Silence;
use crate::tls::ServerTls;

mod cost;
mod drain;
mod keys;
mod lost;
mod model;
mod quota;
mod report;
mod second;
mod silence;
mod statements;
mod stopping;
mod tls;
mod waiting;

const ADA: Uuid = Uuid::from_u128(0xa1);
/// Organization number `n`; its provisioner key has the same id.
fn organization(n: u128) -> Uuid {
    Uuid::from_u128(0xb0 + n)
}

fn job(n: u128) -> Uuid {
    Uuid::from_u128(0x1_0000 + n)
}

/// A query for the jobs of these numbers: `id`, `n`.
fn each(numbers: &std::ops::Range<u128>) -> String {
    format!(
        "select lpad(to_hex({} + n), 32, '0')::uuid as id, n from generate_series({}, {}) n",
        0x1_0000,
        numbers.start,
        numbers.end - 1
    )
}

/// A database with organizations 1 and 2, and a subject space.
struct World {
    db: TestDatabase,
    space: String,
    silence: Silence,
}

/// One broker of it; it stops with the value.
struct Replica {
    broker: Broker,
    addr: String,
    serving: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    _stop: DropGuard,
}

impl World {
    async fn new() -> Self {
        let db = TestDatabase::create().await;
        let world = Self { db, space: subject_space(), silence: Silence::default() };
        let (one, two) = (organization(1), organization(2));
        world
            .sql(&format!(
                "insert into organizations (id, name, created_at, updated_at)
                     values ('{one}', 'one', now(), now()), ('{two}', 'two', now(), now());
                 insert into users (id, username, email, created_at, updated_at)
                     values ('{ADA}', 'ada', 'ada@example.com', now(), now());
                 insert into provisioner_keys (id, organization_id, name, secret_hash, created_at)
                     values ('{one}', '{one}', 'k', sha256('hush'), now()),
                            ('{two}', '{two}', 'k', sha256('hush2'), now());
                 insert into files (id, hash, created_by, created_at, data)
                     values ('{ADA}', 'h', '{ADA}', now(), 'tar');"
            ))
            .await;
        world
    }

    async fn sql(&self, sql: &str) {
        self.db.rows(sql).await;
    }

    /// Dry runs of organization 1 with these numbers, class of templates, no tags, oldest first.
    async fn given_jobs(&self, numbers: std::ops::Range<u128>) {
        self.sql(&format!(
            "insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                           file_id, input, created_at, updated_at)
             select id, '{}', '{ADA}', 'template_version_dry_run', 'exec', 2, '{ADA}',
                    jsonb_build_object('template_version_id', id), now() + n * interval '1 us', now()
             from ({}) it",
            organization(1),
            each(&numbers)
        ))
        .await;
    }

    /// Turns jobs into first builds of a workspace each, of Ada's.
    async fn given_builds(&self, numbers: std::ops::Range<u128>) {
        let (org, all) = (organization(1), each(&numbers));
        self.sql(&format!(
            "begin;
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                 file_id, input, created_at, updated_at, started_at, completed_at)
             values ('{org}', '{org}', '{ADA}', 'template_version_import', 'exec', 2, '{ADA}', '{{}}',
                     now(), now(), now(), now());
             insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                                            created_at, updated_at)
             values ('{org}', '{org}', 'v', '{org}', 'exec', '{ADA}', now(), now());
             insert into templates (id, organization_id, name, provisioner, active_version_id,
                                    created_by, created_at, updated_at)
             values ('{org}', '{org}', 't', 'exec', '{org}', '{ADA}', now(), now());
             insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                                     updated_at, last_used_at, latest_build_id, latest_build_number)
             select id, '{ADA}', '{org}', '{org}', 'w' || id, now(), now(), now(), id, 1
             from ({all}) it;
             update provisioner_jobs j
             set kind = 'workspace_build', input = jsonb_build_object('workspace_build_id', j.id)
             from ({all}) it where j.id = it.id;
             insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                 transition, initiator_id, job_id, created_at, updated_at)
             select id, id, '{org}', 1, 'start', '{ADA}', id, now(), now()
             from ({all}) it;
             commit;"
        ))
        .await;
    }

    async fn status(&self, id: Uuid) -> String {
        self.db.value(&format!("select status from provisioner_jobs where id = '{id}'")).await
    }

    async fn replica(&self) -> Replica {
        let replica = self.replica_at(&servers().await.nats_url).await;
        wait_until("postings are heard", SOON, async || {
            replica.broker.queue.is_hearing().then_some(())
        })
        .await;
        replica
    }

    /// A replica whose NATS is at `nats`, where nothing needs to be. Its backup poll comes never
    /// within a test; tests that are about the poll set their own.
    async fn replica_at(&self, nats: &str) -> Replica {
        let limits = Limits { poll: Period::from_mins(60), ..Limits::default() };
        self.replica_with(nats, limits).await
    }

    async fn replica_with(&self, nats: &str, limits: Limits) -> Replica {
        self.replica_of(nats, limits, (Tls::default(), Clock::default())).await
    }

    async fn replica_of(&self, nats: &str, limits: Limits, (tls, clock): (Tls, Clock)) -> Replica {
        let bus =
            BusConfig { url: nats.into(), prefix: self.space.clone(), ..BusConfig::default() };
        let bus = Bus::connect(&bus, "test").await.unwrap();
        let db = berth_db::connect(&self.db.url, 8, "test").unwrap();
        let (backbone, publisher) =
            Backbone::over("provisioner-broker", (db.clone(), bus.clone()), clock);
        let mut config =
            Config { access_url: "http://berth.test".into(), limits, ..Config::default() };
        config.encryption.off = true;
        config.grpc.tls = tls;
        let metrics = prometheus::Registry::new();
        let mut broker =
            Broker::over(&config, backbone, &metrics, CancellationToken::new()).unwrap();
        broker.silence = self.silence;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(publisher.run(db, bus, broker.stop.clone()));
        tokio::spawn(crate::listen::postings(broker.clone()));
        tokio::spawn(crate::listen::cancels(broker.clone()));
        tokio::spawn(crate::listen::drains(broker.clone()));
        let tls = ServerTls::open(&config.grpc.tls).await.unwrap();
        let serving = tokio::spawn(crate::serve(broker.clone(), listener, tls));
        Replica { _stop: broker.stop.clone().drop_guard(), broker, addr, serving }
    }
}

impl Replica {
    /// Makes every daemon of this replica one that was not heard of for as long.
    fn silence(&self, daemon: &Daemon, since: Instant) {
        self.broker.registry.set_heard(daemon.id.parse().unwrap(), since);
    }
}

/// A registered daemon of an organization.
#[derive(Clone)]
struct Daemon {
    client: ProvisionerServiceClient<Channel>,
    id: String,
    key: String,
    stream: Arc<(
        mpsc::Sender<v1::RegisterRequest>,
        tokio::sync::Mutex<Streaming<v1::RegisterResponse>>,
    )>,
}

impl Daemon {
    /// One of organization 1, without tags, that drives `exec`.
    async fn register(replica: &Replica, name: &str) -> Self {
        Self::of(replica, name, 1, &[]).await
    }

    async fn of(replica: &Replica, name: &str, org: u128, tags: &[(&str, &str)]) -> Self {
        let tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let hello = v1::Hello { tags, ..named(name) };
        Self::enter(replica, org, hello).await.unwrap()
    }

    /// Registers with what `hello` says and what all have in common.
    async fn enter(replica: &Replica, org: u128, hello: v1::Hello) -> Result<Self, Code> {
        let channel =
            Channel::from_shared(format!("http://{}", replica.addr)).unwrap().connect().await;
        let key = format!("{}-{}", organization(org), if org == 1 { "hush" } else { "hush2" });
        let answer = Self::over(channel.unwrap(), &key, hello).await;
        answer.map_err(|status| status.code())
    }

    /// The same over a connection, with a key unless it is empty.
    async fn over(channel: Channel, key: &str, hello: v1::Hello) -> Result<Self, Status> {
        let mut client = ProvisionerServiceClient::new(channel);
        let (sender, requests) = mpsc::channel(4);
        let message = v1::register_request::Message::Hello(v1::Hello {
            version: "1".into(),
            api_version: API_VERSION.into(),
            provisioner_types: vec!["exec".into()],
            capacity: 1,
            ..hello
        });
        sender.send(v1::RegisterRequest { message: Some(message) }).await.unwrap();
        let answer = client.register(with_key(key, ReceiverStream::new(requests))).await;
        let mut stream = answer?.into_inner();
        let first = stream.message().await.unwrap().unwrap().message;
        let Some(v1::register_response::Message::Accepted(accepted)) = first else {
            panic!("not accepted: {first:?}");
        };
        let stream = Arc::new((sender, tokio::sync::Mutex::new(stream)));
        Ok(Self { client, id: accepted.daemon_id, key: key.to_owned(), stream })
    }

    /// What the broker says next on the registration's stream.
    async fn told(&self) -> v1::register_response::Message {
        let mut stream = self.stream.1.lock().await;
        stream.message().await.unwrap().unwrap().message.unwrap()
    }

    async fn acquire_within(&self, wait_seconds: u32) -> Option<v1::Job> {
        let request = v1::AcquireJobRequest {
            daemon_id: self.id.clone(),
            wait_seconds,
            ..Default::default()
        };
        let answer = self.client.clone().acquire_job(with_key(&self.key, request)).await;
        answer.unwrap().into_inner().job
    }

    async fn acquire(&self) -> v1::Job {
        self.acquire_within(50).await.expect("a job is queued")
    }

    async fn give_up(&self, leases: &[&str]) -> Result<(), Code> {
        let lease_tokens = leases.iter().map(|it| (*it).to_owned()).collect();
        let request = with_key(&self.key, v1::GiveUpJobsRequest { lease_tokens });
        let answer = self.client.clone().give_up_jobs(request).await;
        answer.map(drop).map_err(|status| status.code())
    }

    async fn update(&self, update: v1::UpdateJobRequest) -> Result<v1::UpdateJobResponse, Code> {
        let answer = self.client.clone().update_job(with_key(&self.key, update)).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.code())
    }

    async fn complete(&self, job: &v1::Job) -> Result<(), Code> {
        self.complete_with(job, &[]).await
    }

    /// Reports success; of a dry run with these resources.
    async fn complete_with(&self, job: &v1::Job, resources: &[&str]) -> Result<(), Code> {
        let resources = resources.iter().map(|name| v1::Resource {
            name: (*name).into(),
            r#type: "box".into(),
            ..v1::Resource::default()
        });
        let result = match job.input {
            Some(v1::job::Input::WorkspaceBuild(_)) => {
                Output::WorkspaceBuild(v1::WorkspaceBuildResult {
                    state: b"new".to_vec(),
                    resources: resources.collect(),
                    ..v1::WorkspaceBuildResult::default()
                })
            }
            _ => {
                Output::TemplateDryRun(v1::TemplateDryRunResult { resources: resources.collect() })
            }
        };
        let request = v1::CompleteJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            timings: Vec::new(),
            result: Some(result),
        };
        let answer = self.client.clone().complete_job(with_key(&self.key, request)).await;
        answer.map(drop).map_err(|status| status.code())
    }

    async fn fail(&self, job: &v1::Job, error: &str) -> Result<(), Code> {
        let request = v1::FailJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            error_code: "template".into(),
            error: error.into(),
            ..v1::FailJobRequest::default()
        };
        let answer = self.client.clone().fail_job(with_key(&self.key, request)).await;
        answer.map(drop).map_err(|status| status.code())
    }
}

/// What a daemon of this name says first.
fn named(name: &str) -> v1::Hello {
    v1::Hello { name: name.into(), ..v1::Hello::default() }
}

fn with_key<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !key.is_empty() {
        request.metadata_mut().insert(KEY_HEADER, AsciiMetadataValue::try_from(key).unwrap());
    }
    request
}

/// A heartbeat of a job.
fn beat(job: &v1::Job) -> v1::UpdateJobRequest {
    v1::UpdateJobRequest {
        job_id: job.id.clone(),
        lease_token: job.lease_token.clone(),
        ..v1::UpdateJobRequest::default()
    }
}
