//! Claims under contention, on a real Postgres.

use std::fmt::Write as _;

use berth_db::build::NewBuild;
use berth_db::claim::{self, Claim, Taken};
use berth_db::workspace::NewWorkspace;
use berth_db::{Executor, audit};
use berth_domain::id::{
    BuildId, JobId, OrganizationId, PresetId, TemplateId, UserId, VersionId, WorkspaceId,
};
use berth_domain::state::{BuildReason, BuildStage, JobClass, Transition};
use berth_testkit::TestDatabase;
use futures_util::future::join_all;
use jiff::Timestamp;
use uuid::Uuid;

const ORGANIZATION: Uuid = Uuid::from_u128(1);
const USER: Uuid = Uuid::from_u128(2);
const VERSION: Uuid = Uuid::from_u128(3);
const TEMPLATE: Uuid = Uuid::from_u128(4);
const PRESET: Uuid = Uuid::from_u128(5);

/// An active pool with `ready` prebuilds, one build each.
async fn given_pool(database: &TestDatabase, ready: u32) {
    let mut sql = format!(
        "
        insert into organizations (id, name, created_at, updated_at)
        values ('{ORGANIZATION}', 'acme', now(), now());
        insert into users (id, username, email, created_at, updated_at)
        values ('{USER}', 'alice', 'alice@example.com', now(), now());
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
            file_id, input, created_at, updated_at, completed_at)
        values ('{VERSION}', '{ORGANIZATION}', '{USER}', 'template_version_import', 'exec', 2,
            '{VERSION}', '{{}}', now(), now(), now());
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
            created_at, updated_at)
        values ('{VERSION}', '{ORGANIZATION}', 'v1', '{VERSION}', 'exec', '{USER}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id,
            created_by, created_at, updated_at)
        values ('{TEMPLATE}', '{ORGANIZATION}', 'dev', 'exec', '{VERSION}', '{USER}', now(), now());
        update template_versions set template_id = '{TEMPLATE}';
        insert into template_version_presets (id, template_version_id, name, desired_instances,
            created_at)
        values ('{PRESET}', '{VERSION}', 'large', {ready}, now());
        insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
        values ('{PRESET}', '{VERSION}', '{TEMPLATE}', '{ORGANIZATION}');
        commit;"
    );
    for n in 0..ready {
        let id = Uuid::from_u128(u128::from(100 + n));
        write!(
            sql,
            "
            insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                updated_at, last_used_at, pool_preset_id, pool_state)
            values ('{id}', 'c42fdf75-3097-471c-8c33-fb52454d81c0', '{ORGANIZATION}',
                '{TEMPLATE}', 'prebuild-{n}', now(), now(), now(), '{PRESET}', 'ready');"
        )
        .expect("a string takes everything");
    }
    database.rows(&sql).await;
}

fn order(n: u32) -> (NewWorkspace, NewBuild) {
    let id = |kind: u128| Uuid::from_u128(kind << 64 | u128::from(n));
    let workspace = NewWorkspace {
        owner_id: UserId(USER),
        organization_id: OrganizationId(ORGANIZATION),
        template_id: TemplateId(TEMPLATE),
        name: format!("dev-{n}"),
        autostart_schedule: None,
        ttl_ms: None,
        automatic_updates: "never".to_owned(),
    };
    let build = NewBuild {
        id: BuildId(id(7)),
        job_id: JobId(id(8)),
        workspace_id: WorkspaceId(Uuid::nil()),
        version_id: VersionId(VERSION),
        preset_id: Some(PresetId(PRESET)),
        transition: Transition::Start,
        initiator_id: UserId(USER),
        reason: BuildReason::Initiator,
        stage: BuildStage::Claim,
        class: JobClass::Claim,
        pool_state: None,
        parameters: vec![("size".to_owned(), "large".to_owned())],
        trace: serde_json::json!({}),
        now: "2026-11-21T08:00:00Z".parse::<Timestamp>().expect("a time"),
    };
    (workspace, build)
}

/// Claims from the one pool. The workspace that changed hands, if one did.
async fn take(
    db: impl Executor<'_>,
    workspace: &NewWorkspace,
    build: &NewBuild,
) -> Option<WorkspaceId> {
    let audit = audit::Entry {
        id: build.id.0,
        now: build.now,
        actor: None,
        organization: None,
        action: "create",
        resource_type: "workspace",
        resource_id: Uuid::nil(),
        target: String::new(),
        diff: serde_json::json!({}),
        request_id: None,
        ip: String::new(),
        user_agent: String::new(),
        status_code: 200,
    };
    let order = Claim {
        pool: PresetId(PRESET),
        workspace,
        build,
        attempt_id: build.id.0,
        asked_version: build.version_id,
        asked_preset: build.preset_id,
        previous_detail: &serde_json::json!({}),
        audit: &audit,
        key: None,
        events: &[],
    };
    match claim::take(db, order).await.expect("the claim is answered") {
        Taken::Claimed(claimed) => Some(claimed.workspace_id),
        Taken::OverQuota | Taken::Nothing => None,
    }
}

/// N users, M prebuilds: exactly M hits, no error, and each hit has its own workspace.
#[tokio::test]
async fn as_many_claims_hit_as_there_are_prebuilds_and_none_fails() {
    let database = TestDatabase::create().await;
    given_pool(&database, 7).await;
    let pool = berth_db::connect(&database.url, 16, "claim-test").unwrap();

    let claims = (0..60_u32).map(|n| {
        let pool = pool.clone();
        async move {
            let (workspace, build) = order(n);
            let mut transaction = berth_db::begin(&pool).await.unwrap();
            let taken = take(&mut *transaction, &workspace, &build).await;
            transaction.commit().await.unwrap();
            taken
        }
    });
    let mut hits: Vec<WorkspaceId> = join_all(claims).await.into_iter().flatten().collect();
    hits.sort();
    hits.dedup();

    assert_eq!(hits.len(), 7);
    let left = "select count(*) from workspaces where pool_state is not null";
    assert_eq!(database.count(left).await, 0);
    let builds = "select count(*) from workspace_builds b join workspaces w
                  on w.latest_build_id = b.id where b.stage = 'claim' and w.name like 'dev-%'";
    assert_eq!(database.count(builds).await, 7);
    assert_eq!(database.count("select count(*) from provisioner_jobs where class = 0").await, 7);
    assert_eq!(database.count("select count(*) from prebuild_pool_marks").await, 7);
}

/// Invalidated and expired prebuilds are nobody's from that commit on.
#[tokio::test]
async fn neither_expired_nor_invalidated_prebuilds_are_handed_out() {
    let database = TestDatabase::create().await;
    given_pool(&database, 2).await;
    let pool = berth_db::connect(&database.url, 2, "claim-test").unwrap();
    let first = Uuid::from_u128(100);
    let expire = format!(
        "update workspaces set pool_expires_at = '2026-11-21T07:59:59Z',
                               created_at = '2026-11-20T00:00:00Z' where id = '{first}';
         update workspaces set created_at = '2026-11-19T00:00:00Z' where id <> '{first}';
         update prebuild_pools set last_invalidated_at = '2026-11-19T12:00:00Z'"
    );
    database.rows(&expire).await;

    let (workspace, build) = order(1);
    assert_eq!(take(&pool, &workspace, &build).await, None);
    let facts = claim::diagnose(&pool, PresetId(PRESET), build.now).await.unwrap().unwrap();
    assert_eq!((facts.ready, facts.ready_expired, facts.active), (2, 2, true));
}
