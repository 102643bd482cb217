//! What an import found in a template version, and the files that jobs move.

use std::collections::BTreeMap;

use berth_domain::id::{FileId, JobId, OrganizationId, PresetId, UserId, VersionId};
use berth_domain::parameter::Parameter;
use berth_domain::preset::Preset;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A file to be stored.
#[derive(Debug, Clone)]
pub struct NewFile<'a> {
    /// Its id, unless the same content is stored already.
    pub id: FileId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// Lower-case hexadecimal SHA-256.
    pub hash: &'a str,
    /// `modules` or `archive`.
    pub kind: &'a str,
    /// Who it belongs to.
    pub created_by: UserId,
    /// Bytes of all its pieces.
    pub size: i64,
    /// When.
    pub now: Timestamp,
}

/// Stores the parameters of a version.
#[tracing::instrument(name = "db.import.insert_parameters", skip_all, fields(version.id = %version, rows = rows.len()), err)]
pub async fn insert_parameters(
    db: impl Executor<'_>,
    version: VersionId,
    rows: &[Parameter],
) -> Result<(), DbError> {
    let rows: Vec<Value> = rows
        .iter()
        .map(|it| {
            json!({
                "name": it.name, "display_name": it.display_name, "description": it.description,
                "type": it.kind, "form_type": it.form_type, "mutable": it.mutable,
                "default_value": it.default_value, "required": it.required,
                "ephemeral": it.ephemeral, "icon": it.icon, "options": it.options,
                "validation_regex": it.validation.regex.as_deref().unwrap_or_default(),
                "validation_error": it.validation.error,
                "validation_min": it.validation.min, "validation_max": it.validation.max,
                "validation_monotonic":
                    it.validation.monotonic.map(berth_domain::parameter::Monotonic::as_str).unwrap_or_default(),
                "display_order": it.order,
            })
        })
        .collect();
    sqlx::query!(
        "
        insert into template_version_parameters (
            template_version_id, name, display_name, description, type, form_type, mutable,
            default_value, required, ephemeral, icon, options, validation_regex, validation_error,
            validation_min, validation_max, validation_monotonic, display_order
        )
        select $1, r.name, r.display_name, r.description, r.type, r.form_type, r.mutable,
               r.default_value, r.required, r.ephemeral, r.icon, r.options, r.validation_regex,
               r.validation_error, r.validation_min, r.validation_max, r.validation_monotonic,
               r.display_order
        from jsonb_to_recordset($2) as r (
            name text, display_name text, description text, type text, form_type text,
            mutable boolean, default_value text, required boolean, ephemeral boolean, icon text,
            options jsonb, validation_regex text, validation_error text, validation_min bigint,
            validation_max bigint, validation_monotonic text, display_order integer
        )",
        version.0,
        Value::Array(rows)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Stores the presets of a version with their values and schedules, and a pool for each that has a
/// prebuild configuration, with the policy that its template's operators chose for it. Gives the
/// presets that are pools.
///
/// The template's lock comes first: a policy that is being changed is waited for, and one that
/// changes later finds these pools.
#[tracing::instrument(name = "db.import.insert_presets", skip_all, fields(version.id = %version, rows = presets.len()), err)]
pub async fn insert_presets(
    db: &mut crate::Connection,
    version: VersionId,
    presets: &[Preset],
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let rows: Vec<Value> = presets
        .iter()
        .map(|preset| {
            let (spec, pool) = (&preset.spec, preset.spec.prebuilds.as_ref());
            json!({
                "id": preset.id, "name": spec.name, "description": spec.description,
                "icon": spec.icon, "is_default": spec.is_default, "parameters": spec.parameters,
                "desired_instances": pool.map(|it| it.instances),
                "ttl_seconds": pool.map_or(0, |it| it.ttl_seconds),
                "scheduling_timezone": pool.map(|it| it.timezone.as_str()).unwrap_or_default(),
                "schedules": pool.map(|it| it.schedules.as_slice()).unwrap_or_default(),
            })
        })
        .collect();
    lock_template(&mut *db, version).await?;
    let pools: Vec<Uuid> = sqlx::query_scalar!(
        "
        with preset as (
            select * from jsonb_to_recordset($2) as r (
                id uuid, name text, description text, icon text, is_default boolean,
                parameters jsonb, desired_instances integer, ttl_seconds bigint,
                scheduling_timezone text, schedules jsonb
            )
        ), inserted as (
            insert into template_version_presets (
                id, template_version_id, name, description, icon, is_default, desired_instances,
                ttl_seconds, scheduling_timezone, created_at
            )
            select id, $1, name, description, icon, is_default, desired_instances, ttl_seconds,
                   scheduling_timezone, $3
            from preset
        ), valued as (
            insert into template_version_preset_parameters (preset_id, name, value)
            select p.id, v.key, v.value from preset p, jsonb_each_text(p.parameters) v
        ), scheduled as (
            insert into template_version_preset_schedules (preset_id, position, cron, desired_instances)
            select p.id, s.place::int, s.schedule ->> 'cron', (s.schedule ->> 'instances')::int
            from preset p, jsonb_array_elements(p.schedules) with ordinality as s (schedule, place)
        ), pools as (
            insert into prebuild_pools (
                preset_id, template_version_id, template_id, organization_id, policy, job_tags
            )
            select p.id, v.id, v.template_id, v.organization_id,
                   effective_pool_policy(v.template_id, p.name),
                   case when v.tag_rules is not null
                       then build_tags(j.tags, v.tag_rules, valued.names, valued.vals) end
            from preset p
            cross join template_versions v
            join provisioner_jobs j on j.id = v.job_id
            cross join lateral (
                select array_agg(d.name order by d.name) as names,
                       array_agg(coalesce(p.parameters ->> d.name, d.default_value) order by d.name)
                           as vals
                from template_version_parameters d where d.template_version_id = v.id
            ) valued
            where v.id = $1 and p.desired_instances is not null
            returning preset_id
        )
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $3 from pools
        returning preset_id",
        version.0,
        Value::Array(rows),
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(pools.into_iter().map(PresetId).collect())
}

async fn lock_template(db: impl Executor<'_>, version: VersionId) -> Result<(), DbError> {
    sqlx::query!(
        "
        select from templates t join template_versions v on v.template_id = t.id
        where v.id = $1
        for no key update of t",
        version.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Sets what those tags of a version are made of that depend on parameters. As an object of arrays of
/// texts and `{"parameter": name}`; none: its tags depend on nothing.
#[tracing::instrument(name = "db.import.set_tag_rules", skip_all, fields(version.id = %version), err)]
pub async fn set_tag_rules(
    db: impl Executor<'_>,
    version: VersionId,
    rules: &BTreeMap<String, Vec<TagPiece>>,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "update template_versions set tag_rules = $2, updated_at = $3 where id = $1",
        version.0,
        (!rules.is_empty()).then(|| json!(rules)),
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A piece of a tag's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TagPiece {
    /// A text.
    Text(String),
    /// The value of a parameter.
    Parameter {
        /// Its name.
        parameter: String,
    },
}

/// Points a version at its cached modules.
#[tracing::instrument(name = "db.import.set_modules", skip_all, fields(version.id = %version), err)]
pub async fn set_modules(
    db: impl Executor<'_>,
    version: VersionId,
    file: FileId,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "update template_versions set modules_file_id = $2, updated_at = $3 where id = $1",
        version.0,
        file.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Stores the README of a version.
#[tracing::instrument(name = "db.import.set_readme", skip_all, fields(version.id = %version), err)]
pub async fn set_readme(
    db: impl Executor<'_>,
    version: VersionId,
    readme: &str,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "update template_versions set readme = $2, updated_at = $3 where id = $1",
        version.0,
        readme,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Begins a file that is sent in pieces, and removes what brokers that died left of theirs.
#[tracing::instrument(name = "db.import.begin_upload", skip_all, fields(file.id = %id), err)]
pub async fn begin_upload(db: impl Executor<'_>, id: FileId) -> Result<(), DbError> {
    sqlx::query!(
        "
        with stale as (
            delete from file_uploads where started_at < now() - interval '1 hour' returning id
        ), pieces as (
            delete from file_pieces p using stale where p.file_id = stale.id
        )
        insert into file_uploads (id, started_at) values ($1, now())",
        id.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Stores a piece of a file on its way; pieces count from 0.
#[tracing::instrument(name = "db.import.insert_piece", level = "debug", skip_all, fields(file.id = %id, bytes = data.len()), err)]
pub async fn insert_piece(
    db: impl Executor<'_>,
    id: FileId,
    index: i32,
    data: &[u8],
) -> Result<(), DbError> {
    sqlx::query!(
        "insert into file_pieces (file_id, index, data) values ($1, $2, $3)",
        id.0,
        index,
        data
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets a file that did not arrive whole, or that is there already.
#[tracing::instrument(name = "db.import.abandon_upload", skip_all, fields(file.id = %id), err)]
pub async fn abandon_upload(db: impl Executor<'_>, id: FileId) -> Result<(), DbError> {
    sqlx::query!(
        "
        with upload as (delete from file_uploads where id = $1)
        delete from file_pieces where file_id = $1",
        id.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Makes a file of the pieces that arrived, once per content. Gives the stored one's id: where it is
/// another, the pieces are not needed.
#[tracing::instrument(name = "db.import.insert_file", skip_all, fields(bytes = new.size), err)]
pub async fn insert_file(db: impl Executor<'_>, new: &NewFile<'_>) -> Result<FileId, DbError> {
    let id = sqlx::query_scalar!(
        "
        with upload as (delete from file_uploads where id = $1)
        insert into files (
            id, organization_id, hash, kind, mimetype, created_by, created_at, data, size
        )
        values ($1, $2, $3, $4, 'application/x-tar', $5, $6, '', $7)
        on conflict (created_by, hash, kind) do update set organization_id = excluded.organization_id
        returning id",
        new.id.0,
        new.organization_id.0,
        new.hash,
        new.kind,
        new.created_by.0,
        at(new.now),
        new.size
    )
    .fetch_one(db)
    .await?;
    Ok(FileId(id))
}

/// A file of this content that the organization has from this user.
#[tracing::instrument(name = "db.import.find_same_file", skip_all, err)]
pub async fn find_same_file(
    db: impl Executor<'_>,
    organization: OrganizationId,
    user: UserId,
    (hash, kind): (&str, &str),
) -> Result<Option<FileId>, DbError> {
    let id = sqlx::query_scalar!(
        "
        select id from files
        where created_by = $2 and hash = $3 and kind = $4 and organization_id = $1",
        organization.0,
        user.0,
        hash,
        kind
    )
    .fetch_optional(db)
    .await?;
    Ok(id.map(FileId))
}

/// Kind, SHA-256 in hexadecimal and size of a file that jobs or versions of the organization use;
/// `None` for any other, whether it exists or not.
#[tracing::instrument(name = "db.import.find_used_file", skip_all, fields(file.id = %file), err)]
pub async fn find_used_file(
    db: impl Executor<'_>,
    organization: OrganizationId,
    file: FileId,
) -> Result<Option<(String, String, i64)>, DbError> {
    let row = sqlx::query!(
        r#"
        select f.kind, f.hash, coalesce(f.size, octet_length(f.data)) as "size!"
        from files f
        where f.id = $2 and (
            exists (
                select from provisioner_jobs j
                where j.file_id = $2 and j.organization_id = $1 and j.kind <> 'workspace_build'
            )
            or exists (
                select from template_versions v
                where v.modules_file_id = $2 and v.organization_id = $1
            )
        )"#,
        organization.0,
        file.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (row.kind, row.hash, row.size)))
}

/// A piece of a file, which have `len` bytes each and count from 0.
#[tracing::instrument(name = "db.import.read_piece", level = "debug", skip_all, fields(file.id = %file), err)]
pub async fn read_piece(
    db: impl Executor<'_>,
    file: FileId,
    index: i32,
    len: i32,
) -> Result<Option<Vec<u8>>, DbError> {
    let piece = sqlx::query_scalar!(
        r#"
        select case
                   when f.size is null then substring(f.data from $2::int * $3::int + 1 for $3)
                   else (select p.data from file_pieces p where p.file_id = f.id and p.index = $2)
               end as "piece"
        from files f where f.id = $1"#,
        file.0,
        index,
        len
    )
    .fetch_optional(db)
    .await?;
    Ok(piece.flatten())
}

/// The version that an import or dry run job is about.
#[tracing::instrument(name = "db.import.find_version", level = "debug", skip_all, fields(job.id = %job), err)]
pub async fn find_version(db: impl Executor<'_>, job: JobId) -> Result<Option<VersionId>, DbError> {
    let id = sqlx::query_scalar!("select id from template_versions where job_id = $1", job.0)
        .fetch_optional(db)
        .await?;
    Ok(id.map(VersionId))
}
