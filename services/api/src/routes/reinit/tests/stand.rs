//! A database with one workspace and its agent, and a replica over it.

use std::time::Duration;

use berth_bus::BusConfig;
use berth_bus::envelope::{Message, wrap};
use berth_bus::event::{ClaimFinished, Event};
use berth_domain::id::{BuildId, EventId, PREBUILDS_USER, UserId, WorkspaceId};
use berth_domain::state::JobStatus;
use berth_service_kit::Period;
use berth_testkit::{SOON, TestDatabase, servers, subject_space, wait_until};
use uuid::Uuid;

use crate::config::{Config, StreamConfig};
use crate::replica::{Answer, Events, NOW, Replica};

/// Everything that needs an id of its own kind only: organization, version, template, preset,
/// workspace, resource.
pub(super) const IT: Uuid = Uuid::from_u128(1);
pub(super) const OLGA: Uuid = Uuid::from_u128(2);
/// The agent's id and token.
pub(super) const AGENT: Uuid = Uuid::from_u128(0xa1);
pub(super) const OLGAS_TOKEN: &str = "Owner00000-abcdefghijklmnopqrstuv";

/// Hears of claims and never looks by itself. A silent stream says so soon, which shows that it is
/// open.
pub(super) const HEARS: StreamConfig = StreamConfig {
    per_user: 4,
    per_agent: 4,
    ping: Period::from_millis(100),
    look: Period::from_hours(1),
};
/// Hears nothing and looks.
pub(super) const LOOKS: StreamConfig = StreamConfig { look: Period::from_millis(100), ..HEARS };

pub(super) struct Stand {
    pub(super) database: TestDatabase,
    pub(super) api: Replica,
}

fn build(number: u32) -> Uuid {
    Uuid::from_u128(0x100 + u128::from(number))
}

impl Stand {
    /// A replica that hears of claims.
    pub(super) async fn hearing() -> Self {
        let stand = Self::deaf(HEARS).await;
        stand.api.app.backbone.bus.ensure_streams().await.unwrap();
        stand.api.hear_claims();
        stand.hears().await;
        stand
    }

    /// A replica that is told nothing.
    pub(super) async fn deaf(streams: StreamConfig) -> Self {
        let url = servers().await.nats_url.clone();
        let bus = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
        Self::over(&bus, streams).await
    }

    pub(super) async fn over(bus: &BusConfig, streams: StreamConfig) -> Self {
        let database = TestDatabase::create().await;
        database.rows(&rows()).await;
        let config = Config { streams, ..Config::default() };
        let api = Replica::over_both(&database.url, 4, bus, config).await;
        Self { database, api }
    }

    /// Waits until the replica hears of claims: it does once it heard of one of another workspace.
    async fn hears(&self) {
        let mut heard = self.api.app.live.claims();
        let other = WorkspaceId(Uuid::from_u128(9));
        let subject = self.api.app.backbone.bus.subjects().claim(other);
        wait_until("the replica hears of claims", SOON, async || {
            self.say(&subject, b"").await;
            tokio::time::timeout(Duration::from_millis(100), heard.recv()).await.ok()
        })
        .await
        .unwrap();
    }

    /// Says something to NATS that nobody keeps.
    pub(super) async fn say(&self, subject: &str, payload: &[u8]) {
        let (subject, payload) = (subject.to_owned(), payload.to_owned());
        let message = Message { subject, headers: [].into(), payload };
        self.api.app.backbone.bus.publish(&message).await.unwrap();
    }

    /// Tells that the claim build has ended.
    pub(super) async fn tell(&self, job_status: JobStatus) {
        let event = Event::Claim(ClaimFinished {
            workspace_id: WorkspaceId(IT),
            owner_id: UserId(OLGA),
            build_id: BuildId(build(2)),
            job_status,
            reason: "prebuild_claimed".to_owned(),
            error: String::new(),
        });
        let bus = &self.api.app.backbone.bus;
        let id = EventId(self.api.app.backbone.ids.next());
        let message = wrap(bus.subjects(), "test", id, NOW.parse().unwrap(), &event);
        assert_eq!(bus.publish_stored(&[message]).await, [true]);
    }

    /// Asks as the agent.
    pub(super) async fn ask(&self) -> Result<Events, Answer> {
        self.ask_as(Some(&AGENT.to_string())).await
    }

    pub(super) async fn ask_as(&self, token: Option<&str>) -> Result<Events, Answer> {
        self.api.open(token, Replica::request("/workspaceagents/me/reinit?wait=true")).await
    }

