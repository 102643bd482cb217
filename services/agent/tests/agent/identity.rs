//! Agents that have no token and show their cloud instance's identity, to a metadata service of the
//! tests'.

use std::collections::HashMap;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, put};
use axum::{Json, Router};
use berth_agent::{Cloud, Instance};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::life::Agent;
use crate::support::{ALICE, Api, TOKEN};

const SESSION: &str = "session-of-the-instance";

/// A metadata service of all three clouds. Its region of AWS has the stronger signature or not.
async fn metadata(has_rsa2048: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let router = Router::new()
        .route("/latest/api/token", put(aws_session))
        .route("/latest/dynamic/instance-identity/{what}", get(aws))
        .route("/metadata/attested/document", get(azure))
        .route("/computeMetadata/v1/instance/service-accounts/default/identity", get(google))
        .with_state(has_rsa2048);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

async fn aws_session(headers: HeaderMap) -> &'static str {
    assert!(headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds"));
    SESSION
}

async fn aws(
    State(has_rsa2048): State<bool>,
    axum::extract::Path(what): axum::extract::Path<String>,
    headers: HeaderMap,
) -> Result<&'static str, StatusCode> {
    if headers.get("x-aws-ec2-metadata-token").is_none_or(|it| it != SESSION) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    match what.as_str() {
        "document" => Ok("{\"instanceId\": \"i-1\"}\n"),
        "signature" => Ok("weak"),
        "rsa2048" if has_rsa2048 => Ok("strong"),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

async fn azure(headers: HeaderMap, Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    assert_eq!(headers["metadata"], "true");
    assert!(query.contains_key("api-version"));
    Json(json!({"encoding": "pkcs7", "signature": "attested"}))
}

async fn google(headers: HeaderMap, Query(query): Query<HashMap<String, String>>) -> String {
    assert_eq!(headers["metadata-flavor"], "Google");
    assert_eq!(query["format"], "full");
    format!("token for {}\n", query["audience"])
}

fn instance(cloud: Cloud, metadata_url: &str, agent_name: &str) -> Instance {
    Instance {
        cloud,
        metadata_url: Some(metadata_url.to_owned()),
        agent_name: agent_name.to_owned(),
    }
}

/// What an agent with this name shows.
async fn shown(cloud: Cloud, has_rsa2048: bool, name: &str) -> (String, Value, String) {
    let api = Api::start().await;
    let metadata = metadata(has_rsa2048).await;
    let agent = Agent::on(&api, instance(cloud, &metadata, name));
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    agent.end().await;
    let mut identities = std::mem::take(&mut api.seen().identities);
    assert_eq!(identities.len(), 1, "one token is enough for all calls");
    let (endpoint, body) = identities.remove(0);
    (endpoint, body, api.url())
}

#[tokio::test]
async fn each_cloud_is_asked_as_it_wants_to_be_and_the_document_is_shown_as_it_came() {
    let document = "{\"instanceId\": \"i-1\"}\n";
    let (endpoint, body, _) = shown(Cloud::Aws, true, "  ").await;
    assert_eq!(endpoint, "aws-instance-identity");
    assert_eq!(body, json!({"document": document, "signature": "strong"}));
    let (_, body, _) = shown(Cloud::Aws, false, "main").await;
    let expected = json!({"document": document, "signature": "weak", "agent_name": "main"});
    assert_eq!(body, expected);
    let (endpoint, body, _) = shown(Cloud::Azure, false, "").await;
    assert_eq!(endpoint, "azure-instance-identity");
    assert_eq!(body, json!({"encoding": "pkcs7", "signature": "attested"}));
    let (endpoint, body, url) = shown(Cloud::Google, false, "").await;
    assert_eq!(endpoint, "google-instance-identity");
    assert_eq!(body, json!({"json_web_token": format!("token for {url}")}));
}

#[tokio::test]
async fn an_agent_whose_build_is_not_done_yet_shows_its_identity_again_until_it_is_known() {
    let api = Api::start().await;
    let metadata = metadata(true).await;
    api.given_script("alice", ALICE, "echo $CODER_AGENT_TOKEN > token");
    api.change(|seen| {
        seen.identity_refusals.extend([
            (StatusCode::NOT_FOUND, "No agent of a running workspace is on this instance."),
            (StatusCode::CONFLICT, "Several agents are on this instance."),
            (StatusCode::SERVICE_UNAVAILABLE, "not now"),
            (StatusCode::UNAUTHORIZED, "not signed"),
        ]);
    });
    let agent = Agent::on(&api, instance(Cloud::Aws, &metadata, ""));
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    assert_eq!(api.seen().identities.len(), 5);
    assert_eq!(api.seen().refused, 0, "it calls nobody without a token");
    assert_eq!(agent.file("token").trim(), TOKEN, "scripts have the token that was got");
    agent.end().await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_got_again_and_nothing_is_lost() {
    const OTHER: &str = "3d2a6f6e-6b0c-4a87-9d2e-6b1b5f1f2a34";
    let api = Api::start().await;
    let metadata = metadata(true).await;
    api.given_script("alice", ALICE, "until [ -e go ]; do sleep 0.02; done; echo written after");
    let agent = Agent::on(&api, instance(Cloud::Azure, &metadata, ""));
    api.until_lifecycle(&["created", "starting"]).await;
    // The workspace is built again: the agent has another token.
    api.change(|seen| seen.token = OTHER.to_owned());
    api.until("a refusal", |seen| seen.refused > 0).await;
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.until("its line", |seen| seen.lines() == ["written after"]).await;
    api.beats(5).await;
    assert!(api.seen().identities.len() < 6, "{}", api.seen().identities.len());
    agent.end().await;
    assert_eq!(api.seen().lifecycle[3..], ["shutting_down", "off"]);
}
