-- Where the value of a template variable comes from, and whether the template declares it.

alter table template_version_variables
    add column origin text not null default 'default',
    -- Values come with the push; what the template declares is known once the import has read it.
    add column declared boolean not null default true,
    -- 'given' with this version, 'kept' from the one before, or the template's own 'default'.
    add constraint template_version_variables_origin_check check (origin in ('given', 'kept', 'default'));
update template_version_variables set origin = 'given' where value <> default_value;
