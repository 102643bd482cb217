//! The data that is measured on: set-based SQL, in the state that the services leave it in when
//! there is nothing to do.

use serde_json::Value;

use crate::psql::Psql;

/// The token of the user who owns the deployment, as the API takes it.
pub(crate) const TOKEN: &str = "benchbench-benchbenchbenchbenchbe";
/// That token's parts, as they are stored. All tokens have the same secret.
const TOKEN_ID: &str = "benchbench";
const TOKEN_SECRET: &str = "benchbenchbenchbenchbe";
/// A set's pool has fewer prebuilds than this, ever.
pub(crate) const MEMBERS_MAX: u64 = 1_000_000;
/// The system user that owns every prebuild.
const PREBUILDS_USER: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";

/// Ids that sort by their number, as version 7 ids sort by time. `kind` keeps them apart.
const IDS: &str = "
create function bench_id(kind text, n bigint) returns uuid language sql immutable parallel safe
return (lpad(to_hex(1700000000000 + n * 1000), 12, '0') || '7' || substr(md5(kind || n), 1, 3)
        || '8' || substr(md5(kind || n), 4, 15))::uuid";

/// The token of a user, by number, as the API takes it.
pub(crate) fn token(user: u64) -> String {
    if user == 0 { TOKEN.to_owned() } else { format!("u{user:09}-{TOKEN_SECRET}") }
}

/// How much there is, for the report.
pub(crate) async fn size(sql: &mut Psql) -> anyhow::Result<Value> {
    let text = sql.text(
        "
        select json_build_object(
            'organizations', (select count(*) from organizations),
            'users', (select count(*) from users),
            'api_keys', (select count(*) from api_keys),
            'templates', (select count(*) from templates),
            'workspaces_live', (select count(*) from workspaces where not deleted),
            'workspaces_deleted', (select count(*) from workspaces where deleted),
            'prebuilds', (select count(*) from workspaces where pool_preset_id is not null and not deleted),
            'builds', (select count(*) from workspace_builds),
            'jobs', (select count(*) from provisioner_jobs),
            'pools', (select count(*) from prebuild_pools),
            'mebibytes', pg_database_size(current_database()) / 1048576
        )::text",
    );
    Ok(serde_json::from_str(&text.await?)?)
}

/// Everything but the pools.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base {
    /// Organizations, each with a daemon and with the prebuilds user in order.
    pub(crate) organizations: u64,
    /// People, each a member of one organization with a token; a multiple of `organizations`.
    pub(crate) users: u64,
    /// Live workspaces of people, three builds each.
    pub(crate) live: u64,
    /// Deleted workspaces, three builds each.
    pub(crate) deleted: u64,
    /// Imports of long ago.
    pub(crate) imports: u64,
}

impl Base {
    /// With 5 000 prebuilds: 50 000 workspaces, 30 000 of them live, and 150 000 jobs.
    pub(crate) const WHOLE: Self =
        Self { organizations: 10, users: 50_000, live: 25_000, deleted: 20_000, imports: 10_000 };
    /// To see that it works.
    pub(crate) const QUICK: Self =
        Self { organizations: 10, users: 1_000, live: 2_500, deleted: 2_000, imports: 1_000 };

    /// The one that fits.
    pub(crate) const fn of(quick: bool) -> Self {
        if quick { Self::QUICK } else { Self::WHOLE }
    }

    /// Loads it into an empty database.
    pub(crate) async fn load(self, sql: &mut Psql) -> anyhow::Result<()> {
        // For the loading alone; the services' sessions commit as they always do.
        sql.run("set synchronous_commit = off").await?;
        sql.run(IDS).await?;
        sql.run(&self.people()).await?;
        let history = Pools { set: "history", to: 1, members: 0, ..Pools::none() };
        history.load(sql, self.organizations).await?;
        // People's workspaces need a template, and it needs no pool.
        sql.run("delete from template_version_presets").await?;
        sql.run(&self.workspaces()).await
    }

