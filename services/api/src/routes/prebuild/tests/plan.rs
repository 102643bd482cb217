use berth_db::pool::{self, Locked, Patience};
use berth_domain::id::PresetId;
use berth_domain::plan::{SnapshotFile, plan, plan_snapshot};
use serde_json::json;

use super::*;

fn path(tail: &str) -> String {
    format!("/templates/{TEMPLATE}/prebuilds/{tail}")
}

impl Stand {
    /// Members in many states, some failures, a pause.
    async fn given_variety(&self) {
        for (n, state) in ["ready", "unready", "starting", "failed", "ready"].iter().enumerate() {
            let n = u128::try_from(n).unwrap();
            self.given_prebuild(n, SMALL, state, "2026-11-21T11:00:00Z").await;
        }
        self.given_prebuild(9, OTHER_SMALL, "ready", "2026-11-21T10:00:00Z").await;
        self.database
            .rows(&format!(
                "
                insert into template_version_preset_schedules (preset_id, position, cron,
                        desired_instances)
                    values ('{LARGE}', 0, '* 18-22 * * *', 7);
                update template_version_presets set scheduling_timezone = 'UTC', ttl_seconds = 7200
                    where id = '{LARGE}';
                update prebuild_pools set last_invalidated_at = '2026-11-21T10:30:00Z';"
            ))
            .await;
    }

    /// What the reconciler plans: what it reads under the pool's lock, planned at that moment.
    async fn reconciler_plan(&self, preset: Uuid) -> Value {
        let mut work = self.api.app.begin().await.unwrap();
        let (now, settings) = (work.now(), &self.api.app.config.prebuilds);
        let preset = PresetId(preset);
        let locked = pool::lock(work.conn(), preset, Patience::Wait, settings, now).await.unwrap();
        let Locked::Ours(look) = locked else { panic!("not ours: {locked:?}") };
        let it = &look.observed;
        json!(plan(&it.pool.config, &it.policy, &it.snapshot, now))
    }
}

