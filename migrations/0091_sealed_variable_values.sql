-- Values that were given for a version's variables, sealed by the vault. Which of them are secret is
-- known only once the import has read the template, so all are. Where encryption is off, or was when
-- the value came, it stands readable in `value` and the rest is NULL.
alter table template_version_variables
    add column sealed bytea,
    add column key_id text,
    add column data_key bytea,
    -- The version with which the value came: it is sealed for that one and the variable's name, and a
    -- later version that keeps the value has it as it is.
    add column given_in uuid,
    add constraint template_version_variables_sealed check (
        (sealed is null) = (key_id is null) and (key_id is null) = (data_key is null)
        and (sealed is null or value = '')
        and (sealed is null or given_in is not null)
    );
-- A secret's default is the template's business: whoever may read the archive finds it there.
update template_version_variables set default_value = '' where sensitive;
update template_version_variables set value = '' where sensitive and origin = 'default';
