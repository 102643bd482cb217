//! Why a pool has the size it has, and why nothing is being created.

use axum::extract::State;
use berth_db::decision::{self, Decision};
use berth_db::pool::Observed;
use berth_db::prebuild::Pool;
use berth_db::rehearsal;
use berth_domain::authz::Action;
use berth_domain::id::{PresetId, TemplateId, VersionId};
use berth_domain::plan::{Plan, Reason, plan};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::plan::{describe, extend, read};
use super::words;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Path, Query};
use crate::routes::template;
use crate::routes::version::rehearsal_json;

/// Decisions of each pool where no number is given.
const DECISIONS: i64 = 10;
/// Most decisions of each pool.
const DECISIONS_MAX: i64 = 100;

#[derive(Deserialize)]
pub(super) struct ExplainQuery {
    preset: Option<String>,
    limit: Option<String>,
}

impl ExplainQuery {
    fn limit(&self) -> Result<i64, ApiError> {
        let Some(text) = &self.limit else { return Ok(DECISIONS) };
        match text.parse::<i64>() {
            Ok(it) if (1..=DECISIONS_MAX).contains(&it) => Ok(it),
            _ => {
                let why = format!("is {text:?}; give a whole number from 1 to {DECISIONS_MAX}");
                Err(ApiError::field("limit", why))
            }
        }
    }
}

/// Each pool with what it is made of, what its next plan says, and its newest decisions.
#[tracing::instrument(name = "http.prebuild.explain", skip_all)]
pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TemplateId>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Value>, ApiError> {
    let template = template::find(&app, &caller, id, Action::Update).await?;
    let limit = query.limit()?;
    let now = app.now();
    let reading = read(&app, id, query.preset.as_deref(), now).await?;
    let presets: Vec<PresetId> = reading.pools.iter().map(|(it, _)| it.preset_id).collect();
    let decisions = decision::list(app.db(), &presets, limit).await?;
    let versions: Vec<VersionId> = reading.pools.iter().map(|(_, it)| it.pool.version_id).collect();
    let rehearsals = rehearsal::list(app.db(), &versions).await?;
    let pools = reading.pools.iter().map(|(pool, observed)| {
        let ours = decisions.iter().filter(|it| it.preset_id == pool.preset_id);
        let mut value = explain(pool, observed, now);
        value["decisions"] = ours.map(decision_json).collect();
        let rehearsal = rehearsals.iter().find(|it| it.preset_id == pool.preset_id);
        value["rehearsal"] = rehearsal.map_or(Value::Null, rehearsal_json);
        value
    });
    Ok(Json(json!({
        "template_id": id,
        "template_name": template.settings.name,
        "at": now,
        "pools": pools.collect::<Vec<_>>(),
        "left_out": reading.left_out,
    })))
}

fn explain(pool: &Pool, observed: &Observed, now: Timestamp) -> Value {
    let Observed { pool: locked, policy, snapshot } = observed;
    let plan = plan(&locked.config, policy, snapshot, now);
    let prebuilds = locked.config.prebuilds.as_ref();
    let mut value = describe(pool);
    extend(&mut value, words::plan(&plan));
    extend(
        &mut value,
        json!({
            "why": words::why(prebuilds, pool.standing, pool.claimable, &plan, now),
            "claimable": pool.claimable,
            "breaker": breaker(pool, observed, &plan),
            "consecutive_failures": pool.consecutive_failures,
            "pauses": snapshot.pauses,
            "policy": policy.pool,
            "prebuilds": prebuilds,
            "last_invalidated_at": pool.last_invalidated_at,
            "last_reconciled_at": pool.last_reconciled_at,
        }),
    );
    value
}

/// The open breaker; null while it is closed.
fn breaker(pool: &Pool, observed: &Observed, plan: &Plan) -> Value {
    let Some(since) = pool.breaker_opened_at else { return Value::Null };
    let probes = observed.snapshot.failures.breaker;
    let next = plan.reasons.iter().find_map(|it| match it {
        Reason::BreakerOpen { next_probe_at } => *next_probe_at,
        _ => None,
    });
    json!({
        "since": since,
        "consecutive_failures": pool.consecutive_failures,
        "probes": probes.map_or(0, |it| it.probes),
        "last_probe_at": probes.and_then(|it| it.last_probe_at),
        "next_probe_at": next,
    })
}

fn decision_json(it: &Decision) -> Value {
    json!({
        "id": it.id,
        "created_at": it.created_at,
        "desired": it.desired,
        "counts": it.counts,
        "actions": it.actions,
        "reasons": words::stored_reasons(&it.reasons),
        "trace_id": it.trace_id,
    })
}
