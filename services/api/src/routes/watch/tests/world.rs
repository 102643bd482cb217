//! Two replicas over one database and one NATS, and people with sessions.

use std::fmt::Write as _;
use std::net::SocketAddr;

use berth_backbone::{Backbone, Clock};
use berth_bus::envelope::{Message, wrap};
use berth_bus::event::{BuildChanged, Event};
use berth_bus::subjects::Stream;
use berth_bus::{Bus, BusConfig};
use berth_domain::id::{BuildId, EventId, OrganizationId, TemplateId, UserId, WorkspaceId};
use berth_domain::state::{BuildStage, JobStatus, Transition};
use berth_testkit::{SOON, TestDatabase, servers, subject_space, wait_until};
use prometheus::Registry;
use tokio::net::TcpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::reader::{Ask, Reader};
use crate::app::App;
use crate::config::Config;
use crate::live::{Live, follow};

const NOW: &str = "2026-11-21T12:00:00Z";
pub(super) const ACME: Uuid = Uuid::from_u128(1);
pub(super) const ELSEWHERE: Uuid = Uuid::from_u128(2);
const TEMPLATE: Uuid = Uuid::from_u128(3);

/// Somebody who watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Owner of the deployment.
    Owner,
    /// Administers the templates of acme.
    Ada,
    /// Only a member of acme.
    Bob,
    /// Only a member of another organization.
    Eve,
}

impl Who {
    pub(super) const ALL: [Self; 4] = [Self::Owner, Self::Ada, Self::Bob, Self::Eve];

    pub(super) fn id(self) -> Uuid {
        Uuid::from_u128(0x100 + self as u128)
    }

    /// One of the sessions.
    pub(super) fn key(self, n: usize) -> String {
        format!("{:0<5}{n:05}", format!("{self:?}"))
    }

    /// What the rules of access say of a workspace.
    pub(super) fn may_read(self, organization: Uuid, owner: Uuid) -> bool {
        match self {
            Self::Owner => true,
            Self::Ada => organization == ACME,
            Self::Bob | Self::Eve => owner == self.id(),
        }
    }
}

/// A replica of the API.
pub(super) struct Replica {
    pub(super) app: App,
    pub(super) address: SocketAddr,
    _stop: DropGuard,
}

impl Replica {
    async fn start(database: &TestDatabase, bus: &BusConfig, config: Config) -> Self {
        // Few: to open one takes a debug build long, and it would be opened under load.
        let db = berth_db::connect(&database.url, 2, "test").unwrap();
        let bus = Bus::connect(bus, "test").await.unwrap();
        let clock = Clock::manual(NOW.parse().unwrap());
        let (backbone, _publisher) = Backbone::over("api", (db, bus.clone()), clock);
        let stop = CancellationToken::new();
        let live = Live::silent(stop.clone());
        tokio::spawn(follow::builds(live.clone(), bus.clone()));
        tokio::spawn(follow::notices(live.clone(), bus, Stream::Workspaces));
        tokio::spawn(live.clone().look_after_sessions(backbone.clone()));
        let app = App::over(config, backbone, live, &Registry::new()).unwrap();
        let router = crate::routes::router(app.clone());
        let socket = TcpSocket::new_v4().unwrap();
        // The kernel must not hold what a slow reader leaves: accepted sockets inherit it.
        socket.set_send_buffer_size(16 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let router = router.into_make_service_with_connect_info::<SocketAddr>();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(stopped).await.unwrap();
        });
        Self { app, address, _stop: stop.drop_guard() }
    }

    pub(super) async fn open(&self, ask: &Ask) -> Reader {
        Reader::open(self.address, ask).await
    }
}

/// An update to be.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) organization: Uuid,
    pub(super) owner: Uuid,
    pub(super) workspace: u128,
    pub(super) number: i32,
    pub(super) name: String,
}

impl Step {
    pub(super) fn of(who: Who, organization: Uuid, number: i32) -> Self {
        let workspace = who as u128;
        Self { organization, owner: who.id(), workspace, number, name: format!("of-{who:?}") }
    }

    pub(super) fn workspace_id(&self) -> WorkspaceId {
        WorkspaceId(Uuid::from_u128(0x1000 + self.workspace))
    }

    fn event(&self) -> Event {
        Event::Build(BuildChanged {
            organization_id: OrganizationId(self.organization),
            workspace_id: self.workspace_id(),
            workspace_name: self.name.clone(),
            owner_id: UserId(self.owner),
            template_id: TemplateId(TEMPLATE),
            build_id: BuildId(Uuid::from_u128(7)),
            build_number: self.number,
            transition: Transition::Start,
            stage: BuildStage::None,
            job_status: JobStatus::Succeeded,
            revision: self.number.into(),
        })
    }
}

