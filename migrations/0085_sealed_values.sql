-- Values sealed by the vault: the bytes, the value's own key (itself encrypted), and the name of the
-- installation's key that encrypted it. Without a key's name the bytes are as they are.
alter table workspace_build_states add column data_key bytea;
alter table workspace_build_states
    add constraint workspace_build_states_sealed check ((key_id is null) = (data_key is null));

-- The installation's keys that have sealed anything. Each seals a known text here, so that a service
-- with a wrong key notices at its start instead of at somebody's build.
create table encryption_keys (
    id text not null,
    data_key bytea not null,
    probe bytea not null,
    created_at timestamptz not null,
    -- Nothing is sealed by it any more.
    retired_at timestamptz,
    constraint encryption_keys_pkey primary key (id)
);
