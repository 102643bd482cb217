//! Variables of template versions: what a version declares, and the values that people gave, sealed.

use berth_domain::id::{FileId, VersionId};
use serde_json::json;
use uuid::Uuid;

use crate::{DbError, Executor, Stored};

/// A variable that a template declares.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its type, as the tool spells it.
    pub r#type: String,
    /// Its value where none is given; empty where it is secret.
    pub default_value: String,
    /// Has no default.
    pub required: bool,
    /// Not to be shown.
    pub sensitive: bool,
}

/// A value that came with a version.
#[derive(Debug, Clone)]
pub struct NewValue {
    /// The variable's name.
    pub name: String,
    /// The value, sealed for the version and the name. Without a seal it is UTF-8.
    pub value: Stored,
}

/// A value that somebody gave a variable.
#[derive(Debug, Clone)]
pub struct Value {
    /// The variable's name.
    pub name: String,
    /// The value as it is stored.
    pub value: Stored,
    /// The version that it is sealed for: the one that it came with, which may be an earlier one.
    pub given_in: VersionId,
    /// Not to be shown.
    pub sensitive: bool,
}

/// A variable of a version.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its type, as the tool spells it.
    pub kind: String,
    /// What is used when no value is given; empty where it is secret.
    pub default_value: String,
    /// The value that was given; `None`: none was, or it may not be shown.
    pub value: Option<(Stored, VersionId)>,
    /// A value must be given.
    pub required: bool,
    /// Its value is never shown.
    pub sensitive: bool,
}

/// Values as the columns of `unnest`.
#[derive(Default)]
pub(crate) struct Columns {
    pub(crate) names: Vec<String>,
    pub(crate) plain: Vec<String>,
    pub(crate) sealed: Vec<Option<Vec<u8>>>,
    pub(crate) key_ids: Vec<Option<String>>,
    pub(crate) data_keys: Vec<Option<Vec<u8>>>,
}

impl Columns {
    pub(crate) fn of(values: &[NewValue]) -> Self {
        let mut columns = Self::default();
        for NewValue { name, value } in values {
            let (plain, sealed) = split(value);
            columns.names.push(name.clone());
            columns.plain.push(plain);
            columns.sealed.push(sealed.map(<[u8]>::to_vec));
            columns.key_ids.push(value.key_id().map(ToOwned::to_owned));
            columns.data_keys.push(value.data_key().map(<[u8]>::to_vec));
        }
        columns
    }
}

/// What goes into `value` and into `sealed`.
fn split(stored: &Stored) -> (String, Option<&[u8]>) {
    match stored.seal {
        Some(_) => (String::new(), Some(stored.bytes.as_slice())),
        None => (String::from_utf8_lossy(&stored.bytes).into_owned(), None),
    }
}

/// The values that somebody gave the variables of a version. Any other has the default that the
/// template says, and needs no mention.
#[tracing::instrument(name = "db.variable.list_values", skip_all, fields(version.id = %version), err)]
pub async fn list_values(db: impl Executor<'_>, version: VersionId) -> Result<Vec<Value>, DbError> {
    let rows = sqlx::query!(
        r#"
        select name, coalesce(sealed, convert_to(value, 'UTF8')) as "value!", key_id, data_key,
               coalesce(given_in, template_version_id) as "given_in!", sensitive
        from template_version_variables
        where template_version_id = $1 and origin <> 'default' order by name"#,
        version.0
    )
    .fetch_all(db)
    .await?;
    let values = rows.into_iter().map(|row| Value {
        name: row.name,
        value: Stored::new(row.value, row.key_id, row.data_key),
        given_in: VersionId(row.given_in),
        sensitive: row.sensitive,
    });
    Ok(values.collect())
}

/// What imports and dry runs of a version are given.
#[derive(Debug, Clone)]
pub struct Given {
    /// The version.
    pub version_id: VersionId,
    /// The modules that its import kept.
    pub modules_file_id: Option<FileId>,
    /// Values that somebody gave its variables, as in [`list_values`].
    pub values: Vec<Value>,
}

/// What imports and dry runs of these versions are given; a version that does not exist is left out.
#[tracing::instrument(name = "db.variable.list_given", level = "debug", skip_all, fields(versions = versions.len()), err)]
pub async fn list_given(
    db: impl Executor<'_>,
    versions: &[VersionId],
) -> Result<Vec<Given>, DbError> {
    let versions: Vec<Uuid> = versions.iter().map(|it| it.0).collect();
    let rows = sqlx::query!(
        r#"
        select v.id, v.modules_file_id, t.name as "name?",
               coalesce(t.sealed, convert_to(t.value, 'UTF8')) as value,
               t.key_id as "key_id?", t.data_key as "data_key?",
               coalesce(t.given_in, t.template_version_id) as given_in,
               t.sensitive as "sensitive?"
        from template_versions v
        left join template_version_variables t
            on t.template_version_id = v.id and t.origin <> 'default'
        where v.id = any($1)
        order by v.id, t.name"#,
        &versions
    )
    .fetch_all(db)
    .await?;
    let mut found: Vec<Given> = Vec::new();
    for row in rows {
        let version_id = VersionId(row.id);
        if found.last().is_none_or(|it| it.version_id != version_id) {
            let modules_file_id = row.modules_file_id.map(FileId);
            found.push(Given { version_id, modules_file_id, values: Vec::new() });
        }
        if let (Some(name), Some(value), Some(given_in), Some(sensitive)) =
            (row.name, row.value, row.given_in, row.sensitive)
            && let Some(version) = found.last_mut()
        {
            let value = Stored::new(value, row.key_id, row.data_key);
            let given_in = VersionId(given_in);
            version.values.push(Value { name, value, given_in, sensitive });
        }
    }
    Ok(found)
}

