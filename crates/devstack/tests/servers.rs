//! Real servers, started, stopped, killed and started again on the same data.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use berth_devstack::{
    DevstackError, Nats, NatsOptions, Output, Postgres, PostgresOptions, Toolbox, Tools,
};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

/// The programs; two at once, as two test processes would.
async fn tools() -> Tools {
    let (one, other) = tokio::join!(Toolbox::locate(|_| {}), Toolbox::locate(|_| {}));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.postgres, other.postgres);
    assert_eq!(one.nats_server, other.nats_server);
    one
}

/// A folder that every user may enter: no server's data has to go elsewhere.
fn folder() -> TempDir {
    folder_of_mode(0o755)
}

fn folder_of_mode(mode: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
    folder
}

fn options(folder: &TempDir) -> PostgresOptions {
    let mut options = PostgresOptions::new(folder.path().join("postgres"));
    options.settings = vec![("fsync".into(), "off".into())];
    options
}

/// What psql answers to a statement in the database `berth`.
async fn psql(tools: &Tools, postgres: &Postgres, statement: &str) -> Result<String, String> {
    let output = Command::new(tools.postgres.bin.join("psql"))
        .env("LD_LIBRARY_PATH", std::env::join_paths(&tools.postgres.libraries).unwrap())
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-c", statement])
        .arg(postgres.url("berth"))
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test]
async fn a_postgres_keeps_its_data_over_stops_and_crashes() {
    let (tools, folder) = (tools().await, folder());
    let mut postgres = Postgres::start(&tools, options(&folder)).await.unwrap();
    psql(&tools, &postgres, "create table kept as select 42 as answer").await.unwrap();
    assert!(postgres.stop().await.unwrap().success());

    let mut postgres = Postgres::start(&tools, options(&folder)).await.unwrap();
    assert_eq!(psql(&tools, &postgres, "select answer from kept").await.unwrap(), "42");
    let port = postgres.port();

    postgres.kill9().await.unwrap();
    assert!(psql(&tools, &postgres, "select 1").await.is_err());
    postgres.restart().await.unwrap();
    assert_eq!(postgres.port(), port);
    assert_eq!(psql(&tools, &postgres, "select answer from kept").await.unwrap(), "42");

    let data = postgres.data_dir().to_owned();
    drop(postgres);
    // Its watchdog still stops it; the next start waits for that.
    let mut postgres = Postgres::start(&tools, options(&folder)).await.unwrap();
    assert_eq!(psql(&tools, &postgres, "select answer from kept").await.unwrap(), "42");
    postgres.stop().await.unwrap();
    Postgres::purge(&folder.path().join("postgres")).unwrap();
    assert!(!data.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}

#[tokio::test]
async fn a_postgres_wants_its_password_and_shows_it_to_nobody() {
    let (tools, folder) = (tools().await, folder());
    let postgres = Postgres::start(&tools, options(&folder)).await.unwrap();
    let file = folder.path().join("postgres.password");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let password = std::fs::read_to_string(&file).unwrap();
    assert!(postgres.url("berth").contains(&password));
    assert!(!format!("{postgres:?}").contains(&password));

    let refused = Command::new(tools.postgres.bin.join("psql"))
        .env("LD_LIBRARY_PATH", std::env::join_paths(&tools.postgres.libraries).unwrap())
        .args(["-c", "select 1"])
        .arg(postgres.url("berth").replace(&password, "guess"))
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("password authentication failed"), "{words}");
    let letters = psql(&tools, &postgres, "select lower('ÄÖ')").await.unwrap();
    assert!(tools.postgres.major < 17 || letters == "äö", "{letters}");
}

/// Root's home is private, and Postgres does not run as root.
#[tokio::test]
async fn data_where_postgres_may_not_go_is_kept_elsewhere() {
    let (tools, private) = (tools().await, folder_of_mode(0o700));
    let wanted = private.path().join("postgres");
    let mut postgres = Postgres::start(&tools, options(&private)).await.unwrap();
    psql(&tools, &postgres, "create table kept as select 42 as answer").await.unwrap();
    let data = postgres.data_dir().to_owned();
    let dropped = tools.postgres.account.is_some();
    assert_eq!(data.starts_with("/var/lib/berth"), dropped, "{}", data.display());
    postgres.stop().await.unwrap();

    let mut postgres = Postgres::start(&tools, options(&private)).await.unwrap();
    assert_eq!(psql(&tools, &postgres, "select answer from kept").await.unwrap(), "42");
    postgres.stop().await.unwrap();
    Postgres::purge(&wanted).unwrap();
    assert!(!data.exists() && !wanted.is_symlink());
}

