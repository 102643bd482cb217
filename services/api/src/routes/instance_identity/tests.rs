//! Instances that show who they are, on a real Postgres.

use std::fmt::Write as _;

use axum::body::Body;
use berth_testkit::TestDatabase;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::{Config, RateLimitConfig};
use crate::identity::signing::{
    AUDIENCE, Chain, Form, Of, attested, aws_certificate, aws_document, chain, claims, key,
    key_set, lines, pkcs7, token,
};
use crate::replica::{Answer, NOW, Replica};

/// Organization, user, version, template, job.
const IT: Uuid = Uuid::from_u128(1);
const MAIN: Uuid = Uuid::from_u128(0xa1);
const SIDE: Uuid = Uuid::from_u128(0xa2);
const OTHER: Uuid = Uuid::from_u128(0xb1);

/// The API with two workspaces. The first has `main` and `side` on the instance `two`, and `main` on
/// `one` besides: an id is one agent's, its token is its id.
struct Stand {
    database: TestDatabase,
    api: Replica,
    chain: Chain,
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

impl Stand {
    async fn new() -> Self {
        Self::with(RateLimitConfig::default()).await
    }

    async fn with(rate_limit: RateLimitConfig) -> Self {
        let database = TestDatabase::create().await;
        database.rows(&rows()).await;
        let chain = chain(Of::Root, "metadata.azure.com", 2040);
        let mut config = Config { rate_limit, ..Config::default() };
        config.http.access_url = AUDIENCE.to_owned();
        let clouds = &mut config.instance_identity;
        clouds.aws.certificates = aws_certificate(key(Of::Aws), 2040);
        clouds.azure.roots.clone_from(&chain.root);
        clouds.azure.intermediates.clone_from(&chain.intermediate);
        clouds.google.keys = key_set("k1", key(Of::Google));
        let api = Replica::over(&database.url, 4, config).await;
        Self { database, api, chain }
    }

    async fn show(&self, cloud: &str, body: &Value) -> Answer {
        post(&self.api, cloud, Body::from(body.to_string())).await
    }

    async fn aws(&self, instance: &str, name: Option<&str>) -> Answer {
        self.show("aws", &aws(instance, name)).await
    }

    fn azure(&self, machine: &str, created: Timestamp) -> Value {
        let data = attested(machine, created);
        let certificates = [self.chain.signer.clone()];
        let message = pkcs7(&Form::default(), data.as_bytes(), key(Of::Signer), &certificates);
        json!({"encoding": "pkcs7", "signature": lines(&message)})
    }

    async fn sql(&self, sql: &str) {
        self.database.rows(sql).await;
    }
}

async fn post(api: &Replica, cloud: &str, body: Body) -> Answer {
    let path = format!("/workspaceagents/{cloud}-instance-identity");
    api.send(None, Replica::request(&path).method(Method::POST), body).await
}

fn aws(instance: &str, name: Option<&str>) -> Value {
    let document = aws_document(instance);
    let signature = lines(&key(Of::Aws).sign(document.as_bytes()));
    json!({"document": document, "signature": signature, "agent_name": name})
}

fn google(claims: &Value) -> Value {
    let header = json!({"alg": "RS256", "kid": "k1"});
    json!({"json_web_token": token(&header, claims, key(Of::Google))})
}

#[track_caller]
fn gives(answer: Answer, agent: Uuid) {
    assert_eq!(answer.expect(200), json!({"session_token": agent}));
}

#[track_caller]
fn says(answer: Answer, status: u16, words: &[&str]) {
    let body = answer.expect(status);
    let text = body["message"].as_str().unwrap();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

fn rows() -> String {
    let mut sql = format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{IT}', 'acme', now(), now());
        insert into users (id, username, email, roles, created_at, updated_at)
            values ('{IT}', 'olga', 'olga@example.com', '{{owner}}', now(), now());
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            select id, '{IT}', '{IT}', 'workspace_build', 'exec', 2, '{IT}', '{{}}', now(), now(),
                   now(), now()
            from unnest('{{{IT}, {MAIN}, {OTHER}}}'::uuid[]) as id;
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                created_at, updated_at)
            values ('{IT}', '{IT}', 'v1', '{IT}', 'exec', '{IT}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                created_at, updated_at)
            values ('{IT}', '{IT}', 'dev', 'exec', '{IT}', '{IT}', now(), now());"
    );
    for workspace in [MAIN, OTHER] {
        write!(
            sql,
            "
            insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                    updated_at, last_used_at, latest_build_id, latest_build_number)
                values ('{workspace}', '{IT}', '{IT}', '{IT}', 'w-{workspace}', now(), now(), now(),
                        '{workspace}', 1);
            insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                    transition, initiator_id, job_id, created_at, updated_at)
                values ('{workspace}', '{workspace}', '{IT}', 1, 'start', '{IT}', '{workspace}',
                        now(), now());
            insert into workspace_resources (id, job_id, transition, type, name, created_at)
                values ('{workspace}', '{workspace}', 'start', 'vm', 'vm', now());"
        )
        .unwrap();
    }
    sql += &agent(MAIN, MAIN, "main", "i-two");
    sql += &agent(SIDE, MAIN, "side", "i-two");
    sql += &agent(OTHER, OTHER, "main", "i-one");
    sql + "commit;"
}

