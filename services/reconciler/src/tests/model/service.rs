//! What the other services do, by the statements and in the transactions in which they do it.

use berth_backbone::builder::{self, BuildRequest};
use berth_backbone::{Backbone, Work};
use berth_db::build::read::Canceled;
use berth_db::build::{self, NewBuild};
use berth_db::claim::{self, Claim, Taken, Wanted};
use berth_db::completion::{self, Facts, NewAgent, NewResource, Owner, Place, Settled};
use berth_db::job::{self, Ending, Filter};
use berth_db::workspace::NewWorkspace;
use berth_db::{Stored, agent, audit, build_state};
use berth_domain::id::{
    AgentId, BuildId, DaemonId, JobId, LeaseToken, PresetId, ResourceId, TemplateId, VersionId,
    WorkspaceId,
};
use berth_domain::state::{
    AgentLifecycle, BuildReason, BuildStage, JobClass, JobErrorCode, JobStatus, PoolState,
    Transition,
};
use uuid::Uuid;

use super::world::{ADA, ORGANIZATION, tags};

/// A lease's length, in seconds; the broker's.
const LEASE_SECONDS: f64 = 60.0;
/// A job that nobody takes is cancelled after this; the broker's default.
const PENDING_SECONDS: f64 = 30.0 * 60.0;
/// Claim builds that a workspace gets; the broker's.
const CLAIM_BUILDS: i64 = 2;

/// Ada asks for a workspace of a preset, as the API does once it has chosen the pool: the preset's
/// own, then the previous version's whose place it takes. `None`: there is no prebuild for her.
pub(super) async fn claim(
    backbone: &Backbone,
    (template, version, preset): (TemplateId, VersionId, PresetId),
) -> Option<WorkspaceId> {
    let name = format!("w{}", backbone.ids.next());
    let wanted = Wanted::Version(version);
    let prepared = claim::prepare(&backbone.db, wanted, ADA, &name).await.unwrap().unwrap();
    let pool = prepared.pools.iter().find(|it| it.preset_id == preset)?;
    let workspace = NewWorkspace {
        owner_id: ADA,
        organization_id: ORGANIZATION,
        template_id: template,
        name,
        autostart_schedule: None,
        ttl_ms: None,
        automatic_updates: "never".to_owned(),
    };
    let mut work = backbone.begin().await.unwrap();
    let own = [(pool.preset_id, version)].into_iter();
    // A version that is named is the one that is meant.
    let previous = pool.previous.iter().filter(|_| version == prepared.active_version_id);
    for (pool, version) in own.chain(previous.map(|it| (it.preset_id, it.version_id))) {
        let new = NewBuild {
            id: BuildId(work.id()),
            job_id: JobId(work.id()),
            workspace_id: WorkspaceId(Uuid::nil()),
            version_id: version,
            preset_id: Some(pool),
            transition: Transition::Start,
            initiator_id: ADA,
            reason: BuildReason::Initiator,
            stage: BuildStage::Claim,
            class: JobClass::Claim,
            pool_state: None,
            parameters: Vec::new(),
            trace: work.trace(),
            now: work.now(),
        };
        let audit = audit::Entry {
            id: work.id(),
            now: work.now(),
            actor: None,
            organization: None,
            action: "create",
            resource_type: "workspace",
            resource_id: Uuid::nil(),
            target: String::new(),
            diff: serde_json::json!({}),
            request_id: None,
            ip: String::new(),
            user_agent: String::new(),
            status_code: 200,
        };
        let order = Claim {
            pool,
            workspace: &workspace,
            build: &new,
            attempt_id: work.id(),
            asked_version: version,
            asked_preset: Some(preset),
            previous_detail: &serde_json::json!({}),
            audit: &audit,
            key: None,
            events: &[],
        };
        let taken = claim::take(work.conn(), order).await.unwrap();
        if let Taken::Claimed(taken) = taken {
            work.commit().await.unwrap();
            return Some(taken.workspace_id);
        }
    }
    None
}

