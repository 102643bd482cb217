//! A world in which a script happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_backbone::Backbone;
use berth_backbone::promotion::{self, How};
use berth_db::pause::{self, NewPause};
use berth_db::pool::Patience;
use berth_db::pool_policy::{self, Policies};
use berth_db::{daemon, prebuild};
use berth_domain::id::{DaemonId, PresetId, ProvisionerKeyId, VersionId, WorkspaceId};
use berth_domain::plan::{PauseScope, PoolPolicy, Replace};
use berth_domain::state::{AgentLifecycle, JobErrorCode};
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::look::{Job, Look};
use super::script::{Death, POOLS, PRESETS, Scope, Step, VERSIONS, spec};
use super::service;
use super::world::{ADA, ORGANIZATION, World, preset, tags, template, version};
use crate::pass::Reconciler;
use crate::sweep;

const DAEMON: DaemonId = DaemonId(Uuid::from_u128(9));

/// What a step did that the looks before and after it do not tell.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Claims that succeeded: the preset asked for and the workspace.
    pub(super) hits: Vec<(PresetId, WorkspaceId)>,
    pub(super) misses: usize,
    /// Pools of which a creation failed by the template's fault.
    pub(super) own_failures: Vec<PresetId>,
    /// Template and version of a plain promotion.
    pub(super) promoted: Option<(usize, usize)>,
}

/// The world, the services in it, and what the test knows without asking the database.
pub(super) struct Live {
    pub(super) world: World,
    services: Backbone,
    replicas: [Reconciler; 2],
    /// Replicas started so far; the newest ones run.
    started: usize,
    has_daemon: bool,
    pub(super) claimed: BTreeSet<WorkspaceId>,
    /// Per template.
    pub(super) policies: [PoolPolicy; PRESETS.len()],
    /// Pauses that were set, ended or not.
    pauses: BTreeMap<Scope, Uuid>,
}

pub(super) fn pool_id(pool: usize) -> PresetId {
    let (t, v, p) = POOLS[pool];
    preset(t, v, p)
}

/// Place in [`POOLS`], and agents of a prebuild.
pub(super) fn place(id: PresetId) -> ((usize, usize, usize), usize) {
    let (t, v, p) = POOLS.into_iter().find(|(t, v, p)| preset(*t, *v, *p) == id).unwrap();
    ((t, v, p), spec((t, v, p)).1)
}

impl Live {
    pub(super) async fn begin(mut world: World) -> Self {
        for (t, presets) in PRESETS.into_iter().enumerate() {
            let of = |v| (0..presets).map(|p| spec((t, v, p)).0).collect();
            let versions: Vec<Vec<_>> = (0..VERSIONS).map(of).collect();
            world.add_template(t, &versions).await;
        }
        let services = world.services.clone();
        let replicas = [world.replica("replica-0"), world.replica("replica-1")];
        let mut live = Self {
            world,
            services,
            replicas,
            started: 2,
            has_daemon: false,
            claimed: BTreeSet::new(),
            policies: [PoolPolicy::default(), PoolPolicy::default()],
            pauses: BTreeMap::new(),
        };
        live.daemon_comes().await;
        live
    }

    pub(super) async fn look(&mut self) -> Look {
        Look::take(&mut self.world.psql).await
    }

    /// Does a step. Time passes a little before each, so that what happens in it can be told from
    /// what happened before.
    pub(super) async fn take(&mut self, step: &Step, before: &Look) -> Effects {
        let mut effects = Effects::default();
        match step {
            Step::Pass { .. }
            | Step::Sweep { .. }
            | Step::Together { .. }
            | Step::Killed { .. } => {
                self.look_at_pools(step, &mut effects).await;
            }
            Step::Claim { pool, at_once } => self.claim(*pool, *at_once, &mut effects).await,
            Step::Promote { template, version } => {
                assert!(self.promote(*template, *version, How::Plain).await);
                effects.promoted = Some((*template, *version));
            }
            Step::Invalidate { template, preset } => self.invalidate(*template, *preset).await,
            Step::Pause { scope, minutes } => self.pause(*scope, *minutes).await,
            Step::Resume { scope } => self.resume(*scope).await,
            Step::Policy { template, gradual, allow_previous, surge, least_minutes } => {
                let replace = if *gradual { Replace::Gradual } else { Replace::AtOnce };
                self.policies[*template] = PoolPolicy {
                    replace,
                    allow_previous_version: *allow_previous,
                    max_surge_percent: *surge,
                    min_remaining_ttl_seconds: least_minutes * 60,
                    ..PoolPolicy::default()
                };
                self.set_policy(*template).await;
            }
            Step::Reset { template } => self.reset(*template).await,
            Step::Warm { template, version, ready_percent, minutes } => {
                let deadline = self.world.now() + SignedDuration::from_mins(*minutes);
                let how = How::Warm { ready_percent: *ready_percent, deadline, actor: ADA };
                self.promote(*template, *version, how).await;
            }
            Step::Minutes { minutes } => self.pass_time(SignedDuration::from_mins(*minutes)).await,
            Step::Reap => service::reap(&self.services).await,
            Step::DaemonLeaves => self.daemon_leaves(),
            Step::DaemonComes => self.daemon_comes().await,
            _ => self.build(step, before, &mut effects).await,
        }
        effects
    }

