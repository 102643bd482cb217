//! What a run stands on: a private Postgres with the durability of production, a nats-server, and
//! the binary.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use berth_devstack::{Nats, NatsOptions, Output, Postgres, PostgresOptions, Toolbox, Tools};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::proxy::Proxy;
use crate::psql::{Psql, program};
use crate::service::{Launch, PROVISIONER, Service};

/// What differs from Postgres' own settings, beside what every private Postgres has. Durability is
/// as it comes: fsync and synchronous commit on. Commit timestamps let latencies be read off the
/// rows themselves, by Postgres' one clock.
const SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "1GB"), ("max_wal_size", "4GB"), ("track_commit_timestamp", "on")];
/// Seals what services store.
const ENCRYPTION_KEY: &str = "bench:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// What the report tells of Postgres.
const TOLD: [&str; 7] = [
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
    "track_commit_timestamp",
];

/// Both servers and a folder. They end with this value.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Smaller sizes.
    pub(crate) quick: bool,
    tools: Tools,
    postgres: Postgres,
    nats: Nats,
    berth: PathBuf,
    /// Last, so that it is removed last.
    dir: TempDir,
}

/// A database with the current schema and what leads to it.
#[derive(Debug)]
pub(crate) struct Estate {
    /// A session past the proxy, for seeding and looking.
    pub(crate) sql: Psql,
    /// Its address past the proxy.
    pub(crate) url: String,
    /// Its address through the proxy that counts.
    pub(crate) counted_url: String,
    /// Counts what goes through.
    pub(crate) proxy: Proxy,
    name: String,
}

impl Estate {
    /// The database's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Stage {
    /// Starts the servers.
    pub(crate) async fn open(berth: PathBuf, quick: bool) -> anyhow::Result<Self> {
        let tools = Toolbox::locate(|line| eprintln!("bench: {line}")).await?;
        // Postgres may have to run as another user, who must get in.
        let dir = tempfile::Builder::new()
            .prefix("berth-bench-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()?;
        let mut options = PostgresOptions::new(dir.path().join("postgres"));
        options.settings =
            SETTINGS.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        options.output = Output::File(dir.path().join("postgres.log"));
        let mut nats = NatsOptions::new(dir.path().join("nats"));
        nats.output = Output::File(dir.path().join("nats.log"));
        let (postgres, nats) =
            tokio::try_join!(Postgres::start(&tools, options), Nats::start(&tools, nats))?;
        Ok(Self { quick, tools, postgres, nats, berth, dir })
    }

    /// Stops the servers, so that nobody writes into the folder that goes with this value.
    pub(crate) async fn close(mut self) -> anyhow::Result<()> {
        let (postgres, nats) = tokio::join!(self.postgres.stop(), self.nats.stop());
        postgres.and(nats)?;
        Ok(())
    }

    /// A new database with the current schema.
    pub(crate) async fn estate(&self, name: &str) -> anyhow::Result<Estate> {
        self.sql("postgres")?.run(&format!("create database {name}")).await?;
        let url = self.postgres.url(name);
        let migrated = Command::new(&self.berth)
            .arg("migrate")
            .env("BERTH_DATABASE__URL", &url)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&migrated.stderr);
        anyhow::ensure!(migrated.status.success(), "berth migrate: {said}");
        let proxy = Proxy::start(self.postgres.port()).await?;
        let counted_url = proxy.url(&url)?;
        Ok(Estate { sql: self.sql(name)?, url, counted_url, proxy, name: name.to_owned() })
    }

    /// Removes a database.
    pub(crate) async fn remove(&self, estate: Estate) -> anyhow::Result<()> {
        let Estate { name, sql, .. } = estate;
        drop(sql);
        self.sql("postgres")?.run(&format!("drop database {name} with (force)")).await
    }

    /// A session on a database.
    pub(crate) fn sql(&self, database: &str) -> anyhow::Result<Psql> {
        Psql::open(&self.tools.postgres, &self.postgres.url(database))
    }

    /// A program of this Postgres.
    pub(crate) fn program(&self, name: &str) -> Command {
        program(&self.tools.postgres, name)
    }

    /// The address of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The server that carries hints.
    pub(crate) fn nats(&mut self) -> &mut Nats {
        &mut self.nats
    }

    /// Starts a service on a database, with `url` as its way there.
    pub(crate) async fn start(
        &self,
        service: (&'static str, usize),
        estate: &Estate,
        url: &str,
        more: &[(&str, &str)],
    ) -> anyhow::Result<Service> {
        let nats = self.nats.url();
        let ours = [
            ("BERTH_DATABASE__URL", url),
            ("BERTH_NATS__URL", &nats),
            ("BERTH_NATS__PREFIX", &estate.name),
            ("BERTH_ENCRYPTION__KEYS", ENCRYPTION_KEY),
        ];
        let variables = ours.iter().chain(more);
        let variables = variables.map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let (service, replica) = service;
        let (berth, dir) = (self.berth.as_path(), self.dir.path());
        Service::start(Launch { berth, dir, service, replica, variables }).await
    }

    /// Starts a provisioner daemon.
    pub(crate) async fn start_daemon(
        &self,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Service> {
        let variables = variables.iter().map(|(key, value)| ((*key).into(), value.clone()));
        let (berth, dir, variables) = (self.berth(), self.dir.path(), variables.collect());
        Service::start(Launch { berth, dir, service: PROVISIONER, replica: 0, variables }).await
    }

    /// The binary that is measured.
    pub(crate) fn berth(&self) -> &Path {
        &self.berth
    }

    /// Where this was measured.
    pub(crate) async fn machine(&self) -> anyhow::Result<Value> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let mut settings = serde_json::Map::new();
        let mut sql = self.sql("postgres")?;
        for name in TOLD {
            settings.insert(name.to_owned(), sql.text(&format!("show {name}")).await?.into());
        }
        let nats = Command::new(&self.tools.nats_server).arg("--version").output().await?;
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock past 1970")?;
        Ok(json!({
            "unix_seconds": clock.as_secs(),
            "cores": std::thread::available_parallelism()?.get(),
            "cpu": after(&read("/proc/cpuinfo"), "model name"),
            "memory": after(&read("/proc/meminfo"), "MemTotal"),
            "kernel": read("/proc/sys/kernel/osrelease").trim(),
            "load": read("/proc/loadavg").trim(),
            "folder": self.dir.path().display().to_string(),
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "postgres": settings,
            "nats": String::from_utf8_lossy(&nats.stdout).trim(),
        }))
    }
}

/// Analyzes everything and lets dead rows go, so that plans are those of a settled database.
pub(crate) async fn settle_statistics(sql: &mut Psql) -> anyhow::Result<()> {
    sql.run("vacuum (analyze)").await?;
    sql.run("checkpoint").await
}
