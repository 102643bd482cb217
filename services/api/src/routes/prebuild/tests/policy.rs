use berth_domain::id::{PresetId, TemplateId, VersionId};
use berth_domain::plan::PoolPolicy;
use berth_domain::preset::{Prebuilds, Preset, PresetSpec};
use serde_json::json;

use super::*;

const PATH: &str = "/templates/00000000-0000-0000-0000-000000000003/pool-policy";

impl Stand {
    async fn stored_policy(&self, preset: Uuid) -> PoolPolicy {
        let policy = format!("select policy from prebuild_pools where preset_id = '{preset}'");
        serde_json::from_str(&self.database.value(&policy).await).unwrap()
    }
}

/// What is put is got, comes to every pool of the template, and is told and audited once.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_holds_for_every_pool_and_a_presets_own_lies_over_it() {
    let stand = Stand::new().await;
    let untouched = stand.get(Who::Ada, PATH).await.expect(200);
    assert_eq!(untouched["policy"], json!(PoolPolicy::default()));
    assert_eq!(untouched["presets"], json!({}));

    let body = json!({
        "policy": { "replace": "gradual", "max_unavailable_percent": 50 },
        "presets": { "small": { "min_remaining_ttl_seconds": 600 }, "gone": { "replace": "at_once" } },
    });
    let put = stand.put(Who::Ada, PATH, body.clone()).await.expect(200);

    let effective = &put["effective"];
    assert_eq!(effective["large"]["max_unavailable_percent"], 50);
    assert_eq!(effective["large"]["max_surge_percent"], 100, "what is left out is the default");
    assert_eq!(effective["small"]["min_remaining_ttl_seconds"], 600);
    assert_eq!(effective["small"]["replace"], "gradual");
    assert!(effective.get("bare").is_some(), "a preset without a pool may get one");
    assert_eq!(put["unknown_presets"], json!(["gone"]));
    assert_eq!(stand.get(Who::Ada, PATH).await.expect(200), put);
    for (preset, name) in [(SMALL, "small"), (LARGE, "large"), (OTHER_SMALL, "small")] {
        assert_eq!(json!(stand.stored_policy(preset).await), effective[name], "{name}");
    }
    // The pool of the version that is not active and has no prebuilds is not looked at.
    assert_eq!(stand.marked().await, [SMALL, LARGE]);
    let told = stand.told().await;
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].ends_with(".policy_changed"), "{told:?}");
    let diff = "select diff -> 'pool_policy' ->> 'new' from audit_logs where action = 'write'";
    assert!(stand.database.value(diff).await.contains("gradual"));

    stand.put(Who::Ada, PATH, body).await.expect(200);
    assert_eq!((stand.audited().await, stand.marked().await.len()), (1, 0), "nothing changed");

    let back = json!({ "policy": {} });
    let put = stand.put(Who::Ada, PATH, back).await.expect(200);
    assert_eq!((&put["presets"], &put["unknown_presets"]), (&json!({}), &json!([])));
    assert_eq!(stand.stored_policy(SMALL).await, PoolPolicy::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_out_of_bounds_is_refused_by_field_and_changes_nothing() {
    let stand = Stand::new().await;
    let before = stand.digest().await;
    let field = |name: &str, value: Value| json!({ "policy": { name: value } });
    for (body, expected) in [
        (field("max_unavailable_percent", json!(0)), "policy.max_unavailable_percent"),
        (field("max_unavailable_percent", json!(101)), "policy.max_unavailable_percent"),
        (field("max_surge_percent", json!(-1)), "policy.max_surge_percent"),
        (field("max_surge_percent", json!(101)), "policy.max_surge_percent"),
        (field("min_remaining_ttl_seconds", json!(-1)), "policy.min_remaining_ttl_seconds"),
        (field("min_remaining_ttl_seconds", json!(31_536_001)), "policy.min_remaining_ttl_seconds"),
        (field("replace", json!("slowly")), "policy"),
        (field("unheard_of", json!(1)), "policy"),
        (
            json!({ "policy": {}, "presets": { "small": { "max_surge_percent": 0 } } }),
            "presets.small.max_surge_percent",
        ),
        (json!({ "policy": {}, "presets": { "": {} } }), "presets."),
        (json!({ "policy": {}, "presets": { "x".repeat(257): {} } }), "presets.xxx"),
    ] {
        let refused = stand.put(Who::Ada, PATH, body.clone()).await.refused();
        let is_named = |it: &String| {
            if expected == "presets.xxx" { it.starts_with(expected) } else { it == expected }
        };
        assert!(refused.len() == 1 && refused.iter().all(is_named), "{body}: {refused:?}");
    }
    let many: serde_json::Map<_, _> = (0..101).map(|n| (format!("p{n}"), json!({}))).collect();
    let refused = stand.put(Who::Ada, PATH, json!({ "policy": {}, "presets": many })).await;
    assert_eq!(refused.refused(), ["presets"]);
    for body in [json!({}), json!([]), json!({ "policy": {}, "more": 1 })] {
        stand.put(Who::Ada, PATH, body).await.expect(400);
    }
    assert_eq!(stand.digest().await, before);
}

/// Overrides go by name, so the pools of a version that comes later have them from the beginning.
#[tokio::test(flavor = "multi_thread")]
async fn pools_of_a_new_version_are_born_with_the_policy() {
    let stand = Stand::new().await;
    let body = json!({
        "policy": { "max_surge_percent": 40 },
        "presets": { "tiny": { "allow_previous_version": true } },
    });
    let put = stand.put(Who::Ada, PATH, body).await.expect(200);
    assert_eq!(put["unknown_presets"], json!(["tiny"]));

    let id = PresetId(Uuid::from_u128(0x77));
    let prebuilds = Some(Prebuilds { instances: 1, ..Prebuilds::default() });
    let spec = PresetSpec { name: "tiny".to_owned(), prebuilds, ..PresetSpec::default() };
    let mut work = stand.api.app.begin().await.unwrap();
    let now = work.now();
    let presets = [Preset { id, spec }];
    berth_db::import::insert_presets(work.conn(), VersionId(V2), &presets, now).await.unwrap();
    work.commit().await.unwrap();

    let policy = stand.stored_policy(id.0).await;
    assert_eq!((policy.max_surge_percent, policy.allow_previous_version), (40, true));
    let column =
        "select allow_previous_version from prebuild_pools order by preset_id desc limit 1";
    assert_eq!(stand.database.value(column).await, "t", "claims read it");
}

/// An import waits for a policy that is being changed, and then has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_beside_a_change_of_the_policy_has_the_new_one() {
    let stand = Stand::new().await;
    let mut change = stand.api.app.begin().await.unwrap();
    let template = TemplateId(TEMPLATE);
    let now = change.now();
    assert!(berth_db::pool_policy::lock_template(change.conn(), template).await.unwrap());

    let app = stand.api.app.clone();
    let import = tokio::spawn(async move {
        let id = PresetId(Uuid::from_u128(0x77));
        let prebuilds = Some(Prebuilds { instances: 1, ..Prebuilds::default() });
        let spec = PresetSpec { name: "tiny".to_owned(), prebuilds, ..PresetSpec::default() };
        let mut work = app.begin().await.unwrap();
        let presets = [Preset { id, spec }];
        berth_db::import::insert_presets(work.conn(), VersionId(V2), &presets, now).await.unwrap();
        work.commit().await.unwrap();
    });
    let waits = "select count(*) from pg_stat_activity
                 where wait_event_type = 'Lock' and datname = current_database()";
    berth_testkit::wait_until("the import waits", berth_testkit::SOON, async || {
        (stand.database.count(waits).await == 1).then_some(())
    })
    .await;
    let policies = berth_db::pool_policy::Policies {
        template: PoolPolicy { max_surge_percent: 7, ..PoolPolicy::default() },
        ..berth_db::pool_policy::Policies::default()
    };
    berth_db::pool_policy::replace(change.conn(), template, &policies, now).await.unwrap();
    berth_db::pool_policy::apply(change.conn(), template, now).await.unwrap();
    change.commit().await.unwrap();
    import.await.unwrap();

    assert_eq!(stand.stored_policy(Uuid::from_u128(0x77)).await.max_surge_percent, 7);
}
