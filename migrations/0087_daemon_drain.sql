-- Daemons that are to take no new jobs, until somebody says otherwise or they start anew.

alter table provisioner_daemons
    add column draining_since timestamptz,
    -- The daemon's process: another one is not draining any more. Empty: the daemon is of a version
    -- that does not say.
    add column incarnation text not null default '';
-- Each replica of the broker reads these every few seconds.
create index provisioner_daemons_draining_idx on provisioner_daemons (id) where draining_since is not null;

-- Those of the daemons that take new jobs, in their order.
create function undrained(daemons uuid[]) returns uuid[]
language sql stable parallel safe
return array(
    select it.id from unnest(daemons) with ordinality it (id, place)
    join provisioner_daemons d on d.id = it.id
    where d.draining_since is null
    order by it.place
);
