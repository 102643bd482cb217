//! NATS goes away during a claim.

use berth_testkit::TestStack;

use crate::reinit::{claim, reinitialised, starts};
use crate::{BERTH, template};

/// The claim succeeds and its build ends without NATS; what was to be told waits in the outbox and
/// arrives when NATS is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nats_stopped_a_claim_goes_on_and_everything_arrives_later() {
    let mut stack = TestStack::builder(BERTH).own_nats().start().await;
    let pushed = stack.given_template("agents", template::with_agent(&[("small", 1)])).await;
    let alice = stack.user("alice").await;
    stack.pool_has(&pushed, 1).await;
    stack.settled().await;

    stack.stop_nats().await;
    let workspace = claim(&stack, &alice, &pushed, "mine").await;
    let built = stack.app.built(&alice, &workspace).await;
    assert_eq!(built["latest_build"]["job"]["status"], "succeeded", "{built:#}");
    let waiting = "select count(*) from outbox";
    assert!(stack.database().count(waiting).await > 0, "events wait for NATS");

    stack.start_nats().await;
    stack.settled().await;
    reinitialised(&stack, &workspace, &alice).await;
    assert_eq!(starts(&stack, &workspace), ["prebuilds", "alice"]);
    stack.pool_has(&pushed, 1).await;
    stack.settled().await;
}
