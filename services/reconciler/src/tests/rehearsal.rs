//! When rehearsals are ordered.

use super::*;

/// Jobs of rehearsals that wait.
const PENDING: &str = "select count(*) from provisioner_jobs
                       where kind = 'prebuild_rehearsal' and status = 'pending'";

async fn pass(replica: &Reconciler) {
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
}

/// How the newest rehearsal ends.
async fn end(database: &TestDatabase, outcome: &str) {
    let sql = format!(
        "begin;
         update provisioner_jobs set started_at = now(), completed_at = now()
         where kind = 'prebuild_rehearsal' and completed_at is null;
         update prebuild_rehearsals set outcome = '{outcome}', ended_at = now();
         commit;"
    );
    database.rows(&sql).await;
}

#[tokio::test]
async fn a_pool_is_rehearsed_once_on_its_first_ready_prebuild() {
    let database = given_pool(2).await;
    let replica = reconciler(&database).await;
    pass(&replica).await;
    assert_eq!(database.count(PENDING).await, 0, "none is ready yet");
    finish_builds(&database).await;
    for _ in 0..2 {
        pass(&replica).await;
        assert_eq!(database.count(PENDING).await, 1);
    }
    let ordered = "
        select j.class::text, j.tags ->> 'scope', r.attempts::text
        from prebuild_rehearsals r
        join provisioner_jobs j on j.id = r.job_id
        join workspaces w on w.latest_build_id = r.build_id
        where j.input ->> 'rehearsed_build_id' = r.build_id::text
          and j.input ->> 'preset_id' = r.preset_id::text and not j.input ? 'workspace_build_id'";
    assert_eq!(database.rows(ordered).await, [["3", "organization", "1"]]);
    end(&database, "clean").await;
    pass(&replica).await;
    assert_eq!(database.count(PENDING).await, 0, "what is known is not asked again");
    assert_eq!(prebuilds(&database).await, 2, "it is no prebuild of the pool");
}

#[tokio::test]
async fn a_lost_rehearsal_is_ordered_three_times_in_all() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    pass(&replica).await;
    finish_builds(&database).await;
    for attempt in 1..=3 {
        pass(&replica).await;
        assert_eq!(database.count(PENDING).await, 1, "attempt {attempt}");
        end(&database, "lost").await;
    }
    pass(&replica).await;
    assert_eq!(database.count(PENDING).await, 0);
}

#[tokio::test]
async fn a_paused_pool_is_not_rehearsed() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    pass(&replica).await;
    finish_builds(&database).await;
    database
        .rows(&format!(
            "insert into prebuild_pauses (id, scope, scope_id, actor_id, created_at)
             values ('{PRESET}', 'preset', '{PRESET}', '{PRESET}', now())"
        ))
        .await;
    pass(&replica).await;
    assert_eq!(database.count(PENDING).await, 0);
    database.rows("delete from prebuild_pauses").await;
    pass(&replica).await;
    assert_eq!(database.count(PENDING).await, 1);
}
