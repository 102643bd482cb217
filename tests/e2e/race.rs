//! Fifty people, one prebuild.

use std::collections::BTreeMap;

use berth_testkit::{Service, TestStack, User};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{BERTH, template};

const PEOPLE: usize = 50;

/// Exactly one gets the prebuild, everybody else an ordinary build at once; nobody gets an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_people_race_for_one_prebuild_and_one_gets_it() {
    let stack = TestStack::builder(BERTH)
        .replicas(Service::Api, 2)
        .replicas(Service::Provisioner, 2)
        .start()
        .await;
    let pushed = stack.given_template("race", template::plain(&[("small", 1)])).await;
    let preset = stack.app.preset(&stack.owner, &pushed, "small").await;
    stack.pool_has(&pushed, 1).await;
    // Otherwise the pool may be full again before the last of them asks.
    let paused = json!({ "reconciliation_paused": true });
    stack.app.put(&stack.owner, "/prebuilds/settings", paused).await.ok();
    let people = people(&stack).await;

    let (first, second) = (stack.app.clone(), stack.via(1));
    let asked = people.iter().enumerate().map(async |(number, person)| {
        let app = if number % 2 == 0 { &first } else { &second };
        app.create_workspace(person, &pushed, Some(&preset), "mine").await.ok()
    });
    let workspaces: Vec<Value> = join_all(asked).await;

    let mut outcomes = BTreeMap::<String, usize>::new();
    for (person, workspace) in people.iter().zip(&workspaces) {
        assert_eq!(workspace["owner_id"], person.id.as_str(), "{workspace:#}");
        let claim = &workspace["prebuild_claim"];
        if claim["outcome"] == "miss" {
            let reason = claim["reason"].as_str().unwrap_or_default();
            assert!(["empty", "all_locked", "paused"].contains(&reason), "{claim}");
        }
        *outcomes.entry(claim["outcome"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let expected = [("hit".to_owned(), 1), ("miss".to_owned(), PEOPLE - 1)];
    assert_eq!(outcomes, BTreeMap::from(expected));

    for (person, workspace) in people.iter().zip(&workspaces) {
        let built = stack.app.built(person, workspace).await;
        assert_eq!(built["latest_build"]["job"]["status"], "succeeded", "{built:#}");
    }
    let database = stack.database();
    let claims = "select count(*) from workspace_builds where stage = 'claim'";
    assert_eq!(database.count(claims).await, 1);
    let owners = "select count(distinct owner_id) from workspaces where not deleted";
    assert_eq!(database.count(owners).await, i64::try_from(PEOPLE).unwrap());
    let hits = "select count(*) from claim_attempts where outcome = 'hit'";
    assert_eq!(database.count(hits).await, 1);
    stack.settled().await;
}

async fn people(stack: &TestStack) -> Vec<User> {
    let names: Vec<String> = (0..PEOPLE).map(|number| format!("person{number}")).collect();
    join_all(names.iter().map(|name| stack.user(name))).await
}
