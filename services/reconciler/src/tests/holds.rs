//! Creation that is held for want of something, and goes on when there is some.

use berth_backbone::Clock;
use berth_db::daemon;
use berth_db::pool::{self, Patience};
use berth_domain::build::Tags;
use berth_domain::id::{OrganizationId, PresetId};
use berth_testkit::TestDatabase;
use uuid::Uuid;

use super::{PRESET, finish_builds, given_another, given_pool, prebuilds, reconciler, replica};
use crate::config::Config;
use crate::pass::Reconciler;

const OTHER: PresetId = PresetId(Uuid::from_u128(17));

async fn pass(replica: &Reconciler, preset: PresetId) {
    replica.reconcile(preset, Patience::Wait).await.unwrap();
}

async fn due(replica: &Reconciler) -> Vec<PresetId> {
    let now = replica.backbone.clock.now();
    pool::list_due(&replica.backbone.db, None, now, 10).await.unwrap()
}

async fn holds(database: &TestDatabase, preset: PresetId) -> String {
    let holds = format!("select holds::text from prebuild_pools where preset_id = '{preset}'");
    database.value(&holds).await
}

/// The organization's pools share the cap: what one leaves, the one that waits is told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_held_by_the_cap_goes_on_when_another_leaves_room() {
    let database = given_pool(2).await;
    given_another(&database, OTHER, 2).await;
    let mut config = Config::default();
    config.prebuilds.max_in_flight = 2;
    let replica = replica(&database, &config, &Clock::default()).await;
    pass(&replica, PRESET).await;
    pass(&replica, OTHER).await;
    assert_eq!(prebuilds(&database).await, 2);
    assert_eq!(holds(&database, OTHER).await, "{in_flight_cap}");
    assert_eq!(due(&replica).await, []);

    finish_builds(&database).await;
    pass(&replica, PRESET).await;

    assert_eq!(due(&replica).await, [OTHER]);
    pass(&replica, OTHER).await;
    assert_eq!((prebuilds(&database).await, holds(&database, OTHER).await.as_str()), (4, "{}"));
}

/// Passes at the same time do not both take the last place.
#[tokio::test(flavor = "multi_thread")]
async fn pools_that_are_looked_at_together_keep_to_the_cap() {
    let database = given_pool(3).await;
    let presets: Vec<PresetId> = (20..26).map(|n| PresetId(Uuid::from_u128(n))).collect();
    for preset in &presets {
        given_another(&database, *preset, 3).await;
    }
    let mut config = Config::default();
    config.prebuilds.max_in_flight = 4;
    let (one, two) = (
        replica(&database, &config, &Clock::default()).await,
        replica(&database, &config, &Clock::default()).await,
    );
    let passes = presets.iter().enumerate().map(|(n, preset)| {
        let (replica, preset) = (if n % 2 == 0 { one.clone() } else { two.clone() }, *preset);
        tokio::spawn(async move { pass(&replica, preset).await })
    });
    for pass in passes.collect::<Vec<_>>() {
        pass.await.unwrap();
    }
    assert_eq!(prebuilds(&database).await, 4);
}

/// What the prebuilds user may spend bounds the pool, what starts included; a delete makes room.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_no_larger_than_the_quota_pays_for() {
    let database = given_pool(3).await;
    database
        .rows(
            "update prebuild_pools set daily_cost = 10;
             insert into organization_members (organization_id, user_id, created_at, updated_at)
                 select id, 'c42fdf75-3097-471c-8c33-fb52454d81c0', now(), now() from organizations;
             insert into groups (id, organization_id, name, quota_allowance, created_at)
                 select id, id, 'Everyone', 25, now() from organizations",
        )
        .await;
    let replica = reconciler(&database).await;
    pass(&replica, PRESET).await;
    assert_eq!(
        (prebuilds(&database).await, holds(&database, PRESET).await.as_str()),
        (2, "{quota}")
    );
    pass(&replica, PRESET).await;
    assert_eq!(prebuilds(&database).await, 2, "what starts has its cost");

    database.rows("update groups set quota_allowance = 30").await;
    pass(&replica, PRESET).await;
    assert_eq!((prebuilds(&database).await, holds(&database, PRESET).await.as_str()), (3, "{}"));
}

/// A daemon wakes the pools that waited for one like it, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_wakes_the_pools_that_it_can_serve() {
    let database = given_pool(1).await;
    database.rows("update provisioner_daemons set disconnected_at = now()").await;
    let replica = reconciler(&database).await;
    pass(&replica, PRESET).await;
    assert_eq!(
        (prebuilds(&database).await, holds(&database, PRESET).await.as_str()),
        (0, "{capacity}")
    );

    let comes = async |tool: &str, tags: &[(&str, &str)]| {
        let tags: Tags = tags.iter().map(|it| (it.0.to_owned(), it.1.to_owned())).collect();
        let (organization, now) =
            (OrganizationId(Uuid::from_u128(1)), replica.backbone.clock.now());
        let abilities = (&[tool.to_owned()][..], &tags);
        daemon::mark_pools_dirty(&replica.backbone.db, organization, abilities, now).await.unwrap()
    };
    let usual = [("scope", "organization"), ("owner", "")];
    let special = [("scope", "organization"), ("owner", ""), ("gpu", "yes")];
    assert_eq!(comes("terraform", &usual).await, []);
    assert_eq!(comes("exec", &special).await, [], "it takes no job that asks for no tag");
    assert_eq!(comes("exec", &usual).await, [PRESET]);
    assert_eq!(comes("exec", &usual).await, [], "it is marked already");

    database.rows("update provisioner_daemons set disconnected_at = null").await;
    pass(&replica, PRESET).await;
    assert_eq!((prebuilds(&database).await, holds(&database, PRESET).await.as_str()), (1, "{}"));
    assert_eq!(comes("exec", &usual).await, [], "nothing waits");
}
