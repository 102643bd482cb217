-- What the pools' rules read beside the presets: policies, promotions, failures, and the one
-- predicate that says what a claim may have.

alter table templates
    -- While a warm promotion is open: the version whose pools are built beside the active ones.
    add column candidate_version_id uuid,
    -- The version that was active before the newest promotion.
    add column previous_version_id uuid,
    -- A warm promotion that switched before all new prebuilds were ready keeps the old ones claimable
    -- until they are, whatever the pool policy says.
    add column keeps_previous boolean not null default false,
    add constraint templates_candidate_version_id_fkey
        foreign key (candidate_version_id) references template_versions (id),
    add constraint templates_previous_version_id_fkey
        foreign key (previous_version_id) references template_versions (id);

alter table prebuild_pools
    -- The policy that holds: the template's with the preset's laid over it
    -- (domain::plan::PoolPolicy). Written where either is written, and when the pool is.
    add column policy jsonb not null default '{}',
    -- Two of it that claims read.
    add column allow_previous_version boolean not null
        generated always as (coalesce((policy ->> 'allow_previous_version')::boolean, false)) stored,
    add column min_remaining_ttl_seconds bigint not null
        generated always as (coalesce((policy ->> 'min_remaining_ttl_seconds')::bigint, 0)) stored,
    -- Set by a promotion on the old version's pools: the new version's preset of the same name and
    -- the same values. NULL: there is none, and nobody can be served from here.
    add column successor_preset_id uuid,
    -- What held creation back in the newest plan, in the words of domain::plan::Reason. Pools held by
    -- something that all pools of an organization share are looked at when some of it is free.
    add column holds text[] not null default '{}',
    -- Members by state as the newest plan left them (pool_digest); the drift audit compares.
    add column seen text not null default '',
    add constraint prebuild_pools_successor_preset_id_fkey
        foreign key (successor_preset_id) references template_version_presets (id) on delete set null;
create index prebuild_pools_successor_idx on prebuild_pools (successor_preset_id)
    where successor_preset_id is not null;
create index prebuild_pools_held_idx on prebuild_pools (organization_id, last_reconciled_at)
    where holds <> '{}';

-- Warm promotions, open and ended.
create table template_promotions (
    id uuid not null,
    template_id uuid not null,
    candidate_version_id uuid not null,
    -- The version that was active when it began.
    active_version_id uuid not null,
    -- Percent of the candidate's wanted prebuilds that must be ready for the switch.
    ready_percent integer not null,
    -- Called off after this.
    deadline_at timestamptz not null,
    actor_id uuid not null,
    created_at timestamptz not null,
    ended_at timestamptz,
    outcome text,
    -- Why it was called off.
    reason text not null default '',
    constraint template_promotions_pkey primary key (id),
    constraint template_promotions_template_id_fkey foreign key (template_id) references templates (id) on delete cascade,
    constraint template_promotions_candidate_version_id_fkey foreign key (candidate_version_id) references template_versions (id) on delete cascade,
    constraint template_promotions_ready_percent_check check (ready_percent between 1 and 100),
    constraint template_promotions_ended_check check ((ended_at is null) = (outcome is null)),
    constraint template_promotions_outcome_check check (outcome in ('promoted', 'called_off', 'canceled', 'superseded'))
);
-- One at a time per template.
create unique index template_promotions_open_key on template_promotions (template_id) where ended_at is null;
create index template_promotions_template_idx on template_promotions (template_id, created_at desc);

-- Creations that failed by the template's own fault: plan, apply, or the start of an agent. One per
-- build, however often it is reported.
create table prebuild_failures (
    build_id uuid not null,
    preset_id uuid not null,
    failed_at timestamptz not null,
    -- 'build' or 'agent'
    kind text not null,
    constraint prebuild_failures_pkey primary key (build_id),
    constraint prebuild_failures_kind_check check (kind in ('build', 'agent'))
);
create index prebuild_failures_preset_idx on prebuild_failures (preset_id, failed_at desc);
create index prebuild_failures_failed_at_idx on prebuild_failures (failed_at);

-- What a pool's version is to its template (domain::plan::Standing). The planner inlines it.
create function pool_standing(pool prebuild_pools, template templates) returns text
language sql immutable parallel safe
return case
    when template.id is null or template.deleted or template.deprecation_message <> '' then 'inactive'
    when pool.template_version_id = template.active_version_id then 'active'
    when pool.template_version_id = template.candidate_version_id then 'candidate'
    when pool.template_version_id = template.previous_version_id
         and pool.successor_preset_id is not null
         and (template.keeps_previous or pool.allow_previous_version) then 'previous'
    else 'inactive'
end;

-- Whether a prebuild lives: not expired, not invalidated, and long enough for whoever asks.
create function prebuild_lives(workspace workspaces, pool prebuild_pools, moment timestamptz) returns boolean
language sql stable parallel safe
return (workspace.pool_expires_at is null
        or (workspace.pool_expires_at > moment
            and workspace.pool_expires_at >= moment + pool.min_remaining_ttl_seconds * interval '1 second'))
   and (pool.last_invalidated_at is null or workspace.created_at >= pool.last_invalidated_at);

-- The one predicate (10-prebuilds): whether a claim may have this prebuild at this moment. The claim,
-- the metric `eligible` and `explain` all ask it; domain::plan::claimable says the same of a snapshot.
create function is_claimable(
    workspace workspaces, pool prebuild_pools, template templates, moment timestamptz
) returns boolean
language sql stable parallel safe
return workspace.pool_state = 'ready' and not workspace.deleted
   and pool_standing(pool, template) in ('active', 'previous')
   and prebuild_lives(workspace, pool, moment);

-- Members of a pool by state: 'ready:3,starting:1'. Empty for an empty pool.
create function pool_digest(preset uuid) returns text
language sql stable parallel safe
return coalesce((
    select string_agg(state || ':' || members, ',' order by state)
    from (
        select pool_state as state, count(*) as members
        from workspaces
        where pool_preset_id = preset and not deleted
        group by pool_state
    ) counted
), '');
