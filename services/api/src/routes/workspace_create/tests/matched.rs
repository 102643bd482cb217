//! Which preset a request without one means.

use std::fmt::Write as _;

use super::*;

/// Values by parameter.
type Pairs<'a> = &'a [(&'a str, &'a str)];

/// Presets in place of those that there are: name, default, values. Only `size`, `region` and `cpus`
/// are defined, with the defaults `none`, `none` and 2.
async fn given_presets(stand: &Stand, presets: &[(&str, bool, Pairs<'_>)]) {
    let mut sql = format!(
        "delete from prebuild_pools; delete from template_version_preset_parameters;
         delete from template_version_presets;
         insert into template_version_parameters (template_version_id, name, type, mutable, required,
                 default_value) values ('{V1}', 'cpus', 'number', true, false, '2');"
    );
    for (n, (name, is_default, values)) in (0x70..).zip(presets) {
        let id = Uuid::from_u128(n);
        write!(
            sql,
            "insert into template_version_presets (id, template_version_id, name, is_default,
                     created_at) values ('{id}', '{V1}', '{name}', {is_default}, now());"
        )
        .unwrap();
        for (name, value) in *values {
            write!(
                sql,
                "insert into template_version_preset_parameters (preset_id, name, value)
                 values ('{id}', '{name}', '{value}');"
            )
            .unwrap();
        }
    }
    stand.database.rows(&sql).await;
}

fn asked(name: &str, values: Pairs<'_>) -> Value {
    let values: Vec<Value> =
        values.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    json!({ "name": name, "template_id": TEMPLATE, "rich_parameter_values": values })
}

/// Asks with these values in both orders, and checks which preset is built.
async fn check(stand: &Stand, values: Pairs<'_>, expected: Option<&str>) {
    let mut reversed = values.to_vec();
    reversed.reverse();
    for values in [values, &reversed] {
        let name = stand.free_name();
        let told = stand.api.create(1, &asked(&name, values)).await.expect(200);
        let id = &told["latest_build"]["template_version_preset_id"];
        let sql = format!(
            "select coalesce((select name from template_version_presets where id::text = '{}'), 'none')",
            id.as_str().unwrap_or_default()
        );
        let found = stand.database.value(&sql).await;
        assert_eq!(found, expected.unwrap_or("none"), "{values:?}");
        let reason = if expected.is_some() { "not_a_pool" } else { "no_matching_preset" };
        assert_eq!(told["prebuild_claim"]["reason"], reason, "{values:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_completed_request_decides_and_ties_go_to_most_values_then_default_then_name() {
    let stand = Stand::new().await;
    let small: Pairs<'_> = &[("size", "s")];
    let near: Pairs<'_> = &[("region", "eu")];
    let both: Pairs<'_> = &[("size", "s"), ("region", "eu")];
    let fast: Pairs<'_> = &[("cpus", "8")];
    let presets =
        [("b", false, near), ("c", true, fast), ("a", false, small), ("both", false, both)];
    given_presets(&stand, &presets).await;
    check(&stand, &[("size", "s")], Some("a")).await;
    // Values that the preset leaves open do not keep it from matching.
    check(&stand, &[("size", "s"), ("cpus", "4")], Some("a")).await;
    check(&stand, &[("size", "s"), ("region", "eu")], Some("both")).await;
    // As many values: the default preset, then the first by name.
    check(&stand, &[("size", "s"), ("cpus", "8.0")], Some("c")).await;
    stand.database.rows("update template_version_presets set is_default = false").await;
    check(&stand, &[("size", "s"), ("cpus", "8")], Some("a")).await;
    check(&stand, &[("region", "eu"), ("cpus", "8")], Some("b")).await;
    check(&stand, &[("size", "m")], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_templates_defaults_complete_a_request_and_a_preset_without_values_stands_for_them() {
    let stand = Stand::new().await;
    given_presets(&stand, &[("plain", false, &[]), ("two", false, &[("cpus", "2")])]).await;
    check(&stand, &[], Some("two")).await;
    check(&stand, &[("size", "s")], Some("two")).await;
    check(&stand, &[("cpus", "4")], None).await;
    let drop = "delete from template_version_preset_parameters;
                delete from template_version_presets where name = 'two'";
    stand.database.rows(drop).await;
    check(&stand, &[], Some("plain")).await;
    check(&stand, &[("cpus", "2.0"), ("size", "none")], Some("plain")).await;
    check(&stand, &[("cpus", "4")], None).await;
    check(&stand, &[("size", "s")], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_names_the_nearest_preset_and_each_value_that_differs() {
    let stand = Stand::new().await;
    let far: Pairs<'_> = &[("size", "l"), ("region", "us"), ("cpus", "8")];
    let near: Pairs<'_> = &[("size", "l"), ("cpus", "8")];
    given_presets(&stand, &[("far", true, far), ("near", false, near)]).await;
    let told = stand.api.create(1, &asked("mine", &[("region", "eu")])).await.expect(200);
    let id = Uuid::from_u128(0x71);
    let expected = json!({ "outcome": "miss", "reason": "no_matching_preset", "nearest_preset": {
        "id": id, "name": "near", "differing": [
            { "name": "cpus", "preset": "8", "requested": "2" },
            { "name": "size", "preset": "l", "requested": "none" },
        ],
    } });
    assert_eq!(told["prebuild_claim"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preset_of_another_template_is_400_and_writes_nothing() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 1, 0).await;
    let (other, theirs) = (Uuid::from_u128(0x60), Uuid::from_u128(0x61));
    let sql = format!(
        "begin;
         insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                 file_id, input, created_at, updated_at, started_at, completed_at)
             select '{other}', organization_id, initiator_id, kind, provisioner, class, file_id,
                    input, now(), now(), now(), now() from provisioner_jobs where id = '{V1}';
         insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                 created_at, updated_at)
             values ('{other}', '{ACME}', 'v1', '{other}', 'exec', '{ada}', now(), now());
         insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                 created_at, updated_at, group_acl)
             select '{other}', organization_id, 'other', provisioner, '{other}', created_by, now(),
                    now(), group_acl from templates where id = '{TEMPLATE}';
         update template_versions set template_id = '{other}' where id = '{other}';
         insert into template_version_presets (id, template_version_id, name, desired_instances,
                 created_at) values ('{theirs}', '{other}', 'small', 1, now());
         commit;",
        ada = person(0)
    );
    stand.database.rows(&sql).await;
    let before = stand.digest().await;
    let mut body = small("mine");
    body["template_version_preset_id"] = json!(theirs);
    for version in [None, Some(V1)] {
        body["template_version_id"] = json!(version);
        let answer = stand.api.create(1, &body).await;
        assert_eq!(answer.refused(), ["template_version_preset_id"]);
    }
    assert_eq!(stand.digest().await, before);
}
