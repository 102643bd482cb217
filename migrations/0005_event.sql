-- Events on their way out, what could not be handled, and messages to people.

create table outbox (
    -- UUID v7: ids sort by time.
    id uuid not null,
    subject text not null,
    headers jsonb not null,
    payload bytea not null,
    created_at timestamptz not null,
    constraint outbox_pkey primary key (id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);

create table dead_letters (
    id uuid not null,
    stream text not null,
    consumer text not null,
    subject text not null,
    headers jsonb not null,
    payload bytea not null,
    reason text not null,
    created_at timestamptz not null,
    constraint dead_letters_pkey primary key (id)
);

create table notification_messages (
    id uuid not null,
    notification_template_id uuid not null,
    user_id uuid not null,
    method text not null,
    payload jsonb not null,
    targets uuid[] not null default '{}',
    status text not null default 'pending',
    attempts integer not null default 0,
    next_attempt_at timestamptz,
    last_error text not null default '',
    -- Same template, user, method, payload and targets at most once a UTC day.
    dedupe_hash text not null,
    created_at timestamptz not null,
    sent_at timestamptz,
    constraint notification_messages_pkey primary key (id),
    constraint notification_messages_user_id_fkey foreign key (user_id) references users (id) on delete cascade,
    constraint notification_messages_dedupe_hash_key unique (dedupe_hash)
);
create index notification_messages_pending_idx on notification_messages (next_attempt_at) where status = 'pending';

create table notification_preferences (
    user_id uuid not null,
    notification_template_id uuid not null,
    disabled boolean not null,
    updated_at timestamptz not null,
    constraint notification_preferences_pkey primary key (user_id, notification_template_id),
    constraint notification_preferences_user_id_fkey foreign key (user_id) references users (id) on delete cascade
);

create table inbox_notifications (
    id uuid not null,
    user_id uuid not null,
    notification_template_id uuid not null,
    targets uuid[] not null default '{}',
    title text not null,
    content text not null,
    icon text not null default '',
    actions jsonb not null default '[]',
    read_at timestamptz,
    created_at timestamptz not null,
    constraint inbox_notifications_pkey primary key (id),
    constraint inbox_notifications_user_id_fkey foreign key (user_id) references users (id) on delete cascade
);
create index inbox_notifications_user_idx on inbox_notifications (user_id, created_at desc);
