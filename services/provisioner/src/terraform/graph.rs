//! Which block of a template depends on which, read off `terraform graph`.
//!
//! The full graph is used, with its variables, locals and outputs: the way from an agent to what
//! runs it may lead through any of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Who depends on whom. Nodes are addresses of blocks without instance keys.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    upstream: BTreeMap<String, BTreeSet<String>>,
    downstream: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// The graph without edges.
    pub(crate) const EMPTY: Self = Self { upstream: BTreeMap::new(), downstream: BTreeMap::new() };

    /// Reads the output of `terraform graph -type=plan`. Lines that are no edges are passed over.
    pub(crate) fn parse(dot: &str) -> Self {
        let mut graph = Self::default();
        for (from, to) in dot.lines().filter_map(edge) {
            graph.upstream.entry(from.clone()).or_default().insert(to.clone());
            graph.downstream.entry(to).or_default().insert(from);
        }
        graph
    }

    /// Everything that depends on `block`, nearest first, then by address.
    pub(crate) fn dependents(&self, block: &str) -> Vec<String> {
        walk(&self.downstream, block)
    }

    /// Everything that `block` depends on, nearest first, then by address.
    pub(crate) fn dependencies(&self, block: &str) -> Vec<String> {
        walk(&self.upstream, block)
    }
}

/// Breadth first: a level is complete before the next, and sets keep each level in order.
fn walk(edges: &BTreeMap<String, BTreeSet<String>>, start: &str) -> Vec<String> {
    let (mut seen, mut found) = (BTreeSet::from([start]), Vec::new());
    let mut waiting = VecDeque::from([start]);
    while let Some(at) = waiting.pop_front() {
        for next in edges.get(at).into_iter().flatten() {
            if seen.insert(next) {
                found.push(next.clone());
                waiting.push_back(next);
            }
        }
    }
    found
}

/// `"from" -> "to"`, unless it leads through a provider or the root, which everything hangs on.
fn edge(line: &str) -> Option<(String, String)> {
    let (from, rest) = quoted(line.trim())?;
    let (to, _) = quoted(rest.trim_start().strip_prefix("->")?.trim_start())?;
    Some((node(&from)?, node(&to)?))
}

/// The string that a line begins with, and what follows it.
fn quoted(line: &str) -> Option<(String, &str)> {
    let body = line.strip_prefix('"')?;
    let (mut text, mut escaped) = (String::new(), false);
    for (at, letter) in body.char_indices() {
        match letter {
            _ if escaped => {
                escaped = false;
                text.push(letter);
            }
            '\\' => escaped = true,
            '"' => return Some((text, &body[at + 1..])),
            _ => text.push(letter),
        }
    }
    None
}

fn node(label: &str) -> Option<String> {
    let label = label.strip_prefix("[root] ").unwrap_or(label);
    let label = label.strip_suffix(" (expand)").unwrap_or(label);
    let hub = label == "root" || label.starts_with("provider[") || label.contains(".provider[");
    (!hub).then(|| label.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOT: &str = r#"
digraph {
    subgraph "root" {
        "[root] box.main (expand)" [label = "box.main", shape = "box"]
        "[root] local.token (expand)" -> "[root] coder_agent.dev (expand)"
        "[root] module.m.var.x (expand)" -> "[root] local.token (expand)"
        "[root] module.m.box.inner (expand)" -> "[root] module.m.var.x (expand)"
        "[root] box.main (expand)" -> "[root] coder_agent.dev (expand)"
        "[root] box.main (expand)" -> "[root] provider[\"x/y\"]"
        "[root] coder_agent.dev (expand)" -> "[root] provider[\"x/y\"]"
        "[root] root" -> "[root] box.main (expand)"
    }
}"#;

    #[test]
    fn dependents_come_nearest_first_through_locals_and_variables() {
        let graph = Graph::parse(DOT);
        let expected = ["box.main", "local.token", "module.m.var.x", "module.m.box.inner"];
        assert_eq!(graph.dependents("coder_agent.dev"), expected);
    }

    #[test]
    fn nothing_is_connected_by_a_provider_or_the_root() {
        let graph = Graph::parse(DOT);
        assert_eq!(graph.dependencies("box.main"), ["coder_agent.dev"]);
        assert!(graph.dependents("box.main").is_empty());
    }

    #[test]
    fn what_is_no_graph_has_no_edges() {
        for text in ["", "\"a\" ->", "\"a", "a -> b", "\"a\\"] {
            assert!(Graph::parse(text).upstream.is_empty(), "{text}");
        }
    }
}
