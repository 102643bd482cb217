//! Whose failure counts, and how often.

use berth_backbone::Clock;
use berth_db::pool::Patience;
use berth_db::{agent, completion};
use berth_domain::id::{JobId, WorkspaceId};
use berth_testkit::TestDatabase;
use jiff::SignedDuration;

use super::{PRESET, given_pool, replica};
use crate::config::Config;
use crate::pass::Reconciler;

struct World {
    database: TestDatabase,
    replica: Reconciler,
    clock: Clock,
}

impl World {
    async fn new(desired: u32) -> Self {
        let database = given_pool(desired).await;
        let clock = Clock::manual(Clock::default().now());
        let replica = replica(&database, &Config::default(), &clock).await;
        Self { database, replica, clock }
    }

    /// Passes after the longest back-off that these tests come to.
    async fn pass_later(&self) {
        self.clock.advance(SignedDuration::from_mins(10));
        self.database
            .rows("update provisioner_daemons set last_seen_at = last_seen_at + interval '10 min'")
            .await;
        self.replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    }

    /// The prebuild whose job waits, and that job.
    async fn starting(&self) -> (WorkspaceId, JobId) {
        let found = "select w.id, b.job_id from workspaces w
                     join workspace_builds b on b.id = w.latest_build_id
                     where w.pool_state = 'starting' and not w.deleted";
        let rows = self.database.rows(found).await;
        assert_eq!(rows.len(), 1, "not one that starts: {rows:?}");
        (rows[0][0].parse().unwrap(), rows[0][1].parse().unwrap())
    }

    /// Ends the job that waits and reports that twice, as after a lost answer.
    async fn end(&self, how: &str) -> WorkspaceId {
        let (workspace, job) = self.starting().await;
        let end = format!(
            "update provisioner_jobs set started_at = now(), completed_at = now(), {how}
             where id = '{job}'"
        );
        self.database.rows(&end).await;
        let (db, now) = (&self.replica.backbone.db, self.clock.now());
        completion::mark_workspaces(db, &[job], now).await.unwrap();
        completion::mark_pools(db, &[job], now).await.unwrap();
        workspace
    }

    /// Failures in a row, failures ever, rows of failures.
    async fn failures(&self) -> (i64, i64, i64) {
        let count = async |column: &str| {
            self.database.count(&format!("select {column} from prebuild_pools")).await
        };
        (
            count("consecutive_failures").await,
            count("failed_total").await,
            self.database.count("select count(*) from prebuild_failures").await,
        )
    }
}

/// A build that fails, one that is made again and whose agent fails, and reports that come twice.
#[tokio::test(flavor = "multi_thread")]
async fn each_failed_prebuild_counts_once_whatever_failed_and_however_often_it_is_told() {
    let world = World::new(1).await;
    world.pass_later().await;
    world.end("error = 'apply failed', error_code = 'template'").await;
    assert_eq!(world.failures().await, (1, 1, 1));

    world.replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    let pending = "select count(*) from provisioner_jobs where completed_at is null";
    assert_eq!(world.database.count(pending).await, 0, "it waits after the failure");

    world.pass_later().await;
    let workspace = world.end("attempts = 1").await;
    assert_eq!(world.failures().await, (0, 1, 1), "ready without agents");
    world.database.rows("update prebuild_pools set consecutive_failures = 1").await;
    let (db, now) = (&world.replica.backbone.db, world.clock.now());
    assert!(agent::mark_pool_failed(db, workspace, now).await.unwrap().is_some());
    assert_eq!(world.failures().await, (2, 2, 2));
    // Its agent starts again and fails again.
    world.database.rows("update workspaces set pool_state = 'unready' where pool_state = 'failed' and not deleted and latest_build_number = 1").await;
    assert!(agent::mark_pool_failed(db, workspace, now).await.unwrap().is_some());
    assert_eq!(world.failures().await, (2, 2, 2));
}

/// A lost daemon, a job that nobody took, a cancelled job and an exceeded quota are not the
/// template's doing: the breaker stays closed and creation goes on at once.
#[tokio::test(flavor = "multi_thread")]
async fn failures_that_the_template_did_not_cause_do_not_count() {
    let world = World::new(1).await;
    let ends = [
        "error = 'lost', error_code = 'infrastructure'",
        "error = 'nobody', error_code = 'no_provisioner'",
        "error = 'quota exceeded', error_code = 'quota'",
        "error = 'stop', error_code = 'canceled', canceled_at = now()",
    ];
    for how in ends {
        world.replica.reconcile(PRESET, Patience::Wait).await.unwrap();
        world.end(how).await;
        let (consecutive, _, rows) = world.failures().await;
        assert_eq!((consecutive, rows), (0, 0), "{how}");
    }
    world.replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    world.starting().await;
    let status = "select prebuild_status from prebuild_pools";
    assert_eq!(world.database.value(status).await, "healthy");
}

/// Input that the builder refused for good is not tried again, and people are told once.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_input_is_not_tried_again() {
    let world = World::new(1).await;
    world.pass_later().await;
    world.end("error = 'no such parameter', error_code = 'invalid'").await;
    for _ in 0..3 {
        world.pass_later().await;
    }
    let pending = "select count(*) from provisioner_jobs where completed_at is null";
    assert_eq!(world.database.count(pending).await, 0);
    let status = "select prebuild_status from prebuild_pools";
    assert_eq!(world.database.value(status).await, "validation_failed");
    let told = "select count(*) from outbox where subject like '%.notify.%'";
    assert_eq!(world.database.count(told).await, 1);
}
