//! Provisioner keys, and what becomes of daemons whose key is revoked.

use berth_db::provisioner_key;
use berth_domain::id::{OrganizationId, ProvisionerKeyId};
use tonic::Code;
use tonic::transport::Channel;
use uuid::Uuid;

use super::{Daemon, Replica, World, beat, job, named, organization};
use crate::reaper;

async fn revoke(replica: &Replica) {
    let (db, now) = (&replica.broker.backbone.db, replica.broker.backbone.clock.now());
    let org = OrganizationId(organization(1));
    provisioner_key::revoke(db, org, "k", now).await.unwrap().expect("there is one");
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_at_every_replica() {
    let world = World::new().await;
    let (near, far) = (world.replica().await, world.replica().await);
    let daemons = [Daemon::register(&near, "one").await, Daemon::register(&far, "two").await];
    world.given_jobs(0..2).await;
    let mut held = Vec::new();
    for daemon in &daemons {
        held.push(daemon.acquire().await);
    }
    revoke(&near).await;
    for (daemon, job) in daemons.iter().zip(&held) {
        assert_eq!(daemon.update(beat(job)).await.unwrap_err(), Code::Unauthenticated);
        assert_eq!(daemon.complete(job).await, Err(Code::Unauthenticated));
        assert_eq!(daemon.fail(job, "mine").await, Err(Code::Unauthenticated));
    }
    // Keys of others are as good as before.
    Daemon::of(&far, "three", 2, &[]).await;
}

/// What it runs is lost to it: the lease ends, and before apply another daemon runs the job.
#[tokio::test]
async fn the_job_of_a_daemon_whose_key_was_revoked_is_run_by_another() {
    let world = World::new().await;
    let replica = world.replica().await;
    let daemon = Daemon::register(&replica, "one").await;
    world.given_jobs(0..1).await;
    let taken = daemon.acquire().await;
    revoke(&replica).await;
    assert_eq!(daemon.complete(&taken).await, Err(Code::Unauthenticated));
    assert_eq!(world.status(job(0)).await, "running", "nobody ends it before its lease does");
    world.sql("update provisioner_jobs set lease_expires_at = now() - interval '1 s'").await;
    reaper::pass(&replica.broker).await.unwrap();
    assert_eq!(world.status(job(0)).await, "pending");

    let other = ProvisionerKeyId(Uuid::from_u128(0xc1));
    world
        .sql(&format!(
            "insert into provisioner_keys (id, organization_id, name, secret_hash, created_at)
             values ('{other}', '{}', 'k', sha256('other'), now())",
            organization(1)
        ))
        .await;
    let channel = Channel::from_shared(format!("http://{}", replica.addr)).unwrap();
    let key = provisioner_key::token(other, "other");
    let other = Daemon::over(channel.connect().await.unwrap(), &key, named("two")).await;
    let other = other.unwrap();
    let again = other.acquire().await;
    assert_eq!(again.id, taken.id);
    assert_eq!(other.complete(&again).await, Ok(()));
    assert_eq!(world.status(job(0)).await, "succeeded");
}
