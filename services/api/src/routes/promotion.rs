//! Making a version the active one, at once or when its prebuilds are ready.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use berth_backbone::promotion::{self, How, Progress, Promoted, PromotionError};
use berth_db::DbError;
use berth_db::template::Template;
use berth_domain::authz::Action;
use berth_domain::id::{PresetId, PromotionId, TemplateId, UserId, VersionId};
use berth_domain::promotion::needed;
use berth_domain::state::{PrebuildStatus, PromotionOutcome};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::template::find;
use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Message};
use crate::extract::{Json, Path};

/// Percent of the wanted prebuilds that must be ready, where the request does not say.
const READY_PERCENT: i64 = 100;
/// Seconds until a warm promotion is called off, where the request does not say.
const TIMEOUT_SECONDS: i64 = 3_600;
/// What may be asked for.
const TIMEOUTS: std::ops::RangeInclusive<i64> = 60..=86_400;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/templates/{template}/versions", patch(promote))
        .route("/templates/{template}/promotion", get(show).delete(cancel))
}

#[derive(Deserialize)]
struct Promote {
    id: VersionId,
    #[serde(default)]
    prewarm: bool,
    ready_percent: Option<i64>,
    timeout_seconds: Option<i64>,
}

impl Promote {
    /// How it is asked for, within bounds.
    fn how(&self, actor: UserId, now: Timestamp) -> Result<How, ApiError> {
        if !self.prewarm {
            let alone =
                [("ready_percent", self.ready_percent), ("timeout_seconds", self.timeout_seconds)];
            return match alone.into_iter().find(|(_, value)| value.is_some()) {
                Some((field, _)) => {
                    Err(ApiError::field(field, "is for prewarm: true; leave it out without"))
                }
                None => Ok(How::Plain),
            };
        }
        let percent = self.ready_percent.unwrap_or(READY_PERCENT);
        let ready_percent = u32::try_from(percent).ok().filter(|it| (1..=100).contains(it));
        let ready_percent = ready_percent.ok_or_else(|| {
            ApiError::field("ready_percent", format!("is {percent}; give a percentage, 1 to 100"))
        })?;
        let seconds = self.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
        if !TIMEOUTS.contains(&seconds) {
            let (least, most) = (TIMEOUTS.start(), TIMEOUTS.end());
            let detail = format!("is {seconds}; give seconds from {least} to {most}");
            return Err(ApiError::field("timeout_seconds", detail));
        }
        let deadline = now + SignedDuration::from_secs(seconds);
        Ok(How::Warm { ready_percent, deadline, actor })
    }
}

/// Makes a version the active one; the pools of the old one end and those of the new one begin. With
/// `prewarm`, the new ones are built first and the switch follows by itself.
#[tracing::instrument(name = "http.template.promote", skip_all)]
async fn promote(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<TemplateId>,
    Json(body): Json<Promote>,
) -> Result<Response, ApiError> {
    let old = find(&app, &caller, id, Action::Update).await?;
    let mut work = app.begin().await?;
    let now = work.now();
    let how = body.how(caller.id(), now)?;
    let promoted = promotion::promote(&mut work, id, body.id, how).await.map_err(refused)?;
    let diff = match promoted {
        Promoted::Active => {
            changed("active_version_id", Some(old.active_version_id), Some(body.id))
        }
        Promoted::Warming(_) => changed("candidate_version_id", None, Some(body.id)),
    };
    audit::record(&mut work, caller.id(), &origin, line(old, diff)).await?;
    let progress = match how {
        How::Plain => None,
        How::Warm { .. } => Progress::read(work.conn(), id, now).await?,
    };
    work.commit().await?;
    let status = match promoted {
        Promoted::Active => StatusCode::OK,
        Promoted::Warming(_) => StatusCode::ACCEPTED,
    };
    Ok(match progress {
        Some(progress) => (status, Json(PromotionView::from(progress))).into_response(),
        None => {
            (status, Json(Message::new("Updated the active template version!"))).into_response()
        }
    })
}

/// The warm promotion that is under way, else the newest one.
#[tracing::instrument(name = "http.template.get_promotion", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TemplateId>,
) -> Result<Json<PromotionView>, ApiError> {
    find(&app, &caller, id, Action::Update).await?;
    let mut conn = app.db().acquire().await.map_err(DbError::from)?;
    let progress = Progress::read(&mut conn, id, app.now()).await?;
    Ok(Json(progress.ok_or(ApiError::NotFound)?.into()))
}