/// The same plan as the reconciler makes of the same state, and not a row is written.
#[tokio::test(flavor = "multi_thread")]
async fn the_dry_run_is_the_reconcilers_plan_and_writes_nothing() {
    let stand = Stand::new().await;
    stand.given_variety().await;
    let before = stand.digest().await;

    let answer = stand.get(Who::Ada, &path("plan?snapshot=true")).await.expect(200);
    stand.get(Who::Ada, &path("explain")).await.expect(200);

    assert_eq!(stand.digest().await, before);
    let pools = answer["pools"].as_array().unwrap();
    // The active version's pools, and the other's that still has a member.
    assert_eq!(pools.len(), 3, "{answer:#}");
    for pool in pools {
        let preset: Uuid = pool["preset_id"].as_str().unwrap().parse().unwrap();
        let expected = stand.reconciler_plan(preset).await;
        for field in ["desired", "counts", "actions", "next_look"] {
            assert_eq!(pool[field], expected[field], "{field} of {preset}");
        }
        let reasons = pool["reasons"].as_array().unwrap();
        assert_eq!(reasons.len(), expected["reasons"].as_array().unwrap().len());
        assert!(reasons.iter().all(|it| !it["sentence"].as_str().unwrap().is_empty()));
        // The file says the same without a server.
        let file = SnapshotFile::parse(&pool["snapshot"].to_string()).unwrap();
        assert_eq!(json!(plan_snapshot(&file)), expected, "{preset}");
    }
    let standing = |preset: Uuid| {
        let found = pools.iter().find(|it| it["preset_id"] == json!(preset)).unwrap();
        found["standing"].as_str().unwrap().to_owned()
    };
    assert_eq!((standing(SMALL), standing(OTHER_SMALL)), ("active".into(), "inactive".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_supposes_another_time_and_another_number() {
    let stand = Stand::new().await;
    stand.given_variety().await;
    let large = async |query: &str| {
        let answer = stand.get(Who::Ada, &path(&format!("plan?preset=large&{query}"))).await;
        let answer = answer.expect(200);
        assert_eq!(answer["pools"].as_array().unwrap().len(), 1, "{answer:#}");
        (answer["pools"][0]["desired"].clone(), answer["pools"][0]["creates"].clone())
    };
    assert_eq!(large("").await, (json!(1), json!(1)));
    assert_eq!(large("at=2026-11-21T18:00:00Z").await, (json!(7), json!(7)));
    assert_eq!(large("at=2026-11-21T17:59:59Z").await, (json!(1), json!(1)));
    assert_eq!(large("instances=4").await, (json!(4), json!(4)));
    assert_eq!(large("instances=0").await, (json!(0), json!(0)));
    assert_eq!(large("at=2026-11-21T18:00:00Z&instances=4").await.0, 7, "a schedule wins");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_out_of_bounds_is_refused_by_field() {
    let stand = Stand::new().await;
    for (query, field) in [
        ("plan?at=tomorrow", "at"),
        ("plan?at=2025-11-19T00:00:00Z", "at"),
        ("plan?at=2027-11-23T00:00:00Z", "at"),
        ("plan?instances=-1", "instances"),
        ("plan?instances=10001", "instances"),
        ("plan?instances=many", "instances"),
        ("plan?preset=unheard-of", "preset"),
        ("plan?preset=bare", "preset"),
        ("explain?preset=unheard-of", "preset"),
        ("explain?limit=0", "limit"),
        ("explain?limit=101", "limit"),
        ("explain?limit=x", "limit"),
    ] {
        assert_eq!(stand.get(Who::Ada, &path(query)).await.refused(), [field], "{query}");
    }
    stand.get(Who::Ada, &path("plan?snapshot=perhaps")).await.expect(400);
}

/// Why the pool has this size and why nothing is created, in words.
#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_holds_a_pool() {
    let stand = Stand::new().await;
    stand.given_prebuild(1, SMALL, "ready", "2026-11-21T11:00:00Z").await;
    stand.given_prebuild(2, SMALL, "unready", "2026-11-21T11:00:00Z").await;
    stand
        .database
        .rows(&format!(
            "update prebuild_pools
             set prebuild_status = 'hard_limited', consecutive_failures = 3, probe_attempts = 1,
                 breaker_opened_at = '2026-11-21T11:30:00Z', last_probe_at = '2026-11-21T11:50:00Z'
             where preset_id = '{SMALL}';
             update provisioner_daemons set disconnected_at = now();
             insert into prebuild_decisions (id, preset_id, created_at, desired, state, actions,
                                             reasons, trace_id)
                 select gen_random_uuid(), '{SMALL}', timestamptz '{NOW}' - n * interval '1 minute',
                        3, '{{\"counts\": {{\"running\": 2}}}}', '[]',
                        '[{{\"reason\": \"capacity\"}}, {{\"reason\": \"of_another_release\"}}]', 'abc'
                 from generate_series(1, 150) n;"
        ))
        .await;

    let answer = stand.get(Who::Ada, &path("explain?preset=small&limit=100")).await.expect(200);

    let pool = &answer["pools"][0];
    assert_eq!(pool["claimable"], stand.claimable(SMALL).await);
    assert_eq!((&pool["claimable"], &pool["desired"]), (&json!(1), &json!(3)));
    assert_eq!((&pool["standing"], &pool["status"]), (&json!("active"), &json!("hard_limited")));
    let breaker = &pool["breaker"];
    assert_eq!(breaker["since"], "2026-11-21T11:30:00Z");
    assert_eq!((&breaker["probes"], &breaker["consecutive_failures"]), (&json!(1), &json!(3)));
    assert_eq!(breaker["next_probe_at"], "2026-11-21T12:10:00Z");
    let holds = pool["holds"].as_array().unwrap();
    assert!(holds.contains(&json!("capacity")) && holds.contains(&json!("breaker_open")));
    let why: Vec<&str> = pool["why"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let says = |text: &str| assert!(why.iter().any(|it| it.contains(text)), "{text}: {why:#?}");
    says("3 wanted: the template's number of instances");
    says("1 can be claimed now, 1 running but not to be claimed");
    says("nothing is created for now");
    says("no live provisioner daemon takes exec jobs");
    says("one build is tried at 2026-11-21T12:10:00Z");
    let decisions = pool["decisions"].as_array().unwrap();
    assert_eq!(decisions.len(), 100);
    assert_eq!(decisions[0]["created_at"], "2026-11-21T11:59:00Z", "the newest first");
    assert_eq!(
        (&decisions[0]["trace_id"], &decisions[0]["counts"]["running"]),
        (&json!("abc"), &json!(2))
    );
    let reasons = &decisions[0]["reasons"];
    assert!(reasons[0]["sentence"].as_str().unwrap().contains("provisioner daemon"));
    assert_eq!(reasons[1], json!({ "reason": "of_another_release" }));
    let few = stand.get(Who::Ada, &path("explain")).await.expect(200);
    let pools = few["pools"].as_array().unwrap();
    assert_eq!(pools.len(), 2);
    assert!(pools.iter().all(|it| it["decisions"].as_array().unwrap().len() <= 10));
}

/// The list of pools counts what a claim could have, and says what each version is.
#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_pools_counts_by_the_one_predicate() {
    let stand = Stand::new().await;
    stand.given_variety().await;
    let answer = stand.get(Who::Ada, "/prebuilds/pools").await.expect(200);
    let pools = answer.as_array().unwrap();
    assert_eq!(pools.len(), 3);
    for pool in pools {
        let preset: Uuid = pool["preset_id"].as_str().unwrap().parse().unwrap();
        assert_eq!(pool["claimable"], stand.claimable(preset).await, "{pool:#}");
        assert_eq!(pool["active"], json!(pool["standing"] == "active"));
    }
    let claimable: i64 = pools.iter().filter_map(|it| it["claimable"].as_i64()).sum();
    assert_eq!(claimable, 2);
}