    async fn look_at_pools(&mut self, step: &Step, effects: &mut Effects) {
        match *step {
            Step::Pass { replica, pool } => pass(&self.replicas[replica], pool_id(pool)).await,
            Step::Sweep { replica } => self.sweep(replica).await,
            Step::Together { pool, claims } => self.together(pool, claims, effects).await,
            Step::Killed { pool, after_micros, death } => {
                self.kill(pool, Duration::from_micros(after_micros), death).await;
            }
            _ => {}
        }
    }

    pub(super) async fn sweep(&self, replica: usize) {
        sweep::sweep(&self.replicas[replica], &CancellationToken::new()).await.unwrap();
    }

    pub(super) async fn pass_over(&self, preset: PresetId) {
        pass(&self.replicas[0], preset).await;
    }

    async fn together(&mut self, pool: usize, claims: usize, effects: &mut Effects) {
        let id = pool_id(pool);
        let mut tasks = Vec::new();
        for replica in self.replicas.clone() {
            tasks.push(tokio::spawn(async move { pass(&replica, id).await }));
        }
        let swept = self.replicas[1].clone();
        tasks.push(tokio::spawn(async move {
            sweep::sweep(&swept, &CancellationToken::new()).await.unwrap();
        }));
        if self.has_daemon {
            let services = self.services.clone();
            tasks.push(tokio::spawn(async move { service::acquire(&services, DAEMON, 2).await }));
        }
        if claims > 0 {
            self.claim(pool, claims, effects).await;
        }
        for task in tasks {
            task.await.unwrap();
        }
    }

