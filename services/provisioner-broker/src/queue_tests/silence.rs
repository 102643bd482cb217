//! Daemons of which nothing is heard. What takes 15 and 90 s takes less here.

use std::time::Duration;

use berth_proto::v1;
use berth_testkit::{SOON, wait_until};
use tonic::Code;

use super::{Daemon, World};
use crate::register::Silence;

const STANDING: &str = "select case when disconnected_at is not null then 'gone'
    when silent_at is not null then 'silent' else 'there' end from provisioner_daemons";

async fn is(world: &World, expected: &str) {
    wait_until(expected, SOON, async || (world.db.value(STANDING).await == expected).then_some(()))
        .await;
}

async fn beat(daemon: &Daemon) {
    let message = v1::register_request::Message::Heartbeat(v1::Heartbeat::default());
    daemon.stream.0.send(v1::RegisterRequest { message: Some(message) }).await.unwrap();
}

#[tokio::test]
async fn a_daemon_counts_for_nothing_while_it_is_silent_and_is_there_with_the_next_heartbeat() {
    let mut world = World::new().await;
    world.silence = Silence { noticed: Duration::from_millis(100), gone: Duration::from_hours(1) };
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    is(&world, "silent").await;
    // Long enough to look, whatever the machine does: the next silence is noticed, too.
    let heard = wait_until("it is heard of", SOON, async || {
        beat(&daemon).await;
        (world.db.value(STANDING).await == "there").then_some(())
    });
    heard.await;
    is(&world, "silent").await;
}

#[tokio::test]
async fn a_daemon_that_stays_silent_is_gone_and_is_told_so() {
    let mut world = World::new().await;
    world.silence = Silence { noticed: Duration::from_millis(50), gone: Duration::from_millis(50) };
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    is(&world, "gone").await;
    let told = daemon.stream.1.lock().await.message().await.unwrap_err();
    assert_eq!(told.code(), Code::DeadlineExceeded);
    let silence = Silence::default();
    assert_eq!((silence.noticed.as_secs(), silence.gone.as_secs()), (15, 75));
}