#[tokio::test]
async fn a_second_postgres_on_the_same_data_is_refused_by_name() {
    let (tools, folder) = (tools().await, folder());
    let postgres = Postgres::start(&tools, options(&folder)).await.unwrap();
    match Postgres::start(&tools, options(&folder)).await {
        Err(DevstackError::AlreadyRunning { pid, .. }) => assert_eq!(pid, postgres.pid()),
        other => panic!("{other:?}"),
    }
    assert_eq!(psql(&tools, &postgres, "select 1").await.unwrap(), "1");
}

#[tokio::test]
async fn a_postgres_that_cannot_start_says_why() {
    let (tools, folder) = (tools().await, folder());
    let mut wrong = options(&folder);
    wrong.settings.push(("no_such_setting".into(), "1".into()));
    let error = Postgres::start(&tools, wrong).await.unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");
}

/// Speaks the client protocol to a server: sends a line, returns the answers up to `until`.
async fn say(port: u16, lines: &str, until: &str) -> String {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    stream.get_mut().write_all(lines.as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.contains(until) && stream.read_line(&mut answer).await.unwrap() > 0 {}
    answer
}

/// Asks JetStream through the protocol: a request with an inbox, the reply's payload.
async fn request(port: u16, subject: &str, body: &str) -> String {
    let lines = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB inbox 1\r\nPUB {subject} inbox {}\r\n{body}\r\n",
        body.len()
    );
    say(port, &lines, "\"type\"").await
}

#[tokio::test]
async fn a_nats_server_keeps_its_streams_over_crashes() {
    let (tools, folder) = (tools().await, folder());
    let mut options = NatsOptions::new(folder.path().join("nats"));
    let log = folder.path().join("nats.log");
    options.output = Output::File(log.clone());
    let mut nats = Nats::start(&tools, options).await.unwrap();
    let port = nats.port();

    let stream = r#"{"name":"KEPT","subjects":["kept"],"storage":"file"}"#;
    let created = request(port, "$JS.API.STREAM.CREATE.KEPT", stream).await;
    assert!(created.contains("stream_create_response") && !created.contains("error"), "{created}");

    nats.kill9().await.unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    nats.restart().await.unwrap();
    assert_eq!(nats.port(), port);
    let found = request(port, "$JS.API.STREAM.INFO.KEPT", "").await;
    assert!(found.contains(r#""name":"KEPT""#), "{found}");

    nats.stop().await.unwrap();
    assert!(std::fs::read_to_string(log).unwrap().contains("Server is ready"));
}

#[tokio::test]
async fn a_nats_server_with_a_password_wants_it() {
    let (tools, folder) = (tools().await, folder());
    let mut options = NatsOptions::new(folder.path().join("nats"));
    options.password = true;
    let nats = Nats::start(&tools, options.clone()).await.unwrap();
    let url = nats.url();
    let refused = say(nats.port(), "CONNECT {}\r\nPING\r\n", "Violation").await;
    assert!(refused.contains("Authorization Violation"), "{refused}");

    let password = url.split([':', '@']).nth(2).unwrap();
    let connect = format!("CONNECT {{\"user\":\"berth\",\"pass\":\"{password}\"}}\r\nPING\r\n");
    assert!(say(nats.port(), &connect, "PONG").await.contains("PONG"));
    assert!(!format!("{nats:?}").contains(password));
    drop(nats);

    let again = Nats::start(&tools, options).await.unwrap();
    assert!(again.url().contains(password), "the password stays");
}

#[tokio::test]
async fn servers_that_are_let_go_of_are_gone() {
    let (tools, folder) = (tools().await, folder());
    let postgres = Postgres::start(&tools, options(&folder)).await.unwrap();
    let nats = Nats::start(&tools, NatsOptions::new(folder.path().join("nats"))).await.unwrap();
    let ports = [postgres.port(), nats.port()];
    drop((postgres, nats));
    let closed = async {
        for port in ports {
            while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), closed).await.expect("a server is still there");
}
