//! Daemons that wait: who is woken, who asks, who gets the job.

use std::time::{Duration, Instant};

use berth_backbone::builder;
use berth_bus::event::{Event, JobCanceled};
use berth_db::job::Filter;
use berth_domain::build::normalize_tags;
use berth_domain::id::{DaemonId, JobId, LeaseToken, OrganizationId, PREBUILDS_USER};
use berth_domain::state::ProvisionerType;
use berth_proto::v1;
use berth_service_kit::Period;
use berth_testkit::{SOON, servers, wait_until};
use futures_util::future::{join_all, select_all};
use uuid::Uuid;

use super::statements::Statements;
use super::{Daemon, Replica, World, beat, job, organization};
use crate::config::Limits;
use crate::queue::{InHand, Queue, Ticket};

/// A waiting daemon of organization 1, without a stream of its own.
fn wait(replica: &Replica, daemon: u128) -> Ticket {
    let filter = Filter {
        organizations: vec![OrganizationId(organization(1))],
        provisioners: vec!["exec".into()],
        tags: normalize_tags([].into(), PREBUILDS_USER),
    };
    let lease = LeaseToken(replica.broker.backbone.ids.secret());
    Queue::wait(&replica.broker, filter, (DaemonId(Uuid::from_u128(daemon)), lease))
}

/// Queues jobs and says so.
async fn post(world: &World, replica: &Replica, numbers: std::ops::Range<u128>) {
    let count = u32::try_from(numbers.end - numbers.start).unwrap();
    world.given_jobs(numbers).await;
    let mut work = replica.broker.backbone.begin().await.unwrap();
    builder::post(&mut work, OrganizationId(organization(1)), ProvisionerType::Exec, count);
    work.commit().await.unwrap();
}

/// The first of the tickets that is served; the others go on waiting.
async fn first(tickets: &mut Vec<Ticket>) -> InHand {
    let waits = tickets.iter_mut().map(|it| Box::pin(it.job()));
    let (found, place, _) = select_all(waits).await;
    drop(tickets.remove(place));
    found.expect("the replica runs")
}

async fn looked(statements: usize) {
    wait_until("the groups looked", SOON, async || {
        (Statements::acquires() >= statements).then_some(())
    })
    .await;
}

/// Four replicas, 250 daemons each, one job after the other: each replica asks once per job.
#[tokio::test]
async fn one_job_costs_each_replica_one_statement_however_many_daemons_wait() {
    let world = World::new().await;
    Statements::listen();
    let replicas = [
        world.replica().await,
        world.replica().await,
        world.replica().await,
        world.replica().await,
    ];
    let mut tickets: Vec<Ticket> = (0..1000).map(|n| wait(&replicas[n as usize % 4], n)).collect();
    looked(4).await;
    for n in 0..10 {
        post(&world, &replicas[0], n..n + 1).await;
        first(&mut tickets).await.handed_over();
    }
    // The last ones to hear of it may not have looked yet: they can only look once more.
    let (looks, jobs) = (Statements::acquires() - 4, 10);
    assert!((jobs..=4 * jobs).contains(&looks), "{looks} statements for {jobs} jobs");
    let before = Statements::acquires();
    let more: Vec<Ticket> = (1000..1100).map(|n| wait(&replicas[0], n)).collect();
    post(&world, &replicas[0], 10..11).await;
    first(&mut tickets).await.handed_over();
    assert!(Statements::acquires() - before <= 4 + 4, "who joins a group that waits asks nothing");
    drop(more);
}

#[tokio::test]
async fn as_many_daemons_are_served_at_once_as_there_are_jobs() {
    let world = World::new().await;
    Statements::listen();
    let replica = world.replica().await;
    let mut tickets: Vec<Ticket> = (0..60).map(|n| wait(&replica, n)).collect();
    looked(1).await;
    post(&world, &replica, 0..50).await;
    for _ in 0..50 {
        first(&mut tickets).await.handed_over();
    }
    assert_eq!(Statements::acquires(), 2, "one for fifty jobs");
}

#[tokio::test]
async fn a_job_for_a_caller_who_is_gone_goes_back_into_the_queue() {
    let world = World::new().await;
    let replica = world.replica().await;
    let ticket = wait(&replica, 1);
    post(&world, &replica, 0..1).await;
    wait_until("the job is taken", SOON, async || {
        (world.status(job(0)).await == "running").then_some(())
    })
    .await;
    drop(ticket);
    let mut other = wait(&replica, 2);
    let in_hand = other.job().await.expect("the replica runs");
    assert_eq!(in_hand.held().id, JobId(job(0)));
    in_hand.handed_over();
    let attempts = "select attempts from provisioner_jobs";
    assert_eq!(world.db.count(attempts).await, 1, "nobody ran it before");
}

#[tokio::test]
async fn a_daemon_that_hung_up_is_given_nothing() {
    let world = World::new().await;
    let replica = world.replica().await;
    let (one, two) =
        (Daemon::register(&replica, "one").await, Daemon::register(&replica, "two").await);
    let gone = tokio::time::timeout(Duration::from_millis(300), one.acquire()).await;
    assert!(gone.is_err(), "there is no job");
    post(&world, &replica, 0..1).await;
    assert_eq!(two.acquire().await.id, job(0).to_string());
}

