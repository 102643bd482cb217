//! Quota, asked by several builds at once.

use berth_proto::v1;

use super::{ADA, Daemon, World, organization, with_key};

/// Six builds of one owner ask at once, at two replicas; the budget covers three of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn builds_that_ask_at_once_never_spend_more_than_the_budget() {
    let world = World::new().await;
    let (near, far) = (world.replica().await, world.replica().await);
    let daemons = [Daemon::register(&near, "near").await, Daemon::register(&far, "far").await];
    let org = organization(1);
    world
        .sql(&format!(
            "insert into groups (id, organization_id, name, quota_allowance, created_at)
                 values ('{org}', '{org}', 'everyone', 10, now());
             insert into organization_members (organization_id, user_id, created_at, updated_at)
                 values ('{org}', '{ADA}', now(), now())"
        ))
        .await;
    world.given_jobs(0..6).await;
    world.given_builds(0..6).await;
    let mut asking = Vec::new();
    for n in 0..6 {
        let daemon = daemons[n % 2].clone();
        let job = daemon.acquire().await;
        asking.push(tokio::spawn(async move {
            let request = v1::CommitQuotaRequest {
                job_id: job.id,
                lease_token: job.lease_token,
                daily_cost: 3,
            };
            let answer = daemon.client.clone().commit_quota(with_key(&daemon.key, request)).await;
            answer.unwrap().into_inner()
        }));
    }
    let mut granted = 0;
    for answer in asking {
        let answer = answer.await.unwrap();
        granted += i32::from(answer.ok);
        assert!(answer.credits_consumed <= 9 && answer.budget == 10, "{answer:?}");
    }
    assert_eq!(granted, 3);
    assert_eq!(world.db.count("select sum(daily_cost) from workspace_builds").await, 9);
}
