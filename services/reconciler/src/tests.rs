use berth_backbone::{Backbone, Clock};
use berth_bus::{Bus, BusConfig};
use berth_db::pool::{BuildIds, Doomed, Locked, Patience};
use berth_domain::id::{BuildId, JobId, PresetId, VersionId, WorkspaceId};
use berth_domain::plan::PrebuildSettings;
use berth_testkit::{SOON, TestDatabase, servers, subject_space, wait_until};
use prometheus::Registry;
use uuid::Uuid;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::pass::Reconciler;

mod failure;
mod gauges;
mod holds;
mod model;
mod promotion;
mod rehearsal;
mod statements;
mod sweep;

const PRESET: PresetId = PresetId(Uuid::from_u128(7));

/// An organization with a daemon and a template whose one preset wants `desired` prebuilds.
async fn given_pool(desired: u32) -> TestDatabase {
    let database = TestDatabase::create().await;
    let id = |n: u128| Uuid::from_u128(n);
    let (org, ada, job, version, template, other) = (id(1), id(2), id(3), id(4), id(5), id(6));
    let preset = PRESET;
    database
        .rows(&format!(
            "
            begin;
            insert into organizations (id, name, created_at, updated_at) values ('{org}', 'o', now(), now());
            insert into users (id, username, email, created_at, updated_at)
                values ('{ada}', 'ada', 'ada@example.com', now(), now());
            insert into files (id, hash, created_by, created_at, data) values ('{job}', 'h', '{ada}', now(), '');
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class, file_id,
                                          input, created_at, updated_at, started_at, completed_at)
                select it, '{org}', '{ada}', 'template_version_import', 'exec', 2, '{job}', '{{}}', now(), now(),
                       now(), now()
                from unnest(array['{job}', '{other}']::uuid[]) it;
            insert into template_versions (id, organization_id, name, job_id, provisioner, created_by, created_at, updated_at)
                values ('{version}', '{org}', 'v1', '{job}', 'exec', '{ada}', now(), now()),
                       ('{other}', '{org}', 'v2', '{other}', 'exec', '{ada}', now(), now());
            insert into templates (id, organization_id, name, provisioner, active_version_id, created_by, created_at, updated_at)
                values ('{template}', '{org}', 't', 'exec', '{version}', '{ada}', now(), now());
            update template_versions set template_id = '{template}';
            insert into template_version_presets (id, template_version_id, name, desired_instances, created_at)
                values ('{preset}', '{version}', 'p', {desired}, now());
            insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
                values ('{preset}', '{version}', '{template}', '{org}');
            insert into provisioner_daemons (id, organization_id, name, version, api_version, provisioners, tags,
                                             created_at, last_seen_at)
                values ('{job}', '{org}', 'd', '0', '1.0', '{{exec}}',
                        '{{\"scope\": \"organization\", \"owner\": \"\"}}', now(), now());
            commit;"
        ))
        .await;
    database
}

async fn reconciler(database: &TestDatabase) -> Reconciler {
    replica(database, &Config::default(), &Clock::default()).await
}

/// A replica that is configured like this and has this clock.
async fn replica(database: &TestDatabase, config: &Config, clock: &Clock) -> Reconciler {
    let db = berth_db::connect(&database.url, 4, "test").unwrap();
    let url = servers().await.nats_url.clone();
    let bus = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
    let bus = Bus::connect(&bus, "test").await.unwrap();
    let (backbone, _publisher) = Backbone::over("reconciler", (db, bus), clock.clone());
    Reconciler::new(backbone, config, Metrics::register(&Registry::new()).unwrap())
}

/// One more preset of the template's active version, with a pool of its own.
async fn given_another(database: &TestDatabase, preset: PresetId, desired: u32) {
    database
        .rows(&format!(
            "insert into template_version_presets (id, template_version_id, name, desired_instances, created_at)
                 select '{preset}', template_version_id, 'p{preset}', {desired}, now()
                 from template_version_presets where id = '{PRESET}';
             insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
                 select '{preset}', template_version_id, template_id, organization_id
                 from prebuild_pools where preset_id = '{PRESET}'"
        ))
        .await;
}

/// Takes the pool as a pass does.
async fn lock(transaction: &mut berth_db::Transaction) {
    let (settings, now) = (PrebuildSettings::default(), Clock::default().now());
    let locked =
        berth_db::pool::lock(transaction, PRESET, Patience::Wait, &settings, now).await.unwrap();
    assert!(matches!(locked, Locked::Ours(_)), "{locked:?}");
}

/// Has every job that waits run with success, agents and all.
async fn finish_builds(database: &TestDatabase) {
    database
        .rows(
            "begin;
             update provisioner_jobs set started_at = now(), completed_at = now()
             where completed_at is null;
             update workspaces set pool_state = 'ready', pool_ready_at = now()
             where pool_state = 'starting' and not deleted;
             update workspaces set deleted = true where pool_state = 'deleting' and not deleted;
             commit;",
        )
        .await;
}

async fn prebuilds(database: &TestDatabase) -> i64 {
    database.count("select count(*) from workspaces where not deleted").await
}

/// Two replicas, woken eight times at once: the pool gets what it wants, and not one more.
#[tokio::test(flavor = "multi_thread")]
async fn two_reconcilers_together_never_over_create() {
    let database = given_pool(5).await;
    let (one, two) = (reconciler(&database).await, reconciler(&database).await);

    let passes =
        (0..8).map(|n| if n % 2 == 0 { one.clone() } else { two.clone() }).map(|replica| {
            tokio::spawn(async move { replica.reconcile(PRESET, Patience::Wait).await.unwrap() })
        });
    for pass in passes.collect::<Vec<_>>() {
        pass.await.unwrap();
    }

    assert_eq!(prebuilds(&database).await, 5);
    let jobs = "select count(*) from provisioner_jobs where class = 4 and status = 'pending'";
    assert_eq!(database.count(jobs).await, 5);
    let acted = "select count(*) from prebuild_decisions where actions <> '[]'";
    assert_eq!(database.count(acted).await, 1);
}

