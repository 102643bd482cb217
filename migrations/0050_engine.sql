-- What the membership reconciler, the notification service and the purges need.

-- Only what the membership reconciler added may be removed by it again.
alter table group_members add column added_by_reconciler boolean not null default false;

-- Purges read the oldest rows of these.
create index api_keys_expires_at_idx on api_keys (expires_at);
create index notification_messages_created_at_idx on notification_messages (created_at);
create index inbox_notifications_created_at_idx on inbox_notifications (created_at);

-- Agents that are believed to be connected: whether one is lost is asked every few seconds.
create index workspace_agents_connected_idx on workspace_agents (last_connected_at)
    where not retired and workspace_id is not null and first_connected_at is not null
      and disconnected_at is null;
