//! Two replicas of the API and a broker as libraries, each in a runtime of its own that can be
//! killed, over a Postgres and a NATS that can be stopped.

use std::fmt::Write as _;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use berth_devstack::Nats;
use berth_service_kit::{Context, HasProcess, Period};
use berth_testkit::{
    App, HeldSession, SOON, TestDatabase, User, servers, subject_space, wait_until,
};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Everything that is the only one of its kind: organization, owner, version, template, daemon's key.
pub(crate) const IT: &str = "00000000-0000-0000-0000-0000000000a1";
/// Workspaces of a script; each has a pool of its own, so that it is known which one is claimed.
pub(crate) const SLOTS: usize = 3;
const SESSION: &str = "Owner00000-abcdefghijklmnopqrstuv";

/// The preset of a slot.
pub(crate) fn preset(slot: usize) -> String {
    format!("00000000-0000-0000-0000-0000000000b{slot}")
}

/// A thread with a runtime. Dropped, it ends as a killed process does: between any two instructions.
pub(crate) struct Killable {
    kill: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Killable {
    pub(crate) fn spawn<F: Future>(body: impl FnOnce() -> F + Send + 'static) -> Self {
        let kill = CancellationToken::new();
        let killed = kill.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            runtime.block_on(async {
                tokio::select! { _ = body() => {}, () = killed.cancelled() => {} }
            });
            runtime.shutdown_background();
        });
        Self { kill, thread: Some(thread) }
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        self.kill.cancel();
        if let Some(thread) = self.thread.take() {
            // It may have panicked, which was printed.
            let _ = thread.join();
        }
    }
}

fn service<C, F>(
    name: &'static str,
    config: C,
    announce: PathBuf,
    run: impl FnOnce(Context<C>) -> F + Send + 'static,
) -> Killable
where
    C: HasProcess + Send + 'static,
    F: Future<Output = anyhow::Result<()>>,
{
    // What the last one announced is no longer so.
    let _ = std::fs::remove_file(&announce);
    Killable::spawn(move || {
        run(Context::embedded(name, config, CancellationToken::new(), Some(announce)))
    })
}

async fn announced(file: &std::path::Path, key: &str) -> String {
    wait_until(&format!("{key} is announced"), SOON, async || {
        let facts: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        Some(facts[key].as_str()?.to_owned())
    })
    .await
}

