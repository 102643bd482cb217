//! The statement that hands a prebuild to its new owner.

use berth_domain::build::Tags;
use berth_domain::id::{FileId, OrganizationId, PresetId, TemplateId, VersionId, WorkspaceId};
use berth_domain::state::ProvisionerType;
use jiff::Timestamp;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::audit;
use crate::build::NewBuild;
use crate::outbox;
use crate::workspace::NewWorkspace;
use crate::{DbError, Executor, at};

/// Everything that a claim writes. What only the statement learns is left open: it is the nil id, or
/// 0, in `build.workspace_id`, in `audit.resource_id`, and in the events.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The pool that is asked.
    pub pool: PresetId,
    /// Whose it will be, and how.
    pub workspace: &'a NewWorkspace,
    /// The claim build.
    pub build: &'a NewBuild,
    /// Id of the attempt.
    pub attempt_id: Uuid,
    /// The version asked for; another one is built where the previous version serves.
    pub asked_version: VersionId,
    /// The preset asked for.
    pub asked_preset: Option<PresetId>,
    /// What the attempt tells where the previous version served.
    pub previous_detail: &'a Value,
    /// The line of the audit log.
    pub audit: &'a audit::Entry,
    /// The key that the request came with.
    pub key: Option<Key<'a>>,
    /// Events to be stored. Their subjects and payloads name the nil workspace.
    pub events: &'a [outbox::Row],
}

/// An idempotency key, whose user is the build's initiator.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// As it was sent.
    pub text: &'a str,
    /// SHA-256 of the request.
    pub body_hash: &'a [u8],
}

/// What came of it.
#[derive(Debug, Clone)]
pub enum Taken {
    /// A prebuild changed hands.
    Claimed(Box<Claimed>),
    /// The owner's quota does not cover the prebuild; nothing was written.
    OverQuota,
    /// There was none to be had; nothing was written.
    Nothing,
}

/// A prebuild that changed hands.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its template.
    pub template_id: TemplateId,
    /// Number of the claim build.
    pub build_number: i32,
    /// The workspace's revision from now on.
    pub revision: i64,
    /// Credits a day.
    pub daily_cost: i32,
    /// The tool that the job needs.
    pub provisioner: ProvisionerType,
    /// The archive that the job runs.
    pub file_id: FileId,
    /// Whose daemons may run it.
    pub tags: Tags,
    /// When the prebuild was made.
    pub prebuild_created_at: Timestamp,
    /// W3C trace context of whoever ordered the prebuild.
    pub prebuild_trace: Value,
    /// Its version is the template's previous one, kept until enough of the new one are ready.
    pub is_previous_version: bool,
    /// The events as they are stored.
    pub events: Vec<outbox::Row>,
}

