-- The policy that holds for a preset of a template: the template's with the preset's own laid over
-- it. Whoever writes prebuild_pools.policy asks here.
create function effective_pool_policy(template uuid, preset text) returns jsonb
language sql stable parallel safe
return coalesce((
        select policy from prebuild_pool_policies where template_id = template and preset_name = ''
    ), '{}')
    || coalesce((
        select policy from prebuild_pool_policies where template_id = template and preset_name = preset
    ), '{}');
