//! Merging the environment of an agent (30-provisioning, "Env merge").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

closed_set! {
    /// What a `coder_env` does to a value that an earlier one of the same name left.
    MergeStrategy {
        /// The later value wins. The default.
        Replace = "replace",
        /// The later value goes behind the earlier one.
        Append = "append",
        /// The later value goes before the earlier one.
        Prepend = "prepend",
        /// There must be no earlier one: the build fails.
        Error = "error",
    }
}

/// Stands between the values of `append` and `prepend`.
const SEPARATOR: char = ':';

/// One `coder_env` resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its Terraform address; the order of merging.
    pub address: String,
    /// Name of the variable.
    pub name: String,
    /// Its value, possibly empty.
    pub value: String,
    /// What happens to an earlier value.
    pub strategy: MergeStrategy,
}

/// Two resources define one variable and the later one does not stand for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{second} defines {name} with merge_strategy \"error\", but {first} defines it already; \
     remove one of them or choose \"replace\", \"append\" or \"prepend\""
)]
pub struct EnvConflict {
    /// The variable.
    pub name: String,
    /// Address of the resource that came before.
    pub first: String,
    /// Address of the resource that refuses.
    pub second: String,
}

/// Merges all `coder_env` of one agent in order of their Terraform addresses; the agent's own `env`
/// is applied last and replaces.
pub fn merge(
    agent: &BTreeMap<String, String>,
    vars: &[EnvVar],
) -> Result<BTreeMap<String, String>, EnvConflict> {
    let mut ordered: Vec<&EnvVar> = vars.iter().collect();
    ordered.sort_by(|a, b| a.address.cmp(&b.address));

    let mut merged: BTreeMap<String, (String, &str)> = BTreeMap::new();
    for var in ordered {
        let value = match (merged.get(&var.name), var.strategy) {
            (None, _) | (Some(_), MergeStrategy::Replace) => var.value.clone(),
            (Some((old, _)), MergeStrategy::Append) => join(old, &var.value),
            (Some((old, _)), MergeStrategy::Prepend) => join(&var.value, old),
            (Some((_, first)), MergeStrategy::Error) => {
                return Err(EnvConflict {
                    name: var.name.clone(),
                    first: (*first).to_owned(),
                    second: var.address.clone(),
                });
            }
        };
        merged.insert(var.name.clone(), (value, &var.address));
    }

    let mut env: BTreeMap<String, String> =
        merged.into_iter().map(|(name, (value, _))| (name, value)).collect();
    env.extend(agent.iter().map(|(name, value)| (name.clone(), value.clone())));
    Ok(env)
}

fn join(left: &str, right: &str) -> String {
    if left.is_empty() || right.is_empty() {
        return format!("{left}{right}");
    }
    format!("{left}{SEPARATOR}{right}")
}