/// A promotion that commits while a pass waits for the pool's lock is what that pass sees.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_commits_while_a_pass_waits_is_not_missed() {
    let database = given_pool(3).await;
    let replica = reconciler(&database).await;
    let db = berth_db::connect(&database.url, 2, "test").unwrap();
    let mut holder = berth_db::begin(&db).await.unwrap();
    lock(&mut holder).await;

    let pass = tokio::spawn(async move { replica.reconcile(PRESET, Patience::Wait).await });
    let waits = "select count(*) from pg_stat_activity
                 where wait_event_type = 'Lock' and datname = current_database()";
    wait_until("the pass waits for the lock", SOON, async || {
        (database.count(waits).await == 1).then_some(())
    })
    .await;
    let promoted =
        "update templates set active_version_id = '00000000-0000-0000-0000-000000000006'";
    database.rows(promoted).await;
    holder.commit().await.unwrap();
    pass.await.unwrap().unwrap();

    assert_eq!(prebuilds(&database).await, 0, "the version is not active any more");
}

/// A mark that was set while a pass waited for the lock is left for another look.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_set_during_a_pass_outlives_it() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    let db = berth_db::connect(&database.url, 2, "test").unwrap();
    let mut pass = berth_db::begin(&db).await.unwrap();
    lock(&mut pass).await;

    let now = replica.backbone.clock.now();
    berth_db::pool::mark_dirty(&replica.backbone.db, &[PRESET], now).await.unwrap();
    pass.commit().await.unwrap();

    let due = async || berth_db::pool::list_due(&db, None, now, 10).await.unwrap();
    assert_eq!(due().await, [PRESET]);
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    assert_eq!(due().await, []);
}

/// Nothing is created without a daemon or while paused, and the decision log says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_pool_creates_nothing_and_says_why() {
    let database = given_pool(2).await;
    let replica = reconciler(&database).await;
    let newest =
        "select reasons->0->>'reason' from prebuild_decisions order by created_at desc limit 1";

    database
        .rows(
            "insert into prebuild_pauses (id, scope, actor_id, created_at)
             values (gen_random_uuid(), 'deployment', gen_random_uuid(), now())",
        )
        .await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    assert_eq!((prebuilds(&database).await, database.value(newest).await.as_str()), (0, "paused"));

    database.rows("delete from prebuild_pauses").await;
    database.rows("update provisioner_daemons set disconnected_at = now()").await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    let reasons = "select reasons::text from prebuild_decisions order by created_at desc limit 1";
    assert!(database.value(reasons).await.contains("capacity"));
    assert!(prebuilds(&database).await <= 2);
}

/// A workspace that was claimed after the plan was made is left alone, and so is one that is being
/// claimed at this moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_workspace_is_never_deleted() {
    let database = given_pool(3).await;
    let replica = reconciler(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    finish_builds(&database).await;
    let found = database.rows("select id, latest_build_id from workspaces order by id").await;
    let id = |text: &str| text.parse::<Uuid>().unwrap();
    let members: Vec<(Uuid, Uuid)> = found.iter().map(|it| (id(&it[0]), id(&it[1]))).collect();
    let [(claimed, _), (locked, _), (free, _)] = members[..] else { panic!("{found:?}") };
    database
        .rows(&format!(
            "update workspaces set owner_id = '00000000-0000-0000-0000-000000000002',
                 pool_preset_id = null, pool_state = null
             where id = '{claimed}'"
        ))
        .await;
    let db = &replica.backbone.db;
    let mut claim = berth_db::begin(db).await.unwrap();
    berth_db::agent::lock_workspace(&mut *claim, WorkspaceId(locked)).await.unwrap();

    let ids: Vec<BuildIds> = members
        .iter()
        .map(|(workspace, _)| BuildIds {
            workspace: WorkspaceId(*workspace),
            build: BuildId(replica.backbone.ids.next()),
            job: JobId(replica.backbone.ids.next()),
        })
        .collect();
    let latest: Vec<BuildId> = members.iter().map(|(_, build)| BuildId(*build)).collect();
    let doomed = Doomed {
        preset_id: PRESET,
        version_id: VersionId(Uuid::from_u128(4)),
        ids: &ids,
        latest: &latest,
        trace: &serde_json::json!({}),
        now: replica.backbone.clock.now(),
    };
    let queued = berth_db::pool::queue_deletes(db, &doomed).await.unwrap();

    assert_eq!(queued.iter().map(|it| it.workspace_id.0).collect::<Vec<_>>(), [free]);
    let again = berth_db::pool::queue_deletes(db, &doomed).await.unwrap();
    assert!(again.is_empty(), "its latest build is another one by now: {again:?}");
}

/// After a promotion, old prebuilds whose job nobody holds go at once, without a provisioner.
#[tokio::test(flavor = "multi_thread")]
async fn pending_prebuilds_of_an_inactive_preset_are_cancelled_and_gone() {
    let database = given_pool(3).await;
    let replica = reconciler(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    assert_eq!(prebuilds(&database).await, 3);
    database
        .rows("update templates set active_version_id = '00000000-0000-0000-0000-000000000006'")
        .await;

    replica.reconcile(PRESET, Patience::Wait).await.unwrap();

    assert_eq!(prebuilds(&database).await, 0);
    let open = "select count(*) from provisioner_jobs where completed_at is null";
    assert_eq!(database.count(open).await, 0);
}
