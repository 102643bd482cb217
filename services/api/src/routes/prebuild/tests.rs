//! The routes of prebuilds on a real Postgres, asked as clients ask them.

mod access;
mod change;
mod pause;
mod plan;
mod policy;
mod promotion;

use axum::body::Body;
use berth_testkit::TestDatabase;
use http::Method;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::config::Config;
use crate::replica::{Answer, NOW, Replica};

const PREBUILDS: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";

const ACME: Uuid = Uuid::from_u128(1);
const ELSEWHERE: Uuid = Uuid::from_u128(2);
const TEMPLATE: Uuid = Uuid::from_u128(3);
/// The active version.
const V1: Uuid = Uuid::from_u128(4);
const V2: Uuid = Uuid::from_u128(5);
/// Presets of the active version: 3 instances, 1 instance, no pool.
const SMALL: Uuid = Uuid::from_u128(6);
const LARGE: Uuid = Uuid::from_u128(7);
const BARE: Uuid = Uuid::from_u128(8);
/// `small` of the other version.
const OTHER_SMALL: Uuid = Uuid::from_u128(9);

/// Somebody who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Owner of the deployment.
    Owner,
    /// Administers the templates of acme.
    Ada,
    /// Only a member of acme; may use its template.
    Bob,
    /// A member of another organization.
    Eve,
    /// Without a session.
    Nobody,
}

impl Who {
    const ALL: [Self; 4] = [Self::Owner, Self::Ada, Self::Bob, Self::Eve];

    fn id(self) -> Uuid {
        Uuid::from_u128(0x100 + self as u128)
    }

    fn key(self) -> String {
        format!("{self:?}0000000000").chars().take(10).collect()
    }
}

/// The API over a database of its own, with two versions of a template and four people. Events stay
/// in the outbox.
struct Stand {
    database: TestDatabase,
    api: Replica,
}

