-- What a claim of a pool's prebuilds would replace, found before anybody claims one.

alter table provisioner_jobs drop constraint provisioner_jobs_kind_check;
alter table provisioner_jobs add constraint provisioner_jobs_kind_check check (kind in (
    'template_version_import', 'template_version_dry_run', 'workspace_build', 'prebuild_rehearsal'
));

-- One row a pool: its rehearsal, ordered when its first prebuild was ready.
create table prebuild_rehearsals (
    preset_id uuid not null,
    job_id uuid not null,
    -- The prebuild's build whose state is planned on.
    build_id uuid not null,
    -- Rehearsals that were lost are ordered again, a few times.
    attempts integer not null default 1,
    ordered_at timestamptz not null,
    ended_at timestamptz,
    -- NULL until it ends; domain::state::RehearsalOutcome.
    outcome text,
    error text not null default '',
    -- {resource: [attribute, …]}
    replacements jsonb not null default '{}',
    constraint prebuild_rehearsals_pkey primary key (preset_id),
    constraint prebuild_rehearsals_preset_id_fkey foreign key (preset_id) references prebuild_pools (preset_id) on delete cascade,
    constraint prebuild_rehearsals_outcome_check check (outcome in ('clean', 'replaces', 'failed', 'lost')),
    constraint prebuild_rehearsals_ended_check check ((outcome is null) = (ended_at is null))
);
create index prebuild_rehearsals_job_idx on prebuild_rehearsals (job_id);

-- The replacements that template admins were told of, by a rehearsal or by a claim: once each.
alter table prebuild_pools add column replacements_told jsonb not null default '{}';
