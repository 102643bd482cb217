//! The provisioner daemons of an organization, and whether they take jobs.

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};
use berth_bus::event::{DaemonsDrained, Event, Wake};
use berth_db::daemon::{self, Daemon};
use berth_db::job_view::{self, Filter};
use berth_db::provisioner_key;
use berth_domain::authz::Action;
use berth_domain::id::{DaemonId, JobId, OrganizationId, ProvisionerKeyId};
use berth_domain::state::JobStatus;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{Json, Path};
use crate::lookup;
use crate::routes::provisioner::daemons_of;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/organizations/{organization}/provisionerdaemons", get(list))
        .route(
            "/organizations/{organization}/provisionerdaemons/drain",
            put(drain_all).delete(undrain_all),
        )
        .route(
            "/organizations/{organization}/provisionerdaemons/{daemon}/drain",
            put(drain_one).delete(undrain_one),
        )
}

/// A daemon. Beside the contract's fields: since when it is not heard of, since when it is to take no
/// new jobs, and the certificate that it entered with.
#[derive(Serialize)]
struct DaemonView {
    id: DaemonId,
    organization_id: OrganizationId,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<ProvisionerKeyId>,
    #[serde(skip_serializing_if = "String::is_empty")]
    key_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_fingerprint: Option<String>,
    name: String,
    version: String,
    api_version: String,
    provisioners: Vec<String>,
    tags: BTreeMap<String, String>,
    created_at: Timestamp,
    last_seen_at: Timestamp,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    silent_since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draining_since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_job: Option<DaemonJob>,
}

#[derive(Serialize)]
struct DaemonJob {
    id: JobId,
    status: JobStatus,
    template_name: String,
    template_icon: String,
    template_display_name: String,
}

impl DaemonView {
    fn new(it: Daemon, key_name: String, current_job: Option<DaemonJob>, now: Timestamp) -> Self {
        Self {
            key_name,
            status: match (it.is_gone(now), &current_job) {
                (true, _) => "offline",
                (false, Some(_)) => "busy",
                (false, None) => "idle",
            },
            current_job,
            id: it.id,
            organization_id: it.organization_id,
            key_id: it.key_id,
            certificate_fingerprint: it.certificate_fingerprint,
            name: it.name,
            version: it.version,
            api_version: it.api_version,
            provisioners: it.provisioners,
            tags: it.tags,
            created_at: it.created_at,
            last_seen_at: it.last_seen_at,
            silent_since: it.silent_at.filter(|_| it.disconnected_at.is_none()),
            draining_since: it.draining_since,
        }
    }
}

#[tracing::instrument(name = "http.provisioner_daemon.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<Vec<DaemonView>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Read, &daemons_of(organization.id))?;
    let daemons = daemon::list(app.db(), organization.id).await?;
    let keys = provisioner_key::list(app.db(), organization.id).await?;
    let keys: HashMap<_, _> = keys.into_iter().map(|key| (key.id, key.name)).collect();
    let mut jobs = running(&app, organization.id).await?;
    let now = app.now();
    let view = |it: Daemon| {
        let key_name = it.key_id.and_then(|id| keys.get(&id).cloned()).unwrap_or_default();
        let job = jobs.remove(&it.id);
        DaemonView::new(it, key_name, job, now)
    };
    Ok(Json(daemons.into_iter().map(view).collect()))
}

/// What the daemons of an organization run; of those that run several jobs, one.
async fn running(
    app: &App,
    organization: OrganizationId,
) -> Result<HashMap<DaemonId, DaemonJob>, ApiError> {
    let filter = Filter {
        organization: Some(organization),
        statuses: Some(vec![JobStatus::Running, JobStatus::Canceling]),
        limit: 1000,
        ..Filter::default()
    };
    let running = job_view::list(app.db(), &filter).await?;
    let of_worker = running.into_iter().filter_map(|job| {
        let view = DaemonJob {
            id: job.id,
            status: job.status,
            template_name: job.template_name,
            template_icon: job.template_icon,
            template_display_name: job.template_display_name,
        };
        Some((job.worker_id?, view))
    });
    Ok(of_worker.collect())
}

/// The daemons whose standing changed, by name.
#[derive(Serialize)]
struct Changed {
    daemons: Vec<String>,
}

#[tracing::instrument(name = "http.provisioner_daemon.drain", skip_all)]
async fn drain_one(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((organization, daemon)): Path<(String, String)>,
) -> Result<Json<Changed>, ApiError> {
    drain(&app, (&caller, &origin), &organization, Some(&daemon)).await
}

