use berth_backbone::Clock;
use berth_testkit::TestDatabase;
use jiff::{SignedDuration, Timestamp};
use prometheus::{IntCounterVec, Opts};
use tokio_util::sync::CancellationToken;

use crate::PurgeConfig;
use crate::purge::Purge;

const NOW: &str = "2026-11-21T12:00:00Z";
const PREBUILDS: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";
const ADA: &str = "00000000-0000-0000-0000-0000000000ff";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn purge(database: &TestDatabase, batch: u32) -> Purge {
    Purge {
        db: berth_db::connect(&database.url, 4, "test").unwrap(),
        clock: Clock::manual(now()),
        config: PurgeConfig { batch, ..PurgeConfig::default() },
        deleted: IntCounterVec::new(Opts::new("deleted", "x"), &["table"]).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_goes_batch_by_batch_and_the_rest_stays() {
    let database = TestDatabase::create().await;
    // One row per hour of the past: 10 days of them.
    database
        .rows(&format!(
            "
            insert into users (id, username, email, created_at, updated_at)
                values ('{ADA}', 'ada', 'ada@example.com', now(), now());
            create temporary table hour as
                select n, timestamptz '{NOW}' - n * interval '1 hour' as at
                from generate_series(1, 240) n;
            insert into prebuild_decisions (id, preset_id, created_at, desired, state, actions, reasons)
                select gen_random_uuid(), gen_random_uuid(), at, 1, '{{}}', '[]', '[]' from hour;
            insert into prebuild_failures (build_id, preset_id, failed_at, kind)
                select gen_random_uuid(), gen_random_uuid(), at, 'build' from hour;
            insert into prebuild_pool_marks (preset_id, created_at)
                select gen_random_uuid(), at from hour;
            insert into prebuild_pauses (id, scope, scope_id, actor_id, created_at, expires_at)
                select gen_random_uuid(), 'preset', gen_random_uuid(), '{ADA}', at, at from hour;
            insert into idempotency_keys (user_id, key, body_hash, workspace_id, created_at)
                select gen_random_uuid(), n::text, '', gen_random_uuid(), at from hour;
            insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds, last_used_at,
                                  expires_at, created_at, updated_at)
                select n::text, '', '{ADA}', 'password', 1, at, at, at, at from hour;
            insert into notification_messages (id, notification_template_id, user_id, method, payload,
                                               dedupe_hash, created_at)
                select gen_random_uuid(), gen_random_uuid(), '{ADA}', 'inbox', '{{}}', n::text, at
                from hour;
            insert into inbox_notifications (id, user_id, notification_template_id, title, content,
                                             created_at)
                select gen_random_uuid(), '{ADA}', gen_random_uuid(), 't', 'c', at from hour;"
        ))
        .await;
    let purge = purge(&database, 7);

    purge.sweep(&CancellationToken::new()).await;

    for (table, kept) in [
        ("prebuild_decisions", 168),
        ("prebuild_failures", 168),
        ("prebuild_pool_marks", 168),
        ("prebuild_pauses", 168),
        ("idempotency_keys", 24),
        ("api_keys", 168),
        ("notification_messages", 168),
        ("inbox_notifications", 168),
    ] {
        assert_eq!(database.count(&format!("select count(*) from {table}")).await, kept, "{table}");
        let deleted = purge.deleted.with_label_values(&[table]).get();
        assert_eq!(deleted, 240 - u64::try_from(kept).unwrap(), "{table}");
    }
}

/// A ready prebuild and a workspace of a person, each with an agent; `silence` before `NOW` is when
/// the agents were last heard of.
async fn given_workspaces(database: &TestDatabase, silence: &str) {
    database
        .rows(&format!(
            "
            create temporary table made (org uuid, template uuid, version uuid, job uuid, preset uuid);
            insert into made select gen_random_uuid(), gen_random_uuid(), gen_random_uuid(),
                                    gen_random_uuid(), gen_random_uuid();
            insert into users (id, username, email, created_at, updated_at)
                values ('{ADA}', 'ada', 'ada@example.com', now(), now());
            insert into organizations (id, name, created_at, updated_at)
                select org, 'acme', now(), now() from made;
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                                          class, file_id, input, created_at, updated_at)
                select job, org, '{ADA}', 'template_version_import', 'terraform', 0,
                       gen_random_uuid(), '{{}}', now(), now() from made;
            insert into templates (id, organization_id, name, provisioner, active_version_id,
                                   created_by, created_at, updated_at)
                select template, org, 'go', 'terraform', version, '{ADA}', now(), now() from made;
            insert into template_versions (id, template_id, organization_id, name, job_id,
                                           provisioner, created_by, created_at, updated_at)
                select version, template, org, 'v1', job, 'terraform', '{ADA}', now(), now() from made;
            insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                                    updated_at, last_used_at, pool_preset_id, pool_state,
                                    pool_ready_at)
                select gen_random_uuid(), owner::uuid, org, template, name, now(), now(), now(),
                       case when state is null then null else preset end, state, now()
                from made, (values ('{PREBUILDS}', 'prebuild', 'ready'), ('{ADA}', 'dev', null))
                    w (owner, name, state);
            insert into workspace_resources (id, job_id, transition, type, name, created_at)
                select gen_random_uuid(), job, 'start', 'docker', 'dev', now() from made;
            insert into workspace_agents (id, resource_id, workspace_id, name, auth_token, created_at,
                                          updated_at, first_connected_at, last_connected_at)
                select gen_random_uuid(), r.id, w.id, 'main', gen_random_uuid(), now(), now(),
                       timestamptz '{NOW}' - interval '1 hour',
                       timestamptz '{NOW}' - interval '{silence}'
                from workspaces w, workspace_resources r;"
        ))
        .await;
}

