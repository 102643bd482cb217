//! Template versions: what is imported, and what the import read.

use berth_domain::build::Tags;
use berth_domain::id::{FileId, JobId, OrganizationId, TemplateId, UserId, VersionId};
use berth_domain::parameter::{Parameter, ParameterOption, Validation};
use berth_domain::state::{JobClass, JobStatus, ProvisionerType};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::variable::{Columns, NewValue};
use crate::{DbError, Executor, at};

/// A version to be imported.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// Its id.
    pub id: VersionId,
    /// Its import job's id.
    pub job_id: JobId,
    /// Where.
    pub organization_id: OrganizationId,
    /// Its template, unless that is still to be made.
    pub template_id: Option<TemplateId>,
    /// Its name, unique in the template.
    pub name: String,
    /// What changed.
    pub message: String,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
    /// The archive.
    pub file_id: FileId,
    /// Values of template variables, each sealed for this version. Names are unique.
    pub variables: Vec<NewValue>,
    /// Which daemons may run its jobs.
    pub tags: Tags,
    /// Who sends it.
    pub created_by: UserId,
    /// W3C trace context of whoever asks.
    pub trace: Value,
    /// When.
    pub now: Timestamp,
}

/// Stores a version, its import job, and the values of its variables, in one statement. A variable
/// for which none is given keeps the value that was given for the template's active version.
#[tracing::instrument(name = "db.version.insert", skip_all, fields(version.id = %new.id), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewVersion) -> Result<(), DbError> {
    let input = serde_json::json!({ "template_version_id": new.id });
    let values = Columns::of(&new.variables);
    sqlx::query!(
        "
        with job as (
            insert into provisioner_jobs (
                id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
                trace_metadata, created_at, updated_at
            )
            values ($2, $3, $4, 'template_version_import', $5, $6, $7, $8, $9, $10, $11, $11)
        ), given as (
            select * from unnest($15::text[], $16::text[], $17::bytea[], $18::text[], $19::bytea[])
                as g (name, value, sealed, key_id, data_key)
        ), valued as (
            insert into template_version_variables (
                template_version_id, name, sensitive, origin, declared, value, sealed, key_id,
                data_key, given_in
            )
            select $1::uuid, name, false, 'given', false, value, sealed, key_id, data_key, $1::uuid
            from given
            union all
            select $1::uuid, o.name, o.sensitive, 'kept', false, o.value, o.sealed, o.key_id,
                   o.data_key, coalesce(o.given_in, o.template_version_id)
            from templates t
            join template_version_variables o on o.template_version_id = t.active_version_id
            where t.id = $12 and o.origin <> 'default'
              and not exists (select from given g where g.name = o.name)
        )
        insert into template_versions (
            id, template_id, organization_id, name, message, job_id, provisioner, created_by,
            created_at, updated_at
        )
        values ($1, $12, $3, $13, $14, $2, $5, $4, $11, $11)",
        new.id.0,
        new.job_id.0,
        new.organization_id.0,
        new.created_by.0,
        new.provisioner.as_str(),
        JobClass::Template.rank(),
        new.file_id.0,
        input,
        serde_json::json!(new.tags),
        new.trace,
        at(new.now),
        new.template_id.map(|it| it.0),
        new.name,
        new.message,
        &values.names,
        &values.plain,
        &values.sealed as _,
        &values.key_ids as _,
        &values.data_keys as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A version.
#[derive(Debug, Clone)]
pub struct Version {
    /// Its id.
    pub id: VersionId,
    /// Its template, once it has one.
    pub template_id: Option<TemplateId>,
    /// Where.
    pub organization_id: OrganizationId,
    /// Its name.
    pub name: String,
    /// What changed.
    pub message: String,
    /// The README of the archive.
    pub readme: String,
    /// Its import job.
    pub job_id: JobId,
    /// Where that stands.
    pub job_status: JobStatus,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
    /// Put away.
    pub archived: bool,
    /// Who sent it.
    pub created_by: UserId,
    /// His name.
    pub created_by_name: String,
    /// His picture.
    pub created_by_avatar: String,
    /// When it was sent.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
}

struct Row {
    id: Uuid,
    template_id: Option<Uuid>,
    organization_id: Uuid,
    name: String,
    message: String,
    readme: String,
    job_id: Uuid,
    job_status: String,
    provisioner: String,
    archived: bool,
    created_by: Uuid,
    username: String,
    avatar_url: String,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
}

impl TryFrom<Row> for Version {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: VersionId(row.id),
            template_id: row.template_id.map(TemplateId),
            organization_id: OrganizationId(row.organization_id),
            name: row.name,
            message: row.message,
            readme: row.readme,
            job_id: JobId(row.job_id),
            job_status: row.job_status.parse()?,
            provisioner: row.provisioner.parse()?,
            archived: row.archived,
            created_by: UserId(row.created_by),
            created_by_name: row.username,
            created_by_avatar: row.avatar_url,
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        })
    }
}

/// Which versions.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// This one.
    pub id: Option<VersionId>,
    /// Of this template.
    pub template: Option<TemplateId>,
    /// Of this name, whatever the case.
    pub name: Option<String>,
    /// Those put away, too.
    pub archived: bool,
    /// Behind this one.
    pub after_id: Option<Uuid>,
    /// Rows at most.
    pub limit: i64,
    /// Rows left out.
    pub offset: i64,
}

