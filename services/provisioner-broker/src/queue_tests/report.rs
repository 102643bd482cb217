//! Reports: who may report on what, once.

use berth_db::job_log;
use berth_domain::id::JobId;
use berth_proto::v1;
use berth_service_kit::Period;
use berth_testkit::servers;
use tonic::Code;

use super::{Daemon, World, beat, job};
use crate::config::Limits;

const RESOURCES: &str = "select coalesce(string_agg(name, ','), '') from workspace_resources";

fn line(number: u64, output: &str) -> v1::LogLine {
    v1::LogLine { number, output: output.to_owned(), ..v1::LogLine::default() }
}

#[tokio::test]
async fn a_result_counts_once_and_another_after_it_is_refused() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let taken = daemon.acquire().await;
    assert_eq!(daemon.complete_with(&taken, &["a"]).await, Ok(()));
    assert_eq!(daemon.complete_with(&taken, &["a"]).await, Ok(()), "the same again");
    assert_eq!(daemon.complete_with(&taken, &["b"]).await, Err(Code::FailedPrecondition));
    assert_eq!(daemon.fail(&taken, "no").await, Err(Code::FailedPrecondition));
    assert_eq!(daemon.update(beat(&taken)).await.unwrap_err(), Code::FailedPrecondition);
    assert_eq!(world.db.value(RESOURCES).await, "a");
    assert_eq!(world.status(job(0)).await, "succeeded");
}

#[tokio::test]
async fn a_failure_counts_once_and_a_result_after_it_is_refused() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let taken = daemon.acquire().await;
    assert_eq!(daemon.fail(&taken, "no").await, Ok(()));
    assert_eq!(daemon.fail(&taken, "no").await, Ok(()), "the same again");
    assert_eq!(daemon.fail(&taken, "never").await, Err(Code::FailedPrecondition));
    assert_eq!(daemon.complete(&taken).await, Err(Code::FailedPrecondition));
    assert_eq!(world.db.value("select error from provisioner_jobs").await, "no");
}

/// The job was queued once more after its first daemon fell silent, which then speaks again.
#[tokio::test]
async fn a_stale_lease_token_changes_nothing() {
    let world = World::new().await;
    let replica = world.replica().await;
    let (one, two) =
        (Daemon::register(&replica, "one").await, Daemon::register(&replica, "two").await);
    world.given_jobs(0..1).await;
    let stale = one.acquire().await;
    world.sql("update provisioner_jobs set lease_expires_at = now() - interval '1 s'").await;
    crate::reaper::pass(&replica.broker).await.unwrap();
    let held = two.acquire().await;
    assert_eq!(held.id, stale.id);
    let row = "select md5(j::text) || (select count(*) from provisioner_job_logs)
               from provisioner_jobs j";
    let before = world.db.value(row).await;
    let mut update = beat(&stale);
    update.logs = vec![line(1, "still here")];
    update.step = v1::Step::Apply.into();
    assert_eq!(one.update(update).await.unwrap_err(), Code::FailedPrecondition);
    assert_eq!(one.complete_with(&stale, &["old"]).await, Err(Code::FailedPrecondition));
    assert_eq!(one.fail(&stale, "no").await, Err(Code::FailedPrecondition));
    assert_eq!(world.db.value(row).await, before);
    assert_eq!(two.complete_with(&held, &["new"]).await, Ok(()));
    assert_eq!(world.db.value(RESOURCES).await, "new");
}

#[tokio::test]
async fn a_daemon_reports_on_no_job_of_another() {
    let world = World::new().await;
    let replica = world.replica().await;
    let one = Daemon::register(&replica, "one").await;
    let strange = Daemon::of(&replica, "strange", 2, &[]).await;
    world.given_jobs(0..2).await;
    let (first, second) = (one.acquire().await, one.acquire().await);
    // A key of another organization learns nothing, even with the token.
    assert_eq!(strange.update(beat(&first)).await.unwrap_err(), Code::NotFound);
    assert_eq!(strange.complete(&first).await, Err(Code::NotFound));
    // The token of one job opens no other.
    let mixed = v1::Job { lease_token: second.lease_token.clone(), ..first.clone() };
    assert_eq!(one.complete(&mixed).await, Err(Code::FailedPrecondition));
    assert_eq!(one.fail(&mixed, "no").await, Err(Code::FailedPrecondition));
    assert_eq!(world.status(job(0)).await, "running");
    assert!(strange.acquire_within(0).await.is_none(), "nor does it get its jobs");
}

#[tokio::test]
async fn the_lease_is_longer_while_apply_runs() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let taken = daemon.acquire().await;
    let left =
        "select round(extract(epoch from lease_expires_at - now()) / 30) from provisioner_jobs";
    assert_eq!((taken.lease_seconds, world.db.count(left).await), (60, 2));
    let mut update = beat(&taken);
    update.step = v1::Step::Plan.into();
    assert_eq!(daemon.update(update.clone()).await.unwrap().lease_seconds, 60);
    update.step = v1::Step::Apply.into();
    assert_eq!(daemon.update(update.clone()).await.unwrap().lease_seconds, 300);
    assert_eq!(world.db.count(left).await, 10);
    update.step = v1::Step::Graph.into();
    assert_eq!(daemon.update(update).await.unwrap().lease_seconds, 300, "it is applied for good");
}

/// What a daemon sends past the cap is dropped, with one line that says so; it is not an error.
#[tokio::test]
async fn the_log_ends_at_its_cap_with_one_line() {
    let world = World::new().await;
    let limits = Limits { poll: Period::from_millis(200), log_bytes: 100, ..Limits::default() };
    let replica = world.replica_with(&servers().await.nats_url, limits).await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let taken = daemon.acquire().await;
    for batch in 0..5 {
        let mut update = beat(&taken);
        update.logs = (1..=4).map(|n| line(batch * 4 + n, "twelve bytes")).collect();
        assert!(daemon.update(update).await.is_ok());
    }
    let stored = world.db.rows("select output from provisioner_job_logs order by id").await;
    let stored: Vec<String> = stored.into_iter().flatten().collect();
    assert_eq!(stored.len(), 9, "{stored:?}");
    assert_eq!(stored[7], "twelve bytes");
    assert_eq!(stored[8], "The log exceeds 100 bytes; the rest of it is dropped.");
    let facts = "select logs_length || ' ' || logs_overflowed from provisioner_jobs";
    assert_eq!(world.db.value(facts).await, "96 true");
    assert_eq!(daemon.complete(&taken).await, Ok(()));
}

/// A follower that asks for what comes after the last line it has, while lines are added, some of
/// them twice, gets each once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_log_misses_no_line() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let taken = daemon.acquire().await;
    let db = replica.broker.backbone.db.clone();
    let follower = tokio::spawn(async move {
        let (mut after, mut seen) = (0, Vec::new());
        while seen.last().is_none_or(|it| it != "line 199") {
            for line in job_log::list(&db, JobId(job(0)), after, 7).await.unwrap() {
                after = line.id;
                seen.push(line.output);
            }
        }
        seen
    });
    // Batches that overlap, two at once.
    let send = async |batches: Vec<u64>| {
        for batch in batches {
            let mut update = beat(&taken);
            update.logs =
                (batch * 10..batch * 10 + 20).map(|n| line(n + 1, &format!("line {n}"))).collect();
            daemon.update(update).await.unwrap();
        }
    };
    tokio::join!(send((0..19).collect()), send((0..19).collect()));
    let expected: Vec<String> = (0..200).map(|n| format!("line {n}")).collect();
    assert_eq!(follower.await.unwrap(), expected);
}
