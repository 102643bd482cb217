//! What a new workspace's life is from the claim on: as the request asks, within what the template
//! allows.

use super::*;

/// Asks for a workspace, from the pool or not, and gives what it was made: TTL, schedule, updates.
async fn made(stand: &Stand, from_pool: bool, change: &Value) -> [String; 3] {
    let name = stand.free_name();
    let mut body = small(&name);
    let fields = change.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    if from_pool {
        stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    }
    let told = stand.api.create(1, &body).await.expect(200);
    let outcome = if from_pool { "hit" } else { "miss" };
    assert_eq!(told["prebuild_claim"]["outcome"], outcome);
    let sql = format!(
        "select coalesce(ttl_ms::text, 'none'), coalesce(autostart_schedule, 'none'),
                automatic_updates, dormant_at, deleting_at, last_used_at = '{NOW}', deadline
         from workspaces w join workspace_builds b on b.id = w.latest_build_id
         where w.id = '{}'",
        told["id"].as_str().unwrap()
    );
    let mut rows = stand.database.rows(&sql).await;
    let row = rows.pop().unwrap();
    assert_eq!(row[3..], ["", "", "t", ""], "neither dormant nor with a deadline before it runs");
    for (at, field) in [(0, "ttl_ms"), (1, "autostart_schedule"), (2, "automatic_updates")] {
        let shown = match &told[field] {
            Value::Null => "none".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        assert_eq!(shown, row[at], "{field}");
    }
    [row[0].clone(), row[1].clone(), row[2].clone()]
}

#[tokio::test(flavor = "multi_thread")]
async fn request_and_template_say_when_a_new_workspace_starts_and_stops() {
    let stand = Stand::new().await;
    let asked = json!({
        "ttl_ms": 7_200_000,
        "autostart_schedule": "CRON_TZ=Europe/Berlin 30 9 * * 1-5",
        "automatic_updates": "always",
    });
    let table = [
        // Without a word in either.
        (("0", "true", "true"), json!({}), ["none", "none", "never"]),
        (
            ("0", "true", "true"),
            asked.clone(),
            ["7200000", "CRON_TZ=Europe/Berlin 30 9 * * 1-5", "always"],
        ),
        // The template's TTL, where the request has none; 0 asks for none.
        (("3600000", "true", "true"), json!({}), ["3600000", "none", "never"]),
        (("3600000", "true", "true"), json!({ "ttl_ms": 0 }), ["none", "none", "never"]),
        // What owners may not choose is the template's.
        (("3600000", "false", "false"), asked, ["3600000", "none", "always"]),
        (("0", "false", "true"), json!({ "ttl_ms": 7_200_000 }), ["none", "none", "never"]),
    ];
    for ((ttl, autostop, autostart), change, expected) in table {
        let sql = format!(
            "update templates set default_ttl_ms = {ttl}, allow_user_autostop = {autostop},
                    allow_user_autostart = {autostart}"
        );
        stand.database.rows(&sql).await;
        for from_pool in [true, false] {
            let told = made(&stand, from_pool, &change).await;
            assert_eq!(told, expected, "{change} of a template with {ttl}, pool: {from_pool}");
        }
    }
}

/// However they came to be on a prebuild.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_clears_what_a_prebuild_must_not_have() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let sql = "update workspaces set ttl_ms = 5, autostart_schedule = '0 0 * * *',
                      automatic_updates = 'always', dormant_at = now(), deleting_at = now(),
                      pool_expires_at = '2026-12-01T00:00:00Z'";
    stand.database.rows(sql).await;
    stand.api.create(1, &small("mine")).await.expect(200);
    let cleared = "select ttl_ms is null and autostart_schedule is null and dormant_at is null
                          and deleting_at is null and pool_expires_at is null
                          and automatic_updates = 'never' from workspaces where name = 'mine'";
    assert_eq!(stand.database.value(cleared).await, "t");
}
