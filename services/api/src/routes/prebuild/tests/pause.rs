use serde_json::json;

use super::*;

const PAUSES: &str = "/prebuilds/pauses";

impl Stand {
    async fn pauses(&self, who: Who) -> Vec<Value> {
        self.get(who, PAUSES).await.expect(200).as_array().cloned().unwrap()
    }

    async fn unpause(&self, who: Who, pause: &Value) -> Answer {
        let path = format!("{PAUSES}/{}", pause["id"].as_str().unwrap());
        self.ask(who, Method::DELETE, &path, None).await
    }
}

/// Every scope: set, seen, told, looked at, ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_each_scope_marks_the_pools_that_it_concerns() {
    let stand = Stand::new().await;
    for (who, scope, id, name, concerned) in [
        (Who::Owner, "deployment", None, "", vec![SMALL, LARGE]),
        (Who::Ada, "organization", Some(ACME), "acme", vec![SMALL, LARGE]),
        (Who::Ada, "template", Some(TEMPLATE), "dev", vec![SMALL, LARGE]),
        (Who::Ada, "preset", Some(LARGE), "large", vec![LARGE]),
    ] {
        let body = json!({ "scope": scope, "scope_id": id, "reason": "maintenance" });
        let made = stand.post(who, PAUSES, body).await.expect(201);
        assert_eq!((made["scope"].as_str(), made["name"].as_str()), (Some(scope), Some(name)));
        assert_eq!((&made["reason"], &made["expires_at"]), (&json!("maintenance"), &Value::Null));
        assert_eq!(stand.marked().await, concerned, "{scope}");
        let wakes = stand.told().await;
        assert!(!wakes.is_empty() && wakes.iter().all(|it| it.contains("wake.reconciler.")));
        assert_eq!(stand.pauses(Who::Owner).await, std::slice::from_ref(&made));

        assert_eq!(stand.unpause(who, &made).await.status, 204);
        assert_eq!(stand.marked().await, concerned, "{scope}");
        assert_eq!(stand.unpause(who, &made).await.status, 404);
        assert_eq!(stand.pauses(Who::Owner).await, Vec::<Value>::new());
    }
    assert_eq!(stand.audited().await, 8);
}

/// Pools of old versions that have no members are nobody's concern.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_over_many_pools_is_one_event() {
    let stand = Stand::new().await;
    stand
        .database
        .rows(&format!(
            "
            insert into template_version_presets (id, template_version_id, name, desired_instances,
                    created_at)
                select gen_random_uuid(), case when n <= 200 then '{V1}'::uuid else '{V2}' end,
                       'many-' || n, 1, now()
                from generate_series(1, 400) n;
            insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
                select id, template_version_id, '{TEMPLATE}', '{ACME}'
                from template_version_presets where name like 'many-%'"
        ))
        .await;

    stand.post(Who::Owner, PAUSES, json!({ "scope": "deployment" })).await.expect(201);

    assert_eq!(stand.told().await, ["wake.reconciler.sweep"]);
    assert_eq!(stand.marked().await.len(), 202);
}

/// The same scope again takes the place of the pause that is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_pause_of_the_same_thing_replaces_the_first() {
    let stand = Stand::new().await;
    let body = |reason: &str| json!({ "scope": "preset", "scope_id": SMALL, "reason": reason });
    let first = stand.post(Who::Ada, PAUSES, body("one")).await.expect(201);
    let mut again = body("two");
    again["duration_seconds"] = 60.into();
    let second = stand.post(Who::Owner, PAUSES, again).await.expect(200);

    assert_eq!(first["id"], second["id"]);
    assert_eq!((&second["reason"], &second["actor_name"]), (&json!("two"), &json!("owner")));
    assert_eq!(stand.pauses(Who::Ada).await.len(), 1);
    let diff = "select diff -> 'reason' ->> 'old' from audit_logs where action = 'write'";
    assert_eq!(stand.database.value(diff).await, "one");
}

/// It resumes itself: the plan says when, and from then on the pause is nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_with_an_end_ends_by_itself() {
    let stand = Stand::new().await;
    let body = json!({ "scope": "deployment", "duration_seconds": 3600 });
    let made = stand.post(Who::Owner, PAUSES, body).await.expect(201);
    assert_eq!(made["expires_at"], "2026-11-21T13:00:00Z");
    let plan = format!("/templates/{TEMPLATE}/prebuilds/plan?preset=small");
    let paused = stand.get(Who::Ada, &plan).await.expect(200);
    assert_eq!(paused["pools"][0]["next_look"], "2026-11-21T13:00:00Z");
    assert_eq!(paused["pools"][0]["creates"], 0);
    let settings = "/prebuilds/settings";
    let flag = stand.get(Who::Owner, settings).await.expect(200);
    assert_eq!(flag["reconciliation_paused"], true);

    stand.api.advance(3600);
    // Daemons are heard of meanwhile.
    stand
        .database
        .rows(&format!("update provisioner_daemons set last_seen_at = '{}'", stand.now()))
        .await;

    assert_eq!(stand.pauses(Who::Owner).await, Vec::<Value>::new());
    let flag = stand.get(Who::Owner, settings).await.expect(200);
    assert_eq!(flag["reconciliation_paused"], false);
    let resumed = stand.get(Who::Ada, &plan).await.expect(200);
    assert_eq!(resumed["pools"][0]["creates"], 3);
    assert_eq!(stand.unpause(Who::Owner, &made).await.status, 404);
    let body = json!({ "scope": "deployment" });
    stand.post(Who::Owner, PAUSES, body).await.expect(201);
}

