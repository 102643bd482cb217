//! Passes against a real Postgres: what is missing is added once, whoever asks and however often.

use berth_backbone::{Clock, Ids};
use berth_membership_reconciler::{Membership, Metrics};
use berth_testkit::TestDatabase;
use prometheus::Registry;

/// Fifty organizations with one pool each.
const ORGANIZATIONS: i64 = 50;

async fn given_organizations_with_pools(database: &TestDatabase) {
    database
        .rows(&format!(
            "
            insert into users (id, username, email, created_at, updated_at)
            values ('00000000-0000-0000-0000-0000000000ff', 'ada', 'ada@example.com', now(), now());
            create temporary table made as
                select gen_random_uuid() as org, gen_random_uuid() as template,
                       gen_random_uuid() as version, gen_random_uuid() as job, n
                from generate_series(1, {ORGANIZATIONS}) n;
            insert into organizations (id, name, created_at, updated_at)
                select org, 'org-' || n, now(), now() from made;
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                                          class, file_id, input, created_at, updated_at)
                select job, org, '00000000-0000-0000-0000-0000000000ff', 'template_version_import',
                       'terraform', 0, gen_random_uuid(), '{{}}', now(), now() from made;
            insert into templates (id, organization_id, name, provisioner, active_version_id,
                                   created_by, created_at, updated_at)
                select template, org, 'go', 'terraform', version,
                       '00000000-0000-0000-0000-0000000000ff', now(), now() from made;
            insert into template_versions (id, template_id, organization_id, name, job_id,
                                           provisioner, created_by, created_at, updated_at)
                select version, template, org, 'v1', job, 'terraform',
                       '00000000-0000-0000-0000-0000000000ff', now(), now() from made;
            insert into template_version_presets (id, template_version_id, name, desired_instances,
                                                  created_at)
                select gen_random_uuid(), version, 'large', 1, now() from made;"
        ))
        .await;
}

/// A random part of the organizations has a random part of what is needed.
async fn given_some_are_partly_in_order(database: &TestDatabase) {
    database
        .rows(
            "
            insert into organization_members (organization_id, user_id, created_at, updated_at)
                select id, 'c42fdf75-3097-471c-8c33-fb52454d81c0', now(), now()
                from organizations where random() < 0.4;
            insert into groups (id, organization_id, name, quota_allowance, created_at)
                select gen_random_uuid(), id, 'coderprebuiltworkspaces', 7, now()
                from organizations where random() < 0.5;
            insert into group_members (group_id, user_id)
                select id, 'c42fdf75-3097-471c-8c33-fb52454d81c0' from groups where random() < 0.5;",
        )
        .await;
}

fn membership(database: &TestDatabase) -> Membership {
    Membership {
        db: berth_db::connect(&database.url, 4, "test").expect("the address is one"),
        clock: Clock::default(),
        ids: Ids,
        concurrency: 4,
        metrics: Metrics::register(&Registry::new()).expect("the metrics are new"),
    }
}

async fn count(database: &TestDatabase, table: &str, filter: &str) -> usize {
    let count = database.count(&format!("select count(*) from {table} where {filter}")).await;
    usize::try_from(count).expect("counts are not negative")
}

#[tokio::test(flavor = "multi_thread")]
async fn three_passes_at_once_insert_each_missing_row_once() {
    let database = TestDatabase::create().await;
    given_organizations_with_pools(&database).await;
    given_some_are_partly_in_order(&database).await;
    let (members, groups, in_groups) = (
        count(&database, "organization_members", "true").await,
        count(&database, "groups", "true").await,
        count(&database, "group_members", "true").await,
    );

    let replicas = [membership(&database), membership(&database), membership(&database)];
    let (a, b, c) =
        tokio::join!(replicas[0].pass(None), replicas[1].pass(None), replicas[2].pass(None));
    let outcomes = [a.unwrap(), b.unwrap(), c.unwrap()];

    let all = usize::try_from(ORGANIZATIONS).unwrap();
    assert!(outcomes.iter().all(|it| it.failed.is_empty()), "{outcomes:?}");
    assert_eq!(members + outcomes.iter().map(|it| it.members).sum::<usize>(), all);
    assert_eq!(groups + outcomes.iter().map(|it| it.groups).sum::<usize>(), all);
    assert_eq!(in_groups + outcomes.iter().map(|it| it.group_members).sum::<usize>(), all);
    assert_eq!(count(&database, "group_members", "true").await, all);
    let again = replicas[0].pass(None).await.unwrap();
    assert_eq!((again.out_of_order, again.members), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_added_is_marked_and_what_people_set_stays() {
    let database = TestDatabase::create().await;
    given_organizations_with_pools(&database).await;
    given_some_are_partly_in_order(&database).await;
    let mine = count(&database, "groups", "true").await;

    membership(&database).pass(None).await.unwrap();

    assert_eq!(count(&database, "groups", "quota_allowance = 7").await, mine);
    let added =
        "added_by_reconciler and quota_allowance = 0 and display_name = 'Prebuilt Workspaces'";
    let all = usize::try_from(ORGANIZATIONS).unwrap();
    assert_eq!(count(&database, "groups", added).await, all - mine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_organization_does_not_stop_the_others() {
    let database = TestDatabase::create().await;
    given_organizations_with_pools(&database).await;
    let broken = database.value("select id from organizations where name = 'org-7'").await;
    database
        .rows(&format!(
            "alter table groups add constraint broken check (organization_id <> '{broken}')"
        ))
        .await;

    let outcome = membership(&database).pass(None).await.unwrap();

    let all = usize::try_from(ORGANIZATIONS).unwrap();
    assert_eq!(outcome.failed.iter().map(ToString::to_string).collect::<Vec<_>>(), [broken]);
    assert_eq!((outcome.members, outcome.group_members), (all - 1, all - 1));
    // Its transaction is undone as a whole.
    assert_eq!(count(&database, "organization_members", "true").await, all - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn organizations_without_a_live_pool_are_left_alone() {
    let database = TestDatabase::create().await;
    given_organizations_with_pools(&database).await;
    database
        .rows(
            "
            update templates set deleted = true
                where organization_id = (select id from organizations where name = 'org-1');
            update template_version_presets set desired_instances = null
                where template_version_id = (
                    select v.id from template_versions v
                    join organizations o on o.id = v.organization_id and o.name = 'org-2');",
        )
        .await;

    let outcome = membership(&database).pass(None).await.unwrap();

    assert_eq!(outcome.members, usize::try_from(ORGANIZATIONS).unwrap() - 2);
}
