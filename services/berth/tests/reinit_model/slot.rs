//! One workspace of a script: what is stored of it, and its agent's processes.

use berth_proto::v1;

use crate::daemon::SCRIPT;
use crate::process::Process;
use crate::world::{IT, World, preset};

const PREBUILDS: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";

/// What the rules say to an agent that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Nothing yet.
    Wait,
    /// Reinitialise.
    Reinitialise,
    /// Nothing will come.
    Stop,
}

/// A process and what it may have been told.
pub(crate) struct Life {
    pub(crate) process: Process,
    /// It lived, with a good token, while the rule was to reinitialise.
    may: bool,
    /// The same, and it had the time to.
    must: bool,
    /// What it had asked when it was first seen to have stopped asking.
    pub(crate) last_asked: Option<usize>,
}

pub(crate) struct Slot {
    pub(crate) number: usize,
    pub(crate) workspace: String,
    /// The token of the agent that the latest build which has one made; `None`: it is stopped.
    pub(crate) token: Option<String>,
    /// The jobs that the daemon holds.
    pub(crate) job: Option<v1::Job>,
    pub(crate) is_claimed: bool,
    pub(crate) is_cut: bool,
    pub(crate) lives: Vec<Life>,
}

impl Slot {
    /// A prebuild whose agent has not come up yet. Those of earlier scripts are out of the way.
    pub(crate) async fn new(world: &World, number: usize, ids: [String; 2]) -> Self {
        let [workspace, token] = ids;
        let (id, preset) = (&workspace, preset(number));
        let sql = format!(
            "begin;
             update workspaces set deleted = true where pool_preset_id = '{preset}';
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                     class, file_id, input, created_at, updated_at, started_at, completed_at)
                 values ('{id}', '{IT}', '{PREBUILDS}', 'workspace_build', 'exec', 4, '{IT}', '{{}}',
                         now(), now(), now(), now());
             insert into workspaces (id, owner_id, organization_id, template_id, name, created_at,
                     updated_at, last_used_at, pool_preset_id, pool_state, latest_build_id,
                     latest_build_number)
                 values ('{id}', '{PREBUILDS}', '{IT}', '{IT}', 'prebuild-{id}', now(), now(), now(),
                         '{preset}', 'unready', '{id}', 1);
             insert into workspace_builds (id, workspace_id, template_version_id, preset_id,
                     build_number, transition, initiator_id, stage, job_id, created_at, updated_at)
                 values ('{id}', '{id}', '{IT}', '{preset}', 1, 'start', '{PREBUILDS}', 'prebuild',
                         '{id}', now(), now());
             insert into workspace_resources (id, job_id, transition, type, name, created_at)
                 values ('{id}', '{id}', 'start', 'local', 'box', now());
             insert into workspace_agents (id, resource_id, workspace_id, build_id, name, auth_token,
                     created_at, updated_at)
                 values ('{id}', '{id}', '{id}', '{id}', 'main', '{token}', now(), now());
             insert into workspace_agent_log_sources (id, agent_id, display_name, created_at)
                 values ('{id}', '{id}', 'start', now());
             insert into workspace_agent_scripts (id, agent_id, log_source_id, script, run_on_start)
                 values ('{id}', '{id}', '{id}', '{SCRIPT}', true);
             commit;"
        );
        world.rows(&sql).await;
        Self {
            number,
            workspace,
            token: Some(token),
            job: None,
            is_claimed: false,
            is_cut: false,
            lives: Vec::new(),
        }
    }

    /// The process that runs.
    pub(crate) fn alive(&mut self) -> Option<&mut Life> {
        self.lives.last_mut().filter(|it| it.process.is_alive())
    }

    /// Starts the agent's process. `false`: it runs, or there is no agent.
    pub(crate) async fn start(&mut self, world: &World) -> bool {
        let Some(token) = self.token.clone() else { return false };
        if let Some(life) = self.alive() {
            if life.process.token == token {
                return false;
            }
            // Its machine is another one now.
            life.process.kill();
        }
        let home = world.folder(&format!("{}-{}", self.workspace, self.lives.len()));
        let process = Process::start(&token, home, world.ports).await;
        if self.is_cut {
            process.cut();
        }
        self.lives.push(Life { process, may: false, must: false, last_asked: None });
        true
    }

    /// What the rules say now, from the stored state.
    pub(crate) async fn rule(&self, world: &World) -> Rule {
        let sql = format!(
            "select w.pool_state is not null, w.latest_build_number,
                    coalesce(c.build_number, 0), coalesce(c.status, '')
             from workspaces w left join lateral (
                 select b.build_number, j.status from workspace_builds b
                 join provisioner_jobs j on j.id = b.job_id
                 where b.workspace_id = w.id and b.stage = 'claim'
                 order by b.build_number desc limit 1) c on true
             where w.id = '{}'",
            self.workspace
        );
        let row = world.rows(&sql).await.remove(0);
        match (row[0].as_str(), row[1] == row[2], row[3].as_str()) {
            ("t", ..) | ("f", true, "pending" | "running" | "canceling") => Rule::Wait,
            ("f", true, "succeeded") => Rule::Reinitialise,
            ("f", ..) => Rule::Stop,
            other => panic!("not a state: {other:?}"),
        }
    }

    /// Builds that no daemon has taken yet.
    pub(crate) async fn queued(&self, world: &World) -> bool {
        let sql = format!(
            "select count(*) from workspace_builds b join provisioner_jobs j on j.id = b.job_id
             where b.workspace_id = '{}' and j.status = 'pending'",
            self.workspace
        );
        world.count(&sql).await > 0
    }

    /// Whether the pool would hand it out.
    pub(crate) async fn is_ready(&self, world: &World) -> bool {
        let sql = format!(
            "select count(*) from workspaces where id = '{}' and pool_state = 'ready'",
            self.workspace
        );
        world.count(&sql).await > 0
    }

    /// Notes what the living process may be told from now on, and fails on what it must not do.
    pub(crate) async fn look(&mut self, world: &World) -> Rule {
        let rule = self.rule(world).await;
        let token = self.token.clone();
        if let Some(life) = self.alive()
            && rule == Rule::Reinitialise
            && token.as_deref() == Some(&life.process.token)
        {
            life.may = true;
        }
        self.check();
        rule
    }

    /// The living process has done what it had to.
    pub(crate) fn settled(&mut self, rule: Rule) {
        if let Some(life) = self.alive() {
            life.must |= rule == Rule::Reinitialise && life.may;
        }
        self.check();
    }

    fn check(&mut self) {
        for (number, life) in self.lives.iter_mut().enumerate() {
            let seen = &life.process.seen;
            let times = seen.reinitialised();
            let range = usize::from(life.must)..=usize::from(life.may);
            assert!(
                range.contains(&times),
                "process {number} of workspace {} reinitialised {times} times, not {range:?}",
                self.number
            );
            let asked = seen.asked();
            if seen.stopped_asking() {
                let last = *life.last_asked.get_or_insert(asked);
                assert_eq!(asked, last, "process {number} of workspace {} asks on", self.number);
            }
        }
    }
}
