//! From a report's resources to rows: names checked, environments merged, ids given.

use std::collections::{BTreeMap, BTreeSet};

use berth_backbone::Ids;
use berth_db::completion::{NewAgent, NewApp, NewResource, NewScript};
use berth_domain::env::{self, EnvVar, MergeStrategy};
use berth_domain::id::{AgentId, AppId, JobId, ResourceId, ScriptId};
use berth_proto::v1;
use serde_json::json;
use uuid::Uuid;

use crate::update::storable;

/// Most characters of an agent's name or an app's slug.
const NAME_MAX: usize = 64;

/// Rows of one report.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) resources: Vec<NewResource>,
    pub(super) agents: Vec<NewAgent>,
    pub(super) scripts: Vec<NewScript>,
    pub(super) apps: Vec<NewApp>,
    pub(super) daily_cost: i32,
}

/// Makes rows. The error is for the template's author: what is wrong with which agent or app.
pub(super) fn collect(
    ids: Ids,
    job: JobId,
    resources: &[v1::Resource],
) -> Result<Collected, String> {
    let mut found = Collected::default();
    let (mut names, mut slugs) = (BTreeSet::new(), BTreeSet::new());
    for resource in resources {
        let id = ResourceId(ids.next());
        found.daily_cost = found.daily_cost.saturating_add(resource.daily_cost.max(0));
        found.resources.push(row(id, job, resource));
        for agent in &resource.agents {
            check_name("agent name", &agent.name)?;
            if !names.insert(agent.name.to_lowercase()) {
                return Err(format!(
                    "two agents are named {:?}; names must be unique, whatever their case",
                    agent.name
                ));
            }
            for app in &agent.apps {
                check_name("app slug", &app.slug)?;
                if !slugs.insert(app.slug.to_lowercase()) {
                    return Err(format!(
                        "two apps have the slug {:?}; slugs must be unique in a template, whatever \
                         their case",
                        app.slug
                    ));
                }
            }
            add_agent(ids, (job, id), agent, &mut found)?;
        }
    }
    Ok(found)
}

/// Letters, digits and single hyphens between them.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let is_word =
        |part: &str| !part.is_empty() && part.chars().all(|it| it.is_ascii_alphanumeric());
    if name.len() <= NAME_MAX && name.split('-').all(is_word) {
        return Ok(());
    }
    Err(format!(
        "{what} {name:?} is not allowed: use 1 to {NAME_MAX} letters, digits and single hyphens \
         between them"
    ))
}

fn row(id: ResourceId, job_id: JobId, it: &v1::Resource) -> NewResource {
    let metadata = it.metadata.iter().map(|it| {
        json!({
            "key": it.key, "value": it.value, "sensitive": it.sensitive, "is_null": it.is_null,
        })
    });
    NewResource {
        job_id,
        id,
        r#type: storable(it.r#type.clone()),
        name: storable(it.name.clone()),
        icon: it.icon.clone(),
        hide: it.hide,
        daily_cost: it.daily_cost,
        instance_type: it.instance_type.clone(),
        module_path: it.module_path.clone(),
        metadata: metadata.collect(),
    }
}

fn add_agent(
    ids: Ids,
    (job_id, resource_id): (JobId, ResourceId),
    it: &v1::Agent,
    found: &mut Collected,
) -> Result<(), String> {
    let id = AgentId(ids.next());
    let (auth_token, auth_instance_id) = credentials(ids, it)?;
    let environment = environment(it)?;
    let metadata = it.metadata.iter().map(|it| {
        json!({
            "key": it.key, "display_name": it.display_name, "script": it.script,
            "interval": it.interval_seconds, "timeout": it.timeout_seconds, "order": it.order,
        })
    });
    found.agents.push(NewAgent {
        job_id,
        id,
        state_id: it.id.clone(),
        resource_id,
        name: it.name.clone(),
        auth_token,
        auth_instance_id,
        architecture: it.architecture.clone(),
        operating_system: it.operating_system.clone(),
        directory: it.directory.clone(),
        environment_variables: json!(environment),
        motd_file: it.motd_file.clone(),
        troubleshooting_url: it.troubleshooting_url.clone(),
        connection_timeout_seconds: it.connection_timeout_seconds,
        startup_script_behavior: or(&it.startup_script_behavior, "non-blocking"),
        display_apps: it.display_apps.clone(),
        display_order: place(it.order),
        api_key_scope: or(&it.api_key_scope, "all"),
        metadata: metadata.collect(),
    });
    for (position, script) in it.scripts.iter().enumerate() {
        found.scripts.push(script_row(ids, id, script, place(position)));
    }
    found.apps.extend(it.apps.iter().map(|app| app_row(ids, id, app)));
    Ok(())
}

