//! Resources with their agents, read off a plan or a state.

use berth_proto::v1;
use serde_json::Value;

use super::agents;
use super::graph::Graph;
use super::model::Node;

/// Attributes that say what machine a resource is, by its type.
const INSTANCE_TYPES: [(&str, &str); 8] = [
    ("aws_instance", "instance_type"),
    ("aws_spot_instance_request", "instance_type"),
    ("azurerm_linux_virtual_machine", "size"),
    ("azurerm_virtual_machine", "vm_size"),
    ("azurerm_windows_virtual_machine", "size"),
    ("google_compute_instance", "machine_type"),
    ("hcloud_server", "server_type"),
    ("openstack_compute_instance_v2", "flavor_name"),
];

/// Attributes by which a cloud names an instance in what it signs about it, by its type.
const INSTANCE_IDS: [(&str, &str); 5] = [
    ("aws_instance", "id"),
    ("aws_spot_instance_request", "spot_instance_id"),
    ("azurerm_linux_virtual_machine", "virtual_machine_id"),
    ("azurerm_windows_virtual_machine", "virtual_machine_id"),
    ("google_compute_instance", "instance_id"),
];

/// What a build has: each managed resource that is no description, with the agents that run in it.
///
/// `running` is whether the workspace runs: an agent that no resource depends on is then shown as a
/// resource of its own.
pub(crate) fn resources(nodes: &[Node], graph: &Graph, running: bool) -> Vec<v1::Resource> {
    let mut managed: Vec<&Node> = nodes.iter().filter(|node| !node.is_data()).collect();
    managed.sort_by(|a, b| a.address.cmp(&b.address));
    let mut shown: Vec<Shown> = managed
        .iter()
        .filter(|node| !node.is_description())
        .map(|node| Shown { node, resource: resource(node) })
        .collect();
    for (node, mut agent) in agents::agents(&managed, graph) {
        match host(node, &shown, graph) {
            Host::Is(index) => {
                // What a `coder_agent_instance` says wins.
                if agent.auth.is_none() {
                    agents::shows(&mut agent, instance_id(shown[index].node));
                }
                shown[index].resource.agents.push(agent);
            }
            Host::None if running => {
                let resource = v1::Resource { agents: vec![agent], ..resource(node) };
                shown.push(Shown { node, resource });
            }
            Host::Absent | Host::None => {}
        }
    }
    for node in managed.iter().filter(|node| node.kind == "coder_metadata") {
        if let Some(index) = described(node, &shown, graph) {
            describe(&mut shown[index].resource, node);
        }
    }
    shown.into_iter().map(|shown| shown.resource).collect()
}

/// The cost of a day of everything in `nodes`.
pub(crate) fn daily_cost(nodes: &[Node]) -> i32 {
    let metadata = nodes.iter().filter(|it| !it.is_data() && it.kind == "coder_metadata");
    let costs = metadata.map(|it| it.values.small_number("daily_cost"));
    costs.fold(0, i32::saturating_add)
}

struct Shown<'a> {
    node: &'a Node,
    resource: v1::Resource,
}

/// Where an agent runs.
enum Host {
    /// In this resource.
    Is(usize),
    /// In one that this build does not have: the workspace is stopped.
    Absent,
    /// The template has no resource that depends on the agent.
    None,
}

/// The nearest resource that depends on the agent. Of a counted one, the instance of the agent's
/// own key, or the first.
fn host(agent: &Node, shown: &[Shown<'_>], graph: &Graph) -> Host {
    let mut templated = false;
    for block in graph.dependents(&agent.block()) {
        if !is_resource(&block) {
            continue;
        }
        templated = true;
        if let Some(index) = instance(shown, &block, agent) {
            return Host::Is(index);
        }
    }
    if templated { Host::Absent } else { Host::None }
}

/// The resource that a `coder_metadata` is about: the instance with the id it names, among the
/// blocks it depends on; in a plan, where ids are not known yet, the nearest.
fn described(metadata: &Node, shown: &[Shown<'_>], graph: &Graph) -> Option<usize> {
    let wanted = metadata.values.text("resource_id");
    let blocks = graph.dependencies(&metadata.block());
    let exact = |shown: &Shown<'_>| {
        !wanted.is_empty()
            && shown.node.values.text("id") == wanted
            && blocks.contains(&shown.node.block())
    };
    shown
        .iter()
        .position(exact)
        .or_else(|| blocks.iter().find_map(|block| instance(shown, block, metadata)))
}

/// The instance of `block` that goes with `of`: with the same key, else the first.
fn instance(shown: &[Shown<'_>], block: &str, of: &Node) -> Option<usize> {
    let of_block = |shown: &&Shown<'_>| shown.node.block() == block;
    let same = |shown: &Shown<'_>| {
        shown.node.block() == block
            && shown.node.index == of.index
            && shown.node.module == of.module
    };
    shown.iter().position(same).or_else(|| {
        let first = shown.iter().find(of_block)?;
        shown.iter().position(|shown| shown.node.address == first.node.address)
    })
}

/// Whether a node of the graph is a managed resource that really exists.
fn is_resource(block: &str) -> bool {
    let mut parts = block.split('.').collect::<Vec<_>>();
    while parts.first() == Some(&"module") && parts.len() > 2 {
        parts.drain(..2);
    }
    matches!(parts[..], [kind, _name]
        if !["data", "local", "var", "output", "module"].contains(&kind) && !kind.starts_with("coder_"))
}

/// The id of the instance that a resource is; empty: it is none that is known here.
fn instance_id(node: &Node) -> String {
    let attribute = INSTANCE_IDS.iter().find(|(kind, _)| *kind == node.kind);
    attribute.map_or_else(String::new, |(_, name)| node.values.text(name))
}

fn resource(node: &Node) -> v1::Resource {
    let instance_type = INSTANCE_TYPES.iter().find(|(kind, _)| *kind == node.kind);
    v1::Resource {
        name: node.name.clone(),
        r#type: node.kind.clone(),
        instance_type: instance_type.map_or_else(String::new, |(_, name)| node.values.text(name)),
        module_path: node.module.clone(),
        ..Default::default()
    }
}

fn describe(resource: &mut v1::Resource, metadata: &Node) {
    let it = &metadata.values;
    resource.hide |= it.flag("hide");
    resource.daily_cost = resource.daily_cost.saturating_add(it.small_number("daily_cost"));
    if it.get("icon").is_some() {
        resource.icon = it.text("icon");
    }
    resource.metadata.extend(it.blocks("item").into_iter().map(|item| v1::ResourceMetadata {
        key: item.text("key"),
        value: item.text("value"),
        sensitive: item.flag("sensitive"),
        is_null: item.flag("is_null") || item.get("value").is_none_or(Value::is_null),
    }));
}
