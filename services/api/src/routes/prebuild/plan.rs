//! The dry run: what the reconciler would do with a template's pools. Nothing is written.

use axum::extract::State;
use berth_db::pool::{self, Observed};
use berth_db::prebuild::{self, Filter, Pool};
use berth_domain::authz::Action;
use berth_domain::id::TemplateId;
use berth_domain::plan::{SNAPSHOT_VERSION, SnapshotFile, plan};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::words;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Path, Query};
use crate::routes::template;

/// Most pools of one answer.
const POOLS_MAX: usize = 100;
/// Most instances that a dry run may suppose.
const INSTANCES_MAX: i32 = 10_000;
/// How far from now a dry run may be.
const AWAY_MAX: SignedDuration = SignedDuration::from_hours(366 * 24);

#[derive(Deserialize)]
pub(super) struct PlanQuery {
    at: Option<String>,
    instances: Option<String>,
    preset: Option<String>,
    #[serde(default)]
    snapshot: bool,
}

impl PlanQuery {
    fn at(&self, now: Timestamp) -> Result<Timestamp, ApiError> {
        let Some(text) = &self.at else { return Ok(now) };
        let refuse = |why: String| ApiError::field("at", why);
        let at: Timestamp = text.parse().map_err(|_| {
            refuse(format!("is {text:?}; give a time such as 2026-12-24T18:00:00Z"))
        })?;
        if at.duration_since(now).abs() > AWAY_MAX {
            return Err(refuse(format!("is {at}; give a time within 366 days of now")));
        }
        Ok(at)
    }

    fn instances(&self) -> Result<Option<i32>, ApiError> {
        let Some(text) = &self.instances else { return Ok(None) };
        match text.parse::<i32>() {
            Ok(it) if (0..=INSTANCES_MAX).contains(&it) => Ok(Some(it)),
            _ => {
                let why = format!("is {text:?}; give a whole number from 0 to {INSTANCES_MAX}");
                Err(ApiError::field("instances", why))
            }
        }
    }
}

/// Pools with all that their plans are made from, read as of one moment.
pub(super) struct Reading {
    /// At most [`POOLS_MAX`].
    pub(super) pools: Vec<(Pool, Observed)>,
    /// Pools that did not fit.
    pub(super) left_out: usize,
}

/// Reads a template's pools that are in use or have members, or those of one preset name.
pub(super) async fn read(
    app: &App,
    template: TemplateId,
    preset: Option<&str>,
    now: Timestamp,
) -> Result<Reading, ApiError> {
    let mut reading = berth_db::begin_reading(app.db()).await?;
    let filter = Filter { template: Some(template), preset_name: preset, ..Filter::default() };
    let mut found = prebuild::list_pools(&mut *reading, filter, now).await?;
    if let (Some(preset), true) = (preset, found.is_empty()) {
        let why = format!("{preset:?} is no preset of this template with prebuilds");
        return Err(ApiError::field("preset", why));
    }
    let left_out = found.len().saturating_sub(POOLS_MAX);
    found.truncate(POOLS_MAX);
    let mut pools = Vec::with_capacity(found.len());
    for pool in found {
        let settings = &app.config.prebuilds;
        let observed = pool::observe(&mut *reading, pool.preset_id, settings, now).await?;
        pools.extend(observed.map(|it| (pool, it)));
    }
    Ok(Reading { pools, left_out })
}

/// What every answer says of a pool.
pub(super) fn describe(pool: &Pool) -> Value {
    json!({
        "preset_id": pool.preset_id,
        "preset_name": pool.preset_name,
        "template_version_id": pool.version_id,
        "template_version_name": pool.version_name,
        "standing": pool.standing,
        "status": pool.status,
    })
}

/// Adds the fields of `more` to `value`.
pub(super) fn extend(value: &mut Value, more: Value) {
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
}

/// The plans that `domain::plan` makes of the pools as they are, at `at` and with `instances` for
/// the base count.
#[tracing::instrument(name = "http.prebuild.plan", skip_all)]
pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TemplateId>,
    Query(query): Query<PlanQuery>,
) -> Result<Json<Value>, ApiError> {
    let template = template::find(&app, &caller, id, Action::Update).await?;
    let now = app.now();
    let (at, instances) = (query.at(now)?, query.instances()?);
    let reading = read(&app, id, query.preset.as_deref(), now).await?;
    let pools = reading.pools.into_iter().map(|(pool, observed)| {
        let Observed { pool: locked, policy, snapshot } = observed;
        let mut config = locked.config;
        if let (Some(prebuilds), Some(instances)) = (&mut config.prebuilds, instances) {
            prebuilds.instances = instances;
        }
        let mut value = describe(&pool);
        extend(&mut value, words::plan(&plan(&config, &policy, &snapshot, at)));
        if query.snapshot {
            let file = SnapshotFile {
                version: SNAPSHOT_VERSION,
                now: at,
                preset: config,
                policy,
                state: snapshot,
            };
            value["snapshot"] = json!(file);
        }
        value
    });
    Ok(Json(json!({
        "template_id": id,
        "template_name": template.settings.name,
        "at": at,
        "pools": pools.collect::<Vec<_>>(),
        "left_out": reading.left_out,
    })))
}
