-- What a claim writes beside its rows. Rows of these parents are never deleted, and whatever names one
-- has read it in the same statement: looking each up again, and locking it, was a sixth of the claim's
-- records, and everybody's claims met at the row of the organization and of the version.
alter table provisioner_jobs drop constraint provisioner_jobs_organization_id_fkey;
alter table workspaces drop constraint workspaces_owner_id_fkey;
alter table workspace_builds
    drop constraint workspace_builds_job_id_fkey,
    drop constraint workspace_builds_template_version_id_fkey,
    drop constraint workspace_builds_workspace_id_fkey;
alter table workspace_build_parameters drop constraint workspace_build_parameters_build_id_fkey;

-- A build runs the file of its version's import, which is enough to know whose the file is.
drop index provisioner_jobs_file_idx;
create index provisioner_jobs_file_idx on provisioner_jobs (file_id, organization_id)
    where kind <> 'workspace_build';

-- One index does for both: lines are listed newest first, and nothing names one by its id alone.
alter table audit_logs drop constraint audit_logs_pkey;
drop index audit_logs_created_at_idx;
alter table audit_logs add constraint audit_logs_pkey primary key (created_at, id);
