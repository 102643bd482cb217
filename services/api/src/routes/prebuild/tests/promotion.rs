use berth_testkit::{SOON, wait_until};
use serde_json::json;

use super::*;

/// "Promotion called off".
const CALLED_OFF: &str = "notify.5e9b3c74-a1d8-4b06-93f2-0c6de85741ab";

impl Stand {
    async fn promote(&self, who: Who, body: Value) -> Answer {
        self.ask(who, Method::PATCH, &format!("/templates/{TEMPLATE}/versions"), Some(body)).await
    }

    async fn promotion(&self, who: Who, method: Method) -> Answer {
        self.ask(who, method, &format!("/templates/{TEMPLATE}/promotion"), None).await
    }

    async fn create(&self, name: &str, more: Value) -> Value {
        let mut body = json!({ "name": name, "template_id": TEMPLATE });
        for (field, value) in more.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        self.post(Who::Bob, "/users/me/workspaces", body).await.expect(200)
    }
}

fn warm() -> Value {
    json!({ "id": V2, "prewarm": true, "ready_percent": 50, "timeout_seconds": 600 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_promotion_is_opened_shown_and_cancelled() {
    let stand = Stand::new().await;
    stand.promotion(Who::Ada, Method::GET).await.expect(404);
    stand.promotion(Who::Ada, Method::DELETE).await.expect(409);

    let opened = stand.promote(Who::Ada, warm()).await.expect(202);
    assert_eq!(opened["candidate_version_name"], "v2");
    assert_eq!(opened["deadline_at"], "2026-11-21T12:10:00Z");
    let pool = &opened["presets"][0];
    assert_eq!((&pool["preset_name"], &pool["ready"]), (&json!("small"), &json!(0)));
    assert_eq!(pool["wanted"], 2, "half of three, rounded up");
    assert!(stand.marked().await.contains(&OTHER_SMALL));
    assert_eq!(stand.promotion(Who::Ada, Method::GET).await.expect(200), opened);
    let again = stand.promote(Who::Owner, warm()).await.expect(409);
    assert!(again["message"].as_str().is_some_and(|it| it.contains("\"v2\"")), "{again:#}");

    let ended = stand.promotion(Who::Ada, Method::DELETE).await.expect(200);
    assert_eq!((&ended["id"], &ended["outcome"]), (&opened["id"], &json!("canceled")));
    assert!(stand.marked().await.contains(&OTHER_SMALL));
    assert_eq!(stand.audited().await, 2);
    assert!(!stand.told().await.contains(&CALLED_OFF.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_neither_promote_nor_look_nor_cancel() {
    let stand = Stand::new().await;
    stand.promote(Who::Ada, warm()).await.expect(202);
    let before = stand.digest().await;
    for (who, status) in [(Who::Bob, 403), (Who::Eve, 404), (Who::Nobody, 401)] {
        for body in [warm(), json!({ "id": V2 })] {
            stand.promote(who, body).await.expect(status);
        }
        stand.promotion(who, Method::GET).await.expect(status);
        stand.promotion(who, Method::DELETE).await.expect(status);
    }
    assert_eq!(stand.digest().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn deprecation_and_deletion_call_a_promotion_off() {
    for (method, body, why) in [
        (Method::PATCH, json!({ "deprecation_message": "use dev2" }), "deprecated"),
        (Method::DELETE, json!({}), "deleted"),
    ] {
        let stand = Stand::new().await;
        stand.promote(Who::Ada, warm()).await.expect(202);
        stand.told().await;

        let path = format!("/templates/{TEMPLATE}");
        stand.ask(Who::Owner, method, &path, Some(body)).await.expect(200);

        let ended = "select outcome || ': ' || reason from template_promotions";
        let expected = format!("called_off: the template was {why}");
        assert_eq!(stand.database.value(ended).await, expected);
        assert!(stand.told().await.contains(&CALLED_OFF.to_owned()));
        let candidates = "select count(*) from templates where candidate_version_id is not null";
        assert_eq!(stand.database.count(candidates).await, 0);
    }
}

/// The old version's prebuild goes to whoever asks for what it can be, and to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_prebuild_serves_only_requests_that_are_valid_for_it() {
    let stand = Stand::new().await;
    let kept = format!(
        r#"update prebuild_pools set policy = '{{"allow_previous_version": true}}';
           insert into template_version_parameters (template_version_id, name, type, mutable,
                   required, default_value)
               values ('{V2}', 'zone', 'string', true, false, 'eu')"#
    );
    stand.database.rows(&kept).await;
    let old = stand.given_prebuild(1, SMALL, "ready", NOW).await;
    stand.promote(Who::Ada, json!({ "id": V2 })).await.expect(200);
    stand.marked().await;

    let small = |more: Value| {
        let mut body = json!({ "template_version_preset_id": OTHER_SMALL });
        for (field, value) in more.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        body
    };
    let zone = small(json!({ "rich_parameter_values": [{ "name": "zone", "value": "us" }] }));
    let unlike = stand.create("unlike", zone).await;
    assert_eq!(unlike["prebuild_claim"]["outcome"], "miss", "{unlike:#}");
    let named = stand.create("named", small(json!({ "template_version_id": V2 }))).await;
    assert_eq!(named["prebuild_claim"]["outcome"], "miss", "{named:#}");

    let served = stand.create("served", small(json!({}))).await;
    let claim = &served["prebuild_claim"];
    let expected = json!({
        "outcome": "hit", "reason": null, "previous_version": true, "version_id": V1,
        "version_name": "v1",
    });
    assert_eq!((&served["id"], claim), (&json!(old), &expected));
    assert_eq!(served["latest_build"]["template_version_id"], json!(V1));
    let recorded = "select detail->>'version_name' from claim_attempts where outcome = 'hit'";
    assert_eq!(stand.database.value(recorded).await, "v1");
    let marked = stand.marked().await;
    assert!(marked.contains(&SMALL) && marked.contains(&OTHER_SMALL), "{marked:?}");
}

/// A promotion that commits between the look and the claim is followed: the request gets the new
/// version's prebuild.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_overtaken_by_a_promotion_follows_it() {
    let stand = Stand::new().await;
    let first = "update template_version_presets set is_default = true where name = 'small'";
    stand.database.rows(first).await;
    stand.given_prebuild(1, SMALL, "ready", NOW).await;
    let new = stand.given_prebuild(2, OTHER_SMALL, "ready", NOW).await;

    // Holds every claim back, promotes while one waits, and lets it go.
    let overtaking = format!(
        "begin;
         lock table workspaces in exclusive mode;
         do $$ begin
             while not exists (select from pg_locks where relation = 'workspaces'::regclass
                               and not granted) loop
                 perform pg_sleep(0.01);
             end loop;
         end $$;
         update templates set active_version_id = '{V2}', previous_version_id = '{V1}';
         commit"
    );
    let asking = async {
        let held = "select count(*) from pg_locks where relation = 'workspaces'::regclass
                        and mode = 'ExclusiveLock' and granted";
        wait_until("claims are held back", SOON, async || {
            (stand.database.count(held).await == 1).then_some(())
        })
        .await;
        stand.create("mine", json!({})).await
    };
    let (_, made) = tokio::join!(stand.database.rows(&overtaking), asking);

    assert_eq!(made["prebuild_claim"], json!({ "outcome": "hit", "reason": null }));
    assert_eq!((&made["id"], stand.claimable(OTHER_SMALL).await), (&json!(new), 0));
    assert_eq!(made["latest_build"]["template_version_id"], json!(V2));
}
