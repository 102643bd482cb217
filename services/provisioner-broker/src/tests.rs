//! Brokers in this process over a real Postgres, called as their gRPC service calls them.

mod claim;
mod secret;
mod session;

use std::time::{Duration, Instant};

use berth_backbone::{Backbone, Clock};
use berth_bus::{Bus, BusConfig};
use berth_db::build_state;
use berth_db::job::Filter;
use berth_domain::id::{BuildId, DaemonId, OrganizationId, WorkspaceId};
use berth_proto::v1;
use berth_testkit::{TestDatabase, servers, subject_space};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::Broker;
use crate::config::Config;
use crate::registry::Entry;
use crate::{acquire, complete, quota, reaper, update};

const PREBUILDS: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";
const ORG: Uuid = Uuid::from_u128(1);
const USER: Uuid = Uuid::from_u128(2);
const TEMPLATE: Uuid = Uuid::from_u128(3);
const VERSION: Uuid = Uuid::from_u128(4);
const PRESET: Uuid = Uuid::from_u128(5);
const WORKSPACE: Uuid = Uuid::from_u128(6);
const FIRST: Uuid = Uuid::from_u128(7);
const CLAIM: Uuid = Uuid::from_u128(8);
const DAEMON: Uuid = Uuid::from_u128(9);

/// What the prebuild's build left.
const ENCRYPTION_KEY: &str = "test:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const STATE: &[u8] = b"state of the prebuild";

/// A database with a prebuild that was just claimed, and two brokers over it. Events stay in the
/// outbox.
struct Stand {
    database: TestDatabase,
    broker: Broker,
    other: Broker,
}

impl Stand {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        database.rows(&claimed()).await;
        let (broker, other) = (over(&database).await, over(&database).await);
        let stand = Self { database, broker, other };
        let state = stand.broker.vault.seal_state(WorkspaceId(WORKSPACE), STATE).unwrap();
        let db = &stand.broker.backbone.db;
        build_state::insert(db, BuildId(FIRST), &state).await.unwrap();
        stand
    }

    /// Takes the job that waits.
    async fn acquire(&self) -> v1::Job {
        let request = v1::AcquireJobRequest {
            daemon_id: DAEMON.to_string(),
            wait_seconds: 20,
            ..Default::default()
        };
        let job = acquire::acquire(&self.broker, OrganizationId(ORG), &request).await.unwrap();
        job.expect("a job waits")
    }

    /// Says that apply began.
    async fn apply(&self, job: &v1::Job) -> v1::UpdateJobResponse {
        let request = v1::UpdateJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            step: v1::Step::Apply.into(),
            ..v1::UpdateJobRequest::default()
        };
        update::update(&self.broker, OrganizationId(ORG), request).await.unwrap()
    }

    async fn fail(&self, job: &v1::Job, code: &str, state: Option<&[u8]>) {
        let request = failure(job, code, state);
        complete::fail(&self.broker, OrganizationId(ORG), &request).await.unwrap();
    }

    async fn complete(&self, job: &v1::Job) {
        let result = v1::WorkspaceBuildResult { state: b"built".to_vec(), ..Default::default() };
        let request = v1::CompleteJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            timings: Vec::new(),
            result: Some(v1::complete_job_request::Result::WorkspaceBuild(result)),
        };
        complete::complete(&self.broker, OrganizationId(ORG), request).await.unwrap();
    }

    /// The daemons of all jobs are gone, and both brokers look at once.
    async fn lose_daemons(&self) {
        let sql = "update provisioner_jobs set lease_expires_at = now() - interval '1 second'
                   where started_at is not null and completed_at is null";
        self.database.rows(sql).await;
        self.reap().await;
    }

    async fn reap(&self) {
        let (one, two) = tokio::join!(reaper::pass(&self.broker), reaper::pass(&self.other));
        one.unwrap();
        two.unwrap();
    }

    /// The builds of the workspace: number, stage, status and whose fault.
    async fn builds(&self) -> Vec<String> {
        let sql = "select concat_ws(' ', b.build_number, b.stage, j.status, j.error_code)
                   from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                   order by b.build_number";
        self.database.rows(sql).await.into_iter().flatten().collect()
    }

    /// What the broker wrote into the logs of the claim's builds.
    async fn notes(&self) -> String {
        let sql = "select coalesce(string_agg(l.output, ' | ' order by l.id), '')
                   from provisioner_job_logs l";
        self.database.value(sql).await
    }
}

