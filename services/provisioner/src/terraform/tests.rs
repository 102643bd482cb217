use serde_json::json;

use super::*;

fn resource(address: &str, values: &serde_json::Value) -> serde_json::Value {
    let block = address.split_once('[').map_or(address, |(block, _)| block);
    let (kind, name) = block.split_once('.').unwrap();
    json!({ "address": address, "mode": "managed", "type": kind, "name": name, "values": values })
}

fn data(kind: &str, name: &str, values: &serde_json::Value) -> serde_json::Value {
    let address = format!("data.{kind}.{name}");
    json!({ "address": address, "mode": "data", "type": kind, "name": name, "values": values })
}

fn nodes(resources: &[serde_json::Value]) -> Vec<Node> {
    let values = json!({ "root_module": { "resources": resources } });
    serde_json::from_value::<model::Values>(values).unwrap().nodes()
}

fn graph(edges: &[(&str, &str)]) -> Graph {
    let line = |(from, to): &(&str, &str)| {
        format!("\"[root] {from} (expand)\" -> \"[root] {to} (expand)\"\n")
    };
    Graph::parse(&edges.iter().map(line).collect::<String>())
}

#[test]
fn an_agent_belongs_to_what_depends_on_it_and_has_what_names_it() {
    let nodes = nodes(&[
        resource(
            "coder_agent.dev",
            &json!({
                "id": "a1", "os": "linux", "arch": "amd64", "auth": "token", "token": "t",
                "env": {"A": "b"}, "startup_script": "echo hi", "startup_script_behavior": "blocking",
                "display_apps": [{"vscode": true, "web_terminal": false}],
                "metadata": [{"key": "k", "script": "s", "interval": 5}],
            }),
        ),
        resource(
            "coder_app.web",
            &json!({
                "id": "p1", "agent_id": "a1", "slug": "web", "url": "http://localhost:1",
                "healthcheck": [{"url": "http://localhost:1/h", "interval": 5, "threshold": 6}],
            }),
        ),
        resource("coder_script.s", &json!({"id": "s1", "agent_id": "a1", "script": "x"})),
        resource("coder_script.other", &json!({"id": "s2", "agent_id": "a2", "script": "x"})),
        resource("coder_env.e", &json!({"agent_id": "a1", "name": "N", "value": "v"})),
        resource("box.main", &json!({"id": "b1"})),
        resource(
            "coder_metadata.m",
            &json!({
                "resource_id": "b1", "daily_cost": 3, "icon": "/i.png",
                "item": [{"key": "a", "value": "1"}, {"key": "b", "value": null}],
            }),
        ),
    ]);
    let graph = graph(&[("box.main", "coder_agent.dev"), ("coder_metadata.m", "box.main")]);
    let found = resources::resources(&nodes, &graph, true);
    let [it] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&*it.name, &*it.r#type, it.daily_cost, &*it.icon), ("main", "box", 3, "/i.png"));
    assert_eq!(it.metadata.iter().map(|it| it.is_null).collect::<Vec<_>>(), [false, true]);
    let agent = &it.agents[0];
    assert_eq!((&*agent.name, &*agent.id, &*agent.env["A"]), ("dev", "a1", "b"));
    assert_eq!(agent.auth, Some(v1::agent::Auth::Token("t".into())));
    assert_eq!(agent.display_apps, ["vscode"]);
    assert_eq!(agent.apps[0].healthcheck_threshold, 6);
    assert_eq!(agent.extra_envs[0].name, "N");
    let scripts: Vec<_> =
        agent.scripts.iter().map(|it| (&*it.script, it.start_blocks_login)).collect();
    assert_eq!(scripts, [("echo hi", true), ("x", false)]);
    assert_eq!(resources::daily_cost(&nodes), 3);
}

#[test]
fn an_agent_shows_the_identity_of_the_instance_that_is_named_or_that_it_runs_in() {
    #[track_caller]
    fn check(auth: &str, named: Option<&str>, machine: (&str, &str), expected: v1::agent::Auth) {
        let mut resources = vec![
            resource("coder_agent.dev", &json!({"id": "a1", "auth": auth, "token": "t"})),
            resource(
                &format!("{}.vm", machine.0),
                &json!({"id": "i-own", machine.1: "i-own", "virtual_machine_name": "x"}),
            ),
        ];
        if let Some(id) = named {
            let values = json!({"agent_id": "a1", "instance_id": id});
            resources.push(resource("coder_agent_instance.i", &values));
        }
        let vm = format!("{}.vm", machine.0);
        let found = resources::resources(
            &nodes(&resources),
            &graph(&[(vm.as_str(), "coder_agent.dev")]),
            true,
        );
        assert_eq!(found[0].agents[0].auth, Some(expected));
    }
    let shows = |id: &str| v1::agent::Auth::InstanceId(id.to_owned());
    let aws = ("aws_instance", "id");
    check("aws-instance-identity", Some("i-named"), aws, shows("i-named"));
    check("aws-instance-identity", None, aws, shows("i-own"));
    // Not known yet: in a plan.
    check("aws-instance-identity", Some(""), aws, shows("i-own"));
    let azure = ("azurerm_linux_virtual_machine", "virtual_machine_id");
    check("azure-instance-identity", None, azure, shows("i-own"));
    let google = ("google_compute_instance", "instance_id");
    check("google-instance-identity", None, google, shows("i-own"));
    check("token", Some("i-named"), aws, v1::agent::Auth::Token("t".to_owned()));
}

