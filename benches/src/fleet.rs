//! Everything that makes workspaces, as processes: the services, a provisioner daemon, and a template
//! whose workspaces have a real agent.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use crate::api::Api;
use crate::data::TOKEN;
use crate::service::{Memory, Service, until};
use crate::stage::{Estate, Stage};

/// How long the pool may take to be filled.
const FILLS: Duration = Duration::from_mins(3);

/// One parameterless preset with a pool.
const MANIFEST: &str = r#"version = 1
plan = "plan.sh"
apply = "apply.sh"

[[presets]]
name = "small"
prebuilds = { instances = COUNT }
"#;

const PLAN: &str = r#"#!/bin/sh
echo '{"resources": [{"name": "thing", "type": "bench_thing"}]}'
"#;

/// Starts an agent for a prebuild, and does nothing on a claim: the agent runs already. What the
/// agent's script leaves for its new owner is the file `reinitialised`.
const APPLY: &str = r#"#!/bin/sh
set -eu
dir="$BENCH_ROOT/$CODER_WORKSPACE_ID"
if [ "$CODER_WORKSPACE_TRANSITION" != start ]; then
  "$BERTH" agent --stop --dir "$dir"
  echo '{"state": {}, "resources": []}'
  exit 0
fi
if [ -e "$dir/token" ]; then
  read -r token < "$dir/token"
else
  mkdir -p "$dir"
  read -r token < /proc/sys/kernel/random/uuid
  echo "$token" > "$dir/token"
  BERTH_AGENT_URL="$CODER_AGENT_URL" BERTH_AGENT_TOKEN="$token" "$BERTH" agent --detach --dir "$dir" >&2
fi
cat <<END
{"state": {}, "resources": [{"name": "thing", "type": "bench_thing", "agents": [{
  "name": "main", "os": "linux", "arch": "amd64", "directory": "$dir", "token": "$token",
  "scripts": [{"display_name": "Startup", "run_on_start": true, "start_blocks_login": true,
    "script": "[ \$CODER_WORKSPACE_OWNER_NAME = prebuilds ] || : > '$dir/reinitialised'"}]}]}]}
END
"#;

/// The processes. They end with this value, the agents a moment later.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The API.
    pub(crate) api: Api,
    /// The others, with their names.
    pub(crate) services: Vec<(&'static str, Service)>,
    /// The template's id.
    pub(crate) template: String,
    berth: PathBuf,
    root: PathBuf,
    /// Agents look whether the process that it names is there.
    supervisor: PathBuf,
}

impl Fleet {
    /// Starts everything on an estate with people, and waits until `count` prebuilds are there.
    pub(crate) async fn start(
        stage: &Stage,
        estate: &mut Estate,
        count: u64,
    ) -> anyhow::Result<Self> {
        let api = Api::start(stage, estate).await?;
        let access = format!("http://{}", api.client.address());
        let grpc = format!("127.0.0.1:{}", berth_devstack::free_port()?);
        let broker = [("BERTH_GRPC__ADDR", grpc.as_str()), ("BERTH_ACCESS_URL", &access)];
        let mut services = Vec::new();
        for name in [
            "provisioner-broker",
            "reconciler",
            "membership-reconciler",
            "notification",
            "lifecycle",
        ] {
            let more: &[(&str, &str)] = if name == "provisioner-broker" { &broker } else { &[] };
            services.push((name, stage.start((name, 0), estate, &estate.url, more).await?));
        }
        let key = json!({ "name": "bench" });
        let key = api.client.send(Method::POST, "/organizations/default/provisionerkeys", &key);
        let key = key.await?["key"].as_str().context("a key")?.to_owned();
        let (dir, berth) = (stage.dir(), stage.berth());
        let (root, supervisor) = (dir.join("workspaces"), dir.join("supervisor.pid"));
        std::fs::create_dir_all(&root)?;
        std::fs::write(&supervisor, std::process::id().to_string())?;
        let text = |path: &Path| path.display().to_string();
        let variables = [
            ("BENCH_ROOT", root.as_path()),
            ("BERTH", berth),
            ("BERTH_LOCAL_SUPERVISOR_PIDFILE", &supervisor),
        ];
        // A TOML inline table; its strings are written as JSON's.
        let variables = variables.map(|(name, path)| format!("{name} = {}", json!(path)));
        let variables = format!("{{ {} }}", variables.join(", "));
        let daemon = [
            ("BERTH_PROVISIONER__BROKER_URL", format!("http://{grpc}")),
            ("BERTH_PROVISIONER__KEY", key),
            ("BERTH_PROVISIONER__NAME", "bench".to_owned()),
            ("BERTH_PROVISIONER__CAPACITY", "4".to_owned()),
            ("BERTH_PROVISIONER__WORK_DIR", text(&dir.join("work"))),
            ("BERTH_PROVISIONER__CACHE_DIR", text(&dir.join("cache"))),
            ("BERTH_PROVISIONER__BERTH_PATH", text(berth)),
            ("BERTH_PROVISIONER__TEMPLATE_ENV", variables),
        ];
        services.push(("provisioner", stage.start_daemon(&daemon).await?));
        let template = push(stage, &access, count).await?;
        let berth = berth.to_owned();
        let fleet = Self { api, services, template, berth, root, supervisor };
        fleet.full(estate, count).await?;
        Ok(fleet)
    }

