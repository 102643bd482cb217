-- What can be built: files, templates, versions, presets, pools.

create table files (
    id uuid not null,
    organization_id uuid,
    hash text not null,
    kind text not null default 'archive',
    mimetype text not null default 'application/x-tar',
    created_by uuid not null,
    created_at timestamptz not null,
    data bytea not null,
    constraint files_pkey primary key (id),
    constraint files_created_by_fkey foreign key (created_by) references users (id)
);
-- Archives are compressed by whoever sends them; TOAST must not try again.
alter table files alter column data set storage external;
create unique index files_created_by_hash_key on files (created_by, hash, kind);

create table templates (
    id uuid not null,
    organization_id uuid not null,
    name text not null,
    display_name text not null default '',
    description text not null default '',
    icon text not null default '',
    provisioner text not null,
    active_version_id uuid not null,
    created_by uuid not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    deleted boolean not null default false,
    -- Empty: not deprecated.
    deprecation_message text not null default '',
    default_ttl_ms bigint not null default 0,
    activity_bump_ms bigint not null default 3600000,
    failure_ttl_ms bigint not null default 0,
    time_til_dormant_ms bigint not null default 0,
    time_til_dormant_autodelete_ms bigint not null default 0,
    allow_user_autostart boolean not null default true,
    allow_user_autostop boolean not null default true,
    allow_user_cancel_workspace_jobs boolean not null default true,
    require_active_version boolean not null default false,
    -- {user id: "use" | "admin"}
    user_acl jsonb not null default '{}',
    -- {group id: "use" | "admin"}; the organization's own id stands for everyone in it.
    group_acl jsonb not null default '{}',
    constraint templates_pkey primary key (id),
    constraint templates_organization_id_fkey foreign key (organization_id) references organizations (id),
    constraint templates_created_by_fkey foreign key (created_by) references users (id)
);
create unique index templates_organization_id_name_key on templates (organization_id, lower(name)) where not deleted;

create table template_versions (
    id uuid not null,
    template_id uuid,
    organization_id uuid not null,
    name text not null,
    message text not null default '',
    readme text not null default '',
    job_id uuid not null,
    provisioner text not null,
    -- The `.terraform/modules` tree of the import.
    modules_file_id uuid,
    archived boolean not null default false,
    created_by uuid not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint template_versions_pkey primary key (id),
    constraint template_versions_template_id_fkey foreign key (template_id) references templates (id),
    constraint template_versions_organization_id_fkey foreign key (organization_id) references organizations (id),
    constraint template_versions_created_by_fkey foreign key (created_by) references users (id)
);
create unique index template_versions_template_id_name_key on template_versions (template_id, lower(name));
create unique index template_versions_job_id_key on template_versions (job_id);
alter table templates add constraint templates_active_version_id_fkey
    foreign key (active_version_id) references template_versions (id) deferrable initially deferred;

create table template_version_parameters (
    template_version_id uuid not null,
    name text not null,
    display_name text not null default '',
    description text not null default '',
    type text not null,
    form_type text not null default '',
    mutable boolean not null,
    default_value text not null default '',
    required boolean not null,
    ephemeral boolean not null default false,
    icon text not null default '',
    -- [{name, value, description, icon}]
    options jsonb not null default '[]',
    validation_regex text not null default '',
    validation_error text not null default '',
    validation_min bigint,
    validation_max bigint,
    validation_monotonic text not null default '',
    display_order integer not null default 0,
    constraint template_version_parameters_pkey primary key (template_version_id, name),
    constraint template_version_parameters_version_fkey foreign key (template_version_id) references template_versions (id) on delete cascade
);

create table template_version_variables (
    template_version_id uuid not null,
    name text not null,
    description text not null default '',
    type text not null default 'string',
    default_value text not null default '',
    value text not null default '',
    required boolean not null default false,
    sensitive boolean not null default false,
    constraint template_version_variables_pkey primary key (template_version_id, name),
    constraint template_version_variables_version_fkey foreign key (template_version_id) references template_versions (id) on delete cascade
);

