//! What came of requests, as those see it who look after templates.

use super::*;

pub(super) async fn given_admin(stand: &Stand) {
    let sql = format!(
        "update organization_members set roles = '{{organization-template-admin}}'
         where user_id = '{}'",
        person(0)
    );
    stand.database.rows(&sql).await;
}

/// Names of the workspaces listed, and where the list goes on.
async fn listed(stand: &Stand, query: &str) -> (Vec<String>, Value) {
    let path = format!("/organizations/acme/claims{query}");
    let body = stand.api.get(0, &path).await.expect(200);
    let claims = body["claims"].as_array().unwrap();
    let names = claims.iter().map(|it| it["workspace_name"].as_str().unwrap().to_owned());
    (names.collect(), body["next"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_listed_newest_first_by_outcome_reason_template_time_and_page() {
    let stand = Stand::new().await;
    given_admin(&stand).await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    for name in ["hit", "empty", "bare"] {
        let mut body = small(name);
        if name == "bare" {
            body["rich_parameter_values"][0]["value"] = json!("large");
        }
        stand.api.create(1, &body).await.expect(200);
        stand.api.app.backbone.clock.advance(jiff::SignedDuration::from_mins(30));
    }
    let check = async |query: &str, expected: &[&str]| {
        assert_eq!(listed(&stand, query).await.0, expected, "{query}");
    };
    check("", &["bare", "empty", "hit"]).await;
    check("?outcome=miss", &["bare", "empty"]).await;
    check("?reason=not_a_pool", &["bare"]).await;
    check("?template=DEV&since=45m", &["bare"]).await;
    check("?since=2026-11-21T12:30:00Z", &["bare", "empty"]).await;
    check(&format!("?template={TEMPLATE}&outcome=hit"), &["hit"]).await;
    check("?template=other", &[]).await;

    let (mut pages, mut query) = (Vec::new(), "?limit=1".to_owned());
    loop {
        let (names, next) = listed(&stand, &query).await;
        pages.extend(names);
        let Some(next) = next.as_str() else { break };
        query = format!("?limit=1&before={next}");
    }
    assert_eq!(pages, ["bare", "empty", "hit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_not_everybodys_to_see_and_filters_are_checked() {
    let stand = Stand::new().await;
    given_admin(&stand).await;
    let path = "/organizations/acme/claims";
    assert!([403, 404].contains(&stand.api.get(1, path).await.status));
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("outcome=maybe", "outcome"),
        ("reason=bad", "reason"),
        ("since=yesterday", "since"),
        ("before=1", "before"),
    ] {
        let answer = stand.api.get(0, &format!("{path}?{query}")).await;
        assert_eq!(answer.refused(), [field], "{query}");
    }
}
