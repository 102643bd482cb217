//! What a process does around its service, seen from outside: the example, started for real.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// Nothing here takes a second; a test that waits longer has found a hang.
const PATIENCE: Duration = Duration::from_secs(20);

struct Service {
    child: Child,
    folder: TempDir,
}

impl Service {
    fn start(environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(example())
            .arg("--lifeline")
            .arg("--announce")
            .arg(folder.path().join("announce.json"))
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the example is built by `cargo test`; with `--test process` build it first");
        Self { child, folder }
    }

    /// Waits for the announced facts up to the last one.
    async fn facts(&self) -> Value {
        let path = self.folder.path().join("announce.json");
        eventually("announce file", async || {
            let facts: Value = serde_json::from_slice(&std::fs::read(&path).ok()?).unwrap();
            facts.get("answer").is_some().then_some(facts)
        })
        .await
    }

    /// The status and body of a page of the admin port.
    async fn get(&self, path: &str) -> (u16, String) {
        let facts = self.facts().await;
        let url = format!("http://{}{path}", facts["admin_addr"].as_str().unwrap());
        let response = client().get(url).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Waits for the end: the exit code and everything that was logged.
    async fn ended(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        let ended = async {
            stderr.read_to_string(&mut log).await.unwrap();
            self.child.wait().await.unwrap().code()
        };
        let code = tokio::time::timeout(PATIENCE, ended).await.expect("the process does not end");
        (code, log)
    }
}

fn example() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/service")
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().unwrap()
}

/// Asks again until there is an answer.
async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let answer = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("no {what}"))
}

#[tokio::test]
async fn the_admin_port_answers() {
    let service = Service::start(&[]);
    eventually("readiness", async || (service.get("/readyz").await.0 == 200).then_some(())).await;
    assert_eq!(service.get("/livez").await, (200, "ok\n".into()));

    let report: Value = serde_json::from_str(&service.get("/readyz").await.1).unwrap();
    let names: Vec<_> = report["latches"].as_array().unwrap().iter().map(|l| &l["name"]).collect();
    assert_eq!(names, ["startup", "task"]);

    let (status, metrics) = service.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains(r#"berth_build_info{service="example""#), "{metrics}");
    assert!(metrics.contains("process_resident_memory_bytes"), "{metrics}");
}

#[tokio::test]
async fn the_log_level_changes_at_run_time() {
    let service = Service::start(&[("BERTH_PROCESS__LOG__LEVEL", "error")]);
    let facts = service.facts().await;
    let url = format!("http://{}/log-level", facts["admin_addr"].as_str().unwrap());
    let put = async |body: &'static str| client().put(&url).body(body).send().await.unwrap();
    assert_eq!(put("nonsense=loud").await.status(), 400);
    assert_eq!(put("info").await.status(), 204);

    let mut service = service;
    drop(service.child.stdin.take());
    let (_, log) = service.ended().await;
    assert!(!log.contains("admin_addr"), "logged before the change: {log}");
    assert!(log.contains("stdin closed"), "not logged after it: {log}");
}

#[tokio::test]
async fn a_process_drains_when_its_parent_lets_go_of_stdin() {
    let mut service = Service::start(&[]);
    service.facts().await;
    drop(service.child.stdin.take());
    let (code, log) = service.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stdin closed"), "{log}");
}

#[tokio::test]
async fn a_process_drains_on_sigterm() {
    let service = Service::start(&[]);
    let facts = service.facts().await;
    let pid = facts["pid"].to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let (code, log) = service.ended().await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_dead_task_ends_the_process_and_is_named() {
    for (end, message) in
        [("early", "task `task` ended before shutdown"), ("panic", "task `task` panicked")]
    {
        let (code, log) = Service::start(&[("BERTH_TASK__END", end)]).ended().await;
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(message), "{log}");
    }
}

#[tokio::test]
async fn a_task_that_does_not_stop_is_given_up_after_the_grace_period() {
    let mut service =
        Service::start(&[("BERTH_TASK__END", "never"), ("BERTH_PROCESS__GRACE", "50ms")]);
    service.facts().await;
    drop(service.child.stdin.take());
    let (code, log) = service.ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("tasks still running 50ms after shutdown: task"), "{log}");
}

#[tokio::test]
async fn a_configuration_error_names_the_key_before_anything_starts() {
    let (code, log) = Service::start(&[("BERTH_PROCESS__GRACE", "soon")]).ended().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("example: configuration: `process.grace`"), "{log}");
    assert!(log.contains("BERTH_PROCESS__GRACE"), "{log}");
}

#[tokio::test]
async fn a_collector_that_is_not_there_holds_nothing_up() {
    // Port 9 is reserved for discarding; nothing listens there.
    let log = traced_to("http://127.0.0.1:9").await;
    let traced: Vec<&Value> = log.iter().filter(|line| line["trace_id"].is_string()).collect();
    assert_eq!(traced.len(), 1, "the line inside the span, and no other: {log:?}");
    assert_eq!(traced[0]["key"], "answer");
    assert_eq!(traced[0]["trace_id"].as_str().unwrap().len(), 32);
}

/// Spans do reach for the collector, and one that takes the connection and then says nothing
/// delays the end of the process by the time for the flush at most.
#[tokio::test]
async fn a_collector_that_never_answers_holds_nothing_up() {
    let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let silent = tokio::spawn(async move {
        let (mut connection, _) = collector.accept().await.unwrap();
        let mut preface = [0; 14];
        connection.read_exact(&mut preface).await.unwrap();
        (connection, preface)
    });
    traced_to(&endpoint).await;
    let (_, preface) = tokio::time::timeout(PATIENCE, silent).await.expect("no span").unwrap();
    assert_eq!(&preface, b"PRI * HTTP/2.0", "gRPC begins so");
}

/// What a process logs that exports to `endpoint`, from its start to its orderly end.
async fn traced_to(endpoint: &str) -> Vec<Value> {
    let mut service = Service::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("BERTH_PROCESS__LOG__FORMAT", "json"),
    ]);
    service.facts().await;
    drop(service.child.stdin.take());
    let (code, log) = service.ended().await;
    assert_eq!(code, Some(0), "{log}");
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let lines: Vec<Value> = log.lines().map(read).collect();
    assert!(lines.iter().all(|line| line["service"] == "example"), "{log}");
    lines
}
