//! An hour without any provisioner daemon.

use berth_domain::plan::{Need, Reason};
use berth_domain::state::{PrebuildStatus, Transition};

use super::check;
use super::live::{Live, pool_id};
use super::look::Look;
use super::script::{POOLS, Step};
use super::world::World;

/// Orders that no daemon has taken, of one pool.
fn pending(look: &Look, pool: usize) -> usize {
    let id = pool_id(pool);
    let jobs = look.jobs.iter().filter(|it| it.preset == id && !it.running);
    jobs.filter(|it| it.transition == Transition::Start && it.is_creation()).count()
}

/// Sixty minutes pass with a sweep, a claim of each preset and the broker's reaper every minute: no
/// more than `desired` jobs ever wait, and nobody's template is blamed.
#[tokio::test(flavor = "multi_thread")]
async fn an_hour_without_daemons_blames_nobody_and_queues_no_more_than_is_wanted() {
    let mut live = Live::begin(World::create().await).await;
    // Ordered while the daemon was there, and never taken.
    live.sweep(0).await;
    let mut look = live.look().await;
    assert!((0..POOLS.len()).any(|pool| pending(&look, pool) > 0), "something waits");
    live.take(&Step::DaemonLeaves, &look).await;
    for minute in 0..60 {
        for (pool, _) in POOLS.iter().enumerate() {
            live.take(&Step::Claim { pool, at_once: 1 }, &look).await;
        }
        live.take(&Step::Minutes { minutes: 1 }, &look).await;
        live.take(&Step::Reap, &look).await;
        live.sweep(minute % 2).await;
        look = live.look().await;
        for (pool, _) in POOLS.iter().enumerate() {
            let wanted = check::desired(look.pool(pool_id(pool)), look.now);
            let waiting = pending(&look, pool);
            assert!(waiting <= wanted as usize, "{waiting} of {wanted} wait in minute {minute}");
        }
    }

    for pool in &look.pools {
        assert_eq!(pool.status, PrebuildStatus::Healthy);
        assert_eq!(pool.consecutive, 0);
    }
    assert!(look.jobs.is_empty(), "what nobody took is ended: {:?}", look.jobs);
    let held = live
        .world
        .psql
        .lines(
            "select distinct r ->> 'reason' from prebuild_pools p,
                jsonb_array_elements(p.last_reasons) r order by 1",
        )
        .await;
    let capacity = serde_json::to_value(Reason::Capacity { need: Need::default() }).unwrap();
    assert!(held.contains(&capacity["reason"].as_str().unwrap().to_owned()), "{held:?}");

    // Nothing of that is held against the pools when a daemon comes.
    live.daemon_comes().await;
    live.sweep(0).await;
    live.acquire_all().await;
    look = live.look().await;
    live.complete_all(&look).await;
    look = live.look().await;
    for (pool, (_, v, _)) in POOLS.iter().enumerate() {
        let wanted = check::desired(look.pool(pool_id(pool)), look.now);
        let ready = look.claimable().get(&pool_id(pool)).copied().unwrap_or(0);
        assert_eq!(ready, if *v == 0 { wanted as usize } else { 0 });
    }
}
