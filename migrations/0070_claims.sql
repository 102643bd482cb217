-- Claims in one statement: quota is asked where the prebuild changes hands, and what came of it is
-- read newest first by organization.

-- Whether the owner's quota in the organization covers `cost` more credits a day. Waits for others who
-- spend in the same owner's name there (the lock of CommitQuota), until the transaction ends. Volatile, so
-- that its second statement sees what they committed, whatever the statement around it saw.
create function quota_covers(owner uuid, organization uuid, cost bigint) returns boolean
language plpgsql volatile as $$
begin
    perform pg_advisory_xact_lock(hashtextextended(owner::text || organization::text, 0));
    return cost + coalesce((
            select sum(b.daily_cost)
            from workspaces w join workspace_builds b on b.id = w.latest_build_id
            where w.owner_id = owner and w.organization_id = organization and not w.deleted
        ), 0) <= coalesce((
            select sum(g.quota_allowance)
            from groups g
            where g.organization_id = organization
              and (g.id = g.organization_id or exists (
                  select from group_members gm where gm.group_id = g.id and gm.user_id = owner
              ))
        ), 0);
end $$;

-- Attempts are found by workspace, and listed by organization: each index less is less to write per
-- claim.
alter table claim_attempts drop constraint claim_attempts_pkey;
drop index claim_attempts_created_at_idx;
drop index claim_attempts_preset_idx;
alter table claim_attempts
    add constraint claim_attempts_pkey primary key (organization_id, created_at, id);
