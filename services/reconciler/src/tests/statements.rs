//! What passes cost, counted in statements.

use std::cell::Cell;
use std::sync::Once;

use berth_db::pool::{self, BuildIds, NewPrebuilds, Patience};
use berth_domain::id::{BuildId, JobId, OrganizationId, TemplateId, VersionId, WorkspaceId};
use tokio_util::sync::CancellationToken;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use uuid::Uuid;

use super::{PRESET, finish_builds, given_pool, prebuilds, reconciler};
use crate::sweep::sweep;

thread_local! {
    static SENT: Cell<usize> = const { Cell::new(0) };
}

/// Counts the statements that sqlx says it sends, by thread. One for the whole test process: what
/// listens on one thread only may be missed by a callsite that another thread meets first.
struct Statements;

impl Statements {
    /// Statements that this thread sends from now on; a test's runtime has one thread.
    fn listen() {
        static SET: Once = Once::new();
        SET.call_once(|| tracing::subscriber::set_global_default(Self).unwrap());
        SENT.set(0);
    }

    fn count() -> usize {
        SENT.get()
    }
}

impl Subscriber for Statements {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        SENT.set(SENT.get() + 1);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Begin, lock, reading, parameters, creation, outcome, outbox: as many for a hundred prebuilds as for one.
#[tokio::test]
async fn a_hundred_prebuilds_are_created_by_as_many_statements_as_one() {
    let mut counts = Vec::new();
    for desired in [1, 100] {
        let database = given_pool(desired).await;
        let replica = reconciler(&database).await;
        Statements::listen();
        replica.reconcile(PRESET, Patience::Wait).await.unwrap();
        counts.push(Statements::count());
        assert_eq!(prebuilds(&database).await, i64::from(desired));
    }
    assert_eq!(counts, [7, 7]);
}

/// Begin, lock, reading, deletes, outcome, outbox.
#[tokio::test]
async fn a_hundred_prebuilds_are_deleted_by_as_many_statements_as_one() {
    let mut counts = Vec::new();
    for desired in [1, 100] {
        let database = given_pool(desired).await;
        let replica = reconciler(&database).await;
        replica.reconcile(PRESET, Patience::Wait).await.unwrap();
        finish_builds(&database).await;
        database.rows("update template_version_presets set desired_instances = 0").await;
        Statements::listen();
        replica.reconcile(PRESET, Patience::Wait).await.unwrap();
        counts.push(Statements::count());
        let deleting = "select count(*) from workspaces where pool_state = 'deleting'";
        assert_eq!(database.count(deleting).await, i64::from(desired));
    }
    assert_eq!(counts, [6, 6]);
}

/// Two prebuilds of one name are as good as impossible; should it happen, the pool goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_prebuild_whose_name_is_taken_is_left_out() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    let id = || replica.backbone.ids.next();
    let ids: Vec<BuildIds> = (0..2)
        .map(|_| BuildIds { workspace: WorkspaceId(id()), build: BuildId(id()), job: JobId(id()) })
        .collect();
    let new = NewPrebuilds {
        preset_id: PRESET,
        template_id: TemplateId(Uuid::from_u128(5)),
        organization_id: OrganizationId(Uuid::from_u128(1)),
        version_id: VersionId(Uuid::from_u128(4)),
        ids: &ids,
        names: &["prebuild-a".to_owned(), "prebuild-A".to_owned()],
        ttl_seconds: 0,
        parameters: &[("size".to_owned(), "8".to_owned())],
        trace: &serde_json::json!({}),
        now: replica.backbone.clock.now(),
    };

    let queued = pool::insert_prebuilds(&replica.backbone.db, &new).await.unwrap();

    assert_eq!(queued.len(), 1);
    assert_eq!(prebuilds(&database).await, 1);
    for table in ["workspace_builds", "workspace_build_parameters"] {
        assert_eq!(database.count(&format!("select count(*) from {table}")).await, 1);
    }
}

/// With nothing to do a sweep looks for marked and due pools and for open promotions, and at no pool.
#[tokio::test]
async fn an_idle_sweep_is_two_statements() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();
    let stop = CancellationToken::new();
    sweep(&replica, &stop).await.unwrap();

    Statements::listen();
    assert_eq!(sweep(&replica, &stop).await.unwrap(), 0);

    assert_eq!(Statements::count(), 2);
}

/// Of two replicas that sweep at once, the second one finds no mark and reads nothing more.
#[tokio::test]
async fn a_pool_that_another_replica_has_done_costs_one_statement() {
    let database = given_pool(1).await;
    let replica = reconciler(&database).await;
    replica.reconcile(PRESET, Patience::Wait).await.unwrap();

    Statements::listen();
    replica.reconcile(PRESET, Patience::Skip).await.unwrap();

    assert_eq!(Statements::count(), 1);
}
