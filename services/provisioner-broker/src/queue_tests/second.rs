//! Two processes under one name.

use std::time::{Duration, Instant};

use berth_proto::v1;
use berth_testkit::{SOON, wait_until};
use tonic::Code;

use super::{Daemon, Replica, World};

async fn enter(replica: &Replica, incarnation: &str, former: &str) -> Result<Daemon, Code> {
    let hello = v1::Hello {
        name: "one".into(),
        incarnation: incarnation.into(),
        former_incarnation: former.into(),
        ..v1::Hello::default()
    };
    Daemon::enter(replica, 1, hello).await
}

/// Each would take the other's place for ever. Whoever is there stays; a successor, and the same
/// process over another connection, come in at once.
#[tokio::test]
async fn a_second_process_of_a_name_is_refused_while_the_first_is_there() {
    let world = World::new().await;
    let replica = world.replica().await;
    let first = enter(&replica, "a", "").await.unwrap();
    assert_eq!(enter(&replica, "b", "").await.err(), Some(Code::AlreadyExists));
    assert_eq!(enter(&replica, "b", "x").await.err(), Some(Code::AlreadyExists));
    let again = enter(&replica, "a", "").await.unwrap();
    let successor = enter(&replica, "b", "a").await.unwrap();
    assert_eq!([&again.id, &successor.id], [&first.id; 2], "one daemon to everybody");
    assert_eq!(enter(&replica, "a", "").await.err(), Some(Code::AlreadyExists));
    let other = v1::Hello { name: "one".into(), incarnation: "c".into(), ..v1::Hello::default() };
    assert!(Daemon::enter(&replica, 2, other).await.is_ok(), "another organization's");

    replica.silence(&successor, Instant::now().checked_sub(Duration::from_secs(16)).unwrap());
    let back = enter(&replica, "c", "").await.unwrap();
    drop(back);
    wait_until("its place is free once its stream is closed", SOON, async || {
        enter(&replica, "d", "").await.ok()
    })
    .await;
    let long = "x".repeat(37);
    assert_eq!(enter(&replica, &long, "").await.err(), Some(Code::InvalidArgument));
}

/// Before 1.1 a daemon does not say which process it is.
#[tokio::test]
async fn a_daemon_of_an_older_minor_takes_the_place_of_its_name() {
    let world = World::new().await;
    let replica = world.replica().await;
    let first = enter(&replica, "a", "").await.unwrap();
    let old = Daemon::register(&replica, "one").await;
    assert_eq!(old.id, first.id);
    assert!(enter(&replica, "b", "").await.is_ok(), "nobody knows who is there");
}