#[test]
fn in_a_plan_things_find_their_agent_without_ids() {
    let nodes = nodes(&[
        resource("coder_agent.a", &json!({})),
        resource("coder_agent.b", &json!({})),
        resource("coder_app.web", &json!({"slug": "web"})),
        resource("box.one", &json!({})),
        resource("box.two", &json!({})),
    ]);
    let graph = graph(&[
        ("box.one", "coder_agent.a"),
        ("box.two", "local.token"),
        ("local.token", "coder_agent.b"),
        ("coder_app.web", "coder_agent.b"),
    ]);
    let found = resources::resources(&nodes, &graph, true);
    let agents = |index: usize| found[index].agents.iter().map(|it| &*it.name).collect::<Vec<_>>();
    assert_eq!((agents(0), agents(1)), (vec!["a"], vec!["b"]));
    assert_eq!(found[1].agents[0].apps[0].slug, "web");
}

#[test]
fn counted_agents_and_resources_pair_by_key() {
    let indexed = |address: &str, index: u32| {
        let mut it = resource(address, &json!({}));
        it["index"] = index.into();
        it
    };
    let nodes = nodes(&[
        indexed("coder_agent.a[0]", 0),
        indexed("coder_agent.a[1]", 1),
        indexed("box.b[0]", 0),
        indexed("box.b[1]", 1),
    ]);
    let found = resources::resources(&nodes, &graph(&[("box.b", "coder_agent.a")]), true);
    assert_eq!(found.iter().map(|it| it.agents.len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_stopped_workspace_has_no_agent_and_a_running_one_without_a_resource_shows_its_own() {
    let agent = || nodes(&[resource("coder_agent.dev", &json!({}))]);
    let stopped = graph(&[("box.main", "coder_agent.dev")]);
    assert!(resources::resources(&agent(), &stopped, false).is_empty());
    assert!(resources::resources(&agent(), &stopped, true).is_empty());
    let alone = graph(&[]);
    assert!(resources::resources(&agent(), &alone, false).is_empty());
    let found = resources::resources(&agent(), &alone, true);
    assert_eq!((&*found[0].r#type, found[0].agents.len()), ("coder_agent", 1));
}

#[test]
fn parameters_and_presets_are_read_with_everything_they_say() {
    let nodes = nodes(&[
        data(
            "coder_parameter",
            "b",
            &json!({
                "name": "b", "type": "number", "mutable": true, "default": "3", "optional": true,
                "order": 2, "validation": [{"min": 1, "max": 0, "min_disabled": false,
                "max_disabled": true, "monotonic": "increasing"}],
            }),
        ),
        data(
            "coder_parameter",
            "a",
            &json!({
                "name": "a", "type": "string", "default": null, "optional": false, "order": 1,
                "option": [{"name": "One", "value": "1", "icon": "/x"}], "validation": [],
            }),
        ),
        data(
            "coder_workspace_preset",
            "p",
            &json!({
                "name": "p", "default": true, "parameters": {"a": "1"},
                "prebuilds": [{"instances": 2, "expiration_policy": [{"ttl": 3600}],
                "scheduling": [{"timezone": "UTC", "schedule": [{"cron": "* 8-18 * * 1-5",
                "instances": 5}]}]}],
            }),
        ),
        data("coder_workspace_preset", "q", &json!({"name": "q", "prebuilds": []})),
        data("coder_workspace_tags", "t", &json!({"tags": {"zone": "eu"}})),
    ]);
    let [a, b] = &parameters::parameters(&nodes)[..] else { panic!() };
    assert_eq!((&*a.name, a.required, &*a.options[0].icon), ("a", true, "/x"));
    assert_eq!((&*b.default_value, b.required, b.mutable), ("3", false, true));
    assert_eq!((b.validation_min, b.validation_max), (Some(1), None));
    let [p, q] = &parameters::presets(&nodes)[..] else { panic!() };
    let pool = p.prebuilds.as_ref().unwrap();
    assert_eq!((pool.instances, pool.ttl_seconds, &*pool.timezone), (2, 3600, "UTC"));
    assert_eq!((&*pool.schedules[0].cron, pool.schedules[0].instances), ("* 8-18 * * 1-5", 5));
    assert_eq!((p.is_default, q.prebuilds.is_none()), (true, true));
    assert_eq!(parameters::tags(&nodes)["zone"], "eu");
}

#[test]
fn only_what_attributes_force_to_be_made_anew_is_a_replacement() {
    let change = |kind: &str, actions: serde_json::Value, paths: serde_json::Value| {
        let address = format!("{kind}.x");
        let change = json!({ "actions": actions, "replace_paths": paths });
        json!({ "address": address, "type": kind, "change": change })
    };
    let paths = json!([["env", "A"], ["image"]]);
    let changes = json!([
        change("box", json!(["delete", "create"]), paths.clone()),
        change("crate", json!(["create", "delete"]), paths.clone()),
        change("coder_agent", json!(["delete", "create"]), paths.clone()),
        change("tainted", json!(["delete", "create"]), json!([])),
        change("updated", json!(["update"]), json!([])),
        change("gone", json!(["delete"]), json!([])),
    ]);
    let plan: Plan = serde_json::from_value(json!({ "resource_changes": changes })).unwrap();
    let found = planned(plan, None, v1::Transition::Start, &[]).replacements;
    let names: Vec<_> = found.iter().map(|it| &*it.resource).collect();
    assert_eq!(names, ["box.x", "crate.x"]);
    assert_eq!(found[0].paths, ["env.A", "image"]);
}

#[test]
fn a_data_source_that_waits_for_apply_is_read_off_the_planned_values() {
    let module = |default: &str| {
        let parameter = data("coder_parameter", "p", &json!({"name": "p", "default": default}));
        json!({ "root_module": { "resources": [parameter] } })
    };
    let plan = json!({
        "planned_values": module("new"),
        "prior_state": { "values": module("old") },
    });
    let plan: Plan = serde_json::from_value(plan).unwrap();
    let [parameter] = &planned(plan, None, v1::Transition::Start, &[]).parameters[..] else {
        panic!()
    };
    assert_eq!(parameter.default_value, "new");
}

#[test]
fn an_empty_plan_and_an_empty_state_are_read() {
    let plan: Plan = serde_json::from_str(r#"{"format_version": "1.2"}"#).unwrap();
    assert!(planned(plan, None, v1::Transition::Start, &[]).resources.is_empty());
    let state: State = serde_json::from_str(r#"{"format_version": "1.0"}"#).unwrap();
    assert!(state.values.is_none());
}

#[test]
fn tags_are_known_before_a_job_and_of_one_mind() {
    let tags = |name: &str, tags: serde_json::Value| {
        data("coder_workspace_tags", name, &json!({ "tags": tags }))
    };
    let check = |read: &[serde_json::Value], waiting: &[serde_json::Value]| {
        parameters::check_tags(&nodes(read), &nodes(waiting))
    };
    assert_eq!(
        check(&[tags("a", json!({"zone": "eu"})), tags("b", json!({"zone": "eu"}))], &[]),
        Ok(())
    );
    let refused = [
        (check(&[], &[tags("a", json!({}))]), "data.coder_workspace_tags.a"),
        (check(&[tags("a", json!({"zone": null}))], &[]), "\"zone\" no value"),
        (check(&[tags("a", json!({"zone": ""}))], &[]), "\"zone\" no value"),
        (
            check(&[tags("a", json!({"zone": "eu"})), tags("b", json!({"zone": "us"}))], &[]),
            "\"us\" and \"eu\"",
        ),
    ];
    for (outcome, text) in refused {
        let error = outcome.unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn rules_name_parameters_and_what_is_not_to_be_followed_is_said() {
    use tag_rules::{Making, Piece, Written};
    let nodes = nodes(&[
        data("coder_parameter", "where", &json!({"name": "Zone of it"})),
        data(
            "coder_workspace_tags",
            "t",
            &json!({"tags": {"zone": "z-eu", "tier": "a", "lost": "x", "kind": "box"}}),
        ),
    ]);
    let parameter = |label: &str| Piece::Parameter(label.to_owned());
    let written = [
        ("zone", Making::Pieces(vec![Piece::Text("z-".into()), parameter("where")])),
        ("tier", Making::Unclear),
        ("lost", Making::Pieces(vec![parameter("nowhere")])),
        ("kind", Making::Fixed),
        ("absent", Making::Unclear),
    ]
    .map(|(name, value)| Written { name: name.to_owned(), value });
    let (rules, unclear) = parameters::tag_rules(&nodes, &written);
    let [rule] = &rules[..] else { panic!("{rules:?}") };
    let pieces: Vec<_> = rule.pieces.iter().filter_map(|it| it.piece.clone()).collect();
    let expected = [
        v1::tag_piece::Piece::Text("z-".into()),
        v1::tag_piece::Piece::Parameter("Zone of it".into()),
    ];
    assert_eq!((&*rule.name, &pieces[..]), ("zone", &expected[..]));
    assert_eq!(unclear, ["tier", "lost"]);
}