/// An agent of a workspace.
fn agent(id: Uuid, workspace: Uuid, name: &str, instance: &str) -> String {
    format!(
        "
        insert into workspace_agents (id, resource_id, workspace_id, build_id, name, auth_token,
                auth_instance_id, created_at, updated_at)
            values ('{id}', '{workspace}', '{workspace}', '{workspace}', '{name}', '{id}',
                    '{instance}', now(), now());"
    )
}

#[tokio::test]
async fn each_cloud_s_instance_is_given_its_agent_s_token_which_the_api_then_knows() {
    let stand = Stand::new().await;
    gives(stand.aws("i-one", None).await, OTHER);
    gives(stand.aws("i-one", None).await, OTHER);
    gives(stand.show("azure", &stand.azure("i-one", now())).await, OTHER);
    gives(stand.show("google", &google(&claims("i-one", now()))).await, OTHER);
    let manifest = Replica::request("/workspaceagents/me/manifest");
    let answer = stand.api.send(Some(&OTHER.to_string()), manifest, Body::empty()).await;
    assert_eq!(answer.expect(200)["agent_name"], "main");
}

#[tokio::test]
async fn what_is_not_proven_is_refused_and_time_makes_a_difference() {
    let stand = Stand::new().await;
    let mut other = aws("i-one", None);
    other["document"] = json!(aws_document("i-two"));
    says(stand.show("aws", &other).await, 401, &["not signed", "instance_identity.aws"]);
    let (azure, google) = (stand.azure("i-one", now()), google(&claims("i-one", now())));
    stand.api.advance(3600);
    says(stand.show("google", &google).await, 401, &["expired"]);
    gives(stand.show("azure", &azure).await, OTHER);
    stand.api.advance(5 * 3600);
    says(stand.show("azure", &azure).await, 401, &["expired"]);
    gives(stand.aws("i-one", None).await, OTHER);
    let mut claims = claims("i-one", now() + SignedDuration::from_hours(6));
    claims["aud"] = json!("https://elsewhere.example.com");
    says(stand.show("google", &self::google(&claims)).await, 401, &["audience"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_400_and_what_is_too_large_413() {
    let stand = Stand::new().await;
    for (cloud, body) in [
        ("aws", "{}"),
        ("aws", "secret"),
        ("aws", r#"{"document": "{}", "signature": "~"}"#),
        ("azure", r#"{"encoding": "pkcs7", "signature": "AAAA"}"#),
        ("azure", r#"{"encoding": "jose", "signature": "AAAA"}"#),
        ("google", r#"{"json_web_token": "a.b.c"}"#),
        ("google", r#"{"json_web_token": 7}"#),
    ] {
        let answer = post(&stand.api, cloud, Body::from(body)).await;
        let text = answer.expect(400).to_string();
        assert!(!text.contains("secret"), "{text}");
    }
    let large = json!({"document": "x".repeat(64 << 10), "signature": ""});
    stand.show("aws", &large).await.expect(413);
}

#[tokio::test]
async fn a_cloud_that_is_not_configured_says_so() {
    let database = TestDatabase::create().await;
    let api = Replica::over(&database.url, 2, Config::default()).await;
    let azure = json!({"encoding": "pkcs7", "signature": "AAAA"});
    for (cloud, body) in
        [("aws", aws("i-one", None)), ("azure", azure), ("google", json!({"json_web_token": ""}))]
    {
        let answer = post(&api, cloud, Body::from(body.to_string())).await;
        says(answer, 404, &["not configured", &format!("instance_identity.{cloud}")]);
    }
}

#[tokio::test]
async fn among_several_agents_the_name_selects_and_a_blank_one_is_none() {
    let stand = Stand::new().await;
    for blank in [None, Some(""), Some(" \t")] {
        says(stand.aws("i-two", blank).await, 409, &["CODER_AGENT_NAME", "main, side"]);
        gives(stand.aws("i-one", blank).await, OTHER);
    }
    gives(stand.aws("i-two", Some("side")).await, SIDE);
    gives(stand.aws("i-two", Some(" main ")).await, MAIN);
    says(stand.aws("i-two", Some("third")).await, 404, &["main, side"]);
    says(stand.aws("i-one", Some("side")).await, 404, &["main"]);
    let mut google = google(&claims("i-two", now()));
    google["agent_name"] = json!("side");
    gives(stand.show("google", &google).await, SIDE);
    let mut azure = stand.azure("i-two", now());
    azure["agent_name"] = json!("side");
    gives(stand.show("azure", &azure).await, SIDE);
    // Another workspace's template gives the same instance: nobody is preferred.
    stand.sql(&agent(Uuid::from_u128(0xc1), OTHER, "side", "i-two")).await;
    says(stand.aws("i-two", Some("side")).await, 409, &["Several workspaces", "side"]);
    gives(stand.aws("i-two", Some("main")).await, MAIN);
}

#[tokio::test]
async fn agents_of_agents_of_earlier_builds_and_of_deleted_workspaces_are_never_given_out() {
    let stand = Stand::new().await;
    says(stand.aws("i-none", None).await, 404, &["No agent"]);
    says(stand.aws("i-none", Some("main")).await, 404, &["No agent"]);
    let child = Uuid::from_u128(0xd1);
    stand.sql(&agent(child, OTHER, "child", "i-one")).await;
    let sql = format!("update workspace_agents set parent_id = '{OTHER}' where id = '{child}'");
    stand.sql(&sql).await;
    gives(stand.aws("i-one", None).await, OTHER);
    says(stand.aws("i-one", Some("child")).await, 404, &["main"]);

    // The next build is done: what it did not bring again is no agent any more.
    let sql = format!("update workspace_agents set retired = true where workspace_id = '{MAIN}'");
    stand.sql(&sql).await;
    says(stand.aws("i-two", Some("main")).await, 404, &["No agent"]);
    stand.sql(&format!("update workspaces set deleted = true where id = '{OTHER}'")).await;
    says(stand.aws("i-one", None).await, 404, &["No agent"]);
}

#[tokio::test]
async fn a_credential_that_is_sent_along_buys_no_count_of_its_own() {
    let stand = Stand::with(RateLimitConfig { requests: 2, ..RateLimitConfig::default() }).await;
    let path = "/workspaceagents/aws-instance-identity";
    let mut statuses = Vec::new();
    for credential in ["a", "b", "c"] {
        let request = Replica::request(path).method(Method::POST);
        statuses.push(stand.api.send(Some(credential), request, Body::from("{}")).await.status);
    }
    assert_eq!(statuses, [400, 400, 429]);
}