    /// Opens a stream that has nothing to tell yet.
    pub(super) async fn waits(&self) -> Events {
        let mut events = self.ask().await.unwrap_or_else(|it| panic!("{it:?}"));
        assert_eq!(events.next().await.expect("the stream goes on").0, "ping");
        events
    }

    /// Asks, and gives the message of the 409 that is the answer.
    pub(super) async fn refused(&self) -> String {
        let answer = self.ask().await.map(drop).expect_err("there is nothing to wait for");
        answer.expect(409)["message"].as_str().unwrap().to_owned()
    }

    /// A build's row and its job, as the latest; build 1 is there already.
    pub(super) async fn queue(&self, number: u32, stage: &str) {
        let sql = format!("begin; {} commit;", build_rows(number, stage, OLGA));
        self.database.rows(&sql).await;
    }

    /// The prebuild gets its owner and its claim build.
    pub(super) async fn claim(&self) {
        let sql = format!(
            "begin; update workspaces set owner_id = '{OLGA}', name = 'mine', pool_preset_id = null,
                 pool_state = null; {} commit;",
            build_rows(2, "claim", OLGA)
        );
        self.database.rows(&sql).await;
    }

    /// Sets columns of a build's job.
    pub(super) async fn job(&self, number: u32, set: &str) {
        let id = build(number);
        self.database.rows(&format!("update provisioner_jobs set {set} where id = '{id}'")).await;
    }

    pub(super) async fn sql(&self, sql: &str) {
        self.database.rows(sql).await;
    }
}

pub(super) const RUNNING: &str = "started_at = now()";
pub(super) const SUCCEEDED: &str = "started_at = now(), completed_at = now()";
pub(super) const FAILED: &str = "started_at = now(), completed_at = now(), error_code = 'template',
                                 error = 'terraform apply: no capacity in zone b'";
pub(super) const CANCELED: &str = "canceled_at = now(), completed_at = now()";

fn build_rows(number: u32, stage: &str, initiator: Uuid) -> String {
    let id = build(number);
    format!(
        "
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at)
            values ('{id}', '{IT}', '{initiator}', 'workspace_build', 'exec', 0, '{IT}', '{{}}',
                    now(), now());
        insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                transition, initiator_id, stage, job_id, created_at, updated_at)
            values ('{id}', '{IT}', '{IT}', {number}, 'start', '{initiator}', '{stage}', '{id}',
                    now(), now());
        update workspaces set latest_build_id = '{id}', latest_build_number = {number};"
    )
}

fn rows() -> String {
    let (prebuilds, first) = (PREBUILDS_USER, build_rows(1, "prebuild", PREBUILDS_USER.0));
    let build = build(1);
    format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{IT}', 'acme', now(), now());
        insert into users (id, username, email, roles, created_at, updated_at)
            values ('{OLGA}', 'olga', 'olga@example.com', '{{owner}}', now(), now());
        insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds, last_used_at,
                expires_at, created_at, updated_at)
            values ('Owner00000', sha256('abcdefghijklmnopqrstuv'), '{OLGA}', 'password', 86400,
                    '{NOW}', timestamptz '{NOW}' + interval '9 years', '{NOW}', '{NOW}');
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            values ('{IT}', '{IT}', '{OLGA}', 'template_version_import', 'exec', 2, '{IT}', '{{}}',
                    now(), now(), now(), now());
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                created_at, updated_at)
            values ('{IT}', '{IT}', 'v1', '{IT}', 'exec', '{OLGA}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                created_at, updated_at)
            values ('{IT}', '{IT}', 'dev', 'exec', '{IT}', '{OLGA}', now(), now());
        update template_versions set template_id = '{IT}';
        insert into template_version_presets (id, template_version_id, name, desired_instances,
                created_at)
            values ('{IT}', '{IT}', 'small', 1, now());
        insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
            values ('{IT}', '{IT}', '{IT}', '{IT}');
        insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                updated_at, last_used_at, pool_preset_id, pool_state)
            values ('{IT}', '{prebuilds}', '{IT}', '{IT}', 'prebuild-x', now(), now(), now(), '{IT}',
                    'ready');
        {first}
        update provisioner_jobs set {SUCCEEDED};
        insert into workspace_resources (id, job_id, transition, type, name, created_at)
            values ('{IT}', '{IT}', 'start', 'local', 'dev', now());
        insert into workspace_agents (id, resource_id, workspace_id, build_id, name, auth_token,
                created_at, updated_at)
            values ('{AGENT}', '{IT}', '{IT}', '{build}', 'main', '{AGENT}', '{NOW}', '{NOW}');
        commit;"
    )
}