/// The agent's token. One that shows its instance's identity gets one that nobody knows, and is
/// given it for that; the claim of a prebuild keeps the one it has.
fn credentials(ids: Ids, it: &v1::Agent) -> Result<(Uuid, Option<String>), String> {
    match &it.auth {
        Some(v1::agent::Auth::Token(token)) if !token.is_empty() => {
            let token = token
                .parse()
                .map_err(|_| format!("the token of agent {:?} is not a UUID", it.name))?;
            Ok((token, None))
        }
        Some(v1::agent::Auth::InstanceId(instance)) if !instance.is_empty() => {
            Ok((ids.secret(), Some(storable(instance.clone()))))
        }
        _ => Ok((ids.secret(), None)),
    }
}

/// Merges the agent's `coder_env`s, which the report has in order of their addresses.
fn environment(it: &v1::Agent) -> Result<BTreeMap<String, String>, String> {
    let own: BTreeMap<_, _> =
        it.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut vars = Vec::with_capacity(it.extra_envs.len());
    for (place, var) in it.extra_envs.iter().enumerate() {
        let strategy = match var.merge_strategy.as_str() {
            "" => MergeStrategy::Replace,
            other => other.parse().map_err(|error| format!("env {:?}: {error}", var.name))?,
        };
        vars.push(EnvVar {
            address: if var.address.is_empty() {
                format!("env no. {:04}", place + 1)
            } else {
                var.address.clone()
            },
            name: var.name.clone(),
            value: var.value.clone(),
            strategy,
        });
    }
    env::merge(&own, &vars).map_err(|error| format!("agent {:?}: {error}", it.name))
}

fn script_row(ids: Ids, agent_id: AgentId, it: &v1::Script, position: i32) -> NewScript {
    NewScript {
        id: ScriptId(ids.next()),
        agent_id,
        log_source_id: ids.next(),
        display_name: it.display_name.clone(),
        icon: it.icon.clone(),
        script: it.script.clone(),
        log_path: it.log_path.clone(),
        cron: it.cron.clone(),
        run_on_start: it.run_on_start,
        run_on_stop: it.run_on_stop,
        start_blocks_login: it.start_blocks_login,
        timeout_seconds: it.timeout_seconds,
        position,
    }
}

