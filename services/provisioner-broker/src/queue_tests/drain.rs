//! Daemons that are to take no new jobs.

use std::time::Duration;

use berth_bus::event::{DaemonsDrained, Event};
use berth_db::daemon;
use berth_domain::id::OrganizationId;
use berth_proto::v1;
use berth_proto::v1::register_response::Message;
use berth_service_kit::Period;
use berth_testkit::{SOON, servers, wait_until};

use super::{Daemon, Replica, World, job, named, organization};
use crate::config::Limits;

const NOBODY: &str = "nats://127.0.0.1:1";

fn often() -> Limits {
    Limits { poll: Period::from_millis(100), ..Limits::default() }
}

/// What the API does.
async fn drain(replica: &Replica, name: Option<&str>) -> Vec<String> {
    let mut work = replica.broker.backbone.begin().await.unwrap();
    let now = work.now();
    let org = OrganizationId(organization(1));
    let drained = daemon::drain(work.conn(), org, name, now).await.unwrap();
    work.emit(Event::DaemonsDrained(DaemonsDrained { organization_id: org }));
    work.commit().await.unwrap();
    drained.into_iter().map(|it| it.1).collect()
}

async fn undrain(replica: &Replica, name: Option<&str>) {
    let mut work = replica.broker.backbone.begin().await.unwrap();
    let org = OrganizationId(organization(1));
    daemon::undrain(work.conn(), org, name).await.unwrap();
    work.emit(Event::DaemonsDrained(DaemonsDrained { organization_id: org }));
    work.commit().await.unwrap();
}

/// A daemon that says which process it is, and which one it succeeded.
async fn started(replica: &Replica, name: &str, incarnation: &str, former: &str) -> Daemon {
    let hello = v1::Hello {
        incarnation: incarnation.into(),
        former_incarnation: former.into(),
        ..named(name)
    };
    Daemon::enter(replica, 1, hello).await.unwrap()
}

fn drained() -> Message {
    Message::Drain(v1::Drain { stay: true })
}

/// Sent again until it is heard: a subscription of a replica that has just started may be late.
async fn told_of_drain(from: &Replica, daemon: &Daemon) -> Message {
    drain(from, Some("one")).await;
    let told = daemon.clone();
    let mut told = tokio::spawn(async move { told.told().await });
    wait_until("the daemon is told", SOON, async || {
        drain(from, Some("one")).await;
        tokio::time::timeout(Duration::from_millis(100), &mut told).await.ok()
    })
    .await
    .unwrap()
}

/// Its stream stands with one replica, the request comes by way of another; no poll helps.
#[tokio::test]
async fn a_draining_daemon_is_told_wherever_it_is_and_takes_no_job() {
    let world = World::new().await;
    let (near, far) = (world.replica().await, world.replica().await);
    let one = started(&near, "one", "a", "").await;
    world.given_jobs(0..2).await;
    let in_hand = one.acquire().await;
    assert_eq!(told_of_drain(&far, &one).await, drained());
    assert!(one.acquire_within(0).await.is_none(), "it drains");
    assert_eq!(one.complete(&in_hand).await, Ok(()), "what it has in hand it finishes");
    let two = started(&far, "two", "b", "").await;
    let other = two.acquire().await;
    assert_eq!(two.complete(&other).await, Ok(()));

    undrain(&far, Some("one")).await;
    assert_eq!(one.told().await, Message::Resume(v1::Resume {}));
    world.given_jobs(2..3).await;
    assert_eq!(one.acquire().await.id, job(2).to_string());
}

#[tokio::test]
async fn with_nats_away_a_daemon_drains_all_the_same() {
    let world = World::new().await;
    let (near, far) =
        (world.replica_with(NOBODY, often()).await, world.replica_with(NOBODY, often()).await);
    let one = started(&near, "one", "a", "").await;
    assert_eq!(drain(&far, None).await, ["one"]);
    assert_eq!(one.told().await, drained());
    world.given_jobs(0..1).await;
    assert!(one.acquire_within(0).await.is_none(), "it drains");
    undrain(&far, None).await;
    assert_eq!(one.told().await, Message::Resume(v1::Resume {}));
    assert_eq!(one.acquire().await.id, job(0).to_string());
}

/// The poll that it waits in is given the job, too, once it drains no more.
#[tokio::test]
async fn a_daemon_that_waits_while_it_drains_gets_the_job_after() {
    let world = World::new().await;
    let replica = world.replica().await;
    let one = started(&replica, "one", "a", "").await;
    assert_eq!(told_of_drain(&replica, &one).await, drained());
    world.given_jobs(0..1).await;
    let waiting = one.clone();
    let taken = tokio::spawn(async move { waiting.acquire().await });
    wait_until("it waits", SOON, async || replica.broker.queue.is_waited_in().then_some(())).await;
    assert_eq!(world.status(job(0)).await, "pending");
    undrain(&replica, None).await;
    assert_eq!(taken.await.unwrap().id, job(0).to_string());
}

#[tokio::test]
async fn a_daemon_that_connects_again_drains_on_and_one_that_starts_anew_does_not() {
    let world = World::new().await;
    let (near, far) = (world.replica().await, world.replica().await);
    let _one = started(&near, "one", "a", "").await;
    drain(&near, Some("one")).await;
    let again = started(&far, "one", "a", "").await;
    assert_eq!(again.told().await, drained());
    let restarted = started(&far, "one", "b", "a").await;
    world.given_jobs(0..1).await;
    assert_eq!(restarted.acquire().await.id, job(0).to_string());
    assert_eq!(
        world
            .db
            .count("select count(*) from provisioner_daemons where draining_since is not null")
            .await,
        0
    );
}

#[tokio::test]
async fn a_request_to_drain_is_for_daemons_that_are_there_and_counts_once() {
    let world = World::new().await;
    let replica = world.replica_at(&servers().await.nats_url).await;
    let (_one, _two) =
        (started(&replica, "one", "a", "").await, started(&replica, "two", "b", "").await);
    world.sql("update provisioner_daemons set disconnected_at = now() where name = 'two'").await;
    assert_eq!(drain(&replica, None).await, ["one"]);
    assert!(drain(&replica, None).await.is_empty());
    assert!(drain(&replica, Some("two")).await.is_empty());
}