/// Looks a version up.
pub async fn find(db: impl Executor<'_>, id: VersionId) -> Result<Option<Version>, DbError> {
    let filter = Filter { id: Some(id), archived: true, limit: 1, ..Filter::default() };
    Ok(list(db, &filter).await?.pop())
}

/// Lists versions, newest first.
#[tracing::instrument(name = "db.version.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>, filter: &Filter) -> Result<Vec<Version>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select v.id, v.template_id, v.organization_id, v.name, v.message, v.readme, v.job_id,
               j.status as "job_status!", v.provisioner, v.archived, v.created_by, u.username,
               u.avatar_url, v.created_at, v.updated_at
        from template_versions v
        join provisioner_jobs j on j.id = v.job_id
        join users u on u.id = v.created_by
        where ($1::uuid is null or v.id = $1)
          and ($2::uuid is null or v.template_id = $2)
          and ($3::text is null or lower(v.name) = lower($3))
          and ($4 or not v.archived)
          and ($5::uuid is null or (v.created_at, v.id) < (
              select created_at, id from template_versions where id = $5
          ))
        order by v.created_at desc, v.id desc
        limit $6 offset $7"#,
        filter.id.map(|it| it.0),
        filter.template.map(|it| it.0),
        filter.name,
        filter.archived,
        filter.after_id,
        filter.limit,
        filter.offset
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Version::try_from).collect()
}

/// Changes name and message. `false`: there is no such version.
#[tracing::instrument(name = "db.version.rename", skip_all, fields(version.id = %id), err)]
pub async fn rename(
    db: impl Executor<'_>,
    id: VersionId,
    texts: (&str, &str),
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "update template_versions set name = $2, message = $3, updated_at = $4 where id = $1",
        id.0,
        texts.0,
        texts.1,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What archiving a version comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archived {
    /// It is as asked, now or before.
    Done,
    /// It is the template's active version, or is becoming it.
    InUse,
}

/// Puts a version away, or takes it out again. What is in use by its template stays; the template's
/// lock comes first, so that no promotion overtakes.
#[tracing::instrument(name = "db.version.set_archived", skip_all, fields(version.id = %id), err)]
pub async fn set_archived(
    db: &mut crate::Connection,
    id: VersionId,
    archived: bool,
    now: Timestamp,
) -> Result<Archived, DbError> {
    sqlx::query!(
        "
        select from templates t join template_versions v on v.template_id = t.id
        where v.id = $1
        for no key update of t",
        id.0
    )
    .execute(&mut *db)
    .await?;
    let done = sqlx::query!(
        "
        update template_versions v set archived = $2, updated_at = $3
        where v.id = $1 and not ($2 and exists (
            select from templates t
            where v.id in (t.active_version_id, t.candidate_version_id)
        ))",
        id.0,
        archived,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(if done.rows_affected() == 1 { Archived::Done } else { Archived::InUse })
}

/// Asks for the end of an import. A job that no daemon has ends at once. `None`: it has ended
/// already, or a cancel was asked before.
#[tracing::instrument(name = "db.version.cancel_import", skip_all, fields(job.id = %job), err)]
pub async fn cancel_import(
    db: impl Executor<'_>,
    job: JobId,
    by: UserId,
    now: Timestamp,
) -> Result<Option<JobStatus>, DbError> {
    let status = sqlx::query_scalar!(
        r#"
        update provisioner_jobs
        set canceled_at = $2::timestamptz, canceled_by = $3, updated_at = $2::timestamptz,
            completed_at = case when started_at is null then $2::timestamptz end
        where id = $1 and completed_at is null and canceled_at is null
        returning status as "status!""#,
        job.0,
        at(now),
        by.0
    )
    .fetch_optional(db)
    .await?;
    Ok(status.map(|it| it.parse()).transpose()?)
}

/// The parameters of a version, in the order of its form.
#[tracing::instrument(name = "db.version.list_parameters", skip_all, fields(version.id = %id), err)]
pub async fn list_parameters(
    db: impl Executor<'_>,
    id: VersionId,
) -> Result<Vec<Parameter>, DbError> {
    let rows = sqlx::query!(
        "
        select name, display_name, description, type as kind, form_type, mutable, default_value,
               required, ephemeral, icon, options, validation_regex, validation_error,
               validation_min, validation_max, validation_monotonic, display_order
        from template_version_parameters
        where template_version_id = $1
        order by display_order, name",
        id.0
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let options: Vec<ParameterOption> = serde_json::from_value(row.options)
                .map_err(|source| DbError::Json { what: "parameter options", source })?;
            let text = |it: String| (!it.is_empty()).then_some(it);
            Ok(Parameter {
                name: row.name,
                display_name: row.display_name,
                description: row.description,
                kind: row.kind.parse()?,
                mutable: row.mutable,
                default_value: row.default_value,
                icon: row.icon,
                options,
                validation: Validation {
                    regex: text(row.validation_regex),
                    min: row.validation_min,
                    max: row.validation_max,
                    monotonic: text(row.validation_monotonic).map(|it| it.parse()).transpose()?,
                    error: row.validation_error,
                },
                required: row.required,
                ephemeral: row.ephemeral,
                form_type: row.form_type.parse()?,
                order: row.display_order,
            })
        })
        .collect()
}
