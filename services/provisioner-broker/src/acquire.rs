//! Handing out jobs: the long poll, and everything that a daemon needs to run what it got.

use std::time::Duration;

use berth_backbone::{SecretError, user_secret_place};
use berth_bus::trace;
use berth_db::job::{self, BuildInput, Filter, Held, RunningAgent};
use berth_db::user_secret::{self, SecretValue};
use berth_db::variable::{Given, Value};
use berth_db::{DbError, Pool, build, build_state, completion, daemon, rehearsal, variable};
use berth_domain::id::{BuildId, DaemonId, LeaseToken, OrganizationId, PREBUILDS_USER, VersionId};
use berth_domain::state::{BuildStage, JobErrorCode, JobKind, Transition};
use berth_proto::v1;
use sha2::{Digest, Sha256};
use tonic::Status;
use uuid::Uuid;

use crate::broker::Broker;
use crate::complete::{Report, end_in_failure};
use crate::error::{self, of_db};
use crate::gather::Gather;
use crate::queue::{InHand, Queue};

/// Longest a daemon may ask to wait, in seconds.
const WAIT_MAX: u32 = 60;
/// How long the session lives that a build's owner is given, in seconds.
const SESSION_SECONDS: i32 = 7 * 24 * 3600;

/// Versions whose imports and dry runs start at the same time are read together.
pub(crate) type Versions = Gather<VersionId, Result<Given, Status>>;

/// Why a job could not be made ready for its daemon.
#[derive(Debug, thiserror::Error)]
enum InputError {
    /// The database.
    #[error("read the job's input")]
    Db(#[from] DbError),
    /// What was read for several jobs at once; the log has the reason.
    #[error("read the job's input")]
    Unread(Status),
    /// The key that sealed the workspace's state, or the value of a template variable, is not configured
    /// here. Once it is, the job runs.
    #[error("open what the job needs")]
    Key(#[source] SecretError),
    /// What is stored makes no job: nobody could ever run it.
    #[error("{0}")]
    Broken(String),
}

impl From<SecretError> for InputError {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::Key(_) => Self::Key(error),
            SecretError::Damaged(_) => Self::Broken(format!(
                "the state of the build before cannot be read: {:#}",
                anyhow::Error::from(error)
            )),
        }
    }
}

/// Waits for a job for the daemon, at most as long as it asked. `None`: there was none.
#[tracing::instrument(name = "rpc.provisioner.acquire_job", skip_all, fields(daemon.id = request.daemon_id), err(level = "info"))]
pub(crate) async fn acquire(
    broker: &Broker,
    organization: OrganizationId,
    request: &v1::AcquireJobRequest,
) -> Result<Option<v1::Job>, Status> {
    let daemon: DaemonId = error::id(&request.daemon_id, "daemon")?;
    let lease = match request.lease_token.as_str() {
        // From a daemon of 1.0.
        "" => LeaseToken(broker.backbone.ids.secret()),
        chosen => error::id(chosen, "lease token")?,
    };
    let filter = filter(broker, organization, daemon).await?;
    let wait = Duration::from_secs(request.wait_seconds.min(WAIT_MAX).into());
    let mut ticket = Queue::wait(broker, filter, (daemon, lease));
    let in_hand = tokio::select! {
        job = ticket.job() => job,
        // A daemon that does not want to wait still gets what is there: one look takes this long.
        () = tokio::time::sleep(wait.max(Duration::from_secs(1))) => None,
        () = broker.stop.cancelled() => None,
    };
    match in_hand {
        Some(in_hand) => start(broker, in_hand).await,
        None => Ok(None),
    }
}

async fn filter(
    broker: &Broker,
    organization: OrganizationId,
    id: DaemonId,
) -> Result<Filter, Status> {
    let unknown =
        || Status::failed_precondition(format!("daemon {id} is not registered: register first"));
    if let Some(filter) = broker.registry.filter(id) {
        return if filter.organizations.contains(&organization) {
            Ok(filter)
        } else {
            Err(unknown())
        };
    }
    // Its stream may stand with another replica.
    let found = daemon::find(&broker.backbone.db, organization, id).await.map_err(of_db)?;
    let daemon = found.filter(|it| it.disconnected_at.is_none()).ok_or_else(unknown)?;
    Ok(Filter {
        organizations: vec![organization],
        provisioners: daemon.provisioners,
        tags: daemon.tags,
    })
}

