//! Creating workspaces on a real Postgres, asked as clients ask.

mod count;
mod fail;
mod hit;
mod key;
mod life;
mod list;
mod matched;
mod miss;
mod quota;
mod refuse;
mod value;

use axum::body::Body;
use berth_testkit::TestDatabase;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::Config;
use crate::replica::{Answer, NOW, Replica};

const PREBUILDS: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";

const ACME: Uuid = Uuid::from_u128(1);
const TEMPLATE: Uuid = Uuid::from_u128(3);
/// The active version.
const V1: Uuid = Uuid::from_u128(4);
/// An older version of the same template.
const V0: Uuid = Uuid::from_u128(5);
/// A pool: `size` is `small`.
const SMALL: Uuid = Uuid::from_u128(6);
/// No pool: `size` is `large`.
const LARGE: Uuid = Uuid::from_u128(7);
/// A pool of the older version.
const OLD: Uuid = Uuid::from_u128(8);
/// People of the organization.
const PEOPLE: u128 = 4;

fn person(n: u128) -> Uuid {
    Uuid::from_u128(0x100 + n)
}

/// The session of a person.
fn token(who: u128) -> String {
    format!("{who:0>10}-abcdefghijklmnopqrstuv")
}

impl Replica {
    async fn get(&self, who: u128, path: &str) -> Answer {
        self.send(Some(&token(who)), Self::request(path), Body::empty()).await
    }

    async fn create(&self, who: u128, body: &Value) -> Answer {
        self.create_keyed(who, body, None).await
    }

    async fn create_keyed(&self, who: u128, body: &Value, key: Option<&str>) -> Answer {
        let path = "/organizations/acme/members/me/workspaces";
        let mut request = Self::request(path).method(Method::POST);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.send(Some(&token(who)), request, Body::from(body.to_string())).await
    }
}

/// A database with a template and people, and a replica over it. Events stay in the outbox.
struct Stand {
    database: TestDatabase,
    api: Replica,
}

impl Stand {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let database = TestDatabase::create().await;
        database.rows(&people()).await;
        database.rows(&templates()).await;
        let api = Replica::over(&database.url, 8, config).await;
        Self { database, api }
    }

    /// A name that no workspace has.
    fn free_name(&self) -> String {
        format!("w{}", u64::from_be_bytes(self.api.app.backbone.ids.bytes()))
    }

    /// Prebuilds of the pool in this state, each costing so much a day.
    async fn given_prebuilds(&self, pool: Uuid, state: &str, count: u32, cost: u32) {
        let done = if state == "starting" { "null" } else { "timestamptz '2026-11-20T12:00:00Z'" };
        let sql = format!(
            "
            create temporary table made as
                select gen_random_uuid() as id, n, template_version_id as version
                from generate_series(1, {count}) n, prebuild_pools where preset_id = '{pool}';
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                    class, file_id, input, created_at, updated_at, started_at, completed_at)
                select id, '{ACME}', '{PREBUILDS}', 'workspace_build', 'exec', 4, id, '{{}}', now(),
                       now(), {done}, {done} from made;
            insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                    updated_at, last_used_at, pool_preset_id, pool_state, pool_ready_at,
                    latest_build_id, latest_build_number)
                select id, '{PREBUILDS}', '{ACME}', '{TEMPLATE}', 'prebuild-' || id,
                       '2026-11-20T12:00:00Z', now(), now(), '{pool}', '{state}', {done}, id, 1
                from made;
            insert into workspace_builds (id, workspace_id, template_version_id, preset_id,
                    build_number, transition, initiator_id, stage, job_id, daily_cost, created_at,
                    updated_at)
                select id, id, version, '{pool}', 1, 'start', '{PREBUILDS}', 'prebuild', id, {cost},
                       now(), now() from made;
            drop table made"
        );
        self.database.rows(&sql).await;
    }

    async fn claimable(&self) -> i64 {
        self.database
            .count("select count(*) from workspaces where pool_state = 'ready' and not deleted")
            .await
    }

    /// A digest of everything that a request could change.
    async fn digest(&self) -> String {
        let tables = [
            "prebuild_pool_marks",
            "workspaces",
            "workspace_builds",
            "workspace_build_parameters",
            "provisioner_jobs",
            "claim_attempts",
            "idempotency_keys",
            "outbox",
            "audit_logs",
        ];
        let each = tables.map(|it| {
            format!(
                "coalesce((select string_agg(md5(r::text), '' order by r::text) from {it} r), '-')"
            )
        });
        self.database.value(&format!("select md5({})", each.join(" || "))).await
    }
}

/// A request for a small one.
fn small(name: &str) -> Value {
    json!({ "name": name, "template_id": TEMPLATE, "rich_parameter_values": [
        { "name": "size", "value": "small" },
    ] })
}

fn people() -> String {
    format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{ACME}', 'acme', now(), now());
        insert into groups (id, organization_id, name, quota_allowance, created_at)
            values ('{ACME}', '{ACME}', 'Everyone', 10, now());
        create temporary table made as
            select n, ('00000000-0000-0000-0000-' || lpad(to_hex(256 + n), 12, '0'))::uuid as id
            from generate_series(0, {PEOPLE} - 1) n;
        insert into users (id, username, email, created_at, updated_at)
            select id, 'person' || n, 'person' || n || '@example.com', now(), now() from made;
        insert into organization_members (organization_id, user_id, created_at, updated_at)
            select '{ACME}', id, now(), now() from made;
        insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds, last_used_at,
                expires_at, created_at, updated_at)
            select lpad(n::text, 10, '0'), sha256('abcdefghijklmnopqrstuv'), id, 'token', 86400,
                   '{NOW}', timestamptz '{NOW}' + interval '9 years', '{NOW}', '{NOW}'
            from made;
        drop table made"
    )
}

fn templates() -> String {
    let ada = person(0);
    format!(
        "
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            select it, '{ACME}', '{ada}', 'template_version_import', 'exec', 2, it, '{{}}', now(),
                   now(), now(), now()
            from unnest(array['{V0}', '{V1}']::uuid[]) it;
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                created_at, updated_at)
            values ('{V0}', '{ACME}', 'v0', '{V0}', 'exec', '{ada}', now(), now()),
                   ('{V1}', '{ACME}', 'v1', '{V1}', 'exec', '{ada}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                created_at, updated_at, group_acl)
            values ('{TEMPLATE}', '{ACME}', 'dev', 'exec', '{V1}', '{ada}', now(), now(),
                    '{{\"{ACME}\": \"use\"}}');
        update template_versions set template_id = '{TEMPLATE}';
        insert into template_version_parameters (template_version_id, name, type, mutable, required,
                default_value)
            select v, p, 'string', false, false, 'none'
            from unnest(array['{V0}', '{V1}']::uuid[]) v, unnest(array['size', 'region']) p;
        insert into template_version_presets (id, template_version_id, name, desired_instances,
                created_at)
            values ('{SMALL}', '{V1}', 'small', 3, now()), ('{LARGE}', '{V1}', 'large', null, now()),
                   ('{OLD}', '{V0}', 'small', 3, now());
        insert into template_version_preset_parameters (preset_id, name, value)
            values ('{SMALL}', 'size', 'small'), ('{LARGE}', 'size', 'large'),
                   ('{OLD}', 'size', 'small');
        insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
            select id, template_version_id, '{TEMPLATE}', '{ACME}'
            from template_version_presets where desired_instances is not null;
        commit;"
    )
}
