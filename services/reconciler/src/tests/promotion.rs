//! Promotions, with the service's own passes on a real Postgres.

use berth_backbone::promotion::{How, Promoted, PromotionError, promote, stop};
use berth_backbone::{Backbone, Clock};
use berth_bus::{Bus, BusConfig};
use berth_db::pool::{self, Patience};
use berth_domain::id::{PresetId, TemplateId, UserId, VersionId};
use berth_domain::notification::NotificationTemplate;
use berth_domain::state::PromotionOutcome;
use berth_testkit::{TestDatabase, servers, subject_space};
use jiff::SignedDuration;
use prometheus::Registry;
use uuid::Uuid;

use super::{PRESET, given_pool};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pass::Reconciler;

const TEMPLATE: TemplateId = TemplateId(Uuid::from_u128(5));
const V1: VersionId = VersionId(Uuid::from_u128(4));
const V2: VersionId = VersionId(Uuid::from_u128(6));
const OLD: PresetId = PRESET;
const NEW: PresetId = PresetId(Uuid::from_u128(8));

/// Two versions of a template, the first one active, each with a pool for the same preset, and two
/// replicas of the reconciler whose clock the test steps.
struct World {
    database: TestDatabase,
    replicas: [Reconciler; 2],
    clock: Clock,
}

async fn given_versions(desired: u32) -> World {
    let database = given_pool(desired).await;
    database
        .rows(&format!(
            "insert into template_version_presets (id, template_version_id, name, desired_instances, created_at)
                 values ('{NEW}', '{V2}', 'p', {desired}, now());
             insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
                 select '{NEW}', '{V2}', template_id, organization_id from prebuild_pools"
        ))
        .await;
    let clock = Clock::manual(Clock::default().now());
    let replicas = [replica(&database, &clock).await, replica(&database, &clock).await];
    World { database, replicas, clock }
}

async fn replica(database: &TestDatabase, clock: &Clock) -> Reconciler {
    let db = berth_db::connect(&database.url, 4, "test").unwrap();
    let url = servers().await.nats_url.clone();
    let bus = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
    let bus = Bus::connect(&bus, "test").await.unwrap();
    let (backbone, _publisher) = Backbone::over("reconciler", (db, bus), clock.clone());
    Reconciler::new(backbone, &Config::default(), Metrics::register(&Registry::new()).unwrap())
}

impl World {
    async fn promote(&self, how: How) -> Result<Promoted, PromotionError> {
        self.promote_to(V2, how).await
    }

    async fn promote_to(&self, version: VersionId, how: How) -> Result<Promoted, PromotionError> {
        let mut work = self.replicas[0].backbone.begin().await.unwrap();
        let promoted = promote(&mut work, TEMPLATE, version, how).await?;
        work.commit().await.unwrap();
        Ok(promoted)
    }

    fn warm(&self, ready_percent: u32) -> How {
        let deadline = self.clock.now() + SignedDuration::from_hours(1);
        How::Warm { ready_percent, deadline, actor: UserId(Uuid::from_u128(2)) }
    }

    /// Passes over every marked pool until none is marked.
    async fn settle(&self) {
        for _ in 0..20 {
            let marked = "select distinct preset_id from prebuild_pool_marks";
            let marked = self.database.rows(marked).await;
            if marked.is_empty() {
                return;
            }
            for row in marked {
                self.pass(row[0].parse().unwrap()).await;
            }
        }
        panic!("pools mark each other for ever");
    }

    async fn pass(&self, preset: PresetId) {
        self.replicas[0].reconcile(preset, Patience::Wait).await.unwrap();
    }

