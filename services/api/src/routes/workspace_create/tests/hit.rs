//! What a claim writes and answers.

use super::*;

/// Settings of the request, past the prebuild's own.
fn wanted() -> Value {
    let mut body = small("mine");
    body["ttl_ms"] = json!(3_600_000);
    body["autostart_schedule"] = json!("CRON_TZ=UTC 30 9 * * 1-5");
    body["automatic_updates"] = json!("always");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gives_the_prebuild_owner_name_and_settings_and_queues_its_build() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 3).await;
    let told = stand.api.create(1, &wanted()).await.expect(200);

    assert_eq!(told["prebuild_claim"], json!({ "outcome": "hit", "reason": null }));
    let row = stand
        .database
        .rows(
            "select w.owner_id, w.name, w.ttl_ms, w.autostart_schedule, w.automatic_updates,
                    w.pool_preset_id is null and w.pool_state is null and w.pool_ready_at is null,
                    w.dormant_at is null and w.deleting_at is null, w.revision,
                    w.latest_build_number, b.stage, b.daily_cost, b.initiator_id, b.preset_id,
                    j.class, j.status, (select string_agg(name || '=' || value, ',' order by name)
                                        from workspace_build_parameters where build_id = b.id)
             from workspaces w join workspace_builds b on b.id = w.latest_build_id
             join provisioner_jobs j on j.id = b.job_id where not w.deleted",
        )
        .await;
    let expected = [
        person(1).to_string(),
        "mine".to_owned(),
        "3600000".to_owned(),
        "CRON_TZ=UTC 30 9 * * 1-5".to_owned(),
        "always".to_owned(),
        "t".to_owned(),
        "t".to_owned(),
        "2".to_owned(),
        "2".to_owned(),
        "claim".to_owned(),
        "3".to_owned(),
        person(1).to_string(),
        SMALL.to_string(),
        "0".to_owned(),
        "pending".to_owned(),
        "region=none,size=small".to_owned(),
    ];
    assert_eq!(row, [expected.to_vec()]);
    let once =
        "select (select count(*) from claim_attempts a join workspaces w on w.id = a.workspace_id
                        where a.outcome = 'hit' and a.build_id = w.latest_build_id)
                     * (select count(*) from audit_logs a join workspaces w on w.id = a.resource_id)
                     * (select sum(claims) from prebuild_pool_marks)";
    assert_eq!(stand.database.value(once).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_answers_with_what_a_reader_sees() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 3).await;
    for (name, outcome) in [("first", "hit"), ("second", "miss")] {
        let mut body = wanted();
        body["name"] = json!(name);
        let told = stand.api.create(1, &body).await.expect(200);
        assert_eq!(told["prebuild_claim"]["outcome"], outcome);
        as_a_reader_sees_it(&stand, told).await;
    }
}

async fn as_a_reader_sees_it(stand: &Stand, mut told: Value) {
    let path = format!("/workspaces/{}", told["id"].as_str().unwrap());
    let mut seen = stand.api.get(1, &path).await.expect(200);

    // Who creates is told of the claim, and who follows the build of its place in the queue.
    told.as_object_mut().unwrap().remove("prebuild_claim");
    seen.as_object_mut().unwrap().remove("prebuild_claim");
    for view in [&mut told, &mut seen] {
        let job = view["latest_build"]["job"].as_object_mut().unwrap();
        job.remove("queue_position");
        job.remove("queue_size");
    }
    assert_eq!(told, seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_claim_name_the_workspace_that_was_found() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let told = stand.api.create(1, &small("mine")).await.expect(200);
    let id = told["id"].as_str().unwrap();

    let stored = "select substr(subject, strpos(subject, '.') + 1), convert_from(payload, 'UTF8'),
                         headers->>'ce-type' from outbox order by subject";
    let rows = stand.database.rows(stored).await;
    let [build, workspace] = rows.as_slice() else { panic!("{rows:#?}") };
    assert_eq!(build[0], format!("builds.{ACME}.{id}.queued"));
    let payload: Value = serde_json::from_str(&build[1]).unwrap();
    assert_eq!(payload["workspace_id"], id);
    assert_eq!((&payload["build_number"], &payload["revision"]), (&json!(2), &json!(2)));
    assert_eq!(payload["build_id"], told["latest_build"]["id"]);
    assert_eq!(build[2], "berth.build.changed");
    assert_eq!(workspace[0], format!("workspaces.{ACME}.{id}.claimed"));
    let payload: Value = serde_json::from_str(&workspace[1]).unwrap();
    assert_eq!((&payload["workspace_id"], &payload["what"]), (&json!(id), &json!("claimed")));
    assert_eq!(payload.get("build_number"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_made_for_the_prebuild_end_with_the_claim() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let key = format!(
        "insert into api_keys (id, secret_hash, user_id, login_type, workspace_id, lifetime_seconds,
                last_used_at, expires_at, created_at, updated_at)
         select 'ofprebuild', sha256('x'), '{}', 'token', id, 60, now(), now(), now(), now()
         from workspaces",
        person(0)
    );
    stand.database.rows(&key).await;
    stand.api.create(1, &small("mine")).await.expect(200);
    assert_eq!(
        stand.database.count("select count(*) from api_keys where id = 'ofprebuild'").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_use_is_409_and_consumes_nothing() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 5, 0).await;
    stand.api.create(1, &small("mine")).await.expect(200);
    let before = stand.digest().await;
    let refused = stand.api.create(1, &small("MINE")).await.expect(409);
    assert_eq!(refused["validations"][0]["field"], "name");
    assert_eq!(stand.digest().await, before);

    // At once, so that the checks of all may come before the first claim.
    let body = small("another");
    let answers = futures_util::future::join_all((0..6).map(|_| stand.api.create(1, &body))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|it| it.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409]);
    assert_eq!(stand.claimable().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preset_of_another_version_is_400_and_names_those_that_there_are() {
    let stand = Stand::new().await;
    stand.given_prebuilds(OLD, "ready", 1, 0).await;
    let before = stand.digest().await;
    let mut body = small("mine");
    for other in [OLD, Uuid::from_u128(999)] {
        body["template_version_preset_id"] = json!(other);
        let answer = stand.api.create(1, &body).await;
        assert!(answer.body["validations"][0]["detail"].as_str().unwrap().contains("large"));
        assert_eq!(answer.refused(), ["template_version_preset_id"]);
    }
    assert_eq!(stand.digest().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_that_is_not_the_templates_is_refused() {
    let stand = Stand::new().await;
    stand
        .database
        .rows(&format!(
            "insert into organizations (id, name, created_at, updated_at)
        values ('{}', 'elsewhere', now(), now())",
            Uuid::from_u128(2)
        ))
        .await;
    let post = async |organization: &str| {
        let path = format!("/organizations/{organization}/members/me/workspaces");
        let request = Replica::request(&path).method(Method::POST);
        stand.api.send(Some(&token(1)), request, Body::from(small("mine").to_string())).await.status
    };
    // Not there, there but not to be seen, and the right one by id and in another letter case.
    assert_eq!(post("nowhere").await, 404);
    assert_eq!(post("elsewhere").await, 404);
    assert_eq!(post(&ACME.to_string()).await, 200);
    assert_eq!(post("ACME").await, 409);
}
