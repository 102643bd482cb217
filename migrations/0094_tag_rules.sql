-- Tags that depend on parameters. A version says what such a tag is made of: an array of texts and of
-- {"parameter": name}. The tags of its import job have the values that come of the defaults.
alter table template_versions add column tag_rules jsonb;
-- Tags of a pool's jobs where its version has rules; NULL: those of the version's import job.
alter table prebuild_pools add column job_tags jsonb;

-- The tags of a build with these parameters: a rule whose parameters are all there wins over what the
-- version's tags say.
create function build_tags(tags jsonb, rules jsonb, names text[], vals text[]) returns jsonb
language sql immutable parallel safe
return case when rules is null then tags else tags || coalesce((
    select jsonb_object_agg(made.name, made.value)
    from (
        select r.name,
               string_agg(
                   case jsonb_typeof(piece.it) when 'string' then piece.it #>> '{}' else given.val end,
                   '' order by piece.place) as value,
               bool_and(jsonb_typeof(piece.it) = 'string' or given.val is not null) as is_whole
        from jsonb_each(rules) as r (name, pieces)
        cross join lateral jsonb_array_elements(r.pieces) with ordinality as piece (it, place)
        left join lateral (
            select p.val from unnest(names, vals) as p (name, val)
            where p.name = piece.it ->> 'parameter'
            limit 1
        ) given on true
        group by r.name
    ) made
    where made.is_whole and made.value <> ''
), '{}') end;

-- Whether a daemon may run a job, both with normalised tags (domain::build::tags_match): the job's are
-- among the daemon's, and a job that asked for none needs a daemon that has none.
create function tags_fit(job jsonb, daemon jsonb) returns boolean
language sql immutable parallel safe
return job <@ daemon and (job <> '{"scope": "organization", "owner": ""}' or job = daemon);

-- Daemons that could take the job now, by name, at most 100.
create function available_daemons(job provisioner_jobs) returns uuid[]
language sql stable parallel safe
return array(
    select d.id from provisioner_daemons d
    where d.organization_id = job.organization_id and job.provisioner = any (d.provisioners)
      and d.disconnected_at is null and d.silent_at is null and tags_fit(job.tags, d.tags)
    order by d.name
    limit 100
);