/// A trace of its own, linked to the one that queued the job.
#[tracing::instrument(name = "job.start", skip_all, fields(job.id = %in_hand.held().id, job.kind = %in_hand.held().kind))]
async fn start(broker: &Broker, in_hand: InHand) -> Result<Option<v1::Job>, Status> {
    let held = in_hand.held().clone();
    let stored = held.trace.as_object().into_iter().flatten();
    trace::link(stored.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))));
    match job_of(broker, &held).await {
        Ok(job) => {
            in_hand.handed_over();
            Ok(Some(job))
        }
        Err(InputError::Db(error)) => Err(of_db(error)),
        Err(InputError::Unread(status)) => Err(status),
        Err(error @ InputError::Key(_)) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(job.id = %held.id, error, "job goes back to the queue");
            Err(Status::unavailable("the broker misses an encryption key: try again"))
        }
        Err(InputError::Broken(reason)) => {
            in_hand.handed_over();
            tracing::error!(job.id = %held.id, reason, "job cannot be run");
            let report = Report {
                job: held.id,
                organization: held.organization_id,
                lease: held.lease,
                digest: Sha256::digest(held.lease.0.as_bytes()).to_vec(),
            };
            end_in_failure(broker, &report, (JobErrorCode::Infrastructure, &reason), None).await?;
            Ok(None)
        }
    }
}

async fn job_of(broker: &Broker, held: &Held) -> Result<v1::Job, InputError> {
    let lease = broker.limits.lease.as_duration().as_secs();
    let stored = held.trace.as_object().into_iter().flatten();
    let mut job = v1::Job {
        id: held.id.to_string(),
        lease_token: held.lease.to_string(),
        lease_seconds: u32::try_from(lease).unwrap_or(u32::MAX),
        provisioner_type: held.provisioner.to_string(),
        organization_id: held.organization_id.to_string(),
        archive_file_id: held.file_id.to_string(),
        trace: stored
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect(),
        access_url: broker.access_url.clone(),
        ..v1::Job::default()
    };
    match held.kind {
        JobKind::WorkspaceBuild => fill_build(broker, held, &mut job).await?,
        JobKind::TemplateVersionImport => {
            let version: Uuid = input_id(held, "template_version_id")?;
            let version = of_version(broker, VersionId(version)).await?;
            job.variables = variables(broker, version.values)?;
            let import = v1::TemplateImport { metadata: Some(v1::Metadata::default()) };
            job.input = Some(v1::job::Input::TemplateImport(import));
            record_wait(broker, held, ("", ""));
        }
        JobKind::TemplateVersionDryRun => {
            let version: Uuid = input_id(held, "template_version_id")?;
            let version = of_version(broker, VersionId(version)).await?;
            job.variables = variables(broker, version.values)?;
            job.modules_file_id = version.modules_file_id.map(|it| it.to_string());
            let name = held.input.get("workspace_name").and_then(serde_json::Value::as_str);
            let metadata = v1::Metadata {
                workspace_name: name.unwrap_or_default().to_owned(),
                ..v1::Metadata::default()
            };
            job.input = Some(v1::job::Input::TemplateDryRun(v1::TemplateDryRun {
                parameters: dry_run_parameters(&held.input),
                metadata: Some(metadata),
            }));
            record_wait(broker, held, ("", ""));
        }
        JobKind::Rehearsal => fill_rehearsal(broker, held, &mut job).await?,
    }
    Ok(job)
}

fn input_id(held: &Held, key: &str) -> Result<Uuid, InputError> {
    let text = held.input.get(key).and_then(serde_json::Value::as_str);
    text.and_then(|it| it.parse().ok())
        .ok_or_else(|| InputError::Broken(format!("the job's input has no {key}")))
}

fn dry_run_parameters(input: &serde_json::Value) -> Vec<v1::ParameterValue> {
    let text = |value: &serde_json::Value, key: &str| {
        value.get(key).and_then(serde_json::Value::as_str).map(ToOwned::to_owned)
    };
    let list = input.get("parameters").and_then(serde_json::Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|it| {
            Some(v1::ParameterValue { name: text(it, "name")?, value: text(it, "value")? })
        })
        .collect()
}

/// What a version gives its imports and dry runs: asked for all at once that start at this moment.
async fn of_version(broker: &Broker, version: VersionId) -> Result<Given, InputError> {
    let db = broker.backbone.db.clone();
    let found = broker.versions.ask(version, move |ids| read_versions(db.clone(), ids)).await;
    found.and_then(|it| it).map_err(InputError::Unread)
}

async fn read_versions(db: Pool, ids: Vec<VersionId>) -> Vec<Result<Given, Status>> {
    match variable::list_given(&db, &ids).await {
        Ok(found) => {
            let of = |id| found.iter().find(|it| it.version_id == id).cloned();
            let none = |id| Given { version_id: id, modules_file_id: None, values: Vec::new() };
            ids.into_iter().map(|id| Ok(of(id).unwrap_or_else(|| none(id)))).collect()
        }
        Err(error) => {
            let status = of_db(error);
            ids.iter().map(|_| Err(status.clone())).collect()
        }
    }
}

