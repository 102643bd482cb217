-- Creations that failed in a row for reasons that are not the template's (infrastructure, quota): they
-- never open the breaker, but the next attempt waits, or a machine that fails at once would be asked
-- again at once, for ever. Builds that were made before the last setback count with it.
alter table prebuild_pools
    add column setbacks int not null default 0,
    add column setback_at timestamptz;
