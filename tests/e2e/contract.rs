//! Answers have the shapes of the REST contract, where its document is at hand.

mod schema;

use std::collections::{BTreeMap, BTreeSet};

use berth_testkit::{Exchange, SOON, Service, TestStack, wait_until};
use serde_json::{Value, json};

use crate::{BERTH, architecture, template};
use schema::Document;

/// What this slice serves at least: everything the journeys of 00-architecture need.
const SERVED: [&str; 37] = [
    "GET /buildinfo",
    "GET /files/{fileID}",
    "GET /notifications/inbox",
    "GET /organizations",
    "GET /organizations/{organization}",
    "GET /organizations/{organization}/members",
    "GET /organizations/{organization}/templates",
    "GET /organizations/{organization}/templates/{templatename}",
    "GET /prebuilds/settings",
    "GET /templates",
    "GET /templates/{template}",
    "GET /templates/{template}/versions",
    "GET /templateversions/{templateversion}",
    "GET /templateversions/{templateversion}/dry-run/{jobID}",
    "GET /templateversions/{templateversion}/dry-run/{jobID}/logs",
    "GET /templateversions/{templateversion}/dry-run/{jobID}/resources",
    "GET /templateversions/{templateversion}/logs",
    "GET /templateversions/{templateversion}/presets",
    "GET /templateversions/{templateversion}/rich-parameters",
    "GET /templateversions/{templateversion}/variables",
    "GET /users",
    "GET /users/{user}",
    "GET /users/{user}/organizations",
    "GET /users/{user}/workspace/{workspacename}",
    "GET /workspaceagents/{workspaceagent}",
    "GET /workspaceagents/{workspaceagent}/logs",
    "GET /workspacebuilds/{workspacebuild}",
    "GET /workspacebuilds/{workspacebuild}/logs",
    "GET /workspacebuilds/{workspacebuild}/parameters",
    "GET /workspaces",
    "GET /workspaces/{workspace}",
    "GET /workspaces/{workspace}/builds",
    "POST /files",
    "POST /organizations/{organization}/members/{user}/workspaces",
    "POST /templateversions/{templateversion}/dry-run",
    "POST /users/login",
    "POST /workspaces/{workspace}/builds",
];

/// Streams, and what answers with bytes: no JSON document to check.
const NOT_JSON: [&str; 6] = ["/watch", "/watch-ws", "/pty", "/reinit", "/state", "/files/{fileID}"];

fn contract() -> Option<Document> {
    let path = architecture::root().join("../shared/reference/rest-contract.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let mut contract: Value = serde_json::from_slice(&bytes).expect("it is JSON");
            let known = &mut contract["definitions"]["codersdk.Experiment"]["enum"];
            // Clients look for it before they watch; the contract is older than the flag.
            known.as_array_mut().expect("a closed set").push("workspace-build-updates".into());
            Some(Document::new(contract))
        }
        Err(error) => {
            eprintln!("SKIPPED: no REST contract at {} ({error})", path.display());
            None
        }
    }
}

/// Goes through everything that is served, as the owner of a deployment with a claimed workspace
/// and a pool, and checks every answer: status, shape, and the body of every refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_shape_of_the_contract() {
    let Some(contract) = contract() else { return };
    let stack = TestStack::builder(BERTH).replicas(Service::Provisioner, 1).start().await;
    let known = journey(&stack).await;
    for (template, methods) in contract.paths() {
        let streams = NOT_JSON.iter().any(|end| template.ends_with(end));
        if methods.get("get").is_some()
            && !streams
            && let Some(path) = filled(template, &known)
        {
            stack.app.get(&stack.owner, &path).await;
        }
    }
    let file = format!("/files/{}", known["{fileID}"]);
    stack.app.get(&stack.owner, &file).await;
    refusals(&stack, &known).await;

    let mut served = BTreeSet::new();
    let mut wrong = BTreeMap::<String, BTreeSet<String>>::new();
    for exchange in stack.app.exchanges() {
        let Some((template, operation)) = contract.operation(&exchange.method, &exchange.path)
        else {
            continue;
        };
        let name = format!("{} {template}", exchange.method);
        if exchange.status < 300 {
            served.insert(name.clone());
        }
        let found = complaints(&contract, operation, &exchange);
        if !found.is_empty() {
            wrong.entry(name).or_default().extend(found);
        }
    }
    assert!(wrong.is_empty(), "answers that break the contract: {wrong:#?}");
    let missing: Vec<_> = SERVED.iter().filter(|name| !served.contains(**name)).collect();
    assert!(missing.is_empty(), "not served: {missing:#?}\nserved: {served:#?}");
    eprintln!("{} operations of the contract were checked", served.len());
}

fn complaints(contract: &Document, operation: &Value, exchange: &Exchange) -> Vec<String> {
    let status = exchange.status.to_string();
    match operation["responses"].get(&status) {
        Some(response) => match response.get("schema") {
            Some(schema) if !exchange.path.starts_with("/files/") => {
                contract.check(schema, &exchange.body)
            }
            _ => Vec::new(),
        },
        None if exchange.status >= 500 => vec![format!("{status}: {}", exchange.body)],
        None if exchange.status >= 400 => contract.check_named("codersdk.Response", &exchange.body),
        None => vec![format!("{status} is no status of the contract")],
    }
}