/// Opens the values that people gave variables. A job that needs one of another key waits for that
/// key; one whose value is damaged fails.
fn variables(broker: &Broker, rows: Vec<Value>) -> Result<Vec<v1::VariableValue>, InputError> {
    let open = |it: Value| {
        let opened = broker.vault.open_variable(it.given_in, &it.name, it.value);
        let value = opened.map_err(|error| match error {
            SecretError::Key(_) => InputError::Key(error),
            SecretError::Damaged(_) => InputError::Broken(format!(
                "the value of template variable {:?} cannot be read: {:#}",
                it.name,
                anyhow::Error::from(error)
            )),
        })?;
        Ok(v1::VariableValue { name: it.name, value, sensitive: it.sensitive })
    };
    rows.into_iter().map(open).collect()
}

async fn fill_build(broker: &Broker, held: &Held, job: &mut v1::Job) -> Result<(), InputError> {
    let db = &broker.backbone.db;
    let id = BuildId(input_id(held, "workspace_build_id")?);
    let build = job::find_build_input(db, id)
        .await?
        .ok_or_else(|| InputError::Broken(format!("build {id} does not exist")))?;
    let state = match build_state::find_previous(db, id).await? {
        Some(stored) => broker.vault.open_state(build.workspace_id, stored)?,
        None => Vec::new(),
    };
    let parameters = build::list_parameters(db, id).await?;
    let previous = build_state::list_previous_parameters(db, id).await?;
    let is_claim = build.stage == BuildStage::Claim;
    let agents =
        if is_claim { job::list_running_agents(db, build.workspace_id).await? } else { Vec::new() };
    let token = session_token(broker, &build).await?;
    let secrets = user_secrets(broker, &build).await?;
    job.variables = variables(broker, variable::list_values(db, build.version_id).await?)?;
    job.modules_file_id = build.modules_file_id.map(|it| it.to_string());
    job.reuse_terraform_workspace = build.reuse_terraform_workspace;
    let is_prebuild = build.stage == BuildStage::Prebuild;
    let reason = if is_prebuild { "prebuild" } else { build.reason.as_str() };
    record_wait(broker, held, (build.transition.as_str(), reason));
    job.input = Some(v1::job::Input::WorkspaceBuild(v1::WorkspaceBuild {
        build_id: id.to_string(),
        state,
        parameters: values(parameters),
        previous_parameters: values(previous),
        metadata: Some(metadata(build, token)),
        running_agents: running_agents(agents),
        user_secrets: secrets,
    }));
    Ok(())
}

/// The claim of a prebuild as it would be for somebody else.
async fn fill_rehearsal(broker: &Broker, held: &Held, job: &mut v1::Job) -> Result<(), InputError> {
    let db = &broker.backbone.db;
    let id = BuildId(input_id(held, "rehearsed_build_id")?);
    let build = job::find_build_input(db, id)
        .await?
        .ok_or_else(|| InputError::Broken(format!("build {id} does not exist")))?;
    if !rehearsal::is_current(db, id).await? {
        let text = "the prebuild to rehearse with was claimed or deleted meanwhile";
        return Err(InputError::Broken(text.to_owned()));
    }
    let state = match build_state::find(db, id).await? {
        Some(stored) => broker.vault.open_state(build.workspace_id, stored)?,
        None => Vec::new(),
    };
    let parameters = build::list_parameters(db, id).await?;
    let agents = job::list_running_agents(db, build.workspace_id).await?;
    job.variables = variables(broker, variable::list_values(db, build.version_id).await?)?;
    job.modules_file_id = build.modules_file_id.map(|it| it.to_string());
    record_wait(broker, held, (build.transition.as_str(), "rehearsal"));
    job.input = Some(v1::job::Input::Rehearsal(v1::Rehearsal {
        claim: Some(v1::WorkspaceBuild {
            build_id: held.id.to_string(),
            state,
            parameters: values(parameters.clone()),
            previous_parameters: values(parameters),
            metadata: Some(stand_in(metadata(build, String::new()), held)),
            running_agents: running_agents(agents),
            // A stand-in has none.
            user_secrets: Vec::new(),
        }),
    }));
    Ok(())
}