/// `PUT /prebuilds/settings` is the pause of the deployment without an end.
#[tokio::test(flavor = "multi_thread")]
async fn the_flag_of_the_deployment_is_a_pause_without_an_end() {
    let stand = Stand::new().await;
    let flag = async |paused: bool| {
        let body = json!({ "reconciliation_paused": paused });
        stand.put(Who::Owner, "/prebuilds/settings", body).await.status
    };
    let body = json!({ "scope": "deployment", "duration_seconds": 60, "reason": "short" });
    stand.post(Who::Owner, PAUSES, body).await.expect(201);
    assert_eq!(flag(true).await, 200, "one without an end takes its place");
    let pauses = stand.pauses(Who::Owner).await;
    assert_eq!((pauses.len(), &pauses[0]["expires_at"]), (1, &Value::Null));
    assert_eq!(flag(true).await, 304);
    assert_eq!(flag(false).await, 200);
    assert_eq!(stand.pauses(Who::Owner).await, Vec::<Value>::new());
    assert_eq!(flag(false).await, 304);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_out_of_bounds_is_refused_by_field_and_changes_nothing() {
    let stand = Stand::new().await;
    let before = stand.digest().await;
    for (body, field) in [
        (json!({ "scope": "galaxy" }), "scope"),
        (json!({ "scope": "preset" }), "scope_id"),
        (json!({ "scope": "deployment", "scope_id": ACME }), "scope_id"),
        (json!({ "scope": "deployment", "reason": "x".repeat(501) }), "reason"),
        (json!({ "scope": "deployment", "duration_seconds": 59 }), "duration_seconds"),
        (json!({ "scope": "deployment", "duration_seconds": 31_536_001 }), "duration_seconds"),
        (json!({ "scope": "deployment", "duration_seconds": i64::MAX }), "duration_seconds"),
        (json!({ "scope": "deployment", "duration_seconds": i64::MIN }), "duration_seconds"),
        (json!({ "scope": "deployment", "expires_at": "2026-11-21T12:00:59Z" }), "expires_at"),
        (json!({ "scope": "deployment", "expires_at": "2027-11-22T12:00:00Z" }), "expires_at"),
        (
            json!({ "scope": "deployment", "expires_at": "2026-11-21T13:00:00Z", "duration_seconds": 60 }),
            "duration_seconds",
        ),
    ] {
        assert_eq!(stand.post(Who::Owner, PAUSES, body.clone()).await.refused(), [field], "{body}");
    }
    for body in [json!({}), json!({ "scope": "deployment", "until": 1 })] {
        stand.post(Who::Owner, PAUSES, body).await.expect(400);
    }
    for scope in ["organization", "template", "preset"] {
        let body = json!({ "scope": scope, "scope_id": Uuid::from_u128(0xdead) });
        stand.post(Who::Owner, PAUSES, body).await.expect(404);
    }
    assert_eq!(stand.digest().await, before);
    let longest =
        json!({ "scope": "deployment", "duration_seconds": 31_536_000, "reason": "x".repeat(500) });
    stand.post(Who::Owner, PAUSES, longest).await.expect(201);
}

/// Whoever runs pools sees what keeps them still; others see nothing.
#[tokio::test(flavor = "multi_thread")]
async fn pauses_are_seen_by_those_who_may_change_what_they_concern() {
    let stand = Stand::new().await;
    for body in [
        json!({ "scope": "deployment" }),
        json!({ "scope": "organization", "scope_id": ACME }),
        json!({ "scope": "organization", "scope_id": ELSEWHERE }),
        json!({ "scope": "template", "scope_id": TEMPLATE }),
        json!({ "scope": "preset", "scope_id": SMALL }),
    ] {
        stand.post(Who::Owner, PAUSES, body).await.expect(201);
    }
    let seen = async |who| stand.pauses(who).await.len();
    assert_eq!((seen(Who::Owner).await, seen(Who::Ada).await), (5, 4));
    assert_eq!((seen(Who::Bob).await, seen(Who::Eve).await), (0, 0));
    // An administrator of the one template.
    let acl = format!("update templates set user_acl = '{{\"{}\": \"admin\"}}'", Who::Bob.id());
    stand.database.rows(&acl).await;
    assert_eq!(seen(Who::Bob).await, 2);
    let page = stand.get(Who::Owner, "/prebuilds/pauses?limit=2&offset=4").await.expect(200);
    assert_eq!(page.as_array().unwrap().len(), 1);
}
