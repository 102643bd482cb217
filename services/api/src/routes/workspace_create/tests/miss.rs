//! Why no prebuild served: the response says it, and the attempt keeps it.

use berth_service_kit::Period;
use berth_testkit::{SOON, wait_until};

use super::*;
use crate::config::ClaimConfig;

/// Asks for a small one, and checks what the response and the stored attempt say.
async fn reason(stand: &Stand, name: &str) -> Value {
    let told = stand.api.create(1, &small(name)).await.expect(200);
    let claim = told["prebuild_claim"].clone();
    assert_eq!(claim["outcome"], "miss", "{claim}");
    let id = told["id"].as_str().unwrap();
    let stored = format!("select reason from claim_attempts where workspace_id = '{id}'");
    assert_eq!(stand.database.value(&stored).await, claim["reason"].as_str().unwrap());
    claim
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_preset_matches_is_told_the_nearest_and_what_differs() {
    let stand = Stand::new().await;
    let mut body = small("mine");
    body["rich_parameter_values"] = json!([{ "name": "size", "value": "huge" }]);
    let told = stand.api.create(1, &body).await.expect(200)["prebuild_claim"].clone();
    assert_eq!(told["reason"], "no_matching_preset");
    assert_eq!(told["nearest_preset"]["name"], "large");
    let differing = json!([{ "name": "size", "preset": "large", "requested": "huge" }]);
    assert_eq!(told["nearest_preset"]["differing"], differing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preset_without_prebuilds_is_not_a_pool() {
    let stand = Stand::new().await;
    let mut body = small("mine");
    body["rich_parameter_values"] = json!([{ "name": "size", "value": "large" }]);
    let told = stand.api.create(1, &body).await.expect(200);
    assert_eq!(told["prebuild_claim"], json!({ "outcome": "miss", "reason": "not_a_pool" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_pool_tells_what_holds_it() {
    let stand = Stand::new().await;
    assert_eq!(reason(&stand, "empty").await["reason"], "empty");
    for (status, expected) in [
        ("hard_limited", "hard_limited"),
        ("validation_failed", "validation_failed"),
        ("healthy", "empty"),
    ] {
        let sql = format!("update prebuild_pools set prebuild_status = '{status}'");
        stand.database.rows(&sql).await;
        assert_eq!(reason(&stand, &status.replace('_', "-")).await["reason"], expected);
    }
    for (stored, expected) in [
        (r#"[{"reason": "capacity"}]"#, "capacity"),
        (r#"[{"reason": "backoff", "failures": 2, "until": "2026-11-21T12:05:00Z"}]"#, "backoff"),
    ] {
        let sql = format!("update prebuild_pools set last_reasons = '{stored}'");
        stand.database.rows(&sql).await;
        assert_eq!(reason(&stand, expected).await["reason"], expected);
    }
    let pause = format!(
        "insert into prebuild_pauses (id, scope, scope_id, reason, actor_id, created_at)
         values ('{ACME}', 'organization', '{ACME}', 'freeze', '{}', now())",
        person(0)
    );
    stand.database.rows(&pause).await;
    assert_eq!(reason(&stand, "paused").await["reason"], "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_ready_ones_tells_why_they_are_not() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 2, 0).await;
    stand.database.rows("update workspaces set pool_expires_at = '2026-11-21T11:59:59Z'").await;
    let told = reason(&stand, "expired").await;
    assert_eq!((&told["reason"], &told["expired"]), (&json!("expired"), &json!(2)));

    stand.given_prebuilds(SMALL, "starting", 1, 0).await;
    let told = reason(&stand, "starting").await;
    assert_eq!((&told["reason"], &told["starting"]), (&json!("none_ready"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_are_switched_off_leave_the_pool_alone() {
    let claims = ClaimConfig { enabled: false, ..ClaimConfig::default() };
    let stand = Stand::with(Config { claims, ..Config::default() }).await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    assert_eq!(reason(&stand, "mine").await["reason"], "disabled");
    assert_eq!(stand.claimable().await, 1);
}

/// Somebody holds the only ready one: nobody waits for him.
#[tokio::test(flavor = "multi_thread")]
async fn prebuilds_that_are_being_claimed_are_not_waited_for() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let database = stand.database.clone();
    let holder = tokio::spawn(async move {
        let hold = "begin; select from workspaces for update; select pg_sleep(60)";
        database.rows(hold).await;
    });
    let holding = "select count(*) from pg_stat_activity
                   where datname = current_database() and wait_event = 'PgSleep'";
    wait_until("somebody holds it", SOON, async || {
        (stand.database.count(holding).await == 1).then_some(())
    })
    .await;
    let told = reason(&stand, "mine").await;
    assert_eq!((&told["reason"], &told["ready"]), (&json!("all_locked"), &json!(1)));
    holder.abort();
}

/// As by an agent's report, which is over before the request has waited for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_prebuild_that_was_locked_for_a_moment_is_claimed_by_the_same_request() {
    let claims = ClaimConfig { patience: Period::from_secs(10), ..ClaimConfig::default() };
    let stand = Stand::with(Config { claims, ..Config::default() }).await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let held = stand.database.hold("begin; select from workspaces for update").await;
    let release = async {
        let looked = "select count(*) from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid()
                        and (query ilike 'rollback%' or query like '%ready_expired%')";
        wait_until("the first try missed", SOON, async || {
            (stand.database.count(looked).await > 0).then_some(())
        })
        .await;
        held.release().await;
    };
    let body = small("mine");
    let (told, ()) = tokio::join!(stand.api.create(1, &body), release);
    assert_eq!(told.expect(200)["prebuild_claim"]["outcome"], "hit");
    assert_eq!(stand.claimable().await, 0);
}
