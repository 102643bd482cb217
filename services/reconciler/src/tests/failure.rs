//! Whose failure counts, and how often.

use berth_backbone::Clock;
use berth_db::pool::Patience;
use berth_db::{agent, completion};
use berth_domain::id::{BuildId, JobId, WorkspaceId};
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
/// template's doing: the breaker stays closed and creation goes on.
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
        world.pass_later().await;
        world.end(how).await;
        let (consecutive, _, rows) = world.failures().await;
        assert_eq!((consecutive, rows), (0, 0), "{how}");
    }
    world.pass_later().await;
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

impl World {
    async fn pass_after(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
        self.replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    }

    async fn pending(&self) -> i64 {
        self.database
            .count("select count(*) from provisioner_jobs where completed_at is null")
            .await
    }
}

/// A machine that fails everything at once is asked again after 1 s, then after 2, then after 4: not in
/// a circle that keeps it busy. What was on its way together is one setback, and a success ends it.
#[tokio::test(flavor = "multi_thread")]
async fn setbacks_delay_the_next_attempt_twice_as_long_each_time() {
    let world = World::new(1).await;
    let broken = "error = 'no space left on device', error_code = 'infrastructure'";
    world.pass_after(0).await;
    for wait in [1, 2, 4] {
        world.end(broken).await;
        world.pass_after(wait - 1).await;
        assert_eq!(world.pending().await, 0, "it waits {wait} s");
        world.pass_after(1).await;
        assert_eq!(world.pending().await, 1, "it waited {wait} s");
    }
    world.end("attempts = 1").await;
    let setbacks = "select setbacks from prebuild_pools";
    assert_eq!(world.database.count(setbacks).await, 0);

    let world = World::new(3).await;
    world.pass_after(0).await;
    let jobs =
        world.database.rows("select id from provisioner_jobs where completed_at is null").await;
    let (db, now) = (&world.replica.backbone.db, world.clock.now());
    for job in jobs {
        let job: JobId = job[0].parse().unwrap();
        let end = format!(
            "update provisioner_jobs set started_at = now(), completed_at = now(), {broken}
             where id = '{job}'"
        );
        world.database.rows(&end).await;
        completion::mark_workspaces(db, &[job], now).await.unwrap();
        completion::mark_pools(db, &[job], now).await.unwrap();
    }
    assert_eq!(world.database.count(setbacks).await, 1, "three on their way together are one");
    world.pass_after(1).await;
    assert_eq!(world.pending().await, 3);
}

/// A prebuild whose cost its owner's quota refuses is not tried over and over: the pool knows the cost
/// then, and says that there is no room. More room lets it go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_quota_holds_creation_until_there_is_room() {
    let world = World::new(2).await;
    world.pass_after(0).await;
    let db = &world.replica.backbone.db;
    let builds = world.database.rows("select id, job_id from workspace_builds").await;
    for row in &builds {
        let (build, job): (BuildId, JobId) = (row[0].parse().unwrap(), row[1].parse().unwrap());
        completion::note_refused_cost(db, build, 7).await.unwrap();
        let end = format!(
            "update provisioner_jobs set started_at = now(), completed_at = now(),
             error = 'insufficient quota', error_code = 'quota' where id = '{job}'"
        );
        world.database.rows(&end).await;
        let now = world.clock.now();
        completion::mark_workspaces(db, &[job], now).await.unwrap();
        completion::mark_pools(db, &[job], now).await.unwrap();
    }
    world.pass_later().await;
    assert_eq!(world.pending().await, 0);
    let reasons = "select last_reasons from prebuild_pools";
    let told = world.database.value(reasons).await;
    assert!(told.contains("\"quota\"") && told.contains("\"cost\": 7"), "{told}");

    let allow = "insert into groups (id, organization_id, name, quota_allowance, created_at)
                 select organization_id, organization_id, 'everyone', 7, now()
                 from prebuild_pools
                 on conflict (id) do update set quota_allowance = 7";
    world.database.rows(allow).await;
    let member =
        "insert into organization_members (organization_id, user_id, created_at, updated_at)
                  select organization_id, 'c42fdf75-3097-471c-8c33-fb52454d81c0', now(), now()
                  from prebuild_pools on conflict do nothing";
    world.database.rows(member).await;
    world.pass_later().await;
    assert_eq!(world.pending().await, 1, "room for one of two");
}