    /// A replica dies in the middle of a pass, and another takes its place.
    async fn kill(&mut self, pool: usize, after: Duration, death: Death) {
        let victim = self.replicas[0].clone();
        let name = format!("replica-{}", self.started);
        let heir = self.world.replica(&name);
        let victims = std::mem::replace(&mut self.replicas[0], heir).backbone.db;
        self.started += 1;
        let id = pool_id(pool);
        match death {
            Death::Dropped => {
                let _ = tokio::time::timeout(after, victim.reconcile(id, Patience::Wait)).await;
            }
            Death::Terminated => {
                let doomed =
                    tokio::spawn(async move { victim.reconcile(id, Patience::Wait).await });
                tokio::time::sleep(after).await;
                self.end_sessions().await;
                let _ = doomed.await.unwrap();
            }
        }
        // Whatever the dead one had sent is done or undone before anybody looks.
        victims.close().await;
        while !self.world.psql.lines(&self.dead_sessions("1")).await.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    /// Sessions of replicas that are not among the living ones.
    fn dead_sessions(&self, what: &str) -> String {
        // The first place's names count on; the second's is never killed.
        let heir = self.started - 1;
        format!(
            "select {what} from pg_stat_activity
             where datname = current_database() and application_name like 'replica-%'
               and application_name not in ('replica-1', 'replica-{heir}')"
        )
    }

    async fn end_sessions(&mut self) {
        let sql = self.dead_sessions("pg_terminate_backend(pid)");
        self.world.psql.lines(&sql).await;
    }

    async fn claim(&mut self, pool: usize, at_once: usize, effects: &mut Effects) {
        let (t, v, p) = POOLS[pool];
        let wanted = (template(t), version(t, v), preset(t, v, p));
        let callers: Vec<_> = (0..at_once)
            .map(|_| {
                let services = self.services.clone();
                tokio::spawn(async move { service::claim(&services, wanted).await })
            })
            .collect();
        for caller in callers {
            match caller.await.unwrap() {
                Some(workspace) => {
                    self.claimed.insert(workspace);
                    effects.hits.push((wanted.2, workspace));
                }
                None => effects.misses += 1,
            }
        }
    }

    async fn build(&mut self, step: &Step, before: &Look, effects: &mut Effects) {
        let running: Vec<&Job> = before.jobs.iter().filter(|it| it.running).collect();
        let one_of = |pick: usize| running.get(pick.checked_rem(running.len()).unwrap_or(0));
        let agent = |pick: usize| {
            before.agents.get(pick.checked_rem(before.agents.len()).unwrap_or(0)).cloned()
        };
        match *step {
            Step::Acquire { count } if self.has_daemon => {
                service::acquire(&self.services, DAEMON, count).await;
            }
            Step::Complete { pick } => {
                if let Some(job) = one_of(pick) {
                    self.complete(job).await;
                }
            }
            Step::CompleteAll => self.complete_all(before).await,
            Step::FailOwn { pick } => {
                if let Some(job) = one_of(pick) {
                    if job.is_creation() {
                        effects.own_failures.push(job.preset);
                    }
                    service::fail(&self.services, job.id, JobErrorCode::Template).await;
                }
            }
            Step::FailOther { pick } => {
                if let Some(job) = one_of(pick) {
                    service::fail(&self.services, job.id, JobErrorCode::Infrastructure).await;
                }
            }
            Step::Cancel { pick } => {
                let jobs = &before.jobs;
                if let Some(job) = jobs.get(pick.checked_rem(jobs.len()).unwrap_or(0)) {
                    service::cancel(&self.services, job.holding()).await;
                }
            }
            Step::AgentReady { pick } => {
                if let Some(it) = agent(pick) {
                    let who = (it.workspace, it.id);
                    service::report(&self.services, who, AgentLifecycle::Ready).await;
                }
            }
            Step::AgentFails { pick } => {
                if let Some(it) = agent(pick) {
                    effects.own_failures.extend(it.preset);
                    let who = (it.workspace, it.id);
                    service::report(&self.services, who, AgentLifecycle::StartError).await;
                }
            }
            _ => {}
        }
    }

    async fn complete(&self, job: &Job) {
        let agents = place(job.preset).1;
        service::complete(&self.services, job.holding(), agents).await;
    }

    /// Everything that runs ends well, and all agents are ready.
    pub(super) async fn complete_all(&mut self, before: &Look) {
        for job in before.jobs.iter().filter(|it| it.running) {
            self.complete(job).await;
        }
        for agent in &self.look().await.agents {
            let who = (agent.workspace, agent.id);
            service::report(&self.services, who, AgentLifecycle::Ready).await;
        }
    }

    pub(super) async fn acquire_all(&mut self) {
        service::acquire(&self.services, DAEMON, 64).await;
    }

    pub(super) async fn reap(&mut self) {
        service::reap(&self.services).await;
    }

    /// `false`: it was refused.
    async fn promote(&mut self, t: usize, v: usize, how: How) -> bool {
        let mut work = self.services.begin().await.unwrap();
        let promoted = promotion::promote(&mut work, template(t), version(t, v), how).await;
        if let Err(promotion::PromotionError::Db(error)) = &promoted {
            panic!("{error}");
        }
        if promoted.is_ok() {
            work.commit().await.unwrap();
        }
        promoted.is_ok()
    }

    async fn invalidate(&mut self, t: usize, p: Option<usize>) {
        let mut work = self.services.begin().await.unwrap();
        let now = work.now();
        assert!(pool_policy::lock_template(work.conn(), template(t)).await.unwrap());
        let presets = match p {
            Some(p) => (0..VERSIONS).map(|v| Some(preset(t, v, p))).collect(),
            None => vec![None],
        };
        for one in presets {
            prebuild::invalidate(work.conn(), template(t), one, now).await.unwrap();
        }
        work.commit().await.unwrap();
    }

    async fn pause(&mut self, scope: Scope, minutes: Option<i64>) {
        let mut work = self.services.begin().await.unwrap();
        let (level, scope_id) = level(scope);
        let new = NewPause {
            id: work.id(),
            scope: level,
            scope_id,
            actor: ADA,
            reason: "",
            expires_at: minutes.map(|it| work.now() + SignedDuration::from_mins(it)),
            now: work.now(),
        };
        let id = pause::upsert(work.conn(), &new).await.unwrap();
        pause::mark_pools(work.conn(), level, scope_id, 1, new.now).await.unwrap();
        work.commit().await.unwrap();
        self.pauses.insert(scope, id);
    }

    async fn resume(&mut self, scope: Scope) {
        let Some(id) = self.pauses.remove(&scope) else { return };
        let mut work = self.services.begin().await.unwrap();
        let (level, scope_id) = level(scope);
        let now = work.now();
        assert!(pause::delete(work.conn(), id).await.unwrap());
        pause::mark_pools(work.conn(), level, scope_id, 1, now).await.unwrap();
        work.commit().await.unwrap();
    }

    async fn set_policy(&mut self, t: usize) {
        let mut work = self.services.begin().await.unwrap();
        let now = work.now();
        let policies = Policies { template: self.policies[t].clone(), presets: BTreeMap::new() };
        assert!(pool_policy::lock_template(work.conn(), template(t)).await.unwrap());
        pool_policy::replace(work.conn(), template(t), &policies, now).await.unwrap();
        pool_policy::apply(work.conn(), template(t), now).await.unwrap();
        work.commit().await.unwrap();
    }

    async fn reset(&mut self, t: usize) {
        let mut work = self.services.begin().await.unwrap();
        let now = work.now();
        prebuild::reset(work.conn(), template(t), None, now).await.unwrap();
        work.commit().await.unwrap();
    }

    /// Time passes; a daemon that is there keeps saying so, and renews its leases.
    pub(super) async fn pass_time(&mut self, by: SignedDuration) {
        self.world.advance(by).await;
        if self.has_daemon {
            self.world
                .psql
                .run(
                    "update provisioner_daemons set last_seen_at = now();
                     update provisioner_jobs set lease_expires_at = now() + interval '1 min'
                     where started_at is not null and completed_at is null",
                )
                .await;
        }
    }

    /// A daemon that is there already has nobody looked for.
    pub(super) async fn daemon_is_there(&mut self) {
        if !self.has_daemon {
            self.daemon_comes().await;
        }
    }

    pub(super) async fn daemon_comes(&mut self) {
        let mut work = self.services.begin().await.unwrap();
        let now = work.now();
        let new = daemon::NewDaemon {
            id: DAEMON,
            organization_id: ORGANIZATION,
            key_id: Some(ProvisionerKeyId(Uuid::nil())),
            certificate: None,
            incarnation: "",
            name: "d",
            version: "0",
            api_version: "1.0",
            provisioners: &["exec".to_owned()],
            tags: &tags(),
            capacity: 8,
            now,
        };
        daemon::upsert(work.conn(), &new).await.unwrap();
        let abilities = (&["exec".to_owned()][..], &tags());
        daemon::mark_pools_dirty(work.conn(), ORGANIZATION, abilities, now).await.unwrap();
        work.commit().await.unwrap();
        self.has_daemon = true;
    }

    /// It falls silent: nobody is told.
    const fn daemon_leaves(&mut self) {
        self.has_daemon = false;
    }
}

async fn pass(replica: &Reconciler, preset: PresetId) {
    replica.reconcile(preset, Patience::Wait).await.unwrap();
}

/// A pause's scope as it is stored.
fn level(scope: Scope) -> (PauseScope, Option<Uuid>) {
    match scope {
        Scope::Deployment => (PauseScope::Deployment, None),
        Scope::Organization => (PauseScope::Organization, Some(ORGANIZATION.0)),
        Scope::Template(t) => (PauseScope::Template, Some(template(t).0)),
        Scope::Pool(pool) => (PauseScope::Preset, Some(pool_id(pool).0)),
    }
}

/// Which template and version an id is of.
pub(super) fn numbers(id: VersionId) -> (usize, usize) {
    let all = (0..PRESETS.len()).flat_map(|t| (0..VERSIONS).map(move |v| (t, v)));
    all.into_iter().find(|(t, v)| version(*t, *v) == id).unwrap()
}
