//! Which processes there are, with which configuration, and when each is ready.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use berth_devstack::CommandSpec;
use serde_json::{Value, json};

use super::fleet::{self, Fleet};
use super::state::{Home, State};
use super::stores::Stores;
use crate::client::session::write_private;
use crate::client::text;
use crate::command::server;

/// The services, in the order in which they are started and reported.
const SERVICES: [&str; 6] = [
    "api",
    "reconciler",
    "provisioner-broker",
    "membership-reconciler",
    "notification",
    "lifecycle",
];
/// Provisioner daemons.
const PROVISIONERS: usize = 2;
/// How long a service may take to become ready.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// Starts the services and waits until each is ready.
pub(super) async fn services(
    home: &Home,
    state: &State,
    stores: &Stores,
    fleet: &mut Fleet,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(home.join("run"))?;
    let keys = home.join("encryption.keys");
    server::ensure_key_file(&keys)?;
    for name in SERVICES {
        let spec = process(home, name, &["service", name])?
            .env("BERTH_DATABASE__URL", stores.database_url())
            .env("BERTH_NATS__URL", stores.nats_url());
        let spec = match name {
            "api" => spec
                .env("BERTH_ENCRYPTION__KEYS_FILE", &keys)
                .env("BERTH_HTTP__LISTEN", format!("127.0.0.1:{}", state.api_port))
                .env("BERTH_HTTP__ACCESS_URL", state.url()),
            "provisioner-broker" => spec
                .env("BERTH_ENCRYPTION__KEYS_FILE", &keys)
                .env("BERTH_GRPC__ADDR", format!("127.0.0.1:{}", state.grpc_port))
                .env("BERTH_ACCESS_URL", state.url()),
            _ => spec,
        };
        fleet.service(name, spec);
    }
    for name in SERVICES {
        ready(home, name).await?;
    }
    Ok(())
}

/// Starts the provisioner daemons. Templates of local workspaces learn from them where those live
/// and which process their agents belong to.
pub(super) fn provisioners(home: &Home, state: &State, fleet: &mut Fleet) -> anyhow::Result<()> {
    std::fs::create_dir_all(home.workspaces())?;
    // Before anything can start an agent.
    berth_agent::write_supervisor_pid_file(&home.pid_file())?;
    let berth = fleet::binary()?;
    for number in 1..=PROVISIONERS {
        let name = format!("provisioner-{number}");
        let config = json!({ "provisioner": {
            "broker_url": state.broker_url(),
            "key": state.provisioner_key,
            "name": name,
            "work_dir": home.join("provisioner"),
            "cache_dir": home.join("provisioner-cache"),
            "berth_path": berth,
            "template_env": {
                "TF_VAR_local_root": home.workspaces(),
                "TF_VAR_berth": berth,
                "BERTH_LOCAL_ROOT": home.workspaces(),
                "BERTH": berth,
                "BERTH_LOCAL_SUPERVISOR_PIDFILE": home.pid_file(),
            },
        } });
        // In a file, not in the environment: it holds the key.
        let file = home.join("run").join(format!("{name}.toml"));
        write_private(&file, toml::to_string(&config)?.as_bytes())?;
        let spec = process(home, &name, &["provisioner", "start"])?;
        fleet.provisioner(&name, spec.args([Path::new("--config"), &file]));
    }
    Ok(())
}

/// A process of this binary that ends when this one does and tells its addresses in a file.
fn process(home: &Home, name: &str, args: &[&str]) -> anyhow::Result<CommandSpec> {
    let announce = announce_file(home, name);
    // What an earlier run announced is no longer so.
    if announce.exists() {
        std::fs::remove_file(&announce)?;
    }
    let spec = CommandSpec::new(fleet::binary()?).args(args.iter().copied());
    let spec = spec.args([Path::new("--announce-file"), &announce]);
    // A Ctrl-C is ours to pass on, in order.
    Ok(spec.env("BERTH_PROCESS__LOG__FORMAT", "pretty").env("BERTH_PROCESS__LOG__LEVEL", "warn"))
}

fn announce_file(home: &Home, name: &str) -> std::path::PathBuf {
    home.join("run").join(format!("{name}.json"))
}

/// Waits until a service says that it is ready.
async fn ready(home: &Home, name: &str) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
    let started = Instant::now();
    let mut last = "it has not said where it listens".to_owned();
    while started.elapsed() < READY_WITHIN {
        if let Some(addr) = admin_addr(&announce_file(home, name)) {
            match http.get(format!("http://{addr}/readyz")).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => last = answer.text().await.unwrap_or_default(),
                Err(error) => last = error.to_string(),
            }
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    bail!("{name} is not ready after {} s: {last}", READY_WITHIN.as_secs())
}

fn admin_addr(file: &Path) -> Option<String> {
    let facts: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    Some(text(&facts, "admin_addr").to_owned())
}
