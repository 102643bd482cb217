//! Two reconcilers on the same pools.

use std::sync::atomic::{AtomicBool, Ordering};

use berth_testkit::{Service, TestDatabase, TestStack};

use crate::{BERTH, template};

const CLAIMS: usize = 12;

/// Pools that have, at one moment, more running and starting prebuilds than they should.
const TOO_MANY: &str = "
    select p.name, p.desired_instances, count(*)
    from workspaces w
    join template_version_presets p on p.id = w.pool_preset_id
    join workspace_builds b on b.id = w.latest_build_id
    join provisioner_jobs j on j.id = b.job_id
    where not w.deleted and b.transition = 'start'
        and j.status in ('pending', 'running', 'succeeded')
    group by p.id
    having count(*) > p.desired_instances";

/// However many events wake them both, running + starting never exceeds what is desired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_reconcilers_together_never_create_too_many() {
    let stack = TestStack::builder(BERTH)
        .replicas(Service::Reconciler, 2)
        .replicas(Service::Provisioner, 2)
        .start()
        .await;
    let done = AtomicBool::new(false);
    let story = async {
        let pushed =
            stack.given_template("pair", template::plain(&[("small", 3), ("large", 2)])).await;
        let small = stack.app.preset(&stack.owner, &pushed, "small").await;
        let large = stack.app.preset(&stack.owner, &pushed, "large").await;
        stack.pool_has(&pushed, 5).await;
        for number in 0..CLAIMS {
            let preset = if number % 2 == 0 { &small } else { &large };
            let name = format!("w{number}");
            stack.app.create_workspace(&stack.owner, &pushed, Some(preset), &name).await.ok();
        }
        stack.pool_has(&pushed, 5).await;
        stack.settled().await;
        done.store(true, Ordering::Release);
    };
    let ((), samples) = tokio::join!(story, watch(stack.database(), &done));
    assert!(samples > 10, "only {samples} looks at the pools");
    let hits = "select count(*) from claim_attempts where outcome = 'hit'";
    assert!(stack.database().count(hits).await > 0, "no claim emptied a pool");
    let existing =
        "select count(*) from workspaces where not deleted and pool_preset_id is not null";
    assert_eq!(stack.database().count(existing).await, 5, "nothing beyond the pools is left");
}

/// Looks at the pools, each time at one moment, until `done`. Answers with the number of looks.
async fn watch(database: &TestDatabase, done: &AtomicBool) -> usize {
    let mut samples = 0;
    while !done.load(Ordering::Acquire) {
        let too_many = database.rows(TOO_MANY).await;
        assert!(too_many.is_empty(), "(preset, desired, there are): {too_many:?}");
        samples += 1;
        tokio::task::yield_now().await;
    }
    samples
}
