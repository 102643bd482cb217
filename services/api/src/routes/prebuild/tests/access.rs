use serde_json::json;

use super::*;

/// Every route, for everybody: who may, who may not, and who must not know.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_or_changes_the_pools_of_others() {
    let stand = Stand::new().await;
    let template = format!("/templates/{TEMPLATE}");
    let pause = |scope: &str, id: Uuid| Some(json!({ "scope": scope, "scope_id": id }));
    let below = |tail: &str| format!("{template}/{tail}");
    let pauses = || "/prebuilds/pauses".to_owned();
    let routes = [
        (Method::GET, below("pool-policy"), None, [200, 200, 200, 404]),
        (Method::PUT, below("pool-policy"), Some(json!({ "policy": {} })), [200, 200, 403, 404]),
        (Method::GET, below("prebuilds/plan"), None, [200, 200, 403, 404]),
        (Method::GET, below("prebuilds/explain"), None, [200, 200, 403, 404]),
        (Method::POST, below("prebuilds/reset"), None, [200, 200, 403, 404]),
        (Method::POST, below("prebuilds/invalidate"), None, [200, 200, 403, 404]),
        (Method::GET, pauses(), None, [200, 200, 200, 200]),
        (Method::POST, pauses(), Some(json!({ "scope": "deployment" })), [201, 404, 404, 404]),
        (Method::POST, pauses(), pause("organization", ACME), [201, 200, 403, 404]),
        (Method::POST, pauses(), pause("template", TEMPLATE), [201, 200, 403, 404]),
        (Method::POST, pauses(), pause("preset", SMALL), [201, 200, 403, 404]),
        (Method::GET, "/prebuilds/pools".to_owned(), None, [200, 200, 403, 403]),
    ];
    for (method, path, body, expected) in routes {
        for (who, status) in Who::ALL.into_iter().zip(expected) {
            let answer = stand.ask(who, method.clone(), &path, body.clone()).await;
            assert_eq!(answer.status, status, "{who:?} {method} {path} {body:?}: {}", answer.body);
        }
        let answer = stand.ask(Who::Nobody, method.clone(), &path, body.clone()).await;
        assert_eq!(answer.status, 401, "{method} {path}");
    }
}

/// Ending a pause needs what setting it needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_ended_by_those_who_could_have_set_it() {
    let stand = Stand::new().await;
    for (body, statuses) in [
        (json!({ "scope": "deployment" }), [404, 404, 404, 204]),
        (json!({ "scope": "template", "scope_id": TEMPLATE }), [404, 403, 204, 404]),
        (json!({ "scope": "preset", "scope_id": SMALL }), [404, 403, 204, 404]),
        (json!({ "scope": "organization", "scope_id": ACME }), [404, 403, 204, 404]),
        (json!({ "scope": "organization", "scope_id": ELSEWHERE }), [403, 404, 404, 204]),
    ] {
        let made = stand.post(Who::Owner, "/prebuilds/pauses", body.clone()).await.expect(201);
        let path = format!("/prebuilds/pauses/{}", made["id"].as_str().unwrap());
        for (who, status) in [Who::Eve, Who::Bob, Who::Ada, Who::Owner].into_iter().zip(statuses) {
            let answer = stand.ask(who, Method::DELETE, &path, None).await;
            assert_eq!(answer.status, status, "{who:?} ends {body}: {}", answer.body);
        }
    }
    let left = "select count(*) from prebuild_pauses";
    assert_eq!(stand.database.count(left).await, 0);
}

/// A pause of a template that is deleted can still be ended by whoever runs the deployment.
#[tokio::test(flavor = "multi_thread")]
async fn the_pause_of_something_that_is_gone_can_be_ended() {
    let stand = Stand::new().await;
    let body = json!({ "scope": "template", "scope_id": TEMPLATE });
    let made = stand.post(Who::Ada, "/prebuilds/pauses", body).await.expect(201);
    stand.database.rows("update templates set deleted = true").await;
    let path = format!("/prebuilds/pauses/{}", made["id"].as_str().unwrap());
    assert_eq!(stand.ask(Who::Owner, Method::DELETE, &path, None).await.status, 204);
}
