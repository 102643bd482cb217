//! Presets of template versions.

use berth_domain::id::{PresetId, VersionId};

use crate::{DbError, Executor};

/// A preset.
#[derive(Debug, Clone)]
pub struct Preset {
    /// Its id; also its pool's.
    pub id: PresetId,
    /// Its name, unique in the version.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// The one that a form proposes.
    pub is_default: bool,
    /// How many prebuilds it keeps; `None`: it has no pool.
    pub desired_instances: Option<i32>,
    /// Name and value of each parameter that it sets.
    pub parameters: Vec<(String, String)>,
}

/// The presets of a version, by name, the default one first.
#[tracing::instrument(name = "db.preset.list", skip_all, fields(version.id = %version), err)]
pub async fn list(db: impl Executor<'_>, version: VersionId) -> Result<Vec<Preset>, DbError> {
    let rows = sqlx::query!(
        r#"
        select p.id, p.name, p.description, p.icon, p.is_default, p.desired_instances,
               array(
                   select v.name from template_version_preset_parameters v
                   where v.preset_id = p.id order by v.name
               ) as "names!",
               array(
                   select v.value from template_version_preset_parameters v
                   where v.preset_id = p.id order by v.name
               ) as "values!"
        from template_version_presets p
        where p.template_version_id = $1
        order by p.is_default desc, p.name"#,
        version.0
    )
    .fetch_all(db)
    .await?;
    let presets = rows.into_iter().map(|row| Preset {
        id: PresetId(row.id),
        name: row.name,
        description: row.description,
        icon: row.icon,
        is_default: row.is_default,
        desired_instances: row.desired_instances,
        parameters: row.names.into_iter().zip(row.values).collect(),
    });
    Ok(presets.collect())
}
