//! Jobs that lose their daemon, and jobs that find none.

use tonic::Code;
use uuid::Uuid;

use super::statements::Statements;
use super::{Daemon, World, beat, job};
use crate::reaper;

const EXPIRE: &str = "update provisioner_jobs set lease_expires_at = now() - interval '1 s'
                      where lease_expires_at is not null";
const NOTES: &str = "select output from provisioner_job_logs order by id";

/// It kills whoever runs it: two daemons die of it, and no third.
#[tokio::test]
async fn a_job_that_kills_every_daemon_ends_after_two() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let mut taken = 0;
    while daemon.acquire_within(0).await.is_some() {
        taken += 1;
        world.sql(EXPIRE).await;
        reaper::pass(&replica.broker).await.unwrap();
    }
    assert_eq!(taken, 2);
    let ended = "select status || ' ' || error_code || ' ' || attempts from provisioner_jobs";
    assert_eq!(world.db.value(ended).await, "failed infrastructure 2");
    let notes: Vec<String> = world.db.rows(NOTES).await.into_iter().flatten().collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("queued once more"), "{notes:?}");
    assert!(notes[1].contains("was lost"), "{notes:?}");
}

/// In apply: never again by itself, the state of the build before is kept, and the log warns.
#[tokio::test]
async fn a_job_lost_in_apply_fails_and_keeps_the_state() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    world.given_builds(0..1).await;
    let before = Uuid::from_u128(5);
    world
        .sql(&format!(
            "begin;
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                 file_id, input, created_at, updated_at, started_at, completed_at)
             select '{before}', organization_id, initiator_id, kind, provisioner, class, file_id,
                    input, now(), now(), now(), now() from provisioner_jobs where id = '{}';
             update workspace_builds set build_number = 2;
             insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                 transition, initiator_id, job_id, created_at, updated_at)
             select '{before}', workspace_id, template_version_id, 1, transition, initiator_id,
                    '{before}', now(), now() from workspace_builds;
             insert into workspace_build_states (build_id, state) values ('{before}', '\\x{}');
             commit;",
            job(0),
            hex::encode(zstd::encode_all(b"kept".as_slice(), 3).unwrap())
        ))
        .await;
    let taken = daemon.acquire().await;
    let mut update = beat(&taken);
    update.step = berth_proto::v1::Step::Apply.into();
    daemon.update(update).await.unwrap();
    world.sql(EXPIRE).await;
    reaper::pass(&replica.broker).await.unwrap();
    let ended = "select status || ' ' || error_code || ' ' || attempts
                 from provisioner_jobs where attempts > 0";
    assert_eq!(world.db.value(ended).await, "failed infrastructure 1");
    let state = format!(
        "select count(distinct state) || ' ' || count(*) from workspace_build_states
         where build_id in ('{before}', '{}')",
        job(0)
    );
    assert_eq!(world.db.value(&state).await, "1 2");
    let note = world.db.value(NOTES).await;
    assert!(note.contains("Resources may exist"), "{note}");
    assert_eq!(daemon.complete(&taken).await, Err(Code::FailedPrecondition));
}

/// As when the leases end, but nobody waits for that; and only for whoever knows the tokens.
#[tokio::test]
async fn what_is_given_up_is_queued_again_or_ended_at_once() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    let stranger = Daemon::of(&replica, "two", 2, &[]).await;
    world.given_jobs(0..2).await;
    let (planned, applied) = (daemon.acquire().await, daemon.acquire().await);
    let mut update = beat(&applied);
    update.step = berth_proto::v1::Step::Apply.into();
    daemon.update(update).await.unwrap();
    let leases = [planned.lease_token.as_str(), &applied.lease_token, &Uuid::nil().to_string()];
    let statuses = async || [world.status(job(0)).await, world.status(job(1)).await];
    stranger.give_up(&leases).await.unwrap();
    assert_eq!(statuses().await, ["running", "running"], "no daemon of theirs holds them");
    daemon.give_up(&leases).await.unwrap();
    assert_eq!(statuses().await, ["pending", "failed"]);
    let notes: Vec<String> = world.db.rows(NOTES).await.into_iter().flatten().collect();
    assert!(notes[0].contains("queued once more"), "{notes:?}");
    assert!(notes[1].contains("Resources may exist"), "{notes:?}");
    for it in [&planned, &applied] {
        assert_eq!(daemon.update(beat(it)).await.unwrap_err(), Code::FailedPrecondition);
        assert_eq!(daemon.complete(it).await, Err(Code::FailedPrecondition));
    }
    // Who waits for a job hears of it.
    let again = daemon.acquire().await;
    assert_eq!((&again.id, again.lease_token == planned.lease_token), (&planned.id, false));
    daemon.give_up(&leases).await.unwrap();
    assert_eq!(statuses().await, ["running", "failed"], "what is over is over");
    daemon.complete(&again).await.unwrap();
    assert_eq!(daemon.give_up(&["x"]).await, Err(Code::InvalidArgument));
    assert_eq!(daemon.give_up(&[""; 1001]).await, Err(Code::InvalidArgument));
}

