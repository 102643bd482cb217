//! Idempotency keys.

use berth_testkit::{SOON, wait_until};
use futures_util::future::join_all;

use super::*;

async fn workspaces(stand: &Stand) -> i64 {
    let sql = format!("select count(*) from workspaces where owner_id <> '{PREBUILDS}'");
    stand.database.count(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_and_request_answer_with_the_same_workspace() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 2, 0).await;
    let first = stand.api.create_keyed(1, &small("mine"), Some("k")).await.expect(200);
    let before = stand.digest().await;
    let second = stand.api.create_keyed(1, &small("mine"), Some("k")).await.expect(200);
    assert_eq!(first["id"], second["id"]);
    assert_eq!(first["prebuild_claim"], second["prebuild_claim"]);
    assert_eq!(stand.digest().await, before);

    stand.api.create_keyed(1, &small("other"), Some("k")).await.expect(422);
    assert_eq!(stand.digest().await, before);
    // A key is its user's own.
    let theirs = stand.api.create_keyed(2, &small("mine"), Some("k")).await.expect(200);
    assert_ne!(first["id"], theirs["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_counts_for_a_day_with_a_prebuild_and_without() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    for name in ["hit", "miss", "later"] {
        let told = stand.api.create_keyed(1, &small(name), Some("k")).await.expect(200);
        assert_eq!(told["name"], name);
        stand.api.create_keyed(1, &small("other"), Some("k")).await.expect(422);
        stand.api.app.backbone.clock.advance(jiff::SignedDuration::from_hours(24));
    }
    assert_eq!(workspaces(&stand).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_1_to_255_printable_characters_and_others_write_nothing() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 2, 0).await;
    let before = stand.digest().await;
    let long = "k".repeat(256);
    for key in ["", &long, "schl\u{fc}ssel", "tab\tbed"] {
        let refused = stand.api.create_keyed(1, &small("mine"), Some(key)).await.expect(400);
        assert!(refused["message"].as_str().unwrap().contains("1 to 255"), "{refused}");
    }
    assert_eq!(stand.digest().await, before);
    stand.api.create_keyed(1, &small("mine"), Some(&long[..255])).await.expect(200);
}

/// A request that was refused made nothing that its key could stand for.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_refused_request_is_free() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 2, 0).await;
    stand.api.create_keyed(1, &small("not a name"), Some("k")).await.expect(400);
    stand.api.create(1, &small("taken")).await.expect(200);
    stand.api.create_keyed(1, &small("taken"), Some("k")).await.expect(409);
    let made = stand.api.create_keyed(1, &small("mine"), Some("k")).await.expect(200);
    let again = stand.api.create_keyed(1, &small("mine"), Some("k")).await.expect(200);
    assert_eq!(made["id"], again["id"]);
}

/// The client does not know whether its request arrived, and asks both replicas again and again.
#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_with_one_key_make_one_workspace_on_whatever_replica() {
    let stand = Stand::new().await;
    let other = Replica::over(&stand.database.url, 8, Config::default()).await;
    for (name, prebuilds) in [("hit", 8), ("miss", 0)] {
        stand
            .database
            .rows("update workspaces set pool_state = 'unready' where pool_state = 'ready'")
            .await;
        stand.given_prebuilds(SMALL, "ready", prebuilds, 0).await;
        let before = workspaces(&stand).await;
        let body = small(name);
        let asked = (0..8).map(|n| {
            let api = if n % 2 == 0 { &stand.api } else { &other };
            api.create_keyed(1, &body, Some(name))
        });
        let answers = join_all(asked).await;
        let ids: std::collections::BTreeSet<String> =
            answers.into_iter().map(|it| it.expect(200)["id"].to_string()).collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        assert_eq!(workspaces(&stand).await, before + 1);
    }
}

/// The connection to Postgres breaks after the commit and before the answer: whoever asks again with
/// the key gets the workspace that was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_heard_of_is_found_by_its_key() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 2, 0).await;
    let deaf = count::Proxy::before(&stand.database.url).await;
    let api = Replica::over(&deaf.url, 1, Config::default()).await;
    api.get(1, "/users/me").await.expect(200);
    deaf.drop_answer_to("update workspaces");
    let lost = api.create_keyed(1, &small("mine"), Some("k")).await;
    assert_eq!(lost.status, 503, "{:#}", lost.body);
    wait_until("the claim is committed", SOON, async || {
        (workspaces(&stand).await == 1).then_some(())
    })
    .await;

    let found = stand.api.create_keyed(1, &small("mine"), Some("k")).await.expect(200);
    assert_eq!(found["prebuild_claim"]["outcome"], "hit");
    assert_eq!((workspaces(&stand).await, stand.claimable().await), (1, 1));
}
