//! Quota is asked where the prebuild changes hands.

use super::*;

/// What the person spends at the moment.
async fn consumed(stand: &Stand, who: u128) -> i64 {
    let sql = format!(
        "select coalesce(sum(b.daily_cost), 0)::bigint from workspaces w
         join workspace_builds b on b.id = w.latest_build_id
         where w.owner_id = '{}' and not w.deleted",
        person(who)
    );
    stand.database.count(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_quota_is_409_and_consumes_nothing() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 11).await;
    let before = stand.digest().await;
    let refused = stand.api.create(1, &small("mine")).await.expect(409);
    assert!(refused["message"].as_str().unwrap().contains("quota"), "{refused}");
    assert_eq!(stand.digest().await, before);
}

/// The budget is 10 and each costs 4: of six that are asked for at once, two fit.
#[tokio::test(flavor = "multi_thread")]
async fn claims_at_once_never_spend_the_same_credits() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 6, 4).await;
    let bodies: Vec<Value> = (0..6).map(|n| small(&format!("mine-{n}"))).collect();
    let asked = bodies.iter().map(|body| stand.api.create(1, body));
    let mut statuses: Vec<u16> =
        futures_util::future::join_all(asked).await.iter().map(|it| it.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 409, 409, 409, 409]);
    assert_eq!(consumed(&stand, 1).await, 8);
    assert_eq!(stand.claimable().await, 4);
}