/// The variables of a version, by name, with those values that may be shown.
#[tracing::instrument(name = "db.variable.list", skip_all, fields(version.id = %version), err)]
pub async fn list(db: impl Executor<'_>, version: VersionId) -> Result<Vec<Variable>, DbError> {
    let rows = sqlx::query!(
        r#"
        select name, description, type as kind, default_value, required, hidden as "sensitive!",
               case when not hidden then coalesce(sealed, convert_to(value, 'UTF8')) end as value,
               key_id, data_key, coalesce(given_in, template_version_id) as "given_in!"
        from template_version_variables,
             -- What the import has not read yet may turn out to be a secret.
             lateral (select sensitive or not declared as hidden) h
        where template_version_id = $1 order by name"#,
        version.0
    )
    .fetch_all(db)
    .await?;
    let variables = rows.into_iter().map(|row| Variable {
        name: row.name,
        description: row.description,
        kind: row.kind,
        default_value: row.default_value,
        value: row
            .value
            .map(|bytes| (Stored::new(bytes, row.key_id, row.data_key), VersionId(row.given_in))),
        required: row.required,
        sensitive: row.sensitive,
    });
    Ok(variables.collect())
}

/// Stores the variables that a version declares. A value that was given with the version, or kept
/// from the one before, stays; any other has its default.
#[tracing::instrument(name = "db.variable.put", skip_all, fields(version.id = %version, rows = rows.len()), err)]
pub async fn put(
    db: impl Executor<'_>,
    version: VersionId,
    rows: &[Declared],
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into template_version_variables as v (
            template_version_id, name, description, type, default_value, value, required, sensitive
        )
        select $1, r.name, r.description, r.type, d.value, d.value, r.required, r.sensitive
        from jsonb_to_recordset($2) as r (
                 name text, description text, type text, default_value text, required boolean,
                 sensitive boolean
             ),
             -- The template has a secret's default; nobody needs it from here.
             lateral (select case when r.sensitive then '' else r.default_value end as value) d
        on conflict on constraint template_version_variables_pkey do update
        set description = excluded.description, type = excluded.type,
            default_value = excluded.default_value, required = excluded.required,
            sensitive = excluded.sensitive, declared = true,
            value = case when v.origin = 'default' then excluded.value else v.value end",
        version.0,
        json!(rows)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets values that were kept for variables which the version does not declare any more, and
/// gives the names of those that were given for variables it never declared.
#[tracing::instrument(name = "db.variable.settle", skip_all, fields(version.id = %version), err)]
pub async fn settle(db: impl Executor<'_>, version: VersionId) -> Result<Vec<String>, DbError> {
    let names = sqlx::query_scalar!(
        "
        with forgotten as (
            delete from template_version_variables
            where template_version_id = $1 and not declared and origin = 'kept'
        )
        select name from template_version_variables
        where template_version_id = $1 and not declared and origin = 'given'
        order by name",
        version.0
    )
    .fetch_all(db)
    .await?;
    Ok(names)
}

/// A stored value as an operator's change of keys sees it.
#[derive(Debug, Clone)]
pub struct Keyed {
    /// The version that has it.
    pub version: VersionId,
    /// The variable's name.
    pub name: String,
    /// The version that it is sealed for.
    pub given_in: VersionId,
    /// The value.
    pub value: Stored,
}

/// The first `limit` given values after this version and name, in their order, that another key than
/// `key_id` sealed or none.
#[tracing::instrument(name = "db.variable.list_keyed_otherwise", skip_all, err)]
pub async fn list_keyed_otherwise(
    db: impl Executor<'_>,
    key_id: Option<&str>,
    (version, name): (VersionId, &str),
    limit: i64,
) -> Result<Vec<Keyed>, DbError> {
    let rows = sqlx::query!(
        r#"
        select template_version_id, name, coalesce(given_in, template_version_id) as "given_in!",
               coalesce(sealed, convert_to(value, 'UTF8')) as "value!", key_id, data_key
        from template_version_variables
        where (template_version_id, name) > ($2, $3) and origin <> 'default'
          and key_id is distinct from $1
        order by template_version_id, name limit $4"#,
        key_id,
        version.0,
        name,
        limit
    )
    .fetch_all(db)
    .await?;
    let keyed = rows.into_iter().map(|row| Keyed {
        version: VersionId(row.template_version_id),
        name: row.name,
        given_in: VersionId(row.given_in),
        value: Stored::new(row.value, row.key_id, row.data_key),
    });
    Ok(keyed.collect())
}

/// Replaces a value that is still stored as it was read; `false`: it is another by now.
#[tracing::instrument(name = "db.variable.replace", skip_all, fields(version.id = %old.version), err)]
pub async fn replace(db: impl Executor<'_>, old: &Keyed, new: &Stored) -> Result<bool, DbError> {
    let (plain, sealed) = split(new);
    let done = sqlx::query!(
        "
        update template_version_variables
        set value = $4, sealed = $5, key_id = $6, data_key = $7, given_in = $8
        where template_version_id = $1 and name = $2 and data_key is not distinct from $3
          and origin <> 'default'",
        old.version.0,
        old.name,
        old.value.data_key(),
        plain,
        sealed,
        new.key_id(),
        new.data_key(),
        old.given_in.0
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
