//! The routes of agents on a real Postgres, asked as agents ask them.

use std::fmt::Write as _;

use axum::body::Body;
use berth_testkit::TestDatabase;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::Config;
use crate::replica::{NOW, Replica};

const PREBUILDS: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";
/// Everything that is not an agent's: organization, user, version, template, job, build, resource.
const IT: Uuid = Uuid::from_u128(1);
const SOURCE: Uuid = Uuid::from_u128(0x50);
/// Two agents of one workspace; each has its id as its token.
const MAIN: Uuid = Uuid::from_u128(0xa1);
const SIDE: Uuid = Uuid::from_u128(0xa2);
const USER_TOKEN: &str = "Owner00000-abcdefghijklmnopqrstuv";

/// The API over a database with one prebuild that waits for two agents. Events stay in the outbox.
struct Stand {
    database: TestDatabase,
    api: Replica,
}

impl Stand {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        database.rows(&rows()).await;
        let api = Replica::over(&database.url, 6, Config::default()).await;
        Self { database, api }
    }

    async fn ask(&self, token: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = Replica::request(&format!("/workspaceagents/{path}")).method(method);
        let answer = self.api.send(Some(token), request, Body::from(body.to_string())).await;
        (answer.status, answer.body)
    }

    /// What an agent reports.
    async fn tell(&self, agent: Uuid, call: &str, body: Value) -> (u16, Value) {
        let method = if call == "logs" { Method::PATCH } else { Method::POST };
        self.ask(&agent.to_string(), method, &format!("me/{call}"), body).await
    }

    async fn report(&self, agent: Uuid, state: &str, changed_at: &str) {
        let body = json!({"state": state, "changed_at": changed_at});
        let (status, answer) = self.tell(agent, "report-lifecycle", body).await;
        assert_eq!(status, 204, "{answer:#}");
    }

    /// Sends as many lines as texts, all written at `at`.
    async fn log(&self, agent: Uuid, at: &str, texts: &[&str]) -> (u16, Value) {
        let line = |text: &&str| json!({"created_at": at, "level": "info", "output": text});
        let lines: Vec<Value> = texts.iter().map(line).collect();
        self.tell(agent, "logs", json!({"log_source_id": SOURCE, "logs": lines})).await
    }

    /// The agent as the workspace's owner sees it.
    async fn view(&self, agent: Uuid) -> Value {
        let (status, answer) =
            self.ask(USER_TOKEN, Method::GET, &agent.to_string(), Value::Null).await;
        assert_eq!(status, 200, "{answer:#}");
        answer
    }

    async fn stored(&self, column: &str) -> Vec<String> {
        let sql = format!("select {column} from workspace_agent_logs order by id");
        self.database.rows(&sql).await.into_iter().flatten().collect()
    }
}

fn rows() -> String {
    let mut sql = format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{IT}', 'acme', now(), now());
        insert into users (id, username, email, roles, created_at, updated_at)
            values ('{IT}', 'olga', 'olga@example.com', '{{owner}}', now(), now());
        insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds, last_used_at,
                expires_at, created_at, updated_at)
            values ('Owner00000', sha256('abcdefghijklmnopqrstuv'), '{IT}', 'password', 86400,
                    '{NOW}', timestamptz '{NOW}' + interval '9 years', '{NOW}', '{NOW}');
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
        update template_versions set template_id = '{IT}';
        insert into template_version_presets (id, template_version_id, name, desired_instances,
                created_at)
            values ('{IT}', '{IT}', 'small', 1, now());
        insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
            values ('{IT}', '{IT}', '{IT}', '{IT}');
        insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                updated_at, last_used_at, pool_preset_id, pool_state, latest_build_id,
                latest_build_number)
            values ('{IT}', '{PREBUILDS}', '{IT}', '{IT}', 'dev', now(), now(), now(), '{IT}',
                    'unready', '{IT}', 1);
        insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                transition, initiator_id, stage, job_id, created_at, updated_at)
            values ('{IT}', '{IT}', '{IT}', 1, 'start', '{IT}', 'prebuild', '{IT}', now(), now());
        insert into workspace_resources (id, job_id, transition, type, name, created_at)
            values ('{IT}', '{IT}', 'start', 'local', 'dev', now());"
    );
    for (agent, name) in [(MAIN, "main"), (SIDE, "side")] {
        write!(
            sql,
            "
            insert into workspace_agents (id, resource_id, workspace_id, build_id, name, auth_token,
                    metadata, created_at, updated_at)
                values ('{agent}', '{IT}', '{IT}', '{IT}', '{name}', '{agent}',
                        '[{{\"key\": \"cpu\"}}]', '{NOW}', '{NOW}');"
        )
        .expect("a string takes everything");
    }
    sql + "commit;"
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_batch_that_crosses_the_bound_is_stored_up_to_it_and_the_agent_is_told_to_stop() {
    let stand = Stand::new().await;
    let large = "x".repeat(300_000);
    for _ in 0..3 {
        assert_eq!(stand.log(MAIN, NOW, &[&large]).await.0, 200);
    }
    // 148 576 bytes are left: two of these, and not the third, nor the small one behind it.
    let mid = "y".repeat(70_000);
    let (status, answer) = stand.log(MAIN, NOW, &[&mid, &mid, &mid, "small"]).await;
    assert_eq!(status, 413, "{answer:#}");
    assert!(answer["message"].as_str().unwrap().starts_with("2 of 4 lines"), "{answer:#}");
    assert_eq!(stand.stored("output").await.len(), 5);
    let view = stand.view(MAIN).await;
    assert_eq!(
        (view["logs_length"].as_i64(), &view["logs_overflowed"]),
        (Some(1_040_000), &json!(true))
    );

    let (status, answer) = stand.log(MAIN, NOW, &["one more"]).await;
    assert_eq!(status, 413);
    assert!(answer["message"].as_str().unwrap().starts_with("0 of 1 lines"), "{answer:#}");
    let told = "select count(*) from outbox where subject like '%.workspaces.%'";
    assert_eq!(stand.database.count(told).await, 1, "watchers hear of it once");
    assert_eq!(stand.log(SIDE, NOW, &["of another agent"]).await.0, 200);
}

