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

/// People of the large race, by how many.
const THOUSAND: usize = 1000;
const PREBUILDS: usize = 100;

/// A thousand people ask two replicas at once for a hundred prebuilds: a hundred get one, all others an
/// ordinary build, and nobody an error. Who then asks again by the same name gets 409 and nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_people_race_for_a_hundred_prebuilds_and_a_hundred_get_one() {
    let mut stack = TestStack::builder(BERTH).replicas(Service::Api, 2).start().await;
    let pushed = stack.given_template("rush", template::plain(&[("small", 0)])).await;
    let preset = stack.app.preset(&stack.owner, &pushed, "small").await;
    let paused = json!({ "reconciliation_paused": true });
    stack.app.put(&stack.owner, "/prebuilds/settings", paused).await.ok();
    // What is raced for is who gets what; nobody needs a thousand builds for that.
    stack.kill9(Service::Provisioner, 0).await;
    given_people_and_prebuilds(&stack, &pushed, &preset).await;
    let people: Vec<User> = (0..THOUSAND)
        .map(|n| User::with_token(&format!("{n:0>10}-abcdefghijklmnopqrstuv")))
        .collect();

    let (first, second) = (stack.app.clone(), stack.via(1));
    let rush = async |name: &str| {
        let body = json!({ "name": name, "template_id": pushed["id"],
                           "template_version_preset_id": preset });
        let asked = people.iter().enumerate().map(async |(number, person)| {
            let app = if number % 2 == 0 { &first } else { &second };
            app.post(person, "/users/me/workspaces", body.clone()).await
        });
        join_all(asked).await
    };
    let answers = rush("mine").await;
    let mut outcomes = BTreeMap::<String, usize>::new();
    for answer in answers {
        let claim = answer.ok()["prebuild_claim"].clone();
        let outcome = claim["outcome"].as_str().unwrap_or_default();
        if outcome == "miss" {
            let reason = claim["reason"].as_str().unwrap_or_default();
            assert!(["empty", "all_locked", "paused"].contains(&reason), "{claim}");
        }
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
    }
    let expected = [("hit".to_owned(), PREBUILDS), ("miss".to_owned(), THOUSAND - PREBUILDS)];
    assert_eq!(outcomes, BTreeMap::from(expected));
    let database = stack.database();
    let count = async |sql: &str| usize::try_from(database.count(sql).await).unwrap();
    assert_eq!(count("select count(distinct owner_id) from workspaces").await, THOUSAND);
    assert_eq!(count("select count(*) from workspaces").await, THOUSAND);
    let claims = "select count(distinct workspace_id) from workspace_builds where stage = 'claim'";
    assert_eq!(count(claims).await, PREBUILDS);
    let jobs = "select count(*) from provisioner_jobs where status = 'pending'";
    assert_eq!(count(jobs).await, THOUSAND);
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(count(deadlocks).await, 0);

    // Everybody's name is taken now.
    given_prebuilds(&stack, &pushed, &preset).await;
    for answer in rush("MINE").await {
        assert_eq!(answer.status, 409, "{answer:?}");
    }
    let left = "select count(*) from workspaces where pool_state = 'ready'";
    assert_eq!(count(left).await, PREBUILDS);
    assert_eq!(count("select count(*) from claim_attempts").await, THOUSAND);
    stack.settled().await;
}

/// Members of the template's organization, each with a token.
async fn given_people_and_prebuilds(stack: &TestStack, template: &Value, preset: &str) {
    let organization =
        template["organization_id"].as_str().expect("a template names its organization");
    let sql = format!(
        "
        create temporary table made as
            select n, gen_random_uuid() as id from generate_series(0, {THOUSAND} - 1) n;
        insert into users (id, username, email, created_at, updated_at)
            select id, 'racer' || n, 'racer' || n || '@example.com', now(), now() from made;
        insert into organization_members (organization_id, user_id, created_at, updated_at)
            select '{organization}', id, now(), now() from made;
        insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds, last_used_at,
                expires_at, created_at, updated_at)
            select lpad(n::text, 10, '0'), sha256('abcdefghijklmnopqrstuv'), id, 'token', 86400,
                   now(), now() + interval '1 day', now(), now()
            from made"
    );
    stack.database().rows(&sql).await;
    given_prebuilds(stack, template, preset).await;
}

/// Prebuilds that are ready: a hundred real ones would take a minute.
async fn given_prebuilds(stack: &TestStack, template: &Value, preset: &str) {
    let organization =
        template["organization_id"].as_str().expect("a template names its organization");
    let id = template["id"].as_str().expect("a template has an id");
    let user = "c42fdf75-3097-471c-8c33-fb52454d81c0";
    let sql = format!(
        "
        create temporary table made as
            select gen_random_uuid() as id, n, p.template_version_id as version, j.file_id
            from generate_series(1, {PREBUILDS}) n, prebuild_pools p
            join template_versions v on v.id = p.template_version_id
            join provisioner_jobs j on j.id = v.job_id
            where p.preset_id = '{preset}';
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            select id, '{organization}', '{user}', 'workspace_build', 'exec', 4, file_id, '{{}}',
                   now(), now(), now(), now() from made;
        insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                updated_at, last_used_at, pool_preset_id, pool_state, pool_ready_at, latest_build_id,
                latest_build_number)
            select id, '{user}', '{organization}', '{id}', 'prebuild-' || id, now(), now(), now(),
                   '{preset}', 'ready', now(), id, 1 from made;
        insert into workspace_builds (id, workspace_id, template_version_id, preset_id, build_number,
                transition, initiator_id, stage, job_id, created_at, updated_at)
            select id, id, version, '{preset}', 1, 'start', '{user}', 'prebuild', id, now(), now()
            from made"
    );
    stack.database().rows(&sql).await;
}
