-- What a pool's newest plan and newest prebuild left behind, so that no plan looks into history.

alter table prebuild_pools
    -- Credits a day of the newest prebuild that started; NULL: none has yet.
    add column daily_cost integer,
    -- How many the newest plan wanted. Where it changes, the pools of the versions before and after
    -- are looked at as well: theirs depend on it.
    add column desired integer not null default 0;

update prebuild_pools p
set daily_cost = (
    select b.daily_cost
    from workspace_builds b join provisioner_jobs j on j.id = b.job_id
    where b.preset_id = p.preset_id and b.stage = 'prebuild' and b.transition = 'start'
      and j.status = 'succeeded'
    order by b.created_at desc
    limit 1
);
