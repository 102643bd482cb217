//! What jobs cost, counted: the bounds may only become less.

use berth_db::job::{self, Filter};
use berth_domain::build::normalize_tags;
use berth_domain::id::{DaemonId, LeaseToken, OrganizationId, PREBUILDS_USER};
use berth_testkit::{SOON, wait_until};
use futures_util::future::join_all;
use uuid::Uuid;

use super::statements::Statements;
use super::{Daemon, World, organization};

/// Statements of one result that comes alone: the key, the begin of a transaction, the end of the job,
/// a resource, the log's end.
const DRY_RUN: usize = 5;
/// The same of a first build: besides, its state and cost, its workspace, its pool, its claim, and
/// the events.
const BUILD: usize = 10;
/// Pages of jobs and their indexes that are looked at to take eight jobs, at most.
const TAKEN: i64 = 400;
/// Results that come at once.
const MANY: u128 = 32;

/// Statements of results of jobs that a daemon holds, reported at once.
async fn reported(daemon: &Daemon, count: u128) -> usize {
    let jobs = join_all((0..count).map(|_| daemon.acquire())).await;
    Statements::listen();
    let reports = jobs.iter().map(|job| daemon.complete_with(job, &["a"]));
    assert!(join_all(reports).await.iter().all(Result::is_ok));
    Statements::count()
}

#[tokio::test]
async fn results_of_dry_runs_that_come_at_once_are_stored_together() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1 + MANY).await;
    let alone = reported(&daemon, 1).await;
    assert!(alone <= DRY_RUN, "{alone} statements");
    let together = reported(&daemon, MANY).await;
    assert!(together <= 4 * DRY_RUN, "{together} statements");
    let stored = "select count(distinct job_id) from workspace_resources";
    assert_eq!(world.db.count(stored).await, 33);
}

#[tokio::test]
async fn results_of_builds_that_come_at_once_are_stored_together() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1 + MANY).await;
    world.given_builds(0..1 + MANY).await;
    let alone = reported(&daemon, 1).await;
    assert!(alone <= BUILD, "{alone} statements");
    let together = reported(&daemon, MANY).await;
    assert!(together <= 4 * BUILD, "{together} statements");
    let ended =
        "select count(*) from workspace_build_states s join workspace_builds b on b.id = s.build_id
                 join provisioner_jobs j on j.id = b.job_id where j.status = 'succeeded'";
    assert_eq!(world.db.count(ended).await, 33);
}

/// Postgres plans a statement anew for as long as it looks at its values: five times.
const LOOKS: i64 = 10;
/// Pages of jobs and their indexes that were looked at, as sessions that ended tell.
const PAGES: &str = "select heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read
                     from pg_statio_user_tables where relname = 'provisioner_jobs'";

/// Pages that are looked at to take eight jobs, after the statement was planned for good.
async fn pages_of_taking(world: &World) -> i64 {
    let before = world.db.count(PAGES).await;
    let db = berth_db::connect(&world.db.url, 1, "taker").unwrap();
    let filter = Filter {
        organizations: vec![OrganizationId(organization(1))],
        provisioners: vec!["exec".into()],
        tags: normalize_tags([].into(), PREBUILDS_USER),
    };
    let holders: Vec<_> =
        (0..8).map(|n| (DaemonId(Uuid::from_u128(n)), LeaseToken(Uuid::from_u128(n)))).collect();
    for _ in 0..LOOKS {
        let taken = job::acquire(&db, &filter, &holders, 60.0).await.unwrap();
        assert_eq!(taken.jobs.len(), 8);
    }
    db.close().await;
    wait_until("the session's counters are written down", SOON, async || {
        Some(world.db.count(PAGES).await - before).filter(|it| *it > 0)
    })
    .await
        / LOOKS
}

#[tokio::test]
async fn what_taking_jobs_reads_does_not_grow_with_what_waits_or_what_ended() {
    let world = World::new().await;
    world.sql("alter table provisioner_jobs set (autovacuum_enabled = false)").await;
    let mut pages = Vec::new();
    for n in [2_000_u128, 8_000, 32_000] {
        world.given_jobs(n * 10..n * 11).await;
        world
            .sql(&format!(
                "insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                     class, file_id, input, created_at, updated_at, started_at, completed_at)
                 select gen_random_uuid(), organization_id, initiator_id, kind, provisioner, class,
                        file_id, input, created_at, updated_at, now(), now()
                 from provisioner_jobs where started_at is null limit {n}"
            ))
            .await;
        world.sql("analyze provisioner_jobs").await;
        pages.push(pages_of_taking(&world).await);
    }
    assert!(pages.iter().all(|it| *it <= TAKEN), "{pages:?}");
}