#[tokio::test]
async fn a_daemon_that_is_not_heard_of_is_given_nothing() {
    let world = World::new().await;
    let replica = world.replica().await;
    let (one, two) =
        (Daemon::register(&replica, "one").await, Daemon::register(&replica, "two").await);
    replica.silence(&one, Instant::now().checked_sub(Duration::from_secs(16)).unwrap());
    let waiting = one.clone();
    let silent = tokio::spawn(async move { waiting.acquire_within(20).await });
    let heard = tokio::spawn(async move { two.acquire().await });
    post(&world, &replica, 0..1).await;
    assert_eq!(heard.await.unwrap().id, job(0).to_string());
    replica.silence(&one, Instant::now());
    post(&world, &replica, 1..2).await;
    assert_eq!(silent.await.unwrap().expect("it is back").id, job(1).to_string());
}

/// Daemons at two replicas run 60 jobs: each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_on_one_database_run_each_job_once() {
    let world = World::new().await;
    let replicas = [world.replica().await, world.replica().await];
    let mut daemons = Vec::new();
    for n in 0..8 {
        daemons.push(Daemon::register(&replicas[n % 2], &format!("d{n}")).await);
    }
    post(&world, &replicas[0], 0..60).await;
    let runs = daemons.into_iter().map(|daemon| {
        tokio::spawn(async move {
            let mut done = Vec::new();
            while let Some(job) = daemon.acquire_within(1).await {
                assert_eq!(daemon.complete(&job).await, Ok(()));
                done.push(job.id);
            }
            done
        })
    });
    let done: Vec<String> =
        join_all(runs).await.into_iter().flat_map(|it| it.expect("the daemon runs")).collect();
    assert_eq!(done.len(), 60);
    let ran = "select count(*) from provisioner_jobs where status = 'succeeded' and attempts = 1";
    assert_eq!(world.db.count(ran).await, 60);
}

#[tokio::test]
async fn with_nats_away_the_poll_finds_the_job() {
    let world = World::new().await;
    let limits = Limits { poll: Period::from_millis(100), ..Limits::default() };
    let replica = world.replica_with("nats://127.0.0.1:1", limits).await;
    let daemon = Daemon::register(&replica, "one").await;
    let waiting = daemon.clone();
    let taken = tokio::spawn(async move { waiting.acquire().await });
    wait_until("it waits", SOON, async || replica.broker.queue.is_waited_in().then_some(())).await;
    post(&world, &replica, 0..1).await;
    let job = taken.await.unwrap();
    assert_eq!(daemon.complete(&job).await, Ok(()));
}

/// The daemon's stream stands with one replica, the notice is sent by another.
#[tokio::test]
async fn a_cancel_notice_reaches_the_daemon_through_another_replica() {
    let world = World::new().await;
    let (near, far) = (world.replica().await, world.replica().await);
    let daemon = Daemon::register(&near, "one").await;
    post(&world, &far, 0..1).await;
    let taken = daemon.acquire().await;
    world.sql("update provisioner_jobs set canceled_at = now()").await;
    let told = daemon.clone();
    let mut told = tokio::spawn(async move { told.told().await });
    // Sent again until it arrives: a subscription of a replica that has just started may be late.
    let message = wait_until("the daemon is told", SOON, async || {
        let mut work = far.broker.backbone.begin().await.unwrap();
        work.emit(Event::JobCanceled(JobCanceled { job_id: JobId(job(0)) }));
        work.commit().await.unwrap();
        tokio::time::timeout(Duration::from_millis(100), &mut told).await.ok()
    })
    .await
    .unwrap();
    let expected = v1::JobCanceled { job_id: taken.id.clone() };
    assert_eq!(message, v1::register_response::Message::JobCanceled(expected));
    assert!(daemon.update(beat(&taken)).await.unwrap().canceled, "and so does each report");
}

/// No notice arrives; the daemon reports to one replica, and is canceled by way of another.
#[tokio::test]
async fn with_nats_away_a_report_tells_of_the_cancel() {
    let world = World::new().await;
    let near = world.replica_at("nats://127.0.0.1:1").await;
    let far = world.replica_at("nats://127.0.0.1:1").await;
    let daemon = Daemon::register(&near, "one").await;
    world.given_jobs(0..1).await;
    let taken = daemon.acquire().await;
    assert!(!daemon.update(beat(&taken)).await.unwrap().canceled);
    world.sql("update provisioner_jobs set canceled_at = now()").await;
    let mut work = far.broker.backbone.begin().await.unwrap();
    work.emit(Event::JobCanceled(JobCanceled { job_id: JobId(job(0)) }));
    work.commit().await.unwrap();
    assert!(daemon.update(beat(&taken)).await.unwrap().canceled);
    assert_eq!(daemon.fail(&taken, "canceled").await, Ok(()));
    assert_eq!(world.status(job(0)).await, "canceled");
}

/// A posting that comes while nobody waits is not lost on who waits next.
#[tokio::test]
async fn who_comes_after_the_posting_finds_the_job() {
    let world = World::new().await;
    let replica = world.replica().await;
    for n in 0..5 {
        let gone = wait(&replica, 1);
        wait_until("it waits", SOON, async || replica.broker.queue.is_waited_in().then_some(()))
            .await;
        drop(gone);
        post(&world, &replica, n..n + 1).await;
        let in_hand = wait(&replica, 2).job().await.expect("the replica runs");
        assert_eq!(in_hand.held().id, JobId(job(n)));
        in_hand.handed_over();
    }
}

#[tokio::test]
async fn a_daemon_is_served_where_its_stream_is_not() {
    let world = World::new().await;
    let (near, far) = (world.replica().await, world.replica_at(&servers().await.nats_url).await);
    let mut daemon = Daemon::register(&near, "one").await;
    daemon.client = Daemon::register(&far, "other").await.client;
    post(&world, &near, 0..1).await;
    assert_eq!(daemon.acquire().await.id, job(0).to_string());
}
