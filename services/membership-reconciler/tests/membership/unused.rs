//! Organizations whose last pool is gone.

use berth_backbone::Clock;
use berth_membership_reconciler::{Membership, UNUSED_FOR};
use berth_testkit::TestDatabase;
use jiff::SignedDuration;

use crate::world::{Ear, count, given_organizations, metric, replica, seats};

/// In order, and then the template of `org-1` is deleted.
async fn given_an_unused_organization(clock: &Clock) -> (TestDatabase, Membership) {
    let database = given_organizations(3, 1).await;
    let (mut membership, _) = replica(&database, clock);
    membership.remove_unused = true;
    membership.pass(None).await.expect("the pass works");
    set_deleted(&database, true).await;
    (database, membership)
}

async fn set_deleted(database: &TestDatabase, deleted: bool) {
    let of = "(select id from organizations where name = 'org-1')";
    database
        .rows(&format!("update templates set deleted = {deleted} where organization_id = {of}"))
        .await;
}

fn clock() -> Clock {
    Clock::manual("2026-11-20T08:00:00Z".parse().expect("a time"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_added_goes_after_24_hours_without_pools() {
    let clock = clock();
    let (database, membership) = given_an_unused_organization(&clock).await;

    membership.pass(None).await.unwrap();
    clock.advance(UNUSED_FOR - SignedDuration::from_secs(1));
    membership.pass(None).await.unwrap();
    assert_eq!(seats(&database).await, (3, 3, 3));
    clock.advance(SignedDuration::from_secs(1));
    let outcome = membership.pass(None).await.unwrap();

    assert_eq!(outcome.removed, 3);
    assert_eq!(seats(&database).await, (2, 2, 2));
    assert_eq!(count(&database, "organizations", "prebuilds_unused_since is not null").await, 0);
    assert_eq!(membership.pass(None).await.unwrap().removed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_unless_it_is_asked_for() {
    let clock = clock();
    let (database, mut membership) = given_an_unused_organization(&clock).await;
    membership.remove_unused = false;

    for _ in 0..3 {
        membership.pass(None).await.unwrap();
        clock.advance(UNUSED_FOR);
    }

    assert_eq!(seats(&database).await, (3, 3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_that_come_back_begin_the_24_hours_anew() {
    let clock = clock();
    let (database, membership) = given_an_unused_organization(&clock).await;
    membership.pass(None).await.unwrap();
    clock.advance(UNUSED_FOR);

    set_deleted(&database, false).await;
    membership.pass(None).await.unwrap();
    set_deleted(&database, true).await;
    membership.pass(None).await.unwrap();

    assert_eq!(seats(&database).await, (3, 3, 3));
    clock.advance(UNUSED_FOR);
    membership.pass(None).await.unwrap();
    assert_eq!(seats(&database).await, (2, 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_added_or_changed_stays() {
    for (theirs, left) in [
        ("update organization_members set added_by_reconciler = false", (3, 2, 2)),
        ("update group_members set added_by_reconciler = false", (3, 3, 3)),
        ("update groups set added_by_reconciler = false", (2, 3, 2)),
        ("update groups set quota_allowance = 40", (2, 3, 2)),
        ("update groups set display_name = 'Ours'", (2, 3, 2)),
        (
            "insert into group_members (group_id, user_id)
             select g.id, u.id from groups g, users u where u.username = 'ada'",
            (2, 3, 2),
        ),
        (
            "update templates set group_acl = (select jsonb_object_agg(id, 'use') from groups)
             where not deleted",
            (2, 2, 2),
        ),
    ] {
        let clock = clock();
        let (database, membership) = given_an_unused_organization(&clock).await;
        database.rows(theirs).await;

        membership.pass(None).await.unwrap();
        clock.advance(UNUSED_FOR);
        membership.pass(None).await.unwrap();

        assert_eq!(seats(&database).await, left, "{theirs}");
        // What is theirs is not looked at again.
        assert_eq!(membership.pass(None).await.unwrap().removed, 0);
        let known = "prebuilds_unused_since is not null";
        assert_eq!(count(&database, "organizations", known).await, 0, "{theirs}");
    }
}

/// The statements of a removal are few, and those of a pass in between are one.
#[tokio::test]
async fn a_pass_before_and_after_the_removal_is_one_statement() {
    let clock = clock();
    let (database, mut membership) = given_an_unused_organization(&clock).await;
    let (counted, registry) = replica(&database, &clock);
    membership.metrics = counted.metrics;
    // The look, the transaction's begin, the bounds of its waits, and the one write.
    let set_right = 4;
    let ear = Ear::default();
    let _listening = ear.listen();

    membership.pass(None).await.unwrap();
    assert_eq!(ear.statements().len(), set_right);
    membership.pass(None).await.unwrap();
    assert_eq!(ear.statements().len(), 1);
    clock.advance(UNUSED_FOR);
    membership.pass(None).await.unwrap();
    assert_eq!(ear.statements().len(), set_right);
    membership.pass(None).await.unwrap();
    assert_eq!(ear.statements().len(), 1);
    assert_eq!(metric(&registry, "berth_membership_removals_total").to_string(), "3");
}