/// The daemon asks for up to `count` jobs.
pub(super) async fn acquire(backbone: &Backbone, daemon: DaemonId, count: usize) {
    let filter = Filter {
        organizations: vec![ORGANIZATION],
        provisioners: vec!["exec".to_owned()],
        tags: tags(),
    };
    let holders: Vec<_> = (0..count).map(|_| (daemon, LeaseToken(backbone.ids.secret()))).collect();
    let mut work = backbone.begin().await.unwrap();
    let taken = job::acquire(work.conn(), &filter, &holders, LEASE_SECONDS).await.unwrap();
    let jobs: Vec<_> = taken.jobs.iter().map(|it| it.id).collect();
    let now = work.now();
    completion::mark_workspaces(work.conn(), &jobs, now).await.unwrap();
    work.commit().await.unwrap();
}

/// A build as a daemon has it in hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holding {
    pub(super) job: JobId,
    pub(super) build: BuildId,
    pub(super) workspace: WorkspaceId,
    pub(super) transition: Transition,
    pub(super) is_claim: bool,
}

/// The daemon reports that its build is done and has `agents` agents, the last one of them with a
/// sub-agent's name.
pub(super) async fn complete(backbone: &Backbone, held: Holding, agents: usize) {
    let mut work = backbone.begin().await.unwrap();
    let now = work.now();
    let ending = Ending { failure: None, digest: b"", now };
    job::lock(work.conn(), held.job).await.unwrap().unwrap();
    if job::mark_completed(work.conn(), held.job, ending).await.unwrap().is_none() {
        return;
    }
    let settled = Settled {
        build_id: held.build,
        workspace_id: held.workspace,
        daily_cost: 0,
        state: Stored { bytes: Vec::new(), seal: None },
    };
    completion::settle(work.conn(), &[settled], now).await.unwrap();
    if held.transition == Transition::Start && agents > 0 {
        insert_agents(&mut work, held, agents).await;
    }
    ended(&mut work, &[held.job]).await;
    work.commit().await.unwrap();
}

async fn insert_agents(work: &mut Work, held: Holding, agents: usize) {
    let now = work.now();
    let resource = ResourceId(work.id());
    let resources = [NewResource {
        job_id: held.job,
        id: resource,
        r#type: "container".to_owned(),
        name: "main".to_owned(),
        icon: String::new(),
        hide: false,
        daily_cost: 0,
        instance_type: String::new(),
        module_path: String::new(),
        metadata: serde_json::json!([]),
    }];
    let rows: Vec<NewAgent> = (0..agents)
        .map(|n| NewAgent {
            job_id: held.job,
            id: AgentId(work.id()),
            state_id: n.to_string(),
            resource_id: resource,
            name: format!("a{n}"),
            // A claim's agents are those of the prebuild: they keep their tokens.
            auth_token: Uuid::from_u128(held.workspace.0.as_u128() ^ (n as u128 + 1)),
            auth_instance_id: None,
            architecture: "amd64".to_owned(),
            operating_system: "linux".to_owned(),
            directory: String::new(),
            environment_variables: serde_json::json!({}),
            motd_file: String::new(),
            troubleshooting_url: String::new(),
            connection_timeout_seconds: 120,
            startup_script_behavior: "non-blocking".to_owned(),
            display_apps: Vec::new(),
            display_order: 0,
            api_key_scope: "all".to_owned(),
            metadata: serde_json::json!([]),
        })
        .collect();
    let owner =
        Owner { workspace_id: held.workspace, build_id: held.build, is_claim: held.is_claim };
    let place = Place { job_id: held.job, transition: held.transition, owner: Some(owner) };
    let (resources, rows): (Vec<_>, Vec<_>) = (resources.iter().collect(), rows.iter().collect());
    completion::insert_resources(work.conn(), &[place], &resources, now).await.unwrap();
    completion::insert_agents(work.conn(), &[place], &rows, now).await.unwrap();
}

/// The daemon reports that its build failed.
pub(super) async fn fail(backbone: &Backbone, job: JobId, code: JobErrorCode) {
    let mut work = backbone.begin().await.unwrap();
    let ending = Ending { failure: Some((code, "it failed")), digest: b"", now: work.now() };
    job::lock(work.conn(), job).await.unwrap().unwrap();
    if job::mark_completed(work.conn(), job, ending).await.unwrap().is_some() {
        failed(&mut work, &[job]).await;
        work.commit().await.unwrap();
    }
}

