-- Secrets of users, for the plans of their workspaces. The value is sealed by the vault; bound to the
-- row's id.
create table user_secrets (
    id uuid not null,
    user_id uuid not null,
    name text not null,
    description text not null default '',
    -- How a template asks for it: by a variable's name, by a path, or both. Empty: not so.
    env_name text not null default '',
    file_path text not null default '',
    value bytea not null,
    key_id text,
    data_key bytea,
    -- Bytes of the value before it was sealed.
    size integer not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint user_secrets_pkey primary key (id),
    constraint user_secrets_user_id_fkey foreign key (user_id) references users (id) on delete cascade,
    constraint user_secrets_sealed check ((key_id is null) = (data_key is null)),
    constraint user_secrets_named check (env_name <> '' or file_path <> '')
);
create unique index user_secrets_user_id_name_key on user_secrets (user_id, name);
create unique index user_secrets_user_id_env_name_key on user_secrets (user_id, env_name) where env_name <> '';
create unique index user_secrets_user_id_file_path_key on user_secrets (user_id, file_path) where file_path <> '';

-- Whether daemons that have the experiment keep what `terraform init` made between builds.
alter table templates add column reuse_terraform_workspace boolean not null default false;

-- Files that daemons send, in pieces of at most 2 MiB, so that nobody ever has one whole in memory.
-- A file in pieces has no bytes in files.data.
alter table files add column size bigint;
create table file_pieces (
    file_id uuid not null,
    index integer not null,
    data bytea not null,
    constraint file_pieces_pkey primary key (file_id, index)
);
alter table file_pieces alter column data set storage external;
-- Files on their way. What is still here after an hour came from a broker that died.
create table file_uploads (
    id uuid not null,
    started_at timestamptz not null,
    constraint file_uploads_pkey primary key (id)
);
create index file_uploads_started_at_idx on file_uploads (started_at);