    fn people(self) -> String {
        let Self { organizations, users, .. } = self;
        let last = organizations - 1;
        format!(
            "
            insert into organizations (id, name, is_default, created_at, updated_at)
            select bench_id('organization', o), 'organization-' || o, o = 0, now(), now()
            from generate_series(0, {last}) o;
            insert into users (id, username, email, roles, created_at, updated_at)
            select bench_id('user', u), 'user-' || u, 'user-' || u || '@example.com',
                   case when u = 0 then '{{owner}}'::text[] else '{{}}' end, now(), now()
            from generate_series(0, {users} - 1) u;
            insert into organization_members (organization_id, user_id, created_at, updated_at)
            select o.id, u.id, now(), now() from organizations o
            join users u on u.id in ('{PREBUILDS_USER}', bench_id('user', 0));
            insert into organization_members (organization_id, user_id, created_at, updated_at)
            select bench_id('organization', u % {organizations}), bench_id('user', u), now(), now()
            from generate_series(1, {users} - 1) u;
            insert into groups (id, organization_id, name, quota_allowance, created_at)
            select o.id, o.id, 'Everyone', 0, now() from organizations o;
            insert into groups (id, organization_id, name, display_name, quota_allowance, created_at)
            select bench_id('group', o), bench_id('organization', o), 'coderprebuiltworkspaces',
                   'Prebuilt Workspaces', 0, now()
            from generate_series(0, {last}) o;
            insert into group_members (group_id, user_id)
            select id, '{PREBUILDS_USER}' from groups where name = 'coderprebuiltworkspaces';
            insert into api_keys (id, secret_hash, user_id, login_type, token_name, lifetime_seconds,
                                  last_used_at, expires_at, created_at, updated_at)
            values ('{TOKEN_ID}', sha256('{TOKEN_SECRET}'), bench_id('user', 0), 'token', 'bench',
                    86400, now(), now() + interval '1 day', now(), now());
            insert into api_keys (id, secret_hash, user_id, login_type, token_name, lifetime_seconds,
                                  last_used_at, expires_at, created_at, updated_at)
            select 'u' || lpad(u::text, 9, '0'), sha256('{TOKEN_SECRET}'), bench_id('user', u), 'token',
                   'bench', 86400, now(), now() + interval '1 day', now(), now()
            from generate_series(1, {users} - 1) u;
            insert into files (id, hash, created_by, created_at, data)
            values (bench_id('file', 0), 'bench', bench_id('user', 0), now(), '');
            insert into provisioner_daemons (id, organization_id, name, version, api_version,
                                             provisioners, tags, created_at, last_seen_at)
            -- Nobody runs it: it is heard of as long as the run may last.
            select bench_id('daemon', o), bench_id('organization', o), 'daemon', '0', '1.0', '{{exec}}',
                   '{{\"scope\": \"organization\", \"owner\": \"\"}}', now(), now() + interval '1 day'
            from generate_series(0, {last}) o"
        )
    }

    fn workspaces(self) -> String {
        let Self { organizations, users, live, deleted, imports } = self;
        let all = live + deleted;
        let template = "bench_id('history-template', 0)";
        format!(
            "
            create temporary table made as
            select n, bench_id('workspace', n) as id, bench_id('organization', n % {organizations}) as org,
                   bench_id('user', n % {users}) as owner, n >= {live} as gone,
                   now() - interval '30 days' + n * interval '10 seconds' as at
            from generate_series(0, {all} - 1) n;
            insert into workspaces (id, owner_id, organization_id, template_id, name, deleted,
                                    created_at, updated_at, last_used_at, latest_build_id,
                                    latest_build_number)
            select id, owner, org, {template}, 'workspace-' || n, gone, at, at, at,
                   bench_id('build', n * 4 + 3), 3
            from made;
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                          file_id, input, created_at, updated_at, started_at,
                                          completed_at, apply_started, attempts)
            select bench_id('job', n * 4 + b), org, owner, 'workspace_build', 'exec', 1,
                   bench_id('file', 0),
                   jsonb_build_object('workspace_build_id', bench_id('build', n * 4 + b)),
                   at, at, at, at, true, 1
            from made, generate_series(1, 3) b;
            insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                                          transition, initiator_id, job_id, created_at, updated_at)
            select bench_id('build', n * 4 + b), id, bench_id('history-version', 0), b,
                   case when b = 2 then 'stop' when b = 3 and gone then 'delete' else 'start' end,
                   owner, bench_id('job', n * 4 + b), at, at
            from made, generate_series(1, 3) b;
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                          file_id, input, created_at, updated_at, started_at,
                                          completed_at)
            select bench_id('old-import', n), bench_id('organization', n % {organizations}),
                   bench_id('user', 0), 'template_version_dry_run', 'exec', 2, bench_id('file', 0),
                   '{{}}', at, at, at, at
            from generate_series(1, {imports}) n, (select now() - interval '60 days') as ago (at);
            drop table made"
        )
    }
}

