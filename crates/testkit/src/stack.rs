//! Berth as in production: each service and daemon a process of its own.

mod process;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_devstack::Nats;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::proc::processes_of;
use crate::servers::{Variables, nats_at, servers, subject_space};
use crate::wait::{SOON, wait_until};
use crate::{App, TestDatabase, User};
use process::{Process, Program};

/// Stacks at once: each is some ten processes.
static TURNS: Semaphore = Semaphore::const_new(2);

/// Seals what the stack stores. All zeros: nobody else may use it.
const ENCRYPTION_KEY: &str = "test:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// How long processes may take to be gone when their stack ends.
const GONE: Duration = Duration::from_secs(15);

/// What a stack is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// REST, server-sent events, WebSockets.
    Api,
    /// Fills the pools.
    Reconciler,
    /// Hands out jobs.
    Broker,
    /// Keeps the prebuilds user in place.
    Membership,
    /// Turns events into messages.
    Notification,
    /// Autostart, autostop, purges.
    Lifecycle,
    /// A daemon that runs jobs.
    Provisioner,
}

impl Service {
    const ALL: [Self; 7] = [
        Self::Api,
        Self::Reconciler,
        Self::Broker,
        Self::Membership,
        Self::Notification,
        Self::Lifecycle,
        Self::Provisioner,
    ];

    /// The name on the command line.
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Reconciler => "reconciler",
            Self::Broker => "provisioner-broker",
            Self::Membership => "membership-reconciler",
            Self::Notification => "notification",
            Self::Lifecycle => "lifecycle",
            Self::Provisioner => "provisioner",
        }
    }
}

/// Says what a stack shall be. One of each service by default.
#[derive(Debug, Clone)]
pub struct Builder {
    berth: PathBuf,
    replicas: Vec<(Service, usize)>,
    variables: Vec<(Service, String, String)>,
    own_nats: bool,
}

impl Builder {
    /// How many processes of a service.
    #[must_use]
    pub fn replicas(mut self, service: Service, count: usize) -> Self {
        self.replicas.push((service, count));
        self
    }

    /// A variable of its environment (`BERTH_SECTION__KEY`).
    #[must_use]
    pub fn set(mut self, service: Service, name: &str, value: &str) -> Self {
        self.variables.push((service, name.to_owned(), value.to_owned()));
        self
    }

    /// A nats-server that this stack alone uses, so that the test may stop it.
    #[must_use]
    pub fn own_nats(mut self) -> Self {
        self.own_nats = true;
        self
    }

    /// Starts everything, makes the first user, and returns when all are ready.
    pub async fn start(self) -> TestStack {
        let turn = TURNS.acquire().await.expect("the semaphore is never closed");
        let servers = servers().await;
        let dir = servers.folder();
        let nats = if self.own_nats {
            Some(nats_at(&servers.tools, &dir.path().join("nats")).await)
        } else {
            None
        };
        let places = Places {
            database: TestDatabase::create().await,
            nats_url: nats.as_ref().map_or_else(|| servers.nats_url.clone(), Nats::url),
            prefix: subject_space(),
            api_ports: self.ports(Service::Api),
            broker_ports: self.ports(Service::Broker),
        };
        let app = App::new(&places.api_url(0));
        let mut stack = TestStack {
            nobody: User::nobody(),
            owner: User::nobody(),
            app,
            places,
            nats,
            processes: Vec::new(),
            builder: self,
            _turn: turn,
            dir,
        };
        stack.start_all().await;
        stack
    }

    fn count(&self, service: Service) -> usize {
        let last = self.replicas.iter().rev().find(|(it, _)| *it == service);
        last.map_or(1, |(_, count)| *count)
    }

    fn ports(&self, service: Service) -> Vec<u16> {
        let port = |_| berth_devstack::free_port().expect("a free port");
        (0..self.count(service)).map(port).collect()
    }
}

/// Addresses of everything.
#[derive(Debug)]
struct Places {
    database: TestDatabase,
    nats_url: String,
    prefix: String,
    api_ports: Vec<u16>,
    broker_ports: Vec<u16>,
}

impl Places {
    fn api_url(&self, replica: usize) -> String {
        format!("http://127.0.0.1:{}", self.api_ports[replica])
    }
}

/// Running services and daemons with a database, a subject space and a folder of their own. They
/// end with this value; when the test failed it prints the last lines of each.
pub struct TestStack {
    /// Nobody in particular: no token.
    pub nobody: User,
    /// The first user, who owns the deployment.
    pub owner: User,
    /// A client of the first API replica.
    pub app: App,
    places: Places,
    nats: Option<Nats>,
    processes: Vec<Process>,
    builder: Builder,
    _turn: SemaphorePermit<'static>,
    /// Last, so that it is removed last.
    dir: TempDir,
}

