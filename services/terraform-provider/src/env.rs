//! The environment Berth starts Terraform with: how a build reaches the provider.

use std::collections::BTreeMap;

use crate::identity::digest;

/// A snapshot of the environment, taken once when the provider starts.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// This process' environment. Variables that are not UTF-8 are none of ours.
    pub(crate) fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// The variable, when it is set, be it to nothing.
    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The variable, when it is set to something.
    pub(crate) fn filled(&self, name: &str) -> Option<&str> {
        self.find(name).filter(|value| !value.is_empty())
    }

    /// The variable, or nothing.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.find(name).unwrap_or_default()
    }

    /// Whether the variable is exactly `true`.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// Whether a build of a workspace is under way, and not an import or a plan by hand.
    pub(crate) fn is_build(&self) -> bool {
        self.filled("CODER_WORKSPACE_BUILD_ID").is_some()
    }

    /// What the build does: `start`, `stop` or `delete`; `start` outside Berth.
    pub(crate) fn transition(&self) -> &str {
        self.filled("CODER_WORKSPACE_TRANSITION").unwrap_or("start")
    }

    /// The value given for a parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.find(&format!("CODER_PARAMETER_{}", digest(name)))
    }

    /// The parameter's value in the previous build.
    pub(crate) fn previous_parameter(&self, name: &str) -> Option<&str> {
        self.find(&format!("CODER_PARAMETER_PREVIOUS_{}", digest(name)))
    }

    /// The token that an agent already runs with, in a claim build. The variable of the empty id
    /// is the public provider's way to say «the only agent», and holds for one that is replaced.
    pub(crate) fn running_agent_token(&self, agent_id: &str) -> Option<&str> {
        let of = |id| self.filled(&format!("CODER_RUNNING_WORKSPACE_AGENT_TOKEN_{}", digest(id)));
        of(agent_id).or_else(|| of(""))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let variables = variables.into_iter();
        Self(variables.map(|(name, value)| (name.into(), value.into())).collect())
    }
}
