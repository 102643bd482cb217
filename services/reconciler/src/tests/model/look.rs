//! Everything that the invariants speak of, read in one statement.

use std::collections::BTreeMap;

use berth_domain::id::{
    AgentId, BuildId, JobId, PREBUILDS_USER, PresetId, TemplateId, VersionId, WorkspaceId,
};
use berth_domain::state::{BuildStage, PoolState, PrebuildStatus, Transition};
use jiff::Timestamp;
use serde::Deserialize;

use super::psql::Psql;
use super::service::Holding;
use super::world::ADA;

/// The database at one moment.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Look {
    pub(super) now: Timestamp,
    pub(super) templates: Vec<Template>,
    pub(super) pools: Vec<Pool>,
    pub(super) members: Vec<Member>,
    pub(super) jobs: Vec<Job>,
    pub(super) agents: Vec<Agent>,
    /// Presets that a pause holds.
    pub(super) paused: Vec<PresetId>,
    /// Workspaces with two builds that have not ended.
    pub(super) doubled: Vec<WorkspaceId>,
    /// Ada's workspaces whose newest build is a claim.
    pub(super) claimed: Vec<WorkspaceId>,
    pub(super) marks: i64,
    pub(super) due: i64,
    pub(super) next_due: Option<Timestamp>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Template {
    pub(super) id: TemplateId,
    pub(super) active: VersionId,
    pub(super) candidate: Option<VersionId>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pool {
    pub(super) preset: PresetId,
    pub(super) template: TemplateId,
    pub(super) version: VersionId,
    pub(super) successor: Option<PresetId>,
    pub(super) status: PrebuildStatus,
    pub(super) consecutive: i64,
    pub(super) max_surge_percent: u32,
    /// Prebuilds ordered and deletes ordered, ever.
    pub(super) creates: i64,
    pub(super) deletes: i64,
    /// The same, as the decision log tells.
    pub(super) planned_creates: i64,
    pub(super) planned_deletes: i64,
    pub(super) decisions: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Member {
    pub(super) id: WorkspaceId,
    pub(super) preset: PresetId,
    pub(super) state: PoolState,
    pub(super) created: Timestamp,
    pub(super) expires: Option<Timestamp>,
    /// What Postgres' one predicate says.
    pub(super) claimable: bool,
}

/// A job that has not ended.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) build: BuildId,
    pub(super) workspace: WorkspaceId,
    pub(super) preset: PresetId,
    pub(super) transition: Transition,
    pub(super) stage: BuildStage,
    pub(super) running: bool,
}

/// An agent that is not ready.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Agent {
    pub(super) id: AgentId,
    pub(super) workspace: WorkspaceId,
    /// The pool of its workspace, while it is a prebuild.
    pub(super) preset: Option<PresetId>,
}

impl Job {
    /// Whether its failure may be its pool's own.
    pub(super) fn is_creation(&self) -> bool {
        self.stage == BuildStage::Prebuild && self.transition == Transition::Start
    }

    pub(super) fn holding(&self) -> Holding {
        Holding {
            job: self.id,
            build: self.build,
            workspace: self.workspace,
            transition: self.transition,
            is_claim: self.stage == BuildStage::Claim,
        }
    }
}

impl Look {
    pub(super) async fn take(psql: &mut Psql) -> Self {
        serde_json::from_value(psql.json(&statement()).await).unwrap()
    }

    pub(super) fn pool(&self, preset: PresetId) -> &Pool {
        self.pools.iter().find(|it| it.preset == preset).unwrap()
    }

    pub(super) fn template(&self, id: TemplateId) -> &Template {
        self.templates.iter().find(|it| it.id == id).unwrap()
    }

    pub(super) fn of(&self, preset: PresetId) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |it| it.preset == preset)
    }

    /// How many the one predicate calls claimable, by pool.
    pub(super) fn claimable(&self) -> BTreeMap<PresetId, usize> {
        let mut found = BTreeMap::new();
        for member in self.members.iter().filter(|it| it.claimable) {
            *found.entry(member.preset).or_default() += 1;
        }
        found
    }
}

