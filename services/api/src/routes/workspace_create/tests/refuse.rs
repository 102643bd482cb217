//! What is refused is refused before anything is written, and names what is wrong.

use super::*;

/// A request changed in one place, and what is refused of it.
async fn refused(stand: &Stand, change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut body = small("mine");
    change(&mut body);
    let before = stand.digest().await;
    let fields = stand.api.create(1, &body).await.refused();
    assert_eq!(stand.digest().await, before);
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refused_parameter_is_named_at_once() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let rules = format!(
        "insert into template_version_parameters (template_version_id, name, type, mutable, required,
                default_value, options, validation_regex, validation_min, validation_max)
         values ('{V1}', 'count', 'number', true, false, '1', '[]', '', 1, 5),
                ('{V1}', 'host', 'string', true, false, 'abc', '[]', '^[a-z]+$', null, null),
                ('{V1}', 'flag', 'bool', true, false, 'true', '[]', '', null, null),
                ('{V1}', 'must', 'string', true, true, '', '[]', '', null, null),
                ('{V1}', 'zone', 'string', true, false, 'a', '[{{\"name\": \"A\", \"value\": \"a\"}}]',
                 '', null, null)"
    );
    stand.database.rows(&rules).await;
    let given = json!([
        { "name": "count", "value": "9" }, { "name": "host", "value": "A1" },
        { "name": "flag", "value": "maybe" }, { "name": "zone", "value": "b" },
        { "name": "nowhere", "value": "x" }, { "name": "size", "value": "small" },
        { "name": "size", "value": "large" },
    ]);
    let mut fields = refused(&stand, |body| body["rich_parameter_values"] = given).await;
    fields.sort();
    assert_eq!(fields, ["count", "flag", "host", "must", "nowhere", "size", "zone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn name_schedule_ttl_and_updates_are_checked() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    for (field, value) in [
        ("name", json!("not a name")),
        ("autostart_schedule", json!("30 9 * *")),
        ("ttl_ms", json!(5)),
        ("automatic_updates", json!("sometimes")),
    ] {
        assert_eq!(refused(&stand, |body| body[field] = value).await, [field]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_may_not_be_used_is_refused() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let set = async |sql: &str| stand.database.rows(sql).await;
    set("update templates set deprecation_message = 'use other'").await;
    assert_eq!(refused(&stand, |_| {}).await, ["template_id"]);
    set("update templates set deprecation_message = '', deleted = true").await;
    assert_eq!(refused(&stand, |_| {}).await, ["template_id"]);
    set("update templates set deleted = false, group_acl = '{}'").await;
    assert_eq!(refused(&stand, |_| {}).await, ["template_id"]);
    set(&format!("update templates set group_acl = '{{\"{ACME}\": \"use\"}}'")).await;
    set(&format!("update template_versions set archived = true where id = '{V0}'")).await;
    let old = |body: &mut Value| body["template_version_id"] = json!(V0);
    assert_eq!(refused(&stand, old).await, ["template_version_id"]);
    assert_eq!(refused(&stand, |body| body["template_id"] = json!(ACME)).await, ["template_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_workspaces_for_others_and_nobody_for_the_prebuilds_user() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let before = stand.digest().await;
    for owner in ["person2", PREBUILDS, "nobody"] {
        let path = format!("/users/{owner}/workspaces");
        let request = Replica::request(&path).method(Method::POST);
        let answer =
            stand.api.send(Some(&token(1)), request, Body::from(small("mine").to_string())).await;
        assert!([403, 404].contains(&answer.status), "{owner}: {answer:?}");
    }
    assert_eq!(stand.digest().await, before);
}