/// Templates with pools that are in order, or whose prebuilds nobody has begun to build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pools {
    /// Keeps ids and names of several sets apart.
    pub(crate) set: &'static str,
    /// Number of the first; a multiple of `per_template`.
    pub(crate) from: u64,
    /// Number after the last.
    pub(crate) to: u64,
    /// Presets of one template, all in its one version.
    pub(crate) per_template: u64,
    /// Prebuilds wanted and there, in each.
    pub(crate) members: u64,
    /// How many pools, beginning with the first, have one more of them wanted and there.
    pub(crate) one_more: u64,
    /// How many prebuilds each pool has had before.
    pub(crate) had: u64,
    /// The prebuilds' first jobs wait for a daemon; else they are ready.
    pub(crate) pending: bool,
}

impl Pools {
    /// No pools: what the others are made of.
    pub(crate) const fn none() -> Self {
        Self {
            set: "pool",
            from: 0,
            to: 0,
            per_template: 1,
            members: 1,
            one_more: 0,
            had: 0,
            pending: false,
        }
    }

    /// The pools of the data set: 2 000 with 5 000 prebuilds.
    pub(crate) const fn whole(quick: bool) -> Self {
        let to = if quick { 200 } else { 2_000 };
        Self { to, per_template: 10, members: 2, one_more: to / 2, ..Self::none() }
    }

    /// Loads them.
    pub(crate) async fn load(self, sql: &mut Psql, organizations: u64) -> anyhow::Result<()> {
        sql.run("set synchronous_commit = off").await?;
        // Templates and versions name each other.
        sql.run("begin").await?;
        sql.run(&self.templates(organizations)).await?;
        sql.run(&self.versions("version", "current", organizations)).await?;
        sql.run("commit").await?;
        sql.run(&self.prebuilds(organizations)).await
    }

    /// Gives each of the pools, which have had `self.had`, as many prebuilds more as `members` says.
    pub(crate) async fn restock(self, sql: &mut Psql, organizations: u64) -> anyhow::Result<()> {
        sql.run("set synchronous_commit = off").await?;
        sql.run(&self.prebuilds(organizations)).await
    }

    /// Loads a second version of each template, with the same presets.
    pub(crate) async fn load_next(self, sql: &mut Psql, organizations: u64) -> anyhow::Result<()> {
        sql.run(&self.versions("next-version", "next", organizations)).await
    }

    /// Those of the templates, from the first to the last.
    fn series(self) -> String {
        let Self { from, to, per_template, .. } = self;
        format!("generate_series({}, {})", from / per_template, (to - 1) / per_template)
    }

    fn templates(self, organizations: u64) -> String {
        let (set, series) = (self.set, self.series());
        format!(
            "
            insert into templates (id, organization_id, name, provisioner, active_version_id,
                                   created_by, created_at, updated_at, group_acl)
            select bench_id('{set}-template', t), bench_id('organization', t % {organizations}),
                   '{set}-' || t, 'exec', bench_id('{set}-version', t), bench_id('user', 0), now(), now(),
                   -- Everyone in the organization may use it.
                   jsonb_build_object(bench_id('organization', t % {organizations}), 'use')
            from {series} t"
        )
    }