fn statement() -> String {
    let pools = pools();
    format!(
        "select json_build_object(
            'now', now(),
            'templates', (select json_agg(json_build_object(
                'id', t.id, 'active', t.active_version_id, 'candidate', t.candidate_version_id))
                from templates t),
            'pools', ({pools}),
            'members', (select coalesce(json_agg(json_build_object(
                'id', w.id, 'preset', w.pool_preset_id, 'state', w.pool_state,
                'created', w.created_at, 'expires', w.pool_expires_at,
                'claimable', is_claimable(w, p, t, now()))
                order by w.created_at, w.id), '[]')
                from workspaces w join prebuild_pools p on p.preset_id = w.pool_preset_id
                join templates t on t.id = w.template_id where not w.deleted),
            'jobs', (select coalesce(json_agg(json_build_object(
                'id', j.id, 'build', b.id, 'workspace', b.workspace_id, 'preset', b.preset_id,
                'transition', b.transition, 'stage', b.stage, 'running', j.started_at is not null)
                order by j.created_at, j.id), '[]')
                from provisioner_jobs j join workspace_builds b on b.job_id = j.id
                where j.completed_at is null),
            'agents', (select coalesce(json_agg(json_build_object(
                'id', a.id, 'workspace', w.id, 'preset', w.pool_preset_id)
                order by a.created_at, a.id), '[]')
                from workspaces w join workspace_agents a on a.build_id = w.latest_build_id
                where not w.deleted and not a.retired and a.lifecycle_state <> 'ready'),
            'paused', (select coalesce(json_agg(distinct p.preset_id), '[]')
                from prebuild_pauses z join prebuild_pools p
                  on z.scope = 'deployment'
                     or z.scope_id in (p.organization_id, p.template_id, p.preset_id)
                where z.expires_at is null or z.expires_at > now()),
            'doubled', (select coalesce(json_agg(d.workspace_id), '[]') from (
                select b.workspace_id
                from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                where j.completed_at is null group by b.workspace_id having count(*) > 1) d),
            'claimed', (select coalesce(json_agg(w.id), '[]')
                from workspaces w join workspace_builds b on b.id = w.latest_build_id
                where w.owner_id = '{ADA}' and not w.deleted and w.pool_preset_id is null
                  and b.stage = 'claim'),
            'marks', (select count(*) from prebuild_pool_marks),
            'due', (select count(*) from prebuild_pools where due_at <= now()),
            'next_due', (select min(due_at) from prebuild_pools))"
    )
}

fn pools() -> String {
    let ordered = |transition: &str| {
        format!(
            "(select count(*) from workspace_builds b
              where b.preset_id = p.preset_id and b.stage = 'prebuild'
                and b.initiator_id = '{PREBUILDS_USER}' and b.transition = '{transition}')"
        )
    };
    let planned = |value: &str, actions: &str| {
        format!(
            "(select coalesce(sum({value}), 0)
              from prebuild_decisions d, jsonb_array_elements(d.actions) a
              where d.preset_id = p.preset_id and a ->> 'action' in ({actions}))"
        )
    };
    format!(
        "select json_agg(json_build_object(
            'preset', p.preset_id, 'template', p.template_id, 'version', p.template_version_id,
            'successor', p.successor_preset_id, 'status', p.prebuild_status,
            'consecutive', p.consecutive_failures,
            'max_surge_percent', coalesce((p.policy ->> 'max_surge_percent')::int, 100),
            'creates', {}, 'deletes', {}, 'planned_creates', {}, 'planned_deletes', {},
            'decisions', (select count(*) from prebuild_decisions d
                          where d.preset_id = p.preset_id and d.actions <> '[]'))
            order by p.preset_id)
         from prebuild_pools p",
        ordered("start"),
        ordered("delete"),
        planned("(a ->> 'count')::int", "'create'"),
        planned("1", "'delete', 'cancel_pending'"),
    )
}