impl Stand {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        database.rows(&people()).await;
        database.rows(&templates()).await;
        let api = Replica::over(&database.url, 6, Config::default()).await;
        Self { database, api }
    }

    fn now(&self) -> Timestamp {
        self.api.app.now()
    }

    async fn ask(&self, who: Who, method: Method, path: &str, body: Option<Value>) -> Answer {
        let token = (who != Who::Nobody).then(|| format!("{}-abcdefghijklmnopqrstuv", who.key()));
        let body = body.map_or_else(Body::empty, |it| Body::from(it.to_string()));
        let request = Replica::request(path).method(method);
        self.api.send(token.as_deref(), request, body).await
    }

    async fn get(&self, who: Who, path: &str) -> Answer {
        self.ask(who, Method::GET, path, None).await
    }

    async fn put(&self, who: Who, path: &str, body: Value) -> Answer {
        self.ask(who, Method::PUT, path, Some(body)).await
    }

    async fn post(&self, who: Who, path: &str, body: Value) -> Answer {
        self.ask(who, Method::POST, path, Some(body)).await
    }

    /// A prebuild with its build and job.
    async fn given_prebuild(&self, n: u128, preset: Uuid, state: &str, created_at: &str) -> Uuid {
        let id = Uuid::from_u128(0x1000 + n);
        let (completed, error) = match state {
            "starting" => ("null", ""),
            "failed" => ("now()", "apply failed"),
            _ => ("now()", ""),
        };
        self.database
            .rows(&format!(
                "
                insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                        class, file_id, input, created_at, updated_at, completed_at, error)
                    values ('{id}', '{ACME}', '{PREBUILDS}', 'workspace_build', 'exec', 4, '{id}',
                            '{{}}', now(), now(), {completed}, '{error}');
                insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                        updated_at, last_used_at, pool_preset_id, pool_state, latest_build_id,
                        latest_build_number)
                    values ('{id}', '{PREBUILDS}', '{ACME}', '{TEMPLATE}', 'prebuild-{n}',
                            '{created_at}', now(), now(), '{preset}', '{state}', '{id}', 1);
                insert into workspace_builds (id, workspace_id, template_version_id, preset_id,
                        build_number, transition, initiator_id, stage, job_id, created_at, updated_at)
                    select '{id}', '{id}', template_version_id, '{preset}', 1, 'start',
                           '{PREBUILDS}', 'prebuild', '{id}', now(), now()
                    from prebuild_pools where preset_id = '{preset}';"
            ))
            .await;
        id
    }

    /// What a claim could have at this moment, by the one predicate.
    async fn claimable(&self, preset: Uuid) -> i64 {
        let now = self.now();
        self.database
            .count(&format!(
                "select count(*) from workspaces w
                 join prebuild_pools p on p.preset_id = w.pool_preset_id
                 join templates t on t.id = p.template_id
                 where p.preset_id = '{preset}' and is_claimable(w, p, t, '{now}')"
            ))
            .await
    }

    /// The presets that are marked; the marks go.
    async fn marked(&self) -> Vec<Uuid> {
        let taken = "with taken as (delete from prebuild_pool_marks returning preset_id)
                     select distinct preset_id from taken order by 1";
        let rows = self.database.rows(taken).await;
        rows.iter().map(|row| row[0].parse().unwrap()).collect()
    }

    /// The subjects of the events that wait, below the prefix, by name; the events go.
    async fn told(&self) -> Vec<String> {
        let taken = "with taken as (delete from outbox returning subject)
                     select distinct substr(subject, strpos(subject, '.') + 1) from taken order by 1";
        let rows = self.database.rows(taken).await;
        rows.into_iter().flatten().collect()
    }

    /// Lines of the audit log.
    async fn audited(&self) -> i64 {
        self.database.count("select count(*) from audit_logs").await
    }

    /// A digest of everything that a route could change.
    async fn digest(&self) -> String {
        let tables = [
            "prebuild_pools",
            "prebuild_pool_marks",
            "prebuild_pool_policies",
            "prebuild_pauses",
            "prebuild_decisions",
            "workspaces",
            "workspace_builds",
            "provisioner_jobs",
            "templates",
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

fn people() -> String {
    use std::fmt::Write as _;
    let mut sql = format!(
        "
        insert into organizations (id, name, created_at, updated_at)
            values ('{ACME}', 'acme', now(), now()), ('{ELSEWHERE}', 'elsewhere', now(), now());"
    );
    for who in Who::ALL {
        let (id, key) = (who.id(), who.key());
        let name = format!("{who:?}").to_lowercase();
        let roles = if who == Who::Owner { "{owner}" } else { "{}" };
        let own = if who == Who::Ada { "{organization-template-admin}" } else { "{}" };
        let organization = if who == Who::Eve { ELSEWHERE } else { ACME };
        write!(
            sql,
            "
            insert into users (id, username, email, roles, created_at, updated_at)
                values ('{id}', '{name}', '{name}@example.com', '{roles}', now(), now());
            insert into organization_members (organization_id, user_id, roles, created_at, updated_at)
                values ('{organization}', '{id}', '{own}', now(), now());
            insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds,
                    last_used_at, expires_at, created_at, updated_at)
                values ('{key}', sha256('abcdefghijklmnopqrstuv'), '{id}', 'password', 86400, '{NOW}',
                        timestamptz '{NOW}' + interval '9 years', '{NOW}', '{NOW}');"
        )
        .expect("a string takes everything");
    }
    sql
}

fn templates() -> String {
    let ada = Who::Ada.id();
    format!(
        "
        begin;
        insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                file_id, input, created_at, updated_at, started_at, completed_at)
            select it, '{ACME}', '{ada}', 'template_version_import', 'exec', 2, it, '{{}}', now(),
                   now(), now(), now()
            from unnest(array['{V1}', '{V2}']::uuid[]) it;
        insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                created_at, updated_at)
            values ('{V1}', '{ACME}', 'v1', '{V1}', 'exec', '{ada}', now(), now()),
                   ('{V2}', '{ACME}', 'v2', '{V2}', 'exec', '{ada}', now(), now());
        insert into templates (id, organization_id, name, provisioner, active_version_id, created_by,
                created_at, updated_at, group_acl)
            values ('{TEMPLATE}', '{ACME}', 'dev', 'exec', '{V1}', '{ada}', now(), now(),
                    '{{\"{ACME}\": \"use\"}}');
        update template_versions set template_id = '{TEMPLATE}';
        insert into template_version_presets (id, template_version_id, name, desired_instances,
                created_at)
            values ('{SMALL}', '{V1}', 'small', 3, now()), ('{LARGE}', '{V1}', 'large', 1, now()),
                   ('{BARE}', '{V1}', 'bare', null, now()),
                   ('{OTHER_SMALL}', '{V2}', 'small', 3, now());
        insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id)
            select id, template_version_id, '{TEMPLATE}', '{ACME}'
            from template_version_presets where desired_instances is not null;
        insert into provisioner_daemons (id, organization_id, name, version, api_version,
                provisioners, tags, created_at, last_seen_at)
            values ('{V1}', '{ACME}', 'd', '0', '1.0', '{{exec}}',
                    '{{\"scope\": \"organization\", \"owner\": \"\"}}', now(), '{NOW}');
        commit;"
    )
}