/// Hands one claimable prebuild of the pool to its new owner, in one statement: the workspace, the
/// claim build with its parameters and job, the marks of the pools, the end of keys made for the
/// prebuild, the attempt, the line of the audit log, the idempotency key, and the events. Never waits
/// for a prebuild that somebody else is claiming. A name or a key that is in use fails with its
/// constraint, and nothing is written.
#[tracing::instrument(name = "db.claim.take", skip_all, fields(preset.id = %claim.pool), err)]
#[expect(clippy::too_many_lines, reason = "one statement, laid out")]
pub async fn take(db: impl Executor<'_>, claim: Claim<'_>) -> Result<Taken, DbError> {
    let Claim { workspace, build, audit, .. } = claim;
    let (names, values): (Vec<String>, Vec<String>) = build.parameters.iter().cloned().unzip();
    let ids: Vec<Uuid> = claim.events.iter().map(|it| it.id.0).collect();
    let subjects: Vec<String> = claim.events.iter().map(|it| it.subject.clone()).collect();
    let headers: Vec<Value> = claim.events.iter().map(|it| it.headers.clone()).collect();
    let payloads: Vec<Vec<u8>> = claim.events.iter().map(|it| it.payload.clone()).collect();
    let asked_preset = claim.asked_preset.map(|it| it.0);
    let row = sqlx::query!(
        r#"
        with candidate as (
            select w.id, w.created_at, w.organization_id, w.latest_build_id,
                   pool_standing(p, t) = 'previous' as is_previous
            from workspaces w
            join prebuild_pools p on p.preset_id = w.pool_preset_id
            -- By the pool: by the workspace, the planner may come from the template's workspaces.
            join templates t on t.id = p.template_id
            where w.pool_preset_id = $1 and is_claimable(w, p, t, $2)
            order by w.pool_expires_at nulls last, w.created_at, w.id
            limit 1
            for update of w skip locked
        ), charged as (
            select c.id, c.created_at, c.is_previous, coalesce(b.daily_cost, 0) as daily_cost
            from candidate c left join workspace_builds b on b.id = c.latest_build_id
            where coalesce(b.daily_cost, 0) = 0
               or quota_covers($3, c.organization_id, b.daily_cost)
        ), workspace as (
            update workspaces w
            set owner_id = $3, name = $4, autostart_schedule = $5, ttl_ms = $6,
                automatic_updates = $7, last_used_at = $2, updated_at = $2, dormant_at = null,
                deleting_at = null, pool_preset_id = null, pool_state = null,
                pool_ready_at = null, pool_expires_at = null, latest_build_id = $8,
                latest_build_number = w.latest_build_number + 1, revision = w.revision + 1
            from charged c
            where w.id = c.id
            returning w.id, w.organization_id, w.template_id, w.revision, w.latest_build_number,
                      c.created_at, c.is_previous, c.daily_cost
        ), version as (
            select v.id, v.provisioner, j.file_id, build_tags(j.tags, v.tag_rules, $17, $18) as tags,
                   case when v.tag_rules is null then j.tag_set_id end as tag_set_id
            from template_versions v join provisioner_jobs j on j.id = v.job_id
            where v.id = $9
        ), job as (
            insert into provisioner_jobs (
                id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
                tag_set_id, trace_metadata, created_at, updated_at
            )
            select $10, w.organization_id, $11, 'workspace_build', v.provisioner, $12, v.file_id,
                   jsonb_build_object('workspace_build_id', $8::uuid), v.tags, v.tag_set_id, $13, $2, $2
            from workspace w, version v
        ), build as (
            insert into workspace_builds (
                id, workspace_id, template_version_id, preset_id, build_number, transition,
                initiator_id, reason, stage, job_id, daily_cost, created_at, updated_at
            )
            select $8, w.id, v.id, $1, w.latest_build_number, $14, $11, $15, $16, $10,
                   w.daily_cost, $2, $2
            from workspace w, version v
        ), parameters as (
            insert into workspace_build_parameters (build_id, name, value)
            select $8, p.name, p.value
            from workspace, unnest($17::text[], $18::text[]) as p (name, value)
        ), revoked as (
            delete from api_keys k using workspace w where k.workspace_id = w.id
        ), marked as (
            -- The pool that was asked first may grow by what its predecessor lost.
            insert into prebuild_pool_marks (preset_id, created_at, claims)
            select m.preset_id, $2, m.claims
            from workspace, (values ($1::uuid, 1), ($19::uuid, 0)) as m (preset_id, claims)
            where m.claims = 1 or m.preset_id <> $1
        ), attempted as (
            insert into claim_attempts (
                id, created_at, organization_id, template_id, template_version_id, preset_id,
                user_id, workspace_id, build_id, outcome, detail, prebuild_created_at
            )
            select $20, $2, w.organization_id, w.template_id, $21, $19, $3, w.id, $8, 'hit',
                   case when w.is_previous then $22::jsonb else '{}' end, w.created_at
            from workspace w
        ), audited as (
            insert into audit_logs (
                id, created_at, actor_id, organization_id, action, resource_type, resource_id,
                resource_target, diff, request_id, ip, user_agent, status_code
            )
            select $23, $2, $11, w.organization_id, $24, $25, w.id, $4, $26, $27, $28, $29, $30
            from workspace w
        ), kept as (
            insert into idempotency_keys (user_id, key, body_hash, workspace_id, created_at)
            select $11, $31, $32, w.id, $2 from workspace w where $31::text is not null
        ), told as (
            insert into outbox (id, subject, headers, payload, created_at)
            select e.id,
                   replace(e.subject, '00000000-0000-0000-0000-000000000000', w.id::text),
                   e.headers,
                   convert_to((it.payload
                       || jsonb_build_object('workspace_id', w.id, 'revision', w.revision)
                       || case when it.payload ? 'build_number'
                          then jsonb_build_object('build_number', w.latest_build_number)
                          else '{}' end)::text, 'UTF8'),
                   $2
            from workspace w
            cross join unnest($33::uuid[], $34::text[], $35::jsonb[], $36::bytea[])
                as e (id, subject, headers, payload)
            cross join lateral (select convert_from(e.payload, 'UTF8')::jsonb) as it (payload)
            returning id, subject, payload
        )
        select exists (select from candidate) as "is_found!", w.id as "id?",
               w.organization_id as "organization_id?", w.template_id as "template_id?",
               w.revision as "revision?", w.latest_build_number as "latest_build_number?",
               w.daily_cost as "daily_cost?", w.created_at as "created_at?: jiff_sqlx::Timestamp",
               w.is_previous as "is_previous?", v.provisioner as "provisioner?",
               v.file_id as "file_id?", v.tags as "tags?: Json<Tags>", (
                   select j.trace_metadata
                   from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                   where b.workspace_id = w.id and b.build_number = 1
               ) as prebuild_trace,
               array(select id from told order by id) as "event_ids!",
               array(select subject from told order by id) as "event_subjects!",
               array(select payload from told order by id) as "event_payloads!"
        from (select) as always left join (workspace w cross join version v) on true"#,
        claim.pool.0,
        at(build.now),
        workspace.owner_id.0,
        workspace.name,
        workspace.autostart_schedule,
        workspace.ttl_ms,
        workspace.automatic_updates,
        build.id.0,
        build.version_id.0,
        build.job_id.0,
        build.initiator_id.0,
        build.class.rank(),
        build.trace,
        build.transition.as_str(),
        build.reason.as_str(),
        build.stage.as_str(),
        &names,
        &values,
        asked_preset,
        claim.attempt_id,
        claim.asked_version.0,
        claim.previous_detail,
        audit.id,
        audit.action,
        audit.resource_type,
        audit.diff,
        audit.request_id,
        audit.ip,
        audit.user_agent,
        audit.status_code,
        claim.key.map(|it| it.text),
        claim.key.map(|it| it.body_hash),
        &ids,
        &subjects,
        &headers,
        &payloads
    )
    .fetch_one(db)
    .await?;
    let (Some(id), Some(organization), Some(template)) =
        (row.id, row.organization_id, row.template_id)
    else {
        return Ok(if row.is_found { Taken::OverQuota } else { Taken::Nothing });
    };
    let stored = row.event_ids.into_iter().zip(row.event_subjects).zip(row.event_payloads);
    let events = stored.map(|((id, subject), payload)| {
        let event = claim.events.iter().find(|it| it.id.0 == id);
        let headers = event.map(|it| it.headers.clone()).unwrap_or_default();
        let id = berth_domain::id::EventId(id);
        outbox::Row { id, subject, headers, payload, created_at: build.now }
    });
    Ok(Taken::Claimed(Box::new(Claimed {
        workspace_id: WorkspaceId(id),
        organization_id: OrganizationId(organization),
        template_id: TemplateId(template),
        build_number: row.latest_build_number.unwrap_or_default(),
        revision: row.revision.unwrap_or_default(),
        daily_cost: row.daily_cost.unwrap_or_default(),
        provisioner: row.provisioner.unwrap_or_default().parse()?,
        file_id: FileId(row.file_id.unwrap_or_default()),
        tags: row.tags.map(|it| it.0).unwrap_or_default(),
        prebuild_created_at: row.created_at.map_or(build.now, jiff_sqlx::Timestamp::to_jiff),
        prebuild_trace: row.prebuild_trace.unwrap_or_default(),
        is_previous_version: row.is_previous.unwrap_or_default(),
        events: events.collect(),
    })))
}
