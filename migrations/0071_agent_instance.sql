-- Agents that show their instance's identity are looked up by the instance's id.
create index workspace_agents_instance_idx on workspace_agents (auth_instance_id)
    where auth_instance_id is not null and not retired and parent_id is null;