#[tokio::test]
async fn a_clock_that_is_off_puts_nothing_into_the_future_or_before_the_agent() {
    let stand = Stand::new().await;
    stand.api.advance(100);
    stand.log(MAIN, "1999-01-01T00:00:00Z", &["long ago"]).await;
    stand.log(MAIN, "2026-11-21T12:00:50Z", &["right"]).await;
    stand.log(MAIN, "2150-01-01T00:00:00Z", &["far ahead"]).await;
    let seconds = stand.stored(&format!("extract(epoch from created_at - '{NOW}')::int")).await;
    assert_eq!(seconds, ["0", "50", "100"]);

    stand.report(MAIN, "starting", "2150-01-01T00:00:00Z").await;
    stand.api.advance(5);
    stand.report(MAIN, "ready", "1999-01-01T00:00:00Z").await;
    let view = stand.view(MAIN).await;
    let now: Timestamp = NOW.parse().unwrap();
    let started = time(&view["started_at"]);
    assert_eq!(started.duration_since(now).as_secs(), 100);
    assert_eq!(time(&view["ready_at"]), started, "it is not ready before it started");
}

#[tokio::test]
async fn a_prebuild_is_ready_when_every_agent_is_and_each_is_known_by_its_own_token() {
    let stand = Stand::new().await;
    let state = async || stand.database.value("select pool_state from workspaces").await;
    stand.report(MAIN, "ready", NOW).await;
    assert_eq!(state().await, "unready", "the other one is not");
    stand.report(SIDE, "ready", NOW).await;
    assert_eq!(state().await, "ready");
    stand.report(SIDE, "start_error", NOW).await;
    assert_eq!(state().await, "failed");
    assert_eq!(stand.view(MAIN).await["lifecycle_state"], "ready");

    let retired = format!("update workspace_agents set retired = true where id = '{SIDE}'");
    stand.database.rows(&retired).await;
    assert_eq!(stand.tell(SIDE, "heartbeat", json!({})).await.0, 401);
    assert_eq!(stand.tell(MAIN, "heartbeat", json!({})).await.0, 204);
}

#[tokio::test]
async fn an_agent_that_is_never_heard_of_is_shown_as_such_with_the_time_since_when() {
    let stand = Stand::new().await;
    assert_eq!(stand.view(MAIN).await["status"], "connecting");
    stand.api.advance(300);
    let view = stand.view(MAIN).await;
    assert_eq!(view["status"], "timeout");
    assert_eq!(view["status_since"], "2026-11-21T12:02:00Z");
    assert_eq!(view["health"]["healthy"], false);

    stand.tell(MAIN, "heartbeat", json!({})).await;
    assert_eq!(stand.view(MAIN).await["status"], "connected");
    stand.api.advance(3600);
    let view = stand.view(MAIN).await;
    assert_eq!(view["status"], "disconnected");
    assert_eq!(view["status_since"], "2026-11-21T12:05:00Z");
    assert_eq!(view["health"]["reason"], "agent has lost connection");
    assert_eq!(stand.view(SIDE).await["status_since"], "2026-11-21T12:02:00Z", "of each its own");
}

#[tokio::test]
async fn metadata_is_kept_by_the_templates_keys_and_bounded() {
    let stand = Stand::new().await;
    let values = json!({"metadata": [
        {"key": "cpu", "value": "9".repeat(5000), "collected_at": "2150-01-01T00:00:00Z"},
        {"key": "not\0named", "value": "x"},
    ]});
    assert_eq!(stand.tell(MAIN, "metadata", values).await.0, 204);
    let sql = format!("select metadata_values from workspace_agents where id = '{MAIN}'");
    let kept: Value = serde_json::from_str(&stand.database.value(&sql).await).unwrap();
    assert_eq!(kept.as_object().unwrap().keys().collect::<Vec<_>>(), ["cpu"]);
    assert_eq!(kept["cpu"]["value"].as_str().unwrap().len(), 2048);
    assert_eq!(kept["cpu"]["collected_at"], NOW);
}

#[tokio::test]
async fn an_agent_has_so_many_log_sources_and_no_more() {
    let stand = Stand::new().await;
    stand
        .database
        .rows(&format!(
            "insert into workspace_agent_log_sources (id, agent_id, display_name, created_at)
             select gen_random_uuid(), '{MAIN}', 'x', now() from generate_series(1, 255)"
        ))
        .await;
    let source = |n: u128| json!({"id": Uuid::from_u128(n), "display_name": "n".repeat(5000)});
    assert_eq!(stand.tell(MAIN, "log-source", source(1)).await.0, 200);
    assert_eq!(stand.tell(MAIN, "log-source", source(2)).await.0, 400);
    assert_eq!(
        stand.tell(MAIN, "log-source", source(1)).await.0,
        200,
        "a known one may come again"
    );
    let longest = "select max(length(display_name)) from workspace_agent_log_sources";
    assert_eq!(stand.database.count(longest).await, 1024);
}
