//! The environment of a job's tool. Pure: what of the daemon's own environment gets in is given.

use std::collections::BTreeMap;

use berth_proto::v1;
use sha2::{Digest, Sha256};

use crate::config::ProvisionerConfig;

/// The daemon's own variables that every tool gets, when they are set.
const PASSED: [&str; 16] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "ALL_PROXY",
];

/// Systems and machines that an init script is offered for, as templates name them.
const TARGETS: [(&str, &str); 5] = [
    ("linux", "amd64"),
    ("linux", "arm64"),
    ("linux", "armv7"),
    ("darwin", "amd64"),
    ("darwin", "arm64"),
];

/// Starts the agent: a berth that is there, or else the deployment's own.
const AGENT_SCRIPT: &str = r#"#!/bin/sh
set -eu
export BERTH_AGENT_URL="${ACCESS_URL}"
export CODER_AGENT_AUTH="${AUTH_TYPE}"
berth=$(command -v ${BERTH} || true)
if [ -z "$berth" ]; then
  berth=$(mktemp -d)/berth
  url="${ACCESS_URL}bin/berth-${OS}-${ARCH}"
  if command -v curl >/dev/null; then
    curl --fail --silent --show-error --location --retry 5 --output "$berth" "$url"
  else
    wget -q -O "$berth" "$url"
  fi
  chmod +x "$berth"
fi
exec "$berth" agent
"#;

/// What all tools of one daemon get.
#[derive(Debug, Clone)]
pub(crate) struct Base(BTreeMap<String, String>);

impl Base {
    /// From the configuration and the daemon's own environment.
    pub(crate) fn new(
        config: &ProvisionerConfig,
        own: impl Iterator<Item = (String, String)>,
    ) -> Self {
        let passed = |name: &str| {
            PASSED.contains(&name) || config.passthrough_env.iter().any(|wanted| wanted == name)
        };
        let mut all: BTreeMap<_, _> = own.filter(|(name, _)| passed(name)).collect();
        for (os, arch) in TARGETS {
            all.insert(format!("CODER_AGENT_SCRIPT_{os}_{arch}"), agent_script(config, os, arch));
        }
        all.extend(config.template_env.clone());
        Self(all)
    }

    /// What a tool gets that runs for no job, such as `terraform version`.
    pub(crate) fn variables(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Everything for one job: the base, the template's variables, and what the provider reads.
    pub(crate) fn of_job(&self, job: &v1::Job) -> BTreeMap<String, String> {
        let mut all = self.0.clone();
        for variable in &job.variables {
            // What the operator of this daemon set, such as where its folders are, stands.
            let name = format!("TF_VAR_{}", variable.name);
            all.entry(name).or_insert_with(|| variable.value.clone());
        }
        all.insert("CODER_AGENT_URL".into(), job.access_url.clone());
        match &job.input {
            Some(v1::job::Input::TemplateImport(import)) => {
                workspace(&mut all, import.metadata.as_ref());
            }
            Some(v1::job::Input::TemplateDryRun(dry_run)) => {
                workspace(&mut all, dry_run.metadata.as_ref());
                parameters(&mut all, "CODER_PARAMETER_", &dry_run.parameters);
            }
            Some(v1::job::Input::WorkspaceBuild(_) | v1::job::Input::Rehearsal(_)) | None => {}
        }
        if let Some(build) = job.build() {
            workspace(&mut all, build.metadata.as_ref());
            if !lacks_secrets(job) {
                all.insert("CODER_WORKSPACE_BUILD_ID".into(), build.build_id.clone());
            }
            parameters(&mut all, "CODER_PARAMETER_", &build.parameters);
            parameters(&mut all, "CODER_PARAMETER_PREVIOUS_", &build.previous_parameters);
            running_agents(&mut all, &build.running_agents);
        }
        all
    }
}

/// Whether a start is planned for somebody who can have no secrets: the prebuilds user, or the
/// stand-in of a rehearsal. Without a build's id the provider takes a missing secret for an empty
/// one; with it, it refuses to start, and a template that needs a secret could have no prebuilds.
fn lacks_secrets(job: &v1::Job) -> bool {
    match &job.input {
        Some(v1::job::Input::Rehearsal(_)) => true,
        Some(v1::job::Input::WorkspaceBuild(build)) => build.metadata.as_ref().is_some_and(|it| {
            it.transition == i32::from(v1::Transition::Start)
                && it.stage == i32::from(v1::BuildStage::Prebuild)
        }),
        _ => false,
    }
}

/// The owner's secrets, for the plan of a start and nothing else.
pub(crate) fn secrets(job: &v1::Job) -> BTreeMap<String, String> {
    let Some(v1::job::Input::WorkspaceBuild(build)) = &job.input else { return BTreeMap::new() };
    let starts = |it: &v1::Metadata| it.transition == i32::from(v1::Transition::Start);
    if !build.metadata.as_ref().is_some_and(starts) {
        return BTreeMap::new();
    }
    let mut all = BTreeMap::new();
    for v1::UserSecret { env_name, file_path, value } in &build.user_secrets {
        if !env_name.is_empty() {
            all.insert(format!("CODER_SECRET_ENV_{env_name}"), value.clone());
        }
        if !file_path.is_empty() {
            all.insert(format!("CODER_SECRET_FILE_{}", hex::encode(file_path)), value.clone());
        }
    }
    all
}

/// Sets what the build does in an environment made by [`Base::of_job`].
pub(crate) fn set_transition(all: &mut BTreeMap<String, String>, transition: v1::Transition) {
    all.insert("CODER_WORKSPACE_TRANSITION".into(), transition_name(transition).into());
}

/// The name of a transition as templates see it.
pub(crate) fn transition_name(transition: v1::Transition) -> &'static str {
    match transition {
        v1::Transition::Stop => "stop",
        v1::Transition::Delete => "delete",
        v1::Transition::Start | v1::Transition::Unspecified => "start",
    }
}

