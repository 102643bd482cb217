use berth_db::pool::{self, BuildIds, NewPrebuilds, Patience};
use berth_domain::id::{
    BuildId, JobId, OrganizationId, PresetId, TemplateId, VersionId, WorkspaceId,
};
use berth_testkit::{SOON, wait_until};
use jiff::SignedDuration;
use serde_json::json;

use super::*;

fn path(tail: &str) -> String {
    format!("/templates/{TEMPLATE}/prebuilds/{tail}")
}

const WAITING: &str = "select count(*) from pg_stat_activity
                       where wait_event_type = 'Lock' and datname = current_database()";

impl Stand {
    async fn invalidate(&self, body: Option<Value>) -> Answer {
        self.ask(Who::Ada, Method::POST, &path("invalidate"), body).await
    }

    /// A pass whose clock says `now` orders a prebuild.
    async fn order(db: impl berth_db::Executor<'_>, now: Timestamp) {
        let id = Uuid::from_u128(0x2000);
        let ids = BuildIds { workspace: WorkspaceId(id), build: BuildId(id), job: JobId(id) };
        let new = NewPrebuilds {
            preset_id: PresetId(SMALL),
            template_id: TemplateId(TEMPLATE),
            organization_id: OrganizationId(ACME),
            version_id: VersionId(V1),
            ids: &[ids],
            names: &["prebuild-new".to_owned()],
            ttl_seconds: 0,
            parameters: &[],
            trace: &json!({}),
            now,
        };
        assert_eq!(pool::insert_prebuilds(db, &new).await.unwrap().len(), 1);
    }

    async fn made_ready(&self) {
        self.database
            .rows("update workspaces set pool_state = 'ready' where pool_state = 'starting'")
            .await;
    }

    /// Whether somebody who asks for a workspace is given a prebuild.
    async fn is_served(&self, name: &str) -> bool {
        let body = json!({
            "name": name, "template_id": TEMPLATE, "template_version_preset_id": SMALL,
        });
        let path = format!("/organizations/{ACME}/members/me/workspaces");
        let made = self.post(Who::Bob, &path, body).await.expect(200);
        made["prebuild_claim"]["outcome"] == "hit"
    }
}

/// Whatever other processes' clocks said when they made a prebuild, it is nobody's any more.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_made_before_an_invalidation_is_claimable_after_it() {
    let stand = Stand::new().await;
    stand.given_prebuild(1, SMALL, "ready", "2026-11-21T11:00:00Z").await;
    stand.given_prebuild(2, SMALL, "ready", NOW).await;
    // Made by a process whose clock is five minutes ahead.
    stand.given_prebuild(3, SMALL, "ready", "2026-11-21T12:05:00Z").await;
    stand.given_prebuild(4, SMALL, "starting", "2026-11-21T12:04:00Z").await;
    assert_eq!(stand.claimable(SMALL).await, 3);

    let answer = stand.invalidate(None).await.expect(200);

    assert_eq!(answer["invalidated"].as_array().unwrap().len(), 3);
    stand.made_ready().await;
    assert_eq!(stand.claimable(SMALL).await, 0);
    stand.api.advance(3600);
    assert_eq!(stand.claimable(SMALL).await, 0);
    assert!(!stand.is_served("one").await);
    let moment = format!(
        "select last_invalidated_at = '2026-11-21T12:05:00.000001Z'
                          from prebuild_pools where preset_id = '{SMALL}'"
    );
    assert_eq!(stand.database.value(&moment).await, "t");
    assert!(stand.marked().await.contains(&SMALL));
    assert!(stand.told().await.iter().any(|it| it.ends_with(".invalidated")));
}

/// What a pass orders after the invalidation is valid, even where the pass' clock is behind.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_ordered_after_an_invalidation_is_claimable() {
    let stand = Stand::new().await;
    stand.given_prebuild(1, SMALL, "ready", "2026-11-21T12:05:00Z").await;
    stand.invalidate(Some(json!({ "preset_id": SMALL }))).await.expect(200);

    let behind = stand.now() - SignedDuration::from_mins(10);
    Stand::order(stand.api.app.db(), behind).await;
    stand.made_ready().await;

    assert_eq!(stand.claimable(SMALL).await, 1);
}

