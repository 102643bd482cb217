//! The JSON that goes to a template's programs and comes back from them.

use std::collections::BTreeMap;

use berth_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Builder;

use super::manifest::Manifest;
use crate::environment::transition_name;

/// What a program reads on stdin.
#[derive(Debug, Serialize)]
pub(crate) struct Request<'a> {
    version: u32,
    /// `plan` or `apply`.
    pub(crate) step: &'static str,
    /// `import`, `dry_run` or `build`.
    job: &'static str,
    transition: &'static str,
    /// `none`, `prebuild` or `claim`.
    stage: &'static str,
    access_url: &'a str,
    workspace: Workspace<'a>,
    owner: Owner<'a>,
    template: Template<'a>,
    parameters: BTreeMap<String, String>,
    previous_parameters: BTreeMap<String, String>,
    variables: BTreeMap<String, String>,
    running_agents: Vec<RunningAgent<'a>>,
    /// What the last apply of this workspace answered; null before the first.
    pub(crate) state: &'a Value,
    /// What plan answered; null in plan itself.
    pub(crate) plan: Value,
}

#[derive(Debug, Serialize)]
struct Workspace<'a> {
    id: &'a str,
    name: &'a str,
    build_id: &'a str,
}

#[derive(Debug, Serialize)]
struct Owner<'a> {
    id: &'a str,
    name: &'a str,
    full_name: &'a str,
    email: &'a str,
    groups: &'a [String],
}

#[derive(Debug, Serialize)]
struct Template<'a> {
    id: &'a str,
    name: &'a str,
    version: &'a str,
}

#[derive(Debug, Serialize)]
struct RunningAgent<'a> {
    id: &'a str,
    token: &'a str,
}

static NO_METADATA: std::sync::LazyLock<v1::Metadata> =
    std::sync::LazyLock::new(v1::Metadata::default);

impl<'a> Request<'a> {
    /// The request for a job, without step, state and plan.
    pub(crate) fn new(job: &'a v1::Job, manifest: &Manifest, transition: v1::Transition) -> Self {
        // A rehearsal is the plan of a build that never follows.
        let build = job.build();
        let (kind, metadata, given) = match (build, &job.input) {
            (Some(it), _) => ("build", &it.metadata, &it.parameters[..]),
            (None, Some(v1::job::Input::TemplateDryRun(it))) => {
                ("dry_run", &it.metadata, &it.parameters[..])
            }
            (None, Some(v1::job::Input::TemplateImport(it))) => ("import", &it.metadata, &[][..]),
            (None, _) => ("import", &None, &[][..]),
        };
        let metadata = metadata.as_ref().unwrap_or(&NO_METADATA);
        let variables = job.variables.iter().map(|it| (it.name.clone(), it.value.clone()));
        let agents = build.map_or(&[][..], |it| &it.running_agents);
        let agent = |it: &'a v1::RunningAgent| RunningAgent { id: &it.agent_id, token: &it.token };
        Self {
            version: 1,
            step: "",
            job: kind,
            transition: transition_name(transition),
            stage: match v1::BuildStage::try_from(metadata.stage) {
                Ok(v1::BuildStage::Prebuild) => "prebuild",
                Ok(v1::BuildStage::Claim) => "claim",
                _ => "none",
            },
            access_url: &job.access_url,
            workspace: Workspace {
                id: &metadata.workspace_id,
                name: &metadata.workspace_name,
                build_id: build.map_or("", |it| &it.build_id),
            },
            owner: Owner {
                id: &metadata.owner_id,
                name: &metadata.owner_name,
                full_name: &metadata.owner_full_name,
                email: &metadata.owner_email,
                groups: &metadata.owner_groups,
            },
            template: Template {
                id: &metadata.template_id,
                name: &metadata.template_name,
                version: &metadata.template_version,
            },
            parameters: manifest.parameter_defaults().chain(values(given)).collect(),
            previous_parameters: build
                .map(|it| values(&it.previous_parameters).collect())
                .unwrap_or_default(),
            variables: manifest.variable_defaults().chain(variables).collect(),
            running_agents: agents.iter().map(agent).collect(),
            state: &Value::Null,
            plan: Value::Null,
        }
    }
}

fn values(given: &[v1::ParameterValue]) -> impl Iterator<Item = (String, String)> {
    given.iter().map(|it| (it.name.clone(), it.value.clone()))
}

/// What plan prints.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanResult {
    #[serde(default)]
    pub(crate) resources: Vec<Resource>,
    /// None: the sum of the resources'.
    #[serde(default)]
    pub(crate) daily_cost: Option<i32>,
    #[serde(default)]
    pub(crate) replacements: Vec<Replacement>,
    /// Handed to apply as it is.
    #[serde(default)]
    pub(crate) plan: Value,
}

/// What apply prints.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApplyResult {
    pub(crate) state: Value,
    #[serde(default)]
    pub(crate) resources: Vec<Resource>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replacement {
    resource: String,
    paths: Vec<String>,
}

