-- The queue: sets of tags by number, and indexes that are as long as what is open, not as history.

-- Each set of tags that a job ever had, once. Few; never deleted.
create table provisioner_tag_sets (
    id integer generated always as identity,
    -- SHA-256 of the tags' text: tags may be longer than what an index entry holds.
    digest bytea not null,
    tags jsonb not null,
    constraint provisioner_tag_sets_pkey primary key (id),
    constraint provisioner_tag_sets_digest_key unique (digest)
);

-- The number of a set of tags, given to it the first time. Volatile: after waiting for whoever adds the
-- same set it sees what that one committed.
create function tag_set(wanted jsonb) returns integer
language plpgsql volatile as $$
declare
    key bytea := sha256(convert_to(wanted::text, 'UTF8'));
    found_id integer;
begin
    select id into found_id from provisioner_tag_sets where digest = key;
    if found_id is null then
        insert into provisioner_tag_sets (digest, tags) values (key, wanted)
        on conflict on constraint provisioner_tag_sets_digest_key do nothing;
        select id into found_id from provisioner_tag_sets where digest = key;
    end if;
    return found_id;
end $$;

-- Builds inherit it from the import of their version; NULL on jobs that ended before this migration.
alter table provisioner_jobs add column tag_set_id integer;
update provisioner_jobs set tag_set_id = tag_set(tags) where completed_at is null;

create function set_tag_set() returns trigger
language plpgsql as $$
begin
    new.tag_set_id := tag_set(new.tags);
    return new;
end $$;
create trigger provisioner_jobs_tag_set_insert before insert on provisioner_jobs
    for each row when (new.tag_set_id is null) execute function set_tag_set();
create trigger provisioner_jobs_tag_set_update before update of tags on provisioner_jobs
    for each row when (new.tags is distinct from old.tags) execute function set_tag_set();

drop index provisioner_jobs_pending_idx;
create index provisioner_jobs_pending_idx
    on provisioner_jobs (organization_id, provisioner, tag_set_id, class, created_at, id)
    where started_at is null and canceled_at is null and completed_at is null;

-- What runs, by whose it is. The end of a lease is in no index: renewing one then writes none.
drop index provisioner_jobs_lease_idx;
drop index provisioner_jobs_worker_idx;
create index provisioner_jobs_running_idx on provisioner_jobs (organization_id, class)
    where started_at is not null and completed_at is null;

-- A queue leaves dead rows at the head of its index as fast as it runs.
alter table provisioner_jobs set (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02
);

-- Since when a registered daemon is not heard of: it counts for no capacity then. Written when that
-- begins and when it ends.
alter table provisioner_daemons add column silent_at timestamptz;

-- Where pending jobs stand among those for the same daemons (organization, tool, tags), from 1, and how
-- many these are. Jobs that are not pending are left out. The order is that in which jobs are taken
-- (db::job::acquire): a job older than 15 minutes comes right before the young ones of the class above
-- its own. Each queue is read once, off the index of what is pending, however many jobs are asked for.
create function queue_places(jobs uuid[])
returns table (id uuid, place bigint, size bigint)
language sql stable rows 10 as $$
    with asked as materialized (
        select j.id, j.organization_id, j.provisioner, j.tag_set_id, j.class,
               j.created_at < now() - interval '15 minutes' as is_old
        from provisioner_jobs j
        where j.id = any (jobs)
          and j.started_at is null and j.canceled_at is null and j.completed_at is null
    ), queue as materialized (
        select distinct a.organization_id, a.provisioner, a.tag_set_id from asked a
    ), counted as materialized (
        select j.organization_id, j.provisioner, j.tag_set_id, j.class,
               count(*) filter (where j.created_at < now() - interval '15 minutes') as old,
               count(*) filter (where j.created_at >= now() - interval '15 minutes') as young
        from queue q join provisioner_jobs j
            on j.organization_id = q.organization_id and j.provisioner = q.provisioner
            and j.tag_set_id = q.tag_set_id
            and j.started_at is null and j.canceled_at is null and j.completed_at is null
        group by j.organization_id, j.provisioner, j.tag_set_id, j.class
    ), ranked as (
        select j.id, row_number() over (
                   partition by j.organization_id, j.provisioner, j.tag_set_id, j.class
                   order by j.created_at, j.id
               ) as place
        from queue q join provisioner_jobs j
            on j.organization_id = q.organization_id and j.provisioner = q.provisioner
            and j.tag_set_id = q.tag_set_id
            and j.started_at is null and j.canceled_at is null and j.completed_at is null
    )
    select a.id,
           (r.place + case when a.is_old then b.before_old else b.before_young end)::bigint,
           b.size::bigint
    from asked a
    join ranked r on r.id = a.id
    cross join lateral (
        select sum(c.old + c.young) as size,
               coalesce(sum(c.old) filter (where c.class < a.class), 0)
               + coalesce(sum(c.young) filter (where c.class < a.class - 1), 0) as before_old,
               coalesce(sum(c.old) filter (where c.class <= a.class + 1 and c.class <> a.class), 0)
               + coalesce(sum(c.young) filter (where c.class < a.class), 0) as before_young
        from counted c
        where c.organization_id = a.organization_id and c.provisioner = a.provisioner
          and c.tag_set_id = a.tag_set_id
    ) b
$$;