    /// The oldest `count` builds of a pool end as a daemon ends them: starts are ready, what is to be
    /// deleted is gone.
    async fn build(&self, preset: PresetId, count: u32) {
        let sql = format!(
            "with done as (
                 select id, latest_build_id, pool_state from workspaces
                 where pool_preset_id = '{preset}' and not deleted
                   and pool_state in ('starting', 'deleting')
                 order by created_at, id limit {count}
             ), jobs as (
                 update provisioner_jobs j set started_at = now(), completed_at = now()
                 from done d join workspace_builds b on b.id = d.latest_build_id where j.id = b.job_id
             )
             update workspaces w
             set deleted = d.pool_state = 'deleting',
                 pool_state = case d.pool_state when 'starting' then 'ready' else 'deleting' end
             from done d where w.id = d.id"
        );
        self.database.rows(&sql).await;
        let (db, now) = (&self.replicas[0].backbone.db, self.clock.now());
        pool::mark_dirty(db, &[preset], now).await.unwrap();
        self.settle().await;
    }

    async fn fill(&self, preset: PresetId) {
        let now = self.clock.now();
        pool::mark_dirty(&self.replicas[0].backbone.db, &[preset], now).await.unwrap();
        self.settle().await;
        self.build(preset, 100).await;
    }

    /// Prebuilds of a pool that claims may have.
    async fn claimable(&self, preset: PresetId) -> i64 {
        let now = self.clock.now();
        let sql = format!(
            "select count(*) from workspaces w
             join prebuild_pools p on p.preset_id = w.pool_preset_id
             join templates t on t.id = p.template_id
             where p.preset_id = '{preset}' and is_claimable(w, p, t, '{now}')"
        );
        self.database.count(&sql).await
    }

    async fn members(&self, preset: PresetId) -> i64 {
        let sql = format!(
            "select count(*) from workspaces where pool_preset_id = '{preset}' and not deleted"
        );
        self.database.count(&sql).await
    }

    async fn is_active(&self, version: VersionId) -> bool {
        let sql = format!("select count(*) from templates where active_version_id = '{version}'");
        self.database.count(&sql).await == 1
    }

    /// Outcome and reason of the only promotion.
    async fn outcome(&self) -> (String, String) {
        let rows = "select coalesce(outcome, 'open'), reason from template_promotions";
        let mut rows = self.database.rows(rows).await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        let mut row = rows.remove(0).into_iter();
        (row.next().unwrap_or_default(), row.next().unwrap_or_default())
    }

    /// Messages that tell template admins of a promotion that was called off.
    async fn called_off(&self) -> i64 {
        self.told(&NotificationTemplate::PromotionCalledOff.id().to_string()).await
    }

    /// Events on subjects that end so.
    async fn told(&self, end: &str) -> i64 {
        let sql = format!("select count(*) from outbox where subject like '%.{end}'");
        self.database.count(&sql).await
    }
}

/// The switch comes with the last one that had to be ready, and not one claim less could have been
/// served at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_warm_promotion_switches_when_enough_are_ready() {
    let world = given_versions(2).await;
    world.fill(OLD).await;
    let promoted = world.promote(world.warm(100)).await.unwrap();
    assert!(matches!(promoted, Promoted::Warming(_)));
    world.settle().await;
    assert_eq!((world.members(NEW).await, world.claimable(OLD).await), (2, 2));

    world.build(NEW, 1).await;
    assert!(world.is_active(V1).await, "one of two is not enough");
    assert_eq!((world.claimable(OLD).await, world.claimable(NEW).await), (2, 0));

    world.build(NEW, 1).await;
    assert!(world.is_active(V2).await);
    assert_eq!(world.outcome().await.0, "promoted");
    assert_eq!(world.claimable(NEW).await, 2);
    world.build(OLD, 100).await;
    assert_eq!((world.members(OLD).await, world.members(NEW).await), (0, 2));
    assert_eq!(world.told("promoted").await, 1);
}

/// With half of them ready the switch comes early, and old ones fill the gap until it is closed.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_switch_keeps_old_prebuilds_until_as_many_new_ones_are_ready() {
    let world = given_versions(4).await;
    world.fill(OLD).await;
    world.promote(world.warm(50)).await.unwrap();
    world.settle().await;

    world.build(NEW, 2).await;
    assert!(world.is_active(V2).await);
    for _ in 0..10 {
        let claimable = world.claimable(OLD).await + world.claimable(NEW).await;
        assert!(claimable >= 4, "{claimable} of 4");
        world.build(OLD, 1).await;
        world.build(NEW, 1).await;
    }
    assert_eq!((world.members(OLD).await, world.claimable(NEW).await), (0, 4));
}

/// A version that only fails never becomes active, the old pool is whole, and template admins are
/// told once.
#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_whose_breaker_opens_is_called_off() {
    let world = given_versions(2).await;
    world.fill(OLD).await;
    world.promote(world.warm(100)).await.unwrap();
    world.settle().await;

    let failed = format!(
        "update prebuild_pools set consecutive_failures = 3 where preset_id = '{NEW}';
         insert into prebuild_pool_marks (preset_id, created_at) values ('{NEW}', now())"
    );
    world.database.rows(&failed).await;
    world.settle().await;

    let (outcome, reason) = world.outcome().await;
    assert_eq!(outcome, "called_off");
    assert!(reason.contains("preset \"p\" failed too often"), "{reason}");
    assert!(world.is_active(V1).await);
    assert_eq!((world.claimable(OLD).await, world.members(NEW).await), (2, 0));
    assert_eq!(world.called_off().await, 1);
    assert_eq!(world.told("promoted").await, 0);
}