impl From<Replacement> for v1::Replacement {
    fn from(it: Replacement) -> Self {
        Self { resource: it.resource, paths: it.paths }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resource {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    icon: String,
    #[serde(default)]
    hide: bool,
    #[serde(default)]
    daily_cost: i32,
    #[serde(default)]
    instance_type: String,
    #[serde(default)]
    metadata: Vec<ResourceMetadata>,
    #[serde(default)]
    agents: Vec<Agent>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResourceMetadata {
    key: String,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    sensitive: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Agent {
    /// None: derived from the workspace and the name.
    id: Option<String>,
    name: String,
    os: String,
    arch: String,
    directory: String,
    token: Option<String>,
    instance_id: Option<String>,
    env: BTreeMap<String, String>,
    connection_timeout: i32,
    troubleshooting_url: String,
    motd_file: String,
    order: i64,
    display_apps: Vec<String>,
    scripts: Vec<Script>,
    apps: Vec<App>,
    metadata: Vec<AgentMetadata>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Script {
    #[serde(default)]
    id: Option<String>,
    display_name: String,
    #[serde(rename = "script")]
    text: String,
    #[serde(default)]
    icon: String,
    #[serde(default)]
    cron: String,
    #[serde(default)]
    run_on_start: bool,
    #[serde(default)]
    run_on_stop: bool,
    #[serde(default)]
    start_blocks_login: bool,
    #[serde(default)]
    timeout: i32,
    #[serde(default)]
    log_path: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct App {
    #[serde(default)]
    id: Option<String>,
    slug: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    command: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    icon: String,
    #[serde(default)]
    subdomain: bool,
    #[serde(default)]
    external: bool,
    #[serde(default)]
    hidden: bool,
    #[serde(default = "owner")]
    share: String,
    #[serde(default)]
    order: i64,
    #[serde(default)]
    healthcheck: Option<Healthcheck>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Healthcheck {
    url: String,
    interval: i32,
    threshold: i32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentMetadata {
    key: String,
    script: String,
    interval: i64,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    timeout: i64,
    #[serde(default)]
    order: i64,
}

fn owner() -> String {
    "owner".to_owned()
}

/// Every agent that was made can prove who it is.
pub(crate) fn check_tokens(resources: &[Resource]) -> Result<(), String> {
    let agents = resources.iter().flat_map(|resource| &resource.agents);
    for agent in agents {
        if agent.token.is_none() && agent.instance_id.is_none() {
            let name = &agent.name;
            return Err(format!("apply: the agent {name:?} has neither `token` nor `instance_id`"));
        }
    }
    Ok(())
}

/// The resources as they go to the broker. Ids that a template leaves out are derived from the
/// workspace and the names, so that the same thing has the same id in every build.
pub(crate) fn resources(resources: Vec<Resource>, workspace: &str) -> Vec<v1::Resource> {
    let resource = |it: Resource| v1::Resource {
        agents: it.agents.into_iter().map(|agent| agent.into_wire(workspace)).collect(),
        name: it.name,
        r#type: it.kind,
        icon: it.icon,
        hide: it.hide,
        daily_cost: it.daily_cost,
        instance_type: it.instance_type,
        module_path: String::new(),
        metadata: it
            .metadata
            .into_iter()
            .map(|it| v1::ResourceMetadata {
                key: it.key,
                is_null: it.value.is_none(),
                value: it.value.unwrap_or_default(),
                sensitive: it.sensitive,
            })
            .collect(),
    };
    resources.into_iter().map(resource).collect()
}

impl Agent {
    fn into_wire(self, workspace: &str) -> v1::Agent {
        let id = self.id.unwrap_or_else(|| derived(&[workspace, "agent", &self.name]));
        let auth = match (self.token, self.instance_id) {
            (Some(token), _) => Some(v1::agent::Auth::Token(token)),
            (None, instance) => instance.map(v1::agent::Auth::InstanceId),
        };
        v1::Agent {
            name: self.name,
            env: self.env.into_iter().collect(),
            operating_system: self.os,
            architecture: self.arch,
            directory: self.directory,
            auth,
            connection_timeout_seconds: self.connection_timeout,
            troubleshooting_url: self.troubleshooting_url,
            motd_file: self.motd_file,
            startup_script_behavior: String::new(),
            order: self.order,
            api_key_scope: String::new(),
            display_apps: self.display_apps,
            scripts: self.scripts.into_iter().map(|it| it.into_wire(&id)).collect(),
            apps: self.apps.into_iter().map(|it| it.into_wire(&id)).collect(),
            metadata: self.metadata.into_iter().map(AgentMetadata::into_wire).collect(),
            extra_envs: Vec::new(),
            id,
        }
    }
}

impl Script {
    fn into_wire(self, agent: &str) -> v1::Script {
        v1::Script {
            id: self.id.unwrap_or_else(|| derived(&[agent, "script", &self.display_name])),
            display_name: self.display_name,
            icon: self.icon,
            script: self.text,
            cron: self.cron,
            run_on_start: self.run_on_start,
            run_on_stop: self.run_on_stop,
            start_blocks_login: self.start_blocks_login,
            timeout_seconds: self.timeout,
            log_path: self.log_path,
        }
    }
}

impl App {
    fn into_wire(self, agent: &str) -> v1::App {
        let health = self.healthcheck;
        v1::App {
            id: self.id.unwrap_or_else(|| derived(&[agent, "app", &self.slug])),
            slug: self.slug,
            display_name: self.display_name,
            command: self.command,
            url: self.url,
            icon: self.icon,
            subdomain: self.subdomain,
            external: self.external,
            hidden: self.hidden,
            share: self.share,
            order: self.order,
            healthcheck_interval_seconds: health.as_ref().map_or(0, |it| it.interval),
            healthcheck_threshold: health.as_ref().map_or(0, |it| it.threshold),
            healthcheck_url: health.map_or_else(String::new, |it| it.url),
            ..Default::default()
        }
    }
}

impl AgentMetadata {
    fn into_wire(self) -> v1::AgentMetadata {
        v1::AgentMetadata {
            key: self.key,
            display_name: self.display_name,
            script: self.script,
            interval_seconds: self.interval,
            timeout_seconds: self.timeout,
            order: self.order,
        }
    }
}

fn derived(names: &[&str]) -> String {
    let mut hash = Sha256::new();
    for name in names {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name.as_bytes());
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Builder::from_custom_bytes(bytes).into_uuid().to_string()
}