#[tracing::instrument(name = "http.provisioner_daemon.drain_all", skip_all)]
async fn drain_all(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
) -> Result<Json<Changed>, ApiError> {
    drain(&app, (&caller, &origin), &organization, None).await
}

#[tracing::instrument(name = "http.provisioner_daemon.undrain", skip_all)]
async fn undrain_one(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((organization, daemon)): Path<(String, String)>,
) -> Result<Json<Changed>, ApiError> {
    undrain(&app, (&caller, &origin), &organization, Some(&daemon)).await
}

#[tracing::instrument(name = "http.provisioner_daemon.undrain_all", skip_all)]
async fn undrain_all(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
) -> Result<Json<Changed>, ApiError> {
    undrain(&app, (&caller, &origin), &organization, None).await
}

/// The organization of a path, whose daemons the caller may change, and the name of its daemon that
/// the path names by id or name.
async fn found(
    app: &App,
    caller: &Caller,
    (organization, daemon): (&str, Option<&str>),
) -> Result<(OrganizationId, Option<Daemon>), ApiError> {
    let organization = lookup::organization(app, caller, organization).await?;
    caller.authorize(Action::Update, &daemons_of(organization.id))?;
    let Some(daemon) = daemon else { return Ok((organization.id, None)) };
    let daemons = daemon::list(app.db(), organization.id).await?;
    let is_meant = |it: &Daemon| it.name == daemon || it.id.to_string() == daemon;
    let found = daemons.into_iter().find(is_meant);
    let found =
        found.ok_or_else(|| ApiError::Unknown(format!("No daemon is named {daemon:?}.")))?;
    Ok((organization.id, Some(found)))
}

/// Has daemons take no new jobs. Those that do not already are told of.
async fn drain(
    app: &App,
    (caller, origin): (&Caller, &Origin),
    organization: &str,
    daemon: Option<&str>,
) -> Result<Json<Changed>, ApiError> {
    let (organization, daemon) = found(app, caller, (organization, daemon)).await?;
    if let Some(offline) = daemon.as_ref().filter(|it| it.disconnected_at.is_some()) {
        let name = &offline.name;
        return Err(ApiError::invalid(format!("Daemon {name:?} is offline: it takes no jobs.")));
    }
    let name = daemon.as_ref().map(|it| it.name.as_str());
    let mut work = app.begin().await?;
    let now = work.now();
    let drained = daemon::drain(work.conn(), organization, name, now).await?;
    for (id, name) in &drained {
        let change = changed(organization, *id, name, (false, true));
        audit::record(&mut work, caller.id(), origin, change).await?;
    }
    if !drained.is_empty() {
        work.emit(Event::DaemonsDrained(DaemonsDrained { organization_id: organization }));
    }
    work.commit().await?;
    Ok(Json(Changed { daemons: drained.into_iter().map(|it| it.1).collect() }))
}

/// Has daemons take jobs again, and pools that waited for one look.
async fn undrain(
    app: &App,
    (caller, origin): (&Caller, &Origin),
    organization: &str,
    daemon: Option<&str>,
) -> Result<Json<Changed>, ApiError> {
    let (organization, daemon) = found(app, caller, (organization, daemon)).await?;
    let name = daemon.as_ref().map(|it| it.name.as_str());
    let mut work = app.begin().await?;
    let now = work.now();
    let back = daemon::undrain(work.conn(), organization, name).await?;
    for it in &back {
        let change = changed(organization, it.id, &it.name, (true, false));
        audit::record(&mut work, caller.id(), origin, change).await?;
    }
    let abilities: HashSet<_> = back.iter().map(|it| (&it.provisioners, &it.tags)).collect();
    for (provisioners, tags) in abilities {
        let abilities = (provisioners.as_slice(), tags);
        let marked = daemon::mark_pools_dirty(work.conn(), organization, abilities, now).await?;
        for event in Wake::pools(&marked) {
            work.emit(event);
        }
    }
    if !back.is_empty() {
        work.emit(Event::DaemonsDrained(DaemonsDrained { organization_id: organization }));
    }
    work.commit().await?;
    Ok(Json(Changed { daemons: back.into_iter().map(|it| it.name).collect() }))
}

fn changed(
    organization: OrganizationId,
    id: DaemonId,
    name: &str,
    (old, new): (bool, bool),
) -> Change {
    let diff = audit::diff(&json!({ "draining": old }), &json!({ "draining": new }));
    Change::new("write", "provisioner_daemon", id.0).of(name).within(organization).with_diff(diff)
}
