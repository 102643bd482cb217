-- What the membership reconciler reads in one statement over all organizations, and since when an
-- organization has no pool.

-- Whether the version that is active, or is about to be, has a preset with a prebuild configuration.
-- Kept where that changes (below), so that no pass walks the presets.
alter table templates add column has_pools boolean not null default false;
-- NULL: there are pools, or nobody has noticed yet that there are none, or nothing is left to remove.
alter table organizations add column prebuilds_unused_since timestamptz;

create function template_version_has_pools(version uuid) returns boolean
language sql stable parallel safe
return exists (
    select from template_version_presets
    where template_version_id = version and desired_instances is not null
);

create function set_template_has_pools() returns trigger language plpgsql as $$
begin
    new.has_pools := template_version_has_pools(new.active_version_id)
        or template_version_has_pools(new.candidate_version_id);
    return new;
end $$;
create trigger templates_has_pools
    before insert or update of active_version_id, candidate_version_id on templates
    for each row execute function set_template_has_pools();

-- An import stores presets before its version is promoted, and then this finds no template to change.
create function refresh_template_has_pools() returns trigger language plpgsql as $$
begin
    update templates t
    set has_pools = not t.has_pools
    where t.id in (
            select v.template_id from changed c join template_versions v on v.id = c.template_version_id
        )
      and t.has_pools <> (template_version_has_pools(t.active_version_id)
          or template_version_has_pools(t.candidate_version_id));
    return null;
end $$;
create trigger template_version_presets_inserted after insert on template_version_presets
    referencing new table as changed for each statement execute function refresh_template_has_pools();
create trigger template_version_presets_updated after update on template_version_presets
    referencing new table as changed for each statement execute function refresh_template_has_pools();
create trigger template_version_presets_deleted after delete on template_version_presets
    referencing old table as changed for each statement execute function refresh_template_has_pools();

update templates
set has_pools = true
where template_version_has_pools(active_version_id) or template_version_has_pools(candidate_version_id);

-- The prebuilds user's own rows, in the order in which a pass puts them together.
create index templates_has_pools_idx on templates (organization_id) where has_pools and not deleted;
create index organization_members_prebuilds_idx on organization_members (organization_id)
    include (added_by_reconciler)
    where user_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0';
create index groups_prebuilds_idx on groups (organization_id) include (id, added_by_reconciler)
    where name = 'coderprebuiltworkspaces';
create index group_members_prebuilds_idx on group_members (group_id) include (added_by_reconciler)
    where user_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0';

-- Where every organization stands. The planner inlines it.
create view membership_standings as
select o.id as organization_id, m.organization_id is not null as is_member, g.id as group_id,
       gm.group_id is not null as is_in_group,
       coalesce(m.added_by_reconciler, false) or coalesce(g.added_by_reconciler, false)
           or coalesce(gm.added_by_reconciler, false) as has_additions,
       o.prebuilds_unused_since as unused_since,
       exists (
           select from templates t
           where t.organization_id = o.id and t.has_pools and not t.deleted
       ) as is_needed
from organizations o
left join organization_members m
    on m.organization_id = o.id and m.user_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0'
left join groups g on g.organization_id = o.id and g.name = 'coderprebuiltworkspaces'
left join group_members gm
    on gm.group_id = g.id and gm.user_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0'
where not o.deleted;