/// Time alone ends it: the candidate's pool is due at the deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_called_off_at_its_deadline() {
    let world = given_versions(2).await;
    world.fill(OLD).await;
    world.promote(world.warm(100)).await.unwrap();
    world.settle().await;
    let due = format!(
        "select count(*) from prebuild_pools p join template_promotions r
             on r.deadline_at = p.due_at where p.preset_id = '{NEW}'"
    );
    assert_eq!(world.database.count(&due).await, 1);

    world.clock.advance(SignedDuration::from_hours(1) - SignedDuration::from_secs(1));
    world.pass(NEW).await;
    assert_eq!(world.outcome().await.0, "open");
    world.clock.advance(SignedDuration::from_secs(1));
    world.pass(NEW).await;
    world.settle().await;

    let expected = "the time was up when 0 of 2 prebuilds were ready";
    assert_eq!(world.outcome().await, ("called_off".to_owned(), expected.to_owned()));
    assert_eq!((world.claimable(OLD).await, world.members(NEW).await), (2, 0));
    assert_eq!(world.called_off().await, 1);
}

/// Who died between a pass and its look left a promotion that is ready: the sweep finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_nobody_looked_at_is_found_by_the_sweep() {
    let world = given_versions(1).await;
    world.promote(world.warm(100)).await.unwrap();
    world.settle().await;
    let ready =
        format!("update workspaces set pool_state = 'ready' where pool_preset_id = '{NEW}'");
    world.database.rows(&ready).await;
    assert!(world.is_active(V1).await);

    crate::promotion::sweep(&world.replicas[0].backbone).await.unwrap();

    assert!(world.is_active(V2).await);
}

/// Two replicas that find it ready at the same time switch once.
#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_together_switch_once() {
    let world = given_versions(1).await;
    world.fill(OLD).await;
    world.promote(world.warm(100)).await.unwrap();
    world.settle().await;
    let ready =
        format!("update workspaces set pool_state = 'ready' where pool_preset_id = '{NEW}'");
    world.database.rows(&ready).await;

    let looks = (0..8).map(|n| {
        let backbone = world.replicas[n % 2].backbone.clone();
        tokio::spawn(async move { berth_backbone::promotion::look(&backbone, TEMPLATE).await })
    });
    let mut switched = 0;
    for look in looks.collect::<Vec<_>>() {
        switched += usize::from(look.await.unwrap().unwrap().is_some());
    }

    assert_eq!(switched, 1);
    assert_eq!(world.told("promoted").await, 1);
    let previous = format!("select count(*) from templates where previous_version_id = '{V1}'");
    assert_eq!(world.database.count(&previous).await, 1);
}

/// Nothing old is claimable from the commit of a plain promotion on, and it ends a warm one.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_promotion_takes_the_old_prebuilds_away_and_supersedes_a_warm_one() {
    let world = given_versions(2).await;
    world.fill(OLD).await;
    world.promote(world.warm(100)).await.unwrap();
    world.settle().await;
    world.build(NEW, 1).await;
    assert_eq!(world.claimable(OLD).await, 2);

    assert_eq!(world.promote(How::Plain).await.unwrap(), Promoted::Active);

    assert_eq!((world.claimable(OLD).await, world.claimable(NEW).await), (0, 1));
    assert_eq!(world.outcome().await.0, "superseded");
    world.settle().await;
    world.build(OLD, 100).await;
    world.build(NEW, 100).await;
    assert_eq!((world.members(OLD).await, world.claimable(NEW).await), (0, 2));
    assert_eq!(world.called_off().await, 0);
}

/// Where the pool policy allows it, old prebuilds serve until as many new ones are ready.
#[tokio::test(flavor = "multi_thread")]
async fn the_previous_version_serves_until_enough_new_ones_are_ready() {
    let world = given_versions(2).await;
    world.fill(OLD).await;
    let allow = r#"update prebuild_pools set policy = '{"allow_previous_version": true}'"#;
    world.database.rows(allow).await;

    world.promote(How::Plain).await.unwrap();
    world.settle().await;
    assert_eq!((world.claimable(OLD).await, world.members(NEW).await), (2, 2));
    for _ in 0..6 {
        world.build(NEW, 1).await;
        let claimable = world.claimable(OLD).await + world.claimable(NEW).await;
        assert!(claimable >= 2, "{claimable} of 2");
        world.build(OLD, 1).await;
    }
    assert_eq!((world.members(OLD).await, world.claimable(NEW).await), (0, 2));
}