/// Puts a stand-in in the owner's place, who differs from the prebuilds user in all that a claim
/// changes: what depends on any of it shows in the plan. His token opens nothing.
fn stand_in(prebuild: v1::Metadata, held: &Held) -> v1::Metadata {
    v1::Metadata {
        transition: v1::Transition::Start.into(),
        workspace_name: "rehearsal".to_owned(),
        owner_id: held.id.to_string(),
        owner_name: "rehearsal".to_owned(),
        owner_full_name: "Rehearsal of a claim".to_owned(),
        owner_email: "rehearsal@example.invalid".to_owned(),
        owner_groups: vec!["Everyone".to_owned()],
        owner_session_token: format!("{}-{}", "0".repeat(10), "0".repeat(22)),
        owner_login_type: "password".to_owned(),
        owner_roles: vec![v1::Role {
            name: "organization-member".to_owned(),
            organization_id: held.organization_id.to_string(),
        }],
        build_id: held.id.to_string(),
        stage: v1::BuildStage::Claim.into(),
        ..prebuild
    }
}

fn running_agents(agents: Vec<RunningAgent>) -> Vec<v1::RunningAgent> {
    let agent =
        |it: RunningAgent| v1::RunningAgent { agent_id: it.state_id, token: it.token.to_string() };
    agents.into_iter().map(agent).collect()
}

fn record_wait(broker: &Broker, held: &Held, (transition, reason): (&str, &str)) {
    let labels = [held.provisioner.as_str(), held.kind.as_str(), transition, reason];
    broker.metrics.waits.with_label_values(&labels).observe(held.waited_seconds.max(0.001));
}

fn values(pairs: Vec<(String, String)>) -> Vec<v1::ParameterValue> {
    pairs.into_iter().map(|(name, value)| v1::ParameterValue { name, value }).collect()
}

/// The owner's secrets, for the plan of a start and for nothing else. One that cannot be read fails
/// the job: the workspace would be made without it.
async fn user_secrets(
    broker: &Broker,
    build: &BuildInput,
) -> Result<Vec<v1::UserSecret>, InputError> {
    if build.transition != Transition::Start {
        return Ok(Vec::new());
    }
    let stored = user_secret::list_values(&broker.backbone.db, build.owner.id).await?;
    let open = |it: SecretValue| {
        let unreadable = |why: String| {
            InputError::Broken(format!("a secret of the workspace's owner cannot be read: {why}"))
        };
        let place = it.id.to_string();
        let value = broker
            .vault
            .open(user_secret_place(&place), it.value)
            .map_err(|error| unreadable(error.to_string()))?;
        let value = String::from_utf8(value).map_err(|_| unreadable("it is no text".to_owned()))?;
        Ok(v1::UserSecret { env_name: it.env_name, file_path: it.file_path, value })
    };
    stored.into_iter().map(open).collect()
}

/// A session for the workspace's owner, in place of the one before. The prebuilds user can have none; a
/// stop or delete needs none, and ends the one that its start was given.
async fn session_token(broker: &Broker, build: &BuildInput) -> Result<String, DbError> {
    let db = &broker.backbone.db;
    if build.owner.id == PREBUILDS_USER {
        return Ok(String::new());
    }
    if build.transition != Transition::Start {
        completion::revoke_keys(db, &[build.workspace_id]).await?;
        return Ok(String::new());
    }
    let ids = broker.backbone.ids;
    let (id, secret) = (hex::encode(ids.bytes::<5>()), hex::encode(ids.bytes::<11>()));
    let hash = Sha256::digest(secret.as_bytes());
    let lifetime = (broker.backbone.clock.now(), SESSION_SECONDS);
    job::put_owner_key(db, build.workspace_id, build.owner.id, (&id, &hash), lifetime).await?;
    Ok(format!("{id}-{secret}"))
}

fn metadata(build: BuildInput, owner_session_token: String) -> v1::Metadata {
    let organization = build.organization_id.to_string();
    let site = build.owner.site_roles.into_iter().map(|name| (name, String::new()));
    let local = build.owner.organization_roles.into_iter().map(|it| (it, organization.clone()));
    v1::Metadata {
        transition: v1::Transition::from(build.transition).into(),
        workspace_id: build.workspace_id.to_string(),
        workspace_name: build.workspace_name,
        owner_id: build.owner.id.to_string(),
        owner_name: build.owner.username,
        owner_full_name: build.owner.full_name,
        owner_email: build.owner.email,
        owner_groups: build.owner.groups,
        owner_session_token,
        owner_login_type: build.owner.login_type,
        owner_roles: site
            .chain(local)
            .map(|(name, organization_id)| v1::Role { name, organization_id })
            .collect(),
        template_id: build.template_id.to_string(),
        template_name: build.template_name,
        template_version: build.version_name,
        build_id: build.id.to_string(),
        stage: v1::BuildStage::from(build.stage).into(),
    }
}
