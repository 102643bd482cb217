//! A database with templates, and services over it whose time, Postgres' `now()` included, is the
//! test's.

use std::fmt::Write as _;

use berth_backbone::{Backbone, Clock};
use berth_bus::{Bus, BusConfig};
use berth_domain::build::{Tags, normalize_tags};
use berth_domain::id::{OrganizationId, PREBUILDS_USER, PresetId, TemplateId, UserId, VersionId};
use berth_domain::state::PoolState;
use berth_testkit::{TestDatabase, servers, subject_space};
use jiff::{SignedDuration, Timestamp};
use prometheus::Registry;
use uuid::Uuid;

use super::psql::Psql;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pass::Reconciler;

/// Statements that ask for `now()` find ours before Postgres' own.
const STEPPED: &str = "
    create schema stepped;
    create table stepped.clock (moment timestamptz not null);
    create function stepped.now() returns timestamptz language sql stable
        as 'select moment from stepped.clock';
    do $$ begin
        execute format('alter database %I set search_path = stepped, public, pg_catalog',
                       current_database());
    end $$;";

/// When every test begins.
pub(super) fn start() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

pub(super) const ORGANIZATION: OrganizationId = OrganizationId(Uuid::from_u128(1));
pub(super) const ADA: UserId = UserId(Uuid::from_u128(2));
const FILE: Uuid = Uuid::from_u128(3);

/// Templates, versions and presets are numbered from 0.
pub(super) const fn template(t: usize) -> TemplateId {
    TemplateId(Uuid::from_u128(0x10_0000 * (t as u128 + 1)))
}

pub(super) const fn version(t: usize, v: usize) -> VersionId {
    VersionId(Uuid::from_u128(template(t).0.as_u128() + 0x1000 * (v as u128 + 1)))
}

pub(super) const fn preset(t: usize, v: usize, p: usize) -> PresetId {
    PresetId(Uuid::from_u128(version(t, v).0.as_u128() + p as u128 + 1))
}

/// A preset as every version of its template has it.
#[derive(Debug, Clone, Default)]
pub(super) struct PresetSpec {
    pub(super) instances: i32,
    pub(super) ttl_seconds: i64,
    /// Cron and instances, in UTC.
    pub(super) schedule: Option<(&'static str, i32)>,
}

/// The stores of one test.
pub(super) struct World {
    pub(super) database: TestDatabase,
    pub(super) psql: Psql,
    pub(super) clock: Clock,
    /// Of the services that are not the reconciler.
    pub(super) services: Backbone,
    bus: Bus,
}

impl World {
    /// An organization without daemons and templates.
    pub(super) async fn create() -> Self {
        let database = TestDatabase::create().await;
        let mut psql = Psql::open(&database).await;
        let now = start();
        psql.run(STEPPED).await;
        psql.run(&format!(
            "
            set search_path = stepped, public, pg_catalog;
            insert into stepped.clock values ('{now}');
            insert into organizations (id, name, created_at, updated_at)
                values ('{ORGANIZATION}', 'o', now(), now());
            insert into users (id, username, email, created_at, updated_at)
                values ('{ADA}', 'ada', 'ada@example.com', now(), now());
            insert into files (id, hash, created_by, created_at, data)
                values ('{FILE}', 'h', '{ADA}', now(), '')"
        ))
        .await;
        let url = servers().await.nats_url.clone();
        let bus = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
        let bus = Bus::connect(&bus, "test").await.unwrap();
        let clock = Clock::manual(now);
        let db = berth_db::connect(&database.url, 6, "services").unwrap();
        let services = Backbone::over("services", (db, bus.clone()), clock.clone()).0;
        Self { database, psql, clock, services, bus }
    }

    /// Back to the beginning: no templates, no daemons, and the time at which every test begins.
    pub(super) async fn clear(&mut self) {
        let tables = "
            select string_agg(format('delete from %I;', relname), '')
            from pg_class
            where relkind = 'r' and relnamespace = 'public'::regnamespace
              and (relname ~ '^(template|prebuild_|workspace|provisioner_|outbox|claim_)')";
        let deletes = self.psql.lines(tables).await.concat();
        self.psql
            .run(&format!(
                "begin;
                 set local session_replication_role = replica;
                 {deletes}
                 commit"
            ))
            .await;
        self.advance(start().duration_since(self.now())).await;
    }