/// A preset of the same name with other values is another one: nobody is served from the old pool.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_preset_with_the_same_values_takes_a_pools_place() {
    let world = given_versions(1).await;
    world.fill(OLD).await;
    let other = format!(
        "update prebuild_pools set policy = '{{\"allow_previous_version\": true}}';
         insert into template_version_preset_parameters (preset_id, name, value)
         values ('{NEW}', 'size', 'large')"
    );
    world.database.rows(&other).await;

    world.promote(How::Plain).await.unwrap();

    assert_eq!(world.claimable(OLD).await, 0);
    let linked = "select count(*) from prebuild_pools where successor_preset_id is not null";
    assert_eq!(world.database.count(linked).await, 0);
}

/// A person's cancel deletes the candidate's prebuilds, and nobody has to be told.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_promotion_leaves_the_active_version_as_it_was() {
    let world = given_versions(2).await;
    world.fill(OLD).await;
    world.promote(world.warm(100)).await.unwrap();
    world.settle().await;
    assert_eq!(world.members(NEW).await, 2);

    for expected in [true, false] {
        let mut work = world.replicas[0].backbone.begin().await.unwrap();
        let ended = stop(&mut work, TEMPLATE, PromotionOutcome::Canceled, "").await.unwrap();
        assert_eq!(ended.is_some(), expected);
        work.commit().await.unwrap();
    }
    world.settle().await;

    assert_eq!((world.claimable(OLD).await, world.members(NEW).await), (2, 0));
    assert_eq!(world.outcome().await.0, "canceled");
    assert_eq!(world.called_off().await, 0);
}

/// A version that has nothing to warm is active at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_pools_is_promoted_at_once() {
    let world = given_versions(1).await;
    world.database.rows(&format!("delete from prebuild_pools where preset_id = '{NEW}'")).await;

    assert_eq!(world.promote(world.warm(100)).await.unwrap(), Promoted::Active);

    assert!(world.is_active(V2).await);
    assert_eq!(world.outcome().await.0, "promoted");
}

/// What cannot become active, or is on its way already, is refused, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_cannot_be_warmed_is_refused() {
    let world = given_versions(1).await;
    let check = async |sql: &str, expected: &str| {
        world.database.rows(sql).await;
        let told = world.promote(world.warm(100)).await.unwrap_err().to_string();
        assert!(told.contains(expected), "{told:?} does not say {expected:?}");
    };
    check("update templates set deprecation_message = 'old'", "is deprecated").await;
    world.database.rows("update templates set deprecation_message = ''").await;
    let sick = |status| {
        format!("update prebuild_pools set prebuild_status = '{status}' where preset_id = '{NEW}'")
    };
    check(&sick("hard_limited"), "failed too often").await;
    check(&sick("validation_failed"), "were refused").await;
    world.database.rows(&sick("healthy")).await;
    let failed = "update provisioner_jobs set error = 'no' where id = (
                      select job_id from template_versions where name = 'v2')";
    check(failed, "has an import that is failed").await;
    world.database.rows("update provisioner_jobs set error = ''").await;
    check("update template_versions set archived = true where name = 'v2'", "is archived").await;
    world.database.rows("update template_versions set archived = false").await;

    let active = world.promote_to(V1, world.warm(100)).await.unwrap_err();
    assert!(matches!(active, PromotionError::Active { .. }), "{active}");
    let unknown = VersionId(Uuid::from_u128(99));
    let unknown = world.promote_to(unknown, world.warm(100)).await.unwrap_err();
    assert!(matches!(unknown, PromotionError::NoVersion(_)), "{unknown}");
    world.promote(world.warm(100)).await.unwrap();
    let open = world.promote(world.warm(100)).await.unwrap_err();
    assert!(matches!(open, PromotionError::Open { .. }), "{open}");
    check("update templates set deleted = true", "no template").await;
}

/// As a candidate its prebuilds would serve nobody, and they serve claims.
#[tokio::test(flavor = "multi_thread")]
async fn a_previous_version_that_still_serves_is_not_warmed() {
    let world = given_versions(2).await;
    world.fill(OLD).await;
    let allow = r#"update prebuild_pools set policy = '{"allow_previous_version": true}'"#;
    world.database.rows(allow).await;
    world.promote(How::Plain).await.unwrap();

    let refused = world.promote_to(V1, world.warm(100)).await.unwrap_err();
    assert!(matches!(refused, PromotionError::StillServes { claimable: 2, .. }), "{refused}");

    // Plainly it is back with all that it had.
    world.promote_to(V1, How::Plain).await.unwrap();
    assert_eq!(world.claimable(OLD).await, 2);
}