fn app_row(ids: Ids, agent_id: AgentId, it: &v1::App) -> NewApp {
    NewApp {
        id: AppId(ids.next()),
        agent_id,
        slug: it.slug.clone(),
        display_name: it.display_name.clone(),
        command: it.command.clone(),
        url: it.url.clone(),
        icon: it.icon.clone(),
        subdomain: it.subdomain,
        external: it.external,
        hidden: it.hidden,
        sharing_level: or(&it.share, "owner"),
        open_in: or(&it.open_in, "slim-window"),
        display_group: it.group.clone(),
        display_order: place(it.order),
        tooltip: it.tooltip.clone(),
        healthcheck_url: it.healthcheck_url.clone(),
        healthcheck_interval: it.healthcheck_interval_seconds,
        healthcheck_threshold: it.healthcheck_threshold,
        health: if it.healthcheck_url.is_empty() { "disabled" } else { "initializing" },
    }
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

fn place(order: impl TryInto<i32>) -> i32 {
    order.try_into().unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId(Uuid::nil());

    fn agent(name: &str) -> v1::Agent {
        v1::Agent { name: name.to_owned(), ..v1::Agent::default() }
    }

    fn with(agents: Vec<v1::Agent>) -> Vec<v1::Resource> {
        vec![v1::Resource { agents, daily_cost: 3, ..v1::Resource::default() }]
    }

    fn error(agents: Vec<v1::Agent>) -> String {
        collect(Ids, JOB, &with(agents)).err().expect("refused")
    }

    #[test]
    fn two_agents_whose_names_differ_in_case_alone_are_refused() {
        assert!(error(vec![agent("Main"), agent("main")]).contains("\"main\""));
    }

    #[test]
    fn a_name_is_letters_digits_and_single_hyphens() {
        for name in ["a", "Main-2", "0"] {
            assert!(collect(Ids, JOB, &with(vec![agent(name)])).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a--b", "a_b", "ä"] {
            assert!(error(vec![agent(name)]).contains("agent name"), "{name}");
        }
    }

    #[test]
    fn environments_are_merged_and_the_agents_own_wins() {
        let var = |name: &str, value: &str, strategy: &str| v1::Env {
            name: name.into(),
            value: value.into(),
            merge_strategy: strategy.into(),
            address: String::new(),
        };
        let mut main = agent("main");
        main.env.insert("OWN".into(), "1".into());
        main.extra_envs =
            vec![var("PATH", "/a", ""), var("PATH", "/b", "append"), var("OWN", "2", "")];
        let found = collect(Ids, JOB, &with(vec![main])).unwrap();
        let env = &found.agents[0].environment_variables;
        assert_eq!(*env, json!({"OWN": "1", "PATH": "/a:/b"}));
        assert_eq!(found.daily_cost, 3);
    }

    #[test]
    fn an_agent_that_shows_its_instance_has_a_token_of_its_own_and_the_instances_id() {
        let on = |instance: &str| {
            let auth = Some(v1::agent::Auth::InstanceId(instance.to_owned()));
            let found =
                collect(Ids, JOB, &with(vec![v1::Agent { auth, ..agent("main") }])).unwrap();
            (found.agents[0].auth_token, found.agents[0].auth_instance_id.clone())
        };
        let (first, second) = (on("i-1"), on("i-1"));
        assert_eq!(first.1.as_deref(), Some("i-1"));
        assert_ne!(first.0, second.0);
        assert_eq!(on("").1, None, "an id that is not known is none");
    }

    #[test]
    fn environments_that_refuse_each_other_are_named_by_their_addresses() {
        let var = |address: &str, strategy: &str| v1::Env {
            name: "PATH".into(),
            value: "/a".into(),
            merge_strategy: strategy.into(),
            address: address.into(),
        };
        let mut main = agent("main");
        main.extra_envs = vec![var("coder_env.b", "error"), var("module.m.coder_env.a", "")];
        assert!(collect(Ids, JOB, &with(vec![main.clone()])).is_ok(), "the later one replaces");
        main.extra_envs = vec![var("coder_env.b", ""), var("module.m.coder_env.a", "error")];
        let error = error(vec![main]);
        assert!(error.contains("coder_env.b") && error.contains("module.m.coder_env.a"), "{error}");
    }

    #[test]
    fn two_apps_whose_slugs_differ_in_case_alone_are_refused() {
        let app = |slug: &str| v1::App { slug: slug.into(), ..v1::App::default() };
        let (mut one, mut two) = (agent("one"), agent("two"));
        (one.apps, two.apps) = (vec![app("web")], vec![app("Web")]);
        assert!(error(vec![one, two]).contains("\"Web\""));
    }

    #[test]
    fn a_token_that_is_no_uuid_is_refused() {
        let mut main = agent("main");
        main.auth = Some(v1::agent::Auth::Token("secret".into()));
        let error = error(vec![main]);
        assert!(error.contains("\"main\"") && !error.contains("secret"), "{error}");
    }
}