/// Ends the warm promotion that is under way; the candidate's prebuilds go.
#[tracing::instrument(name = "http.template.cancel_promotion", skip_all)]
async fn cancel(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<TemplateId>,
) -> Result<Json<PromotionView>, ApiError> {
    let template = find(&app, &caller, id, Action::Update).await?;
    let mut work = app.begin().await?;
    let now = work.now();
    let ended = promotion::stop(&mut work, id, PromotionOutcome::Canceled, "").await?;
    let ended = ended
        .ok_or_else(|| ApiError::conflict("No promotion of this template is under way.", None))?;
    let diff = changed("candidate_version_id", Some(ended.candidate_version_id), None);
    audit::record(&mut work, caller.id(), &origin, line(template, diff)).await?;
    let progress = Progress::read(work.conn(), id, now).await?;
    work.commit().await?;
    Ok(Json(progress.ok_or(ApiError::NotFound)?.into()))
}

fn changed(field: &str, old: Option<VersionId>, new: Option<VersionId>) -> Value {
    audit::diff(&json!({ field: old }), &json!({ field: new }))
}

fn line(template: Template, diff: Value) -> Change {
    Change::new("write", "template", template.id.0)
        .of(template.settings.name)
        .within(template.organization_id)
        .with_diff(diff)
}

fn refused(error: PromotionError) -> ApiError {
    let told = error.to_string();
    match error {
        PromotionError::NoTemplate(_) => ApiError::NotFound,
        PromotionError::NoVersion(_)
        | PromotionError::Unusable { .. }
        | PromotionError::Active { .. } => ApiError::field("id", told),
        PromotionError::Deprecated { .. }
        | PromotionError::Open { .. }
        | PromotionError::StillServes { .. }
        | PromotionError::Sick { .. } => ApiError::conflict(told, None),
        PromotionError::Db(error) => error.into(),
    }
}

/// A warm promotion, as it is sent.
#[derive(Serialize)]
struct PromotionView {
    id: PromotionId,
    template_id: TemplateId,
    candidate_version_id: VersionId,
    candidate_version_name: String,
    /// The version that was active when it began.
    active_version_id: VersionId,
    ready_percent: u32,
    deadline_at: Timestamp,
    actor_id: UserId,
    created_at: Timestamp,
    ended_at: Option<Timestamp>,
    /// `promoted`, `called_off`, `canceled` or `superseded`; null while it is open.
    outcome: Option<PromotionOutcome>,
    /// Why it was called off.
    reason: String,
    presets: Vec<PresetView>,
}

/// A pool of the candidate.
#[derive(Serialize)]
struct PresetView {
    preset_id: PresetId,
    preset_name: String,
    /// Prebuilds that could be handed out, were the version active.
    ready: u32,
    /// How many must be, for the switch.
    wanted: u32,
    /// Being built, or waiting for their agents.
    starting: u32,
    status: PrebuildStatus,
}

impl From<Progress> for PromotionView {
    fn from(progress: Progress) -> Self {
        let Progress { promotion: it, pools } = progress;
        let presets = pools.into_iter().map(|(pool, candidate)| PresetView {
            preset_id: pool.preset_id,
            wanted: needed(&candidate, it.ready_percent),
            preset_name: pool.preset_name,
            ready: pool.ready,
            starting: pool.coming,
            status: pool.status,
        });
        Self {
            presets: presets.collect(),
            id: it.id,
            template_id: it.template_id,
            candidate_version_id: it.candidate_version_id,
            candidate_version_name: it.candidate_version_name,
            active_version_id: it.active_version_id,
            ready_percent: it.ready_percent,
            deadline_at: it.deadline,
            actor_id: it.actor_id,
            created_at: it.created_at,
            ended_at: it.ended_at,
            outcome: it.outcome,
            reason: it.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(prewarm: bool, ready: Option<i64>, timeout: Option<i64>) -> Result<How, ApiError> {
        let body = Promote {
            id: VersionId(uuid::Uuid::nil()),
            prewarm,
            ready_percent: ready,
            timeout_seconds: timeout,
        };
        body.how(UserId(uuid::Uuid::nil()), Timestamp::UNIX_EPOCH)
    }

    #[track_caller]
    fn check_refused(asked: Result<How, ApiError>, field: &str) {
        let Err(ApiError::Invalid { validations, .. }) = asked else { panic!("{asked:?}") };
        assert_eq!(validations[0].field, field);
    }

    #[test]
    fn the_bounds_of_a_warm_promotion_are_kept() {
        for percent in [0, 101, -1, i64::MAX] {
            check_refused(how(true, Some(percent), None), "ready_percent");
        }
        for seconds in [0, 59, 86_401, i64::MIN] {
            check_refused(how(true, None, Some(seconds)), "timeout_seconds");
        }
        check_refused(how(false, Some(50), None), "ready_percent");
        check_refused(how(false, None, Some(60)), "timeout_seconds");
        assert!(matches!(how(false, None, None), Ok(How::Plain)));
        let asked = how(true, Some(1), Some(86_400)).unwrap();
        let deadline = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24);
        let actor = UserId(uuid::Uuid::nil());
        assert_eq!(asked, How::Warm { ready_percent: 1, deadline, actor });
    }
}