    /// Versions with presets and pools.
    fn versions(self, kind: &str, name: &str, organizations: u64) -> String {
        let Self { set, from, to, per_template, members, one_more, .. } = self;
        let (series, last) = (self.series(), to - 1);
        let more = from + one_more;
        format!(
            "
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                          file_id, input, created_at, updated_at, started_at,
                                          completed_at)
            select bench_id('{set}-{kind}-import', t), bench_id('organization', t % {organizations}),
                   bench_id('user', 0), 'template_version_import', 'exec', 2, bench_id('file', 0), '{{}}',
                   now(), now(), now(), now()
            from {series} t;
            insert into template_versions (id, template_id, organization_id, name, job_id, provisioner,
                                           created_by, created_at, updated_at)
            select bench_id('{set}-{kind}', t), bench_id('{set}-template', t),
                   bench_id('organization', t % {organizations}), '{name}',
                   bench_id('{set}-{kind}-import', t), 'exec', bench_id('user', 0), now(), now()
            from {series} t;
            insert into template_version_parameters (template_version_id, name, type, mutable,
                                                     required, default_value)
            select bench_id('{set}-{kind}', t), 'size', 'string', true, false, 'none' from {series} t;
            insert into template_version_presets (id, template_version_id, name, desired_instances,
                                                  ttl_seconds, created_at)
            select bench_id('{set}-{kind}-preset', p), bench_id('{set}-{kind}', p / {per_template}),
                   'preset-' || p % {per_template}, {members} + (p < {more})::integer,
                   case when p % 5 = 4 then 2592000 else 0 end, now()
            from generate_series({from}, {last}) p;
            insert into template_version_preset_parameters (preset_id, name, value)
            select bench_id('{set}-{kind}-preset', p), 'size', 'size-' || p % {per_template}
            from generate_series({from}, {last}) p;
            insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id,
                                        last_reconciled_at)
            select bench_id('{set}-{kind}-preset', p), bench_id('{set}-{kind}', p / {per_template}),
                   bench_id('{set}-template', p / {per_template}),
                   bench_id('organization', (p / {per_template}) % {organizations}), now()
            from generate_series({from}, {last}) p"
        )
    }

    fn prebuilds(self, organizations: u64) -> String {
        let Self { set, from, to, per_template, members, one_more, had, pending } = self;
        let (last, more) = (to - 1, from + one_more);
        let state = if pending { "starting" } else { "ready" };
        let done = if pending { "null" } else { "at" };
        // A pool's number, times more than any pool has, is what its members' numbers begin with.
        format!(
            "
            create temporary table made as
            select p, p * {MEMBERS_MAX} + m as n, bench_id('{set}-prebuild', p * {MEMBERS_MAX} + m) as id,
                   bench_id('organization', (p / {per_template}) % {organizations}) as org,
                   now() - interval '1 day' + (p % 3600) * interval '1 second' as at
            from generate_series({from}::bigint, {last}) p
            cross join lateral generate_series({had} + 1, {had} + {members} + (p < {more})::integer) m;
            insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                                    updated_at, last_used_at, latest_build_id, latest_build_number,
                                    pool_preset_id, pool_state, pool_ready_at, pool_expires_at)
            select id, '{PREBUILDS_USER}', org, bench_id('{set}-template', p / {per_template}),
                   'prebuild-{set}-' || n, at, at, at, bench_id('{set}-prebuild-build', n), 1,
                   bench_id('{set}-version-preset', p), '{state}', {done},
                   case when p % 5 = 4 then at + interval '30 days' end
            from made;
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                          file_id, input, created_at, updated_at, started_at,
                                          completed_at, apply_started, attempts)
            select bench_id('{set}-prebuild-job', n), org, '{PREBUILDS_USER}', 'workspace_build', 'exec',
                   4, bench_id('file', 0),
                   jsonb_build_object('workspace_build_id', bench_id('{set}-prebuild-build', n)),
                   at, at, {done}, {done}, {done} is not null, ({done} is not null)::integer
            from made;
            insert into workspace_builds (id, workspace_id, template_version_id, preset_id, build_number,
                                          transition, initiator_id, stage, job_id, created_at, updated_at)
            select bench_id('{set}-prebuild-build', n), id,
                   bench_id('{set}-version', p / {per_template}), bench_id('{set}-version-preset', p),
                   1, 'start', '{PREBUILDS_USER}', 'prebuild', bench_id('{set}-prebuild-job', n), at, at
            from made;
            insert into workspace_build_parameters (build_id, name, value)
            select bench_id('{set}-prebuild-build', n), 'size', 'size-' || p % {per_template} from made;
            update prebuild_pools p
            set seen = pool_digest(p.preset_id),
                due_at = (select min(w.pool_expires_at) from workspaces w
                          where w.pool_preset_id = p.preset_id and not w.deleted)
            from (select distinct p from made) it
            where p.preset_id = bench_id('{set}-version-preset', it.p);
            drop table made"
        )
    }
}
