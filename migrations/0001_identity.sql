-- Who there is: organizations, users, groups, their credentials.

create table organizations (
    id uuid not null,
    name text not null,
    display_name text not null default '',
    description text not null default '',
    icon text not null default '',
    is_default boolean not null default false,
    deleted boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint organizations_pkey primary key (id)
);
create unique index organizations_name_key on organizations (lower(name)) where not deleted;
create unique index organizations_default_key on organizations (is_default) where is_default;

create table users (
    id uuid not null,
    username text not null,
    email text not null,
    name text not null default '',
    avatar_url text not null default '',
    -- argon2id, PHC string. NULL: cannot log in with a password.
    password_hash text,
    status text not null default 'active',
    login_type text not null default 'password',
    roles text[] not null default '{}',
    is_system boolean not null default false,
    deleted boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    last_seen_at timestamptz,
    constraint users_pkey primary key (id),
    constraint users_status_check check (status in ('active', 'dormant', 'suspended')),
    -- The prebuilds user, and any system user after it, can never log in.
    constraint users_system_cannot_log_in check (not is_system or password_hash is null)
);
create unique index users_username_key on users (lower(username)) where not deleted;
create unique index users_email_key on users (lower(email)) where not deleted and email <> '';

insert into users (id, username, email, name, login_type, is_system, created_at, updated_at)
values ('c42fdf75-3097-471c-8c33-fb52454d81c0', 'prebuilds', 'prebuilds@system.invalid', 'Prebuilds Owner', 'none', true, now(), now());

create table organization_members (
    organization_id uuid not null,
    user_id uuid not null,
    roles text[] not null default '{}',
    -- Set by the membership reconciler: only what it added may be removed again.
    added_by_reconciler boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint organization_members_pkey primary key (organization_id, user_id),
    constraint organization_members_organization_id_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint organization_members_user_id_fkey foreign key (user_id) references users (id) on delete cascade
);
create index organization_members_user_id_idx on organization_members (user_id);

create table custom_roles (
    id uuid not null,
    organization_id uuid,
    name text not null,
    display_name text not null default '',
    permissions jsonb not null default '[]',
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint custom_roles_pkey primary key (id),
    constraint custom_roles_organization_id_fkey foreign key (organization_id) references organizations (id) on delete cascade
);
create unique index custom_roles_name_key on custom_roles (organization_id, lower(name));

create table groups (
    id uuid not null,
    organization_id uuid not null,
    name text not null,
    display_name text not null default '',
    avatar_url text not null default '',
    quota_allowance integer not null default 0,
    source text not null default 'user',
    added_by_reconciler boolean not null default false,
    created_at timestamptz not null,
    constraint groups_pkey primary key (id),
    constraint groups_organization_id_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint groups_quota_allowance_check check (quota_allowance >= 0)
);
create unique index groups_organization_id_name_key on groups (organization_id, name);

create table group_members (
    group_id uuid not null,
    user_id uuid not null,
    constraint group_members_pkey primary key (group_id, user_id),
    constraint group_members_group_id_fkey foreign key (group_id) references groups (id) on delete cascade,
    constraint group_members_user_id_fkey foreign key (user_id) references users (id) on delete cascade
);
create index group_members_user_id_idx on group_members (user_id);

-- Sessions and API tokens: the client holds "id-secret", here is the secret's SHA-256.
create table api_keys (
    id text not null,
    secret_hash bytea not null,
    user_id uuid not null,
    login_type text not null,
    scope text not null default 'all',
    token_name text not null default '',
    -- The workspace that this key was made for, if any; revoked when it is claimed or deleted.
    workspace_id uuid,
    lifetime_seconds bigint not null,
    last_used_at timestamptz not null,
    expires_at timestamptz not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint api_keys_pkey primary key (id),
    constraint api_keys_user_id_fkey foreign key (user_id) references users (id) on delete cascade,
    constraint api_keys_not_for_prebuilds_user check (user_id <> 'c42fdf75-3097-471c-8c33-fb52454d81c0')
);
create index api_keys_user_id_idx on api_keys (user_id);
create index api_keys_workspace_id_idx on api_keys (workspace_id) where workspace_id is not null;
create unique index api_keys_user_id_token_name_key on api_keys (user_id, token_name) where token_name <> '';

create table site_settings (
    key text not null,
    value jsonb not null,
    updated_at timestamptz not null default now(),
    constraint site_settings_pkey primary key (key)
);
insert into site_settings (key, value) values ('deployment_id', to_jsonb(gen_random_uuid()::text));

create table audit_logs (
    id uuid not null,
    created_at timestamptz not null,
    actor_id uuid,
    organization_id uuid,
    action text not null,
    resource_type text not null,
    resource_id uuid not null,
    resource_target text not null default '',
    diff jsonb not null default '{}',
    request_id uuid,
    ip text not null default '',
    user_agent text not null default '',
    status_code integer not null default 200,
    constraint audit_logs_pkey primary key (id)
);
create index audit_logs_created_at_idx on audit_logs (created_at desc);