impl TestStack {
    /// A stack of one of each service, run by the binary `berth`
    /// (`env!("CARGO_BIN_EXE_berth")`).
    #[must_use]
    pub fn builder(berth: impl Into<PathBuf>) -> Builder {
        Builder {
            berth: berth.into(),
            replicas: Vec::new(),
            variables: Vec::new(),
            own_nats: false,
        }
    }

    /// The stack's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where local workspaces have their folders, named by workspace id.
    #[must_use]
    pub fn workspaces(&self) -> PathBuf {
        self.dir.path().join("workspaces")
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &TestDatabase {
        &self.places.database
    }

    /// A client of one API replica.
    #[must_use]
    pub fn via(&self, replica: usize) -> App {
        App::new(&self.places.api_url(replica))
    }

    /// Makes a member of the owner's organization.
    pub async fn user(&self, name: &str) -> User {
        self.app.user(&self.owner, name).await
    }

    /// Pushes an exec template and waits for its import.
    pub async fn given_template(&self, name: &str, archive: Vec<u8>) -> serde_json::Value {
        self.app.given_template(&self.owner, name, archive).await
    }

    /// Waits until as many prebuilds of a template as `count` can be claimed.
    pub async fn pool_has(&self, template: &serde_json::Value, count: i64) {
        let template = template["id"].as_str().expect("an id");
        wait_until(&format!("{count} claimable prebuilds"), SOON, async || {
            let pools = self.app.get(&self.owner, "/prebuilds/pools").await.expect(200);
            let pools = pools.as_array().cloned().unwrap_or_default();
            let ours = pools.iter().filter(|it| it["template_id"] == template);
            let claimable: i64 = ours.filter_map(|it| it["claimable"].as_i64()).sum();
            (claimable == count).then_some(())
        })
        .await;
    }

    /// Waits until everything that was to be told has been told, and nothing was refused.
    pub async fn settled(&self) {
        wait_until("the outbox is empty", SOON, async || {
            let left = self.database().count("select count(*) from outbox").await;
            (left == 0).then_some(())
        })
        .await;
        let letters = "select subject, reason from dead_letters";
        let letters = self.database().rows(letters).await;
        assert!(letters.is_empty(), "events nobody could handle: {letters:?}");
    }

    /// Kills a process as a crash would and returns when it is gone.
    pub async fn kill9(&mut self, service: Service, replica: usize) {
        self.process(service, replica).kill9().await;
    }

    /// Starts a killed process again and returns when it is ready.
    pub async fn restart(&mut self, service: Service, replica: usize) {
        let process = self.process(service, replica);
        process.start();
        process.ready().await;
    }

    /// The sum of a process' metrics whose lines begin with `name` and contain every one of
    /// `labels`.
    pub async fn metric(
        &self,
        service: Service,
        replica: usize,
        name: &str,
        labels: &[&str],
    ) -> f64 {
        let ours = |it: &&Process| it.service == service && it.replica == replica;
        let process = self.processes.iter().find(ours).expect("a process of this stack");
        let metrics = process.metrics().await;
        let lines = metrics.lines().filter(|line| {
            line.starts_with(name) && labels.iter().all(|label| line.contains(label))
        });
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Stops the stack's own nats-server.
    pub async fn stop_nats(&mut self) {
        let nats = self.nats.as_mut().expect("a stack built with own_nats");
        nats.stop().await.expect("nats-server stops");
    }

    /// Starts the stack's own nats-server again, on the same streams and port.
    pub async fn start_nats(&mut self) {
        let nats = self.nats.as_mut().expect("a stack built with own_nats");
        nats.restart().await.expect("nats-server starts");
    }

    fn process(&mut self, service: Service, replica: usize) -> &mut Process {
        let found =
            self.processes.iter_mut().find(|it| it.service == service && it.replica == replica);
        found.unwrap_or_else(|| panic!("no {} {replica}", service.name()))
    }

    /// The services, the first user, the key, the daemons.
    async fn start_all(&mut self) {
        for service in Service::ALL {
            if service == Service::Provisioner {
                self.ready().await;
                self.owner = self.app.first_user().await;
            }
            for replica in 0..self.builder.count(service) {
                let variables = self.variables(service, replica).await;
                let program =
                    Program { berth: &self.builder.berth, dir: self.dir.path(), variables };
                self.processes.push(Process::launch(service, replica, program));
            }
        }
        self.ready().await;
    }

    async fn ready(&mut self) {
        for process in &mut self.processes {
            process.ready().await;
        }
    }

    async fn variables(&self, service: Service, replica: usize) -> Variables {
        let mut all = Variables::new();
        let mut set = |name: &str, value: &str| all.insert(name.to_owned(), value.to_owned());
        if service == Service::Provisioner {
            // Login shells in workspaces are not to run what this machine's user has in a profile.
            set("HOME", &self.dir.path().display().to_string());
            self.daemon_variables(replica, &self.provisioner_key(replica).await, &mut set);
        } else {
            set("BERTH_DATABASE__URL", &self.places.database.url);
            set("BERTH_NATS__URL", &self.places.nats_url);
            set("BERTH_NATS__PREFIX", &self.places.prefix);
        }
        match service {
            Service::Api => {
                let port = self.places.api_ports[replica];
                set("BERTH_ENCRYPTION__KEYS", ENCRYPTION_KEY);
                set("BERTH_HTTP__LISTEN", &format!("127.0.0.1:{port}"));
                set("BERTH_HTTP__ACCESS_URL", &self.places.api_url(0));
                // Fifty users behind one address.
                set("BERTH_RATE_LIMIT__REQUESTS", "0");
                set("BERTH_RATE_LIMIT__LOGINS", "0");
            }
            Service::Broker => {
                let port = self.places.broker_ports[replica];
                set("BERTH_ENCRYPTION__KEYS", ENCRYPTION_KEY);
                set("BERTH_GRPC__ADDR", &format!("127.0.0.1:{port}"));
                set("BERTH_ACCESS_URL", &self.places.api_url(0));
            }
            _ => {}
        }
        for (_, name, value) in self.builder.variables.iter().filter(|it| it.0 == service) {
            set(name, value);
        }
        all
    }

    fn daemon_variables(
        &self,
        replica: usize,
        key: &str,
        mut set: impl FnMut(&str, &str) -> Option<String>,
    ) {
        let text = |path: PathBuf| path.display().to_string();
        let broker = self.places.broker_ports[replica % self.places.broker_ports.len()];
        let (root, berth) = (self.workspaces(), &self.builder.berth);
        std::fs::create_dir_all(&root).expect("a folder for workspaces");
        let supervisor = self.dir.path().join("supervisor.pid");
        std::fs::write(&supervisor, std::process::id().to_string()).expect("a pid file");
        let template = json!({
            "TF_VAR_local_root": root,
            "TF_VAR_berth": berth,
            "BERTH_LOCAL_ROOT": root,
            "BERTH": berth,
            "BERTH_LOCAL_SUPERVISOR_PIDFILE": supervisor,
            "E2E_DIR": self.dir.path(),
        });
        // A TOML inline table, which for strings differs from JSON in its `=` alone.
        let pairs = template.as_object().into_iter().flatten();
        let pairs: Vec<String> = pairs.map(|(name, value)| format!("{name} = {value}")).collect();
        set("BERTH_PROVISIONER__BROKER_URL", &format!("http://127.0.0.1:{broker}"));
        set("BERTH_PROVISIONER__KEY", key);
        set("BERTH_PROVISIONER__NAME", &format!("daemon-{replica}"));
        set("BERTH_PROVISIONER__CAPACITY", "4");
        set("BERTH_PROVISIONER__WORK_DIR", &text(self.dir.path().join("work")));
        set("BERTH_PROVISIONER__CACHE_DIR", &text(self.dir.path().join("cache")));
        set("BERTH_PROVISIONER__BERTH_PATH", &text(berth.clone()));
        set("BERTH_PROVISIONER__TEMPLATE_ENV", &format!("{{ {} }}", pairs.join(", ")));
    }

    async fn provisioner_key(&self, replica: usize) -> String {
        let path = format!("/organizations/{}/provisionerkeys", self.owner.organization);
        let body = json!({ "name": format!("daemon-{replica}") });
        let made = self.app.post(&self.owner, &path, body).await.ok();
        made["key"].as_str().expect("a key").to_owned()
    }

    /// Ends the agents of local workspaces, at the same time.
    fn stop_agents(&self) {
        // They look at it once a second; those that are told below end sooner.
        let _ = std::fs::remove_file(self.dir.path().join("supervisor.pid"));
        let folders = std::fs::read_dir(self.workspaces()).into_iter().flatten().flatten();
        let stops: Vec<_> = folders
            .filter_map(|folder| {
                std::process::Command::new(&self.builder.berth)
                    .args(["agent", "--stop", "--dir"])
                    .arg(folder.path())
                    .stderr(std::process::Stdio::null())
                    .spawn()
                    .ok()
            })
            .collect();
        for mut stop in stops {
            let _ = stop.wait();
        }
    }
}

impl Drop for TestStack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in &self.processes {
                process.print_tail();
            }
        }
        // The daemons first, so that no job starts a new agent.
        self.processes.retain(|it| it.service != Service::Provisioner);
        self.stop_agents();
        self.processes.clear();
        self.nats = None;
        // Their lifelines are cut: the folder goes when they are gone.
        let started = Instant::now();
        while !processes_of(self.dir.path()).is_empty() && started.elapsed() < GONE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
