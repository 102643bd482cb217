//! Agents, with everything that is attached to them.

use berth_proto::v1;
use sha2::{Digest, Sha256};
use uuid::Builder;

use super::graph::Graph;
use super::model::{Attributes, Node};

/// Apps that an agent shows when the template does not say which.
const DISPLAY_APPS: [&str; 4] = ["port_forwarding_helper", "ssh_helper", "vscode", "web_terminal"];

/// Every agent among `managed`, which is in the order of addresses.
pub(crate) fn agents<'a>(managed: &[&'a Node], graph: &Graph) -> Vec<(&'a Node, v1::Agent)> {
    let of_kind = |kind: &'static str| managed.iter().copied().filter(move |it| it.kind == kind);
    let mut found: Vec<_> = of_kind("coder_agent").map(|node| (node, agent(node))).collect();
    let nodes: Vec<&Node> = found.iter().map(|(node, _)| *node).collect();
    for attached in managed {
        let Some(attach) = attaching(&attached.kind) else { continue };
        if let Some(index) = owner(attached, &nodes, graph) {
            attach(&mut found[index].1, attached);
        }
    }
    found
}

/// How a resource of a kind becomes part of its agent.
fn attaching(kind: &str) -> Option<fn(&mut v1::Agent, &Node)> {
    match kind {
        "coder_app" => Some(|agent, it| agent.apps.push(app(&it.values))),
        "coder_script" => Some(|agent, it| agent.scripts.push(script(&it.values))),
        "coder_env" => Some(|agent, it| agent.extra_envs.push(env(it))),
        "coder_agent_instance" => Some(|agent, it| shows(agent, it.values.text("instance_id"))),
        _ => None,
    }
}

/// Notes the cloud instance whose identity the agent shows. An agent that has a token (`auth` is
/// `token`) goes by that: the template says so, and its machine was given it.
pub(crate) fn shows(agent: &mut v1::Agent, instance: String) {
    let has_token = matches!(agent.auth, Some(v1::agent::Auth::Token(_)));
    if !has_token && !instance.is_empty() {
        agent.auth = Some(v1::agent::Auth::InstanceId(instance));
    }
}

/// The agent that something belongs to: the one whose id it names; in a plan, where ids are not
/// known yet, the nearest it depends on, of the same key if it is counted.
fn owner(attached: &Node, agents: &[&Node], graph: &Graph) -> Option<usize> {
    let wanted = attached.values.text("agent_id");
    if !wanted.is_empty() {
        return agents.iter().position(|agent| agent.values.text("id") == wanted);
    }
    graph.dependencies(&attached.block()).iter().find_map(|block| {
        let of_block = |agent: &&&Node| agent.block() == *block;
        let same = agents.iter().filter(of_block).find(|agent| agent.index == attached.index);
        let chosen = same.or_else(|| agents.iter().find(of_block))?;
        agents.iter().position(|agent| agent.address == chosen.address)
    })
}

fn agent(node: &Node) -> v1::Agent {
    let it = &node.values;
    let id = it.text("id");
    let (behavior, auth) = (it.text("startup_script_behavior"), it.text("auth"));
    let token = it.text("token");
    let by_token = auth.is_empty() || auth == "token";
    let display_apps = it
        .block("display_apps")
        .map_or_else(|| DISPLAY_APPS.map(str::to_owned).to_vec(), |shown| shown.true_names());
    v1::Agent {
        name: node.name.clone(),
        env: it.texts("env").into_iter().collect(),
        operating_system: it.text("os"),
        architecture: it.text("arch"),
        directory: it.text("dir"),
        auth: by_token.then_some(v1::agent::Auth::Token(token)),
        connection_timeout_seconds: it.small_number("connection_timeout"),
        troubleshooting_url: it.text("troubleshooting_url"),
        motd_file: it.text("motd_file"),
        startup_script_behavior: behavior.clone(),
        order: it.number("order"),
        api_key_scope: it.text("api_key_scope"),
        display_apps,
        scripts: own_scripts(&id, it, &behavior),
        apps: Vec::new(),
        metadata: it.blocks("metadata").iter().map(metadata).collect(),
        extra_envs: Vec::new(),
        id,
    }
}

/// The scripts that a template writes into the agent itself. They have no resource, hence no id:
/// theirs is derived, so that the same agent has the same scripts in every build.
fn own_scripts(agent: &str, it: &Attributes, behavior: &str) -> Vec<v1::Script> {
    let startup = v1::Script {
        display_name: "Startup Script".into(),
        icon: "/emojis/25b6.png".into(),
        log_path: "coder-startup-script.log".into(),
        run_on_start: true,
        start_blocks_login: behavior == "blocking",
        ..Default::default()
    };
    let shutdown = v1::Script {
        display_name: "Shutdown Script".into(),
        icon: "/emojis/25c0.png".into(),
        log_path: "coder-shutdown-script.log".into(),
        run_on_stop: true,
        ..Default::default()
    };
    [("startup_script", startup), ("shutdown_script", shutdown)]
        .into_iter()
        .filter_map(|(name, script)| {
            let text = it.text(name);
            let id = derived_id(&format!("{agent}/{name}"));
            (!text.is_empty()).then_some(v1::Script { id, script: text, ..script })
        })
        .collect()
}

fn derived_id(from: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(from.as_bytes()).into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

fn metadata(it: &Attributes) -> v1::AgentMetadata {
    v1::AgentMetadata {
        key: it.text("key"),
        display_name: it.text("display_name"),
        script: it.text("script"),
        interval_seconds: it.number("interval"),
        timeout_seconds: it.number("timeout"),
        order: it.number("order"),
    }
}

fn script(it: &Attributes) -> v1::Script {
    v1::Script {
        id: it.text("id"),
        display_name: it.text("display_name"),
        icon: it.text("icon"),
        script: it.text("script"),
        cron: it.text("cron"),
        run_on_start: it.flag("run_on_start"),
        run_on_stop: it.flag("run_on_stop"),
        start_blocks_login: it.flag("start_blocks_login"),
        timeout_seconds: it.small_number("timeout"),
        log_path: it.text("log_path"),
    }
}

fn env(node: &Node) -> v1::Env {
    let it = &node.values;
    v1::Env {
        name: it.text("name"),
        value: it.text("value"),
        merge_strategy: it.text("merge_strategy"),
        address: node.address.clone(),
    }
}

fn app(it: &Attributes) -> v1::App {
    let health = it.block("healthcheck").unwrap_or_default();
    v1::App {
        id: it.text("id"),
        slug: it.text("slug"),
        display_name: it.text("display_name"),
        command: it.text("command"),
        url: it.text("url"),
        icon: it.text("icon"),
        subdomain: it.flag("subdomain"),
        external: it.flag("external"),
        hidden: it.flag("hidden"),
        share: it.text("share"),
        open_in: it.text("open_in"),
        group: it.text("group"),
        order: it.number("order"),
        healthcheck_url: health.text("url"),
        healthcheck_interval_seconds: health.small_number("interval"),
        healthcheck_threshold: health.small_number("threshold"),
        tooltip: it.text("tooltip"),
    }
}