/// A pass that was decided before and commits while the invalidation waits for it is caught.
#[tokio::test(flavor = "multi_thread")]
async fn a_prebuild_that_is_ordered_meanwhile_is_invalid_too() {
    let stand = Stand::new().await;
    let mut pass = berth_db::begin(stand.api.app.db()).await.unwrap();
    let (now, settings) = (stand.now(), &stand.api.app.config.prebuilds);
    let small = PresetId(SMALL);
    pool::lock(&mut pass, small, Patience::Wait, settings, now).await.unwrap();
    let ahead = now + SignedDuration::from_mins(5);
    Stand::order(&mut *pass, ahead).await;

    let (answer, ()) = tokio::join!(stand.invalidate(None), async {
        wait_until("the invalidation waits for the pass", SOON, async || {
            (stand.database.count(WAITING).await == 1).then_some(())
        })
        .await;
        pass.commit().await.unwrap();
    });

    answer.expect(200);
    stand.made_ready().await;
    stand.api.advance(3600);
    assert_eq!(stand.claimable(SMALL).await, 0);
}

/// A claim that runs while the invalidation is being committed gets none of its prebuilds.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_beside_an_invalidation_gets_nothing_invalid() {
    let stand = Stand::new().await;
    stand.given_prebuild(1, SMALL, "ready", "2026-11-21T11:00:00Z").await;
    let mut work = stand.api.app.begin().await.unwrap();
    let now = work.now();
    let template = TemplateId(TEMPLATE);
    berth_db::prebuild::invalidate(work.conn(), template, None, now).await.unwrap();

    let is_served = stand.is_served("one").await;
    work.commit().await.unwrap();

    assert!(!is_served);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_preset_can_be_invalidated_alone() {
    let stand = Stand::new().await;
    stand.given_prebuild(1, SMALL, "ready", "2026-11-21T11:00:00Z").await;
    stand.given_prebuild(2, LARGE, "ready", "2026-11-21T11:00:00Z").await;

    let answer = stand.invalidate(Some(json!({ "preset_id": LARGE }))).await.expect(200);

    assert_eq!(answer, json!({ "invalidated": [LARGE] }));
    assert_eq!((stand.claimable(SMALL).await, stand.claimable(LARGE).await), (1, 0));
    assert!(stand.is_served("one").await);
    let nothing = stand.invalidate(Some(json!({ "preset_id": BARE }))).await;
    assert_eq!(nothing.refused(), ["preset_id"]);
    stand.invalidate(Some(json!({ "preset_id": 7 }))).await.expect(400);
}

/// Failures are forgotten, the pool is looked at, and a second reset finds nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_closes_the_breaker_with_the_next_plan() {
    let stand = Stand::new().await;
    stand
        .database
        .rows(
            "update prebuild_pools
             set prebuild_status = 'hard_limited', consecutive_failures = 3,
                 breaker_opened_at = '2026-11-21T11:55:00Z'",
        )
        .await;
    let reset = async |body| stand.ask(Who::Ada, Method::POST, &path("reset"), body).await;

    let one = reset(Some(json!({ "preset": "large" }))).await.expect(200);
    assert_eq!(one, json!({ "reset": [{ "preset_id": LARGE, "preset_name": "large" }] }));
    assert_eq!(stand.marked().await, [LARGE]);
    let plan = stand.get(Who::Ada, &path("plan?preset=large")).await.expect(200);
    let actions = plan["pools"][0]["actions"].as_array().unwrap();
    assert!(actions.contains(&json!({ "action": "close_breaker" })), "{actions:?}");
    assert_eq!(plan["pools"][0]["creates"], 1, "{plan:#}");

    let others = reset(None).await.expect(200);
    assert_eq!(others["reset"].as_array().unwrap().len(), 3, "{others:#}");
    let audited = stand.audited().await;
    // The reconciler closes breakers; until it has, they are open and can be reset again.
    stand.database.rows("update prebuild_pools set prebuild_status = 'healthy'").await;
    stand.marked().await;
    assert_eq!(reset(None).await.expect(200), json!({ "reset": [] }));
    assert_eq!((stand.audited().await, stand.marked().await.len()), (audited, 0));
    assert_eq!(reset(Some(json!({ "preset": "unheard-of" }))).await.refused(), ["preset"]);
    reset(Some(json!({ "presets": "large" }))).await.expect(400);
}
