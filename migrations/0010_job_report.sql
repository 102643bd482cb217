-- What reports on jobs need beyond the first cut.

-- SHA-256 of the terminal report, so that the same report sent twice is one and another is refused.
alter table provisioner_jobs add column report_digest bytea;

-- The coder_agent's own id in the provisioner state: how a claim build tells which token is whose.
alter table workspace_agents add column state_id text not null default '';

-- Who uses a file: asked on each download.
create index provisioner_jobs_file_idx on provisioner_jobs (file_id, organization_id);
create index template_versions_modules_file_idx on template_versions (modules_file_id, organization_id)
    where modules_file_id is not null;