/// Ada cancels a build. One that runs is ended by its daemon, which does as it is told.
pub(super) async fn cancel(backbone: &Backbone, held: Holding) {
    let mut work = backbone.begin().await.unwrap();
    let now = work.now();
    let outcome = build::read::cancel(work.conn(), held.job, ADA, now).await.unwrap();
    if outcome == Canceled::Ended {
        let state = match held.transition {
            Transition::Start | Transition::Stop => PoolState::Failed,
            Transition::Delete => PoolState::FailedDelete,
        };
        let (_, pool) =
            build::read::mark_ended(work.conn(), held.workspace, state, now).await.unwrap();
        if let Some(preset) = pool {
            berth_db::pool::mark_dirty(work.conn(), &[preset], now).await.unwrap();
        }
    }
    work.commit().await.unwrap();
    if outcome == Canceled::Asked {
        fail(backbone, held.job, JobErrorCode::Canceled).await;
    }
}

/// One pass of the broker's reaper.
pub(super) async fn reap(backbone: &Backbone) {
    let mut work = backbone.begin().await.unwrap();
    let lost = job::requeue_lost(work.conn()).await.unwrap();
    let ids: Vec<_> = lost.iter().map(|it| it.id).collect();
    let now = work.now();
    completion::mark_workspaces(work.conn(), &ids, now).await.unwrap();
    work.commit().await.unwrap();

    let mut work = backbone.begin().await.unwrap();
    let (mut ids, applied) = job::fail_lost(work.conn(), now).await.unwrap();
    ids.extend(applied);
    failed(&mut work, &ids).await;
    work.commit().await.unwrap();

    let mut work = backbone.begin().await.unwrap();
    let ids = job::cancel_unserved(work.conn(), PENDING_SECONDS, now).await.unwrap();
    failed(&mut work, &ids).await;
    work.commit().await.unwrap();
}

async fn failed(work: &mut Work, jobs: &[JobId]) {
    build_state::carry(work.conn(), jobs).await.unwrap();
    completion::carry_costs(work.conn(), jobs).await.unwrap();
    ended(work, jobs).await;
}

async fn ended(work: &mut Work, jobs: &[JobId]) {
    let now = work.now();
    let builds = completion::mark_workspaces(work.conn(), jobs, now).await.unwrap();
    if !builds.is_empty() {
        completion::mark_pools(work.conn(), jobs, now).await.unwrap();
        completion::mark_attempts(work.conn(), jobs).await.unwrap();
    }
    for facts in builds.iter().filter(|it| it.stage == BuildStage::Claim) {
        claim_again(work, facts).await;
    }
}

/// A claim build that failed through no fault of the template is queued once more.
async fn claim_again(work: &mut Work, facts: &Facts) {
    let lost = matches!(
        facts.error_code,
        Some(JobErrorCode::Infrastructure | JobErrorCode::NoProvisioner)
    );
    let count = completion::count_claim_builds(work.conn(), facts.workspace_id).await.unwrap();
    if facts.job_status == JobStatus::Succeeded || !lost || count >= CLAIM_BUILDS {
        return;
    }
    let request = BuildRequest {
        workspace_id: facts.workspace_id,
        version_id: facts.version_id,
        preset_id: facts.preset_id,
        transition: Transition::Start,
        initiator_id: facts.initiator_id,
        reason: BuildReason::Initiator,
        stage: BuildStage::Claim,
        class: JobClass::Claim,
        pool_state: None,
        parameters: Vec::new(),
    };
    builder::queue(work, request).await.unwrap();
}

/// An agent reports where it is in its life.
pub(super) async fn report(
    backbone: &Backbone,
    (workspace, id): (WorkspaceId, AgentId),
    state: AgentLifecycle,
) {
    let mut work = backbone.begin().await.unwrap();
    let now = work.now();
    agent::mark_connected(work.conn(), id, now).await.unwrap();
    agent::lock_workspace(work.conn(), workspace).await.unwrap();
    agent::mark_lifecycle(work.conn(), id, state, now, now).await.unwrap();
    match state {
        AgentLifecycle::Ready => {
            agent::mark_pool_ready(work.conn(), workspace, now).await.unwrap();
        }
        AgentLifecycle::StartError | AgentLifecycle::StartTimeout => {
            agent::mark_pool_failed(work.conn(), workspace, now).await.unwrap();
        }
        _ => {}
    }
    work.commit().await.unwrap();
}
