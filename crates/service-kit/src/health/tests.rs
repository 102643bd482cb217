use super::*;

#[test]
fn a_process_is_ready_when_every_latch_is() {
    let health = Health::default();
    let postgres = health.latch("postgres");
    let nats = health.latch("nats");
    assert!(!health.is_ready());

    postgres.set_ready();
    assert!(!health.is_ready());
    nats.set_ready();
    assert!(health.is_ready());
}

#[test]
fn a_failed_latch_is_listed_with_its_reason() {
    let health = Health::default();
    let latch = health.latch("postgres");
    latch.set_ready();
    latch.set_failed("connection refused at 127.0.0.1:5432");

    let report = health.report();
    assert!(!report.ready);
    let reason = "connection refused at 127.0.0.1:5432".to_owned();
    assert_eq!(report.latches, [LatchReport { name: "postgres".into(), ready: false, reason }]);
}

#[test]
fn a_draining_process_is_not_ready_whatever_its_latches_say() {
    let health = Health::default();
    health.latch("nats").set_ready();
    health.set_draining();
    assert!(!health.is_ready());
    health.latch("nats").set_ready();
    assert!(!health.is_ready());
}

#[test]
fn the_same_name_is_the_same_latch() {
    let health = Health::default();
    let first = health.latch("nats");
    first.set_ready();
    let second = health.latch("nats");
    assert!(health.is_ready());
    second.set_failed("gone");
    assert!(!health.is_ready());
    first.set_ready();
    assert!(health.is_ready());
}

#[tokio::test]
async fn waiting_for_readiness_ends_when_the_last_latch_is_set() {
    let health = Health::default();
    let latch = health.latch("nats");
    let waiting = tokio::spawn({
        let health = health.clone();
        async move { health.wait_ready().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    latch.set_ready();
    waiting.await.unwrap();
}