create table template_version_presets (
    id uuid not null,
    template_version_id uuid not null,
    name text not null,
    description text not null default '',
    icon text not null default '',
    is_default boolean not null default false,
    -- NULL: no prebuild configuration, so no pool.
    desired_instances integer,
    -- 0: prebuilds do not expire.
    ttl_seconds bigint not null default 0,
    scheduling_timezone text not null default '',
    created_at timestamptz not null,
    constraint template_version_presets_pkey primary key (id),
    constraint template_version_presets_version_fkey foreign key (template_version_id) references template_versions (id) on delete cascade,
    constraint template_version_presets_instances_check check (desired_instances >= 0)
);
create unique index template_version_presets_version_name_key on template_version_presets (template_version_id, name);

create table template_version_preset_parameters (
    preset_id uuid not null,
    name text not null,
    value text not null,
    constraint template_version_preset_parameters_pkey primary key (preset_id, name),
    constraint template_version_preset_parameters_preset_fkey foreign key (preset_id) references template_version_presets (id) on delete cascade
);

create table template_version_preset_schedules (
    preset_id uuid not null,
    position integer not null,
    cron text not null,
    desired_instances integer not null,
    constraint template_version_preset_schedules_pkey primary key (preset_id, position),
    constraint template_version_preset_schedules_preset_fkey foreign key (preset_id) references template_version_presets (id) on delete cascade
);

-- One row per preset with prebuild configuration: what the reconciler locks, and how it learns
-- without looking at every preset which of them need a look.
create table prebuild_pools (
    preset_id uuid not null,
    template_version_id uuid not null,
    -- NULL until the version belongs to a template.
    template_id uuid,
    organization_id uuid not null,
    -- When time alone could change the plan.
    due_at timestamptz,
    prebuild_status text not null default 'healthy',
    -- Consecutive failures of the pool's own, and the newest.
    consecutive_failures integer not null default 0,
    last_failure_at timestamptz,
    breaker_opened_at timestamptz,
    probe_attempts integer not null default 0,
    last_invalidated_at timestamptz,
    last_reconciled_at timestamptz,
    -- Totals for the counters; folded by the reconciler and the broker, never by a claim.
    created_total bigint not null default 0,
    failed_total bigint not null default 0,
    claimed_total bigint not null default 0,
    replaced_total bigint not null default 0,
    constraint prebuild_pools_pkey primary key (preset_id),
    constraint prebuild_pools_preset_id_fkey foreign key (preset_id) references template_version_presets (id) on delete cascade,
    constraint prebuild_pools_status_check check (prebuild_status in ('healthy', 'hard_limited', 'validation_failed'))
);
create index prebuild_pools_due_idx on prebuild_pools (due_at) where due_at is not null;
create index prebuild_pools_template_idx on prebuild_pools (template_id, template_version_id);
create index prebuild_pools_organization_idx on prebuild_pools (organization_id);

-- Per template, with overrides per preset name ('' is the template's own row).
create table prebuild_pool_policies (
    template_id uuid not null,
    preset_name text not null default '',
    policy jsonb not null,
    updated_at timestamptz not null,
    constraint prebuild_pool_policies_pkey primary key (template_id, preset_name),
    constraint prebuild_pool_policies_template_id_fkey foreign key (template_id) references templates (id) on delete cascade
);

create table prebuild_pauses (
    id uuid not null,
    scope text not null,
    -- The organization, template or preset; NULL for the deployment.
    scope_id uuid,
    actor_id uuid not null,
    reason text not null default '',
    created_at timestamptz not null,
    expires_at timestamptz,
    constraint prebuild_pauses_pkey primary key (id),
    constraint prebuild_pauses_scope_check check (scope in ('deployment', 'organization', 'template', 'preset')),
    constraint prebuild_pauses_scope_id_check check ((scope = 'deployment') = (scope_id is null))
);
create unique index prebuild_pauses_scope_key on prebuild_pauses (scope, scope_id) nulls not distinct;

create table prebuild_decisions (
    id uuid not null,
    preset_id uuid not null,
    created_at timestamptz not null,
    desired integer not null,
    state jsonb not null,
    actions jsonb not null,
    reasons jsonb not null,
    trace_id text,
    constraint prebuild_decisions_pkey primary key (id)
);
create index prebuild_decisions_preset_idx on prebuild_decisions (preset_id, created_at desc);
create index prebuild_decisions_created_at_idx on prebuild_decisions (created_at);
