//! Pools that are found without a hint.

use berth_bus::event::Wake;
use berth_db::pool::{self, Patience};
use berth_domain::id::PresetId;
use berth_testkit::{SOON, wait_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{PRESET, finish_builds, given_another, given_pool, lock, prebuilds, reconciler};
use crate::audit::Audit;
use crate::pass::Outcome;
use crate::sweep::{run, sweep};

const OTHER: PresetId = PresetId(Uuid::from_u128(17));

/// A replica does not wait for a pool that another one holds, and does the others meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_skips_what_another_replica_holds() {
    let database = given_pool(1).await;
    given_another(&database, OTHER, 2).await;
    let replica = reconciler(&database).await;
    let db = &replica.backbone.db;
    pool::mark_dirty(db, &[PRESET, OTHER], replica.backbone.clock.now()).await.unwrap();
    let mut holder = berth_db::begin(db).await.unwrap();
    lock(&mut holder).await;

    assert_eq!(sweep(&replica, &CancellationToken::new()).await.unwrap(), 0);

    assert_eq!(prebuilds(&database).await, 2, "the other pool's");
    assert_eq!(replica.reconcile(PRESET, Patience::Skip).await.unwrap(), Outcome::Busy);
    holder.rollback().await.unwrap();
    sweep(&replica, &CancellationToken::new()).await.unwrap();
    assert_eq!(prebuilds(&database).await, 3);
}

/// One pool that cannot be reconciled keeps its mark and stops none of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_fails_stops_no_other() {
    let database = given_pool(1).await;
    given_another(&database, OTHER, 2).await;
    let broken = format!(
        "update prebuild_pools set policy = '{{\"replace\": 7}}' where preset_id = '{PRESET}'"
    );
    database.rows(&broken).await;
    let replica = reconciler(&database).await;
    let now = replica.backbone.clock.now();
    pool::mark_dirty(&replica.backbone.db, &[PRESET, OTHER], now).await.unwrap();

    assert_eq!(sweep(&replica, &CancellationToken::new()).await.unwrap(), 1);

    assert_eq!(prebuilds(&database).await, 2);
    let due = pool::list_due(&replica.backbone.db, None, now, 10).await.unwrap();
    assert_eq!(due, [PRESET]);
}

/// A change of many pools is told once, and the replica that hears it sweeps at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_sweep_is_followed_at_once() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(replica.clone(), stop.clone()));
    // The first sweep is over when the loop waits: what is marked from now on is found by another.
    wait_until("a mark is found", SOON, async || {
        let now = replica.backbone.clock.now();
        pool::mark_dirty(&replica.backbone.db, &[PRESET], now).await.unwrap();
        replica.sweep.notify_one();
        (prebuilds(&database).await == 1).then_some(())
    })
    .await;
    stop.cancel();
    running.await.unwrap();

    let many: Vec<PresetId> = (0..100).map(|n| PresetId(Uuid::from_u128(n))).collect();
    assert_eq!(Wake::pools(&many), [Wake::sweep()]);
    assert_eq!(Wake::pools(&many[..2]), [Wake::pool(many[0]), Wake::pool(many[1])]);
}

/// A pool that changed and whose mark was lost is found, told and looked at.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_finds_a_pool_whose_mark_was_lost() {
    let database = given_pool(2).await;
    let replica = reconciler(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    finish_builds(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    let mut audit = Audit::default();
    audit.step(&replica).await.unwrap();
    assert_eq!(replica.metrics.drift.get(), 0, "nothing was lost yet");

    database
        .rows(
            "update workspaces set owner_id = '00000000-0000-0000-0000-000000000002',
                 pool_preset_id = null, pool_state = null
             where id in (select id from workspaces limit 1)",
        )
        .await;
    audit.step(&replica).await.unwrap();
    assert_eq!(replica.metrics.drift.get(), 1);
    audit.step(&replica).await.unwrap();
    assert_eq!(replica.metrics.drift.get(), 1, "it is marked");

    sweep(&replica, &CancellationToken::new()).await.unwrap();
    let starting = "select count(*) from workspaces where pool_state = 'starting'";
    assert_eq!(database.count(starting).await, 1);
    audit.step(&replica).await.unwrap();
    assert_eq!(replica.metrics.drift.get(), 1);
}

/// A member that says something else than its build is set right, unless somebody has it in hand.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_sets_a_member_right_that_contradicts_its_build() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    database.rows("update provisioner_jobs set started_at = now(), completed_at = now()").await;
    let mut audit = Audit::default();
    let db = &replica.backbone.db;
    let member: Uuid = database.value("select id from workspaces").await.parse().unwrap();
    let state = "select pool_state from workspaces";

    let mut holder = berth_db::begin(db).await.unwrap();
    berth_db::agent::lock_workspace(&mut *holder, berth_domain::id::WorkspaceId(member))
        .await
        .unwrap();
    audit.step(&replica).await.unwrap();
    assert_eq!(database.value(state).await, "starting");
    holder.rollback().await.unwrap();
    audit.step(&replica).await.unwrap();

    assert_eq!(database.value(state).await, "ready");
    assert_eq!(replica.metrics.drift.get(), 1);
    let due = pool::list_due(db, None, replica.backbone.clock.now(), 10).await.unwrap();
    assert_eq!(due, [PRESET]);
}