    /// A template with versions that have these presets; the first one is active.
    pub(super) async fn add_template(&mut self, t: usize, versions: &[Vec<PresetSpec>]) {
        let (id, active) = (template(t), version(t, 0));
        let mut sql = format!(
            "begin;
             insert into templates (id, organization_id, name, provisioner, active_version_id,
                                    created_by, created_at, updated_at)
             values ('{id}', '{ORGANIZATION}', 't{t}', 'exec', '{active}', '{ADA}', now(), now());"
        );
        for (v, presets) in versions.iter().enumerate() {
            let version = version(t, v);
            // An import that ended; its job has the version's id.
            write!(sql, "
                insert into provisioner_jobs (
                    id, organization_id, initiator_id, kind, provisioner, class, file_id, input,
                    created_at, updated_at, started_at, completed_at)
                values ('{version}', '{ORGANIZATION}', '{ADA}', 'template_version_import', 'exec', 2,
                        '{FILE}', '{{}}', now(), now(), now(), now());
                insert into template_versions (
                    id, template_id, organization_id, name, job_id, provisioner, created_by,
                    created_at, updated_at)
                values ('{version}', '{id}', '{ORGANIZATION}', 'v{v}', '{version}', 'exec', '{ADA}',
                        now(), now());").unwrap();
            for (p, spec) in presets.iter().enumerate() {
                sql += &insert_preset((t, v, p), spec);
            }
        }
        self.psql.run(&(sql + "commit")).await;
    }

    /// A backbone of its own: what a replica of a service has. Backends of it are found by `name`.
    pub(super) fn backbone(&self, name: &str) -> Backbone {
        let db = berth_db::connect(&self.database.url, 4, name).unwrap();
        let stores = (db, self.bus.clone());
        Backbone::over("reconciler", stores, self.clock.clone()).0
    }

    /// A replica of the reconciler.
    pub(super) fn replica(&self, name: &str) -> Reconciler {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        Reconciler::new(self.backbone(name), &Config::default(), metrics)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Lets time pass for the services and for Postgres.
    pub(super) async fn advance(&mut self, by: SignedDuration) {
        self.clock.advance(by);
        let now = self.now();
        self.psql.run(&format!("update stepped.clock set moment = '{now}'")).await;
    }
}

fn insert_preset((t, v, p): (usize, usize, usize), spec: &PresetSpec) -> String {
    let (id, version, template) = (preset(t, v, p), version(t, v), template(t));
    let PresetSpec { instances, ttl_seconds, schedule } = spec;
    let timezone = schedule.map_or("", |_| "UTC");
    let mut sql = format!(
        "
        insert into template_version_presets (
            id, template_version_id, name, desired_instances, ttl_seconds, scheduling_timezone,
            created_at)
        values ('{id}', '{version}', 'p{p}', {instances}, {ttl_seconds}, '{timezone}', now());
        insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
        values ('{id}', '{version}', '{template}', '{ORGANIZATION}');
        insert into prebuild_pool_marks (preset_id, created_at) values ('{id}', now());"
    );
    if let Some((cron, instances)) = schedule {
        write!(
            sql,
            "insert into template_version_preset_schedules
             values ('{id}', 0, '{cron}', {instances});"
        )
        .unwrap();
    }
    sql
}

/// A prebuild to be written as it is, with its first build.
pub(super) struct Member {
    pub(super) id: Uuid,
    /// Template, version and preset.
    pub(super) at: (usize, usize, usize),
    pub(super) state: PoolState,
    /// SQL of when it was made.
    pub(super) created: String,
    /// SQL of when it expires.
    pub(super) expires: String,
    /// Its build has not ended.
    pub(super) is_open: bool,
    pub(super) deleted: bool,
}

/// Build and job have the workspace's id.
pub(super) fn insert_prebuild(it: &Member) -> String {
    let Member { id, at: (t, v, p), state, created, expires, is_open, deleted } = it;
    let (template, version, preset) = (template(*t), version(*t, *v), preset(*t, *v, *p));
    let transition = match state {
        PoolState::Deleting | PoolState::FailedDelete => "delete",
        PoolState::Stopping | PoolState::Stopped => "stop",
        _ => "start",
    };
    let (ended, code) = match (is_open, state) {
        (true, _) => ("null", "null"),
        (false, PoolState::Failed | PoolState::FailedDelete) => ("now()", "'template'"),
        (false, _) => ("now()", "null"),
    };
    format!(
        "
        insert into provisioner_jobs (
            id, organization_id, initiator_id, kind, provisioner, class, file_id, input, created_at,
            updated_at, started_at, completed_at, error_code)
        values ('{id}', '{ORGANIZATION}', '{PREBUILDS_USER}', 'workspace_build', 'exec', 4, '{FILE}',
                '{{}}', {created}, {created}, {ended}, {ended}, {code});
        insert into workspaces (
            id, owner_id, organization_id, template_id, name, created_at, updated_at, last_used_at,
            automatic_updates, pool_preset_id, pool_state, pool_expires_at, deleted,
            latest_build_id, latest_build_number)
        values ('{id}', '{PREBUILDS_USER}', '{ORGANIZATION}', '{template}', 'prebuild-{id}', {created},
                {created}, {created}, 'never', '{preset}', '{state}', {expires}, {deleted}, '{id}', 1);
        insert into workspace_builds (
            id, workspace_id, template_version_id, preset_id, build_number, transition, initiator_id,
            stage, job_id, created_at, updated_at)
        values ('{id}', '{id}', '{version}', '{preset}', 1, '{transition}', '{PREBUILDS_USER}',
                'prebuild', '{id}', {created}, {created});"
    )
}

/// Tags of a daemon that takes any job of the organization.
pub(super) fn tags() -> Tags {
    normalize_tags(Tags::new(), ADA)
}
