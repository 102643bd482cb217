//! What dies, and what is left after it: daemons as processes that are killed, brokers that go away in
//! each call, a network that stops.

use std::process::Stdio;

use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::*;

/// Carries what the daemon in a process of its own is configured with.
const CONFIG: &str = "BERTH_TEST_DAEMON_CONFIG";

/// No test: the daemon of [`Killable`], when a test starts this program again.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the configuration of a process that a test starts")]
async fn as_a_process() {
    let Ok(text) = std::env::var(CONFIG) else { return };
    let shutdown = CancellationToken::new();
    let host = Host {
        tasks: Tasks::new(shutdown.clone()),
        shutdown,
        health: Health::default(),
        metrics: Registry::new(),
    };
    start(&toml::from_str(&text).unwrap(), &host).await.unwrap();
    std::future::pending::<()>().await;
}

/// A broker, and daemons of one name that can be killed.
struct Killable {
    broker: Broker,
    _server: Server,
    dir: TempDir,
    config: String,
}

impl Killable {
    /// With a Terraform that hangs in `hangs`, a condition of the shell, until there is a file `go`;
    /// what it started has left its group and ignores every signal that can be ignored.
    async fn new(hangs: &str) -> Option<Self> {
        let path = std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|dir| dir.join("terraform"))
            .find(|it| it.is_file())?;
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let script = format!(
            "#!/bin/sh\nif {hangs} && [ ! -e $OUT/go ]; then\n  trap '' INT TERM HUP PIPE\n  \
             setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $! > $OUT/detached\n  \
             echo $$ > $OUT/child\n  while :; do sleep 1; done\nfi\nexec {} \"$@\"\n",
            path.display()
        );
        let program = dir.path().join("terraform");
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let broker = Broker::new(60);
        let server = broker.serve((Ipv4Addr::LOCALHOST, 0).into()).await;
        let config = format!(
            "[provisioner]\nbroker_url = 'http://{}'\nkey = '{KEY}'\nname = 'daemon'\n\
             work_dir = '{root}/work'\ncache_dir = '{root}/cache'\nterraform_path = '{root}/terraform'\n\
             template_env = {{ OUT = '{root}/out' }}\n",
            server.addr,
            root = dir.path().display()
        );
        Some(Self { broker, _server: server, dir, config })
    }

    fn daemon(&self) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "daemon::tests::faults::as_a_process", "--nocapture"])
            .env(CONFIG, &self.config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn queue(&self, id: &str) {
        let main = "resource \"terraform_data\" \"first\" {}\n";
        self.broker.with(|state| {
            state.files.insert("file".into(), archive(&[("main.tf", main)]));
            state.queue.push_back(v1::Job {
                id: id.into(),
                provisioner_type: "terraform".into(),
                archive_file_id: "file".into(),
                input: Some(start_build()),
                ..Default::default()
            });
        });
    }

    async fn done(&self, id: &str) {
        let done = |state: &broker::State| state.held.get(id).is_some_and(broker::Job::is_done);
        self.broker.until("the job is done", done).await;
    }

    async fn note(&self, name: &str) -> String {
        let path = self.dir.path().join("out").join(name);
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.ends_with('\n') {
                return text.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_no_directory(&self) {
        let jobs = self.dir.path().join("work/daemon/jobs");
        while std::fs::read_dir(&jobs).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Open files of a process that are no sockets: connections come and go.
fn open_files(pid: u32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let is_socket = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    entries.filter(|entry| !is_socket(&entry.path())).count()
}

/// In init and plan the broker queues the job once more; from apply on it ends it. Which of the two
/// is the broker's to decide and its tests' to show; here it is the test that does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_in_any_step_leaves_nothing_running_and_its_successor_goes_on() {
    for (step, condition) in [
        ("init", "[ \"$1\" = init ]"),
        ("plan", "[ \"$1\" = plan ]"),
        ("apply", "[ \"$1\" = apply ]"),
        ("graph", "[ \"$1 $#\" = 'show 3' ]"),
    ] {
        let Some(scene) = Killable::new(condition).await else { return };
        let mut first = scene.daemon();
        scene.queue("j");
        let (child, detached) = (scene.note("child").await, scene.note("detached").await);
        first.kill().await.unwrap();
        let again = ["init", "plan"].contains(&step);
        let lease = scene.broker.with(|state| {
            let job = &state.held["j"];
            assert!(!job.is_done() && state.given_up.is_empty(), "{step}");
            job.token.clone()
        });
        std::fs::write(scene.dir.path().join("out/go"), "").unwrap();
        let second = scene.daemon();
        let given_up = |state: &broker::State| state.given_up.contains(&lease);
        scene.broker.until("the successor gives the lease up", given_up).await;
        assert!(!runs(&child) && !runs(&detached), "{step}: given up while it runs");
        // Either the same job under a new lease, or a later one of the workspace.
        let id = if again { "j" } else { "k" };
        scene.queue(id);
        scene.done(id).await;
        scene.until_no_directory().await;
        let pid = second.id().unwrap();
        let before = open_files(pid);
        scene.queue("last");
        scene.done("last").await;
        scene.until_no_directory().await;
        assert_eq!(open_files(pid), before, "{step}: a file stayed open");
        scene.broker.with(|state| {
            let job = &state.held[id];
            let numbers: Vec<_> = job.lines.keys().copied().collect();
            assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{step}: a gap");
            let Some(Done::WorkspaceBuild(built)) = job.completed.clone().unwrap().result else {
                panic!("{step}: no build")
            };
            let state_text = String::from_utf8(built.state).unwrap();
            assert!(state_text.contains("\"first\""), "{step}: {state_text}");
            assert_eq!(state.taken.iter().filter(|it| *it == "j").count(), 1 + usize::from(again));
            if !again {
                assert!(!state.held["j"].is_done(), "{step}: reported after it was lost");
            }
        });
    }
}

/// Before the call took effect and after; the server comes back each time.
#[tokio::test]
async fn a_broker_that_dies_in_any_call_costs_no_line_and_no_result() {
    const FAILS: &str = "#!/bin/sh\necho '{\"state\": 5}'\nexit 1\n";
    for call in ["register", "acquire", "download", "update", "quota", "complete", "fail"] {
        for after in [false, true] {
            if after && ["register", "download"].contains(&call) {
                // Streams: they take no effect at once.
                continue;
            }
            let mut scene = Scene::new(60).await;
            scene.broker.with(|state| state.dies = Some((call, after)));
            if call == "register" {
                // It is registered already; the next time is after the connection broke.
                let Scene { broker, server, host, dir } = scene;
                let addr = server.addr;
                server.kill().await;
                let server = broker.serve(addr).await;
                scene = Scene { broker, server, host, dir };
            }
            let fails = call == "fail";
            scene.queue("j", [PLAN, if fails { FAILS } else { APPLY }], start_build());
            let died = scene.server.revive(&scene.broker);
            tokio::time::timeout(Duration::from_secs(30), died).await.expect(call);
            scene.done("j").await;
            scene.job("j", |job| {
                assert_eq!((job.completed.is_some(), job.failed.is_some()), (!fails, fails));
                let numbers: Vec<_> = job.lines.keys().copied().collect();
                assert_eq!(
                    numbers,
                    (1..=numbers.len() as u64).collect::<Vec<_>>(),
                    "{call}: a gap"
                );
                let planned = job.lines.values().filter(|line| *line == "planning").count();
                assert_eq!(planned, 1, "{call}");
            });
            if fails {
                assert_eq!(scene.failed("j").state.as_deref(), Some(&b"5"[..]));
            } else {
                assert_eq!(scene.built("j").state, br#"{"n":1}"#, "{call}");
            }
            assert_eq!(scene.broker.with(|state| state.taken.len()), 1, "{call}");
            scene.stop().await;
        }
    }
}

/// Passes bytes on, and stands still while it is cut: what was sent meanwhile arrives later, as over
/// a network that lost its way for a while.
struct Proxy {
    addr: std::net::SocketAddr,
    flows: watch::Sender<bool>,
}

impl Proxy {
    async fn before(to: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let flows = watch::Sender::new(true);
        let all = flows.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let flows = all.subscribe();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let (near, far) = (near.into_split(), far.into_split());
                    tokio::join!(
                        pass(near.0, far.1, flows.clone()),
                        pass(far.0, near.1, flows.clone())
                    );
                });
            }
        });
        Self { addr, flows }
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut flows: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if flows.wait_for(|flows| *flows).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}