/// A path with the names and ids of things that exist; `None` when it needs another kind of thing.
fn filled(template: &str, known: &BTreeMap<&str, String>) -> Option<String> {
    let segments = template
        .split('/')
        .map(|it| if it.starts_with('{') { known.get(it).map(String::as_str) } else { Some(it) });
    segments.collect::<Option<Vec<_>>>().map(|it| it.join("/"))
}

/// Makes one of everything. Answers with the value of each path parameter.
async fn journey(stack: &TestStack) -> BTreeMap<&'static str, String> {
    let app = &stack.app;
    let owner = &stack.owner;
    let pushed = stack.given_template("shapes", template::with_agent(&[("small", 1)])).await;
    stack.pool_has(&pushed, 1).await;
    stack.user("alice").await;
    let preset = app.preset(owner, &pushed, "small").await;
    let made = app.create_workspace(owner, &pushed, Some(&preset), "mine").await.ok();
    app.built(owner, &made).await;
    let path = format!("/workspaces/{}/builds", text(&made["id"]));
    app.post(owner, &path, json!({ "transition": "stop" })).await.ok();
    app.built(owner, &made).await;
    app.post(owner, &path, json!({ "transition": "start" })).await.ok();
    let workspace = app.built(owner, &made).await;
    let paused = json!({ "reconciliation_paused": true });
    app.put(owner, "/prebuilds/settings", paused.clone()).await.ok();
    let again = app.put(owner, "/prebuilds/settings", paused).await;
    assert_eq!(again.status, 304, "nothing was changed: {again:?}");
    dry_run(stack, &pushed).await;
    let token = json!({ "token_name": "ci", "lifetime": 3_600_000_000_000_i64, "scope": "all" });
    app.post(owner, "/users/me/keys/tokens", token).await;

    let version = text(&pushed["active_version_id"]);
    let details = app.get(owner, &format!("/templateversions/{version}")).await.expect(200);
    let build = &workspace["latest_build"];
    let agent = &build["resources"][0]["agents"][0];
    let file = "select min(id::text) from files";
    BTreeMap::from([
        ("{organization}", owner.organization.clone()),
        ("{organizationname}", "default".to_owned()),
        ("{user}", "owner".to_owned()),
        ("{template}", text(&pushed["id"])),
        ("{templatename}", "shapes".to_owned()),
        ("{templateversion}", version),
        ("{templateversionname}", text(&details["name"])),
        ("{workspace}", text(&workspace["id"])),
        ("{workspacename}", "mine".to_owned()),
        ("{workspacebuild}", text(&build["id"])),
        ("{buildnumber}", build["build_number"].to_string()),
        ("{workspaceagent}", text(&agent["id"])),
        ("{fileID}", stack.database().value(file).await),
    ])
}

/// A dry run of the active version, from its queueing to its resources.
async fn dry_run(stack: &TestStack, template: &Value) {
    let path = format!("/templateversions/{}/dry-run", text(&template["active_version_id"]));
    let job = stack.app.post(&stack.owner, &path, json!({})).await.expect(201);
    let path = format!("{path}/{}", text(&job["id"]));
    wait_until("the dry run ends", SOON, async || {
        let job = stack.app.get(&stack.owner, &path).await.expect(200);
        (!job["completed_at"].is_null()).then_some(())
    })
    .await;
    for more in ["resources", "logs"] {
        stack.app.get(&stack.owner, &format!("{path}/{more}")).await.expect(200);
    }
}

/// What is refused has the contract's error body too.
async fn refusals(stack: &TestStack, known: &BTreeMap<&'static str, String>) {
    let (app, owner) = (&stack.app, &stack.owner);
    let nothing = "00000000-0000-4000-8000-000000000000";
    for path in
        ["/templates", "/workspaces", "/workspacebuilds", "/templateversions", "/workspaceagents"]
    {
        app.get(owner, &format!("{path}/{nothing}")).await.expect(404);
    }
    app.get(&stack.nobody, "/workspaces").await.expect(401);
    let path = format!("/organizations/{}/members/me/workspaces", owner.organization);
    let bad = json!({ "name": "not a name", "template_id": known["{template}"] });
    app.post(owner, &path, bad).await.expect(400);
    let taken = json!({ "name": "mine", "template_id": known["{template}"] });
    app.post(owner, &path, taken).await.expect(409);
    let values = json!([{ "name": "size", "value": "gigantic" }]);
    let bad = json!({
        "name": "other", "template_id": known["{template}"], "rich_parameter_values": values,
    });
    let refused = app.post(owner, &path, bad).await.expect(400);
    assert!(refused["validations"].as_array().is_some_and(|it| !it.is_empty()), "{refused:#}");
    let login = json!({ "email": "owner@example.com", "password": "wrong" });
    app.post(&stack.nobody, "/users/login", login).await.expect(401);
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
