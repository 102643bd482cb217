//! One Postgres and one nats-server for all tests of a process.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use berth_devstack::{
    LineSink, Nats, NatsOptions, Output, Postgres, PostgresOptions, Source, Toolbox, Tools,
};
use tempfile::TempDir;

use crate::database;
use crate::scratch::Slot;

/// The servers of this test process. They run until it ends, whatever it dies of.
#[derive(Debug)]
pub struct Servers {
    /// Where the programs are, for tests that need a server of their own.
    pub tools: Tools,
    /// Address of the shared nats-server; never stop it.
    pub nats_url: String,
    /// Database addresses without the database's name, which is to be appended.
    postgres_url: String,
    scratch: PathBuf,
}

impl Servers {
    /// Address of a database of the shared Postgres.
    #[must_use]
    pub fn database_url(&self, name: &str) -> String {
        format!("{}{name}", self.postgres_url)
    }

    /// A folder for one test, which every user may enter. It is removed with the value or, after a
    /// crash, when the next test process starts.
    #[must_use]
    pub fn folder(&self) -> TempDir {
        let made = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(&self.scratch);
        made.unwrap_or_else(|error| panic!("cannot use {}: {error}", self.scratch.display()))
    }
}

/// Finds or fetches Postgres and nats-server and starts them, once a process.
pub async fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    if let Some(servers) = SERVERS.get() {
        return servers;
    }
    let wait = tokio::task::spawn_blocking(|| SERVERS.get_or_init(launch));
    wait.await.expect("the servers start")
}

/// The servers live on a thread with a runtime of its own: a test's runtime ends with the test.
fn launch() -> Servers {
    let (told, answer) = std::sync::mpsc::channel();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(async move {
            let slot = Slot::take();
            let (servers, _postgres, _nats) = start(&slot.dir).await;
            told.send(servers).expect("the first caller waits for the servers");
            // Until the process ends: then the kernel closes the servers' lifelines.
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("servers".into()).spawn(body).expect("a thread can be made");
    answer.recv().expect("Postgres and nats-server start; see above for why they did not")
}

async fn start(dir: &Path) -> (Servers, Postgres, Nats) {
    let tools = Toolbox::locate(|line| eprintln!("testkit: {line}"))
        .await
        .unwrap_or_else(|error| panic!("no Postgres or nats-server: {}", chain(&error)));
    let mut options = PostgresOptions::new(dir.join("postgres"));
    // The data dies with the tests; a power cut does not matter.
    let fast = [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")];
    let small = [("shared_buffers", "64MB"), ("max_wal_size", "256MB"), ("max_connections", "400")];
    options.settings =
        fast.iter().chain(&small).map(|(key, value)| ((*key).into(), (*value).into())).collect();
    options.output = Output::File(dir.join("postgres.log"));
    // The log of earlier processes.
    let _ = std::fs::remove_file(dir.join("postgres.log"));
    let store = dir.join(format!("nats-{}", std::process::id()));
    remove_other_stores(dir, &store);
    let nats = nats_at(&tools, &store);
    let (postgres, nats) = tokio::join!(Postgres::start(&tools, options), nats);
    let postgres = postgres.unwrap_or_else(|error| panic!("Postgres: {}", chain(&error)));
    let scratch = dir.join("scratch");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch).expect("our own folder");
    let servers = Servers {
        scratch,
        nats_url: nats.url(),
        postgres_url: postgres.url("").trim_end_matches('/').to_owned() + "/",
        tools,
    };
    database::prepare_template(&servers).await;
    (servers, postgres, nats)
}

/// A nats-server of one's own with its streams in `store`, for tests that stop it.
pub async fn own_nats(store: &Path) -> Nats {
    nats_at(&servers().await.tools, store).await
}

pub(crate) async fn nats_at(tools: &Tools, store: &Path) -> Nats {
    let mut options = NatsOptions::new(store);
    options.output = Output::File(store.with_extension("log"));
    let started = Nats::start(tools, options).await;
    started.unwrap_or_else(|error| panic!("nats-server: {}", chain(&error)))
}

/// Streams of test processes that are gone.
fn remove_other_stores(dir: &Path, ours: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let stale = name.to_string_lossy().starts_with("nats-") && entry.path() != ours;
        // A server that is just ending may hold on to its files; the next process gets them.
        let path = entry.path();
        let _ =
            stale.then(|| std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path)));
    }
}

/// A first subject token that no other test uses. It is also what its streams' names begin with.
#[must_use]
pub fn subject_space() -> String {
    unique("t")
}

/// A name that no other test of this or another live process uses: letters, digits, `_`.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{}_{number}", std::process::id())
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Shows the lines of a process that a test started as they come, when `BERTH_TEST_LOG` is set.
pub(crate) fn echo(name: &str) -> Option<LineSink> {
    std::env::var_os("BERTH_TEST_LOG")?;
    let name = name.to_owned();
    Some(std::sync::Arc::new(move |_: Source, line: &str| eprintln!("{name:<22}| {line}")))
}

/// Variables by name, for one process.
pub(crate) type Variables = BTreeMap<String, String>;