/// The lease stands for the minute of the product: shorter than the cut in one case, longer in the
/// other.
#[tokio::test]
async fn a_network_cut_longer_than_the_lease_ends_the_tool_and_a_shorter_one_nothing() {
    for (lease, survives) in [(3, false), (60, true)] {
        let broker = Broker::new(lease);
        let server = broker.serve((Ipv4Addr::LOCALHOST, 0).into()).await;
        let proxy = Proxy::before(server.addr).await;
        let mut scene = Scene::with(lease, |config| {
            config.provisioner.broker_url = format!("http://{}", proxy.addr);
        })
        .await;
        // The scene's own broker is not asked: the daemon talks through the proxy to this one.
        (scene.broker, scene.server) = (broker, server);
        scene.queue("j", [PLAN, HELD], start_build());
        let child = scene.until_file("child").await;
        let cut = std::time::Instant::now();
        proxy.flows.send_replace(false);
        if survives {
            // Far longer than a line waits to be sent.
            tokio::time::sleep(Duration::from_secs(1)).await;
            scene.touch("go");
        } else {
            gone(&child).await;
            assert!(cut.elapsed() < Duration::from_secs(3), "{:?}", cut.elapsed());
        }
        proxy.flows.send_replace(true);
        scene.done("j").await;
        if survives {
            assert_eq!(scene.built("j").state, b"2");
        } else {
            assert!(scene.failed("j").error.contains("lost the broker"));
        }
        scene.stop().await;
    }
}
