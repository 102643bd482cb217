//! Passes: what is missing is added once, whoever asks and however often.

use berth_backbone::Clock;
use berth_testkit::{SOON, TestDatabase, wait_until};

use crate::world::{Ear, count, given_organizations, membership, metric, replica, seats};

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

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_at_once_insert_each_missing_row_once() {
    let database = given_organizations(200, 1).await;
    given_some_are_partly_in_order(&database).await;
    let (members, groups, in_groups) = seats(&database).await;

    let replicas = [(); 3].map(|()| replica(&database, &Clock::default()));
    let (a, b, c) =
        tokio::join!(replicas[0].0.pass(None), replicas[1].0.pass(None), replicas[2].0.pass(None));
    let outcomes = [a.unwrap(), b.unwrap(), c.unwrap()];

    assert!(outcomes.iter().all(|it| it.failed.is_empty()), "{outcomes:?}");
    assert_eq!(members + outcomes.iter().map(|it| it.members).sum::<usize>(), 200);
    assert_eq!(groups + outcomes.iter().map(|it| it.groups).sum::<usize>(), 200);
    assert_eq!(in_groups + outcomes.iter().map(|it| it.group_members).sum::<usize>(), 200);
    assert_eq!(seats(&database).await, (200, 200, 200));
    let counted: f64 =
        replicas.iter().map(|it| metric(&it.1, "berth_membership_inserts_total")).sum();
    assert_eq!(counted.to_string(), (600 - members - groups - in_groups).to_string());
    let again = replicas[0].0.pass(None).await.unwrap();
    assert_eq!((again.out_of_order, again.members), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_added_is_marked_and_what_people_set_stays() {
    let database = given_organizations(50, 1).await;
    given_some_are_partly_in_order(&database).await;
    let mine = count(&database, "groups", "true").await;

    membership(&database).pass(None).await.unwrap();
    let added =
        "added_by_reconciler and quota_allowance = 0 and display_name = 'Prebuilt Workspaces'";
    assert_eq!(count(&database, "groups", added).await, 50 - mine);

    // An operator raises what the reconciler made; nothing puts it back.
    database.rows("update groups set quota_allowance = 7 where added_by_reconciler").await;
    database.rows("delete from group_members").await;
    membership(&database).pass(None).await.unwrap();
    assert_eq!(count(&database, "groups", "quota_allowance = 7").await, 50);
    assert_eq!(seats(&database).await, (50, 50, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_take_away_is_put_back() {
    let database = given_organizations(4, 1).await;
    membership(&database).pass(None).await.unwrap();
    let of = |n: i32| format!("(select id from organizations where name = 'org-{n}')");
    database
        .rows(&format!(
            "delete from organization_members where organization_id = {};
             delete from groups where organization_id = {};
             delete from group_members where group_id in (
                 select id from groups where organization_id = {})",
            of(1),
            of(2),
            of(3)
        ))
        .await;

    let outcome = membership(&database).pass(None).await.unwrap();

    assert_eq!(outcome.out_of_order, 3);
    assert_eq!((outcome.members, outcome.groups, outcome.group_members), (1, 1, 2));
    assert_eq!(seats(&database).await, (4, 4, 4));
}

#[tokio::test]
async fn a_broken_organization_does_not_stop_the_others_and_is_reported() {
    let database = given_organizations(20, 1).await;
    let broken = database.value("select id from organizations where name = 'org-7'").await;
    database
        .rows(&format!(
            "alter table groups add constraint broken check (organization_id <> '{broken}')"
        ))
        .await;
    let (membership, registry) = replica(&database, &Clock::default());
    let ear = Ear::default();
    let listening = ear.listen();

    let outcome = membership.pass(None).await.unwrap();
    drop(listening);

    assert_eq!(outcome.failed.iter().map(ToString::to_string).collect::<Vec<_>>(), [&*broken]);
    assert_eq!((outcome.members, outcome.group_members), (19, 19));
    // Its transaction is undone as a whole.
    assert_eq!(seats(&database).await, (19, 19, 19));
    let logged = ear.errors();
    assert!(logged.iter().any(|it| it.contains(&broken) && it.contains("broken")), "{logged:?}");
    let value = |name: &str| metric(&registry, name).to_string();
    assert_eq!(value("berth_membership_organization_errors_total"), "1");
    assert_eq!(value("berth_membership_organizations_out_of_order"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_that_somebody_holds_is_given_up_and_the_others_go_on() {
    let database = given_organizations(20, 1).await;
    let held = database.value("select id from organizations where name = 'org-7'").await;
    let holder = database.clone();
    let sql = format!(
        "begin; select id from organizations where id = '{held}' for update; select pg_sleep(20)"
    );
    tokio::spawn(async move { holder.rows(&sql).await });
    let sleeping = "select count(*) from pg_stat_activity
                    where wait_event = 'PgSleep' and datname = current_database()";
    wait_until("the row is held", SOON, async || {
        (database.count(sleeping).await == 1).then_some(())
    })
    .await;

    let mut one = membership(&database);
    one.concurrency = 1;
    let outcome = one.pass(None).await.unwrap();

    assert_eq!(outcome.failed.iter().map(ToString::to_string).collect::<Vec<_>>(), [held]);
    assert_eq!(seats(&database).await, (19, 19, 19));
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
               where wait_event = 'PgSleep' and datname = current_database()";
    database.rows(end).await;
    assert_eq!(one.pass(None).await.unwrap().failed, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_insert_is_read_again_and_gone_on_with() {
    let database = given_organizations(3, 1).await;
    // Whoever inserts the first group is told that it is there.
    database
        .rows(
            "create sequence tries;
             create function refuse_once() returns trigger language plpgsql as $$
             begin
                 if nextval('tries') = 1 then
                     raise unique_violation using constraint = 'groups_organization_id_name_key';
                 end if;
                 return new;
             end $$;
             create trigger refuse before insert on groups
                 for each row execute function refuse_once()",
        )
        .await;

    let outcome = membership(&database).pass(None).await.unwrap();

    assert_eq!(outcome.failed, []);
    assert_eq!((outcome.members, outcome.groups, outcome.group_members), (3, 3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn organizations_without_a_live_pool_are_left_alone() {
    let database = given_organizations(10, 1).await;
    let version = |n: i32| {
        format!(
            "(select active_version_id from templates t join organizations o
              on o.id = t.organization_id where o.name = 'org-{n}')"
        )
    };
    database
        .rows(&format!(
            "
            update templates set deleted = true
                where organization_id = (select id from organizations where name = 'org-1');
            update template_version_presets set desired_instances = null
                where template_version_id = {};
            delete from template_version_presets where template_version_id = {};
            update organizations set deleted = true where name = 'org-4'",
            version(2),
            version(3)
        ))
        .await;

    let outcome = membership(&database).pass(None).await.unwrap();

    assert_eq!(outcome.members, 6);
}

/// The pools of a warm promotion's candidate are built before it is active.
#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_versions_pools_count_like_active_ones() {
    let database = given_organizations(2, 0).await;
    database
        .rows(
            "
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                                          class, file_id, input, created_at, updated_at)
                select '00000000-0000-0000-0000-000000000003', organization_id, created_by,
                       'template_version_import', 'terraform', 0, gen_random_uuid(), '{}', now(),
                       now()
                from templates limit 1;
            insert into template_versions (id, template_id, organization_id, name, job_id,
                                           provisioner, created_by, created_at, updated_at)
                select '00000000-0000-0000-0000-000000000002', t.id, t.organization_id, 'v2',
                       '00000000-0000-0000-0000-000000000003', 'terraform', t.created_by, now(),
                       now()
                from templates t join organizations o on o.id = t.organization_id
                where o.name = 'org-1';
            insert into template_version_presets (id, template_version_id, name, desired_instances,
                                                  created_at)
                values (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'large', 1, now())",
        )
        .await;
    assert_eq!(membership(&database).pass(None).await.unwrap().out_of_order, 0);

    let candidate = "update templates t
                     set candidate_version_id = '00000000-0000-0000-0000-000000000002'
                     from organizations o where o.id = t.organization_id and o.name = 'org-1'";
    database.rows(candidate).await;

    assert_eq!(membership(&database).pass(None).await.unwrap().members, 1);
}

/// Pools that the quota holds back are looked at again; those that anything else holds are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_seat_marks_the_pools_that_the_quota_held() {
    let database = given_organizations(2, 2).await;
    database
        .rows(
            "insert into prebuild_pools (preset_id, template_version_id, template_id,
                                         organization_id, holds)
             select p.id, v.id, v.template_id, v.organization_id,
                    case when p.name = 'preset 1' then '{quota}' else '{capacity}' end::text[]
             from template_version_presets p join template_versions v on v.id = p.template_version_id",
        )
        .await;

    assert_eq!(membership(&database).pass(None).await.unwrap().pools, 2);

    let marked = "select distinct p.name from prebuild_pool_marks m
                  join template_version_presets p on p.id = m.preset_id";
    assert_eq!(database.value(marked).await, "preset 1");
}

/// An in-order pass is one statement, however many organizations and presets there are.
#[tokio::test]
async fn a_pass_with_all_in_order_is_one_statement() {
    for (organizations, presets) in [(100, 1), (100, 20), (5000, 1)] {
        let database = given_organizations(organizations, presets).await;
        database
            .rows(
                "insert into organization_members (organization_id, user_id, created_at, updated_at)
                     select id, 'c42fdf75-3097-471c-8c33-fb52454d81c0', now(), now()
                     from organizations;
                 insert into groups (id, organization_id, name, created_at)
                     select gen_random_uuid(), id, 'coderprebuiltworkspaces', now()
                     from organizations;
                 insert into group_members (group_id, user_id)
                     select id, 'c42fdf75-3097-471c-8c33-fb52454d81c0' from groups",
            )
            .await;
        let membership = membership(&database);
        let ear = Ear::default();
        let _listening = ear.listen();

        let outcome = membership.pass(None).await.unwrap();

        assert_eq!(outcome.out_of_order, 0);
        let said = ear.statements();
        assert_eq!(said.len(), 1, "{organizations} organizations, {presets} presets: {said:?}");
    }
}
