//! The daemon's configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use berth_service_kit::{HasProcess, Period, Process, Secret};
use serde::{Deserialize, Serialize};

/// Most jobs that one daemon runs at once.
const MAX_CAPACITY: u32 = 256;

/// The configuration of `berth provisioner start`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every process has. `process.grace` also bounds the drain: jobs in hand may go on for
    /// the first half of it, are cancelled then, and their tools are killed after three quarters.
    pub process: Process,
    /// The daemon.
    pub provisioner: ProvisionerConfig,
}

impl HasProcess for Config {
    fn process(&self) -> &Process {
        &self.process
    }
}

/// One provisioner daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvisionerConfig {
    /// The broker's gRPC address, `http://` or `https://`.
    pub broker_url: String,
    /// PEM file with the certificate authorities that an `https://` broker is checked against. Like
    /// the two below it is read again when it changes.
    pub broker_ca_file: Option<PathBuf>,
    /// PEM file with the certificate that this daemon shows to an `https://` broker, followed by those
    /// between it and its authority.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    pub client_key_file: Option<PathBuf>,
    /// The provisioner key that admits this daemon to its organization; none is needed beside a
    /// certificate.
    pub key: Secret,
    /// The daemon's name, unique in its organization: letters, digits, `.`, `_` and `-`, at most
    /// 64. Empty: the host's name.
    pub name: String,
    /// What jobs' tags are matched against.
    pub tags: BTreeMap<String, String>,
    /// Jobs run at once, 1 to 256.
    pub capacity: u32,
    /// Where jobs have their directories; each daemon of a machine uses its own part, by its name.
    pub work_dir: PathBuf,
    /// Where provider plugins are kept between jobs; used by name like `work_dir`.
    pub cache_dir: PathBuf,
    /// The `terraform` or `tofu` to run. Empty: the first of them on PATH.
    pub terraform_path: String,
    /// A Terraform filesystem mirror that has the provider `coder/coder` and nothing else.
    pub plugin_mirror: Option<PathBuf>,
    /// Further filesystem mirrors, for any provider; asked before the registry.
    pub mirrors: Vec<PathBuf>,
    /// How long a cancelled tool may take to end by itself before it is killed.
    pub force_cancel_interval: Period,
    /// What `coder_agent.init_script` holds, with `${ACCESS_URL}`, `${AUTH_TYPE}` and, ours,
    /// `${OS}` and `${ARCH}`. Empty: start `berth agent`, fetched from the deployment if need be.
    pub agent_script: String,
    /// The berth binary that the built-in agent script tries first. Empty: the one on PATH.
    pub berth_path: String,
    /// Names of the daemon's own variables that tools get too, beside PATH, HOME, LANG, TMPDIR and
    /// the proxies': cloud credentials, for example.
    pub passthrough_env: Vec<String>,
    /// Variables that every tool gets, such as `TF_VAR_region`; a template's variable of the name
    /// gives way.
    pub template_env: BTreeMap<String, String>,
    /// What this daemon does that is not settled yet.
    pub experiments: Vec<Experiment>,
}

/// Something that is not settled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Experiment {
    /// Keeps what `terraform init` made from one build of a workspace to the next, where the
    /// template has `reuse_terraform_workspace` set.
    ReuseTerraformWorkspace,
}

impl std::str::FromStr for Experiment {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "reuse-terraform-workspace" => Ok(Self::ReuseTerraformWorkspace),
            _ => Err(format!("no experiment {name:?}; there is reuse-terraform-workspace")),
        }
    }
}

impl Default for ProvisionerConfig {
    fn default() -> Self {
        Self {
            broker_url: "http://127.0.0.1:3010".into(),
            broker_ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            key: Secret::default(),
            name: String::new(),
            tags: BTreeMap::from([
                ("scope".to_owned(), "organization".to_owned()),
                ("owner".to_owned(), String::new()),
            ]),
            capacity: 2,
            work_dir: "/tmp/berth-provisioner".into(),
            cache_dir: "/tmp/berth-provisioner-cache".into(),
            terraform_path: String::new(),
            plugin_mirror: None,
            mirrors: Vec::new(),
            force_cancel_interval: Period::from_mins(10),
            agent_script: String::new(),
            berth_path: String::new(),
            passthrough_env: Vec::new(),
            template_env: BTreeMap::new(),
            experiments: Vec::new(),
        }
    }
}

impl ProvisionerConfig {
    /// Checks what types cannot and fills in the name.
    pub(crate) fn checked(mut self) -> anyhow::Result<Self> {
        if self.name.is_empty() {
            self.name = host_name()?;
        }
        let name = &self.name;
        ensure!(
            is_name(name),
            "`provisioner.name` is {name:?}: use 1 to 64 letters, digits, `.`, `_` or `-`, and \
             begin with a letter or digit"
        );
        let capacity = self.capacity;
        ensure!(
            (1..=MAX_CAPACITY).contains(&capacity),
            "`provisioner.capacity` is {capacity}: it must be 1 to {MAX_CAPACITY}"
        );
        self.check_credentials()?;
        for (name, value) in &self.template_env {
            ensure!(
                !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'),
                "`provisioner.template_env` has {name:?}, which cannot be a variable's name or has \
                 a value with a zero byte"
            );
        }
        // Tools run in directories of their own, where a relative path would mean another place.
        for path in [&mut self.work_dir, &mut self.cache_dir]
            .into_iter()
            .chain(&mut self.plugin_mirror)
            .chain(&mut self.broker_ca_file)
            .chain(&mut self.client_cert_file)
            .chain(&mut self.client_key_file)
            .chain(&mut self.mirrors)
        {
            *path = std::path::absolute(&*path)
                .with_context(|| format!("make {} absolute", path.display()))?;
        }
        Ok(self)
    }

    fn check_credentials(&self) -> anyhow::Result<()> {
        let (cert, key) = (&self.client_cert_file, &self.client_key_file);
        ensure!(
            cert.is_some() == key.is_some(),
            "`provisioner.client_cert_file` and `provisioner.client_key_file` go together: set both"
        );
        ensure!(
            cert.is_none() || self.broker_url.starts_with("https://"),
            "`provisioner.client_cert_file` is set, and `provisioner.broker_url` is {:?}: \
             certificates are shown to an https:// broker alone",
            self.broker_url
        );
        ensure!(
            cert.is_some() || !self.key.is_empty(),
            "`provisioner.key` is not set: create a key with `berth provisioner keys create` and \
             set BERTH_PROVISIONER__KEY, or set `provisioner.client_cert_file` and \
             `provisioner.client_key_file`"
        );
        Ok(())
    }
}

fn host_name() -> anyhow::Result<String> {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().context("the host's name is not UTF-8")?;
    Ok(name.to_owned())
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests;