    /// Waits until as many prebuilds are ready as are wanted, and no job is left.
    pub(crate) async fn full(&self, estate: &mut Estate, count: u64) -> anyhow::Result<()> {
        let sql = format!(
            "select count(*) filter (where w.pool_state = 'ready')
                    - 1000 * (select count(*) from provisioner_jobs where completed_at is null)
             from workspaces w where w.template_id = '{}' and not w.deleted",
            self.template
        );
        until("the pool is full and nothing is being built", FILLS, async || {
            Ok((estate.sql.text(&sql).await? == count.to_string()).then_some(()))
        })
        .await
    }

    /// The folder of a workspace.
    pub(crate) fn folder(&self, workspace: &str) -> PathBuf {
        self.root.join(workspace)
    }

    /// Memory of every agent that runs.
    pub(crate) fn agents(&self) -> anyhow::Result<Vec<Memory>> {
        let mut all = Vec::new();
        for folder in std::fs::read_dir(&self.root)? {
            let pid = std::fs::read_to_string(folder?.path().join("agent.pid")).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse() {
                all.extend(Memory::of(pid).ok());
            }
        }
        Ok(all)
    }

    /// Stops a workspace's agent.
    pub(crate) async fn stop_agent(&self, folder: &Path) -> anyhow::Result<()> {
        let mut stop = Command::new(&self.berth);
        let stopped = stop.args(["agent", "--stop", "--dir"]).arg(folder).output().await?;
        let said = String::from_utf8_lossy(&stopped.stderr);
        anyhow::ensure!(stopped.status.success(), "berth agent --stop: {said}");
        Ok(())
    }

    /// Stops everything.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        for folder in std::fs::read_dir(&self.root)? {
            self.stop_agent(&folder?.path()).await?;
        }
        let _ = std::fs::remove_file(&self.supervisor);
        while let Some((_, service)) = self.services.pop() {
            service.stop().await?;
        }
        self.api.service.stop().await
    }
}

/// Pushes the template and answers with its id.
async fn push(stage: &Stage, access: &str, count: u64) -> anyhow::Result<String> {
    let dir = stage.dir().join("template");
    std::fs::create_dir_all(&dir)?;
    let manifest = MANIFEST.replace("COUNT", &count.to_string());
    for (name, text) in
        [("template.toml", manifest.as_str()), ("plan.sh", PLAN), ("apply.sh", APPLY)]
    {
        let file = dir.join(name);
        std::fs::write(&file, text)?;
        std::fs::set_permissions(&file, Permissions::from_mode(0o755))?;
    }
    let mut push = Command::new(stage.berth());
    push.args(["templates", "push", "--name", "bench", "--output", "json"]).arg(&dir);
    let pushed = push.env("BERTH_URL", access).env("BERTH_TOKEN", TOKEN).output().await?;
    let said = String::from_utf8_lossy(&pushed.stderr);
    anyhow::ensure!(pushed.status.success(), "berth templates push: {said}");
    let answer: serde_json::Value = serde_json::from_slice(&pushed.stdout)?;
    Ok(answer["template"]["id"].as_str().context("a template with an id")?.to_owned())
}
