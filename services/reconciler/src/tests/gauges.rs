//! What Prometheus is shown.

use berth_backbone::Clock;
use berth_db::pool::Patience;
use jiff::SignedDuration;
use prometheus::Registry;

use super::{PRESET, finish_builds, given_pool, replica};
use crate::config::Config;
use crate::gauges::Gauges;

fn gauge(registry: &Registry, name: &str) -> Option<i64> {
    let families = registry.gather();
    let family = families.iter().find(|it| it.name() == name)?;
    let metric = family.get_metric().first()?;
    #[expect(clippy::cast_possible_truncation, reason = "counts of a handful")]
    Some(metric.get_gauge().get_value() as i64)
}

/// Desired follows the schedule, eligible what a claim would get: an expired one is not.
#[tokio::test(flavor = "multi_thread")]
async fn desired_follows_the_schedule_and_eligible_what_claims_get() {
    let database = given_pool(3).await;
    database
        .rows(&format!(
            "update template_version_presets set scheduling_timezone = 'UTC', ttl_seconds = 3600;
             insert into template_version_preset_schedules (preset_id, position, cron, desired_instances)
                 values ('{PRESET}', 0, '* * * * *', 2)"
        ))
        .await;
    let clock = Clock::manual(Clock::default().now());
    let replica = replica(&database, &Config::default(), &clock).await;
    let registry = Registry::new();
    let gauges = Gauges::register(&registry, 10).unwrap();
    let shown = async || {
        gauges.refresh(&replica.backbone).await.unwrap();
        let name = |it: &str| gauge(&registry, &format!("coderd_prebuilt_workspaces_{it}"));
        (name("desired"), name("running"), name("eligible"))
    };

    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    assert_eq!(shown().await, (Some(2), Some(0), Some(0)));
    finish_builds(&database).await;
    assert_eq!(shown().await, (Some(2), Some(2), Some(2)));
    clock.advance(SignedDuration::from_hours(1));
    assert_eq!(shown().await, (Some(2), Some(2), Some(0)));
    assert_eq!(gauge(&registry, "berth_pool_expired"), Some(2));
}

/// A sick pool is shown as such only while it is of the active version.
#[tokio::test(flavor = "multi_thread")]
async fn a_sick_pool_is_shown_while_its_version_is_active() {
    let database = given_pool(1).await;
    let replica = super::reconciler(&database).await;
    let registry = Registry::new();
    let gauges = Gauges::register(&registry, 10).unwrap();
    let limited = "coderd_prebuilt_workspaces_preset_hard_limited";
    let shown = async || {
        gauges.refresh(&replica.backbone).await.unwrap();
        gauge(&registry, limited)
    };
    assert_eq!(shown().await, None);
    database.rows("update prebuild_pools set prebuild_status = 'hard_limited'").await;
    assert_eq!(shown().await, Some(1));
    database
        .rows("update templates set active_version_id = '00000000-0000-0000-0000-000000000006'")
        .await;
    assert_eq!(shown().await, None);
}

/// More pools than are shown one by one are shown by organization, and none is left out.
#[tokio::test(flavor = "multi_thread")]
async fn many_pools_are_shown_by_organization() {
    let database = given_pool(2).await;
    let replica = super::reconciler(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    let registry = Registry::new();
    Gauges::register(&registry, 0).unwrap().refresh(&replica.backbone).await.unwrap();

    let families = registry.gather();
    let desired = families.iter().find(|it| it.name() == "coderd_prebuilt_workspaces_desired");
    let [metric] = desired.unwrap().get_metric() else { panic!("{desired:?}") };
    let labels: Vec<_> = metric.get_label().iter().map(|it| (it.name(), it.value())).collect();
    let expected = [("organization_name", "o"), ("preset_name", ""), ("template_name", "")];
    assert_eq!(labels, expected);
    assert_eq!(gauge(&registry, "coderd_prebuilt_workspaces_desired"), Some(2));
    assert_eq!(gauge(&registry, "berth_pool_starting"), Some(2));
}