async fn look(database: &TestDatabase) -> Vec<berth_db::purge::Lost> {
    let db = berth_db::connect(&database.url, 2, "test").unwrap();
    let before = now() - SignedDuration::from_mins(3);
    berth_db::purge::mark_agents_lost(&db, before, now(), 100).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_is_lost_once_and_its_prebuild_cannot_be_claimed() {
    let database = TestDatabase::create().await;
    given_workspaces(&database, "181 seconds").await;

    let lost = look(&database).await;

    assert_eq!(lost.len(), 2);
    assert!(lost.iter().all(|it| it.revision == 2 && it.agents.len() == 1), "{lost:?}");
    let pools: Vec<_> = lost.iter().filter_map(|it| it.preset_id).collect();
    assert_eq!(pools.len(), 1);
    let state = "select pool_state from workspaces where name = 'prebuild'";
    assert_eq!(database.value(state).await, "unready");
    let marked = database.value("select preset_id from prebuild_pool_marks").await;
    assert_eq!(marked, pools[0].to_string());
    assert_eq!(look(&database).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_heard_of_lately_is_left_alone() {
    let database = TestDatabase::create().await;
    given_workspaces(&database, "179 seconds").await;

    assert_eq!(look(&database).await, []);

    let state = "select pool_state from workspaces where name = 'prebuild'";
    assert_eq!(database.value(state).await, "ready");
}

/// The agent was ready all along, so no new report will come: hearing of it again is enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_that_is_heard_again_makes_its_prebuild_claimable() {
    let database = TestDatabase::create().await;
    given_workspaces(&database, "181 seconds").await;
    database
        .rows(
            "
            insert into workspace_builds (id, workspace_id, template_version_id, build_number, transition,
                                          initiator_id, job_id, created_at, updated_at)
                select gen_random_uuid(), w.id, v.id, 1, 'start', w.owner_id, v.job_id, now(), now()
                from workspaces w, template_versions v where w.name = 'prebuild';
            update workspaces w set latest_build_id = b.id, latest_build_number = 1
                from workspace_builds b where b.workspace_id = w.id;
            update workspace_agents a set build_id = b.id, lifecycle_state = 'ready'
                from workspace_builds b where b.workspace_id = a.workspace_id;",
        )
        .await;
    look(&database).await;
    let db = berth_db::connect(&database.url, 2, "test").unwrap();
    let found = database
        .rows("select w.id, a.id from workspaces w join workspace_agents a on a.build_id = w.latest_build_id")
        .await;
    let (workspace, agent) = (found[0][0].parse().unwrap(), found[0][1].parse().unwrap());

    let while_lost = berth_db::agent::mark_pool_ready(&db, workspace, now()).await.unwrap();
    assert!(while_lost.is_none(), "a lost agent is no ready one");
    berth_db::agent::mark_connected(&db, agent, now()).await.unwrap();
    let moved = berth_db::agent::mark_pool_ready(&db, workspace, now()).await.unwrap();

    assert!(moved.is_some());
    let state = "select pool_state from workspaces where name = 'prebuild'";
    assert_eq!(database.value(state).await, "ready");
}

/// A pool's marks are its next look's; a pause without an end is for people to end.
#[tokio::test(flavor = "multi_thread")]
async fn old_marks_of_a_pool_that_is_there_and_open_pauses_stay() {
    let database = TestDatabase::create().await;
    given_workspaces(&database, "1 second").await;
    database
        .rows(&format!(
            "
            insert into template_version_presets (id, template_version_id, name, created_at)
                select w.pool_preset_id, v.id, 'p', now()
                from workspaces w, template_versions v where w.pool_preset_id is not null;
            insert into prebuild_pools (preset_id, template_version_id, organization_id)
                select p.id, p.template_version_id, o.id
                from template_version_presets p, organizations o;
            insert into prebuild_pool_marks (preset_id, created_at)
                select preset_id, timestamptz '{NOW}' - interval '30 days' from prebuild_pools;
            insert into prebuild_pauses (id, scope, actor_id, created_at)
                values (gen_random_uuid(), 'deployment', '{ADA}',
                        timestamptz '{NOW}' - interval '30 days');"
        ))
        .await;

    purge(&database, 7).sweep(&CancellationToken::new()).await;

    assert_eq!(database.count("select count(*) from prebuild_pool_marks").await, 1);
    assert_eq!(database.count("select count(*) from prebuild_pauses").await, 1);
}