fn agent_script(config: &ProvisionerConfig, os: &str, arch: &str) -> String {
    let (script, berth) = (&config.agent_script, &config.berth_path);
    let script = if script.is_empty() { AGENT_SCRIPT } else { script };
    let berth = if berth.is_empty() { "berth" } else { berth };
    // Quoted for the shell, whatever the path.
    let berth = format!("'{}'", berth.replace('\'', r"'\''"));
    script.replace("${BERTH}", &berth).replace("${OS}", os).replace("${ARCH}", arch)
}

fn workspace(all: &mut BTreeMap<String, String>, metadata: Option<&v1::Metadata>) {
    let Some(it) = metadata else { return };
    let transition = v1::Transition::try_from(it.transition).unwrap_or_default();
    set_transition(all, transition);
    let roles: Vec<_> = it
        .owner_roles
        .iter()
        .map(|role| serde_json::json!({ "name": role.name, "org_id": role.organization_id }))
        .collect();
    let groups = serde_json::Value::from(it.owner_groups.clone());
    let named = [
        ("NAME", it.workspace_name.clone()),
        ("ID", it.workspace_id.clone()),
        ("TEMPLATE_ID", it.template_id.clone()),
        ("TEMPLATE_NAME", it.template_name.clone()),
        ("TEMPLATE_VERSION", it.template_version.clone()),
        ("OWNER", it.owner_name.clone()),
        ("OWNER_ID", it.owner_id.clone()),
        ("OWNER_NAME", it.owner_full_name.clone()),
        ("OWNER_EMAIL", it.owner_email.clone()),
        ("OWNER_GROUPS", groups.to_string()),
        ("OWNER_SESSION_TOKEN", it.owner_session_token.clone()),
        ("OWNER_LOGIN_TYPE", it.owner_login_type.clone()),
        ("OWNER_RBAC_ROLES", serde_json::Value::from(roles).to_string()),
    ];
    all.extend(named.map(|(name, value)| (format!("CODER_WORKSPACE_{name}"), value)));
    match v1::BuildStage::try_from(it.stage) {
        Ok(v1::BuildStage::Prebuild) => {
            all.insert("CODER_WORKSPACE_IS_PREBUILD".into(), "true".into());
        }
        Ok(v1::BuildStage::Claim) => {
            all.insert("CODER_WORKSPACE_IS_PREBUILD_CLAIM".into(), "true".into());
        }
        _ => {}
    }
}

fn parameters(all: &mut BTreeMap<String, String>, prefix: &str, values: &[v1::ParameterValue]) {
    all.extend(values.iter().map(|it| (format!("{prefix}{}", digest(&it.name)), it.value.clone())));
}

/// One token an agent. A template's only agent also has its under the empty id, where the public
/// provider looks for an agent that the claim replaces and whose new id nobody knows yet.
fn running_agents(all: &mut BTreeMap<String, String>, agents: &[v1::RunningAgent]) {
    let name = |id| format!("CODER_RUNNING_WORKSPACE_AGENT_TOKEN_{}", digest(id));
    all.extend(agents.iter().map(|agent| (name(&agent.agent_id), agent.token.clone())));
    if let [only] = agents {
        all.insert(name(""), only.token.clone());
    }
}

/// Lower-case hexadecimal SHA-256, by which variables carry any name.
pub(crate) fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests;