pub(crate) struct World {
    /// One session for all looks: there are many.
    session: Mutex<HeldSession>,
    pub(crate) owner: User,
    /// Where each replica listens, also while it is away.
    pub(crate) ports: [u16; 2],
    pub(crate) broker: String,
    replicas: [Option<Killable>; 2],
    api: berth_api::Config,
    nats: Nats,
    has_nats: bool,
    _broker: Killable,
    dir: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let servers = servers().await;
        let (database, dir) = (TestDatabase::create().await, servers.folder());
        database.rows(&rows()).await;
        let nats = berth_testkit::own_nats(&dir.path().join("nats")).await;
        let prefix = subject_space();
        let mut api = berth_api::Config::default();
        api.database.url = database.url.as_str().into();
        api.database.max_connections = 6;
        api.nats.url = nats.url();
        api.nats.prefix.clone_from(&prefix);
        api.encryption.off = true;
        api.rate_limit.requests = 0;
        // Often, so that a script in which notices are lost ends soon.
        api.streams.look = Period::from_millis(500);
        let mut broker = berth_provisioner_broker::Config::default();
        broker.database.url = database.url.as_str().into();
        broker.database.max_connections = 6;
        broker.nats.url = nats.url();
        broker.nats.prefix = prefix;
        broker.encryption.off = true;
        broker.limits.poll = Period::from_millis(100);
        let announce = dir.path().join("broker.json");
        let running =
            service("provisioner-broker", broker, announce.clone(), berth_provisioner_broker::run);
        let broker = announced(&announce, "grpc").await;
        let port = || berth_devstack::free_port().unwrap();
        let mut world = Self {
            session: Mutex::new(database.hold("").await),
            owner: User::with_token(SESSION),
            ports: [port(), port()],
            broker,
            replicas: [None, None],
            api,
            nats,
            has_nats: true,
            _broker: running,
            dir,
        };
        for replica in 0..2 {
            world.start_replica(replica).await;
        }
        world
    }

    pub(crate) fn is_up(&self, replica: usize) -> bool {
        self.replicas[replica].is_some()
    }

    /// `false`: it does not run.
    pub(crate) fn kill_replica(&mut self, replica: usize) -> bool {
        self.replicas[replica].take().is_some()
    }

    /// Starts a replica and waits until it serves. `false`: it runs.
    pub(crate) async fn start_replica(&mut self, replica: usize) -> bool {
        if self.is_up(replica) {
            return false;
        }
        let mut config = self.api.clone();
        config.http.listen = ([127, 0, 0, 1], self.ports[replica]).into();
        let announce = self.dir.path().join(format!("api-{replica}.json"));
        self.replicas[replica] = Some(service("api", config, announce.clone(), berth_api::run));
        announced(&announce, "http").await;
        true
    }

    /// `false`: it does not run.
    pub(crate) async fn stop_nats(&mut self) -> bool {
        let had = std::mem::replace(&mut self.has_nats, false);
        if had {
            self.nats.kill9().await.unwrap();
        }
        had
    }

    /// `false`: it runs.
    pub(crate) async fn start_nats(&mut self) -> bool {
        let had = std::mem::replace(&mut self.has_nats, true);
        if !had {
            self.nats.restart().await.unwrap();
        }
        !had
    }

    /// The rows of a query.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        self.session.lock().await.rows(sql).await
    }

    /// The only value of a query that gives one.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let mut rows = self.rows(sql).await;
        assert!(rows.len() == 1 && rows[0].len() == 1, "not one value but {rows:?}: {sql}");
        rows.remove(0).remove(0)
    }

    /// The only value of a query that counts.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.value(sql).await.parse().unwrap()
    }

    /// A replica that runs; one is started if none does.
    pub(crate) async fn app(&mut self) -> App {
        if !self.is_up(0) && !self.is_up(1) {
            self.start_replica(0).await;
        }
        let replica = usize::from(!self.is_up(0));
        App::new(&format!("http://127.0.0.1:{}", self.ports[replica]))
    }

    /// A folder that goes with the world.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

fn rows() -> String {
    let mut sql = format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{IT}', 'acme', now(), now());
        insert into users (id, username, email, roles, created_at, updated_at)
            values ('{IT}', 'olga', 'olga@example.com', '{{owner}}', now(), now());
        insert into organization_members (organization_id, user_id, created_at, updated_at)
            values ('{IT}', '{IT}', now(), now());
        insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds, last_used_at,
                expires_at, created_at, updated_at)
            values ('Owner00000', sha256('abcdefghijklmnopqrstuv'), '{IT}', 'token', 86400, now(),
                    now() + interval '9 years', now(), now());
        insert into provisioner_keys (id, organization_id, name, secret_hash, created_at)
            values ('{IT}', '{IT}', 'k', sha256('hush'), now());
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            values ('{IT}', '{IT}', '{IT}', 'template_version_import', 'exec', 2, '{IT}', '{{}}',
                    now(), now(), now(), now());
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                created_at, updated_at)
            values ('{IT}', '{IT}', 'v1', '{IT}', 'exec', '{IT}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                created_at, updated_at)
            values ('{IT}', '{IT}', 'dev', 'exec', '{IT}', '{IT}', now(), now());
        update template_versions set template_id = '{IT}';"
    );
    for slot in 0..SLOTS {
        let preset = preset(slot);
        write!(
            sql,
            "
            insert into template_version_presets (id, template_version_id, name, desired_instances,
                    created_at)
                values ('{preset}', '{IT}', 'slot-{slot}', 1, now());
            insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
                values ('{preset}', '{IT}', '{IT}', '{IT}');"
        )
        .unwrap();
    }
    sql + "commit;"
}
