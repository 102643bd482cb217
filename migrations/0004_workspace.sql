-- Workspaces, their builds, and what is inside them.

create table workspaces (
    id uuid not null,
    owner_id uuid not null,
    organization_id uuid not null,
    template_id uuid not null,
    name text not null,
    deleted boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    last_used_at timestamptz not null,
    autostart_schedule text,
    ttl_ms bigint,
    automatic_updates text not null default 'never',
    dormant_at timestamptz,
    deleting_at timestamptz,
    favorite boolean not null default false,
    -- Grows with each committed change that a watcher is told of.
    revision bigint not null default 1,
    -- The newest build; kept by the builder, so that no reader searches the history.
    latest_build_id uuid,
    latest_build_number integer not null default 0,
    -- While it is a prebuild: its preset and its state (domain::state::PoolState). NULL otherwise.
    pool_preset_id uuid,
    pool_state text,
    -- When every agent that counts had become ready.
    pool_ready_at timestamptz,
    -- created_at plus the preset's ttl; NULL: does not expire.
    pool_expires_at timestamptz,
    constraint workspaces_pkey primary key (id),
    constraint workspaces_owner_id_fkey foreign key (owner_id) references users (id),
    constraint workspaces_organization_id_fkey foreign key (organization_id) references organizations (id),
    constraint workspaces_template_id_fkey foreign key (template_id) references templates (id),
    -- A prebuild belongs to the prebuilds user and to one preset; a workspace of a person to neither.
    constraint workspaces_pool_check check (
        (owner_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0') = (pool_preset_id is not null)
        and (pool_preset_id is not null) = (pool_state is not null)
    ),
    constraint workspaces_automatic_updates_check check (automatic_updates in ('always', 'never'))
) with (fillfactor = 85);
create unique index workspaces_owner_name_key on workspaces (owner_id, lower(name)) where not deleted;
create index workspaces_template_idx on workspaces (template_id) where not deleted;
create index workspaces_organization_idx on workspaces (organization_id, id) where not deleted;
-- The claim takes its row from here: soonest to expire first, then oldest.
create index workspaces_claimable_idx on workspaces (pool_preset_id, pool_expires_at nulls last, created_at, id)
    where pool_state = 'ready' and not deleted;
-- The reconciler reads one pool from here.
create index workspaces_pool_idx on workspaces (pool_preset_id) where pool_preset_id is not null and not deleted;

create table workspace_builds (
    id uuid not null,
    workspace_id uuid not null,
    template_version_id uuid not null,
    preset_id uuid,
    build_number integer not null,
    transition text not null,
    initiator_id uuid not null,
    reason text not null default 'initiator',
    stage text not null default 'none',
    job_id uuid not null,
    daily_cost integer not null default 0,
    deadline timestamptz,
    max_deadline timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint workspace_builds_pkey primary key (id),
    constraint workspace_builds_workspace_id_build_number_key unique (workspace_id, build_number),
    constraint workspace_builds_job_id_key unique (job_id),
    constraint workspace_builds_workspace_id_fkey foreign key (workspace_id) references workspaces (id),
    constraint workspace_builds_template_version_id_fkey foreign key (template_version_id) references template_versions (id),
    constraint workspace_builds_job_id_fkey foreign key (job_id) references provisioner_jobs (id),
    constraint workspace_builds_transition_check check (transition in ('start', 'stop', 'delete')),
    constraint workspace_builds_stage_check check (stage in ('none', 'prebuild', 'claim'))
);

create table workspace_build_parameters (
    build_id uuid not null,
    name text not null,
    value text not null,
    constraint workspace_build_parameters_pkey primary key (build_id, name),
    constraint workspace_build_parameters_build_id_fkey foreign key (build_id) references workspace_builds (id) on delete cascade
);

-- Provisioner state, apart from the build row so that nothing reads it by accident.
create table workspace_build_states (
    build_id uuid not null,
    -- zstd
    state bytea not null,
    -- Which key encrypts it; NULL: none.
    key_id text,
    constraint workspace_build_states_pkey primary key (build_id),
    constraint workspace_build_states_build_id_fkey foreign key (build_id) references workspace_builds (id) on delete cascade
);
alter table workspace_build_states alter column state set storage external;

create table workspace_resources (
    id uuid not null,
    job_id uuid not null,
    transition text not null,
    type text not null,
    name text not null,
    icon text not null default '',
    hide boolean not null default false,
    daily_cost integer not null default 0,
    instance_type text not null default '',
    module_path text not null default '',
    -- [{key, value, sensitive, is_null}]
    metadata jsonb not null default '[]',
    created_at timestamptz not null,
    constraint workspace_resources_pkey primary key (id),
    constraint workspace_resources_job_id_fkey foreign key (job_id) references provisioner_jobs (id) on delete cascade
);
create index workspace_resources_job_idx on workspace_resources (job_id);

create table workspace_agents (
    id uuid not null,
    parent_id uuid,
    resource_id uuid not null,
    -- NULL for agents of imports and dry runs, which never run.
    workspace_id uuid,
    build_id uuid,
    name text not null,
    auth_token uuid not null,
    auth_instance_id text,
    architecture text not null default '',
    operating_system text not null default '',
    directory text not null default '',
    expanded_directory text not null default '',
    environment_variables jsonb not null default '{}',
    motd_file text not null default '',
    troubleshooting_url text not null default '',
    connection_timeout_seconds integer not null default 120,
    startup_script_behavior text not null default 'non-blocking',
    display_apps text[] not null default '{}',
    display_order integer not null default 0,
    api_key_scope text not null default 'all',
    -- [{key, display_name, script, interval, timeout, order}], and the last values by key.
    metadata jsonb not null default '[]',
    metadata_values jsonb not null default '{}',
    -- Replaced by a later build; its token is no credential any more.
    retired boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    lifecycle_state text not null default 'created',
    first_connected_at timestamptz,
    last_connected_at timestamptz,
    disconnected_at timestamptz,
    started_at timestamptz,
    ready_at timestamptz,
    version text not null default '',
    api_version text not null default '',
    subsystems text[] not null default '{}',
    logs_length integer not null default 0,
    logs_overflowed boolean not null default false,
    constraint workspace_agents_pkey primary key (id),
    constraint workspace_agents_parent_id_fkey foreign key (parent_id) references workspace_agents (id) on delete cascade,
    constraint workspace_agents_resource_id_fkey foreign key (resource_id) references workspace_resources (id) on delete cascade,
    constraint workspace_agents_workspace_id_fkey foreign key (workspace_id) references workspaces (id),
    constraint workspace_agents_build_id_fkey foreign key (build_id) references workspace_builds (id)
) with (fillfactor = 85);
create index workspace_agents_resource_idx on workspace_agents (resource_id);
create index workspace_agents_build_idx on workspace_agents (build_id);
create index workspace_agents_workspace_idx on workspace_agents (workspace_id) where not retired;
create unique index workspace_agents_auth_token_key on workspace_agents (auth_token) where not retired and workspace_id is not null;
create unique index workspace_agents_resource_name_key on workspace_agents (build_id, lower(name)) where parent_id is null;

create table workspace_agent_log_sources (
    id uuid not null,
    agent_id uuid not null,
    display_name text not null,
    icon text not null default '',
    created_at timestamptz not null,
    constraint workspace_agent_log_sources_pkey primary key (agent_id, id),
    constraint workspace_agent_log_sources_agent_id_fkey foreign key (agent_id) references workspace_agents (id) on delete cascade
);

create table workspace_agent_scripts (
    id uuid not null,
    agent_id uuid not null,
    log_source_id uuid not null,
    display_name text not null default '',
    icon text not null default '',
    script text not null,
    log_path text not null default '',
    cron text not null default '',
    run_on_start boolean not null default false,
    run_on_stop boolean not null default false,
    start_blocks_login boolean not null default false,
    timeout_seconds integer not null default 0,
    position integer not null default 0,
    constraint workspace_agent_scripts_pkey primary key (id),
    constraint workspace_agent_scripts_agent_id_fkey foreign key (agent_id) references workspace_agents (id) on delete cascade
);
create index workspace_agent_scripts_agent_idx on workspace_agent_scripts (agent_id);

create table workspace_agent_logs (
    id bigint generated always as identity,
    agent_id uuid not null,
    log_source_id uuid not null,
    created_at timestamptz not null,
    level text not null,
    output text not null,
    constraint workspace_agent_logs_pkey primary key (id),
    constraint workspace_agent_logs_agent_id_fkey foreign key (agent_id) references workspace_agents (id) on delete cascade
);
create index workspace_agent_logs_agent_idx on workspace_agent_logs (agent_id, id);

create table workspace_apps (
    id uuid not null,
    agent_id uuid not null,
    slug text not null,
    display_name text not null default '',
    command text not null default '',
    url text not null default '',
    icon text not null default '',
    subdomain boolean not null default false,
    external boolean not null default false,
    hidden boolean not null default false,
    sharing_level text not null default 'owner',
    open_in text not null default 'slim-window',
    display_group text not null default '',
    display_order integer not null default 0,
    tooltip text not null default '',
    healthcheck_url text not null default '',
    healthcheck_interval integer not null default 0,
    healthcheck_threshold integer not null default 0,
    health text not null default 'disabled',
    created_at timestamptz not null,
    constraint workspace_apps_pkey primary key (id),
    constraint workspace_apps_agent_id_fkey foreign key (agent_id) references workspace_agents (id) on delete cascade,
    constraint workspace_apps_agent_id_slug_key unique (agent_id, slug)
);

create table claim_attempts (
    id uuid not null,
    created_at timestamptz not null,
    organization_id uuid not null,
    template_id uuid not null,
    template_version_id uuid not null,
    preset_id uuid,
    user_id uuid not null,
    workspace_id uuid not null,
    build_id uuid not null,
    outcome text not null,
    reason text,
    -- Nearest preset and differing parameters, agents waited for, …
    detail jsonb not null default '{}',
    prebuild_created_at timestamptz,
    -- How the build that followed ended.
    build_status text,
    constraint claim_attempts_pkey primary key (id),
    constraint claim_attempts_outcome_check check ((outcome = 'hit') = (reason is null))
);
create index claim_attempts_created_at_idx on claim_attempts (created_at desc);
create index claim_attempts_preset_idx on claim_attempts (preset_id, created_at desc);
create index claim_attempts_workspace_idx on claim_attempts (workspace_id);

create table idempotency_keys (
    user_id uuid not null,
    key text not null,
    body_hash bytea not null,
    workspace_id uuid not null,
    created_at timestamptz not null,
    constraint idempotency_keys_pkey primary key (user_id, key)
);
create index idempotency_keys_created_at_idx on idempotency_keys (created_at);
