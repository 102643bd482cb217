//! Values of parameters from build to build.

use super::*;

/// Values by parameter.
type Pairs<'a> = &'a [(&'a str, &'a str)];

/// A workspace of person 1 whose build is done, and a preset `large` that it did not come from.
async fn given_workspace(stand: &Stand) -> String {
    let sql = format!(
        "insert into template_version_parameters (template_version_id, name, type, mutable, required,
                 ephemeral, default_value, validation_monotonic)
         values ('{V1}', 'up', 'number', true, false, false, '1', 'increasing'),
                ('{V1}', 'down', 'number', true, false, false, '9', 'decreasing'),
                ('{V1}', 'once', 'string', true, false, true, 'no', ''),
                ('{V1}', 'must', 'string', true, true, false, '', ''),
                ('{V1}', 'flag', 'bool', true, false, false, 'true', '')"
    );
    stand.database.rows(&sql).await;
    let mut body = small("mine");
    let values = [("size", "small"), ("up", "5"), ("down", "5"), ("once", "yes"), ("must", "x")];
    body["rich_parameter_values"] = list(&values);
    let told = stand.api.create(1, &body).await.expect(200);
    done(stand).await;
    told["id"].as_str().unwrap().to_owned()
}

fn list(values: Pairs<'_>) -> Value {
    values.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

/// The builds that wait are done.
async fn done(stand: &Stand) {
    let sql = "update provisioner_jobs set started_at = now(), completed_at = now()
               where completed_at is null";
    stand.database.rows(sql).await;
}

async fn build(stand: &Stand, workspace: &str, body: &Value) -> Answer {
    let path = format!("/workspaces/{workspace}/builds");
    let request = Replica::request(&path).method(Method::POST);
    stand.api.send(Some(&token(1)), request, Body::from(body.to_string())).await
}

/// Starts with these values, and gives what the build has.
async fn started(stand: &Stand, workspace: &str, values: Pairs<'_>) -> String {
    let body = json!({ "transition": "start", "rich_parameter_values": list(values) });
    let made = build(stand, workspace, &body).await.expect(200);
    done(stand).await;
    let path = format!("/workspacebuilds/{}/parameters", made["id"].as_str().unwrap());
    let stored = stand.api.get(1, &path).await.expect(200);
    let text = |it: &Value, field: &str| it[field].as_str().unwrap().to_owned();
    let pairs = stored.as_array().unwrap().iter();
    let mut pairs: Vec<String> =
        pairs.map(|it| format!("{}={}", text(it, "name"), text(it, "value"))).collect();
    pairs.sort();
    pairs.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_build_that_breaks_a_rule_is_400_names_each_field_and_writes_nothing() {
    let stand = Stand::new().await;
    let workspace = given_workspace(&stand).await;
    let before = stand.digest().await;
    let table: [(Pairs<'_>, &[&str]); 8] = [
        (&[("up", "4")], &["up"]),
        (&[("down", "6")], &["down"]),
        (&[("size", "large")], &["size"]),
        (&[("region", "eu")], &["region"]),
        (&[("flag", "maybe")], &["flag"]),
        (&[("nowhere", "x")], &["nowhere"]),
        (&[("up", "6"), ("up", "7")], &["up"]),
        (
            &[("up", "x"), ("down", "6"), ("size", "l"), ("flag", "2")],
            &["down", "flag", "size", "up"],
        ),
    ];
    for transition in ["start", "stop"] {
        for (values, expected) in table {
            let body = json!({ "transition": transition, "rich_parameter_values": list(values) });
            let mut fields = build(&stand, &workspace, &body).await.refused();
            fields.sort();
            assert_eq!(fields, expected, "{values:?}");
        }
    }
    // A preset is no way round either.
    let body = json!({ "transition": "start", "template_version_preset_id": LARGE });
    assert_eq!(build(&stand, &workspace, &body).await.refused(), ["size"]);
    assert_eq!(stand.digest().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_carried_over_but_those_that_hold_for_one_build() {
    let stand = Stand::new().await;
    let workspace = given_workspace(&stand).await;
    let started = async |values: Pairs<'_>| started(&stand, &workspace, values).await;
    let kept = "flag=true must=x once=no region=none size=small";
    assert_eq!(started(&[]).await, format!("down=5 {kept} up=5"));
    // What must not change may be said again; staying is allowed both ways.
    let again = [("size", "small"), ("region", "none"), ("up", "5.0"), ("down", "5")];
    assert_eq!(started(&again).await, format!("down=5 {kept} up=5.0"));
    let kept = "flag=false must=y once=now region=none size=small";
    let moved = [("up", "6"), ("down", "-1.5"), ("once", "now"), ("flag", "false"), ("must", "y")];
    assert_eq!(started(&moved).await, format!("down=-1.5 {kept} up=6"));
    let kept = kept.replace("once=now", "once=no");
    assert_eq!(started(&[]).await, format!("down=-1.5 {kept} up=6"));
    let body = json!({ "transition": "start", "rich_parameter_values": list(&[("up", "5")]) });
    assert_eq!(build(&stand, &workspace, &body).await.refused(), ["up"]);
}

/// What the first build was given is what the claim was given: also where a prebuild serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_the_values_of_its_request() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let workspace = given_workspace(&stand).await;
    let sql = format!(
        "select b.stage || ' ' || string_agg(p.name || '=' || p.value, ' ' order by p.name)
         from workspace_builds b join workspace_build_parameters p on p.build_id = b.id
         where b.workspace_id = '{workspace}' and b.build_number = 2 group by b.stage"
    );
    let expected = "claim down=5 flag=true must=x once=yes region=none size=small up=5";
    assert_eq!(stand.database.value(&sql).await, expected);
    let later = "down=5 flag=true must=x once=no region=none size=small up=5";
    assert_eq!(started(&stand, &workspace, &[]).await, later);
}
