-- Presets to look at. A claim marks its pool by an insert, which waits for nobody: an update of the
-- pool's own row would make all claims of one preset queue behind each other.
create table prebuild_pool_marks (
    id bigint generated always as identity,
    preset_id uuid not null,
    created_at timestamptz not null,
    -- Claims that this mark tells of; folded into the pool's total by the next look.
    claims integer not null default 0,
    constraint prebuild_pool_marks_pkey primary key (id)
) with (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
create index prebuild_pool_marks_preset_idx on prebuild_pool_marks (preset_id);

alter table prebuild_pools
    add column last_probe_at timestamptz,
    -- Reasons of the newest plan, so that the decision log is only written when they change.
    add column last_reasons jsonb not null default '[]';

-- Failed creations within the lookback period.
create index workspace_builds_prebuild_idx on workspace_builds (preset_id, created_at)
    where stage = 'prebuild';

-- Prebuild creations in flight (class 4), counted by every plan of the organization's pools.
create index provisioner_jobs_in_flight_idx on provisioner_jobs (organization_id)
    where class = 4 and completed_at is null;
