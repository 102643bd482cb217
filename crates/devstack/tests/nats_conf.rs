//! `deploy/nats.conf` on a real nats-server: it starts with it, and each user may do what it says.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::time::Duration;

use berth_devstack::{CommandSpec, Supervised, Toolbox, free_port};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const USERS: [&str; 7] = [
    "api",
    "reconciler",
    "provisioner-broker",
    "membership-reconciler",
    "notification",
    "lifecycle",
    "watcher",
];

struct Server {
    _running: Supervised,
    _store: tempfile::TempDir,
    port: u16,
}

impl Server {
    async fn start() -> Self {
        let tools = Toolbox::locate(|_| {}).await.unwrap();
        let (port, store) = (free_port().unwrap(), tempfile::tempdir().unwrap());
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/nats.conf");
        let (port_argument, http) = (port.to_string(), free_port().unwrap().to_string());
        let mut spec = CommandSpec::new(&tools.nats_server)
            .args(["-c", config, "-a", "127.0.0.1", "-p", &port_argument, "-m", &http])
            .env("NATS_STORE_DIR", store.path())
            .env("NATS_SERVER_NAME", "test");
        for user in USERS {
            let name = user.to_uppercase().replace('-', "_");
            spec = spec.env(format!("NATS_{name}_PASSWORD"), format!("secret-of-{user}"));
        }
        let mut running = Supervised::spawn(&spec).unwrap();
        let answers = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = answers => {}
            ended = running.wait() => panic!("{ended:?}: {:?}", running.tail()),
        }
        Self { _running: running, _store: store, port }
    }

    /// What the server answers to some lines of `user`, up to its PONG or the end.
    async fn says(&self, user: &str, password: &str, lines: &str) -> String {
        let mut stream =
            BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await.unwrap());
        let login = format!("CONNECT {{\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\n");
        let all = format!("{login}{lines}PING\r\n");
        stream.get_mut().write_all(all.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("PONG\r\n") && stream.read_line(&mut answer).await.unwrap() > 0 {}
        answer
    }

    async fn check(&self, user: &str, line: &str, allowed: bool) {
        let answer = self.says(user, &format!("secret-of-{user}"), line).await;
        assert!(answer.contains("PONG"), "{user}: {answer}");
        let refused = answer.contains("Permissions Violation");
        assert_eq!(!refused, allowed, "{user}: {line:?}: {answer}");
    }
}

#[tokio::test]
async fn every_user_of_the_deployed_configuration_may_do_what_it_needs_and_no_more() {
    let server = Server::start().await;
    for user in USERS {
        let answer = server.says(user, "guess", "").await;
        assert!(answer.contains("Authorization Violation"), "{user}: {answer}");
        let watcher = user == "watcher";
        server.check(user, "PUB berth.builds.o.w.queued 0\r\n\r\n", !watcher).await;
        server.check(user, "SUB _INBOX.x 1\r\n", !watcher).await;
        server.check(user, "PUB $JS.API.STREAM.DELETE.BUILDS 0\r\n\r\n", false).await;
        server.check(user, "SUB > 1\r\n", false).await;
        server.check(user, "SUB berth.logs.* 1\r\n", user == "api").await;
        server.check(user, "PUB berth.terminals.a.in 0\r\n\r\n", user == "api").await;
        server.check(user, "SUB berth.terminals.a.in 1\r\n", user == "api").await;
        server.check(user, "SUB berth.jobs.posted.*.* 1\r\n", user == "provisioner-broker").await;
        let drained = "SUB berth.provisioners.drained.* 1\r\n";
        server.check(user, drained, user == "provisioner-broker").await;
    }
    server.check("watcher", "SUB berth.builds.> 1\r\n", true).await;
    server.check("watcher", "SUB berth.workspaces.> 1\r\n", true).await;
    server.check("watcher", "SUB berth.claims.> 1\r\n", false).await;
}
