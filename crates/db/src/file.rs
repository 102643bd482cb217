//! Uploaded archives.

use berth_domain::id::{FileId, TemplateId, UserId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// A file to be stored.
#[derive(Debug, Clone, Copy)]
pub struct NewFile<'a> {
    /// Its id, unless this user has stored the same content before.
    pub id: FileId,
    /// SHA-256 of the content, hexadecimal.
    pub hash: &'a str,
    /// Type of the content.
    pub mimetype: &'a str,
    /// Who sends it.
    pub created_by: UserId,
    /// The content.
    pub data: &'a [u8],
    /// When.
    pub now: Timestamp,
}

/// A stored file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its id.
    pub id: FileId,
    /// Who sent it.
    pub created_by: UserId,
    /// Type of the content.
    pub mimetype: String,
}

/// Stores a file and gives its id: the same content by the same user has the same one.
#[tracing::instrument(name = "db.file.insert", skip_all, fields(bytes = new.data.len()), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewFile<'_>) -> Result<FileId, DbError> {
    let id = sqlx::query_scalar!(
        "
        insert into files (id, hash, mimetype, created_by, created_at, data)
        values ($1, $2, $3, $4, $5, $6)
        on conflict (created_by, hash, kind) do update set mimetype = excluded.mimetype
        returning id",
        new.id.0,
        new.hash,
        new.mimetype,
        new.created_by.0,
        at(new.now),
        new.data
    )
    .fetch_one(db)
    .await?;
    Ok(FileId(id))
}

/// Looks a file up without its content.
#[tracing::instrument(name = "db.file.find", skip_all, fields(file.id = %id), err)]
pub async fn find(db: impl Executor<'_>, id: FileId) -> Result<Option<File>, DbError> {
    let row = sqlx::query!("select id, created_by, mimetype from files where id = $1", id.0)
        .fetch_optional(db)
        .await?;
    Ok(row.map(|row| File {
        id: FileId(row.id),
        created_by: UserId(row.created_by),
        mimetype: row.mimetype,
    }))
}

/// Templates of which a version is made of the file, 100 at most.
#[tracing::instrument(name = "db.file.list_templates", skip_all, fields(file.id = %id), err)]
pub async fn list_templates(db: impl Executor<'_>, id: FileId) -> Result<Vec<TemplateId>, DbError> {
    let ids = sqlx::query_scalar!(
        r#"
        select distinct v.template_id as "template_id!"
        from provisioner_jobs j join template_versions v on v.job_id = j.id
        where j.file_id = $1 and v.template_id is not null
        limit 100"#,
        id.0
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(TemplateId).collect())
}

/// The content of a file.
#[tracing::instrument(name = "db.file.get_data", skip_all, fields(file.id = %id), err)]
pub async fn get_data(db: impl Executor<'_>, id: FileId) -> Result<Vec<u8>, DbError> {
    let data = sqlx::query_scalar!(
        r#"
        select case
                   when f.size is null then f.data
                   else (
                       select coalesce(string_agg(p.data, ''::bytea order by p.index), '')
                       from file_pieces p where p.file_id = f.id
                   )
               end as "data!"
        from files f where f.id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?;
    data.ok_or_else(|| DbError::NotFound { what: "file", id: id.to_string() })
}