/// Two replicas, a database and a stream.
pub(super) struct World {
    pub(super) database: TestDatabase,
    pub(super) replicas: [Replica; 2],
    pub(super) bus: Bus,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(super) async fn with(mut config: Config) -> Self {
        config.encryption.off = true;
        config.rate_limit.requests = 0;
        let database = TestDatabase::create().await;
        database.rows(&people()).await;
        let url = servers().await.nats_url.clone();
        let settings = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
        let bus = Bus::connect(&settings, "test").await.unwrap();
        wait_until("NATS is there", SOON, async || bus.ensure_streams().await.ok()).await;
        let replicas = [
            Replica::start(&database, &settings, config.clone()).await,
            Replica::start(&database, &settings, config).await,
        ];
        for replica in &replicas {
            replica.app.live.hub.reached().await;
        }
        Self { database, replicas, bus }
    }

    /// Publishes updates, in order. `Nats-Msg-Id`s are of `run` and the place in `steps`.
    pub(super) async fn publish(&self, run: u128, steps: &[Step]) {
        for (batch, steps) in steps.chunks(200).enumerate() {
            let message = |(n, step): (usize, &Step)| {
                let n = (batch * 200 + n) as u128;
                let id = EventId(Uuid::from_u128(run << 32 | n));
                wrap(self.bus.subjects(), "test", id, NOW.parse().unwrap(), &step.event())
            };
            let messages: Vec<_> = steps.iter().enumerate().map(message).collect();
            let stored = self.bus.publish_stored(&messages).await;
            assert!(stored.iter().all(|it| *it), "all updates are stored");
        }
    }

    /// Says something to NATS itself.
    pub(super) async fn command(&self, what: &str) {
        let stream = self.bus.subjects().stream(Stream::Builds);
        let subject = format!("$JS.API.STREAM.{what}.{stream}");
        let message = Message { subject, headers: [].into(), payload: Vec::new() };
        self.bus.publish(&message).await.unwrap();
    }
}

fn people() -> String {
    let mut sql = format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{ACME}', 'acme', now(), now()), ('{ELSEWHERE}', 'elsewhere', now(), now());"
    );
    for who in Who::ALL {
        let id = who.id();
        let name = format!("{who:?}").to_lowercase();
        let roles = if who == Who::Owner { "{owner}" } else { "{}" };
        let own = if who == Who::Ada { "{organization-template-admin}" } else { "{}" };
        let organization = if who == Who::Eve { ELSEWHERE } else { ACME };
        let prefix = format!("{:0<5}", format!("{who:?}"));
        write!(
            sql,
            "
            insert into users (id, username, email, roles, created_at, updated_at)
                values ('{id}', '{name}', '{name}@example.com', '{roles}', now(), now());
            insert into organization_members (organization_id, user_id, roles, created_at, updated_at)
                values ('{organization}', '{id}', '{own}', now(), now());
            insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds,
                    last_used_at, expires_at, created_at, updated_at)
                select '{prefix}' || lpad(n::text, 5, '0'), sha256('abcdefghijklmnopqrstuv'),
                       '{id}', 'password', 86400, '{NOW}',
                       timestamptz '{NOW}' + interval '9 years', '{NOW}', '{NOW}'
                from generate_series(0, 99) n;"
        )
        .expect("a string takes everything");
    }
    sql
}

/// A workspace of bob's with one build, and the notice of its latest change.
pub(super) fn workspace_of_bob(id: Uuid) -> String {
    let bob = Who::Bob.id();
    format!(
        "
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            values ('{TEMPLATE}', '{ACME}', '{bob}', 'template_version_import', 'exec', 2,
                    '{TEMPLATE}', '{{}}', now(), now(), now(), now()),
                   ('{id}', '{ACME}', '{bob}', 'workspace_build', 'exec', 1, '{id}', '{{}}', now(),
                    now(), now(), now());
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                created_at, updated_at)
            values ('{TEMPLATE}', '{ACME}', 'v1', '{TEMPLATE}', 'exec', '{bob}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                created_at, updated_at)
            values ('{TEMPLATE}', '{ACME}', 'dev', 'exec', '{TEMPLATE}', '{bob}', now(), now());
        update template_versions set template_id = '{TEMPLATE}';
        insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                updated_at, last_used_at, latest_build_id, latest_build_number)
            values ('{id}', '{bob}', '{ACME}', '{TEMPLATE}', 'mine', now(), now(), now(), '{id}', 1);
        insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                transition, initiator_id, stage, job_id, created_at, updated_at)
            values ('{id}', '{id}', '{TEMPLATE}', 1, 'start', '{bob}', 'none', '{id}', now(), now());
        commit;"
    )
}
