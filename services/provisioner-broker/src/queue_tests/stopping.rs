//! A replica that stops while daemons work.

use std::time::{Duration, Instant};

use berth_testkit::SOON;
use tonic::Code;

use super::{Daemon, World, beat, job};

/// Daemons that wait, that work and that do not read keep nobody from stopping; what is in hand goes
/// on with another replica, under the same lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_stops_within_5_s_and_its_daemons_go_on_with_another() {
    let world = World::new().await;
    let (near, far) = (world.replica().await, world.replica().await);
    let mut worker = Daemon::register(&near, "worker").await;
    let waiter = Daemon::register(&near, "waiter").await;
    world.given_jobs(0..1).await;
    let taken = worker.acquire().await;
    let waiting = waiter.clone();
    let poll = tokio::spawn(async move { waiting.acquire_within(50).await });
    // A connection whose client has stopped, and never says a word.
    let _frozen = tokio::net::TcpStream::connect(&near.addr).await.unwrap();
    berth_testkit::wait_until("it waits", SOON, async || {
        near.broker.queue.is_waited_in().then_some(())
    })
    .await;

    let began = Instant::now();
    near.broker.stop.cancel();
    assert!(poll.await.unwrap().is_none(), "the poll is answered");
    let told = worker.stream.1.lock().await.message().await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable);
    assert!(told.message().contains("connect again"), "{told:?}");
    near.serving.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    worker.client = Daemon::register(&far, "worker").await.client;
    worker.update(beat(&taken)).await.unwrap();
    assert_eq!(worker.complete(&taken).await, Ok(()));
    let ran = "select attempts || ' ' || status from provisioner_jobs";
    assert_eq!(world.db.value(ran).await, "1 succeeded");
    assert_eq!(taken.id, job(0).to_string());
}
