//! Finds Terraform or OpenTofu and tells it where providers are.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::graph::Graph;
use crate::config::ProvisionerConfig;
use crate::workdir::create_private;

/// The oldest version whose plans and states are read.
const OLDEST: (u64, u64) = (1, 5);
/// How long it may take to say its version.
const ANSWER: Duration = Duration::from_secs(30);

/// What all Terraform sessions of a daemon share.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) program: PathBuf,
    /// What it calls its version.
    pub(crate) version: String,
    /// Variables that every run gets.
    pub(crate) env: BTreeMap<String, String>,
    /// Held while `init` runs: the plugin cache does not stand two of them.
    pub(crate) init: Mutex<()>,
    /// What is known of templates' graphs.
    pub(crate) graphs: Graphs,
}

/// The graphs of templates planned here before, by archive: they say how a template's blocks depend
/// on each other, which no value changes, and asking Terraform again takes a claim's time.
#[derive(Debug, Default)]
pub(crate) struct Graphs(std::sync::Mutex<BTreeMap<String, Arc<Graph>>>);

impl Graphs {
    /// Most graphs that are kept; then all are forgotten.
    const KEPT: usize = 256;

    pub(crate) fn get(&self, archive: &str) -> Option<Arc<Graph>> {
        self.lock().get(archive).cloned()
    }

    pub(crate) fn put(&self, archive: &str, graph: &Arc<Graph>) {
        let mut graphs = self.lock();
        if graphs.len() >= Self::KEPT {
            graphs.clear();
        }
        graphs.insert(archive.to_owned(), Arc::clone(graph));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Graph>>> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Setup {
    /// Finds the configured program, or `terraform`, or `tofu`, and writes its configuration.
    ///
    /// Fails when none is there or it is too old, and says what to do.
    pub(crate) async fn find(
        config: &ProvisionerConfig,
        env: &BTreeMap<String, String>,
    ) -> anyhow::Result<Self> {
        let program = locate(&config.terraform_path, env)?;
        let version = version_of(&program, env).await?;
        let cache = config.cache_dir.join(&config.name);
        let plugins = cache.join("plugins");
        create_private(&plugins)?;
        let cli_config = cache.join("terraformrc");
        let text = cli_configuration(config);
        std::fs::write(&cli_config, text)
            .with_context(|| format!("write {}", cli_config.display()))?;
        let set = |name: &str, value: &Path| (name.to_owned(), value.display().to_string());
        let env = BTreeMap::from([
            set("TF_CLI_CONFIG_FILE", &cli_config),
            set("TF_PLUGIN_CACHE_DIR", &plugins),
            // Templates rarely lock hashes; without this the cache is not used for those.
            set("TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE", Path::new("true")),
            set("TF_IN_AUTOMATION", Path::new("true")),
            // It would ask the network for newer versions of itself.
            set("CHECKPOINT_DISABLE", Path::new("true")),
        ]);
        Ok(Self { program, version, env, init: Mutex::new(()), graphs: Graphs::default() })
    }
}

fn locate(configured: &str, env: &BTreeMap<String, String>) -> anyhow::Result<PathBuf> {
    if !configured.is_empty() {
        let path = PathBuf::from(configured);
        ensure!(
            path.is_file(),
            "`provisioner.terraform_path` is {configured:?}, where there is no file"
        );
        return Ok(std::path::absolute(path)?);
    }
    let path = OsString::from(env.get("PATH").map_or("", String::as_str));
    ["terraform", "tofu"]
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)))
        .find(|candidate| is_executable(candidate))
        .context(
            "there is no `terraform` and no `tofu` on PATH; install one of them (1.5 or later) or \
             set `provisioner.terraform_path`",
        )
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[derive(Deserialize)]
struct Version {
    terraform_version: String,
}

async fn version_of(program: &Path, env: &BTreeMap<String, String>) -> anyhow::Result<String> {
    let shown = program.display();
    let run = Command::new(program)
        .args(["version", "-json"])
        .env_clear()
        .envs(env)
        .env("CHECKPOINT_DISABLE", "true")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(ANSWER, run)
        .await
        .with_context(|| format!("{shown} did not say its version within {ANSWER:?}"))?
        .with_context(|| format!("run {shown} version"))?;
    let Version { terraform_version: version } = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{shown} version -json printed no version"))?;
    if !is_new_enough(&version) {
        bail!("{shown} is version {version}; {}.{} or later is needed", OLDEST.0, OLDEST.1);
    }
    Ok(version)
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

/// Where providers come from: ours from its mirror, the operator's mirrors for the rest, then the
/// registry. `coder/coder` is written short, so that it means each program's own registry.
fn cli_configuration(config: &ProvisionerConfig) -> String {
    let mut text = String::from("disable_checkpoint = true\nprovider_installation {\n");
    let mut exclude = "";
    if let Some(mirror) = &config.plugin_mirror {
        push_mirror(&mut text, mirror, "    include = [\"coder/coder\"]\n");
        exclude = "    exclude = [\"coder/coder\"]\n";
    }
    for mirror in &config.mirrors {
        push_mirror(&mut text, mirror, exclude);
    }
    // A provider that some mirror has is still looked for in the registry: the mirrors may not
    // have the version.
    text + "  direct {\n" + exclude + "  }\n}\n"
}

fn push_mirror(text: &mut String, path: &Path, patterns: &str) {
    // HCL strings escape like JSON's, and `${` begins an expression.
    let path = serde_json::Value::from(path.display().to_string()).to_string();
    let path = path.replace("${", "$${").replace("%{", "%%{");
    for part in ["  filesystem_mirror {\n    path = ", &path, "\n", patterns, "  }\n"] {
        text.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_1_5_are_refused() {
        for (version, enough) in
            [("1.4.9", false), ("1.5.0", true), ("1.11.4", true), ("2.0.0-rc1", true), ("x", false)]
        {
            assert_eq!(is_new_enough(version), enough, "{version}");
        }
    }

    #[test]
    fn our_provider_comes_from_its_mirror_and_nowhere_else() {
        let config = ProvisionerConfig {
            plugin_mirror: Some("/m/our${x}".into()),
            mirrors: vec!["/m/theirs".into()],
            ..Default::default()
        };
        let expected = r#"disable_checkpoint = true
provider_installation {
  filesystem_mirror {
    path = "/m/our$${x}"
    include = ["coder/coder"]
  }
  filesystem_mirror {
    path = "/m/theirs"
    exclude = ["coder/coder"]
  }
  direct {
    exclude = ["coder/coder"]
  }
}
"#;
        assert_eq!(cli_configuration(&config), expected);
    }

    #[tokio::test]
    async fn without_terraform_it_says_what_to_do() {
        let env = BTreeMap::from([("PATH".to_owned(), "/nowhere".to_owned())]);
        let config = ProvisionerConfig::default();
        let error = Setup::find(&config, &env).await.unwrap_err().to_string();
        assert!(error.contains("no `terraform` and no `tofu` on PATH"), "{error}");
    }
}
