-- The job queue, its daemons and what they report.

create table provisioner_keys (
    id uuid not null,
    organization_id uuid not null,
    name text not null,
    secret_hash bytea not null,
    tags jsonb not null default '{}',
    created_at timestamptz not null,
    revoked_at timestamptz,
    constraint provisioner_keys_pkey primary key (id),
    constraint provisioner_keys_organization_id_fkey foreign key (organization_id) references organizations (id) on delete cascade
);
create unique index provisioner_keys_organization_id_name_key on provisioner_keys (organization_id, lower(name)) where revoked_at is null;
create unique index provisioner_keys_secret_hash_key on provisioner_keys (secret_hash);

create table provisioner_daemons (
    id uuid not null,
    organization_id uuid not null,
    key_id uuid,
    name text not null,
    version text not null,
    api_version text not null,
    provisioners text[] not null,
    tags jsonb not null,
    capacity integer not null default 1,
    created_at timestamptz not null,
    -- Written when it registers, leaves, and at most once a minute in between.
    last_seen_at timestamptz not null,
    disconnected_at timestamptz,
    constraint provisioner_daemons_pkey primary key (id),
    constraint provisioner_daemons_organization_id_fkey foreign key (organization_id) references organizations (id) on delete cascade
);
create unique index provisioner_daemons_organization_id_name_key on provisioner_daemons (organization_id, name);

create table provisioner_jobs (
    id uuid not null,
    organization_id uuid not null,
    initiator_id uuid not null,
    kind text not null,
    provisioner text not null,
    -- Rank of the class in the queue; lower runs first.
    class smallint not null,
    file_id uuid not null,
    -- {"template_version_id"} or {"workspace_build_id"}, plus what a dry run asks for.
    input jsonb not null,
    tags jsonb not null default '{"scope": "organization", "owner": ""}',
    -- W3C trace context of whoever queued the job.
    trace_metadata jsonb not null default '{}',
    created_at timestamptz not null,
    updated_at timestamptz not null,
    started_at timestamptz,
    canceled_at timestamptz,
    -- Who asked; NULL for the system itself.
    canceled_by uuid,
    completed_at timestamptz,
    worker_id uuid,
    lease_token uuid,
    lease_expires_at timestamptz,
    -- Whether apply ever began: such a job is never run again by itself.
    apply_started boolean not null default false,
    attempts integer not null default 0,
    error text not null default '',
    error_code text,
    logs_length integer not null default 0,
    logs_overflowed boolean not null default false,
    last_log_number bigint not null default 0,
    status text not null generated always as (
        case
            when completed_at is not null and canceled_at is not null then 'canceled'
            when completed_at is not null and (error <> '' or error_code is not null) then 'failed'
            when completed_at is not null then 'succeeded'
            when canceled_at is not null then 'canceling'
            when started_at is not null then 'running'
            else 'pending'
        end
    ) stored,
    constraint provisioner_jobs_pkey primary key (id),
    constraint provisioner_jobs_organization_id_fkey foreign key (organization_id) references organizations (id),
    constraint provisioner_jobs_kind_check check (kind in ('template_version_import', 'template_version_dry_run', 'workspace_build'))
) with (fillfactor = 85);
create index provisioner_jobs_pending_idx on provisioner_jobs (organization_id, provisioner, class, created_at, id)
    where started_at is null and canceled_at is null and completed_at is null;
create index provisioner_jobs_lease_idx on provisioner_jobs (lease_expires_at)
    where started_at is not null and completed_at is null;
create index provisioner_jobs_worker_idx on provisioner_jobs (worker_id)
    where started_at is not null and completed_at is null;
create index provisioner_jobs_organization_created_idx on provisioner_jobs (organization_id, created_at desc);

create table provisioner_job_logs (
    id bigint generated always as identity,
    job_id uuid not null,
    -- The daemon's number of the line, so that a line sent twice is stored once; 0 and below are the broker's own.
    number bigint not null,
    created_at timestamptz not null,
    source text not null,
    level text not null,
    stage text not null,
    output text not null,
    constraint provisioner_job_logs_pkey primary key (id),
    constraint provisioner_job_logs_job_id_fkey foreign key (job_id) references provisioner_jobs (id) on delete cascade,
    constraint provisioner_job_logs_job_id_number_key unique (job_id, number)
);
create index provisioner_job_logs_job_idx on provisioner_job_logs (job_id, id);

create table provisioner_job_timings (
    job_id uuid not null,
    started_at timestamptz not null,
    ended_at timestamptz not null,
    stage text not null,
    source text not null,
    action text not null,
    resource text not null,
    constraint provisioner_job_timings_job_id_fkey foreign key (job_id) references provisioner_jobs (id) on delete cascade
);
create index provisioner_job_timings_job_idx on provisioner_job_timings (job_id);
alter table template_versions add constraint template_versions_job_id_fkey
    foreign key (job_id) references provisioner_jobs (id) deferrable initially deferred;