/// The broker dies between taking a job for a daemon and telling it so: the daemon knows the lease,
/// for it chose it, and not the job.
#[tokio::test]
async fn a_job_that_never_reached_its_daemon_is_given_up_by_the_lease_that_was_asked_for() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let lease = Uuid::from_u128(0x1ea5e).to_string();
    let request = berth_proto::v1::AcquireJobRequest {
        daemon_id: daemon.id.clone(),
        wait_seconds: 50,
        lease_token: lease.clone(),
    };
    let answer = daemon.client.clone().acquire_job(super::with_key(&daemon.key, request)).await;
    assert_eq!(answer.unwrap().into_inner().job.unwrap().lease_token, lease);
    daemon.give_up(&[&lease]).await.unwrap();
    assert_eq!(world.status(job(0)).await, "pending");
}

/// The daemon reports at the moment at which the reaper looks: one of the two wins, wholly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_result_and_the_reaper_do_not_both_have_their_way() {
    let world = World::new().await;
    let (one, two) = (world.replica().await, world.replica().await);
    let daemon = Daemon::register(&one, "one").await;
    world.given_jobs(0..20).await;
    let mut jobs = Vec::new();
    for _ in 0..20 {
        jobs.push(daemon.acquire().await);
    }
    world.sql(EXPIRE).await;
    let reports = async {
        let mut taken = Vec::new();
        for job in &jobs {
            taken.push(daemon.complete_with(job, &["a"]).await);
        }
        taken
    };
    let passes = async {
        reaper::pass(&one.broker).await.unwrap();
        reaper::pass(&two.broker).await.unwrap();
    };
    let (reports, ()) = tokio::join!(reports, passes);
    for (job, report) in jobs.iter().zip(reports) {
        let status = world.status(job.id.parse().unwrap()).await;
        let resources =
            format!("select count(*) from workspace_resources where job_id = '{}'", job.id);
        let resources = world.db.count(&resources).await;
        match report {
            Ok(()) => assert_eq!((status.as_str(), resources), ("succeeded", 1)),
            Err(code) => {
                assert_eq!(code, Code::FailedPrecondition);
                assert_eq!((status.as_str(), resources), ("pending", 0));
            }
        }
    }
}

#[tokio::test]
async fn a_job_that_no_daemon_takes_is_cancelled_after_half_an_hour() {
    let world = World::new().await;
    let replica = world.replica().await;
    world.given_jobs(0..3).await;
    world
        .sql(&format!(
            "update provisioner_jobs set created_at = now() - interval '31 min';
             update provisioner_jobs set updated_at = now() - interval '31 min' where id <> '{}';
             update provisioner_jobs set created_at = now() - interval '29 min' where id = '{}';",
            job(1),
            job(2)
        ))
        .await;
    reaper::pass(&replica.broker).await.unwrap();
    assert_eq!(world.status(job(0)).await, "canceled");
    assert_eq!(world.status(job(1)).await, "pending", "it was taken and came back lately");
    assert_eq!(world.status(job(2)).await, "pending");
    let code = format!("select error_code from provisioner_jobs where id = '{}'", job(0));
    assert_eq!(world.db.value(&code).await, "no_provisioner");
    let note = world.db.value(NOTES).await;
    assert!(note.contains("within 30m") && note.contains("tags"), "{note}");
}

/// Leases of one job and of a thousand end: as many statements.
#[tokio::test]
async fn any_number_of_lost_jobs_costs_the_reaper_as_many_statements() {
    let mut counts = Vec::new();
    for jobs in [1_u128, 1000] {
        let world = World::new().await;
        let replica = world.replica().await;
        world.given_jobs(0..3 * jobs).await;
        world.given_builds(0..jobs).await;
        // A third is lost before apply, a third in it, a third is never taken.
        world
            .sql(&format!(
                "update provisioner_jobs set started_at = now(), attempts = 1, lease_token = id,
                        lease_expires_at = now() - interval '1 s'
                 where id < '{}' and completed_at is null;
                 update provisioner_jobs set apply_started = true where id < '{}';
                 update provisioner_jobs set updated_at = now() - interval '1 h',
                        created_at = now() - interval '1 h' where id >= '{}'",
                job(2 * jobs),
                job(jobs),
                job(2 * jobs)
            ))
            .await;
        Statements::listen();
        reaper::pass(&replica.broker).await.unwrap();
        counts.push(Statements::count());
        let by = "select status || ' ' || count(*) from provisioner_jobs
                  where organization_id <> id group by status order by status";
        let by: Vec<String> = world.db.rows(by).await.into_iter().flatten().collect();
        let expected = ["canceled", "failed", "pending"].map(|it| format!("{it} {jobs}"));
        assert_eq!(by, expected);
        let noted = "select count(distinct job_id) from provisioner_job_logs";
        assert_eq!(world.db.count(noted).await, i64::try_from(3 * jobs).unwrap());
    }
    assert_eq!(counts[0], counts[1], "{counts:?}");
}