async fn over(database: &TestDatabase) -> Broker {
    let db = berth_db::connect(&database.url, 4, "test").unwrap();
    let url = servers().await.nats_url.clone();
    let bus = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
    let bus = Bus::connect(&bus, "test").await.unwrap();
    // Leases run by the clock of Postgres.
    let clock = Clock::default();
    let (backbone, _publisher) = Backbone::over("broker", (db, bus), clock);
    let stop = CancellationToken::new();
    let metrics = prometheus::Registry::new();
    let mut config = Config::default();
    config.encryption.keys = ENCRYPTION_KEY.into();
    let broker = Broker::over(&config, backbone, &metrics, stop).unwrap();
    let filter = Filter {
        organizations: vec![OrganizationId(ORG)],
        provisioners: vec!["exec".to_owned()],
        tags: [("scope", "organization"), ("owner", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    };
    let (outgoing, _) = tokio::sync::mpsc::channel(1);
    // It sends no heartbeats, and is heard of all the same.
    let heard = Instant::now() + Duration::from_hours(1);
    let (name, incarnation, is_told) = Default::default();
    let entry = Entry { session: Uuid::nil(), name, incarnation, filter, heard, is_told, outgoing };
    broker.registry.insert(DaemonId(DAEMON), entry, false);
    broker
}

fn failure(job: &v1::Job, code: &str, state: Option<&[u8]>) -> v1::FailJobRequest {
    v1::FailJobRequest {
        job_id: job.id.clone(),
        lease_token: job.lease_token.clone(),
        error: format!("{code} it was"),
        error_code: code.to_owned(),
        state: state.map(<[u8]>::to_vec),
        ..v1::FailJobRequest::default()
    }
}

fn build_of(job: &v1::Job) -> &v1::WorkspaceBuild {
    match &job.input {
        Some(v1::job::Input::WorkspaceBuild(build)) => build,
        other => panic!("not a build: {other:?}"),
    }
}

/// A pool's prebuild, and the claim that made it the user's.
fn claimed() -> String {
    format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{ORG}', 'acme', now(), now());
        insert into groups (id, organization_id, name, quota_allowance, created_at)
            values ('{ORG}', '{ORG}', 'Everyone', 10, now());
        insert into users (id, username, email, created_at, updated_at)
            values ('{USER}', 'alice', 'alice@example.com', now(), now());
        insert into organization_members (organization_id, user_id, created_at, updated_at)
            values ('{ORG}', '{USER}', now(), now());
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            values ('{VERSION}', '{ORG}', '{USER}', 'template_version_import', 'exec', 2,
                    '{VERSION}', '{{}}', now(), now(), now(), now()),
                   ('{FIRST}', '{ORG}', '{PREBUILDS}', 'workspace_build', 'exec', 4, '{VERSION}',
                    '{{\"workspace_build_id\": \"{FIRST}\"}}', now(), now(), now(), now()),
                   ('{CLAIM}', '{ORG}', '{USER}', 'workspace_build', 'exec', 0, '{VERSION}',
                    '{{\"workspace_build_id\": \"{CLAIM}\"}}', now(), now(), null, null);
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                created_at, updated_at)
            values ('{VERSION}', '{ORG}', 'v1', '{VERSION}', 'exec', '{USER}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                created_at, updated_at)
            values ('{TEMPLATE}', '{ORG}', 'dev', 'exec', '{VERSION}', '{USER}', now(), now());
        update template_versions set template_id = '{TEMPLATE}';
        insert into template_version_presets (id, template_version_id, name, desired_instances,
                created_at) values ('{PRESET}', '{VERSION}', 'small', 1, now());
        insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
            values ('{PRESET}', '{VERSION}', '{TEMPLATE}', '{ORG}');
        insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                updated_at, last_used_at, latest_build_id, latest_build_number)
            values ('{WORKSPACE}', '{USER}', '{ORG}', '{TEMPLATE}', 'mine', now(), now(), now(),
                    '{CLAIM}', 2);
        insert into workspace_builds (id, workspace_id, template_version_id, preset_id, build_number,
                transition, initiator_id, stage, job_id, daily_cost, created_at, updated_at)
            values ('{FIRST}', '{WORKSPACE}', '{VERSION}', '{PRESET}', 1, 'start', '{PREBUILDS}',
                    'prebuild', '{FIRST}', 4, now(), now()),
                   ('{CLAIM}', '{WORKSPACE}', '{VERSION}', '{PRESET}', 2, 'start', '{USER}', 'claim',
                    '{CLAIM}', 4, now(), now());
        insert into workspace_build_parameters (build_id, name, value)
            values ('{FIRST}', 'size', 'small'), ('{CLAIM}', 'size', 'small'),
                   ('{CLAIM}', 'once', 'only this time');
        insert into claim_attempts (id, created_at, organization_id, template_id,
                template_version_id, preset_id, user_id, workspace_id, build_id, outcome)
            values ('{CLAIM}', now(), '{ORG}', '{TEMPLATE}', '{VERSION}', '{PRESET}', '{USER}',
                    '{WORKSPACE}', '{CLAIM}', 'hit');
        commit;"
    )
}
